--- What decoders have in common, as rows of an architecture's tables (qmoon.arch): checkpoints of most
-- architectures give these modules the same names, and GGUF files the same keys.
--
-- An architecture names the groups that it has and writes out what it has otherwise. Groups stand in `modules` and
-- `metadata` where a row would; arch takes their rows in order.

local decoder = {}

local function with(row, more)
    for k, v in pairs(more or {}) do
        row[k] = v
    end
    return row
end

-- ---- modules -------------------------------------------------------------------------------------

--- What stands around the layers, and the norm that a layer begins with.
---@param norm table? fields of every norm's row
---@param head table? fields of the output head's row; { tied = true } when absent
---@return table[] rows
function decoder.ends(norm, head)
    return {
        { "model.embed_tokens", "token_embd", "embedding" },
        with({ "lm_head", "output", "output" }, head or { tied = true }),
        with({ "model.norm", "output_norm", "norm" }, norm),
        with({ "model.layers.N.input_layernorm", "blk.N.attn_norm", "norm" }, norm),
    }
end

--- Queries, keys, values and what brings them back.
---@param bias (boolean|"optional")? of queries, keys and values
---@param output_bias (boolean|"optional")?
---@param interleaved boolean? GGUF has the rows of every head's queries and keys interleaved, as llama's rotation wants
---@return table[] rows
function decoder.attention(bias, output_bias, interleaved)
    return {
        { "model.layers.N.self_attn.q_proj", "blk.N.attn_q", "linear", bias = bias,
          heads = interleaved and "num_attention_heads" or nil },
        { "model.layers.N.self_attn.k_proj", "blk.N.attn_k", "linear", bias = bias,
          heads = interleaved and "num_key_value_heads" or nil },
        { "model.layers.N.self_attn.v_proj", "blk.N.attn_v", "linear", bias = bias },
        { "model.layers.N.self_attn.o_proj", "blk.N.attn_output", "linear", bias = output_bias },
    }
end

--- Norms of every head's queries and keys.
---@param norm table? fields of the rows
---@return table[] rows
function decoder.head_norms(norm)
    return {
        with({ "model.layers.N.self_attn.q_norm", "blk.N.attn_q_norm", "norm" }, norm),
        with({ "model.layers.N.self_attn.k_norm", "blk.N.attn_k_norm", "norm" }, norm),
    }
end

--- The gated feed-forward part.
---@param bias (boolean|"optional")?
---@return table[] rows
function decoder.mlp(bias)
    return {
        { "model.layers.N.mlp.gate_proj", "blk.N.ffn_gate", "linear", bias = bias },
        { "model.layers.N.mlp.up_proj", "blk.N.ffn_up", "linear", bias = bias },
        { "model.layers.N.mlp.down_proj", "blk.N.ffn_down", "linear", bias = bias },
    }
end

-- The norm between attention and the feed-forward part, where that is its only one.
decoder.ffn_norm = { { "model.layers.N.post_attention_layernorm", "blk.N.ffn_norm", "norm" } }

-- Experts as transformers 4 saves them, one by one, with their router.
decoder.experts = {
    { "model.layers.N.mlp.gate", "blk.N.ffn_gate_inp", "router" },
    { "model.layers.N.mlp.experts.E.down_proj", "blk.N.ffn_down_exps", "linear" },
    { "model.layers.N.mlp.experts.E.gate_proj", "blk.N.ffn_gate_exps", "linear" },
    { "model.layers.N.mlp.experts.E.up_proj", "blk.N.ffn_up_exps", "linear" },
}

-- And as transformers 5 may: all of a layer in two tensors.
decoder.stacked_experts = {
    { "model.layers.N.mlp.experts.gate_up_proj", { "blk.N.ffn_gate_exps", "blk.N.ffn_up_exps" }, "experts",
      also = true, plain = true },
    { "model.layers.N.mlp.experts.down_proj", { "blk.N.ffn_down_exps" }, "experts", also = true, plain = true },
}

-- ---- metadata ------------------------------------------------------------------------------------

-- The order of llama.cpp's converter for everything that has none of its own.
decoder.shape = {
    { "block_count", "u32", "num_hidden_layers" },
    { "context_length", "u32", "max_position_embeddings" },
    { "embedding_length", "u32", "hidden_size" },
    { "feed_forward_length", "u32", "intermediate_size" },
    { "attention.head_count", "u32", "num_attention_heads" },
    { "attention.head_count_kv", "u32", "num_key_value_heads" },
    { "rope.freq_base", "f32", "rope_theta" },
    { "attention.layer_norm_rms_epsilon", "f32", "rms_norm_eps" },
}

decoder.head_lengths = {
    { "attention.key_length", "u32", "head_dim" },
    { "attention.value_length", "u32", "head_dim" },
    { "general.file_type", "u32", "file_type" },
}

return decoder
