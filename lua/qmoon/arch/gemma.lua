--- Gemma: norms that count from one, and a head that is always the embedding.
-- Sources: transformers' GemmaConfig (defaults), llama.cpp's tensor and metadata names.

local decoder = require "qmoon.decoder"
local gemma = require "qmoon.gemma"

return {
    name = "gemma",
    model_type = "gemma",
    architectures = { "GemmaForCausalLM" },

    defaults = {
        vocab_size = 256000,
        hidden_size = 3072,
        intermediate_size = 24576,
        num_hidden_layers = 28,
        num_attention_heads = 16,
        num_key_value_heads = 16,
        head_dim = 256,
        hidden_act = "gelu_pytorch_tanh",
        max_position_embeddings = 8192,
        initializer_range = 0.02,
        rms_norm_eps = 1e-6,
        use_cache = true,
        tie_word_embeddings = true,
        rope_theta = 10000,
        attention_bias = false,
        pad_token_id = 0,
        eos_token_id = 1,
        bos_token_id = 2,
    },

    modules = {
        decoder.ends(gemma.norm, gemma.no_head),
        decoder.attention(),
        { "model.layers.N.post_attention_layernorm", "blk.N.ffn_norm", "norm", add = 1 },
        decoder.mlp(),
    },

    metadata = gemma.shape(true),

    own_order = true,
    rope_scaling = {},
    tokenizer = { "spm" },
    tokenizer_class = "GemmaTokenizer",

    tokenizer_rows = function()
        return {}, {
            { key = "tokenizer.ggml.eot_token_id", type = "u32", value = 107 }, -- CodeGemma's <end_of_turn>
            { key = "tokenizer.ggml.add_space_prefix", type = "bool", value = false },
        }
    end,
}
