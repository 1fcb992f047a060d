-- Nine numbers through INT8, with every step.

local affine = require "qmoon.affine"

local function cells(form, list)
    local words = {}
    for i, v in ipairs(list) do
        words[i] = form:format(v)
    end
    return words
end

local function row(name, words)
    return { name, unpack(words) }
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
    return {
        kind = "cells", title = title,
        rows = { row("weight", cells("%.2f", values)), row("scaled", cells("%.2f", way.scaled)),
            row("code", cells("%d", way.codes)),
                 row("back", cells("%.3f", way.back)), row("error", cells("%+.3f", rounded(way.errors))) },
    }
end

return {
    doc = "nine numbers through INT8 with every step: affine, signed, symmetric",
    --- qm.plot.nine{} or with numbers of your own: qm.plot.nine{0.5, -1, 2, bits = 4, claimed = {…}}
    make = function(options)
        options = options or {}
        local values = options[1] and { unpack(options) } or affine.nine
        local bits = options.bits or 8
        local a, s, g = affine.affine(values, bits), affine.symmetric(values, bits),
            affine.signed(values, bits)
        local panels = {
            panel_of(("affine: code = round((w %s %.4g) / %.6f), 0 to %d"):format(a.low < 0 and "+" or "-",
                math.abs(a.low), a.step, a.top), values, a),
            panel_of(("signed: the same, less %d"):format(2 ^ (bits - 1)), values, g),
            panel_of(("symmetric: code = round(w / %.6f), %d to %d"):format(s.step, -s.top, s.top), values,
                s),
        }
        local claimed = options.claimed
        if claimed then
            local marks, back = { [2] = {} }, {}
            for i, code in ipairs(claimed) do
                marks[2][i + 1] = code ~= a.codes[i] and "bad" or "good"
                back[i] = a.low + code * a.step
            end
            panels[#panels + 1] = { kind = "cells", title = "what a tutorial printed for the affine codes",
                marks = marks,
                rows = { row("weight", cells("%.2f", values)), row("printed", cells("%d", claimed)),
                    row("right", cells("%d", a.codes)),
                         row("back", cells("%.3f", back)) } }
        end
        return {
            title = ("%d numbers as INT%d"):format(#values, bits),
            alt = "Tables of weights, their place on the scale, the code, what comes back and the error, "
                .. "for three ways to quantise.",
            note = ("The largest error is %.4f, within half of the step %.4f. Affine codes use the whole "
                .. "range; symmetric ones keep 0 at 0 and "
                .. "need no zero point."):format(a.worst, a.step),
            recipe = { { "data", table.concat(cells("%g", values), " ") }, { "bits", bits } },
            panels = panels,
            live = not claimed and { name = "nine", sliders = { { "bits", 2, 8, bits } }, values = values }
                or nil,
        }
    end,
}
