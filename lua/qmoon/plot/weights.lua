-- Weights against levels: what a block's values look like to the encoder, and where the levels and their
-- borders lie.

local levels = require "qmoon.levels"
local sample = require "qmoon.sample"

local BINS = 128

return {
    doc = "a histogram of weights with a format's levels and decision borders",
    --- qm.plot.weights{t = tensor, "nf4", block = 64}; without t of normal values.
    make = function(options)
        options = options or {}
        local list, label = levels.of(options[1] or "nf4")
        local block, kind = options.block or 64, label == "nf4" and "normal" or label == "int4" and "int"
        local t, recipe = sample.of(options)
        local shares, counts, borders = sample.shares(t, block), {}, {}
        for i = 1, BINS do
            counts[i] = 0
        end
        for _, v in ipairs(shares) do
            local bin = math.min(BINS, math.floor((v + 1) / 2 * BINS) + 1)
            counts[bin] = counts[bin] + 1
        end
        for i = 2, #list do
            borders[i - 1] = (list[i - 1] + list[i]) / 2
        end
        return {
            title = ("Weights, as shares of their block's largest, and the levels of %s"):format(label),
            alt = ("A histogram of %d values from -1 to 1 over the %d levels of %s."):format(#shares, #list,
                label),
            note = ("Each block of %d has one value at -1 or 1, which makes the bars at the ends; the "
                .. "rest is bell-shaped. A value "
                .. "goes to the level whose borders it lies between."):format(block),
            recipe = sample.join(recipe, { { "format", label }, { "block", block } }),
            panels = { { kind = "histogram", low = -1, high = 1, counts = counts, levels = list,
                borders = borders } },
            live = kind and { name = "weights", kind = kind, bins = BINS, data = t,
                              sliders = { { "bits", 2, 6, 4 }, { "block", 4, 12,
                                  math.log(block) / math.log(2), power = true } } } or nil,
        }
    end,
}
