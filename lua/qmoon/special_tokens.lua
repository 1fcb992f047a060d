--- Special tokens of a tokenizer: their ids, and which of them are put around every text.
--
-- The rules are those of llama.cpp's converter (gguf-py, SpecialVocab): names in tokenizer_config.json,
-- looked up in tokenizer.json, corrected by its post-processor; then the ids of config.json.

local core = require "qmoon.core"

local special_tokens = {}

special_tokens.kinds = { "bos", "eos", "unk", "sep", "pad", "cls", "mask" }

--- A field of what may be no table at all; null counts as absent.
function special_tokens.get(t, key)
    if type(t) == "table" and t[key] ~= core.null then
        return t[key]
    end
end

local get = special_tokens.get

--- A token's text: a plain string, or an object with a field content.
function special_tokens.content(entry)
    if type(entry) == "table" then
        entry = get(entry, "content")
    end
    return type(entry) == "string" and entry or nil
end

--- The texts that tokenizer_config.json calls special, in order.
---@param config table? decoded tokenizer_config.json
---@return string[]
function special_tokens.texts(config)
    local texts = {}
    for _, kind in ipairs(special_tokens.kinds) do
        texts[#texts + 1] = special_tokens.content(get(config, kind .. "_token"))
    end
    for _, key in ipairs { "additional_special_tokens", "extra_special_tokens" } do
        local names, tokens = {}, get(config, key) -- a list, or since transformers 5 also an object: name -> token
        for name in pairs(type(tokens) == "table" and tokens or {}) do
            names[#names + 1] = name
        end
        table.sort(names)
        for _, name in ipairs(names) do
            texts[#texts + 1] = special_tokens.content(config[key][name])
        end
    end
    return texts
end

local LOOKS_SPECIAL = { ["<pad>"] = true, ["<mask>"] = true, ["<2mass>"] = true, ["[@BOS@]"] = true }

--- Control tokens that their makers forgot to mark as special.
---@param text string
---@return boolean
function special_tokens.looks_special(text)
    return LOOKS_SPECIAL[text] or text:find "^<|.*|>$" ~= nil or text:find "^<｜.*｜>$" ~= nil
        or text:find "^<unused.*>$" ~= nil
end

--- Values by name, in the order they were first set.
local function ordered()
    return { names = {}, of = {} }
end

local function put(o, name, value)
    if o.of[name] == nil then
        o.names[#o.names + 1] = name
    end
    o.of[name] = value
end

local function special_id(entry)
    return type(entry) == "table" and type(entry.SpecialToken) == "table" and entry.SpecialToken.id or nil
end

local function sequence_id(entry)
    return type(entry) == "table" and type(entry.Sequence) == "table" and entry.Sequence.id or nil
end

--- A pair template "[bos] A [sep] [eos] B [eos]": whether a separator stands between the sequences; nil
--- when it has another shape.
local function separated(pair, first, last, s)
    local from, to = 1, #pair
    if first and special_id(pair[from]) == first then
        from = from + 1
    end
    if last and special_id(pair[to]) == last then
        to = to - 1
    end
    if sequence_id(pair[from]) ~= "A" or sequence_id(pair[to]) ~= "B" or to - from < 2 then
        return nil
    end
    local function separates(text)
        return text ~= nil and (text == s.text.sep or text == s.text.eos)
    end
    local one, two = special_id(pair[from + 1]), special_id(pair[to - 1])
    return separates(one) and not last or to - from == 3 and separates(two) or false
end

--- What a TemplateProcessing says: its first token is bos, its last is eos, whatever the config calls so.
local function read_template(s, processor)
    local single, pair = get(processor, "single") or {}, get(processor, "pair") or {}
    local first = #single > 1 and special_id(single[1]) or nil
    local last = #single > 1 and special_id(single[#single]) or nil
    if first then
        if s.profile.add_first then
            s.text.bos = s.text.bos or first
            s.text.cls = s.text.cls or first
        end
        put(s.add, "bos", first == s.text.bos or first == s.text.cls)
    end
    if last then
        if s.has_config and last ~= s.text.eos then
            local spare = not s.kinds.eot and "eot" or "eom" -- the name under which the old one stays known
            s.kinds[#s.kinds + 1], s.kinds[spare] = spare, true
            s.text[spare] = s.text.eos
        end
        s.text.eos = last
        put(s.add, "eos", true)
    end
    if #pair > 0 then
        local sep = separated(pair, first, last, s)
        if sep ~= nil then
            put(s.add, "sep", sep)
            s.text.sep = s.text.sep or sep and s.text.eos or nil
        end
    end
end

local function read_roberta(s, processor)
    for _, kind in ipairs { "bos", "eos", "sep" } do
        put(s.add, kind, true)
    end
    s.text.cls = s.text.cls or type(processor.cls) == "table" and processor.cls[1] or s.text.bos
    s.text.sep = s.text.sep or type(processor.sep) == "table" and processor.sep[1] or s.text.eos
end

local function read_processors(s, json)
    local processor = get(json, "post_processor")
    for _, p in ipairs(processor and (processor.processors or { processor }) or {}) do
        if p.type == "TemplateProcessing" then
            read_template(s, p)
        elseif p.type == "RobertaProcessing" then
            read_roberta(s, p)
        elseif p.type == "ByteLevel" and s.profile.add_first then
            for _, kind in ipairs { "bos", "eos" } do
                put(s.add, kind, s.add.of[kind] or false)
            end
        end
    end
end

local function id_of(json, text)
    for _, token in ipairs(get(json, "added_tokens") or {}) do
        if token.content == text then
            return token.id
        end
    end
end

--- What the files of a tokenizer say of its special tokens, in the order of discovery, which is the order
--- GGUF files have them in: by tokenizer_config.json's names first, then by config.json's ids.
---@param json table? decoded tokenizer.json
---@param config table? decoded tokenizer_config.json
---@param model_config table? decoded config.json
---@param profile table
---@param limit integer? ids from here on are none: there is no such token
---@return {names: string[], of: table<string, integer>} ids
---@return {names: string[], of: table<string, boolean>} add whether bos, eos, sep are put around a text
function special_tokens.read(json, config, model_config, profile, limit)
    local s = { profile = profile, has_config = config ~= nil, add = ordered(), ids = ordered(), text = {},
                kinds = {} }
    limit = limit or math.huge
    for i, kind in ipairs(special_tokens.kinds) do
        s.kinds[i] = kind
        s.text[kind] = special_tokens.content(get(config, kind .. "_token"))
    end
    if json then
        s.text.bos = s.text.bos or s.text.cls
        s.text.eos = s.text.eos or s.text.sep
        read_processors(s, json)
    end
    for _, kind in ipairs(config and s.kinds or {}) do
        local wanted = get(config, "add_" .. kind .. "_token")
        if type(wanted) == "boolean" and not (profile.add_first and s.add.of[kind] ~= nil) then
            put(s.add, kind, wanted)
        end
        local id = s.text[kind] and id_of(json, s.text[kind])
        if id and id < limit then
            put(s.ids, kind, id)
        end
    end
    for _, kind in ipairs(s.kinds) do
        local key = kind .. "_token_id"
        local id = get(model_config, key) or get(get(model_config, "text_config"), key)
        if type(id) == "number" and s.ids.of[kind] == nil and id < limit then
            put(s.ids, kind, id)
        end
    end
    return s.ids, s.add
end

return special_tokens
