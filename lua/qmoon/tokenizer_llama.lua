--- The vocabularies that GGUF calls "llama": a SentencePiece model, or byte-pair encoding that falls back to bytes.
--
-- Three readers, which follow llama.cpp's converter: "spm" reads tokenizer.model, "phi3" the same with Microsoft's
-- additions in tokenizer.json, "hf" a tokenizer.json alone, where scores are lost. Each returns nil when the
-- folder has no such vocabulary.

local core = require "qmoon.core"
local files = require "qmoon.files"
local sentencepiece = require "qmoon.sentencepiece"
local special_tokens = require "qmoon.special_tokens"

local get = special_tokens.get

local llama = {}

local TYPE = sentencepiece.types
local ADDED_SCORE, PAD_SCORE = -1000, -10000 -- of tokens that have none

-- ---- lists ---------------------------------------------------------------------------------------

--- A vocabulary of placeholders.
local function empty(size, dir)
    local v = { tokens = {}, scores = {}, types = {}, size = size, beyond = 0, dir = dir }
    for id = 0, size - 1 do
        v.tokens[id + 1], v.scores[id + 1], v.types[id + 1] = ("[PAD%d]"):format(id), PAD_SCORE, TYPE.UNUSED
    end
    return v
end

local function set(v, id, text, score, kind)
    v.tokens[id + 1], v.scores[id + 1], v.types[id + 1] = text, score, kind
end

--- Adds a token that is matched whole. Those beyond the model's rows are counted, and left out: adding a <pad>
--- to the tokenizer and not to the model was a custom of its time.
local function add(v, id, text, kind)
    if type(id) ~= "number" or id < 0 or type(text) ~= "string" then
        core.fail("corrupt", "%s: a token has the id '%s' and the text '%s'", v.dir, tostring(id), tostring(text))
    elseif id >= v.size then
        v.beyond = v.beyond + 1
    else
        set(v, id, text, ADDED_SCORE, kind)
    end
end

-- ---- tokenizer.model -----------------------------------------------------------------------------

local function read_pieces(folder, size)
    local path = folder.dir .. "/tokenizer.model"
    if not files.exists(path) then
        return nil
    end
    local pieces = sentencepiece.read(path)
    local v = empty(size or #pieces, folder.dir)
    for i = 1, math.min(#pieces, v.size) do
        local piece = pieces[i]
        local kind = piece.type == TYPE.USER_DEFINED and TYPE.NORMAL or piece.type
        set(v, i - 1, piece.text, piece.score, kind)
    end
    v.beyond = math.max(0, #pieces - v.size)
    return v
end

local function add_from_file(v, folder)
    for text, id in pairs(folder.added or {}) do
        add(v, id, text, TYPE.USER_DEFINED)
    end
end

--- tokenizer.model with added_tokens.json and added_tokens_decoder.
---@param folder table {dir, json, config, added} decoded tokenizer.json, tokenizer_config.json, added_tokens.json
---@param size integer? rows of the embedding
---@return table? vocabulary {tokens, scores, types, beyond = tokens that had no place}
function llama.spm(folder, size)
    local v = read_pieces(folder, size)
    if not v then
        return nil
    end
    add_from_file(v, folder)
    for id, token in pairs(get(folder.config, "added_tokens_decoder") or {}) do
        local text = tostring(token.content)
        if token.special or special_tokens.looks_special(text) then
            add(v, tonumber(id), text, TYPE.CONTROL)
        else
            add(v, tonumber(id), (text:gsub("▁", " ")), TYPE.USER_DEFINED)
        end
    end
    return v
end

--- The same for Phi-3: as it is written, and tokenizer.json has the last word.
---@return table?
function llama.phi3(folder, size)
    local v = read_pieces(folder, size)
    if not v then
        return nil
    end
    add_from_file(v, folder)
    local function put(id, token)
        add(v, id, token.content, token.special and TYPE.CONTROL or TYPE.USER_DEFINED)
    end
    for id, token in pairs(get(folder.config, "added_tokens_decoder") or {}) do
        put(tonumber(id), token)
    end
    for _, token in ipairs(get(folder.json, "added_tokens") or {}) do
        put(token.id, token)
    end
    return v
end

-- ---- tokenizer.json alone ------------------------------------------------------------------------

-- What transformers' Llama tokenizers call special when their config does not say.
local LLAMA_SPECIAL = { bos_token = "<s>", eos_token = "</s>", unk_token = "<unk>" }

--- The texts of special tokens by which control tokens are known.
local function special_set(folder)
    local special = {}
    for _, text in ipairs(special_tokens.texts(folder.config)) do
        special[text] = true
    end
    if tostring(get(folder.config, "tokenizer_class")):find "^Llama" then
        for key, text in pairs(LLAMA_SPECIAL) do
            special[special_tokens.content(get(folder.config, key)) or text] = true
        end
    end
    return special
end

--- Byte-pair encoding over characters with byte_fallback, as Llama 2's own tokenizer.json has it. There are no
--- scores in it, so all get the same.
---@return table?
function llama.hf(folder, size)
    local model = get(folder.json, "model")
    if not model or model.type ~= "BPE" or not get(model, "byte_fallback") then
        return nil
    end
    local highest = -1
    for _, id in pairs(model.vocab) do
        highest = math.max(highest, id)
    end
    local base, special = highest, special_set(folder)
    for _, token in ipairs(get(folder.json, "added_tokens") or {}) do
        highest = math.max(highest, token.id)
    end
    local v = empty(size or highest + 1, folder.dir)
    v.lost = "scores"
    for text, id in pairs(model.vocab) do
        local byte = text:find "^<0x%x%x>$"
        add(v, id, text, byte and TYPE.BYTE or special[text] and TYPE.CONTROL or TYPE.NORMAL)
    end
    for _, token in ipairs(get(folder.json, "added_tokens") or {}) do
        if token.id > base then
            local kind = special[token.content] and TYPE.CONTROL or TYPE.USER_DEFINED
            add(v, token.id, token.content, kind)
        end
    end
    return v
end

return llama
