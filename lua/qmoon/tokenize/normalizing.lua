--- What is done to a text before it is cut: functions from text to text, from a tokenizer.json's normalizer.
-- Source: huggingface/tokenizers, src/normalizers.

local core = require "qmoon.core"
local patterns = require "qmoon.tokenize.patterns"
local special_tokens = require "qmoon.special_tokens"

local get = special_tokens.get

local normalizing = {}

local kinds = {}

for _, form in ipairs { "NFC", "NFD", "NFKC", "NFKD" } do
    kinds[form] = function()
        return function(text)
            return core.unicode_form(text, form)
        end
    end
end

function kinds.Lowercase()
    return function(text)
        return core.unicode_form(text, "lowercase")
    end
end

function kinds.StripAccents()
    return function(text)
        return core.unicode_form(text, "without_marks")
    end
end

function kinds.Prepend(node)
    local prefix = get(node, "prepend") or ""
    return function(text)
        return text == "" and text or prefix .. text
    end
end

--- Text in which every match of a pattern, or of a plain text, is replaced.
---@param node table {pattern = {Regex =} or {String =}, content =}
---@param what string
---@return fun(text: string): string
function normalizing.replacing(node, what)
    local pattern, content = get(node, "pattern"), get(node, "content") or ""
    local regex, plain = get(pattern, "Regex"), get(pattern, "String")
    if plain and plain ~= "" then
        local quoted, by = plain:gsub("%W", "%%%0"), content:gsub("%%", "%%%%")
        return function(text)
            return (text:gsub(quoted, by))
        end
    elseif not regex then
        core.fail("corrupt", "%s: Replace has no pattern", what)
    end
    local compiled = core.regex(patterns.to_pcre(regex))
    return function(text)
        return compiled:replace(text, content)
    end
end

kinds.Replace = normalizing.replacing

--- The bytes of base64 text.
local function from_base64(text)
    local digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    local value, out, bits, n = {}, {}, 0, 0
    for i = 1, #digits do
        value[digits:byte(i)] = i - 1
    end
    for i = 1, #text do
        local v = value[text:byte(i)]
        if v then
            bits, n = bits * 64 + v, n + 6
            if n >= 8 then
                n = n - 8
                local byte = math.floor(bits / 2 ^ n)
                out[#out + 1], bits = string.char(byte), bits - byte * 2 ^ n
            end
        end
    end
    return table.concat(out)
end

function kinds.Precompiled(node)
    local map = core.charsmap(from_base64(get(node, "precompiled_charsmap") or ""))
    return function(text)
        return map:graphemes(text)
    end
end

function kinds.Strip(node, what)
    local function cut(pattern, wanted)
        if wanted == false then
            return function(text) return text end
        end
        return normalizing.replacing({ pattern = { Regex = pattern }, content = "" }, what)
    end
    local left, right = cut([[\A\s+]], get(node, "strip_left")), cut([[\s+\z]], get(node, "strip_right"))
    return function(text)
        return right(left(text))
    end
end

function kinds.Sequence(node, what)
    local all = {}
    for i, inner in ipairs(get(node, "normalizers") or {}) do
        all[i] = normalizing.of_json(inner, what)
    end
    return function(text)
        for i = 1, #all do
            text = all[i](text)
        end
        return text
    end
end

--- A function of a tokenizer.json's normalizer; nil when it has none.
---@param node table?
---@param what string names the file in messages
---@return (fun(text: string): string)?
function normalizing.of_json(node, what)
    if type(node) ~= "table" then
        return nil
    end
    local kind = kinds[get(node, "type")]
    if not kind then
        core.fail("unsupported", "%s: normalizer '%s' is not known here", what, tostring(get(node, "type")))
    end
    return kind(node, what)
end

return normalizing
