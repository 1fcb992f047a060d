--- How far a position turns a pair of dimensions: rope scaling as a divisor for each pair, and one factor for all.
--
-- Pair i of d turns by position / (base^(2i/d) * factors[i]).  Whatever a config.json calls its scaling becomes such
-- factors here, so the op needs to know of none.  Source: transformers' modeling_rope_utils.py; GGUF files of Llama 3 and
-- Phi-3 hold the factors themselves.

local core = require "qmoon.core"
local scaling = require "qmoon.rope"

local rope = {}

---@class qmoon.Rope
---@field base number
---@field factors qmoon.Tensor? one for each pair; nil: all are 1
---@field long qmoon.Tensor? instead of those, beyond `original` positions
---@field original integer?
---@field scale number what queries and keys are multiplied with besides

local function tensor(list)
    return list and core.tensor({ #list }, list)
end

local function constant(value, n)
    local list = {}
    for i = 1, n do
        list[i] = value
    end
    return list
end

-- Each kind gives: factors, scale, long factors, the length they are for.
local kinds = {}

function kinds.linear(s, _, dim)
    return constant(s.factor, dim / 2), 1
end

function kinds.llama3(_, fields, dim)
    return scaling.llama3(setmetatable({ rope_dim = dim }, { __index = fields })), 1
end

--- As it was before the original length is used up: which is as far as the runner lets it go.
function kinds.dynamic()
    return nil, 1
end

--- The pair that turns `turns` times within the original length.
local function pair_of(turns, dim, base, original)
    return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))
end

local function mscale(factor, weight)
    return factor > 1 and 0.1 * (weight or 1) * math.log(factor) + 1 or 1
end

--- Fast pairs are kept, slow ones divided by `factor`, those between are blended (YaRN, arXiv 2309.00071).
function kinds.yarn(s, fields, dim)
    local original = s.original_max_position_embeddings
    local factor = s.factor or fields.max_position_embeddings / original
    local low = pair_of(s.beta_fast or 32, dim, fields.rope_theta, original)
    local high = pair_of(s.beta_slow or 1, dim, fields.rope_theta, original)
    if s.truncate ~= false then
        low, high = math.floor(low), math.ceil(high)
    end
    low, high = math.max(low, 0), math.min(high, dim - 1)
    if low == high then
        high = high + 0.001
    end
    local factors = {}
    for i = 0, dim / 2 - 1 do
        local slow = math.min(math.max((i - low) / (high - low), 0), 1)
        factors[i + 1] = 1 / (slow / factor + (1 - slow))
    end
    local scale = s.attention_factor
    if not scale and s.mscale and s.mscale_all_dim then
        scale = mscale(factor, s.mscale) / mscale(factor, s.mscale_all_dim)
    end
    return factors, scale or mscale(factor)
end

function kinds.longrope(s, fields)
    local original = s.original_max_position_embeddings or fields.original_max_position_embeddings
    local scale = s.attention_factor or scaling.longrope_attention(fields)
    return s.short_factor, scale, s.long_factor, original
end

local function check(list, dim, what)
    if list and #list ~= dim / 2 then
        core.fail("corrupt", "%s: rope scaling has %d factors for %d pairs of dimensions", what, #list, dim / 2)
    end
end

--- The factors that a GGUF file holds as tensors.
local function stored(top, fields, r)
    if top.rope_freqs then
        r.factors = top.rope_freqs.weight
    elseif top.rope_factors_short then
        r.factors, r.long = top.rope_factors_short.weight, top.rope_factors_long.weight
        r.original, r.scale = fields.original_max_position_embeddings, fields.rope_attention_factor or 1
    end
end

--- The rope of a model, or (Gemma 3) of its layers with a sliding window, which turn at a pace of their own.
---@param fields table
---@param dim integer dimensions of a head that turn
---@param top table<string, qmoon.Module>
---@param what string names the model in messages
---@return qmoon.Rope
function rope.of(fields, dim, top, what)
    local r, s = { base = fields.rope_theta or 10000, scale = 1 }, fields.rope_scaling
    if s then
        local kind = kinds[s.rope_type]
        if not kind then
            core.fail("unsupported", "%s: rope scaling '%s' is none that this program computes", what, tostring(s.rope_type))
        end
        local factors, scale, long, original = kind(s, fields, dim)
        check(factors, dim, what)
        check(long, dim, what)
        r.factors, r.scale, r.long, r.original = tensor(factors), scale, tensor(long), original
    end
    stored(top, fields, r)
    return r
end

return rope
