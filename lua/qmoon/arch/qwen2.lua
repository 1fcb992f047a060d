--- Qwen2: the dense models of Qwen1.5, Qwen2 and Qwen2.5, and what is distilled into their shape.
-- Sources: transformers' Qwen2Config (defaults), llama.cpp's tensor and metadata names.

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
        { "model.embed_tokens", "token_embd", "embedding" },
        { "lm_head", "output", "output", tied = true },
        { "model.norm", "output_norm", "norm" },
        { "model.layers.N.input_layernorm", "blk.N.attn_norm", "norm" },
        { "model.layers.N.self_attn.q_proj", "blk.N.attn_q", "linear", bias = true },
        { "model.layers.N.self_attn.k_proj", "blk.N.attn_k", "linear", bias = true },
        { "model.layers.N.self_attn.v_proj", "blk.N.attn_v", "linear", bias = true },
        { "model.layers.N.self_attn.o_proj", "blk.N.attn_output", "linear" },
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
}
