--- The tokenizer of a model folder, as GGUF files carry it.
--
-- Read are tokenizer.json, tokenizer.model, or vocab.json and merges.txt, with tokenizer_config.json, chat
-- templates and the token ids of config.json. The result says the same as llama.cpp's converter would; where it
-- does not is in docs/numerics.md.

local core = require "qmoon.core"
local bpe = require "qmoon.tokenizer_bpe"
local check = require "qmoon.tokenizer_check"
local files = require "qmoon.files"
local llama = require "qmoon.tokenizer_llama"
local profiles = require "qmoon.gguf_profiles"
local special_tokens = require "qmoon.special_tokens"

local get = special_tokens.get

local tokenizer = {}

-- ---- files ------------------------------------------------------------------------------------

local function read_text(dir, name)
    local path = dir .. "/" .. name
    if files.exists(path) then
        return files.read(path), path
    end
end

local function read_json(dir, name, checked)
    local text, path = read_text(dir, name)
    if not text then
        return nil
    end
    local value = core.json_decode(text, path)
    if checked then
        checked(path, value)
    end
    return value
end

-- ---- chat templates -----------------------------------------------------------------------------

--- The template, or a list of {name, template}, or nil.
---@param dir string
---@param config table? decoded tokenizer_config.json
function tokenizer.chat_template(dir, config)
    if not config then
        return nil
    elseif get(config, "chat_template") then
        return config.chat_template
    end
    local text = read_text(dir, "chat_template.jinja")
    if not text then
        return get(read_json(dir, "chat_template.json"), "chat_template")
    end
    local folder, list = dir .. "/additional_chat_templates", { { name = "default", template = text } }
    for _, file in ipairs(files.exists(folder) and core.list(folder) or {}) do
        local name = file:match "^(.*)%.jinja$"
        if name then
            list[#list + 1] = { name = name, template = read_text(folder, file) }
        end
    end
    return #list > 1 and list or text
end

-- ---- reading and writing ------------------------------------------------------------------------

-- Kinds of vocabulary: {reader, tokenizer.ggml.model, what it reads}. An architecture names those it may have.
local KINDS = {
    bpe = { bpe.read, "gpt2", "a byte-level BPE (tokenizer.json, or vocab.json with merges.txt)" },
    spm = { llama.spm, "llama", "SentencePiece's tokenizer.model" },
    phi3 = { llama.phi3, "llama", "SentencePiece's tokenizer.model" },
    hf = { llama.hf, "llama", "a BPE with byte_fallback (tokenizer.json)" },
}

local FILES = { "tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json" }

local function fail_without(dir, wanted)
    local there = {}
    for _, name in ipairs(FILES) do
        there[#there + 1] = files.exists(dir .. "/" .. name) and name or nil
    end
    if #there == 0 then
        core.fail("fail", "%s: no tokenizer.json, tokenizer.model or vocab.json: a GGUF file needs the tokenizer", dir)
    end
    core.fail("unsupported", "%s: of %s no tokenizer can be made for a GGUF file of this architecture; wanted is %s",
        dir, table.concat(there, ", "), wanted)
end

local function read_vocabulary(folder, kinds, size, pre)
    local wanted = {}
    for i, name in ipairs(kinds) do
        local kind = KINDS[name]
        local v = kind[1](folder, size, pre)
        if v then
            v.model = kind[2]
            return v
        end
        wanted[i] = kind[3]
    end
    fail_without(folder.dir, table.concat(wanted, ", or "))
end

local function notes_of(v)
    local notes = {}
    if (v.beyond or 0) > 0 then
        notes[1] = ("%d tokens beyond the model's vocabulary of %d were left out"):format(v.beyond, #v.tokens)
    end
    if v.lost then
        notes[#notes + 1] = ("tokenizer.json has no %s, and llama.cpp cuts text by them: text may be cut otherwise; "
            .. "put the model's tokenizer.model into the folder"):format(v.lost)
    end
    return notes
end

--- Reads a folder's tokenizer.
---
--- options: vocab_size (rows of the embedding; else as many as there are tokens), config = what
--- config.read gave, arch, pre = name of the pre-tokenizer instead of recognising it, profile.
---@param dir string
---@param options? table
---@return table tokenizer {model, pre, tokens, types, scores, merges, ids, add, chat_template, before, after,
---    notes}; token i + 1 has id i
function tokenizer.read(dir, options)
    options = options or {}
    local profile = profiles.named(options.profile)
    local a = options.arch or get(options.config, "arch") or {}
    local folder = { dir = dir, json = read_json(dir, "tokenizer.json", check.tokenizer),
                     config = read_json(dir, "tokenizer_config.json", check.config),
                     vocab = read_json(dir, "vocab.json", check.vocabulary),
                     added = read_json(dir, "added_tokens.json", check.vocabulary) }
    local v = read_vocabulary(folder, a.tokenizer or { "bpe" }, options.vocab_size, options.pre)
    if options.pre and v.model ~= "gpt2" then
        core.fail("usage", "%s: --pre %s: this vocabulary is cut by its scores, not by a pre-tokenizer", dir,
            options.pre)
    end
    local before, after
    if a.tokenizer_rows then
        before, after = a.tokenizer_rows(get(options.config, "fields") or {}, folder.config)
    end
    local limit = v.model == "llama" and #v.tokens or nil
    local ids, add = special_tokens.read(folder.json, folder.config, get(options.config, "raw"), profile, limit)
    return {
        model = v.model, pre = v.pre or "default", tokens = v.tokens, types = v.types, scores = v.scores,
        merges = v.merges or {}, ids = ids, add = add, chat_template = tokenizer.chat_template(dir, folder.config),
        before = before or {}, after = after or {}, notes = notes_of(v),
    }
end

-- "seperator" is GGUF's own spelling
local ID_KEYS = { bos = "bos", eos = "eos", unk = "unknown", sep = "seperator", pad = "padding",
                  mask = "mask", eot = "eot", eom = "eom" }

local function row(key, kind, value)
    return { key = "tokenizer." .. key, type = kind, value = value }
end

local function array(key, elem, value)
    return { key = "tokenizer." .. key, type = "array", elem = elem, value = value }
end

local function template_rows(rows, template)
    if type(template) == "string" then
        template = { { name = "default", template = template } }
    end
    local default, names = nil, {}
    for _, choice in ipairs(type(template) == "table" and template or {}) do
        local name = tostring(choice.name or ""):gsub("[^%w]", "_")
        if name == "default" then
            default = choice.template
        elseif name ~= "" and type(choice.template) == "string" then
            names[#names + 1] = name
            rows[#rows + 1] = row("chat_template." .. name, "string", choice.template)
        end
    end
    if #names > 0 then
        rows[#rows + 1] = array("chat_templates", "string", names)
    end
    if default and default ~= "" then
        rows[#rows + 1] = row("chat_template", "string", default)
    end
end

--- Adds a row; one with a key that is there already takes its place.
local function put(rows, r)
    for i, old in ipairs(rows) do
        if old.key == r.key then
            rows[i] = r
            return
        end
    end
    rows[#rows + 1] = r
end

--- The metadata of a tokenizer, in the order the converter writes it.
---@param t table from tokenizer.read
---@return {key: string, type: string, value: any, elem: string?}[]
function tokenizer.metadata(t)
    local rows = { unpack(t.before or {}) }
    rows[#rows + 1] = row("ggml.model", "string", t.model)
    rows[#rows + 1] = row("ggml.pre", "string", t.pre)
    rows[#rows + 1] = array("ggml.tokens", "string", t.tokens)
    if t.scores then
        rows[#rows + 1] = array("ggml.scores", "f32", t.scores)
    end
    rows[#rows + 1] = array("ggml.token_type", "i32", t.types)
    if #t.merges > 0 then
        rows[#rows + 1] = array("ggml.merges", "string", t.merges)
    end
    for _, kind in ipairs(t.ids.names) do
        if ID_KEYS[kind] then -- cls has no key
            rows[#rows + 1] = row(("ggml.%s_token_id"):format(ID_KEYS[kind]), "u32", t.ids.of[kind])
        end
    end
    for _, kind in ipairs(t.add.names) do
        if kind == "bos" or kind == "eos" or kind == "sep" then
            rows[#rows + 1] = row(("ggml.add_%s_token"):format(kind), "bool", t.add.of[kind])
        end
    end
    template_rows(rows, t.chat_template)
    for _, r in ipairs(t.after or {}) do
        put(rows, r)
    end
    return rows
end

return tokenizer
