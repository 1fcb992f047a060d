--- Mistral 7B and the dense models after it, as transformers names their tensors.
-- Sources: transformers' MistralConfig (defaults), llama.cpp's tensor and metadata names. GGUF calls them llama;
-- the sliding window is not in GGUF files.

local decoder = require "qmoon.decoder"
local llama = require "qmoon.llama"
local rope = require "qmoon.rope"

return {
    name = "llama",
    model_type = "mistral",
    architectures = { "MistralForCausalLM" },

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
        rms_norm_eps = 1e-6,
        use_cache = true,
        tie_word_embeddings = false,
        rope_theta = 10000,
        sliding_window = 4096,
    },

    complete = function(fields)
        fields.head_dim = fields.head_dim or math.floor(fields.hidden_size / fields.num_attention_heads)
        fields.rope_dim = fields.head_dim
    end,

    modules = {
        decoder.ends(),
        decoder.attention(nil, nil, true),
        decoder.ffn_norm,
        decoder.mlp(),
    },

    metadata = llama.metadata,
    rope_scaling = { linear = "keys", yarn = "keys", llama3 = "tensor" },

    constants = function(fields)
        local factors = rope.llama3(fields)
        return factors and { { name = "rope_freqs.weight", values = factors } } or {}
    end,

    tokenizer = { "spm", "hf", "bpe" },
    tokenizer_rows = llama.tokenizer_rows,
}
