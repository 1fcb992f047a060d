-- The tokenizer export, against what llama.cpp's converter wrote of the same files, and of small ones made here.

local core = require "qmoon.core"
local gguf = require "qmoon.gguf"
local config = require "qmoon.config"
local json = require "qmoon.json"
local pretokenizers = require "qmoon.pretokenizers"
local tokenizer = require "qmoon.tokenizer"

local TINY = "tests/fixtures/tiny-qwen2"
local LATER = "llama.cpp-0c1e570"

local function read(path)
    local f = core.infile(path)
    return f:read(0, f:size())
end

local function same(got, want, what)
    assert(got == want, ("%s: got %s, want %s"):format(what, tostring(got), tostring(want)))
end

--- Runs fn with a folder that holds the given files (text, or tables as JSON).
local function with_folder(files, fn)
    local dir = os.tmpname()
    os.remove(dir)
    core.mkdir(dir)
    for name, content in pairs(files) do
        local text = type(content) == "table" and json.encode(content) or content
        core.mkdir((dir .. "/" .. name):match "^(.*)/")
        local f = core.outfile(dir .. "/" .. name, #text)
        f:write(0, text)
        f:finish()
    end
    local ok, e = pcall(fn, dir)
    core.remove_tree(dir)
    assert(ok, e)
end

local function added(id, text, special, normalized)
    return { id = id, content = text, special = special or false, normalized = normalized or false,
        lstrip = false,
             rstrip = false, single_word = false }
end

local GPT2 = { type = "ByteLevel", add_prefix_space = false, use_regex = true }

--- A tokenizer of four letters and two merges, with changes.
local function small(changes)
    local t = {
        version = "1.0", added_tokens = { added(6, "<|end|>", true) }, pre_tokenizer = GPT2,
        model = { type = "BPE", vocab = { a = 0, b = 1, c = 2, ["Ġ"] = 3, ab = 4, ["Ġab"] = 5 },
            merges = { "a b", "Ġ ab" } },
    }
    for k, v in pairs(changes or {}) do
        t[k] = v
    end
    return t
end

local function export(files, options, check)
    with_folder(files, function(dir)
        check(tokenizer.read(dir, options or {}))
    end)
end

local function value(rows, key)
    return gguf.get(rows, "tokenizer." .. key)
end

local function refused(files, options, kind, text)
    with_folder(files, function(dir)
        local ok, e = pcall(tokenizer.read, dir, options)
        assert(not ok and e.kind == kind and tostring(e):find(text, 1, true), tostring(e))
    end)
end

local function template(first, last)
    local single = { { Sequence = { id = "A", type_id = 0 } } }
    if first then
        table.insert(single, 1, { SpecialToken = { id = first, type_id = 0 } })
    end
    if last then
        table.insert(single, { SpecialToken = { id = last, type_id = 0 } })
    end
    return { type = "TemplateProcessing", single = single, pair = json.array {} }
end

return {
    ["the tiny model's tokens, types and merges are the converter's"] = function()
        local golden = core.json_decode(read "tests/fixtures/golden/gguf-digests.json", "golden").f16.metadata
        local c = config.read(TINY)
        local rows = tokenizer.metadata(tokenizer.read(TINY, { config = c, vocab_size = 2048 }))
        for _, key in ipairs { "ggml.tokens", "ggml.token_type", "ggml.merges" } do
            same(core.sha256(json.encode(value(rows, key))), golden["tokenizer."
                .. key].value.sha256_of_json, key)
        end
        same(value(rows, "chat_template"), golden["tokenizer.chat_template"].value, "chat_template")
        same(value(rows, "ggml.pre"), "qwen2", "pre")
    end,

    ["kinds of tokens: control, what looks like it, user defined, padding"] = function()
        local t = small { added_tokens = { added(6, "<|end|>", true), added(7, "<tool>"), added(8,
            "<|fim|>"), added(9, "▁x▁"),
                                           added(10, "<pad>"), added(11, "<unused7>"), added(12, "<｜é｜>"),
                                               added(0, "a", true) } }
        export({ ["tokenizer.json"] = t }, { vocab_size = 15 }, function(tok)
            same(table.concat(tok.types, " "), "3 1 1 1 1 1 3 4 3 4 3 3 3 5 5", "types")
            same(tok.tokens[10], " x ", "▁ is a blank in user defined tokens")
            same(tok.tokens[14] .. tok.tokens[15], "[PAD13][PAD14]", "padding")
        end)
    end,

    ["tokenizer_config.json has the last word on what is special"] = function()
        local config_json = { eos_token = "<|end|>", pad_token = { content = "<tool>" },
            unk_token = "new one",
                              added_tokens_decoder = { ["7"] = added(7, "<tool>", false) } }
        export({ ["tokenizer.json"] = small(), ["tokenizer_config.json"] = config_json }, nil, function(tok)
            same(table.concat(tok.types, " "), "1 1 1 1 1 1 3 3 3", "types")
            same(tok.tokens[9], "new one", "a special text that was no token becomes one")
        end)
    end,

    ["merges as pairs, as strings, and from merges.txt are the same"] = function()
        local pairs_form = small { model = { type = "BPE", vocab = small().model.vocab, merges = { { "a",
            "b" }, { "Ġ", "ab" } } } }
        local spaced = small { model = { type = "BPE", vocab = small().model.vocab, merges = { { "a",
            " b" } } } }
        for _, t in ipairs { small(), pairs_form } do
            export({ ["tokenizer.json"] = t }, nil, function(tok)
                same(table.concat(tok.merges, "|"), "a b|Ġ ab", "merges")
            end)
        end
        export({ ["tokenizer.json"] = spaced }, nil, function(tok)
            same(tok.merges[1], "a Ġb", "a blank inside a part")
        end)
        local slow = { ["vocab.json"] = small().model.vocab,
            ["merges.txt"] = "#version: 0.2\na b\r\n\nĠ ab\n# c\n",
                       ["tokenizer_config.json"] = { tokenizer_class = "Qwen2Tokenizer",
                           eos_token = "<|end|>",
                                                     added_tokens_decoder = { ["6"] = added(6, "<|end|>",
                                                         true) } } }
        export(slow, { config = { raw = { eos_token_id = 6 } } }, function(tok)
            same(table.concat(tok.merges, "|"), "a b|Ġ ab|# c", "merges.txt")
            same(tok.pre .. tok.tokens[7] .. tok.types[7], "qwen2<|end|>3", "token")
            same(tok.ids.of.eos, 6, "without tokenizer.json ids come from config.json")
        end)
        slow["merges.txt"] = "a b\na b c\n"
        refused(slow, {}, "corrupt", "line 2")
    end,

    ["special ids come in the order they are found"] = function()
        local config_json = { eos_token = "<|end|>", pad_token = "<|end|>" }
        export({ ["tokenizer.json"] = small(), ["tokenizer_config.json"] = config_json },
            { config = { raw = { bos_token_id = 1, eos_token_id = 2, mask_token_id = { 3 } } } },
                function(tok)
                local keys = {}
                for _, r in ipairs(tokenizer.metadata(tok)) do
                    keys[#keys + 1] = r.key:match "ggml%.(.*)_token_id"
                        and r.key:match "ggml%.(.*)_token_id" .. r.value or nil
                end
                same(table.concat(keys, " "), "eos6 padding6 bos1", "ids")
            end)
    end,

    ["bos and eos around a text: what the template says, then what the config says"] = function()
        local config_json = { bos_token = "<|end|>", add_bos_token = false, add_eos_token = true }
        local files = { ["tokenizer.json"] = small { post_processor = template "<|end|>" },
            ["tokenizer_config.json"] = config_json }
        export(files, {}, function(tok)
            same(tok.add.of.bos, false, "the config wins")
            same(tok.add.of.eos, true, "eos")
        end)
        export(files, { profile = LATER }, function(tok)
            same(tok.add.of.bos, true, "later versions: the template wins")
        end)
        files["tokenizer.json"].post_processor = { type = "Sequence", processors = { { type = "ByteLevel" },
            template(nil, "<|end|>") } }
        files["tokenizer_config.json"] = { eos_token = "c" }
        export(files, {}, function(tok)
            same(tok.add.of.eos, true, "the template's last token is eos")
            same(tok.ids.of.eos, 6, "and its id")
            same(tok.add.of.bos, nil, "nothing is said of bos")
        end)
        export(files, { profile = LATER }, function(tok)
            same(tok.add.of.bos, false, "later versions: ByteLevel says no")
        end)
    end,

    ["chat templates: in the config, beside it, several"] = function()
        local base = { ["tokenizer.json"] = small(), ["tokenizer_config.json"] = { eos_token = "<|end|>" } }
        local function check(files, want)
            for k, v in pairs(base) do
                files[k] = files[k] or v
            end
            export(files, nil, function(tok)
                local rows, got = tokenizer.metadata(tok), {}
                for _, r in ipairs(rows) do
                    if r.key:find "chat_template" then
                        got[#got + 1] = r.key:sub(11) .. "=" .. (type(r.value) == "table"
                            and table.concat(r.value, ",") or r.value)
                    end
                end
                same(table.concat(got, " "), want, "templates")
            end)
        end
        check({ ["chat_template.jinja"] = "J", ["chat_template.json"] = { chat_template = "N" } },
            "chat_template=J")
        check({ ["chat_template.json"] = { chat_template = "N" } }, "chat_template=N")
        check({ ["tokenizer_config.json"] = { chat_template = "C" }, ["chat_template.jinja"] = "J" },
            "chat_template=C")
        check({ ["chat_template.jinja"] = "J", ["additional_chat_templates/rag.jinja"] = "R" },
            "chat_template.rag=R chat_templates=rag chat_template=J")
        check({ ["tokenizer_config.json"] = { chat_template = { { name = "default", template = "D" },
            { name = "tool use", template = "T" } } } },
            "chat_template.tool_use=T chat_templates=tool_use chat_template=D")
    end,

    ["an unknown way of cutting text is refused, and can be named"] = function()
        local odd = small { pre_tokenizer = { type = "Whitespace" } }
        refused({ ["tokenizer.json"] = odd }, {}, "unsupported", "--pre")
        export({ ["tokenizer.json"] = odd }, { pre = "llama-bpe" }, function(tok)
            same(tok.pre, "llama-bpe", "pre")
        end)
        refused({ ["tokenizer.json"] = small { normalizer = { type = "Lowercase" } } }, {}, "unsupported",
            "--pre")
        refused({ ["vocab.json"] = { a = 0 }, ["merges.txt"] = "" }, {}, "unsupported", "--pre")
    end,

    ["tokenizers that are none, or not of this kind, are refused"] = function()
        refused({}, {}, "fail", "no tokenizer.json")
        refused({ ["tokenizer.model"] = "x" }, {}, "unsupported", "of tokenizer.model no tokenizer")
        refused({ ["tokenizer.json"] = small { model = { type = "Unigram", vocab = {} } } }, {},
            "unsupported", "BPE")
        refused({ ["tokenizer.json"] = small() }, { vocab_size = 6 }, "corrupt", "vocab_size")
        refused({ ["tokenizer.json"] = small { model = { type = "BPE", vocab = { a = 0, b = 0 },
            merges = {} } } }, {}, "corrupt", "same id")
    end,

    ["every known way of cutting is recognised in the file it is written to"] = function()
        local names = { "qwen2", "llama-bpe", "smaug-bpe", "gpt-2", "smollm", "qwen35", "gpt-4o", "tekken",
            "deepseek-v3",
                        "deepseek-coder", "bailingmoe", "seed-coder" }
        for _, name in ipairs(names) do
            for _, step in ipairs(pretokenizers.named(name)[2]) do
                assert(step == "digits" or step == "gpt-2" or core.regex(step), name) -- PCRE2 takes it
            end
        end
        local llama = { type = "Sequence", pretokenizers = {
            { type = "Split", behavior = "Isolated", invert = false,
                pattern = { Regex = pretokenizers.named("llama-bpe")[2][1] } },
            { type = "ByteLevel", add_prefix_space = false, use_regex = false } } }
        same(pretokenizers.recognise { pre_tokenizer = llama, model = { ignore_merges = true } },
            "llama-bpe", "1")
        same(pretokenizers.recognise { pre_tokenizer = llama, model = {} }, "smaug-bpe", "2")
        llama.pretokenizers[1].behavior, llama.pretokenizers[1].invert = "Removed", true
        same(pretokenizers.recognise { pre_tokenizer = llama, model = {} }, "smaug-bpe",
            "the same thing said otherwise")
        llama.pretokenizers[1].behavior = "MergedWithNext"
        same(pretokenizers.recognise { pre_tokenizer = llama, model = {} }, nil, "another thing")
    end,

}
