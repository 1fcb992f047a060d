-- tokenize: the token ids of a text, and what they stand for.

local core = require "qmoon.core"
local cli = require "qmoon.cli"
local files = require "qmoon.files"
local json = require "qmoon.json"
local qm = require "qmoon"
local text = require "qmoon.text"

local o = cli.parse({
    name = "tokenize",
    doc = "Shows how a model's tokenizer cuts a text: the id, the piece and the text of every token.",
    arguments = { { "MODEL", doc = "model folder or .gguf file" },
                  { "TEXT", optional = true, doc = "the text; - is standard input, and so is none" } },
    options = {
        { "file", kind = "text", value = "FILE", doc = "the text of a file" },
        { "ids", kind = "list", value = "IDS", doc = "the other way round: the text of ids, separated by commas" },
        { "chat", doc = "the text is what a user says: put it into the model's chat template" },
        { "no-special", doc = "nothing around the text, and special tokens in it are text" },
        { "count", doc = "only how many tokens there are" },
        { "pre", kind = "text", value = "NAME", doc = "name of the pre-tokenizer, when the files do not say it" },
        { "json", doc = "ids and pieces, for machines" },
    },
    examples = [[
  qmoon tokenize Qwen2.5-1.5B "Hello world"
  qmoon tokenize model.gguf - --count < book.txt
  qmoon tokenize Qwen2.5-1.5B --ids 9707,1879]],
}, { ... })
if not o then
    return 0
end

local function read_text()
    if o.file then
        return files.read(o.file)
    elseif o[2] == nil or o[2] == "-" then
        return io.read "*a"
    end
    return o[2]
end

local SHORT = { ["\n"] = "\\n", ["\t"] = "\\t", ["\r"] = "\\r", ["\\"] = "\\\\", ['"'] = '\\"' }

--- Bytes in quotes: what cannot be seen is spelled out, and so are parts of characters.
local function shown(bytes)
    local hidden = core.utf8_repair(bytes) == bytes and "[%z\1-\31\127\\\"]" or "[%z\1-\31\127-\255\\\"]"
    return '"' .. bytes:gsub(hidden, function(c) return SHORT[c] or ("\\x%02x"):format(c:byte()) end) .. '"'
end

local function to_ids(list)
    local ids = {}
    for i, word in ipairs(list) do
        ids[i] = tonumber(word)
        if not ids[i] or not word:find "^%d+$" then
            core.fail("usage", "tokenize: --ids wants numbers separated by commas, not '%s'", word)
        end
    end
    return ids
end

local t = qm.tokenizer(o[1], { pre = o.pre })

if o.ids then
    local ids = to_ids(o.ids)
    for _, id in ipairs(ids) do
        if not t:piece(id) then
            core.fail("usage", "tokenize: %s has no token %d; its ids are below %d", o[1], id, t.size)
        end
    end
    local out = t:decode(ids, { skip_special = o.no_special })
    print(o.json and json.encode { schema = "qmoon-tokenize-1", ids = json.array(ids), text = out } or out)
    return 0
end

local source = read_text()
local options = { special = not o.no_special, bos = o.no_special and false or nil }
if o.chat then
    source = t:chat({ { role = "user", content = source } }, { add_generation_prompt = true })
    options.bos = false
end
local ids = t:encode(source, options)
local pieces = {}
for i, id in ipairs(ids) do
    pieces[i] = t:piece(id)
end

if o.count then
    print(("%d"):format(#ids))
elseif o.json then
    print(json.encode { schema = "qmoon-tokenize-1", model = o[1], tokens = #ids, bytes = #source,
                        ids = json.array(ids), pieces = json.array(pieces) })
else
    local rows = { { "id", "piece", "text", "" } }
    for i, id in ipairs(ids) do
        -- behind the token before it, as the first of a text may lose its blank
        local before = t:decode({ ids[i - 1] }, { raw = true })
        local own = t:decode({ ids[i - 1] or id, ids[i - 1] and id or nil }, { raw = true }):sub(#before + 1)
        rows[#rows + 1] = { ("%d"):format(id), shown(pieces[i]):sub(2, -2), shown(own),
                            t:is_special(id) and "special" or "" }
    end
    print(text.table(rows))
    print((" %d tokens of %d bytes: %.2f bytes a token"):format(#ids, #source, #source / math.max(1, #ids)))
end
