--- Rope scaling as GGUF says it: in metadata keys, or as a tensor of factors, one for each pair of dimensions.
--
-- Sources: llama.cpp's converter; transformers' modeling_rope_utils.py.

local ffi = require "ffi"

local rope = {}

-- Rows of an architecture's `metadata`, for "linear" and "yarn".
rope.keys = {
    { "rope.scaling.type", "string", "rope_scaling.rope_type" },
    { "rope.scaling.factor", "f32", "rope_scaling.factor" },
    { "rope.scaling.original_context_length", "u32", "rope_scaling.original_max_position_embeddings", only = "yarn" },
    { "rope.scaling.yarn_ext_factor", "f32", "rope_scaling.extrapolation_factor", only = "yarn" },
    { "rope.scaling.yarn_attn_factor", "f32", "rope_scaling.attention_factor", only = "yarn" },
    { "rope.scaling.yarn_beta_fast", "f32", "rope_scaling.beta_fast", only = "yarn" },
    { "rope.scaling.yarn_beta_slow", "f32", "rope_scaling.beta_slow", only = "yarn" },
}

local cell = ffi.new "float[1]"

--- The nearest 32-bit float.
local function f32(x)
    cell[0] = x
    return tonumber(cell[0])
end

--- Factors of Llama 3's scaling: low frequencies are divided by `factor`, high ones are kept, and those between
--- are blended. Every step is one torch operation on 32-bit floats, in the converter's order; a scalar divided
--- by a tensor is torch's reciprocal times the scalar.
---@param fields table
---@return number[]? factors of head_dim / 2 pairs; nil when the model has another scaling
function rope.llama3(fields)
    local s = fields.rope_scaling
    if not s or s.rope_type ~= "llama3" then
        return nil
    end
    local factor, low, high = s.factor or 8, s.low_freq_factor or 1, s.high_freq_factor or 4
    local context = s.original_max_position_embeddings or fields.original_max_position_embeddings or 8192
    local factors = {}
    for i = 0, fields.rope_dim - 1, 2 do
        local frequency = f32(1 / f32(f32(fields.rope_theta) ^ f32(i / fields.rope_dim)))
        local wave = f32(f32(1 / frequency) * f32(2 * math.pi))
        if wave < f32(context / high) then
            factors[#factors + 1] = 1
        elseif wave > f32(context / low) then
            factors[#factors + 1] = factor
        else
            local turns = f32(f32(1 / wave) * f32(context))
            local smooth = f32(f32(turns - f32(low)) / f32(high - low))
            factors[#factors + 1] = f32(1 / f32(f32(f32(1 - smooth) / f32(factor)) + smooth))
        end
    end
    return factors
end

--- The scaling that gave these factors, when it is one like those of published models (Llama 3.1 to 3.3: low 1,
--- high 4, a context that is a power of two); else nil.
---@param t table the tensor: {file, at, size}
---@param theta number
---@return table? rope_scaling
function rope.llama3_of(t, theta)
    local n = t.size / 4
    local stored = ffi.new("float[?]", n)
    ffi.copy(stored, t.file:read(t.at, t.size), t.size)
    for bits = 8, 17 do
        local scaling = { rope_type = "llama3", factor = tonumber(stored[n - 1]), low_freq_factor = 1,
                          high_freq_factor = 4, original_max_position_embeddings = 2 ^ bits }
        local factors, equal = rope.llama3 { rope_scaling = scaling, rope_dim = 2 * n, rope_theta = theta }, true
        for i = 1, n do
            equal = equal and f32(factors[i]) == tonumber(stored[i - 1])
        end
        if equal then
            return scaling
        end
    end
end

--- What the lengths of attention vectors are multiplied with under "longrope".
---@param fields table
---@return number? factor nil when the model has another scaling
function rope.longrope_attention(fields)
    local s = fields.rope_scaling
    if not s or s.rope_type ~= "longrope" then
        return nil
    end
    local original = s.original_max_position_embeddings or fields.original_max_position_embeddings
    local ratio = fields.max_position_embeddings / original
    return ratio > 1 and math.sqrt(1 + math.log(ratio) / math.log(original)) or 1
end

return rope
