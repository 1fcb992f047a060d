--- Mixtral: Mistral with experts. transformers 4 has a tensor for each expert, transformers 5 may have stacks.
-- Sources: transformers' MixtralConfig (defaults), llama.cpp's tensor and metadata names.

local llama = require "qmoon.llama"

return {
    name = "llama",
    model_type = "mixtral",
    architectures = { "MixtralForCausalLM" },
    moe = true,

    defaults = {
        vocab_size = 32000,
        hidden_size = 4096,
        intermediate_size = 14336,
        num_hidden_layers = 32,
        num_attention_heads = 32,
        num_key_value_heads = 8,
        hidden_act = "silu",
        max_position_embeddings = 131072,
        initializer_range = 0.02,
        rms_norm_eps = 1e-5,
        use_cache = true,
        tie_word_embeddings = false,
        rope_theta = 1e6,
        num_experts_per_tok = 2,
        num_local_experts = 8,
    },

    complete = function(fields)
        fields.rope_dim = fields.head_dim or math.floor(fields.hidden_size / fields.num_attention_heads)
    end,

    modules = {
        { "model.embed_tokens", "token_embd", "embedding" },
        { "lm_head", "output", "output", tied = true },
        { "model.norm", "output_norm", "norm" },
        { "model.layers.N.input_layernorm", "blk.N.attn_norm", "norm" },
        { "model.layers.N.self_attn.q_proj", "blk.N.attn_q", "linear", heads = "num_attention_heads" },
        { "model.layers.N.self_attn.k_proj", "blk.N.attn_k", "linear", heads = "num_key_value_heads" },
        { "model.layers.N.self_attn.v_proj", "blk.N.attn_v", "linear" },
        { "model.layers.N.self_attn.o_proj", "blk.N.attn_output", "linear" },
        { "model.layers.N.post_attention_layernorm", "blk.N.ffn_norm", "norm" },
        { "model.layers.N.block_sparse_moe.gate", "blk.N.ffn_gate_inp", "router" },
        { "model.layers.N.block_sparse_moe.experts.E.w1", "blk.N.ffn_gate_exps", "linear" },
        { "model.layers.N.block_sparse_moe.experts.E.w2", "blk.N.ffn_down_exps", "linear" },
        { "model.layers.N.block_sparse_moe.experts.E.w3", "blk.N.ffn_up_exps", "linear" },
        { "model.layers.N.mlp.gate", "blk.N.ffn_gate_inp", "router", also = true },
        { "model.layers.N.mlp.experts.gate_up_proj", { "blk.N.ffn_gate_exps", "blk.N.ffn_up_exps" }, "experts",
          also = true, plain = true },
        { "model.layers.N.mlp.experts.down_proj", { "blk.N.ffn_down_exps" }, "experts", also = true,
          plain = true },
    },

    metadata = llama.metadata,
    rope_scaling = { linear = "keys", yarn = "keys" },
    tokenizer = { "spm", "hf", "bpe" },
    tokenizer_rows = llama.tokenizer_rows,
    tokenizer_class = "LlamaTokenizer",
}
