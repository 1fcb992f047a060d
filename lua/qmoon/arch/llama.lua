--- Llama 1 to 3 and everything built like it: SmolLM, TinyLlama, Yi, DeepSeek's dense distillations.
-- Sources: transformers' LlamaConfig (defaults), llama.cpp's tensor and metadata names.

local decoder = require "qmoon.decoder"
local llama = require "qmoon.llama"
local rope = require "qmoon.rope"

return {
    name = "llama",
    model_type = "llama",
    architectures = { "LlamaForCausalLM", "LLaMAForCausalLM" },

    defaults = {
        vocab_size = 32000,
        hidden_size = 4096,
        intermediate_size = 11008,
        num_hidden_layers = 32,
        num_attention_heads = 32,
        hidden_act = "silu",
        max_position_embeddings = 2048,
        initializer_range = 0.02,
        rms_norm_eps = 1e-6,
        use_cache = true,
        tie_word_embeddings = false,
        rope_theta = 10000,
        attention_bias = false,
        mlp_bias = false,
    },

    complete = function(fields)
        fields.head_dim = fields.head_dim or math.floor(fields.hidden_size / fields.num_attention_heads)
        fields.rope_dim = fields.head_dim
    end,

    modules = {
        decoder.ends(),
        decoder.attention("optional", "optional", true),
        decoder.ffn_norm,
        decoder.mlp("optional"),
    },

    metadata = llama.metadata,
    rope_scaling = { linear = "keys", yarn = "keys", llama3 = "tensor" },

    constants = function(fields)
        local factors = rope.llama3(fields)
        return factors and { { name = "rope_freqs.weight", values = factors } } or {}
    end,

    tokenizer = { "spm", "hf", "bpe" },
    tokenizer_rows = llama.tokenizer_rows,
    tokenizer_class = "LlamaTokenizer",

    from_gguf = function(fields, has)
        fields.attention_bias, fields.mlp_bias = has "blk.0.attn_q.bias", has "blk.0.ffn_up.bias"
    end,
}
