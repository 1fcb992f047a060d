--- Arguments, checked: a wrong one is an error in one line that names the function and the argument.

local core = require "qmoon.core"
local nearest = require "qmoon.nearest"

local check = {}

local function kind_of(value)
    if value == nil then
        return "nothing"
    end
    local meta = type(value) == "userdata" and debug.getmetatable(value)
    local name = type(meta) == "table" and rawget(meta, "__name")
    return name and "a " .. tostring(name):gsub("^qmoon%.", "") or "a " .. type(value)
end

local function fail(what, name, want, value)
    core.fail("fail", "%s: %s must be %s, not %s", what, name, want, kind_of(value))
end

--- Whether a value is a tensor.
---@param value any
---@return boolean
function check.is_tensor(value)
    local meta = type(value) == "userdata" and debug.getmetatable(value)
    return type(meta) == "table" and rawget(meta, "__name") == "qmoon.tensor"
end

---@param what string the function, for the message
---@param name string the argument
function check.tensor(what, value, name)
    if not check.is_tensor(value) then
        fail(what, name, "a tensor", value)
    end
    return value
end

--- The object of a method: called with '.' instead of ':' it is missing.
function check.self(what, value)
    if not check.is_tensor(value) then
        core.fail("fail", "%s: called on %s; it is a method of tensors: t:%s(…)", what, kind_of(value), what)
    end
    return value
end

function check.table(what, value, name)
    if type(value) ~= "table" then
        fail(what, name, "a table", value)
    end
    return value
end

function check.text(what, value, name)
    if type(value) ~= "string" then
        fail(what, name, "a string", value)
    end
    return value
end

function check.number(what, value, name)
    if type(value) ~= "number" then
        fail(what, name, "a number", value)
    end
    return value
end

--- A whole number from `low` to `high`.
function check.whole(what, value, name, low, high)
    if type(value) ~= "number" or value ~= math.floor(value) or value < low or value > (high or 2 ^ 53) then
        core.fail("fail", "%s: %s must be a whole number from %.0f%s, not %s", what, name, low,
            high and (" to %.0f"):format(high) or " on", type(value) == "number" and tostring(value) or kind_of(value))
    end
    return value
end

--- One of a list of words.
function check.choice(what, value, name, words)
    for _, word in ipairs(words) do
        if value == word then
            return value
        end
    end
    local guess = type(value) == "string" and nearest(value, words)
    core.fail("fail", "%s: %s must be one of %s, not %s%s", what, name, table.concat(words, ", "),
        type(value) == "string" and "'" .. value .. "'" or kind_of(value), guess and (" (did you mean '%s'?)"):format(guess) or "")
end

--- A table of options, or nil; a misspelt one would be a default without a word.
---@param known string[] names of options
---@param list boolean? whether it may have a list part, too
---@return table
function check.options(what, options, known, list)
    if options == nil then
        return {}
    end
    check.table(what, options, "options")
    local is_known = {}
    for _, name in ipairs(known) do
        is_known[name] = true
    end
    for key in pairs(options) do
        if not is_known[key] and not (list and type(key) == "number") then
            local guess = nearest(tostring(key), known)
            core.fail("fail", "%s has no option '%s'%s; there are %s", what, tostring(key),
                guess and (" (did you mean '%s'?)"):format(guess) or "", table.concat(known, ", "))
        end
    end
    return options
end

return check
