--- Tokenizers of model folders in Hugging Face's files: tokenizer.json, or vocab.json and merges.txt.
--
-- What tokenizers and transformers make of the files is the measure: tokenizer.json says how a text is cut, and
-- tokenizer_config.json may add tokens and say what stands around a text.

local core = require "qmoon.core"
local bpe = require "qmoon.tokenizer_bpe"
local decoding = require "qmoon.tokenize.decoding"
local normalizing = require "qmoon.tokenize.normalizing"
local pretokenizers = require "qmoon.pretokenizers"
local special_tokens = require "qmoon.special_tokens"
local splitting = require "qmoon.tokenize.splitting"

local get = special_tokens.get

local hf = {}

-- ---- vocabularies --------------------------------------------------------------------------------

local function check_id(id, piece, what)
    if type(id) ~= "number" or id < 0 or id ~= math.floor(id) or id >= 2 ^ 32 - 1 then
        core.fail("corrupt", "%s: token '%s' has the id %s, which is none", what, tostring(piece), tostring(id))
    end
    return id
end

--- Pieces and their ids as two lists, and the pieces by id.
local function lists(vocab, what)
    local pieces, ids, by_id = {}, {}, {}
    for piece, id in pairs(vocab) do
        check_id(id, piece, what)
        by_id[id] = piece
        if piece ~= "" then -- no text is cut into nothing
            pieces[#pieces + 1], ids[#ids + 1] = piece, id
        end
    end
    return pieces, ids, by_id
end

--- The ids of <0x00> … <0xFF>, false where there is none.
---@param vocab table<string, integer>
---@return (integer|false)[]
function hf.byte_ids(vocab)
    local ids = {}
    for b = 0, 255 do
        ids[b + 1] = vocab[("<0x%02X>"):format(b)] or false
    end
    return ids
end

--- {left, right, made, …} ids of merges, which are "a b" or {"a", "b"}.
local function merge_ids(merges, vocab, prefix, what)
    local out, n = {}, 0
    for i = 1, #merges do
        local entry = merges[i]
        local left, right
        if type(entry) == "table" then
            left, right = entry[1], entry[2]
        elseif type(entry) == "string" then
            left, right = entry:match "^([^ ]*) ([^ ]*)$"
        end
        if type(entry) == "string" and entry:find "^#version" then
            left = nil -- what merges.txt files start with
        elseif type(left) == "string" and type(right) == "string" then
            local made = vocab[left .. right:sub(prefix + 1)]
            if not vocab[left] or not vocab[right] or not made then
                core.fail("corrupt", "%s: merge %d, '%s' and '%s', is of or makes a token that is not in the "
                    .. "vocabulary", what, i, left, right)
            end
            out[n + 1], out[n + 2], out[n + 3] = vocab[left], vocab[right], made
            n = n + 3
        else
            core.fail("corrupt", "%s: merge %d is no pair of tokens", what, i)
        end
    end
    return out
end

local function unknown_id(model, vocab, what)
    local text = get(model, "unk_token")
    if text and not vocab[text] then
        core.fail("corrupt", "%s: unk_token '%s' is not in the vocabulary", what, text)
    end
    return text and vocab[text]
end

local function bpe_vocabulary(model, what)
    local vocab, merges = model.vocab, model.merges
    if type(vocab) ~= "table" or type(merges) ~= "table" then
        core.fail("corrupt", "%s: the BPE model has no vocab or no merges", what)
    elseif get(model, "dropout") and model.dropout ~= 0 then
        core.fail("unsupported", "%s: dropout of merges is for training; set model.dropout to null", what)
    end
    local pieces, ids, by_id = lists(vocab, what)
    local prefix = get(model, "continuing_subword_prefix")
    return {
        vocabulary = core.vocabulary {
            kind = "merges", pieces = pieces, ids = ids, merges = merge_ids(merges, vocab, #(prefix or ""), what),
            unknown = unknown_id(model, vocab, what), prefix = prefix, suffix = get(model, "end_of_word_suffix"),
            fuse_unknown = get(model, "fuse_unk") == true, whole_words = get(model, "ignore_merges") == true,
            bytes = get(model, "byte_fallback") and hf.byte_ids(vocab) or nil,
        },
        vocab = vocab, pieces = by_id, kind = "BPE",
        -- where a word starts or ends makes a difference
        whole = prefix ~= nil and prefix ~= "" or get(model, "end_of_word_suffix") ~= nil,
    }
end

local UNKNOWN_COSTS = 10 -- more than the unlikeliest piece

local function unigram_vocabulary(model, what)
    local vocab, by_id, scores_of, least = {}, {}, {}, math.huge
    if type(model.vocab) ~= "table" or #model.vocab == 0 then
        core.fail("corrupt", "%s: the Unigram model has no vocab", what)
    end
    for i, entry in ipairs(model.vocab) do
        local piece, score = entry[1], entry[2]
        if type(piece) ~= "string" or type(score) ~= "number" then
            core.fail("corrupt", "%s: entry %d of the vocabulary is no piece with a score", what, i - 1)
        end
        vocab[piece], by_id[i - 1], scores_of[piece] = i - 1, piece, score
        least = math.min(least, score)
    end
    local unknown = get(model, "unk_id")
    if unknown and not by_id[unknown] then
        core.fail("corrupt", "%s: unk_id %s is not in the vocabulary", what, tostring(unknown))
    end
    local pieces, ids = lists(vocab, what)
    local scores = {}
    for i, piece in ipairs(pieces) do
        scores[i] = scores_of[piece]
    end
    return {
        vocabulary = core.vocabulary {
            kind = "unigram", pieces = pieces, ids = ids, scores = scores, unknown = unknown, fuse_unknown = true,
            unknown_score = least - UNKNOWN_COSTS,
            bytes = get(model, "byte_fallback") and hf.byte_ids(vocab) or nil,
        },
        vocab = vocab, pieces = by_id, kind = "Unigram",
    }
end

local function vocabulary_of(model, what)
    if type(model) ~= "table" then
        core.fail("corrupt", "%s: there is no model in it", what)
    end
    local kind = get(model, "type") or get(model, "merges") and "BPE" or type(get(model, "vocab")) == "table"
        and type(model.vocab[1]) == "table" and "Unigram"
    if kind == "BPE" then
        return bpe_vocabulary(model, what)
    elseif kind == "Unigram" then
        return unigram_vocabulary(model, what)
    end
    core.fail("unsupported", "%s: a tokenizer of the kind '%s' is not known here; BPE and Unigram are", what,
        tostring(kind))
end

-- ---- what stands around a text ----------------------------------------------------------------------

local function template(processor, before, after, what)
    local target = before
    for _, entry in ipairs(get(processor, "single") or {}) do
        local special = get(entry, "SpecialToken")
        if get(entry, "Sequence") then
            target = after
        elseif special then
            local ids = get(get(get(processor, "special_tokens"), special.id), "ids")
            if type(ids) ~= "table" then
                core.fail("corrupt", "%s: the post-processor has no id for '%s'", what, tostring(special.id))
            end
            for _, id in ipairs(ids) do
                target[#target + 1] = check_id(id, special.id, what)
            end
        end
    end
end

local function surround(processor, before, after, what)
    local kind = get(processor, "type")
    if kind == "Sequence" then
        for _, inner in ipairs(get(processor, "processors") or {}) do
            surround(inner, before, after, what)
        end
    elseif kind == "TemplateProcessing" then
        template(processor, before, after, what)
    elseif kind == "BertProcessing" or kind == "RobertaProcessing" then
        local cls, sep = get(processor, "cls") or {}, get(processor, "sep") or {}
        table.insert(before, 1, check_id(cls[2], cls[1], what))
        after[#after + 1] = check_id(sep[2], sep[1], what)
    elseif kind ~= "ByteLevel" and processor then -- which moves offsets only
        core.fail("unsupported", "%s: post-processor '%s' is not known here", what, tostring(kind))
    end
end

-- ---- all of it -----------------------------------------------------------------------------------

local function flag(token, name, default)
    local value = get(token, name)
    if value == nil then
        return default
    end
    return value == true
end

local function check_tokens(list, what)
    if type(list) ~= "table" then
        core.fail("corrupt", "%s: the added tokens are no list", what)
    end
    for id, token in pairs(list) do
        if type(token) ~= "table" or type(token.content) ~= "string" then
            core.fail("corrupt", "%s: the added token %s has no content", what, tostring(id))
        end
        check_id(token.id or tonumber(id), token.content, what)
    end
end

--- Added tokens as a list, the ids and pieces of the spec updated.
---@param spec table {vocab, pieces}
---@param folder table
function hf.add_tokens(spec, folder)
    check_tokens(get(folder.json, "added_tokens") or {}, spec.what)
    check_tokens(get(folder.config, "added_tokens_decoder") or {}, folder.dir .. "/tokenizer_config.json")
    spec.added = {}
    for id, t in pairs(bpe.added_tokens(folder, spec.vocab)) do
        check_id(id, t.text, spec.what)
        spec.pieces[id] = t.text
        spec.added[#spec.added + 1] = {
            id = id, text = t.text, special = t.special == true,
            normalized = flag(t.token, "normalized", not t.special), lstrip = flag(t.token, "lstrip", false),
            rstrip = flag(t.token, "rstrip", false), single_word = flag(t.token, "single_word", false),
        }
    end
    table.sort(spec.added, function(a, b) return a.id < b.id end)
end

--- The id of the token that tokenizer_config.json calls that, or nil.
function hf.named(spec, config, name)
    local text = special_tokens.content(get(config, name .. "_token"))
    if not text then
        return nil
    end
    for _, t in ipairs(spec.added) do
        if t.text == text then
            return t.id
        end
    end
    return spec.vocab[text]
end

--- The ids around a text: what tokenizer_config.json says, where it says anything; else what `otherwise` does.
function hf.set_surroundings(spec, config, otherwise)
    local bos, eos = get(config, "add_bos_token"), get(config, "add_eos_token")
    spec.bos, spec.eos = hf.named(spec, config, "bos"), hf.named(spec, config, "eos")
    spec.before, spec.after = {}, {}
    if type(bos) == "boolean" or type(eos) == "boolean" then
        spec.before[1] = bos == true and spec.bos or nil
        spec.after[1] = eos == true and spec.eos or nil
    else
        otherwise(spec)
    end
end

--- The parts of a tokenizer of a decoded tokenizer.json.
---@param folder table {dir, json, config}
---@return table spec
function hf.of_json(folder)
    local json, what = folder.json, folder.dir .. "/tokenizer.json"
    local spec = vocabulary_of(get(json, "model"), what)
    spec.what = what
    hf.add_tokens(spec, folder)
    spec.normalize = normalizing.of_json(json.normalizer, what)
    spec.steps = splitting.of_json(json.pre_tokenizer, what)
    spec.decode = decoding.of_json(json.decoder, what)
    hf.set_surroundings(spec, folder.config, function()
        surround(get(json, "post_processor"), spec.before, spec.after, what)
    end)
    return spec
end

--- The same for a byte-level BPE that says nothing about its cutting: a row of qmoon.pretokenizers does.
---@param what string
---@param vocab table<string, integer>
---@param merges string[]
---@param row table
---@return table spec
function hf.byte_level(what, vocab, merges, row)
    local ignore_merges = row.ignore_merges or row.whole_words
    local spec = bpe_vocabulary({ vocab = vocab, merges = merges, ignore_merges = ignore_merges }, what)
    spec.what = what
    spec.normalize = row.normalizer and normalizing.of_json({ type = row.normalizer }, what)
    spec.steps = splitting.of_row(row)
    spec.decode = decoding.of_json({ type = "ByteLevel" }, what)
    return spec
end

--- The parts of a tokenizer of vocab.json and merges.txt; how it cuts goes by tokenizer_class.
---@param folder table {dir, vocab, added, config}
---@param pre string? name of a pre-tokenizer, instead
---@return table spec
function hf.of_vocab(folder, pre)
    local class = get(folder.config, "tokenizer_class")
    pre = pre or pretokenizers.of_class(class)
    local row = pre and pretokenizers.named(pre)
    if not row then
        core.fail("unsupported", "%s: vocab.json and merges.txt do not say how text is cut, and neither does the "
            .. "tokenizer_class '%s'; if you know it, give it with --pre NAME (qwen2, gpt-2, …)", folder.dir,
            tostring(class))
    end
    local spec = hf.byte_level(folder.dir .. "/vocab.json", folder.vocab, bpe.merges_txt(folder.dir), row)
    if get(folder.config, "add_prefix_space") then
        table.insert(spec.steps, 1, { kind = "prefix" })
    end
    hf.add_tokens(spec, folder)
    hf.set_surroundings(spec, folder.config, function() end)
    return spec
end

return hf
