--- What the models that GGUF calls "llama" have in common: Llama, Mistral, Mixtral.
-- Source: llama.cpp's converter.

local core = require "qmoon.core"
local decoder = require "qmoon.decoder"
local rope = require "qmoon.rope"

local llama = {}

llama.metadata = {
    decoder.shape,
    { "expert_count", "u32", "num_local_experts" },
    { "expert_used_count", "u32", "num_experts_per_tok" },
    decoder.head_lengths,
    { "vocab_size", "u32", "vocab_size" },
    { "rope.dimension_count", "u32", "rope_dim" },
    rope.keys,
}

-- Two families are known by the sizes of their vocabularies: Code Llama, whose <EOT> no file of its names, and
-- IBM's small Granites.
local CODE_LLAMA, EOT, GRANITE = 32016, 32010, 49152

--- Rows before and after the vocabulary's.
function llama.tokenizer_rows(fields, tokenizer_config)
    local before, after = {}, {}
    local space = tokenizer_config and tokenizer_config.add_prefix_space
    if space ~= nil and space ~= core.null then
        before[1] = { key = "tokenizer.ggml.add_space_prefix", type = "bool", value = space }
    end
    if fields.vocab_size == CODE_LLAMA then
        after[1] = { key = "tokenizer.ggml.eot_token_id", type = "u32", value = EOT }
    elseif fields.vocab_size == GRANITE then
        after[1] = { key = "tokenizer.ggml.add_bos_token", type = "bool", value = false }
    end
    return before, after
end

return llama
