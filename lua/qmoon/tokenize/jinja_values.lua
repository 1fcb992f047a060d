--- What chat templates compute with: their values, and the methods, tests, filters and functions that they may name.
--
-- Values are strings, numbers, booleans, core.null for none, nil for what is undefined, and tables: lists, and objects
-- by name. `self` is what is being rendered; of it only `what` is used here, which names the file in messages.

local core = require "qmoon.core"
local json = require "qmoon.json"

local values = {}

local function fail(self, form, ...)
    core.fail("unsupported", "%s: the chat template %s", self.what, form:format(...))
end

-- ---- values --------------------------------------------------------------------------------------------

local CALLABLE = {} -- marks functions of a template: {CALLABLE, call}

local function is_list(v)
    return type(v) == "table" and v[1] ~= CALLABLE and (#v > 0 or next(v) == nil)
end

local function truth(v)
    if type(v) == "table" then
        return next(v) ~= nil
    end
    return v ~= nil and v ~= core.null and v ~= false and v ~= "" and v ~= 0
end

local function text_of(self, v)
    if v == nil then
        return ""
    elseif v == core.null then
        return "None"
    elseif type(v) == "boolean" then
        return v and "True" or "False"
    elseif type(v) == "number" then
        return v == math.floor(v) and ("%d"):format(v) or json.float_text(v)
    elseif type(v) ~= "string" then
        fail(self, "writes out a value that is no text")
    end
    return v
end

local function equal(a, b)
    if type(a) == "table" and type(b) == "table" then
        for k, v in pairs(a) do
            if not equal(v, b[k]) then
                return false
            end
        end
        for k in pairs(b) do
            if a[k] == nil then
                return false
            end
        end
        return true
    end
    return a == b
end

-- Python's dictionaries keep their order and Lua's tables do not: messages are written with these first.
local PLACE = { role = 1, type = 2, content = 3, text = 4 }

local function keys_of(object)
    local keys = {}
    for k in pairs(object) do
        keys[#keys + 1] = k
    end
    table.sort(keys, function(a, b)
        local x, y = PLACE[a] or 9, PLACE[b] or 9
        return x < y or x == y and tostring(a) < tostring(b)
    end)
    return keys
end

local CHARACTER = "[%z\1-\127\194-\244][\128-\191]*"

--- A text's characters, or a list itself: what can be sliced, looped over and counted.
local function elements(self, v)
    if type(v) == "string" then
        local list = {}
        for c in v:gmatch(CHARACTER) do
            list[#list + 1] = c
        end
        return list
    elseif v == nil then
        return {}
    elseif is_list(v) then
        return v
    elseif type(v) == "table" then
        return keys_of(v)
    end
    fail(self, "takes a %s for a list", type(v))
end

local function is_in(self, item, v)
    if type(v) == "string" then
        return type(item) == "string" and v:find(item, 1, true) ~= nil
    elseif type(v) == "table" and not is_list(v) then
        return v[item] ~= nil
    end
    for _, other in ipairs(elements(self, v)) do
        if equal(item, other) then
            return true
        end
    end
    return false
end

-- ---- texts -----------------------------------------------------------------------------------------------

local BLANKS = " \t\n\r\v\f"

--- `set`: the characters to take away; ASCII blanks by default, as templates have no others.
local function strip(text, set, left, right)
    set = (set or BLANKS):gsub("[%]%%^-]", "%%%0")
    if left then
        text = text:gsub("^[" .. set .. "]+", "")
    end
    if right then
        local last = #text
        while last > 0 and text:find("^[" .. set .. "]", last) do
            last = last - 1
        end
        text = text:sub(1, last)
    end
    return text
end

local function split(text, separator, most)
    local parts, at = {}, 1
    if separator == nil or separator == core.null then
        for word in text:gmatch "%S+" do
            parts[#parts + 1] = word
        end
        return parts
    end
    while not most or most < 0 or #parts < most do
        local from, to = text:find(separator, at, true)
        if not from then
            break
        end
        parts[#parts + 1] = text:sub(at, from - 1)
        at = to + 1
    end
    parts[#parts + 1] = text:sub(at)
    return parts
end

local function replace(text, old, new)
    return table.concat(split(text, old), new)
end

local function capitalize(text)
    return text:sub(1, 1):upper() .. text:sub(2):lower()
end

local function join(self, list, separator)
    local parts = {}
    for i, v in ipairs(elements(self, list)) do
        parts[i] = text_of(self, v)
    end
    return table.concat(parts, separator or "")
end

local function starts(text, start)
    for _, one in ipairs(type(start) == "table" and start or { start }) do
        if text:sub(1, #one) == one then
            return true
        end
    end
    return false
end

local function ends(text, ending)
    for _, one in ipairs(type(ending) == "table" and ending or { ending }) do
        if one == "" or text:sub(-#one) == one then
            return true
        end
    end
    return false
end

local text_methods = {
    strip = function(_, s, set) return strip(s, set, true, true) end,
    lstrip = function(_, s, set) return strip(s, set, true, false) end,
    rstrip = function(_, s, set) return strip(s, set, false, true) end,
    split = function(_, s, separator, most) return split(s, separator, most) end,
    startswith = function(_, s, start) return starts(s, start) end,
    endswith = function(_, s, ending) return ends(s, ending) end,
    replace = function(_, s, old, new) return replace(s, old, new) end,
    upper = function(_, s) return s:upper() end,
    lower = function(_, s) return s:lower() end,
    capitalize = function(_, s) return capitalize(s) end,
    join = function(self, s, list) return join(self, list, s) end,
    format = function(self, s, ...)
        local arguments, n = { ... }, 0
        return (s:gsub("{}", function()
            n = n + 1
            return text_of(self, arguments[n])
        end))
    end,
    find = function(_, s, part) return (s:find(part, 1, true) or 0) - 1 end,
}

local object_methods = {
    get = function(_, o, key, default)
        if o[key] ~= nil then
            return o[key]
        end
        return default == nil and core.null or default
    end,
    keys = function(self, o) return elements(self, o) end,
    items = function(self, o)
        local list = {}
        for i, k in ipairs(elements(self, o)) do
            list[i] = { k, o[k] }
        end
        return list
    end,
    values = function(self, o)
        local list = {}
        for i, k in ipairs(elements(self, o)) do
            list[i] = o[k]
        end
        return list
    end,
}

-- ---- tests and filters -----------------------------------------------------------------------------------

local tests
tests = {
    defined = function(_, v) return v ~= nil end,
    undefined = function(_, v) return v == nil end,
    none = function(_, v) return v == core.null end,
    string = function(_, v) return type(v) == "string" end,
    number = function(_, v) return type(v) == "number" or type(v) == "boolean" end,
    integer = function(_, v) return type(v) == "number" and v == math.floor(v) end,
    boolean = function(_, v) return type(v) == "boolean" end,
    ["true"] = function(_, v) return v == true end,
    ["false"] = function(_, v) return v == false end,
    mapping = function(_, v) return type(v) == "table" and not (is_list(v) and #v > 0) end,
    sequence = function(_, v) return type(v) == "string" or type(v) == "table" end,
    iterable = function(_, v) return type(v) == "string" or type(v) == "table" end,
    equalto = function(_, v, other) return equal(v, other) end,
    odd = function(_, v) return v % 2 == 1 end,
    even = function(_, v) return v % 2 == 0 end,
    divisibleby = function(_, v, by) return v % by == 0 end,
    ["in"] = function(self, v, other) return is_in(self, v, other) end,
}
tests.eq, tests["=="], tests.callable = tests.equalto, tests.equalto, function(_, v)
    return type(v) == "table" and v[1] == CALLABLE
end

local function find_test(self, name)
    return tests[name] or fail(self, "has the test '%s', which is not known here", name)
end

--- Elements of a list of objects by an attribute and a test of it.
local function selecting(wanted, by_attribute)
    return function(self, list, a, b, c)
        local attribute = by_attribute and a or nil
        local name, argument = by_attribute and b or a, by_attribute and c or b
        local out = {}
        for _, item in ipairs(truth(list) and elements(self, list) or {}) do
            local value = item
            if attribute then
                value = item[attribute]
            end
            local holds
            if name then
                holds = find_test(self, name)(self, value, argument)
            else
                holds = truth(value)
            end
            if holds == wanted then
                out[#out + 1] = item
            end
        end
        return out
    end
end

local filters = {
    trim = function(self, v, set) return strip(text_of(self, v), set, true, true) end,
    length = function(self, v)
        if type(v) == "table" and not is_list(v) or v ~= nil then
            return #elements(self, v)
        end
        return 0
    end,
    upper = function(self, v) return text_of(self, v):upper() end,
    lower = function(self, v) return text_of(self, v):lower() end,
    capitalize = function(self, v) return capitalize(text_of(self, v)) end,
    string = function(self, v) return text_of(self, v) end,
    safe = function(_, v) return v end,
    int = function(_, v) return math.floor(tonumber(v) or 0) end,
    abs = function(_, v) return math.abs(v) end,
    list = function(self, v) return elements(self, v) end,
    items = function(self, v) return object_methods.items(self, v) end,
    dictsort = function(self, v) return object_methods.items(self, v) end, -- by key, as elements() has them
    first = function(self, v) return elements(self, v)[1] end,
    last = function(self, v)
        local list = elements(self, v)
        return list[#list]
    end,
    reverse = function(self, v)
        local list, out = elements(self, v), {}
        for i = #list, 1, -1 do
            out[#out + 1] = list[i]
        end
        return type(v) == "string" and table.concat(out) or out
    end,
    join = join,
    replace = function(self, v, old, new) return replace(text_of(self, v), old, new) end,
    default = function(_, v, other, also_false)
        if v == nil or also_false and not truth(v) then
            return other == nil and "" or other
        end
        return v
    end,
    select = selecting(true, false), reject = selecting(false, false),
    selectattr = selecting(true, true), rejectattr = selecting(false, true),
}
filters.count, filters.d = filters.length, filters.default

--- A value whose objects are in order, for json.encode.
local function ordered(v)
    if type(v) ~= "table" or is_list(v) and #v == 0 then
        return v
    end
    local out = {}
    if is_list(v) then
        for i, item in ipairs(v) do
            out[i] = ordered(item)
        end
        return json.array(out)
    end
    for i, k in ipairs(keys_of(v)) do
        out[i] = { k, ordered(v[k]) }
    end
    return json.object(out)
end

function filters.tojson(self, v, named)
    if v == nil then
        fail(self, "writes JSON of what is not defined")
    end
    return json.encode(ordered(v), { indent = type(named) == "table" and named.indent or nil })
end

function filters.map(self, v, named)
    local attribute, out = type(named) == "table" and named.attribute, {}
    if not attribute then
        fail(self, "has a map() without an attribute")
    end
    for i, item in ipairs(elements(self, v)) do
        out[i] = item[attribute]
    end
    return out
end

-- ---- functions ---------------------------------------------------------------------------------------------

--- A function of a template's: call(self, positional arguments, named ones).
local function callable(call)
    return { CALLABLE, call }
end

local function given_names(_, _, named)
    return named
end

local functions = {
    namespace = callable(given_names),
    dict = callable(given_names),
    raise_exception = callable(function(self, arguments)
        core.fail("fail", "%s: the chat template refuses these messages: %s", self.what, tostring(arguments[1]))
    end),
    range = callable(function(_, arguments)
        local from, to = arguments[2] and arguments[1] or 0, arguments[2] or arguments[1]
        local step, list = arguments[3] or 1, {}
        for i = from, step < 0 and to + 1 or to - 1, step do
            list[#list + 1] = i
        end
        return list
    end),
    strftime_now = callable(function(_, arguments)
        return os.date(arguments[1])
    end),
}

-- ---- what there is -----------------------------------------------------------------------------------------

values.fail, values.truth, values.text_of, values.equal = fail, truth, text_of, equal
values.is_list, values.is_in, values.elements = is_list, is_in, elements
values.callable, values.functions, values.find_test = callable, functions, find_test

--- The function that a value is, or nil.
function values.call_of(v)
    return type(v) == "table" and v[1] == CALLABLE and v[2] or nil
end

function values.find_filter(self, name)
    return filters[name] or fail(self, "has the filter '%s', which is not known here", name)
end

function values.find_method(self, object, name)
    local methods = type(object) == "string" and text_methods or type(object) == "table" and object_methods or {}
    return methods[name] or fail(self, "calls '%s' of a %s, which is not known here", name, type(object))
end

return values
