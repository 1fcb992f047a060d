-- GGUF headers: metadata as the converter and llama-quantize write it, order, bytes.

local arch = require "qmoon.arch"
local card = require "qmoon.model_card"
local config = require "qmoon.config"
local core = require "qmoon.core"
local gguf = require "qmoon.gguf"
local json = require "qmoon.json"
local tokenizer = require "qmoon.tokenizer"
local types = require "qmoon.gguf_types"

local TINY = "tests/fixtures/tiny-qwen2"

local function read(path)
    local f = core.infile(path)
    return f:read(0, f:size())
end

local golden = core.json_decode(read "tests/fixtures/golden/gguf-digests.json", "gguf-digests.json")

local function same(got, want, what)
    assert(got == want, ("%s: got %s, want %s"):format(what, tostring(got), tostring(want)))
end

local function tiny_tensors()
    local a, list = arch.named "qwen2", {}
    for _, t in ipairs(core.safetensors(TINY .. "/model.safetensors").tensors) do
        list[#list + 1] = { hf = t.name, name = arch.to_gguf(a, t.name), shape = t.shape }
    end
    return gguf.converter_order(list)
end

local function tiny_metadata(options)
    local c = config.read(TINY)
    local tok = tokenizer.read(TINY, { config = c, vocab_size = c.fields.vocab_size })
    options = options or {}
    options.tensors, options.file_type = tiny_tensors(), 1
    return gguf.metadata(c, tok, options)
end

local KINDS = { STRING = "string", UINT32 = "u32", FLOAT32 = "f32", INT32 = "i32", BOOL = "bool",
    ARRAY = "array" }

local function temporary(files)
    local dir = os.tmpname()
    os.remove(dir)
    core.mkdir(dir)
    for name, text in pairs(files) do
        local f = core.outfile(dir .. "/" .. name, #text)
        f:write(0, text)
        f:finish()
    end
    return dir
end

local function parts(id, parameters)
    local p = card.name_parts(id, parameters or 0)
    return table.concat({ p.organization or "-", p.basename or "-", p.size_label or "-", p.finetune or "-",
        p.version or "-" }, " ")
end

return {
    ["the tiny model's metadata is the converter's, key by key"] = function()
        local want, got = golden.f16.metadata, {}
        for _, r in ipairs(tiny_metadata { name = "Merged Tiny" }) do
            got[r.key] = r
        end
        for key, w in pairs(want) do
            local r = assert(got[key], key)
            same(r.type, KINDS[w.type[1]], key)
            if r.type == "array" then
                same(r.elem, KINDS[w.type[2]], key)
                same(#r.value, w.value.n, key)
                same(core.sha256(json.encode(r.value)), w.value.sha256_of_json, key)
            elseif r.type == "f32" then
                same(core.pack("f", r.value), core.pack("f", w.value), key)
            else
                same(r.value, w.value, key)
            end
            got[key] = nil
        end
        -- that converter could not read transformers 5's rope_parameters
        same(got["qwen2.rope.freq_base"].value, 10000, "rope.freq_base")
        got["qwen2.rope.freq_base"] = nil
        same(next(got), nil, "nothing more")
    end,

    ["… and so is its order"] = function()
        local keys = {}
        for i, r in ipairs(tiny_metadata()) do
            keys[i] = r.key
        end
        same(table.concat(keys, " "), table.concat({
            "general.architecture", "general.type", "general.name", "general.size_label", "qwen2.block_count",
            "qwen2.context_length", "qwen2.embedding_length", "qwen2.feed_forward_length",
                "qwen2.attention.head_count",
            "qwen2.attention.head_count_kv", "qwen2.rope.freq_base", "qwen2.attention.layer_norm_rms_epsilon",
            "general.file_type", "general.quantization_version", "tokenizer.ggml.model", "tokenizer.ggml.pre",
            "tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges",
                "tokenizer.ggml.eos_token_id",
            "tokenizer.ggml.padding_token_id", "tokenizer.ggml.bos_token_id", "tokenizer.chat_template" },
                " "), "order")
    end,

    ["the tensors come in the converter's order"] = function()
        for i, t in ipairs(tiny_tensors()) do
            same(t.name, golden.f16.order[i], "tensor " .. i)
        end
        local parted = gguf.converter_order { { hf = "a", file = "2" }, { hf = "b", file = "1" },
            { hf = "a", file = "1" } }
        same(parted[1].hf .. parted[2].hf .. parted[3].file, "ab2", "by part, then by name")
    end,

    ["a header is read back as it was meant"] = function()
        local tensors = tiny_tensors()
        local plan = types.convert(tensors, "f16")
        local metadata = tiny_metadata()
        metadata[#metadata + 1] = { key = "x.flags", type = "array", elem = "bool", value = { true, false } }
        metadata[#metadata + 1] = { key = "x.u64", type = "u64", value = 2 ^ 53 - 1 }
        metadata[#metadata + 1] = { key = "x.i8", type = "i8", value = -3 }
        local header, at, size = gguf.header(metadata, gguf.typed(tensors, plan))
        local dir = temporary { ["x.gguf"] = header .. ("\0"):rep(size - #header) }
        local g = core.gguf(dir .. "/x.gguf")
        core.remove_tree(dir)
        same(#g.meta, #metadata, "pairs")
        for i, r in ipairs(g.meta) do
            local w = metadata[i]
            same(r.key .. r.type .. (r.elem or ""), w.key .. w.type .. (w.elem or ""), "pair " .. i)
            if r.type == "array" then
                same(json.encode(r.value), json.encode(w.value), r.key)
            elseif r.type ~= "f32" then
                same(r.value, w.value, r.key)
            end
        end
        for i, t in ipairs(g.tensors) do
            same(t.name, tensors[i].name, "tensor")
            same(t.type_name, plan[i].type_name, t.name)
            same(t.at, at[i], t.name)
            same(table.concat(t.shape, "x"), table.concat(tensors[i].shape, "x"), t.name)
        end
    end,

    ["bytes of a small header"] = function()
        local header, at, size = gguf.header({ { key = "a", type = "u32", value = 7 }, { key = "b",
            type = "bool", value = true } },
            { { name = "t", type = 0, shape = { 1, 2 }, size = 8 } })
        local want = "GGUF\3\0\0\0\1\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0" .. "\1\0\0\0\0\0\0\0a\4\0\0\0\7\0\0\0"
            .. "\1\0\0\0\0\0\0\0b\7\0\0\0\1" .. "\1\0\0\0\0\0\0\0t\2\0\0\0\2\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0"
                .. ("\0"):rep(12)
        same(header:sub(1, #want), want, "bytes")
        same(#header % 32, 0, "padding")
        same(at[1], #header, "data")
        same(size, #header + 32, "the last tensor is padded too")
        local trimmed = gguf.header({}, { { name = "t", type = 0, shape = { 1, 2 }, size = 8 } },
            { ggml_dims = true })
        same(trimmed:sub(34, 37), "\1\0\0\0", "ggml drops trailing ones")
    end,

    ["headers that no reader would take are refused"] = function()
        local t = { name = "t", type = 0, shape = { 2 }, size = 8 }
        assert(not pcall(gguf.header, {}, { t, t }))
        assert(not pcall(gguf.header, { { key = "a", type = "u8", value = 1 }, { key = "a", type = "u8",
            value = 1 } }, {}))
        assert(not pcall(gguf.header, {}, { { name = ("n"):rep(64), type = 0, shape = { 2 }, size = 8 } }))
        assert(not pcall(gguf.header, { { key = "a", type = "u8", value = 300 } }, {}))
        assert(not pcall(gguf.header, { { key = "a", type = "array", elem = "array", value = {} } }, {}))
        assert(not pcall(gguf.header, { { key = "a", type = "u64", value = 2 ^ 60 } }, {}))
    end,

    ["quantising keeps the metadata, with the file type at the end"] = function()
        local meta = tiny_metadata()
        table.insert(meta, 3, { key = "split.no", type = "u16", value = 0 })
        local rows = gguf.quantized_metadata(meta, 15)
        same(#rows, #meta - 1, "rows")
        same(rows[#rows - 1].key, "general.quantization_version", "before last")
        same(rows[#rows].key .. rows[#rows].value, "general.file_type15", "last")
        same(gguf.get(rows, "split.no"), nil, "split")
        local o = gguf.model_options(rows, "x.gguf")
        same(o.n_layer .. o.arch .. o.n_head .. o.n_head_kv .. o.n_expert, "4qwen2420", "options")
        assert(not pcall(gguf.model_options, {}, "x.gguf"))
    end,

    ["names are taken apart as the converter does it"] = function()
        same(parts("Qwen/Qwen2.5-1.5B-Instruct", 1.54e9), "Qwen Qwen2.5 1.5B Instruct -", "1")
        same(parts("tiny-qwen2"), "- - - - -", "2")
        same(parts("Mixtral-8x7B-Instruct-v0.1", 46.7e9), "- Mixtral 8x7B Instruct v0.1", "3")
        same(parts("bloom-7b1"), "- bloom 7.1B - -", "4")
        same(parts("Phi-3-mini-4k-instruct", 3.8e9), "- Phi-3 mini 4k-instruct -", "5")
        same(parts("Llama-3-8B-Instruct-262k", 8e9), "- Llama-3 8B Instruct-262k -", "6")
        same(parts("A sentence is no id"), "- - - - -", "7")
        same(card.title "my-model-v2 7b Qwen2.5", "My Model v2 7b Qwen2.5", "title")
        same(card.size_label(293e6) .. card.size_label(1.5e9) .. card.size_label(2921472)
            .. card.size_label(999), "293M1.5B2.9M1.0K", "size")
    end,

    ["a model card becomes general.*"] = function()
        local fields, unread = card.parse [[
---
license: apache-2.0  # a comment
license_link: "https://huggingface.co/Qwen/x/blob/main/LICENSE"
base_model:
- Qwen/Qwen2.5-1.5B
tags: [chat, 'text gen']
language:
  - en
  - "no"
pipeline_tag: text-generation
widget:
  - text: hello
name: >
  folded
---
license: not this one
]]
        same(fields.license, "apache-2.0", "license")
        same(fields.base_model[1], "Qwen/Qwen2.5-1.5B", "base_model")
        same(table.concat(fields.tags, "|"), "chat|text gen", "tags")
        same(table.concat(fields.language, "|"), "en|no", "language")
        same(fields.license_link, "https://huggingface.co/Qwen/x/blob/main/LICENSE", "link")
        assert(unread.widget and unread.name and not unread.license)
        same(next((card.parse "# no front matter")), nil, "none")
        local general, notes = card.general { card = "---\nname: |\n  x\nbase_model: Qwen/Qwen2.5-1.5B\n---\n", folder = "Qwen2.5-1.5B-Mine",
                                              parameters = 1.5e9 }
        same(general.base_model[1].repo_url, "https://huggingface.co/Qwen/Qwen2.5-1.5B", "repo")
        same(general.base_model[1].name, "Qwen2.5 1.5B", "name")
        same(general.finetune .. general.basename .. general.size_label, "MineQwen2.51.5B", "from the folder")
        same(#notes, 1, "what could not be read is said")
    end,

    ["rope scaling is written, or refused by name"] = function()
        local function rows(text)
            local c = config.parse(text, "config.json")
            c.dir = TINY
            return gguf.metadata(c, { model = "gpt2", pre = "qwen2", tokens = {}, types = {}, merges = {},
                ids = { names = {} },
                add = { names = {} } }, { tensors = {}, file_type = 1 })
        end
        local yarn = rows [[{"architectures": ["Qwen2ForCausalLM"], "max_position_embeddings": 64, "rope_scaling": {"type": "yarn", "factor": 4.0}}]]
        same(gguf.get(yarn, "qwen2.rope.scaling.type"), "yarn", "type")
        same(gguf.get(yarn, "qwen2.rope.scaling.factor"), 4, "factor")
        same(gguf.get(yarn, "qwen2.rope.scaling.original_context_length"), 64, "original")
        local ok, e = pcall(rows,
            [[{"architectures": ["Qwen2ForCausalLM"], "rope_scaling": {"type": "dynamic", "factor": 4.0}}]])
        assert(not ok and e.kind == "unsupported" and tostring(e):find "dynamic")
        ok, e = pcall(rows, [[{"architectures": ["OtherForCausalLM"]}]])
        assert(not ok and e.kind == "unsupported" and tostring(e):find "OtherForCausalLM")
    end,
}
