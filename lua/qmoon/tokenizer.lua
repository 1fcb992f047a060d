--- The tokenizer of a model folder, as GGUF files carry it.
--
-- Read are tokenizer.json, or vocab.json and merges.txt where there is none, with tokenizer_config.json,
-- chat templates and the token ids of config.json. Only byte-level BPE so far. The result says the same as
-- llama.cpp's converter would, with two differences: the pre-tokenizer is recognised by how it cuts (see
-- pretokenizers.lua), and added tokens are written as they are.

local core = require "qmoon.core"
local files = require "qmoon.files"
local pretokenizers = require "qmoon.pretokenizers"
local profiles = require "qmoon.gguf_profiles"
local special_tokens = require "qmoon.special_tokens"

local content, get = special_tokens.content, special_tokens.get

local tokenizer = {}

-- llama.cpp's token types
local NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

-- ---- files ------------------------------------------------------------------------------------

local function read_text(dir, name)
    local path = dir .. "/" .. name
    if files.exists(path) then
        return files.read(path), path
    end
end

local function read_json(dir, name)
    local text, path = read_text(dir, name)
    return text and core.json_decode(text, path)
end

-- ---- vocabulary ---------------------------------------------------------------------------------

local function vocabulary(dir, json)
    if not json then
        local vocab = read_json(dir, "vocab.json")
        if vocab then
            return vocab
        elseif files.exists(dir .. "/tokenizer.model") then
            core.fail("unsupported", "%s: has only a SentencePiece tokenizer.model, not supported yet", dir)
        end
        core.fail("fail", "%s: no tokenizer.json and no vocab.json: a GGUF file needs the tokenizer", dir)
    end
    local model = json.model
    local is_bpe = type(model) == "table" and type(model.vocab) == "table" and (model.type or "BPE") == "BPE"
    if not is_bpe or model.byte_fallback then
        core.fail("unsupported", "%s/tokenizer.json: is no byte-level BPE, the only kind supported yet", dir)
    end
    return model.vocab
end

