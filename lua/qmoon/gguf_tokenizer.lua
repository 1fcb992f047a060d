--- The tokenizer of a GGUF file as files of a model folder: tokenizer.json and its kin for byte-level BPE,
-- tokenizer.model for SentencePiece.
--
-- GGUF keeps less than those files do. Control tokens all become special ones. Of a SentencePiece model the pieces
-- are kept with their scores, but not which of them users defined, nor how it was trained: what is written cuts
-- text as llama.cpp does with the GGUF file.

local core = require "qmoon.core"
local gguf = require "qmoon.gguf"
local json = require "qmoon.json"
local pretokenizers = require "qmoon.pretokenizers"
local sentencepiece = require "qmoon.sentencepiece"
local special_tokens = require "qmoon.special_tokens"

local gguf_tokenizer = {}

-- llama.cpp's token types
local NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6

--- The id of a special token: bos, eos, padding, unknown; or nil.
---@param meta table[]
---@param name string
---@return integer?
function gguf_tokenizer.special_id(meta, name)
    local key = ("tokenizer.ggml.%s_token_id"):format(name)
    local id = gguf.get(meta, key)
    if id ~= nil and not gguf.holds("u32", id) then
        core.fail("corrupt", "metadata '%s' is %s, and no id", key, type(id) == "table" and "a list" or tostring(id))
    end
    return id
end

