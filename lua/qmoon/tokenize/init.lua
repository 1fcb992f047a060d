--- Text to token ids and back: the tokenizer of a model, as the model was trained with it.
--
--   text -> UTF-8 -> | added tokens cut out | normalised | cut into words | words into pieces | -> ids
--
-- What the stages do is said by the model's files (hf.lua, pieces.lua, gguf.lua make a spec of them); the work of
-- the last two is done in core/tokenizer/. Input that is not UTF-8 becomes U+FFFD, as in Python's errors="replace".

local core = require "qmoon.core"
local chat = require "qmoon.tokenize.chat"
local decoding = require "qmoon.tokenize.decoding"
local files = require "qmoon.files"
local gguf = require "qmoon.tokenize.gguf"
local hf = require "qmoon.tokenize.hf"
local pieces = require "qmoon.tokenize.pieces"
local special_tokens = require "qmoon.special_tokens"

local get = special_tokens.get

---@class qmoon.Tokenizer
---@field bos integer?
---@field eos integer?
---@field eos_ids integer[] every id that ends a text or a turn: the tokenizer's eos, those that the
---model's configs name, and what its chat template ends turns with
---@field size integer ids are below it
---@field path string
local Tokenizer = {}
Tokenizer.__index = Tokenizer

-- ---- encoding ------------------------------------------------------------------------------------

--- Calls plain(text, from) and token(id) for what a matcher leaves and finds, in order.
local function cut_out(matcher, text, special, plain, token)
    local found = matcher and matcher:find(text, special) or {}
    local from = 1
    for i = 1, #found, 3 do
        if found[i] > from then
            plain(text:sub(from, found[i] - 1), from)
        end
        token(found[i + 2])
        from = found[i + 1]
    end
    if from <= #text then
        plain(from == 1 and text or text:sub(from), from)
    end
end

