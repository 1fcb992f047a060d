--- Qwen2 with experts (Qwen1.5-MoE, Qwen2-57B-A14B): routed ones, and one that every token passes.
-- Sources: transformers' Qwen2MoeConfig (defaults), llama.cpp's tensor and metadata names.

local decoder = require "qmoon.decoder"
local rope = require "qmoon.rope"

return {
    name = "qwen2moe",
    model_type = "qwen2_moe",
    architectures = { "Qwen2MoeForCausalLM" },
    moe = true,

    defaults = {
        vocab_size = 151936,
        hidden_size = 2048,
        intermediate_size = 5632,
        num_hidden_layers = 24,
        num_attention_heads = 16,
        num_key_value_heads = 16,
        hidden_act = "silu",
        max_position_embeddings = 32768,
        initializer_range = 0.02,
        rms_norm_eps = 1e-6,
        use_cache = true,
        tie_word_embeddings = false,
        rope_theta = 10000,
        use_sliding_window = false,
        decoder_sparse_step = 1,
        moe_intermediate_size = 1408,
        shared_expert_intermediate_size = 5632,
        num_experts_per_tok = 4,
        num_experts = 60,
        norm_topk_prob = false,
    },

    complete = function(fields)
        fields.num_local_experts = fields.num_local_experts or fields.num_experts
    end,

    modules = {
        decoder.ends(),
        decoder.attention("optional"),
        decoder.ffn_norm,
        decoder.experts,
        decoder.stacked_experts,
        { "model.layers.N.mlp.shared_expert_gate", "blk.N.ffn_gate_inp_shexp", "router" },
        { "model.layers.N.mlp.shared_expert.gate_proj", "blk.N.ffn_gate_shexp", "linear" },
        { "model.layers.N.mlp.shared_expert.up_proj", "blk.N.ffn_up_shexp", "linear" },
        { "model.layers.N.mlp.shared_expert.down_proj", "blk.N.ffn_down_shexp", "linear" },
    },

    metadata = {
        decoder.shape,
        { "expert_used_count", "u32", "num_experts_per_tok" },
        decoder.head_lengths,
        { "expert_count", "u32", "num_local_experts" },
        { "expert_feed_forward_length", "u32", "moe_intermediate_size" },
        { "expert_shared_feed_forward_length", "u32", "shared_expert_intermediate_size" },
        rope.keys,
    },

    rope_scaling = { linear = "keys", yarn = "keys" },
    tokenizer = { "bpe" },
    unsaid = "norm_topk_prob",

    from_gguf = function(fields)
        fields.num_experts = fields.num_local_experts
        fields.norm_topk_prob = false
    end,
}
