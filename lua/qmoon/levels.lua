--- The levels of a format: what its codes stand for, as shares of a block's largest magnitude.

local core = require "qmoon.core"
local codebooks = require "qmoon.codebook"
local formats = require "qmoon.formats"

local levels = {}

-- Small floats that are no format by themselves, for comparison: every value they have.
local FLOATS = {
    e2m1 = { 0, 0.5, 1, 1.5, 2, 3, 4, 6 },            -- OCP: 2 bits of exponent, 1 of mantissa
    e3m0 = { 0, 0.25, 0.5, 1, 2, 4, 8, 16 },          -- 3 bits of exponent and none of mantissa
}

local function float_book(name)
    local list = {}
    for _, v in ipairs(FLOATS[name]) do
        list[#list + 1] = v
        list[#list + 1] = v > 0 and -v or nil
    end
    table.sort(list)
    return codebooks.codebook { levels = list }
end

--- A format as pictures take it: a name of qm.formats(), e2m1, e3m0, or a value.
---@param spec qmoon.FormatSpec
---@return qmoon.FormatSpec spec
---@return string label
function levels.format(spec)
    if type(spec) == "string" then
        local name, rest = spec:match "^([^:]*)(.*)$"
        if FLOATS[name] then
            return float_book(name), name .. rest
        end
        return spec, spec
    end
    return spec, formats.label(spec)
end

local STEPS, GROUP, COLUMNS = 2048, 16, 256

-- A fine ramp from -most to most, with a 1 in every 16 values, so that every block's largest magnitude is 1;
-- what comes
-- back are levels.
local function observed(spec, most)
    local values = {}
    for k = 0, STEPS do
        if k % (GROUP - 1) == 0 then
            values[#values + 1] = 1
        end
        values[#values + 1] = most * (2 * k / STEPS - 1)
    end
    while #values % COLUMNS ~= 0 do
        values[#values + 1] = #values % GROUP == 0 and 1 or 0
    end
    local back = core.tensor({ #values / COLUMNS, COLUMNS }, values):quantize(spec):dequantize():values()
    local seen, list = {}, {}
    for _, v in ipairs(back) do
        local key = ("%.6g"):format(v == 0 and 0 or v)
        if not seen[key] then
            seen[key], list[#list + 1] = true, v == 0 and 0 or v
        end
    end
    table.sort(list)
    return list
end

local function is_in(list, v)
    for _, w in ipairs(list) do
        if math.abs(v - w) < 1e-5 then
            return true
        end
    end
    return false
end

--- The levels, in order.  Fails for formats that have none of their own, such as those with scales within
--- scales.
---@param spec qmoon.FormatSpec
---@return number[] levels
---@return string label
function levels.of(spec)
    local format, label = levels.format(spec)
    local list = type(format) == "userdata" and format:levels()
    if list then
        table.sort(list)
        return list, label
    end
    list = observed(format, 1)
    for _, v in ipairs(observed(format, 0.6)) do
        if not is_in(list, v) then
            core.fail("fail", "format '%s' has no fixed levels: they depend on the block", label)
        end
    end
    return list, label
end

return levels
