--- Tokenizers of GGUF files, from their metadata: byte-level BPE ("gpt2") and scored pieces ("llama").
--
-- The measure is llama.cpp, except where it departs from the tokenizer the model was trained with: NFC is applied
-- where a name of a pre-tokenizer brings it along, and tokens that overlap are found from left to right.

local core = require "qmoon.core"
local chat = require "qmoon.tokenize.chat"
local gguf = require "qmoon.gguf"
local gguf_tokenizer = require "qmoon.gguf_tokenizer"
local hf = require "qmoon.tokenize.hf"
local pieces = require "qmoon.tokenize.pieces"
local pretokenizers = require "qmoon.pretokenizers"
local sentencepiece = require "qmoon.sentencepiece"

local reader = {}

local TYPE = sentencepiece.types

local function key(meta, name)
    return gguf.get(meta, "tokenizer.ggml." .. name)
end

--- Tokens that are matched whole: control tokens, and those that were added by a user.
local function added_of(tokens, kinds)
    local added = {}
    for i, text in ipairs(tokens) do
        local kind = kinds[i]
        if kind == TYPE.CONTROL or kind == TYPE.USER_DEFINED or kind == TYPE.UNKNOWN then
            added[#added + 1] = { id = i - 1, text = text, special = kind ~= TYPE.USER_DEFINED }
        end
    end
    return added
end

local function byte_level(meta, tokens, kinds, options, what)
    local name = options.pre or key(meta, "pre")
    local row, merges = pretokenizers.named(tostring(name)), key(meta, "merges")
    if not row then
        core.fail("unsupported", "%s: pre-tokenizer '%s' is unknown; give one that cuts alike with --pre NAME", what,
            tostring(name))
    elseif type(merges) ~= "table" then
        core.fail("corrupt", "%s: the tokenizer has no merges", what)
    end
    local vocab, by_id = {}, {}
    for i, text in ipairs(tokens) do
        by_id[i - 1] = text
        if kinds[i] == TYPE.NORMAL or kinds[i] == TYPE.USER_DEFINED then
            vocab[text] = vocab[text] or i - 1
        end
    end
    local spec = hf.byte_level(what, vocab, merges, row)
    spec.pieces, spec.bos_by_default = by_id, row.bos == true
    return spec
end

--- llama.cpp knows neither normalisation nor a run of unknown characters as one piece, and puts a blank in front
--- of every part of a text between special tokens.
local function scored(meta, tokens, kinds, _, what)
    local scores, list = key(meta, "scores"), {}
    if type(scores) ~= "table" or #scores ~= #tokens then
        core.fail("corrupt", "%s: the tokenizer has no score for every token", what)
    end
    for i, text in ipairs(tokens) do
        -- what is matched whole has been cut out before; the rest may still be joined to the same
        local plain = kinds[i] == TYPE.USER_DEFINED or kinds[i] == TYPE.UNUSED
        list[i] = { text = text, score = scores[i], type = plain and TYPE.NORMAL or kinds[i] }
    end
    local spec = pieces.spec(list, {
        bpe = true, byte_fallback = true, unk = gguf_tokenizer.special_id(meta, "unknown") or 0, charsmap = "",
        prefix = key(meta, "add_space_prefix") ~= false, escape = true, each_prefix = true,
    }, what)
    spec.bos_by_default = true
    return spec
end

local MODELS = { gpt2 = byte_level, llama = scored }

local function end_ids(meta, added)
    local ends, by_text = {}, {}
    for _, name in ipairs { "eot", "eom" } do
        ends[#ends + 1] = gguf_tokenizer.special_id(meta, name)
    end
    for _, token in ipairs(added) do
        by_text[token.text] = token.id
    end
    for _, text in ipairs(chat.ends) do
        ends[#ends + 1] = by_text[text]
    end
    return ends
end

local function check_id(id, tokens, what)
    if id and (id < 0 or id >= #tokens) then
        core.fail("corrupt", "%s: special token %s is not among the %d tokens", what, tostring(id), #tokens)
    end
    return id
end

--- The parts of a tokenizer of a GGUF file's metadata.
---@param meta table[]
---@param options {pre: string?}
---@param what string names the file in messages
---@return table spec
function reader.spec(meta, options, what)
    local model, tokens, kinds = key(meta, "model"), key(meta, "tokens"), key(meta, "token_type")
    if not MODELS[model] then
        core.fail("unsupported", "%s: a tokenizer of the kind '%s' is not known here; gpt2 and llama are", what,
            tostring(model))
    elseif type(tokens) ~= "table" or type(kinds) ~= "table" or #tokens ~= #kinds then
        core.fail("corrupt", "%s: the tokenizer has no tokens, or not as many types as tokens", what)
    end
    local spec = MODELS[model](meta, tokens, kinds, options, what)
    spec.added = added_of(tokens, kinds)
    spec.bos = check_id(gguf_tokenizer.special_id(meta, "bos") or model == "llama" and 1 or nil, tokens, what)
    spec.eos = check_id(gguf_tokenizer.special_id(meta, "eos") or model == "llama" and 2 or nil, tokens, what)
    local add_bos, add_eos = key(meta, "add_bos_token"), key(meta, "add_eos_token")
    if add_bos == nil then
        add_bos = spec.bos_by_default
    end
    spec.before = { add_bos and spec.bos or nil }
    spec.after = { add_eos and spec.eos or nil }
    spec.ends = end_ids(meta, spec.added)
    spec.token_texts = {}
    for short, long in pairs { bos = "bos", eos = "eos", unk = "unknown", pad = "padding" } do
        local id = gguf_tokenizer.special_id(meta, long)
        spec.token_texts[short .. "_token"] = id and tokens[id + 1]
    end
    spec.chat_template = gguf.get(meta, "tokenizer.chat_template")
    return spec
end

return reader
