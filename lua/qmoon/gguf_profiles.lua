--- What differs between versions of llama.cpp's tools, by name: "the same file as the tool of that date".
--
--   fallback      type for rows that are no multiple of the chosen type's block; F16 when none fits
--   wide_v        attn_qkv and attn_kv_b get the bits of attn_v (else attn_qkv has rules of its own)
--   override      --tensor-type: "last": the last pattern that matches, after the mixture, unless that had
--                 to fall back; "first": the first that matches, instead of the mixture. With "last", --pure
--                 never falls back, and a row that fits no block of 32 is an error instead of F16
--   needs_imatrix types that are refused without an importance matrix
--   add_first     add_bos_token in tokenizer_config.json yields to what tokenizer.json does, ByteLevel
--                 processors included (else it wins)
--   sampling      the sampler settings of generation_config.json become metadata
--   local_rope    Gemma 3's second rope frequency is metadata, too (else the program knows it)
--   shared_router the gate of the shared expert stays F32, as routers do
--   order         place of an architecture's metadata keys, for all but those with an order of their own; keys that
--                 are not in it follow. Without it, they come as the architecture has them
--
-- Sources: llama.cpp 10e9780 (18 November 2025), from which the golden files are; llama.cpp 0c1e57098,
-- which llama-cpp-python 0.3.36 carries.

local core = require "qmoon.core"

local function set(names)
    local t = {}
    for name in names:gmatch "%S+" do
        t[name] = true
    end
    return t
end

local function place(names)
    local t = {}
    for i, name in ipairs(names) do
        t[name] = i
    end
    return t
end

local november = {
    name = "llama.cpp-2025-11",
    fallback = {
        TQ1_0 = "Q4_0", TQ2_0 = "Q4_0",
        IQ1_S = "IQ4_NL", IQ1_M = "IQ4_NL", IQ2_XXS = "IQ4_NL", IQ2_XS = "IQ4_NL", IQ2_S = "IQ4_NL",
        IQ3_XXS = "IQ4_NL", IQ3_S = "IQ4_NL", IQ4_XS = "IQ4_NL", Q2_K = "IQ4_NL", Q3_K = "IQ4_NL",
        Q4_K = "Q5_0", Q5_K = "Q5_1", Q6_K = "Q8_0",
    },
    wide_v = false,
    override = "last",
    needs_imatrix = set "IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S",
    add_first = false,
    sampling = false,
    local_rope = false,
    shared_router = false,
}

local later = {
    name = "llama.cpp-0c1e570",
    fallback = setmetatable({ Q2_K = "Q4_0", Q3_K = "Q4_0" }, { __index = november.fallback }),
    wide_v = true,
    override = "first",
    needs_imatrix = set "IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS",
    add_first = true,
    sampling = true,
    local_rope = true,
    shared_router = true,
    order = place {
        "block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
        "attention.head_count_kv", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length",
        "rope.scaling.yarn_ext_factor", "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow", "rope.freq_base", "rope.freq_base_swa", "attention.layer_norm_rms_epsilon",
        "expert_count", "expert_used_count", "attention.key_length", "attention.value_length", "general.file_type",
    },
}

local profiles = { list = { november, later } }

--- The profile of that name; the first when there is none.
---@param name string?
---@return table
function profiles.named(name)
    local names = {}
    for i, p in ipairs(profiles.list) do
        if p.name == (name or november.name) then
            return p
        end
        names[i] = p.name
    end
    return core.fail("usage", "there is no profile '%s'; there are %s", name, table.concat(names, ", "))
end

return profiles
