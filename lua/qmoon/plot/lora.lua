-- A LoRA update, merged and quantised: how much of it survives, depending on what it was merged into.

local survival = require "qmoon.survival"

local STRIP = 64

--- The first values of a row as a strip, as shares of the largest of `scale`.
local function strip(values, most)
    local list = {}
    for i = 1, STRIP do
        list[i] = values[i] / most
    end
    return list
end

local function largest(values)
    local most = 0
    for i = 1, STRIP do
        most = math.max(most, math.abs(values[i]))
    end
    return most
end

return {
    doc = "a weight, its LoRA update, their sum, and what is left of the update in 4 bits",
    --- qm.plot.lora{ratio = 0.02, "nf4", seed = 1}: ratio is |dW| / |W|
    make = function(options)
        options = options or {}
        local ratio, format, seed = options.ratio or 0.02, options[1] or "nf4", options.seed or 1
        local r = survival.measure { ratio = ratio, format = format, seed = seed, rows = 64, cols = 256 }
        local w, d = r.w:values(), r.delta:values()
        local kept, lost, sum = r.kept_original:values(), r.kept_dequantised:values(), {}
        for i = 1, STRIP do
            sum[i] = w[i] + d[i]
        end
        local big, small = largest(w), largest(d)
        return {
            title = ("A LoRA update of %.3g %% of the weight, merged and quantised to %s"):format(100 * ratio, format),
            alt = "Five strips of cells: the weight, the sum, the update, and the change that is left after quantising, with the 16-bit base and with the 4-bit one.",
            note = ("Merged into the original weights, %.0f %% of the update is in the 4-bit result (with rounding noise %.1f times its size); "
                .. "merged into weights that had been through %s, %.1f %% is: steps smaller than half the distance of two levels round back "
                .. "to where they were."):format(100 * r.original, r.noise, format, 100 * r.dequantised),
            recipe = { { "data", ("normal [%d x %d], rank %d"):format(r.rows, r.cols, r.rank) }, { "seed", seed }, { "format", format },
                       { "|dW|/|W|", ("%.3g %%"):format(100 * ratio) } },
            panels = {
                { kind = "heat", title = ("weights, 64 of them (full colour: %.2g)"):format(big), diverging = true, low = -1, high = 1,
                  legend = false, label_width = 120, cell_height = 20, rows = { "W", "W + dW" }, values = { strip(w, big), strip(sum, big) } },
                { kind = "heat", title = ("changes (full colour: %.2g)"):format(small), diverging = true, low = -1, high = 1, label_width = 120,
                  cell_height = 20, rows = { "dW", "left, 16-bit", "left, 4-bit" },
                  values = { strip(d, small), strip(kept, small), strip(lost, small) } },
                { kind = "bars", title = "survival of the update", series = { "" }, high = 1, rows = {
                    { labels = "original base", values = { r.original }, texts = { ("%.1f %%"):format(100 * r.original) } },
                    { labels = format .. " base", values = { math.max(0, r.dequantised) },
                      texts = { ("%.1f %%"):format(100 * r.dequantised) }, bad = true } } },
            },
            figures = r,
            live = format == "nf4" and { name = "lora", weight = r.w, delta = r.unit, sliders = { { "bits", 2, 6, 4 },
                { "block", 4, 12, 6, power = true }, { "ratio", 1, 300, math.floor(1000 * ratio + 0.5) } } } or nil,
        }
    end,
}
