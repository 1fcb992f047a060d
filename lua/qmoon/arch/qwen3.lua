--- Qwen3, dense: Qwen2 without biases, with a norm on queries and keys.
-- Sources: transformers' Qwen3Config (defaults), llama.cpp's tensor and metadata names.

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
        { "model.embed_tokens", "token_embd", "embedding" },
        { "lm_head", "output", "output", tied = true },
        { "model.norm", "output_norm", "norm" },
        { "model.layers.N.input_layernorm", "blk.N.attn_norm", "norm" },
        { "model.layers.N.self_attn.q_proj", "blk.N.attn_q", "linear", bias = "optional" },
        { "model.layers.N.self_attn.k_proj", "blk.N.attn_k", "linear", bias = "optional" },
        { "model.layers.N.self_attn.v_proj", "blk.N.attn_v", "linear", bias = "optional" },
        { "model.layers.N.self_attn.o_proj", "blk.N.attn_output", "linear", bias = "optional" },
        { "model.layers.N.self_attn.q_norm", "blk.N.attn_q_norm", "norm" },
        { "model.layers.N.self_attn.k_norm", "blk.N.attn_k_norm", "norm" },
        { "model.layers.N.post_attention_layernorm", "blk.N.ffn_norm", "norm" },
        { "model.layers.N.mlp.gate_proj", "blk.N.ffn_gate", "linear" },
        { "model.layers.N.mlp.up_proj", "blk.N.ffn_up", "linear" },
        { "model.layers.N.mlp.down_proj", "blk.N.ffn_down", "linear" },
    },

    metadata = {
        { "block_count", "u32", "num_hidden_layers" },
        { "context_length", "u32", "max_position_embeddings" },
        { "embedding_length", "u32", "hidden_size" },
        { "feed_forward_length", "u32", "intermediate_size" },
        { "attention.head_count", "u32", "num_attention_heads" },
        { "attention.head_count_kv", "u32", "num_key_value_heads" },
        { "rope.freq_base", "f32", "rope_theta" },
        { "attention.layer_norm_rms_epsilon", "f32", "rms_norm_eps" },
        { "attention.key_length", "u32", "head_dim" },
        { "attention.value_length", "u32", "head_dim" },
        { "general.file_type", "u32", "file_type" },
        { "pooling_type", "u32", "pooling_type" },
        rope.keys,
    },

    rope_scaling = { linear = "keys", yarn = "keys" },
    tokenizer = { "spm", "bpe" },

    from_gguf = function(fields, has)
        fields.attention_bias = has "blk.0.attn_q.bias"
    end,
}
