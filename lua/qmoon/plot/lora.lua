-- A LoRA update, merged and quantised: how much of it survives, depending on what it was merged into.

local check = require "qmoon.check"
local core = require "qmoon.core"
local formats = require "qmoon.formats"
local picture = require "qmoon.picture"
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

--- A row of cells per list, all on one colour scale.
local function strips(title, names, lists, most)
    local values = {}
    for i, list in ipairs(lists) do
        values[i] = strip(list, most)
    end
    return { kind = "heat", title = ("%s (full colour: %.2g)"):format(title, most), diverging = true,
        low = -1,
             high = 1, label_width = 120, cell_height = 20, rows = names, values = values }
end

local function bar(name, share, bad)
    return { labels = name, values = { math.max(0, share) }, texts = { ("%.1f %%"):format(100 * share) },
        bad = bad }
end

local function live(made, ratio)
    local shape = { made.rows, made.cols }
    return { name = "lora", weight = core.tensor(shape, made.w), delta = core.tensor(shape, made.unit),
             sliders = { { "bits", 2, 6, 4 }, { "block", 4, 12, 6, power = true },
                         { "ratio", 1, 300, math.floor(1000 * ratio + 0.5) } } }
end

--- A weight, its LoRA update, their sum, and what is left of the update in 4 bits.
---
---     qm.plot.lora{ratio = 0.02, "nf4"}
---
---@param options? {[integer]: qmoon.FormatSpec, ratio: number?, seed: integer?} a format, nf4 unless given; ratio is
--- |dW| / |W|, 0.02 unless given
---@return qmoon.Picture
local function lora(options)
    options = check.options("lora", options, { "ratio", "seed" }, true)
    local ratio = check.number("lora", options.ratio or 0.02, "ratio")
    local format, seed = options[1] or "nf4", check.whole("lora", options.seed or 1, "seed", 0)
    local made = survival.make { seed = seed, rows = 64, cols = 256 }
    local r, name, sum = survival.measure(made, ratio, format), formats.label(format), {}
    for i = 1, STRIP do
        sum[i] = r.w[i] + r.delta[i]
    end
    local weights = strips("weights, 64 of them", { "W", "W + dW" }, { r.w, sum }, largest(r.w))
    weights.legend = false
    return picture.new {
        title = ("A LoRA update of %.3g %% of the weight, merged and quantised to %s"):format(100 * ratio,
            name),
        alt = "Five strips of cells: the weight, the sum, the update, and the change that is left after "
            .. "quantising, with the 16-bit base and with the 4-bit one.",
        note = ("Merged into the original weights, %.0f %% of the update is in the 4-bit result (with "
            .. "rounding noise %.1f times its size); merged into weights that had been through %s, %.1f %% "
            .. "is: steps smaller than half the distance of two levels round back to where they were."):format(100 * r.original, r.noise, name,
            100 * r.dequantised),
        recipe = { { "data", ("normal [%d x %d], rank %d"):format(made.rows, made.cols, made.rank) },
                   { "seed", seed }, { "format", name }, { "|dW|/|W|", ("%.3g %%"):format(100 * ratio) } },
        panels = {
            weights,
            strips("changes", { "dW", "left, 16-bit", "left, 4-bit" },
                { r.delta, r.kept_original, r.kept_dequantised }, largest(r.delta)),
            { kind = "bars", title = "survival of the update", series = { "" }, high = 1,
              rows = { bar("original base", r.original), bar(name .. " base", r.dequantised, true) } },
        },
        live = format == "nf4" and live(made, ratio) or nil,
    }
end

return lora