--- Appends the ids of a text without what stands around it.
local function encode_into(self, text, special, ids)
    local function token(id)
        ids[#ids + 1] = id
    end
    cut_out(self.raw, text, special, function(segment, from)
        local first = from == 1
        if self.normalize then
            segment = self.normalize(segment, first)
        end
        cut_out(self.normalized, segment, special, function(part, at)
            cut_out(self.frozen, part, special, function(rest, behind)
                self.vocabulary:encode(rest, self.splitter, first and at == 1 and behind == 1, ids)
            end, token)
        end, token)
    end, token)
end

--- The ids of a text.
---
--- options: bos = true or false, instead of what the tokenizer's post-processor does: put the first token of all
--- in front, or nothing at all around the text; special = false: tokens such as <|im_end|> in the text are text.
---@param text string
---@param options? {bos: boolean?, special: boolean?}
---@return integer[] ids from 0
function Tokenizer:encode(text, options)
    options = options or {}
    local ids = {}
    local around = options.bos == nil
    if options.bos then
        ids[1] = self.bos
            or core.fail("usage", "%s: the tokenizer has no token for the beginning of a text", self.path)
    elseif around then
        for i, id in ipairs(self.before) do
            ids[i] = id
        end
    end
    encode_into(self, core.utf8_repair(text), options.special ~= false, ids)
    for _, id in ipairs(around and self.after or {}) do
        ids[#ids + 1] = id
    end
    return ids
end

-- ---- decoding ------------------------------------------------------------------------------------

--- The piece with an id, as the vocabulary spells it ("Ġthe", "▁the", "<0x0A>"); nil when there is none.
---@param id integer
---@return string?
function Tokenizer:piece(id)
    return self.pieces[id]
end

--- The id of a piece; nil when there is none.
---@param piece string
---@return integer?
function Tokenizer:id(piece)
    return self.added_id[piece] or self.vocabulary:id(piece)
end

--- Whether an id is of a special token, which is no text.
---@param id integer
function Tokenizer:is_special(id)
    return self.special[id] == true
end

local function decode(self, ids, options)
    local list = {}
    for _, id in ipairs(ids) do
        local piece = self.decoded[id] or self.pieces[id]
        if piece and not (options.skip_special and self.special[id]) then
            list[#list + 1] = piece
        end
    end
    return table.concat(self.decode_pieces(list, options.raw))
end

--- The text of ids; those that are no token's are left out.
---
--- options: skip_special = true leaves special tokens out; raw = true leaves bytes that are no UTF-8 as they are,
--- where U+FFFD would stand.
---@param ids integer[]
---@param options? {skip_special: boolean?, raw: boolean?}
---@return string
function Tokenizer:decode(ids, options)
    local text = decode(self, ids, options or {})
    return self.clean_up and decoding.clean_up(text) or text
end

---@class qmoon.TokenStream
local Stream = {}
Stream.__index = Stream

--- A decoder that is given one id at a time.
---@param options? {skip_special: boolean?}
---@return qmoon.TokenStream
function Tokenizer:stream(options)
    return setmetatable({ tokenizer = self, options = options or {}, ids = {}, done = 0, shown = "", pending = "",
                          parts = {} }, Stream)
end

--- Whether the text of ids may still change with the next one: it ends within a character, or in a byte, as bytes
--- are taken together.
local function unfinished(self, text, last)
    if text:sub(-3) == "\239\191\189" then
        return true
    end
    local piece = self.tokenizer.pieces[last]
    return piece and #piece == 6 and piece:find "^<0x%x%x>$" ~= nil and self.tokenizer:decode { last } ~= piece
end

--- Where clean_up may reach over what comes next, the last word waits.
local function release(self, new, all)
    if not self.tokenizer.clean_up then
        return new
    end
    self.pending = self.pending .. new
    local cut = all and #self.pending or self.pending:match "^.*() " or 1
    if not all then
        cut = self.pending:sub(1, cut - 1):find " '$" and 0 or cut - 1
    end
    local ready = self.pending:sub(1, cut)
    self.pending = self.pending:sub(cut + 1)
    return decoding.clean_up(ready)
end

local function show(self, text, all)
    local new = release(self, text:sub(#self.shown + 1), all)
    self.parts[#self.parts + 1] = new
    return new
end

--- Takes an id and returns the text that is new and complete with it: "" while a character lacks bytes.
--- What :push and :finish have returned, put together, is the text of all the ids.
---@param id integer
---@return string
function Stream:push(id)
    self.ids[#self.ids + 1] = id
    local text = decode(self.tokenizer, self.ids, self.options)
    if #text <= #self.shown or unfinished(self, text, id) then
        return ""
    end
    local new = show(self, text)
    -- a few ids stay, so that what stands first in a text is not taken to be first here
    self.ids = { unpack(self.ids, self.done + 1) }
    self.done = #self.ids
    self.shown = decode(self.tokenizer, self.ids, self.options)
    return new
end

--- The text that is still waiting, as it is: call it when no more ids come.
---@return string
function Stream:finish()
    local text = decode(self.tokenizer, self.ids, self.options)
    local new = show(self, text, true)
    self.ids, self.done, self.shown = {}, 0, ""
    return new
end

--- All text so far.
---@return string
function Stream:text()
    return table.concat(self.parts)
end

-- ---- chats ---------------------------------------------------------------------------------------

--- The text of a chat by the model's own template, as transformers' apply_chat_template gives it; to be encoded with
--- bos = false, as templates write what stands at the start.
---
--- options: add_generation_prompt = true opens the turn of the assistant; variables = what the template may ask for
--- besides, such as enable_thinking.
---@param messages {role: string, content: string}[]
---@param options? {add_generation_prompt: boolean?, variables: table?}
---@return string
function Tokenizer:chat(messages, options)
    return chat.render(self, messages, options or {})
end

-- ---- opening -------------------------------------------------------------------------------------

local function read_json(dir, name)
    local path = dir .. "/" .. name
    return files.exists(path) and core.json_decode(files.read(path), path) or nil
end

--- Every id that a config names as the end: a number or a list.
local function collect_ends(list, seen, value)
    for _, id in ipairs(type(value) == "table" and value or { value }) do
        if type(id) == "number" and not seen[id] then
            seen[id] = true
            list[#list + 1] = id
        end
    end
end

--- Vocabularies that mark the start of words with ▁ are given whole texts. Where no piece has a ▁ behind anything
--- else, nothing is ever joined there: the text may be cut before every ▁, and words come again and again.
local function add_safe_cuts(spec)
    if spec.kind ~= "BPE" or spec.whole or not spec.vocab["▁"] then
        return
    end
    for piece in pairs(spec.vocab) do
        local from = 1
        while piece:sub(from, from + 2) == "▁" do
            from = from + 3
        end
        if piece:find("▁", from, true) and spec.vocabulary:id(piece) then
            return
        end
    end
    spec.steps[#spec.steps + 1] = { kind = "regex", pattern = "▁*[^▁]+|▁+", behaviour = "isolated" }
end

--- A tokenizer of its parts, which the readers of files make.
---@param spec table
---@param path string
---@return qmoon.Tokenizer
local function assemble(spec, path)
    local t = setmetatable({
        path = path, kind = spec.kind, vocabulary = spec.vocabulary, pieces = spec.pieces, normalize = spec.normalize,
        frozen = spec.frozen, decode_pieces = spec.decode, clean_up = spec.clean_up, before = spec.before,
        after = spec.after, bos = spec.bos, eos = spec.eos, eos_ids = {}, chat_template = spec.chat_template,
        token_texts = spec.token_texts, added_id = {}, decoded = {}, special = {}, size = 0,
    }, Tokenizer)
    local raw, normalized = {}, {}
    for _, token in ipairs(spec.added) do
        local list = token.normalized and spec.normalize and normalized or raw
        t.added_id[token.text] = token.id
        if list == normalized then -- found in the normalised text, and decoded to what is found there
            token.text = spec.normalize(token.text, true)
            t.decoded[token.id] = token.text
        end
        list[#list + 1] = token
        t.special[token.id] = token.special or nil
    end
    t.raw = raw[1] and core.matcher(raw)
    t.normalized = normalized[1] and core.matcher(normalized)
    add_safe_cuts(spec)
    t.splitter = spec.steps[1] and core.splitter(spec.steps) or nil
    for id in pairs(spec.pieces) do
        t.size = math.max(t.size, id + 1)
    end
    local seen = {}
    collect_ends(t.eos_ids, seen, spec.eos)
    for _, value in ipairs(spec.ends or {}) do
        collect_ends(t.eos_ids, seen, value)
    end
    return t
end

local function folder_spec(folder, pre)
    local dir = folder.dir
    if folder.json then
        return hf.of_json(folder)
    end
    folder.added = read_json(dir, "added_tokens.json")
    if files.exists(dir .. "/tokenizer.model") then
        return pieces.of_model(folder)
    end
    folder.vocab = read_json(dir, "vocab.json")
    if not folder.vocab then
        core.fail("fail", "%s: there is no tokenizer.json, tokenizer.model or vocab.json in it", dir)
    end
    return hf.of_vocab(folder, pre)
end

local function open_folder(dir, options)
    local folder = { dir = dir, json = read_json(dir, "tokenizer.json"),
                     config = read_json(dir, "tokenizer_config.json") }
    local spec = folder_spec(folder, options.pre)
    spec.clean_up = get(folder.config, "clean_up_tokenization_spaces") == true and spec.kind ~= "BPE"
    spec.ends = { get(read_json(dir, "generation_config.json"), "eos_token_id") or false,
                  get(read_json(dir, "config.json"), "eos_token_id") or false }
    spec.chat_template, spec.token_texts = chat.template_of(dir, folder.config), chat.tokens_of(folder.config)
    spec.ends[3] = chat.end_ids(spec.chat_template, spec.added)
    return assemble(spec, dir)
end

--- The tokenizer of a model: a folder, a .gguf file, a weight file in a folder, or what qm.open gave.
---@param model string|qmoon.Model
---@param options? {pre: string?} pre: how a vocabulary that does not say it cuts text (qwen2, gpt-2, …)
---@return qmoon.Tokenizer
local function open(model, options)
    local path = type(model) == "table" and model.path or model
    options = options or {}
    local stat = core.stat(path)
    if not stat then
        core.fail("fail", "%s: there is no such file or folder", path)
    elseif stat.type == "dir" then
        return open_folder(path, options)
    elseif path:find "%.gguf$" then
        local header = type(model) == "table" and model.gguf or core.gguf(path)
        return assemble(gguf.spec(header.meta, options, path), path)
    end
    return open_folder((files.split(path)), options)
end

return { open = open, Tokenizer = Tokenizer }
