--- From pieces back to text: functions from a list of pieces to a list of pieces, from a tokenizer.json's decoder.
--
-- The reference puts U+FFFD where bytes are no UTF-8, and so do these; with `raw` the bytes stay as they are.
-- Source: huggingface/tokenizers, src/decoders.

local core = require "qmoon.core"
local normalizing = require "qmoon.tokenize.normalizing"
local special_tokens = require "qmoon.special_tokens"

local get = special_tokens.get

local decoding = {}

local REPLACEMENT = "\239\191\189" -- U+FFFD

local kinds = {}

-- ---- bytes -----------------------------------------------------------------------------------------

local byte_of -- character of GPT-2's alphabet -> byte; the alphabet itself is core/tokenizer/splitter.c's

local function alphabet()
    if not byte_of then
        local splitter = core.splitter { { kind = "bytes" } }
        byte_of = {}
        for b = 0, 255 do
            byte_of[splitter:cut(string.char(b), true)[1]] = string.char(b)
        end
    end
    return byte_of
end

local CHARACTER = "[%z\1-\127\194-\244][\128-\191]*"

--- The bytes that a piece of a byte-level vocabulary stands for; one with other characters stands for itself.
local function piece_bytes(piece)
    local bytes, known = {}, alphabet()
    for c in piece:gmatch(CHARACTER) do
        local b = known[c]
        if not b then
            return piece
        end
        bytes[#bytes + 1] = b
    end
    return table.concat(bytes)
end

function kinds.ByteLevel()
    local cache = {}
    return function(pieces, raw)
        local bytes = {}
        for i, piece in ipairs(pieces) do
            local b = cache[piece]
            if not b then
                b = piece_bytes(piece)
                cache[piece] = b
            end
            bytes[i] = b
        end
        local text = table.concat(bytes)
        return { raw and text or core.utf8_repair(text) }
    end
end

--- <0xE2><0x96> … is put together; a run that is no UTF-8 becomes one U+FFFD for each of its bytes.
function kinds.ByteFallback()
    return function(pieces, raw)
        local out, run = {}, {}
        local function flush()
            local text = table.concat(run)
            if not raw and core.utf8_repair(text) ~= text then
                text = REPLACEMENT:rep(#run)
            end
            out[#out + 1] = #run > 0 and text or nil
            run = {}
        end
        for _, piece in ipairs(pieces) do
            local hex = #piece == 6 and piece:match "^<0x(%x%x)>$"
            if hex then
                run[#run + 1] = string.char(tonumber(hex, 16))
            else
                flush()
                out[#out + 1] = piece
            end
        end
        flush()
        return out
    end
end

-- ---- pieces --------------------------------------------------------------------------------------

local function each(change)
    return function(pieces)
        local out = {}
        for i, piece in ipairs(pieces) do
            out[i] = change(piece, i, #pieces)
        end
        return out
    end
end

function kinds.Replace(node, what)
    return each(normalizing.replacing(node, what))
end

function kinds.Fuse()
    return function(pieces)
        return { table.concat(pieces) }
    end
end

function kinds.Strip(node)
    local content, start, stop = get(node, "content") or " ", get(node, "start") or 0, get(node, "stop") or 0
    return each(function(piece)
        local from, to = 1, #piece
        for _ = 1, start do
            if piece:sub(from, from + #content - 1) ~= content then
                break
            end
            from = from + #content
        end
        for _ = 1, stop do
            if to - #content + 1 < from or piece:sub(to - #content + 1, to) ~= content then
                break
            end
            to = to - #content
        end
        return piece:sub(from, to)
    end)
end

function kinds.Metaspace(node)
    local blank = get(node, "replacement") or "▁"
    local prepends = (get(node, "prepend_scheme") or "always"):lower() ~= "never"
    if get(node, "prepend_scheme") == nil and get(node, "add_prefix_space") == false then
        prepends = false
    end
    local quoted = blank:gsub("%W", "%%%0")
    return each(function(piece, i)
        return (piece:gsub(quoted, i == 1 and prepends and "" or " "))
    end)
end

function kinds.BPEDecoder(node)
    local suffix = (get(node, "suffix") or "</w>"):gsub("%W", "%%%0")
    return each(function(piece, i, n)
        return (piece:gsub(suffix, i == n and "" or " "))
    end)
end

function kinds.Sequence(node, what)
    local all = {}
    for i, inner in ipairs(get(node, "decoders") or {}) do
        all[i] = decoding.of_json(inner, what)
    end
    return function(pieces, raw)
        for i = 1, #all do
            pieces = all[i](pieces, raw)
        end
        return pieces
    end
end

--- A function of a tokenizer.json's decoder; without one, pieces are joined by blanks.
---@param node table?
---@param what string names the file in messages
---@return fun(pieces: string[], raw: boolean?): string[]
function decoding.of_json(node, what)
    if type(node) ~= "table" then
        return function(pieces)
            return { table.concat(pieces, " ") }
        end
    end
    local kind = kinds[get(node, "type")]
    if not kind then
        core.fail("unsupported", "%s: decoder '%s' is not known here", what, tostring(get(node, "type")))
    end
    return kind(node, what)
end

--- What BERT's time needed: blanks before marks and contractions go. transformers does it where tokenizer_config.json
--- asks for it, but not to byte-pair encodings.
---@param text string
---@return string
function decoding.clean_up(text)
    for _, pair in ipairs { { " .", "." }, { " ?", "?" }, { " !", "!" }, { " ,", "," }, { " ' ", "'" },
                            { " n't", "n't" }, { " 'm", "'m" }, { " 's", "'s" }, { " 've", "'ve" },
                            { " 're", "'re" } } do
        text = text:gsub(pair[1]:gsub("%p", "%%%0"), pair[2])
    end
    return text
end

return decoding
