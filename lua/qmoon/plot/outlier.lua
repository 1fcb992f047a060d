-- One outlier: what a single large value does to the block it is in, and why blocks are small.

local explore = require "qmoon.explore"
local sample = require "qmoon.sample"

local function rmse(t, format, block)
    return explore.error(t, t:quantize(format, { block = block })).rmse
end

return {
    doc = "the error with and without one outlier, by block size",
    --- qm.plot.outlier{"nf4", seed = 1}
    make = function(options)
        options = options or {}
        local format = options[1] or "nf4"
        local clean, recipe = sample.of { seed = options.seed }
        local dirty = sample.of { seed = options.seed, data = "outlier" }
        local without, with, worst = {}, {}, 0
        for power = 5, 12 do
            local block = 2 ^ power
            without[#without + 1] = { block, rmse(clean, format, block) }
            with[#with + 1] = { block, rmse(dirty, format, block) }
            worst = math.max(worst, with[#with][2])
        end
        local at64, at4096 = with[2][2] / without[2][2], with[8][2] / without[8][2]
        local bars = {}
        for i, p in ipairs(with) do
            local block = ("%d"):format(p[1])
            bars[i] = { labels = { block, block }, values = { without[i][2], p[2] },
                        texts = { ("%.4f"):format(without[i][2]), ("%.4f"):format(p[2]) } }
        end
        return {
            title = ("%s: the error with and without outliers"):format(format),
            alt = "Bars of the error by block size, without outliers nearly even, with them growing with "
                .. "the block.",
            note = ("One value of 20 sigma in 4096 stretches the scale of its whole block. In blocks of "
                .. "64 that costs %.0f %% more error, "
                .. "in blocks of 4096, which all have one, %.1f times the error: the block is how far one "
                    .. "value's harm reaches."):format(
                100 * (at64 - 1), at4096),
            recipe = sample.join(recipe, { { "outliers", "20 sigma, one in 4096" }, { "format", format } }),
            panels = { { kind = "bars", title = "rmse by block size", series = { "without", "with one in "
                .. "4096" }, rows = bars } },
            live = format == "nf4" and { name = "outlier", sliders = { { "bits", 2, 6, 4 },
                { "outlier", 2, 60, 20 } }, data = clean,
                                         every = 4096 } or nil,
        }
    end,
}
