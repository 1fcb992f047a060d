-- Bit boxes: a number as the floats of machine learning hold it.

local check = require "qmoon.check"
local minifloat = require "qmoon.minifloat"
local picture = require "qmoon.picture"

local function shown(v)
    return v == math.huge and "infinity" or ("%.7g"):format(v)
end

local function row_of(l, value)
    local limits = minifloat.limits(l)
    local most = limits.max < 1e6 and ("%d"):format(limits.max) or ("%.2g"):format(limits.max)
    return {
        label = l.name, fields = { 1, l.exponent, l.mantissa }, bits = minifloat.bits(value, l),
        note = ("= %s"):format(shown(minifloat.round(value, l))),
        more = ("%.2g to %s, step %.2g"):format(limits.least, most, limits.epsilon),
        special = l.special,
    }
end

--- A number in the sign, exponent and mantissa of 32-, 16-, 8- and 4-bit floats.
---
---     qm.plot.bits{value = 70000, "f32", "f16", "bf16"}
---
---@param options? {[integer]: string, value: number?} names of floats, all unless given; pi unless a value is given
---@return qmoon.Picture
local function bits(options)
    options = check.options("bits", options, { "value" }, true)
    local value = check.number("bits", options.value or math.pi, "value")
    local list, rows, names, layouts = {}, {}, {}, {}
    for i, name in ipairs(options) do
        list[i] = minifloat.layout(name)
    end
    for i, l in ipairs(list[1] and list or minifloat.layouts) do
        rows[i], names[i] = row_of(l, value), l.name
        layouts[i] = { l.name, l.exponent, l.mantissa, l.special }
    end
    return picture.new {
        title = ("%.9g, bit by bit"):format(value),
        alt = ("The bits of %.9g as sign, exponent and mantissa, in %s."):format(value,
            table.concat(names, ", ")),
        note = "Behind each: the smallest number above 0, the largest, and the step from 1 to the next. S "
            .. "is the sign, E the exponent, which gives the range, M the mantissa, which gives the "
            .. "precision. bf16 has f32's exponent and less precision than f16; f16 has more precision and "
            .. "ends at 65504.",
        recipe = { { "value", ("%.9g"):format(value) }, { "formats", table.concat(names, " ") } },
        panels = { { kind = "boxes", rows = rows } },
        live = { name = "bits", sliders = {}, layouts = layouts },
    }
end

return bits
