-- One outlier: what a single large value does to the block it is in, and why blocks are small.

local check = require "qmoon.check"
local explore = require "qmoon.explore"
local picture = require "qmoon.picture"
local sample = require "qmoon.sample"

local function rmse(t, format, block)
    return explore.error(t, t:quantize(format, { block = block })).rmse
end

local function row(block, without, with)
    local label = ("%d"):format(block)
    return { labels = { label, label }, values = { without, with },
             texts = { ("%.4f"):format(without), ("%.4f"):format(with) } }
end

--- The error with and without one outlier, by block size.
---
---     qm.plot.outlier{"int4"}
---
---@param options? {[integer]: qmoon.FormatSpec, seed: integer?} a format that takes any block size; nf4 unless given
---@return qmoon.Picture
local function outlier(options)
    options = check.options("outlier", options, { "seed" }, true)
    local format = options[1] or "nf4"
    local clean, recipe = sample.of("outlier", { seed = options.seed })
    local dirty = sample.of("outlier", { seed = options.seed, data = "outlier" })
    local rows = {}
    for power = 5, 12 do
        rows[#rows + 1] = row(2 ^ power, rmse(clean, format, 2 ^ power), rmse(dirty, format, 2 ^ power))
    end
    local at64, at4096 = rows[2].values, rows[8].values
    local name = require("qmoon.formats").label(format)
    return picture.new {
        title = ("%s: the error with and without outliers"):format(name),
        alt = "Bars of the error by block size, without outliers nearly even, with them growing with the "
            .. "block.",
        note = ("One value of 20 sigma in 4096 stretches the scale of its whole block. In blocks of 64 that "
            .. "costs %.0f %% more error, in blocks of 4096, which all have one, %.1f times the error: the "
            .. "block is how far one value's harm reaches."):format(100 * (at64[2] / at64[1] - 1),
                at4096[2] / at4096[1]),
        recipe = sample.join(recipe, { { "outliers", "20 sigma, one in 4096" }, { "format", name } }),
        panels = { { kind = "bars", title = "rmse by block size", series = { "without", "with one in 4096" },
                     rows = rows } },
        live = format == "nf4" and { name = "outlier", data = clean, every = 4096,
                                     sliders = { { "bits", 2, 6, 4 }, { "outlier", 2, 60, 20 } } } or nil,
    }
end

return outlier
