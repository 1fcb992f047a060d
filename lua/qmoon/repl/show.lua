--- How the prompt shows a value: never more than a screenful, never wider than the terminal.

local core = require "qmoon.core"
local result = require "qmoon.result"
local terminal = require "qmoon.terminal"
local text = require "qmoon.text"

local show = {}

local LINES, ITEMS, DEPTH, CHARACTERS = 40, 30, 5, 4000

--- How results and pictures are shown, and how many digits numbers have (nil: all that count).
show.modes = { "plain", "box", "csv", "json", "jsonl", "markdown", "html", "svg" }
show.mode = "plain"
show.digits = nil

local function number(x, inner)
    if show.digits or inner and x ~= math.floor(x) then
        return ("%%.%dg"):format(show.digits or 7):format(x)
    end
    return tostring(x)
end

-- ---- text ---------------------------------------------------------------------------------------------------------

-- Bytes that are no text: control characters but line ends and tabs, or no UTF-8.
local function is_binary(s)
    return s:find "[%z\1-\8\11-\31\127]" ~= nil or not pcall(core.json_decode, '"' .. s:gsub('[\\"%c]', " ") .. '"', "text")
end

local function hex(s)
    local bytes = {}
    for i = 1, math.min(16, #s) do
        bytes[i] = ("%02x"):format(s:byte(i))
    end
    return ("%d bytes: %s%s"):format(#s, table.concat(bytes, " "), #s > 16 and " …" or "")
end

-- A line of figures as its facts, each with the gap behind it: " · " or several blanks.
local function facts_of(line)
    local facts, from = {}, 1
    while true do
        local first, last = line:find(" · ", from, true)
        local blank, wide = line:find("  +", from)
        if blank and (not first or blank < first) then
            first, last = blank, wide
        end
        if not first then
            facts[#facts + 1] = { line:sub(from), "" }
            return facts
        end
        facts[#facts + 1] = { line:sub(from, first - 1), line:sub(first, last) }
        from = last + 1
    end
end

-- A line that is too long is broken between two facts.
local function wrap(line, columns)
    if text.width(line) <= columns then
        return line
    end
    local rows, row, gap = {}, "", ""
    for _, fact in ipairs(facts_of(line)) do
        if row ~= "" and text.width(row .. gap .. fact[1]) > columns then
            rows[#rows + 1] = row
            row = "  " .. fact[1]
        else
            row = row .. gap .. fact[1]
        end
        gap = fact[2]
    end
    rows[#rows + 1] = row
    return table.concat(rows, "\n")
end

-- At most a screenful, and how much more there is.
local function bounded(s)
    local lines, more = {}, 0
    for line in (s .. "\n"):gmatch "(.-)\n" do
        if #lines < LINES then
            lines[#lines + 1] = line
        else
            more = more + 1
        end
    end
    if more > 0 then -- the line that says so is one of them
        lines[LINES] = (" … %d more lines; print(_) shows all"):format(more + 1)
    end
    local shown = table.concat(lines, "\n")
    if #shown > CHARACTERS then
        shown = shown:sub(1, CHARACTERS):gsub("[\128-\255]+$", "")
            .. ("\n … %d more characters; print(_) shows all"):format(#s - CHARACTERS)
    end
    return shown
end

-- ---- tables ---------------------------------------------------------------------------------------------------------

local inspect

local function key_text(key)
    if type(key) == "string" and key:find "^[%a_][%w_]*$" then
        return key
    end
    return "[" .. inspect(key, DEPTH, {}) .. "]"
end

-- Keys but those of the list part: strings in order, then others.
local function keys_of(t, n)
    local keys = {}
    for k in next, t do
        if not (type(k) == "number" and k >= 1 and k <= n and k == math.floor(k)) then
            keys[#keys + 1] = k
        end
    end
    table.sort(keys, function(a, b)
        if type(a) == type(b) and (type(a) == "string" or type(a) == "number") then
            return a < b
        end
        return type(a) == "string" and type(b) ~= "string"
    end)
    return keys
end

local function members(t, depth, seen)
    local parts, n, shown = {}, #t, 0
    for i = 1, math.min(n, ITEMS) do
        parts[i] = inspect(rawget(t, i), depth + 1, seen)
    end
    local keys = keys_of(t, n)
    for _, k in ipairs(keys) do
        if shown < ITEMS then
            shown = shown + 1
            parts[#parts + 1] = key_text(k) .. " = " .. inspect(rawget(t, k), depth + 1, seen)
        end
    end
    local left = math.max(0, n - ITEMS) + #keys - shown
    if left > 0 then
        parts[#parts + 1] = ("… +%d more"):format(left)
    end
    return parts
end

local function inspect_table(t, depth, seen)
    if seen[t] then
        return "{… itself}"
    elseif next(t) == nil then
        return "{}"
    elseif depth >= DEPTH then
        return "{…}"
    end
    seen[t] = true
    local parts = members(t, depth, seen)
    seen[t] = nil
    local line = "{ " .. table.concat(parts, ", ") .. " }"
    local room = (terminal.columns() or 100) - 4 * depth
    if text.width(line) <= room and not line:find "\n" then
        return line
    end
    local inner = "\n" .. ("    "):rep(depth + 1)
    local lines, row = {}, ""
    for i, part in ipairs(parts) do -- short items share lines
        local piece = part .. (i < #parts and "," or "")
        if row ~= "" and (text.width(row) + text.width(piece) + 1 > room - 8 or piece:find "[\n=]") then
            lines[#lines + 1] = row
            row = piece
        else
            row = row == "" and piece or row .. " " .. piece
        end
    end
    lines[#lines + 1] = row
    return "{" .. inner .. table.concat(lines, inner) .. "\n" .. ("    "):rep(depth) .. "}"
end

function inspect(value, depth, seen)
    local kind = type(value)
    if kind == "string" then
        if is_binary(value) then
            return "<" .. hex(value) .. ">"
        elseif #value > 200 then
            value = value:sub(1, 200) .. "…"
        end
        return '"' .. value:gsub('[\\"]', "\\%0"):gsub("\n", "\\n"):gsub("\t", "\\t") .. '"'
    elseif kind == "number" then
        return number(value, depth > 0)
    elseif kind == "table" then
        local meta = debug.getmetatable(value)
        if type(meta) == "table" and rawget(meta, "__tostring") then
            return depth == 0 and tostring(value) or (tostring(value):match "[^\n]*")
        end
        return inspect_table(value, depth, seen)
    end
    return kind == "userdata" and value == core.null and "null" or tostring(value)
end

-- ---- values -------------------------------------------------------------------------------------------------------------

local function function_text(f)
    local doc = require("qmoon.doc").of(f)
    if doc then
        return ("function %s: %s"):format(doc.signature, doc.summary)
    end
    local i = debug.getinfo(f, "S")
    return ("function, %s:%d; ??name shows it"):format(i.short_src, i.linedefined)
end

local function tensor_text(t, columns)
    local line = wrap(tostring(t), columns)
    local bars = terminal.utf8() and core.terminal(1) and t:sparkline()
    if not bars then
        return line
    end
    local last = line:match "[^\n]*$"
    return text.width(last) + text.width(bars) + 2 <= columns and line .. "  " .. bars or line .. "\n  " .. bars
end

local function is_tensor(value)
    local meta = type(value) == "userdata" and debug.getmetatable(value)
    return meta and meta.__name == "qmoon.tensor"
end

--- The text of a value as it goes to the screen.
---@param value any
---@return string
function show.text(value)
    local columns = terminal.columns() or math.huge
    local out
    local render = show.mode ~= "plain" and type(value) == "table" and type(value[show.mode]) == "function"
    if type(value) == "string" then
        out = is_binary(value) and hex(value) or value
    elseif render then
        out = value[show.mode](value):gsub("\n$", "")
        return terminal.text(out)
    elseif result.is(value) then
        out = value:text { width = terminal.columns() }
    elseif type(value) == "function" then
        out = wrap(function_text(value), columns)
    elseif is_tensor(value) then
        out = tensor_text(value, columns)
    else
        out = inspect(value, 0, {})
        if not out:find "\n" then
            out = wrap(out, columns)
        end
    end
    return terminal.text(bounded(out))
end

return show
