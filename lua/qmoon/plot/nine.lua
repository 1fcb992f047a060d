-- Nine numbers through INT8, with every step.

local affine = require "qmoon.affine"
local check = require "qmoon.check"
local picture = require "qmoon.picture"

local function cells(name, form, list)
    local words = { name }
    for i, v in ipairs(list) do
        words[i + 1] = form:format(v)
    end
    return words
end

-- To thousandths, without a zero below zero.
local function rounded(list)
    local near = {}
    for i, v in ipairs(list) do
        near[i] = math.floor(v * 1000 + 0.5) / 1000 + 0
    end
    return near
end

--- One way to quantise as a table: every number's place on the scale, code, what comes back, the error.
local function panel_of(title, values, way)
    return { kind = "cells", title = title, rows = {
        cells("weight", "%.2f", values), cells("scaled", "%.2f", way.scaled), cells("code", "%d", way.codes),
        cells("back", "%.3f", way.back), cells("error", "%+.3f", rounded(way.errors)) } }
end

--- Codes that somebody printed, beside the right ones; a wrong one is marked.
local function panel_of_printed(values, printed, way)
    local marks, back = {}, {}
    for i, code in ipairs(printed) do
        marks[i + 1] = code ~= way.codes[i] and "bad" or "good"
        back[i] = way.low + code * way.step
    end
    return { kind = "cells", title = "what a tutorial printed for the affine codes", marks = { [2] = marks },
        rows = {
        cells("weight", "%.2f", values), cells("printed", "%d", printed), cells("right", "%d", way.codes),
        cells("back", "%.3f", back) } }
end

--- Nine numbers through INT8 with every step, affine, signed and symmetric.
---
---     qm.plot.nine{}
---     qm.plot.nine{0.5, -1, 2, bits = 4}
---
---@param options? {[integer]: number, bits: integer?, claimed: integer[]?} numbers of one's own; codes that somebody
--- printed for them
---@return qmoon.Picture
local function nine(options)
    options = check.options("nine", options, { "bits", "claimed" }, true)
    local values = options[1] and { unpack(options) } or affine.nine
    for _, v in ipairs(values) do
        check.number("nine", v, "each weight")
    end
    local bits = check.whole("nine", options.bits or 8, "bits", 2, 16)
    local a, g, s = affine.affine(values, bits), affine.signed(values, bits), affine.symmetric(values, bits)
    local sign = a.low < 0 and "+" or "-"
    return picture.new {
        title = ("%d numbers as INT%d"):format(#values, bits),
        alt = "Tables of weights, their place on the scale, the code, what comes back and the error, for "
            .. "three ways to quantise.",
        note = ("The largest error is %.4f, within half of the step %.4f. Affine codes use the whole range; "
            .. "symmetric ones keep 0 at 0 and need no zero point."):format(a.worst, a.step),
        recipe = { { "data", table.concat(cells("", "%g", values), " "):sub(2) }, { "bits", bits } },
        panels = {
            panel_of(("affine: code = round((w %s %.4g) / %.6f), 0 to %d"):format(sign, math.abs(a.low),
                a.step, a.top),
                values, a),
            panel_of(("signed: the same, less %d"):format(2 ^ (bits - 1)), values, g),
            panel_of(("symmetric: code = round(w / %.6f), %d to %d"):format(s.step, -s.top, s.top), values,
                s),
            options.claimed and panel_of_printed(values, options.claimed, a) or nil,
        },
        live = not options.claimed and bits <= 8 and { name = "nine", sliders = { { "bits", 2, 8, bits } },
            values = values }
            or nil,
    }
end

return nine
