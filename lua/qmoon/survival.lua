--- How much of a LoRA update is left after quantising: merged into the original weights, and into weights
--- that have been
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

--- Random weights and an update of the same length, to be scaled down: lists.
---@param options {seed: integer?, rows: integer?, cols: integer?, rank: integer?}
---@return {w: number[], unit: number[], rows: integer, cols: integer, rank: integer}
function survival.make(options)
    local rows, cols, rank = options.rows or ROWS, options.cols or COLUMNS, options.rank or RANK
    local seed = options.seed or 1
    local w = core.random("normal", { rows, cols }, seed, 0, STD):values()
    local a = core.random("normal", { rank, cols }, seed + 1, 0, 1):values()
    local b = core.random("normal", { rows, rank }, seed + 2, 0, 1):values()
    local unit = product(a, b, rows, cols, rank)
    local factor = norm(w) / norm(unit)
    for i, v in ipairs(unit) do
        unit[i] = v * factor
    end
    return { w = w, unit = unit, rows = rows, cols = cols, rank = rank }
end

--- What is left of an update of ratio times the weights' length.
---@param made table what survival.make gave
---@param ratio number
---@param format qmoon.FormatSpec
---@return table {original, dequantised: survival; noise: rounding noise over |dW| with the original base; w, delta,
---              unit, kept_original, kept_dequantised: lists}
function survival.measure(made, ratio, format)
    local shape, w, delta = { made.rows, made.cols }, made.w, {}
    for i, v in ipairs(made.unit) do
        delta[i] = v * ratio
    end
    local base = through(w, shape, format)
    -- what the merge changes in the weights as they are used: against W itself, and against the 4-bit base
    local original = combined(through(combined(w, delta, 1), shape, format), w, -1)
    local again = combined(through(combined(base, delta, 1), shape, format), base, -1)
    local survived = share(original, delta)
    return { original = survived, dequantised = share(again, delta), w = w, delta = delta, unit = made.unit,
             noise = norm(combined(original, delta, -survived)) / norm(delta), kept_original = original,
             kept_dequantised = again }
end

return survival
