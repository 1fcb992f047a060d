--- Qwen3, dense: Qwen2 without biases, with a norm on queries and keys.
-- Sources: transformers' Qwen3Config (defaults), llama.cpp's tensor and metadata names.

local decoder = require "qmoon.decoder"
local rope = require "qmoon.rope"

return {
    name = "qwen3",
    model_type = "qwen3",
    architectures = { "Qwen3ForCausalLM" },

    defaults = {
        vocab_size = 151936,
        hidden_size = 4096,
        intermediate_size = 22016,
        num_hidden_layers = 32,
        num_attention_heads = 32,
        num_key_value_heads = 32,
        head_dim = 128,
        hidden_act = "silu",
        max_position_embeddings = 32768,
        initializer_range = 0.02,
        rms_norm_eps = 1e-6,
        use_cache = true,
        tie_word_embeddings = false,
        rope_theta = 10000,
        attention_bias = false,
        use_sliding_window = false,
    },

    modules = {
        decoder.ends(),
        decoder.attention("optional", "optional"),
        decoder.head_norms(),
        decoder.ffn_norm,
        decoder.mlp(),
    },

    metadata = {
        decoder.shape,
        decoder.head_lengths,
        { "pooling_type", "u32", "pooling_type" },
        rope.keys,
    },

    rope_scaling = { linear = "keys", yarn = "keys" },
    tokenizer = { "spm", "bpe" },

    from_gguf = function(fields, has)
        fields.attention_bias = has "blk.0.attn_q.bias"
    end,
}
