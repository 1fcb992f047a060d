--- Shapes of published models, as their config.json files have them; and tiny ones for tests.
--
-- sizes[model type of the table in lua/qmoon/arch][name]: fields of config.json; `pre` is the pre-tokenizer of a
-- byte-level BPE, none means a SentencePiece vocabulary.

local function dense(hidden, ffn, layers, heads, kv, more)
    local fields = { hidden_size = hidden, intermediate_size = ffn, num_hidden_layers = layers,
                     num_attention_heads = heads, num_key_value_heads = kv }
    for key, value in pairs(more) do
        fields[key] = value
    end
    return fields
end

local function tiny(more)
    return dense(64, 160, 2, 4, 2, more)
end

--- Llama 3.1 to 3.3.
local function llama3(factor)
    return { rope_type = "llama3", factor = factor, low_freq_factor = 1, high_freq_factor = 4,
             original_max_position_embeddings = 8192 }
end

local function qwen(vocab, tied, more)
    local fields = { pre = "qwen2", vocab_size = vocab, tie_word_embeddings = tied, rope_theta = 1e6,
                     max_position_embeddings = 32768 }
    for key, value in pairs(more or {}) do
        fields[key] = value
    end
    return fields
end

local LLAMA2 = { vocab_size = 32000, max_position_embeddings = 4096, rms_norm_eps = 1e-5 }
local MISTRAL = { vocab_size = 32000, max_position_embeddings = 32768, rms_norm_eps = 1e-5 }

local function llama3_fields(factor, tied, vocab)
    return { pre = "llama-bpe", vocab_size = vocab or 128256, tie_word_embeddings = tied, rope_theta = 5e5,
             rms_norm_eps = 1e-5, max_position_embeddings = 131072, rope_scaling = llama3(factor) }
end

local function experts(n, used, ffn, more)
    local fields = qwen(151936, false, more)
    fields.num_experts, fields.num_experts_per_tok, fields.moe_intermediate_size = n, used, ffn
    return fields
end

return {
    qwen2 = {
        ["tiny"] = tiny(qwen(1024, true)),
        ["0.3b"] = dense(1536, 8960, 6, 12, 2, qwen(4096, false)), -- six layers of 1.5b, for benchmarks
        ["0.5b"] = dense(896, 4864, 24, 14, 2, qwen(151936, true)),
        ["1.5b"] = dense(1536, 8960, 28, 12, 2, qwen(151936, true)),
        ["3b"] = dense(2048, 11008, 36, 16, 2, qwen(151936, true)),
        ["7b"] = dense(3584, 18944, 28, 28, 4, qwen(152064, false)),
        ["14b"] = dense(5120, 13824, 48, 40, 8, qwen(152064, false)),
    },
    qwen3 = {
        ["tiny"] = tiny(qwen(1024, true, { head_dim = 32 })),
        ["0.6b"] = dense(1024, 3072, 28, 16, 8, qwen(151936, true)),
        ["1.7b"] = dense(2048, 6144, 28, 16, 8, qwen(151936, true)),
        ["4b"] = dense(2560, 9728, 36, 32, 8, qwen(151936, true)),
        ["8b"] = dense(4096, 12288, 36, 32, 8, qwen(151936, false)),
    },
    llama = {
        ["tiny"] = tiny(llama3_fields(8, false, 1024)),
        ["2-7b"] = dense(4096, 11008, 32, 32, 32, LLAMA2),
        ["2-70b"] = dense(8192, 28672, 80, 64, 8, LLAMA2),
        ["3-8b"] = dense(4096, 14336, 32, 32, 8, llama3_fields(8, false)),
        ["3.2-1b"] = dense(2048, 8192, 16, 32, 8, llama3_fields(32, true)),
        ["3.2-3b"] = dense(3072, 8192, 28, 24, 8, llama3_fields(32, true)),
    },
    mistral = {
        ["tiny"] = tiny { vocab_size = 600 },
        ["7b"] = dense(4096, 14336, 32, 32, 8, MISTRAL),
    },
    mixtral = {
        ["tiny"] = tiny { vocab_size = 600, num_local_experts = 4 },
        ["8x7b"] = dense(4096, 14336, 32, 32, 8, MISTRAL),
    },
    gemma = {
        ["tiny"] = tiny { vocab_size = 600, head_dim = 32 },
        ["2b"] = dense(2048, 16384, 18, 8, 1, { vocab_size = 256000 }),
        ["7b"] = dense(3072, 24576, 28, 16, 16, { vocab_size = 256000 }),
    },
    gemma2 = {
        ["tiny"] = tiny { vocab_size = 600, head_dim = 32 },
        ["2b"] = dense(2304, 9216, 26, 8, 4, { vocab_size = 256000 }),
        ["9b"] = dense(3584, 14336, 42, 16, 8, { vocab_size = 256000 }),
    },
    gemma3 = {
        ["tiny"] = tiny { vocab_size = 600, head_dim = 32 },
        ["1b"] = dense(1152, 6912, 26, 4, 1, { vocab_size = 262144, sliding_window = 512 }),
        ["4b"] = dense(2560, 10240, 34, 8, 4, { vocab_size = 262208, sliding_window = 1024,
            rope_scaling = { rope_type = "linear", factor = 8 } }),
    },
    phi3 = {
        ["tiny"] = tiny { vocab_size = 600, pad_token_id = 0, eos_token_id = 2 },
        ["mini"] = dense(3072, 8192, 32, 32, 32, { vocab_size = 32064, sliding_window = 2047 }),
    },
    qwen2moe = {
        ["tiny"] = tiny(qwen(1024, false, { num_experts = 4, num_experts_per_tok = 2, moe_intermediate_size = 32,
            shared_expert_intermediate_size = 64 })),
        ["a2.7b"] = dense(2048, 5632, 24, 16, 16, experts(60, 4, 1408, { shared_expert_intermediate_size = 5632 })),
    },
    qwen3moe = {
        ["tiny"] = tiny(qwen(1024, false, { num_experts = 4, num_experts_per_tok = 2, moe_intermediate_size = 32,
            head_dim = 32 })),
        ["30b-a3b"] = dense(2048, 6144, 48, 32, 4, experts(128, 8, 768, { head_dim = 128 })),
    },
}
