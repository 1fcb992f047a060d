--- Gemma 3, the text model: alone, or inside the one that sees.
-- Sources: transformers' Gemma3TextConfig (defaults), llama.cpp's tensor and metadata names.

local core = require "qmoon.core"
local decoder = require "qmoon.decoder"
local gemma = require "qmoon.gemma"
local rope = require "qmoon.rope"

return {
    name = "gemma3",
    model_type = "gemma3_text",
    architectures = { "Gemma3ForCausalLM", "Gemma3ForConditionalGeneration" },

    defaults = {
        vocab_size = 262208,
        hidden_size = 2304,
        intermediate_size = 9216,
        num_hidden_layers = 26,
        num_attention_heads = 8,
        num_key_value_heads = 4,
        head_dim = 256,
        hidden_activation = "gelu_pytorch_tanh",
        max_position_embeddings = 131072,
        initializer_range = 0.02,
        rms_norm_eps = 1e-6,
        use_cache = true,
        tie_word_embeddings = true,
        rope_theta = 1e6,
        rope_local_base_freq = 10000,
        attention_bias = false,
        query_pre_attn_scalar = 256,
        sliding_window = 4096,
        pad_token_id = 0,
        eos_token_id = 1,
        bos_token_id = 2,
    },

    complete = function(fields)
        if fields.sliding_window_pattern == 1 then
            fields.sliding_window = nil
        end
    end,

    strip = { "language_model." },
    left_out = { { "vision_tower%.", "the image encoder" }, { "multi_modal_projector%.", "the image encoder" } },

    modules = {
        { "model.embed_tokens", "token_embd", "embedding", trim = true },
        { "lm_head", "output", "output", optional = true },
        { "model.norm", "output_norm", "norm", add = 1 },
        { "model.layers.N.input_layernorm", "blk.N.attn_norm", "norm", add = 1 },
        decoder.attention(),
        decoder.head_norms(gemma.norm),
        gemma.four_norms,
        decoder.mlp(),
    },

    metadata = {
        gemma.shape(false),
        { "rope.freq_base", "f32", "rope_theta" },
        { "rope.freq_base_swa", "f32", "rope_local_base_freq", profile = "local_rope" },
        { "final_logit_softcapping", "f32", "final_logit_softcapping" },
        { "attention.sliding_window", "u32", "sliding_window" },
        { "attention.head_count_kv", "u32", "num_key_value_heads" },
        rope.keys,
    },

    rope_scaling = { linear = "keys" },

    constants = function(fields)
        if fields.attn_logit_softcapping then
            core.fail("unsupported", "config.json: a GGUF file of gemma3 cannot say attn_logit_softcapping")
        end
        return {}
    end,

    tokenizer = { "spm" },

    tokenizer_rows = gemma.tokenizer_rows,
    unsaid = "query_pre_attn_scalar",

    from_gguf = function(fields)
        fields.query_pre_attn_scalar = gemma.query_scalar(fields, 62)
    end,
}
