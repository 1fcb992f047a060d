--- The values that pictures and demos are drawn of: made from a name and a seed, so that a recipe can say
--- what they are.

local check = require "qmoon.check"
local core = require "qmoon.core"
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
---@param what string who asks, for messages
---@param options {t: qmoon.Tensor?, data: string?, seed: integer?, rows: integer?}
---@return qmoon.Tensor
---@return table[] recipe
function sample.of(what, options)
    if options.t ~= nil then
        local i = check.tensor(what, options.t, "t"):info()
        local name = i.name and i.name .. " " or ""
        return options.t, { { "data", ("%s%s %s"):format(name, i.format, text.shape(i.shape)) } }
    end
    local kind = KINDS[check.choice(what, options.data or "normal", "data", sample.kinds)]
    local seed, shape = check.whole(what, options.seed or 1, "seed", 0), { options.rows or ROWS, COLUMNS }
    return kind[2](shape, seed), { { "data", ("%s, %d values"):format(kind[1], shape[1] * shape[2]) },
        { "seed", seed } }
end

--- A slider of a page over powers of two, as near to a value as there are.
---@return table
function sample.slider(name, low, high, value)
    local at = math.floor(math.log(value) / math.log(2) + 0.5)
    return { name, low, high, math.max(low, math.min(high, at)), power = true }
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
