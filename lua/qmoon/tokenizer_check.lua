--- What the files of a tokenizer must be before anybody reads them: the right kinds of values in the right places.
--
-- They come from anywhere, and are edited by hand. Fields that nobody reads may be anything.

local core = require "qmoon.core"

local check = {}

local MOST = 2 ^ 24 -- ids: larger ones are no vocabulary, but would take memory

local function fail(path, fmt, ...)
    core.fail("corrupt", "%s: %s", path, fmt:format(...))
end

local function shown(v)
    return type(v) == "table" and "a list or object" or v == core.null and "null" or tostring(v)
end

local function absent(v)
    return v == nil or v == core.null
end

local function is_object(v)
    return type(v) == "table" and v[1] == nil
end

local function check_id(path, text, id)
    if type(id) ~= "number" or id % 1 ~= 0 or id < 0 or id > MOST then
        fail(path, "token '%s' has the id %s", tostring(text), shown(id))
    end
end

--- text -> id
local function check_vocabulary(path, vocab, what)
    if not is_object(vocab) then
        fail(path, "%s is %s, not an object of tokens and their ids", what, shown(vocab))
    end
    for text, id in pairs(vocab) do
        check_id(path, text, id)
    end
end

local function check_token(path, token, id)
    if not is_object(token) or type(token.content) ~= "string" then
        fail(path, "the token with id %s has no text", shown(id))
    end
    check_id(path, token.content, tonumber(id))
end

local function check_merges(path, merges)
    for i, m in ipairs(merges) do
        local pair = type(m) == "table" and type(m[1]) == "string" and type(m[2]) == "string"
        if type(m) ~= "string" and not pair then
            fail(path, "merge %d is %s, not a pair of tokens", i, shown(m))
        end
    end
end

--- A step of the pipeline: {type = …}, or a sequence of such.
local function check_step(path, what, step, depth)
    if not is_object(step) or type(step.type) ~= "string" or depth > 8 then
        fail(path, "%s is %s, not an object with a type", what, shown(step))
    end
    for _, inner in ipairs { "normalizers", "pretokenizers", "processors", "decoders" } do
        local list = step[inner]
        if not absent(list) and type(list) ~= "table" then
            fail(path, "%s of %s is %s, not a list", inner, what, shown(list))
        end
        for _, s in ipairs(absent(list) and {} or list) do
            check_step(path, what, s, depth + 1)
        end
    end
    for _, template in ipairs { "single", "pair" } do
        if not absent(step[template]) and step.type == "TemplateProcessing" and type(step[template]) ~= "table" then
            fail(path, "'%s' of %s is %s, not a list", template, what, shown(step[template]))
        end
    end
end

--- tokenizer.json
---@param path string
---@param json any
function check.tokenizer(path, json)
    if not is_object(json) then
        fail(path, "holds %s, not an object", shown(json))
    elseif not absent(json.model) and not is_object(json.model) then
        fail(path, "model is %s, not an object", shown(json.model))
    elseif not absent(json.added_tokens) and type(json.added_tokens) ~= "table" then
        fail(path, "added_tokens is %s, not a list", shown(json.added_tokens))
    end
    for _, token in ipairs(absent(json.added_tokens) and {} or json.added_tokens) do
        check_token(path, token, type(token) == "table" and token.id)
    end
    for _, what in ipairs { "normalizer", "pre_tokenizer", "post_processor", "decoder" } do
        if not absent(json[what]) then
            check_step(path, what, json[what], 0)
        end
    end
    local model = absent(json.model) and {} or json.model
    if not absent(model.vocab) and (model.type or "BPE") == "BPE" then
        check_vocabulary(path, model.vocab, "the vocabulary")
    end
    if not absent(model.merges) then
        if type(model.merges) ~= "table" then
            fail(path, "merges is %s, not a list", shown(model.merges))
        end
        check_merges(path, model.merges)
    end
end

--- tokenizer_config.json
---@param path string
---@param config any
function check.config(path, config)
    if not is_object(config) then
        fail(path, "holds %s, not an object", shown(config))
    end
    local decoder = config.added_tokens_decoder
    if not absent(decoder) and not is_object(decoder) then
        fail(path, "added_tokens_decoder is %s, not an object", shown(decoder))
    end
    for id, token in pairs(absent(decoder) and {} or decoder) do
        check_token(path, token, id)
    end
end

--- vocab.json, added_tokens.json
---@param path string
---@param vocab any
function check.vocabulary(path, vocab)
    check_vocabulary(path, vocab, "the file")
end

return check
