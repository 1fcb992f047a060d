--- Byte-level byte-pair encoding, which GGUF calls "gpt2": tokenizer.json, or vocab.json and merges.txt.
--
-- The pre-tokenizer is recognised by how it cuts (see pretokenizers.lua), and added tokens are written as they
-- are; in both, llama.cpp's converter goes through an encoder instead.

local core = require "qmoon.core"
local files = require "qmoon.files"
local pretokenizers = require "qmoon.pretokenizers"
local special_tokens = require "qmoon.special_tokens"

local get = special_tokens.get

-- llama.cpp's token types
local NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

-- ---- vocabulary ---------------------------------------------------------------------------------

local function vocabulary(folder)
    local model = get(folder.json, "model")
    if not folder.json then
        return folder.vocab
    end
    local is_bpe = type(model) == "table" and type(model.vocab) == "table" and (model.type or "BPE") == "BPE"
    return is_bpe and not get(model, "byte_fallback") and model.vocab or nil
end

--- Tokens that are matched whole, by id: {text, special, token = as the file has it, or nil}. tokenizer_config.json
--- has the last word, as in transformers, which also makes a token of every special text that is none yet.
---@param folder table {json, config, added} decoded files
---@param vocab table<string, integer>
---@return table<integer, {text: string, special: boolean, token: table?}>
local function added_tokens(folder, vocab)
    local added, id_of, last = {}, {}, -1
    local function add(id, text, special, token)
        added[id] = { text = text, special = special, token = token or (added[id] or {}).token }
        id_of[text] = id
        last = math.max(last, id)
    end
    for _, id in pairs(vocab) do
        last = math.max(last, id)
    end
    for _, token in ipairs(get(folder.json, "added_tokens") or {}) do
        add(token.id, token.content, token.special, token)
    end
    if not folder.json then
        for text, id in pairs(folder.added or {}) do
            add(id, text, false)
        end
    end
    for id, token in pairs(get(folder.config, "added_tokens_decoder") or {}) do
        add(tonumber(id), token.content, token.special, token)
    end
    for _, text in ipairs(special_tokens.texts(folder.config)) do
        add(id_of[text] or vocab[text] or last + 1, text, true)
    end
    return added
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
        if token and (token.special or special_tokens.looks_special(token.text)) then
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

--- The merges of a folder's merges.txt: "a b".
---@param dir string
---@return string[]
local function merges_txt(dir)
    local path = dir .. "/merges.txt"
    if not files.exists(path) then
        core.fail("fail", "%s: vocab.json without merges.txt", dir)
    end
    local text = files.read(path)
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

local function merge_list(folder)
    local list = get(get(folder.json, "model"), "merges")
    if not list then
        return merges_txt(folder.dir)
    end
    local merges = {}
    for i, entry in ipairs(list) do
        merges[i] = merge_of(entry)
    end
    return merges
end

-- ---- all of it -----------------------------------------------------------------------------------

local function pre_of(folder, override)
    local pre = override
    if not pre then
        local json, class = folder.json, get(folder.config, "tokenizer_class")
        pre = json and pretokenizers.recognise(json) or not json and pretokenizers.of_class(class)
    end
    if not pre then
        core.fail("unsupported", "%s: the tokenizer cuts text in a way that has no known name in llama.cpp; "
            .. "if you know it, give it with --pre NAME (qwen2, llama-bpe, …)", folder.dir)
    end
    return pre
end

--- The vocabulary of a folder that has a byte-level BPE, or nil.
---@param folder table {dir, json, config, added, vocab} decoded files
---@param size integer? rows of the embedding
---@param override string? name of the pre-tokenizer
---@return table? vocabulary {tokens, types, merges, pre}
local function read(folder, size, override)
    local vocab = vocabulary(folder)
    if not vocab then
        return nil
    end
    local pre = pre_of(folder, override)
    local tokens, types = token_list(folder.dir, vocab, added_tokens(folder, vocab), size)
    return { tokens = tokens, types = types, merges = merge_list(folder), pre = pre }
end

return { read = read, added_tokens = added_tokens, merges_txt = merges_txt }
