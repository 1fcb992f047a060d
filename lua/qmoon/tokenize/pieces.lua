--- Tokenizers made of scored pieces: SentencePiece's tokenizer.model, and GGUF's "llama".
--
-- The measure is the sentencepiece package for the text itself, and transformers for what it is not about: tokens
-- added in tokenizer_config.json, what stands around a text, and the way back.

local core = require "qmoon.core"
local decoding = require "qmoon.tokenize.decoding"
local hf = require "qmoon.tokenize.hf"
local sentencepiece = require "qmoon.sentencepiece"
local special_tokens = require "qmoon.special_tokens"

local get = special_tokens.get

local pieces = {}

local TYPE = sentencepiece.types
local BLANK = "▁"
local UNKNOWN_COSTS = 10 -- more than the unlikeliest piece
local DEARER = 0.1 -- what user-defined pieces lack to the best score a byte

--- Only these are found in a text; <s>, <unk> and <0x0A> are not.
local MATCHED = { [TYPE.NORMAL] = true, [TYPE.USER_DEFINED] = true, [TYPE.UNUSED] = true }

--- The places of scores when they are sorted, the highest first; equal ones share a place.
local function ranks_of(scores)
    local sorted, place = {}, {}
    for i, score in ipairs(scores) do
        sorted[i] = score
    end
    table.sort(sorted, function(a, b) return a > b end)
    for i = #sorted, 1, -1 do
        place[sorted[i]] = i
    end
    local ranks = {}
    for i, score in ipairs(scores) do
        ranks[i] = place[score]
    end
    return ranks
end

--- Highest and lowest score of normal pieces, which those of the others come from.
local function score_range(list)
    local least, most = math.huge, -math.huge
    for _, piece in ipairs(list) do
        if piece.type == TYPE.NORMAL then
            least, most = math.min(least, piece.score), math.max(most, piece.score)
        end
    end
    return least, most
end

--- The vocabulary of a list of pieces in order of their ids.
---@param list {text: string, score: number, type: integer}[]
---@param settings table as sentencepiece.read gives it
---@param what string
---@return table spec {vocabulary, vocab, pieces, kind}
function pieces.vocabulary(list, settings, what)
    local texts, ids, scores, unused, vocab, by_id = {}, {}, {}, {}, {}, {}
    local least, most = score_range(list)
    for i, piece in ipairs(list) do
        local id = i - 1
        by_id[id] = piece.text
        if piece.score ~= piece.score then
            core.fail("corrupt", "%s: piece %d, '%s', has no number for a score", what, id, piece.text)
        elseif vocab[piece.text] and settings.strict then
            core.fail("corrupt", "%s: pieces %d and %d are both '%s'", what, vocab[piece.text], id, piece.text)
        elseif not vocab[piece.text] and MATCHED[piece.type] and piece.text ~= "" then
            local n = #texts + 1
            texts[n], ids[n], scores[n] = piece.text, id, piece.score
            if piece.type == TYPE.USER_DEFINED and settings.unigram then
                scores[n] = #piece.text * most - DEARER
            end
            unused[n] = piece.type == TYPE.UNUSED or nil
        end
        vocab[piece.text] = vocab[piece.text] or id
    end
    if settings.unigram then -- unused pieces cannot be cut up again: they are left out
        local kept = { {}, {}, {} }
        for n = 1, #texts do
            if not unused[n] then
                local k = #kept[1] + 1
                kept[1][k], kept[2][k], kept[3][k] = texts[n], ids[n], scores[n]
            end
        end
        texts, ids, scores, unused = kept[1], kept[2], kept[3], {}
    end
    local bytes = settings.byte_fallback and hf.byte_ids(vocab) or nil
    return {
        vocabulary = core.vocabulary {
            kind = settings.unigram and "unigram" or "scores", pieces = texts, ids = ids, scores = scores,
            ranks = not settings.unigram and ranks_of(scores) or nil, unused = next(unused) and unused or nil,
            unknown = settings.unk, fuse_unknown = settings.fuse_unknown, bytes = bytes, single = true,
            unknown_score = least - UNKNOWN_COSTS,
        },
        vocab = vocab, pieces = by_id, kind = settings.unigram and "Unigram" or "BPE", what = what,
    }
end

--- ▁ to blanks, bytes put together, and the blank in front of a text gone.
local function decoder(prefix, what)
    local steps = { { type = "Replace", pattern = { String = BLANK }, content = " " }, { type = "ByteFallback" },
                    { type = "Fuse" }, prefix and { type = "Strip", content = " ", start = 1, stop = 0 } or nil }
    return decoding.of_json({ type = "Sequence", decoders = steps }, what)
end

--- A piece as the normalised text has it.
local function user_defined(list)
    local found = {}
    for i, piece in ipairs(list) do
        if piece.type == TYPE.USER_DEFINED then
            found[#found + 1] = { id = i - 1, text = piece.text, special = false }
        end
    end
    return found
end

local function normalizer(settings, kept, each)
    local map = core.charsmap(settings.charsmap)
    local without = { squeeze = settings.squeeze, escape = settings.escape }
    local with = { prefix = settings.prefix, suffix = settings.suffix, squeeze = settings.squeeze,
                   escape = settings.escape }
    return function(text, first)
        return map:sentence(text, (first or each) and with or without, kept)
    end
end

--- Tokens that tokenizer_config.json does not know of, but which are none of a text: <s>, </s>.
local function add_controls(spec, list)
    local known = {}
    for _, token in ipairs(spec.added) do
        known[token.id] = true
    end
    for i, piece in ipairs(list) do
        if piece.type == TYPE.CONTROL and not known[i - 1] then
            spec.added[#spec.added + 1] = { id = i - 1, text = piece.text, special = true }
        end
    end
end

--- The parts of a tokenizer of a list of pieces.
---@param list table[] in order of their ids
---@param settings table as sentencepiece.read gives it; each_prefix = a blank in front of every part of a text
---       between special tokens, rather than of the text
---@param what string
---@return table spec without `added`, `before`, `after`
function pieces.spec(list, settings, what)
    if not settings.bpe and not settings.unigram then
        core.fail("unsupported", "%s: a SentencePiece model of type %s; BPE and unigram are known here", what,
            tostring(settings.type))
    end
    local spec = pieces.vocabulary(list, settings, what)
    local own = user_defined(list)
    local kept = own[1] and core.matcher(own)
    spec.normalize = normalizer(settings, kept, settings.each_prefix)
    spec.frozen = settings.bpe and kept or nil
    spec.steps = {}
    spec.decode = decoder(settings.prefix and not settings.suffix, what)
    return spec
end

--- The parts of a tokenizer of a folder's tokenizer.model.
---@param folder table {dir, config, added}
---@return table spec
function pieces.of_model(folder)
    local what = folder.dir .. "/tokenizer.model"
    local list, settings = sentencepiece.read(what)
    settings.fuse_unknown, settings.strict = true, true
    settings.each_prefix = settings.unigram or get(folder.config, "legacy") == true
    local spec = pieces.spec(list, settings, what)
    hf.add_tokens(spec, folder)
    add_controls(spec, list)
    hf.set_surroundings(spec, folder.config, function() end)
    spec.bos, spec.eos = spec.bos or settings.bos, spec.eos or settings.eos
    local add_bos = get(folder.config, "add_bos_token")
    if type(add_bos) ~= "boolean" and settings.bpe then
        spec.before[1] = spec.bos -- what Llama's and its kin's tokenizers do unless told otherwise
    end
    return spec
end

return pieces
