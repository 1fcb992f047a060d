--- Qwen2: the dense models of Qwen1.5, Qwen2 and Qwen2.5, and what is distilled into their shape.
-- Sources: transformers' Qwen2Config (defaults), llama.cpp's tensor and metadata names.

local decoder = require "qmoon.decoder"
local rope = require "qmoon.rope"

return {
    name = "qwen2",
    model_type = "qwen2",
    architectures = { "Qwen2ForCausalLM" },

    defaults = {
        vocab_size = 151936,
        hidden_size = 4096,
        intermediate_size = 22016,
        num_hidden_layers = 32,
        num_attention_heads = 32,
        num_key_value_heads = 32,
        hidden_act = "silu",
        max_position_embeddings = 32768,
        initializer_range = 0.02,
        rms_norm_eps = 1e-6,
        use_cache = true,
        tie_word_embeddings = false,
        rope_theta = 10000,
        use_sliding_window = false,
    },

    modules = {
        decoder.ends(),
        decoder.attention(true),
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
}