--- A list in the metadata whose elements are of one of Lua's types; nil when there is none.
local function list_of(meta, key, kind, what)
    local list = gguf.get(meta, key)
    if list ~= nil and (type(list) ~= "table" or #list > 0 and type(list[1]) ~= kind) then
        core.fail("corrupt", "%s: metadata '%s' is no list of %ss", what, key, kind)
    end
    return list
end

local special_id = gguf_tokenizer.special_id

-- ---- byte-level BPE ------------------------------------------------------------------------------

--- The vocabulary and the tokens that are matched whole. The latter stay out of the vocabulary when their ids
--- just follow it, as in the hub's files; otherwise they must be in it, or the ids would change.
local function split_vocabulary(tokens, kinds, what)
    local vocab, added, last, follows = {}, {}, -1, true
    for i, text in ipairs(tokens) do
        local kind, id = kinds[i], i - 1
        if kind == BYTE then
            core.fail("unsupported", "%s: token %d is a byte: this is no byte-level BPE", what, id)
        elseif kind == CONTROL or kind == USER_DEFINED or kind == UNKNOWN then
            added[#added + 1] = { id = id, text = text, special = kind ~= USER_DEFINED }
            follows, last = follows and id == last + 1, id
        elseif kind == NORMAL then
            vocab[#vocab + 1] = { text, id }
            follows, last = follows and id == last + 1 and #added == 0, id
        end
    end
    if not follows then
        for _, token in ipairs(added) do
            vocab[#vocab + 1] = { token.text, token.id }
        end
        table.sort(vocab, function(a, b) return a[2] < b[2] end)
    end
    return json.object(vocab), added
end

local function added_fields(token)
    return { { "content", token.text }, { "lstrip", false }, { "normalized", false }, { "rstrip", false },
             { "single_word", false }, { "special", token.special } }
end

local function byte_level(prefix, regex)
    return json.object { { "type", "ByteLevel" }, { "add_prefix_space", prefix }, { "trim_offsets", true },
                         { "use_regex", regex } }
end

local function pre_tokenizer(pre)
    local steps, last = {}, byte_level(false, false)
    for _, step in ipairs(pre[2]) do
        if step == "digits" then
            steps[#steps + 1] = json.object { { "type", "Digits" }, { "individual_digits", true } }
        elseif step == "gpt-2" then
            last = byte_level(false, true)
        else
            steps[#steps + 1] = json.object { { "type", "Split" }, { "pattern", { Regex = step } },
                                              { "behavior", "Isolated" }, { "invert", false } }
        end
    end
    steps[#steps + 1] = last
    return #steps > 1 and json.object { { "type", "Sequence" }, { "pretokenizers", steps } } or last
end

--- What is put around a text: <bos> A <eos>, as far as the file asks for it.
local function post_processor(t)
    local single, pair, used = {}, {}, {}
    local function special(list, name, type_id)
        local text = t.special[name]
        list[#list + 1] = { SpecialToken = json.object { { "id", text }, { "type_id", type_id } } }
        used[text] = json.object { { "id", text }, { "ids", { t.id[name] } }, { "tokens", { text } } }
    end
    for i, sequence in ipairs { "A", "B" } do
        for _, list in ipairs(i == 1 and { single, pair } or { pair }) do
            if t.add_bos then
                special(list, "bos", i - 1)
            end
            list[#list + 1] = { Sequence = json.object { { "id", sequence }, { "type_id", i - 1 } } }
            if t.add_eos then
                special(list, "eos", i - 1)
            end
        end
    end
    if next(used) == nil then
        return byte_level(false, false)
    end
    return json.object { { "type", "TemplateProcessing" }, { "single", single }, { "pair", pair },
                         { "special_tokens", used } }
end

local function tokenizer_json(t)
    local added = {}
    for i, token in ipairs(t.added) do
        added[i] = json.object(added_fields(token))
        table.insert(added[i], 1, { "id", token.id })
    end
    local null = core.null
    return json.encode(json.object {
        { "version", "1.0" }, { "truncation", null }, { "padding", null },
        { "added_tokens", json.array(added) },
        { "normalizer", t.pre.normalizer and { type = t.pre.normalizer } or null },
        { "pre_tokenizer", pre_tokenizer(t.pre) },
        { "post_processor", post_processor(t) },
        { "decoder", byte_level(true, true) },
        { "model", json.object {
            { "type", "BPE" }, { "dropout", null }, { "unk_token", null },
            { "continuing_subword_prefix", null }, { "end_of_word_suffix", null },
            { "fuse_unk", false }, { "byte_fallback", false },
            { "ignore_merges", t.pre.ignore_merges == true },
            { "vocab", t.vocab }, { "merges", json.array(t.merges) } } },
    }, { indent = 2 }) .. "\n"
end

--- One template, or the list of all when there are more.
local function chat_template(meta)
    local default, list = gguf.get(meta, "tokenizer.chat_template"), {}
    for _, name in ipairs(gguf.get(meta, "tokenizer.chat_templates") or {}) do
        local text = gguf.get(meta, "tokenizer.chat_template." .. name)
        list[#list + 1] = json.object { { "name", name }, { "template", text } }
    end
    if #list == 0 then
        return default
    end
    if default then
        table.insert(list, 1, json.object { { "name", "default" }, { "template", default } })
    end
    return list
end

local function tokenizer_config(t, meta, context)
    local decoder = {}
    for i, token in ipairs(t.added) do
        decoder[i] = { tostring(token.id), json.object(added_fields(token)) }
    end
    local fields = {
        add_prefix_space = gguf.get(meta, "tokenizer.ggml.add_space_prefix"),
        clean_up_tokenization_spaces = false, errors = "replace",
        added_tokens_decoder = json.object(decoder), chat_template = chat_template(meta),
        model_max_length = context, split_special_tokens = false,
        tokenizer_class = t.class, add_bos_token = t.add_bos, add_eos_token = t.add_eos,
        unk_token = t.special.unk or core.null, bos_token = t.special.bos or core.null,
        eos_token = t.special.eos or core.null, pad_token = t.special.pad,
    }
    if t.pieces then
        fields.errors, fields.legacy = nil, false
    end
    return json.encode(fields, { indent = 2 }) .. "\n"
end

local function bpe_files(t, vocabulary, options, meta, what)
    local name = options.pre or gguf.get(meta, "tokenizer.ggml.pre")
    t.pre = pretokenizers.named(tostring(name))
    t.merges = list_of(meta, "tokenizer.ggml.merges", "string", what)
    if not t.pre then
        core.fail("unsupported", "%s: pre-tokenizer '%s' is unknown; give one that cuts alike with --pre NAME", what,
            tostring(name))
    elseif not t.merges then
        core.fail("corrupt", "%s: the tokenizer has no merges", what)
    end
    t.class = t.pre.class or "PreTrainedTokenizerFast"
    t.vocab, t.added = split_vocabulary(vocabulary.tokens, vocabulary.kinds, what)
    return {
        { name = "tokenizer.json", text = tokenizer_json(t) },
        { name = "tokenizer_config.json", text = tokenizer_config(t, meta, options.context) },
        { name = "vocab.json", text = json.encode(t.vocab) .. "\n" },
        { name = "merges.txt", text = "#version: 0.2\n" .. table.concat(t.merges, "\n") .. "\n" },
    }
end

-- ---- SentencePiece -------------------------------------------------------------------------------

local ADDED_SCORE = -1000 -- what the converter gives to tokens that are matched whole

--- The number of the last token that can only come from the model itself.
local function last_piece(v, what)
    local last, bytes = 0, 0
    for i, kind in ipairs(v.kinds) do
        last = (kind == NORMAL or kind == UNKNOWN or kind == BYTE) and i or last
        bytes = bytes + (kind == BYTE and 1 or 0)
    end
    if bytes ~= 0 and bytes ~= 256 then
        core.fail("unsupported", "%s: the tokenizer has tokens for %d bytes; SentencePiece knows 256 or none", what,
            bytes)
    end
    return last
end

--- The pieces, the tokens added to them that tokenizer_config.json has, and those for added_tokens.json, where no
--- token is taken for special because of its looks.
local function split_pieces(v, unknown, what)
    local last = last_piece(v, what)
    local pieces, added, plain, has_unknown = {}, {}, {}, false
    for i, text in ipairs(v.tokens) do
        local kind, whole = v.kinds[i], v.kinds[i] == CONTROL or v.kinds[i] == USER_DEFINED
        has_unknown = has_unknown or kind == UNKNOWN
        if i <= last then
            pieces[i] = { text = (text:gsub(" ", "▁")), type = kind, score = whole and 0 or v.scores[i] }
        end
        if kind == USER_DEFINED and special_tokens.looks_special(text) then
            plain[#plain + 1] = { text, i - 1 }
        elseif whole and (i > last or v.scores[i] == ADDED_SCORE) then
            added[#added + 1] = { id = i - 1, text = text, special = kind == CONTROL }
        end
    end
    if not has_unknown and pieces[(unknown or 0) + 1] then
        pieces[(unknown or 0) + 1].type = UNKNOWN -- tokenizer_config.json calls it a control token
    end
    return pieces, added, plain
end

local function piece_files(t, v, options, meta, what)
    v.scores = list_of(meta, "tokenizer.ggml.scores", "number", what)
    if not v.scores or #v.scores ~= #v.tokens then
        core.fail("corrupt", "%s: the tokenizer has no score for every token", what)
    end
    local plain
    t.pieces, t.added, plain = split_pieces(v, t.id.unk, what)
    t.class = options.class or "LlamaTokenizer"
    local model = sentencepiece.bytes(t.pieces, {
        unk = t.id.unk, bos = t.id.bos, eos = t.id.eos,
        dummy_prefix = gguf.get(meta, "tokenizer.ggml.add_space_prefix") ~= false,
    })
    return {
        { name = "tokenizer.model", text = model },
        { name = "tokenizer_config.json", text = tokenizer_config(t, meta, options.context) },
        plain[1] and { name = "added_tokens.json", text = json.encode(json.object(plain), { indent = 2 }) .. "\n" },
    }
end

-- ---- all of it -----------------------------------------------------------------------------------

local MODELS = { gpt2 = bpe_files, llama = piece_files }

--- Files of the tokenizer of a GGUF file.
---
--- options: context = model_max_length, class = tokenizer_class for SentencePiece, pre = name of the pre-tokenizer.
---@param meta table[]
---@param options table
---@param what string names the file in messages
---@return {name: string, text: string}[]
function gguf_tokenizer.files(meta, options, what)
    local model = gguf.get(meta, "tokenizer.ggml.model")
    local v = { tokens = list_of(meta, "tokenizer.ggml.tokens", "string", what),
                kinds = list_of(meta, "tokenizer.ggml.token_type", "number", what) }
    if not MODELS[model] or not v.tokens or not v.kinds or #v.kinds ~= #v.tokens then
        core.fail("unsupported", "%s: of tokenizer '%s' no files can be made, only of whole ones of gpt2 or llama", what,
            tostring(model))
    end
    local t = { special = {}, id = {}, add_bos = gguf.get(meta, "tokenizer.ggml.add_bos_token"),
                add_eos = gguf.get(meta, "tokenizer.ggml.add_eos_token") }
    for short, long in pairs { bos = "bos", eos = "eos", pad = "padding", unk = "unknown" } do
        local id = special_id(meta, long)
        t.id[short], t.special[short] = id, id and v.tokens[id + 1]
        -- config.json may call an ordinary token so; the tokenizer must not, or would match it whole
        if id and v.kinds[id + 1] == NORMAL and not t["add_" .. short] then
            t.special[short] = nil
        end
    end
    if t.add_bos and not t.special.bos or t.add_eos and not t.special.eos then
        core.fail("corrupt", "%s: a token is to be added to every text, but there is none of that kind", what)
    end
    return MODELS[model](t, v, options, meta, what)
end

return gguf_tokenizer
