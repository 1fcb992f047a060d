--- JSON out: a small writer whose text is that of Python's json.dumps, byte for byte.
--
-- Checkpoint files are read by Python and compared by people, so the same value must always give
-- the same text: objects keep the order they were given in, plain Lua tables are sorted by key,
-- floats are written with the fewest digits that read back as the same double.
-- (JSON in is core.json_decode.)

local core = require "qmoon.core"

local json = {}

local Object, Array, Float = {}, {}, {}

--- An object that keeps its order: json.object{{"a", 1}, {"b", 2}}.
---@param members table[] list of {key, value}
function json.object(members)
    return setmetatable(members, Object)
end

--- A list, also when it is empty (a plain empty table is written as []).
---@param list any[]
function json.array(list)
    return setmetatable(list, Array)
end

--- A number that stays a float: json.float(6) is written as 6.0.
---@param value number
function json.float(value)
    return setmetatable({ value = value }, Float)
end

--- The decimal digits of |x| and its exponent: x = 0.d1d2d3… * 10^point.
local function shortest_digits(x)
    for precision = 0, 16 do
        local text = string.format("%." .. precision .. "e", x)
        if tonumber(text) == x then
            local head, tail, exponent = text:match("^(%d)%.?(%d*)e([-+]%d+)$")
            return head .. tail, tonumber(exponent) + 1
        end
    end
end

--- A number as JSON can hold it: null for NaN and infinities.
---@param x number
---@return number|userdata
function json.finite(x)
    return x - x == 0 and x or core.null
end

--- A finite double as Python's repr writes it: 1e-06, 10000.0, 1.5e+20.
---@param x number
---@return string
function json.float_text(x)
    if x ~= x or x == math.huge or x == -math.huge then
        core.fail("fail", "JSON has no way to write %s", tostring(x))
    end
    if x == 0 then
        return 1 / x < 0 and "-0.0" or "0.0"
    end
    local sign = x < 0 and "-" or ""
    local digits, point = shortest_digits(math.abs(x))
    if point > 16 or point < -3 then
        local rest = digits:sub(2)
        rest = rest ~= "" and "." .. rest or ""
        return string.format("%s%s%se%+03d", sign, digits:sub(1, 1), rest, point - 1)
    elseif point <= 0 then
        return sign .. "0." .. ("0"):rep(-point) .. digits
    elseif #digits <= point then
        return sign .. digits .. ("0"):rep(point - #digits) .. ".0"
    end
    return sign .. digits:sub(1, point) .. "." .. digits:sub(point + 1)
end

--- The double with the fewest digits that still reads as the same float32: a file's f32
--- 9.99999997e-07 was somebody's 1e-06.
---@param x number
---@return number
function json.widen(x)
    local bytes = core.pack("f", x)
    for precision = 1, 9 do
        local y = tonumber(string.format("%." .. precision .. "g", x))
        if core.pack("f", y) == bytes then
            return y
        end
    end
    return x
end

local function number_text(x)
    if x == math.floor(x) and math.abs(x) < 2 ^ 53 then
        return string.format("%.0f", x)
    end
    return json.float_text(x)
end

local short = { ['"'] = '\\"', ["\\"] = "\\\\", ["\n"] = "\\n", ["\r"] = "\\r", ["\t"] = "\\t",
                ["\b"] = "\\b", ["\f"] = "\\f" }

local function escape_byte(c)
    return short[c] or string.format("\\u%04x", c:byte())
end

--- One UTF-8 sequence as \uXXXX, as a surrogate pair above U+FFFF.
local function escape_wide(sequence)
    local code = sequence:byte()
    code = code - (code >= 0xF0 and 0xF0 or code >= 0xE0 and 0xE0 or 0xC0)
    for i = 2, #sequence do
        code = code * 64 + sequence:byte(i) - 0x80
    end
    if code < 0x10000 then
        return string.format("\\u%04x", code)
    end
    code = code - 0x10000
    return string.format("\\u%04x\\u%04x", 0xD800 + math.floor(code / 1024), 0xDC00 + code % 1024)
end

local function string_text(s, ascii)
    s = s:gsub('[%z\1-\31"\\]', escape_byte)
    if ascii then
        s = s:gsub("[\194-\244][\128-\191]+", escape_wide)
    end
    return '"' .. s .. '"'
end

local function sorted_members(t)
    local members = {}
    for k, v in pairs(t) do
        if type(k) ~= "string" then
            core.fail("fail", "JSON: a table is neither a list nor an object with string keys")
        end
        members[#members + 1] = { k, v }
    end
    table.sort(members, function(a, b) return a[1] < b[1] end)
    return members
end

local encode_value

local function encode_list(list, options, indent, open, close, item_text)
    if #list == 0 then
        return open .. close
    end
    local inner = indent and indent .. (" "):rep(options.indent)
    local parts = {}
    for i, item in ipairs(list) do
        parts[i] = item_text(item, inner)
    end
    if not indent then
        return open .. table.concat(parts, ", ") .. close
    end
    return open .. inner .. table.concat(parts, "," .. inner) .. indent .. close
end

local function encode_table(t, options, indent)
    local kind = getmetatable(t)
    if kind == Float then
        return json.float_text(t.value)
    elseif kind == Object or (kind ~= Array and next(t) ~= nil and #t == 0) then
        local members = kind == Object and t or sorted_members(t)
        return encode_list(members, options, indent, "{", "}", function(member, inner)
            return string_text(member[1], options.ascii) .. ": " .. encode_value(member[2], options, inner)
        end)
    end
    return encode_list(t, options, indent, "[", "]", function(item, inner)
        return encode_value(item, options, inner)
    end)
end

--- indent is the line break and blanks before a closing bracket at this depth, nil on one line.
function encode_value(value, options, indent)
    local kind = type(value)
    if value == core.null then
        return "null"
    elseif kind == "string" then
        return string_text(value, options.ascii)
    elseif kind == "number" then
        return number_text(value)
    elseif kind == "boolean" then
        return tostring(value)
    elseif kind == "table" then
        return encode_table(value, options, indent)
    end
    return core.fail("fail", "JSON has no way to write a %s", kind)
end

--- The text of a value. Options: indent (spaces a level; nil: one line), ascii (all else as \uXXXX).
---@param value any
---@param options? {indent: integer?, ascii: boolean?}
---@return string
function json.encode(value, options)
    options = options or {}
    return encode_value(value, options, options.indent and "\n" or nil)
end

return json
