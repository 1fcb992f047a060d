--- Qwen3 with experts (Qwen3-30B-A3B, Qwen3-235B-A22B).
-- Sources: transformers' Qwen3MoeConfig (defaults), llama.cpp's tensor and metadata names.

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
        { "model.layers.N.mlp.gate", "blk.N.ffn_gate_inp", "router" },
        { "model.layers.N.mlp.experts.E.down_proj", "blk.N.ffn_down_exps", "linear" },
        { "model.layers.N.mlp.experts.E.gate_proj", "blk.N.ffn_gate_exps", "linear" },
        { "model.layers.N.mlp.experts.E.up_proj", "blk.N.ffn_up_exps", "linear" },
        { "model.layers.N.mlp.experts.gate_up_proj", { "blk.N.ffn_gate_exps", "blk.N.ffn_up_exps" }, "experts",
          also = true, plain = true },
        { "model.layers.N.mlp.experts.down_proj", { "blk.N.ffn_down_exps" }, "experts", also = true,
          plain = true },
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
        { "expert_used_count", "u32", "num_experts_per_tok" },
        { "attention.key_length", "u32", "head_dim" },
        { "attention.value_length", "u32", "head_dim" },
        { "general.file_type", "u32", "file_type" },
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
