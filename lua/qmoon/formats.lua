--- Formats as they are asked for: by name, by name with options ("nf4:128:dq"), or by value, as qm.codebook
--- and qm.format make them.
--
-- A value is known by its name, too, if it was given one: until another takes the name.

local core = require "qmoon.core"
local nearest = require "qmoon.nearest"

local formats = {}

---@alias qmoon.FormatSpec string|qmoon.Codebook|qmoon.FunctionFormat

local made = {} -- name -> value
local order = {} -- names of those, oldest first
local fixed -- name -> true, of the formats that are always there

local function is_fixed(name)
    if not fixed then
        fixed = {}
        for _, f in ipairs(core.formats()) do
            fixed[f.name] = true
        end
    end
    return fixed[name]
end

--- Makes a value known by its name; an older one of that name is forgotten (tensors made with it keep it).
---@param name string
---@param format qmoon.Codebook|qmoon.FunctionFormat
function formats.register(name, format)
    if not made[name] then
        order[#order + 1] = name
    end
    made[name] = format
end

--- Descriptions of all formats: the fixed ones by name, then those made at run time.
---@return table[]
function formats.list()
    local list = core.formats()
    for _, name in ipairs(order) do
        list[#list + 1] = made[name]:info()
    end
    return list
end

local function fail_unknown(name)
    local names = {}
    for _, f in ipairs(formats.list()) do
        names[#names + 1] = f.name
    end
    local guess = nearest(name, names)
    core.fail("unsupported", "unknown format '%s'%s; qm.formats() lists those there are", name,
        guess and (" (did you mean '%s'?)"):format(guess) or "")
end

-- "nf4", "nf4:dq", "int4:128", "fp8_e4m3:row", "nf4:128:dq" -> name, options
local function parse(spec)
    local name, rest = spec:match "^([^:]*):?(.*)$"
    local options = {}
    for word in rest:gmatch "[^:]+" do
        if word == "dq" then
            options.double_quant = true
        elseif word == "row" then
            options.block = "row"
        elseif word:find "^%d+$" then
            options.block = tonumber(word)
        else
            core.fail("usage", "format '%s': '%s' is neither a block size nor row nor dq", spec, word)
        end
    end
    return name, options
end

--- The options in a format's name.
---@param spec string
---@return {block: integer|"row"|nil, double_quant: boolean?}
function formats.options(spec)
    local _, options = parse(spec)
    return options
end

--- What a format asked for is: a name that core knows or a value, and the options in its name, under those
--- given.
---@param spec qmoon.FormatSpec
---@param options? table
---@return string|qmoon.Codebook|qmoon.FunctionFormat, table
function formats.resolve(spec, options)
    local merged = {}
    if type(spec) == "string" then
        local name
        name, merged = parse(spec)
        spec = is_fixed(name) and name or made[name] or fail_unknown(name)
    end
    local kind = type(spec)
    if kind ~= "string" and kind ~= "userdata" and not (kind == "table" and spec.quantize) then
        core.fail("fail", "a format is its name, or what qm.codebook or qm.format gave, not a %s", kind)
    end
    for k, v in pairs(options or {}) do
        merged[k] = v
    end
    return spec, merged
end

--- How tables head a row: the name as it was asked for.
---@param spec qmoon.FormatSpec
---@return string
function formats.label(spec)
    return type(spec) == "string" and spec or spec:info().name
end

return formats
