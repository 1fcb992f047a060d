--- Gemma 2: four norms a layer, soft caps on logits, every other layer with a sliding window.
-- Sources: transformers' Gemma2Config (defaults), llama.cpp's tensor and metadata names.

local decoder = require "qmoon.decoder"
local gemma = require "qmoon.gemma"

return {
    name = "gemma2",
    model_type = "gemma2",
    architectures = { "Gemma2ForCausalLM" },

    defaults = {
        vocab_size = 256000,
        hidden_size = 2304,
        intermediate_size = 9216,
        num_hidden_layers = 26,
        num_attention_heads = 8,
        num_key_value_heads = 4,
        head_dim = 256,
        hidden_activation = "gelu_pytorch_tanh",
        max_position_embeddings = 8192,
        initializer_range = 0.02,
        rms_norm_eps = 1e-6,
        use_cache = true,
        tie_word_embeddings = true,
        rope_theta = 10000,
        attention_bias = false,
        query_pre_attn_scalar = 256,
        sliding_window = 4096,
        final_logit_softcapping = 30,
        attn_logit_softcapping = 50,
        pad_token_id = 0,
        eos_token_id = 1,
        bos_token_id = 2,
    },

    modules = {
        decoder.ends(gemma.norm, gemma.no_head),
        decoder.attention(),
        gemma.four_norms,
        decoder.mlp(),
    },

    metadata = {
        gemma.shape(true),
        { "attn_logit_softcapping", "f32", "attn_logit_softcapping" },
        { "final_logit_softcapping", "f32", "final_logit_softcapping" },
        { "attention.sliding_window", "u32", "sliding_window" },
    },

    own_order = true,
    rope_scaling = {},
    tokenizer = { "spm" },

    tokenizer_rows = gemma.tokenizer_rows,
    unsaid = "query_pre_attn_scalar",

    from_gguf = function(fields)
        fields.query_pre_attn_scalar = gemma.query_scalar(fields, 46)
    end,
}