--- The texts that tokenizer_config.json calls special, in order.
local function special_texts(config)
    local texts = {}
    for _, kind in ipairs(special_tokens.kinds) do
        texts[#texts + 1] = content(get(config, kind .. "_token"))
    end
    for _, key in ipairs { "additional_special_tokens", "extra_special_tokens" } do
        local names = {} -- a list, or since transformers 5 also an object: name -> token
        for name in pairs(get(config, key) or {}) do
            names[#names + 1] = name
        end
        table.sort(names)
        for _, name in ipairs(names) do
            texts[#texts + 1] = content(config[key][name])
        end
    end
    return texts
end

--- Tokens that are matched whole, by id: {text, special}. tokenizer_config.json has the last word, as in
--- transformers, which also makes a token of every special text that is none yet.
local function added_tokens(dir, json, config, vocab)
    local added, id_of, last = {}, {}, -1
    local function add(id, text, special)
        added[id] = { text = text, special = special }
        id_of[text] = id
        last = math.max(last, id)
    end
    for _, id in pairs(vocab) do
        last = math.max(last, id)
    end
    for _, token in ipairs(get(json, "added_tokens") or {}) do
        add(token.id, token.content, token.special)
    end
    if not json then
        for text, id in pairs(read_json(dir, "added_tokens.json") or {}) do
            add(id, text, false)
        end
    end
    for id, token in pairs(get(config, "added_tokens_decoder") or {}) do
        add(tonumber(id), token.content, token.special)
    end
    for _, text in ipairs(special_texts(config)) do
        add(id_of[text] or vocab[text] or last + 1, text, true)
    end
    return added
end

local LOOKS_SPECIAL = { ["<pad>"] = true, ["<mask>"] = true, ["<2mass>"] = true, ["[@BOS@]"] = true }

--- Control tokens that their makers forgot to mark as special.
local function looks_special(text)
    return LOOKS_SPECIAL[text] or text:find "^<|.*|>$" or text:find "^<｜.*｜>$" or text:find "^<unused.*>$"
end

--- The list of tokens and of their types, one for each row of the embedding.
local function token_list(dir, vocab, added, size)
    local text_of, highest = {}, -1
    for text, id in pairs(vocab) do
        if text_of[id] then
            core.fail("corrupt", "%s: tokens '%s' and '%s' have the same id %d", dir, text_of[id], text, id)
        end
        text_of[id] = text
        highest = math.max(highest, id)
    end
    for id in pairs(added) do
        highest = math.max(highest, id)
    end
    size = size or highest + 1
    if highest >= size then
        core.fail("corrupt",
            "%s: the tokenizer has a token %d, but the model's vocabulary (vocab_size) is %d",
            dir, highest, size)
    end
    local tokens, kinds = {}, {}
    for id = 0, size - 1 do
        local token = added[id]
        local text, kind = text_of[id], NORMAL
        if token and (token.special or looks_special(token.text)) then
            text, kind = token.text, CONTROL
        elseif token then
            text, kind = token.text:gsub("▁", " "), USER_DEFINED
        elseif not text then
            text, kind = ("[PAD%d]"):format(id), UNUSED
        end
        tokens[id + 1], kinds[id + 1] = text, kind
    end
    return tokens, kinds
end

-- ---- merges ------------------------------------------------------------------------------------

--- "a b" from the pair {"a", "b"}; a blank inside a part becomes Ġ, as it is in the byte alphabet.
local function merge_of(entry)
    if type(entry) == "string" then
        return entry
    end
    return (entry[1]:gsub(" ", "Ġ")) .. " " .. (entry[2]:gsub(" ", "Ġ"))
end

local function merges_txt(dir)
    local text, path = read_text(dir, "merges.txt")
    if not text then
        core.fail("fail", "%s: vocab.json without merges.txt", dir)
    end
    local merges, number = {}, 0
    for line in (text .. "\n"):gmatch "([^\n]*)\n" do
        number = number + 1
        local a, b, more = line:match "^%s*(%S+)%s+(%S+)%s*(.*)$"
        local is_header = number == 1 and line:find "^#" -- "#version: 0.2"
        if a and more == "" and not is_header then
            merges[#merges + 1] = a .. " " .. b
        elseif line:find "%S" and not is_header then
            core.fail("corrupt", "%s: line %d is no pair of tokens", path, number)
        end
    end
    return merges
end

local function merge_list(dir, json)
    local list = get(get(json, "model"), "merges")
    if not list then
        return merges_txt(dir)
    end
    local merges = {}
    for i, entry in ipairs(list) do
        merges[i] = merge_of(entry)
    end
    return merges
end

-- ---- chat templates -----------------------------------------------------------------------------

--- The template, or a list of {name, template}, or nil.
local function chat_template(dir, config)
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

local function pre_of(dir, json, config, override)
    local pre = override
    if not pre then
        local class = get(config, "tokenizer_class")
        pre = json and pretokenizers.recognise(json) or not json and pretokenizers.of_class(class)
    end
    if not pre then
        core.fail("unsupported", "%s: the tokenizer cuts text in a way that has no known name in llama.cpp; "
            .. "if you know it, give it with --pre NAME (qwen2, llama-bpe, …)", dir)
    end
    return pre
end

--- Reads a folder's tokenizer.
---
--- options: vocab_size (rows of the embedding; else as many as there are tokens), config = what
--- config.read gave, pre = name of the pre-tokenizer instead of recognising it, profile.
---@param dir string
---@param options? table
---@return table tokenizer {model, pre, tokens, types, merges, ids, add, chat_template}; token i + 1 has id i
function tokenizer.read(dir, options)
    options = options or {}
    local profile = profiles.named(options.profile)
    local json, config = read_json(dir, "tokenizer.json"), read_json(dir, "tokenizer_config.json")
    local vocab = vocabulary(dir, json)
    local pre = pre_of(dir, json, config, options.pre)
    local added = added_tokens(dir, json, config, vocab)
    local tokens, kinds = token_list(dir, vocab, added, options.vocab_size)
    local ids, add = special_tokens.read(json, config, get(options.config, "raw"), profile)
    return {
        model = "gpt2", pre = pre, tokens = tokens, types = kinds, merges = merge_list(dir, json),
        ids = ids, add = add, chat_template = chat_template(dir, config),
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

--- The metadata of a tokenizer, in the order the converter writes it.
---@param t table from tokenizer.read
---@return {key: string, type: string, value: any, elem: string?}[]
function tokenizer.metadata(t)
    local rows = {
        row("ggml.model", "string", t.model), row("ggml.pre", "string", t.pre),
        array("ggml.tokens", "string", t.tokens), array("ggml.token_type", "i32", t.types),
    }
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
    return rows
end

return tokenizer
