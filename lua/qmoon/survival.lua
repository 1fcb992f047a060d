--- How much of a LoRA update is left after quantising: merged into the original weights, and into weights that have been
--- through the format already, as when training was on a 4-bit base.
--
-- survival = <change achieved, dW> / <dW, dW>: 1 when the update is there in full, 0 when nothing of it is.

local core = require "qmoon.core"

local survival = {}

local ROWS, COLUMNS, RANK, STD = 512, 1024, 16, 0.02

-- B·A of small random factors, as a list; scaled to a length in the end.
local function product(a, b, rows, cols, rank)
    local list = {}
    for i = 0, rows - 1 do
        for j = 0, cols - 1 do
            local sum = 0
            for k = 0, rank - 1 do
                sum = sum + b[i * rank + k + 1] * a[k * cols + j + 1]
            end
            list[#list + 1] = sum
        end
    end
    return list
end

local function norm(list)
    local sum = 0
    for _, v in ipairs(list) do
        sum = sum + v * v
    end
    return math.sqrt(sum)
end

local function combined(x, y, factor)
    local list = {}
    for i, v in ipairs(x) do
        list[i] = v + factor * y[i]
    end
    return list
end

local function through(list, shape, format)
    return core.tensor(shape, list):quantize(format):dequantize():values()
end

local function share(change, delta)
    local dot, square = 0, 0
    for i, d in ipairs(delta) do
        dot, square = dot + change[i] * d, square + d * d
    end
    return dot / square
end

--- @param options {ratio: number, format: qmoon.FormatSpec, seed: integer, rows: integer?, cols: integer?, rank: integer?}
---@return table {original, dequantised: survival; noise: rounding noise over |dW| with the original base; w, delta, unit,
---              kept_original, kept_dequantised: tensors; rows, cols, rank}
function survival.measure(options)
    local rows, cols, rank = options.rows or ROWS, options.cols or COLUMNS, options.rank or RANK
    local shape, seed = { rows, cols }, options.seed or 1
    local w = core.random("normal", shape, seed, 0, STD):values()
    local a = core.random("normal", { rank, cols }, seed + 1, 0, 1):values()
    local b = core.random("normal", { rows, rank }, seed + 2, 0, 1):values()
    local delta = product(a, b, rows, cols, rank)
    local factor, unit = norm(w) / norm(delta), {} -- unit is as long as W
    for i, v in ipairs(delta) do
        unit[i] = v * factor
        delta[i] = unit[i] * options.ratio
    end
    local base = through(w, shape, options.format)
    -- what the merge changes in the weights as they are used: against W itself, and against the 4-bit base
    local original = combined(through(combined(w, delta, 1), shape, options.format), w, -1)
    local again = combined(through(combined(base, delta, 1), shape, options.format), base, -1)
    local noise = norm(combined(original, delta, -share(original, delta))) / norm(delta)
    return { original = share(original, delta), dequantised = share(again, delta), noise = noise, rows = rows, cols = cols, rank = rank,
             w = core.tensor(shape, w), delta = core.tensor(shape, delta), unit = core.tensor(shape, unit), kept_original = core.tensor(shape, original),
             kept_dequantised = core.tensor(shape, again) }
end

return survival
