-- Text to ids and back, against the ids of the packages that define the formats.

local core = require "qmoon.core"
local json = require "qmoon.json"
local jinja = require "qmoon.tokenize.jinja"
local qm = require "qmoon"

local support = dofile "tests/lua/support.lua"

local TINY = "tests/fixtures/tiny-qwen2"

local function same(got, want, what)
    assert(got == want, ("%s: got %s, want %s"):format(what, tostring(got), tostring(want)))
end

local function ids_of(t, text, options)
    return table.concat(t:encode(text, options), " ")
end

return {
    -- tokenizers 0.23.3
    ["byte-level BPE: ids of the reference, and back"] = function()
        local t = qm.tokenizer(TINY)
        local cases = {
            { "The history of the city", "465 303 430 655 306 266 276 474" },
            { "= Game =\n\nThe game was", "28 495 389 398 272 465 342 389 453" },
            { "ROMEO:\nBut soft, what light", "942 1544 46 366 1274 622 652 11 923 318 513" },
            { "", "" },
        }
        for _, case in ipairs(cases) do
            same(ids_of(t, case[1]), case[2], case[1])
            same(t:decode(t:encode(case[1])), case[1], "decoded")
        end
    end,

    -- sentencepiece 0.2.3 and transformers 5.23.0, on the first 3000 pieces of a Mixtral's
    ["SentencePiece's pieces: ids of the reference, and back"] = function()
        local t = qm.tokenizer "tests/fixtures/pieces"
        local cases = {
            { "The history of the city", "1 345 2708 648 304 268 1669" },
            { "  two blanks, naïve café 日本 😀\n\ttab",
              "1 259 844 2163 291 787 2929 314 2908 198 178 343 277 1164 198 172 2905 233 154 168 233 159 175 2905 243 162 155 "
                  .. "131 13 12 2907 349" },
            { "x = [1, 2, 3]", "1 2905 2950 363 388 2939 2929 2905 2945 2929 2905 2958 2973" },
        }
        for _, case in ipairs(cases) do
            same(ids_of(t, case[1]), case[2], case[1])
            same(t:decode(t:encode(case[1]), { skip_special = true }), case[1], "decoded")
        end
    end,

    ["special tokens in a text are tokens, or text"] = function()
        local t = qm.tokenizer(TINY)
        same(ids_of(t, "a<|im_end|>b"), "64 2047 65", "special")
        assert(#t:encode("a<|im_end|>b", { special = false }) > 3)
        same(t:decode({ 64, 2047, 65 }), "a<|im_end|>b", "decoded")
        same(t:decode({ 64, 2047, 65 }, { skip_special = true }), "ab", "skipped")
        same(t:id "<|im_end|>", 2047, "id")
        same(t:piece(2047), "<|im_end|>", "piece")
        same(t.size, 2048, "size")
        same(t.eos, 2045, "eos")
        same(table.concat(t.eos_ids, " "), "2045 2047", "<|im_end|> ends a turn of its template")
        same(t.bos, nil, "bos")
    end,

    ["a stream gives whole characters"] = function()
        local t = qm.tokenizer(TINY)
        local text = "naïve — 日本 😀!"
        local stream, parts = t:stream(), {}
        for _, id in ipairs(t:encode(text)) do
            local part = stream:push(id)
            same(core.utf8_repair(part), part, "a part is UTF-8")
            assert(not part:find "\239\191\189")
            parts[#parts + 1] = part
        end
        same(table.concat(parts) .. stream:finish(), text, "parts")
        same(stream:text(), text, "text")
    end,

    ["what is not UTF-8 becomes U+FFFD, one for each start of a character"] = function()
        -- Python 3.11: bytes.decode("utf-8", "replace")
        local R = "\239\191\189"
        same(core.utf8_repair "a\255b", "a" .. R .. "b", "ff")
        same(core.utf8_repair "\240\159\152x", R .. "x", "a start of three bytes")
        same(core.utf8_repair "\237\160\128", R .. R .. R, "a surrogate")
        same(core.utf8_repair "\224\128\128", R .. R .. R, "too long a spelling")
        same(core.utf8_repair "\244\144\128\128", R:rep(4), "beyond U+10FFFF")
        same(core.utf8_repair "\226\130", R, "at the end")
    end,

    -- transformers 5.23.0, apply_chat_template
    ["chat templates are evaluated, or refused"] = function()
        local t = qm.tokenizer(TINY)
        local text = t:chat({ { role = "system", content = "Be kind." }, { role = "user", content = "Hi" } },
            { add_generation_prompt = true })
        same(text, "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "chat")
        local ok, e = pcall(t.chat, t, {})
        assert(not ok and tostring(e):find("list of messages", 1, true), tostring(e))
        ok, e = pcall(qm.tokenizer("tests/fixtures/pieces").chat, qm.tokenizer "tests/fixtures/pieces",
            { { role = "user", content = "Hi" } })
        assert(not ok and e.kind == "unsupported" and tostring(e):find("no chat template", 1, true), tostring(e))
    end,

    -- Jinja2 3.1.6 with trim_blocks and lstrip_blocks
    ["templates: what Jinja makes of them"] = function()
        local messages = { { role = "user", content = " a " }, { role = "assistant", content = "<t>x</t>\n\nb" } }
        local cases = {
            { "{% for m in messages %}\n  {{ m.role }}\n{% endfor %}\nend\n", "  user\n  assistant\nend" },
            { "a {%- if true -%} b {%- endif %} c", "ab c" },
            { "{{ messages[-1].content.split('</t>')[-1].lstrip('\\n') }}", "b" },
            { "{{ messages[0]['content'] | trim ~ (1 + 2) }}|{{ not false and 'x' in 'axe' }}", "a3|True" },
            { "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + loop.index %}{% endfor %}{{ ns.n }}", "3" },
            { "{% set n = 0 %}{% for m in messages %}{% set n = 5 %}{% endfor %}{{ n }}", "0" },
            { "{% macro q(x, y='!') %}<{{ x }}{{ y }}>{% endmacro %}{{ q('a') }}{{ q('b', y='?') }}", "<a!><b?>" },
            { "{{ 'y' if tools is none else 'n' }}{{ undefined_thing }}{{ other is not defined }}", "yTrue" },
            { "{% for m in messages if m.role == 'user' %}{{ loop.last }}{% else %}none{% endfor %}", "True" },
            { "{{ messages | map(attribute='role') | join(', ') }} {{ messages | length }}", "user, assistant 2" },
            { "{%- set x %}cap{{ 1 }}{% endset -%}{{ x | upper }}{# gone #}", "CAP1" },
            { "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ 'ab'[::-1] }}{{ [1, 2][0] }}", "1ba1" },
            { "{% for i in range(3, 0, -1) %}{% if i == 1 %}{% break %}{% endif %}{{ i }}{% endfor %}", "32" },
            { "{{ messages[0] | tojson }}", '{"role": "user", "content": " a "}' },
            { "x {{- ' y ' -}} z", "x y z" },
        }
        for _, case in ipairs(cases) do
            local got = jinja.new(case[1], "test"):render { messages = messages, tools = core.null }
            same(got, case[2], case[1])
        end
        for _, case in ipairs { { "{{ a | frobnicate }}", "frobnicate" }, { "{% include 'x' %}", "include" }, { "{{ a", "not closed" },
                                { "{% if a %}", "lacks" }, { "{{ a.b.c }}", "undefined" }, { "{{ raise_exception('no') }}", "no" },
                                { "{{ 'a' + 1 }}", "adds" }, { "{{ 1 ! 2 }}", "!" } } do
            local ok, e = pcall(function()
                return jinja.new(case[1], "test"):render {}
            end)
            assert(not ok and type(e) ~= "string" and tostring(e):find(case[2], 1, true), case[1] .. " " .. tostring(e))
        end
    end,

    ["a GGUF file has the same tokenizer"] = function()
        local folder, file = qm.tokenizer(TINY), qm.tokenizer "tests/fixtures/golden/merged-f16.gguf"
        for _, text in ipairs { "Hello world's 123", " naïve\n\n<|im_end|>x", "日本😀" } do
            same(ids_of(file, text), ids_of(folder, text), text)
        end
        same(file.eos, 2045, "eos")
    end,

    ["qmoon tokenize"] = function()
        local function run(arguments)
            local _, out = support.run("tokenize " .. arguments)
            return out
        end
        local out = run(TINY .. " 'a<|im_end|>' --json")
        same(core.json_decode(out, "out").ids[2], 2047, "ids")
        assert(run(TINY .. " 'a<|im_end|>'"):find("special", 1, true))
        same(run(TINY .. " 'a<|im_end|>' --no-special --count"), #qm.tokenizer(TINY):encode("a<|im_end|>", { special = false }) .. "\n",
            "count")
        same(run(TINY .. " --ids 64,2047"), "a<|im_end|>\n", "ids back")
        assert(run(TINY .. " --ids 64,99999"):find("no token 99999", 1, true))
        assert(run("/nowhere x"):find("no such file", 1, true))
    end,

    ["broken tokenizer.json files are refused, and never crash"] = function()
        local whole = core.json_decode(support.read(TINY .. "/tokenizer.json"), "tokenizer.json")
        local function refused(change, kind, text)
            local dir, json_ = support.scratch(), { model = {} }
            core.mkdir(dir)
            for k, v in pairs(whole) do
                json_[k] = v
            end
            json_.model = { type = "BPE", vocab = { a = 0, b = 1, ab = 2 }, merges = { "a b" } }
            json_.added_tokens = json.array {}
            change(json_, json_.model)
            support.write(dir .. "/tokenizer.json", json.encode(json_))
            local ok, e = pcall(function()
                return qm.tokenizer(dir):encode "a b ab"
            end)
            assert(not ok and e.kind == kind and tostring(e):find(text, 1, true), tostring(e))
        end
        refused(function(_, m) m.merges = { "a c" } end, "corrupt", "not in the vocabulary")
        refused(function(_, m) m.merges = { "a b c" } end, "corrupt", "no pair")
        refused(function(_, m) m.merges = { { "a" } } end, "corrupt", "no pair")
        refused(function(_, m) m.merges = { 7 } end, "corrupt", "no pair")
        refused(function(_, m) m.vocab = { a = -1, b = 1, ab = 2 } end, "corrupt", "none")
        refused(function(_, m) m.vocab = { a = 2 ^ 40, b = 1, ab = 2 } end, "corrupt", "none")
        refused(function(_, m) m.vocab = { a = 0.5, b = 1, ab = 2 } end, "corrupt", "none")
        refused(function(_, m) m.vocab = { a = "x", b = 1, ab = 2 } end, "corrupt", "none")
        refused(function(_, m) m.vocab = 7 end, "corrupt", "no vocab")
        refused(function(_, m) m.unk_token = "z" end, "corrupt", "unk_token")
        refused(function(_, m) m.dropout = 0.5 end, "unsupported", "dropout")
        refused(function(_, m) m.type = "WordPiece" end, "unsupported", "WordPiece")
        refused(function(t) t.model = 1 end, "corrupt", "no model")
        refused(function(t) t.normalizer = { type = "Odd" } end, "unsupported", "normalizer 'Odd'")
        refused(function(t) t.pre_tokenizer = { type = "Odd" } end, "unsupported", "pre-tokenizer 'Odd'")
        refused(function(t) t.decoder = { type = "Odd" } end, "unsupported", "decoder 'Odd'")
        refused(function(t) t.post_processor = { type = "Odd" } end, "unsupported", "post-processor 'Odd'")
        refused(function(t) t.pre_tokenizer = { type = "Split", pattern = { Regex = "(" } } end, "fail", "pattern")
        refused(function(t) t.pre_tokenizer = { type = "Split", pattern = { Regex = "[a" } } end, "corrupt", "bracket")
        refused(function(t) t.normalizer = { type = "Precompiled", precompiled_charsmap = "////fw==" } end, "corrupt", "trie")
        refused(function(t)
            t.post_processor = { type = "TemplateProcessing", single = { { SpecialToken = { id = "z" } } } }
        end, "corrupt", "no id for 'z'")
    end,

    ["merges that go round in circles end"] = function()
        local dir = support.scratch()
        core.mkdir(dir)
        support.write(dir .. "/tokenizer.json", json.encode {
            model = { type = "BPE", vocab = { a = 0, aa = 1, aaa = 2, aaaa = 3 },
                      merges = { "aa aa", "aa a", "a aa", "a a", "a a", "aa aa" } } })
        same(ids_of(qm.tokenizer(dir), ("a"):rep(4001)), ("2 "):rep(1333) .. "1", "ids") -- tokenizers 0.23.3
    end,

    ["ids may be far apart"] = function()
        local dir = support.scratch()
        core.mkdir(dir)
        support.write(dir .. "/tokenizer.json", json.encode {
            model = { type = "BPE", vocab = { a = 4294967294 - 1, b = 5 }, merges = json.array {} },
            decoder = { type = "Fuse" } })
        local t = qm.tokenizer(dir)
        same(ids_of(t, "ab"), "4294967293 5", "ids")
        same(t:decode { 4294967293, 5, 7, -1, 0.5 }, "ab", "text")
    end,

    ["damaged GGUF metadata is refused"] = function()
        local reader = require "qmoon.tokenize.gguf"
        local function refused(values, text)
            local meta = {}
            for k, v in pairs(values) do
                meta[#meta + 1] = { key = "tokenizer.ggml." .. k, value = v }
            end
            local ok, e = pcall(reader.spec, meta, {}, "x.gguf")
            assert(not ok and e.message and tostring(e):find(text, 1, true), tostring(e))
        end
        refused({}, "kind 'nil'")
        refused({ model = "gpt2" }, "no tokens")
        refused({ model = "gpt2", tokens = { "a" }, token_type = {} }, "not as many types")
        refused({ model = "gpt2", tokens = { "a" }, token_type = { 1 }, pre = "odd" }, "pre-tokenizer 'odd'")
        refused({ model = "gpt2", tokens = { "a" }, token_type = { 1 }, pre = "qwen2" }, "no merges")
        refused({ model = "gpt2", tokens = { "a" }, token_type = { 1 }, pre = "qwen2", merges = { "a b" } }, "not in the vocabulary")
        refused({ model = "llama", tokens = { "a" }, token_type = { 1 } }, "no score")
        refused({ model = "llama", tokens = { "a" }, token_type = { 1 }, scores = { 0 / 0 } }, "no number")
        refused({ model = "gpt2", tokens = { "a" }, token_type = { 1 }, pre = "qwen2", merges = {}, bos_token_id = 9 }, "special token 9")
    end,

    ["long words and many special tokens take no longer than other text"] = function()
        local t, size = qm.tokenizer(TINY), 300000
        for _, unit in ipairs { "a", "ab", "=", " ", "\n", "é", "日", "1", "e\204\129", "<|im_end|>", "<|im", "\255", "A" } do
            local text = unit:rep(math.floor(size / #unit))
            local start = os.clock()
            local ids = t:encode(text)
            assert(#ids > 0 and os.clock() - start < 20, unit) -- quadratic work would take hours
        end
    end,
}
