--- Floating-point numbers taken apart: any sign-exponent-mantissa layout, by arithmetic rather than by bit
--- tricks.
--
--   bits        s eeee mmm     exponent field E, mantissa field M, bias = 2^(e-1) - 1
--   E = 0       (-1)^s * 2^(1-bias) * M/2^m           subnormal
--   otherwise   (-1)^s * 2^(E-bias) * (1 + M/2^m)
--
-- IEEE layouts keep the largest E for infinity and NaN; f8_e4m3 keeps one pattern for NaN, e2m1 none at all.
--  Beyond
-- the largest number lies infinity, except for the 8- and 4-bit ones, which stop there (as OCP's saturating
-- conversion).

local core = require "qmoon.core"

local minifloat = {}

---@class qmoon.Layout
---@field name string
---@field exponent integer   bits
---@field mantissa integer   bits
---@field special "ieee"|"nan"|"none"
---@field infinite boolean?  too large a number becomes infinity

minifloat.layouts = {
    { name = "f32", exponent = 8, mantissa = 23, special = "ieee", infinite = true },
    { name = "f16", exponent = 5, mantissa = 10, special = "ieee", infinite = true },
    { name = "bf16", exponent = 8, mantissa = 7, special = "ieee", infinite = true },
    { name = "f8_e4m3", exponent = 4, mantissa = 3, special = "nan" },
    { name = "f8_e5m2", exponent = 5, mantissa = 2, special = "ieee" },
    { name = "e2m1", exponent = 2, mantissa = 1, special = "none" },
}

local by_name = {}
for _, l in ipairs(minifloat.layouts) do
    by_name[l.name] = l
end

---@param name string
---@return qmoon.Layout
function minifloat.layout(name)
    return by_name[name] or core.fail("fail", "no float is called '%s'; there are f32 f16 bf16 f8_e4m3 "
        .. "f8_e5m2 e2m1", tostring(name))
end

local function bias(l)
    return 2 ^ (l.exponent - 1) - 1
end

--- Largest, smallest normal and smallest number above 0, and the step above 1.
---@param l qmoon.Layout
---@return {max: number, normal: number, least: number, epsilon: number}
function minifloat.limits(l)
    local top = 2 ^ l.exponent - 1 - (l.special == "ieee" and 1 or 0)
    local fraction = 2 - 2 ^ -l.mantissa - (l.special == "nan" and 2 ^ -l.mantissa or 0)
    return { max = 2 ^ (top - bias(l)) * fraction, normal = 2 ^ (1 - bias(l)),
        least = 2 ^ (1 - bias(l) - l.mantissa),
             epsilon = 2 ^ -l.mantissa }
end

local function half_even(x)
    local low = math.floor(x)
    local rest = x - low
    return (rest > 0.5 or rest == 0.5 and low % 2 == 1) and low + 1 or low
end

--- The nearest number of a layout, ties to even; beyond the largest: infinity where there is one, else the
--- largest.
---@param x number finite
---@param l qmoon.Layout
---@return number
function minifloat.round(x, l)
    local m, lim = math.abs(x), minifloat.limits(l)
    if m == 0 then
        return 0
    end
    local _, e = math.frexp(m)
    local step = 2 ^ (math.max(e - 1, 1 - bias(l)) - l.mantissa)
    local r = half_even(m / step) * step
    if r > lim.max then
        r = l.infinite and math.huge or lim.max
    end
    return x < 0 and -r or r
end

--- The bits of a number, "0" and "1", sign first; the number is rounded first.
---@param x number
---@param l qmoon.Layout
---@return string
function minifloat.bits(x, l)
    local r = minifloat.round(x, l)
    local m, exponent, mantissa = math.abs(r), 0, 0
    if m == math.huge then
        exponent = 2 ^ l.exponent - 1
    elseif m > 0 then
        local _, e = math.frexp(m)
        exponent = math.max(0, e - 1 + bias(l))
        local unit = 2 ^ (math.max(e - 1, 1 - bias(l)) - l.mantissa)
        mantissa = m / unit - (exponent > 0 and 2 ^ l.mantissa or 0)
    end
    local digits, code = {}, exponent * 2 ^ l.mantissa + mantissa
    for i = l.exponent + l.mantissa, 1, -1 do
        digits[i] = code % 2
        code = math.floor(code / 2)
    end
    return (x < 0 and "1" or "0") .. table.concat(digits)
end

--- The number that bits stand for; math.huge and NaN where they stand for those.
---@param bits string
---@param l qmoon.Layout
---@return number
function minifloat.value(bits, l)
    local exponent, mantissa = tonumber(bits:sub(2, 1 + l.exponent), 2), tonumber(bits:sub(2 + l.exponent), 2)
    local value
    if l.special == "ieee" and exponent == 2 ^ l.exponent - 1 then
        value = mantissa == 0 and math.huge or 0 / 0
    elseif l.special == "nan" and exponent == 2 ^ l.exponent - 1 and mantissa == 2 ^ l.mantissa - 1 then
        value = 0 / 0
    elseif exponent == 0 then
        value = 2 ^ (1 - bias(l) - l.mantissa) * mantissa
    else
        value = 2 ^ (exponent - bias(l)) * (1 + mantissa / 2 ^ l.mantissa)
    end
    return bits:sub(1, 1) == "1" and -value or value
end

return minifloat
