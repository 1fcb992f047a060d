--- A list of numbers as integers, by the formulas of the textbooks, with every step kept.

local affine = {}

--- The nine numbers that a well-known tutorial works through.
affine.nine = { 0.34, 3.75, 5.64, 1.12, 2.7, -0.9, -4.7, 0.68, 1.43 }

--- The codes that it printed for them.
affine.printed = { 123, 209, 217, 76, 119, 93, 0, 81, 99 }

local function half_even(x)
    local low = math.floor(x)
    local rest = x - low
    return (rest > 0.5 or rest == 0.5 and low % 2 == 1) and low + 1 or low
end

affine.round = half_even

---@param values number[]
---@param way {step: number, zero: number, low: number, high: number}  back = (code - zero) * step; codes low to high
local function run(values, way)
    way.scaled, way.codes, way.back, way.errors, way.worst = {}, {}, {}, {}, 0
    local squares = 0
    for i, w in ipairs(values) do
        way.scaled[i] = way.step > 0 and w / way.step + way.zero or 0
        way.codes[i] = math.max(way.least, math.min(way.top, half_even(way.scaled[i])))
        way.back[i] = (way.codes[i] - way.zero) * way.step
        way.errors[i] = way.back[i] - w
        way.worst = math.max(way.worst, math.abs(way.errors[i]))
        squares = squares + way.errors[i] ^ 2
    end
    way.rmse = math.sqrt(squares / #values)
    return way
end

local function extent(values)
    local low, high = math.huge, -math.huge
    for _, w in ipairs(values) do
        low, high = math.min(low, w), math.max(high, w)
    end
    return low, high
end

--- Least value to 0, largest to 2^bits - 1: step = (max - min) / (2^bits - 1), code = round((w - min) /
--- step).
---@param values number[]
---@param bits integer
---@return {step: number, low: number, scaled: number[], codes: integer[], back: number[], errors: number[], worst: number, rmse: number}
function affine.affine(values, bits)
    local low, high = extent(values)
    local top = 2 ^ bits - 1
    local step = (high - low) / top
    return run(values, { step = step, zero = -low / step, least = 0, top = top, low = low })
end

--- The same codes less 2^(bits-1): -128 to 127 for eight bits.
function affine.signed(values, bits)
    local w = affine.affine(values, bits)
    local half = 2 ^ (bits - 1)
    return run(values, { step = w.step, zero = w.zero - half, least = -half, top = half - 1, low = w.low })
end

--- 0 stays 0: step = max |w| / (2^(bits-1) - 1), code = round(w / step).
function affine.symmetric(values, bits)
    local low, high = extent(values)
    local top = 2 ^ (bits - 1) - 1
    return run(values, { step = math.max(-low, high) / top, zero = 0, least = -top, top = top })
end

--- Affine with a whole zero point, as PyTorch keeps it: zero = round(-min / step), code = round(w / step) +
--- zero.
function affine.zero_point(values, bits)
    local low, high = extent(values)
    local top = 2 ^ bits - 1
    local step = (high - low) / top
    return run(values, { step = step, zero = half_even(-low / step), least = 0, top = top })
end

return affine
