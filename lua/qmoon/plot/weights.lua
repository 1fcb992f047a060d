-- Weights against levels: what a block's values look like to the encoder, and where the levels and their
-- borders lie.

local check = require "qmoon.check"
local levels = require "qmoon.levels"
local picture = require "qmoon.picture"
local sample = require "qmoon.sample"

local BINS = 128

local function histogram(shares)
    local counts = {}
    for i = 1, BINS do
        counts[i] = 0
    end
    for _, v in ipairs(shares) do
        local bin = math.min(BINS, math.floor((v + 1) / 2 * BINS) + 1)
        counts[bin] = counts[bin] + 1
    end
    return counts
end

local function live(label, t, block)
    local kind = label == "nf4" and "normal" or label == "int4" and "int"
    return kind and { name = "weights", kind = kind, bins = BINS, data = t,
                      sliders = { { "bits", 2, 6, 4 }, sample.slider("block", 4, 12, block) } } or nil
end

--- A histogram of weights with a format's levels and decision borders.
---
---     qm.plot.weights{t = t, "nf4", block = 64}
---
---@param options? {[integer]: qmoon.FormatSpec, t: qmoon.Tensor?, block: integer?, data: string?, seed: integer?} the
--- format, nf4 unless given; the tensor, normal values unless given
---@return qmoon.Picture
local function weights(options)
    options = check.options("weights", options, { "t", "block", "data", "seed" }, true)
    local list, label = levels.of(options[1] or "nf4")
    local block = check.whole("weights", options.block or 64, "block", 1)
    local t, recipe = sample.of("weights", options)
    local shares, borders = sample.shares(t, block), {}
    for i = 2, #list do
        borders[i - 1] = (list[i - 1] + list[i]) / 2
    end
    return picture.new {
        title = ("Weights, as shares of their block's largest, and the levels of %s"):format(label),
        alt = ("A histogram of %d values from -1 to 1 over the %d levels of %s."):format(#shares, #list,
            label),
        note = ("Each block of %d has one value at -1 or 1, which makes the bars at the ends. A value goes "
            .. "to the level whose borders it lies between."):format(block),
        recipe = sample.join(recipe, { { "format", label }, { "block", block } }),
        panels = { { kind = "histogram", low = -1, high = 1, counts = histogram(shares), levels = list,
                     borders = borders } },
        live = live(label, t, block),
    }
end

return weights
