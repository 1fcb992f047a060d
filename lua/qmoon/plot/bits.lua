-- Bit boxes: a number as the floats of machine learning hold it.

local minifloat = require "qmoon.minifloat"

local function shown(v)
    return v == math.huge and "infinity" or ("%.7g"):format(v)
end

local function row_of(l, value)
    local lim, held = minifloat.limits(l), minifloat.round(value, l)
    return {
        label = l.name, fields = { 1, l.exponent, l.mantissa }, bits = minifloat.bits(value, l),
        note = ("= %s"):format(shown(held)),
        more = ("%.2g to %s, step %.2g"):format(lim.least, lim.max < 1e6 and ("%d"):format(lim.max)
            or ("%.2g"):format(lim.max), lim.epsilon),
        special = l.special,
    }
end

return {
    doc = "a number in the boxes of f32, f16, bf16, 8- and 4-bit floats",
    --- qm.plot.bits{value = 3.14159, "f16", "bf16"}: the formats that are named, all unless any is.
    make = function(options)
        options = options or {}
        local value, rows, names = options.value or math.pi, {}, {}
        local list = {}
        for i, name in ipairs(options) do
            list[i] = minifloat.layout(name)
        end
        for i, l in ipairs(list[1] and list or minifloat.layouts) do
            rows[i], names[i] = row_of(l, value), l.name
        end
        return {
            title = ("%.9g, bit by bit"):format(value),
            alt = ("The bits of %.9g as sign, exponent and mantissa, in %s."):format(value,
                table.concat(names, ", ")),
            note = "Behind each: the smallest number above 0, the largest, and the step from 1 to the "
                .. "next. S is the sign, E the exponent, which gives the range, M the mantissa, which "
                .. "gives the precision. bf16 has f32's "
                .. "exponent and less precision than f16; f16 has more precision and ends at 65504.",
            recipe = { { "value", ("%.9g"):format(value) }, { "formats", table.concat(names, " ") } },
            panels = { { kind = "boxes", rows = rows } },
            live = { name = "bits", sliders = {}, layouts = (function()
                local given = {}
                for i, row in ipairs(rows) do
                    given[i] = { row.label, row.fields[2], row.fields[3], row.special }
                end
                return given
            end)() },
        }
    end,
}
