--- The values that pictures and demos are drawn of: made from a name and a seed, so that a recipe can say
--- what they are.

local core = require "qmoon.core"
local nearest = require "qmoon.nearest"
local tensor = require "qmoon.tensor"
local text = require "qmoon.text"

local sample = {}

local ROWS, COLUMNS = 256, 256
local OUTLIER, EVERY = 20, 4096 -- deviations, and how many values have one

--- Normal values, one in 4096 of them replaced by twenty deviations.
local function with_outliers(shape, seed)
    local values = core.random("normal", shape, seed, 0, 1):values()
    for i = EVERY / 2 + 1, #values, EVERY do
        values[i] = OUTLIER
    end
    return core.tensor(shape, values)
end

local KINDS = {
    normal = { "normal", function(shape, seed)
        return core.random("normal", shape, seed, 0, 1)
    end },
    student = { "Student's t, 5 degrees of freedom", function(shape, seed)
        return core.random("student", shape, seed, 5, 1)
    end },
    uniform = { "uniform from -1 to 1", function(shape, seed)
        return core.random("uniform", shape, seed, -1, 1)
    end },
    outlier = { "normal, one in 4096 is 20 sigma", with_outliers },
}

sample.kinds = { "normal", "student", "outlier", "uniform" }

--- The tensor of options.t, or one of options.data ("normal" unless given), options.seed, options.rows.
---@param options {t: qmoon.Tensor?, data: string?, seed: integer?, rows: integer?}
---@return qmoon.Tensor
---@return table[] recipe
function sample.of(options)
    local t = options.t
    if t then
        local i = t:info()
        return t, { { "data", ("%s%s %s"):format(i.name and i.name .. " " or "", i.format,
            text.shape(i.shape)) } }
    end
    local name = options.data or "normal"
    local kind = KINDS[name]
    if not kind then
        local guess = nearest(name, sample.kinds)
        core.fail("fail", "there are no '%s' values%s; there are %s", name,
            guess and (" (did you mean '%s'?)"):format(guess) or "", table.concat(sample.kinds, " "))
    end
    local seed, shape = options.seed or 1, { options.rows or ROWS, COLUMNS }
    return kind[2](shape, seed), { { "data", ("%s, %d values"):format(kind[1], shape[1] * shape[2]) },
        { "seed", seed } }
end

--- Recipe entries, one list after another.
function sample.join(recipe, more)
    local list = { unpack(recipe) }
    for _, pair in ipairs(more) do
        list[#list + 1] = pair
    end
    return list
end

--- A tensor with every block divided by its largest magnitude, as a list; blocks of zeros stay.
---@param t qmoon.Tensor
---@param block integer
---@return number[] shares
---@return number[] scales one a block
function sample.shares(t, block)
    local x, scales = t:values(), {}
    for first = 1, #x, block do
        local last, most = math.min(#x, first + block - 1), 0
        for i = first, last do
            most = math.max(most, math.abs(x[i]))
        end
        scales[#scales + 1] = most
        for i = first, most > 0 and last or 0 do
            x[i] = x[i] / most
        end
    end
    return x, scales
end

return sample
