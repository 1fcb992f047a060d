--- Phi-3, Phi-3.5 and Phi-4, dense: queries, keys and values in one tensor, gate and up in one.
-- Sources: transformers' Phi3Config (defaults), llama.cpp's tensor and metadata names.

local core = require "qmoon.core"
local decoder = require "qmoon.decoder"
local json = require "qmoon.json"
local rope = require "qmoon.rope"

return {
    name = "phi3",
    model_type = "phi3",
    architectures = { "Phi3ForCausalLM" },

    defaults = {
        vocab_size = 32064,
        hidden_size = 3072,
        intermediate_size = 8192,
        num_hidden_layers = 32,
        num_attention_heads = 32,
        hidden_act = "silu",
        max_position_embeddings = 4096,
        original_max_position_embeddings = 4096,
        initializer_range = 0.02,
        rms_norm_eps = 1e-5,
        use_cache = true,
        tie_word_embeddings = false,
        rope_theta = 10000,
        bos_token_id = 1,
        eos_token_id = 32000,
        pad_token_id = 32000,
    },

    complete = function(fields)
        local s = fields.rope_scaling
        if s and (s.rope_type == "su" or s.rope_type == "yarn") then
            s.rope_type = "longrope" -- what it was called at first
        end
        fields.original_max_position_embeddings = s and s.original_max_position_embeddings
            or fields.original_max_position_embeddings
        fields.rope_attention_factor = rope.longrope_attention(fields)
        local rotated = math.floor((fields.partial_rotary_factor or 1) * fields.hidden_size)
        fields.rope_dim = math.floor(rotated / fields.num_attention_heads)
        fields.sliding_window = fields.sliding_window or 0 -- none: how llama.cpp tells Phi-4
    end,

    modules = {
        decoder.ends(),
        { "model.layers.N.self_attn.qkv_proj", "blk.N.attn_qkv", "linear" },
        { "model.layers.N.self_attn.o_proj", "blk.N.attn_output", "linear" },
        decoder.ffn_norm,
        { "model.layers.N.mlp.gate_up_proj", "blk.N.ffn_up", "linear" },
        { "model.layers.N.mlp.down_proj", "blk.N.ffn_down", "linear" },
    },

    metadata = {
        { "rope.scaling.attn_factor", "f32", "rope_attention_factor", first = true },
        { "context_length", "u32", "max_position_embeddings" },
        { "rope.scaling.original_context_length", "u32", "original_max_position_embeddings" },
        { "embedding_length", "u32", "hidden_size" },
        { "feed_forward_length", "u32", "intermediate_size" },
        { "block_count", "u32", "num_hidden_layers" },
        { "attention.head_count", "u32", "num_attention_heads" },
        { "attention.head_count_kv", "u32", "num_key_value_heads" },
        { "attention.layer_norm_rms_epsilon", "f32", "rms_norm_eps" },
        { "rope.dimension_count", "u32", "rope_dim" },
        { "rope.freq_base", "f32", "rope_theta" },
        { "general.file_type", "u32", "file_type" },
        { "attention.sliding_window", "u32", "sliding_window" },
    },

    own_order = true,
    rope_scaling = { longrope = "tensor" },

    constants = function(fields)
        local s = fields.rope_scaling
        if not s or s.rope_type ~= "longrope" then
            return {}
        elseif not s.short_factor or not s.long_factor or #s.long_factor ~= #s.short_factor or #s.long_factor ~= fields.rope_dim / 2 then
            core.fail("corrupt", "config.json: rope_scaling needs long_factor and short_factor of %d numbers each",
                fields.rope_dim / 2)
        end
        return { { name = "rope_factors_long.weight", values = s.long_factor },
                 { name = "rope_factors_short.weight", values = s.short_factor } }
    end,

    tokenizer = { "phi3", "bpe" },
    tokenizer_class = "LlamaTokenizer",

    from_gguf = function(fields)
        local whole = fields.hidden_size / fields.num_attention_heads
        if fields.rope_dim and fields.rope_dim ~= whole then
            fields.partial_rotary_factor = json.float(fields.rope_dim / whole)
        end
        if fields.sliding_window == 0 then
            fields.sliding_window = nil
        end
    end,
}
