--- What the Gemmas have in common: norms that count from one, a head that is the embedding, keys in an order of their own.
-- Source: llama.cpp's converter.

local decoder = require "qmoon.decoder"

local gemma = {}

gemma.norm = { add = 1 }
gemma.no_head = { left_out = "the output head, which is the embedding" }

-- The layer's second half from Gemma 2 on: a norm before and a norm after each of its parts.
gemma.four_norms = {
    { "model.layers.N.post_attention_layernorm", "blk.N.post_attention_norm", "norm", add = 1 },
    { "model.layers.N.pre_feedforward_layernorm", "blk.N.ffn_norm", "norm", add = 1 },
    { "model.layers.N.post_feedforward_layernorm", "blk.N.post_ffw_norm", "norm", add = 1 },
}

--- The metadata that all begin with.
---@param kv_heads boolean whether the number of key heads follows that of heads
---@return table[] rows
function gemma.shape(kv_heads)
    local rows = {
        { "context_length", "u32", "max_position_embeddings" },
        { "embedding_length", "u32", "hidden_size" },
        { "block_count", "u32", "num_hidden_layers" },
        { "feed_forward_length", "u32", "intermediate_size" },
        { "attention.head_count", "u32", "num_attention_heads" },
        { "attention.layer_norm_rms_epsilon", "f32", "rms_norm_eps" },
        unpack(decoder.head_lengths),
    }
    if kv_heads then
        table.insert(rows, 6, { "attention.head_count_kv", "u32", "num_key_value_heads" })
    end
    return rows
end

--- Rows before and after the vocabulary's.
function gemma.tokenizer_rows()
    return {}, { { key = "tokenizer.ggml.add_space_prefix", type = "bool", value = false } }
end

--- What divides queries, which GGUF files do not say: the largest model of each generation is the exception.
---@param fields table
---@param layers integer how many the largest has
---@return integer
function gemma.query_scalar(fields, layers)
    local largest = fields.num_hidden_layers == layers
    return largest and math.floor(fields.hidden_size / fields.num_attention_heads) or fields.head_dim
end

return gemma
