--- Mixtral: Mistral with experts. transformers 4 has a tensor for each expert, transformers 5 may have stacks.
-- Sources: transformers' MixtralConfig (defaults), llama.cpp's tensor and metadata names.

local decoder = require "qmoon.decoder"
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
        decoder.ends(),
        decoder.attention(nil, nil, true),
        decoder.ffn_norm,
        { "model.layers.N.block_sparse_moe.gate", "blk.N.ffn_gate_inp", "router" },
        { "model.layers.N.block_sparse_moe.experts.E.w1", "blk.N.ffn_gate_exps", "linear" },
        { "model.layers.N.block_sparse_moe.experts.E.w2", "blk.N.ffn_down_exps", "linear" },
        { "model.layers.N.block_sparse_moe.experts.E.w3", "blk.N.ffn_up_exps", "linear" },
        { "model.layers.N.mlp.gate", "blk.N.ffn_gate_inp", "router", also = true },
        decoder.stacked_experts,
    },

    metadata = llama.metadata,
    rope_scaling = { linear = "keys", yarn = "keys" },
    tokenizer = { "spm", "hf", "bpe" },
    tokenizer_rows = llama.tokenizer_rows,
    tokenizer_class = "LlamaTokenizer",
}
