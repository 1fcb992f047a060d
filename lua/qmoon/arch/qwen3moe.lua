--- Qwen3 with experts (Qwen3-30B-A3B, Qwen3-235B-A22B).
-- Sources: transformers' Qwen3MoeConfig (defaults), llama.cpp's tensor and metadata names.

local decoder = require "qmoon.decoder"
local rope = require "qmoon.rope"

return {
    name = "qwen3moe",
    model_type = "qwen3_moe",
    architectures = { "Qwen3MoeForCausalLM" },
    moe = true,

    defaults = {
        vocab_size = 151936,
        hidden_size = 2048,
        intermediate_size = 6144,
        num_hidden_layers = 24,
        num_attention_heads = 32,
        num_key_value_heads = 4,
        hidden_act = "silu",
        max_position_embeddings = 32768,
        initializer_range = 0.02,
        rms_norm_eps = 1e-6,
        use_cache = true,
        tie_word_embeddings = false,
        rope_theta = 10000,
        attention_bias = false,
        use_sliding_window = false,
        decoder_sparse_step = 1,
        moe_intermediate_size = 768,
        num_experts_per_tok = 8,
        num_experts = 128,
        norm_topk_prob = false,
    },

    complete = function(fields)
        fields.num_local_experts = fields.num_local_experts or fields.num_experts
    end,

    modules = {
        decoder.ends(),
        decoder.attention("optional", "optional"),
        decoder.head_norms(),
        decoder.ffn_norm,
        decoder.experts,
        decoder.stacked_experts,
    },

    metadata = {
        decoder.shape,
        { "expert_used_count", "u32", "num_experts_per_tok" },
        decoder.head_lengths,
        { "expert_count", "u32", "num_local_experts" },
        { "expert_feed_forward_length", "u32", "moe_intermediate_size" },
        rope.keys,
    },

    rope_scaling = { linear = "keys", yarn = "keys" },
    tokenizer = { "bpe" },
    unsaid = "norm_topk_prob",

    from_gguf = function(fields)
        fields.num_experts = fields.num_local_experts
        fields.norm_topk_prob = true
    end,
}
