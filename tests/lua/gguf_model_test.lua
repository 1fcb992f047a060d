-- GGUF files made into model folders.

local arch = require "qmoon.arch"
local config = require "qmoon.config"
local core = require "qmoon.core"
local gguf = require "qmoon.gguf"
local gguf_model = require "qmoon.gguf_model"
local json = require "qmoon.json"
local tokenizer = require "qmoon.tokenizer"
local types = require "qmoon.gguf_types"

local TINY = "tests/fixtures/tiny-qwen2"

local function same(got, want, what)
    assert(got == want, ("%s: got %s, want %s"):format(what, tostring(got), tostring(want)))
end

local function with_folder(files, fn)
    local dir = os.tmpname()
    os.remove(dir)
    core.mkdir(dir)
    for name, text in pairs(files) do
        local f = core.outfile(dir .. "/" .. name, #text)
        f:write(0, text)
        f:finish()
    end
    local ok, e = pcall(fn, dir)
    core.remove_tree(dir)
    assert(ok, e)
end

return {
    ["a GGUF file gives back the folder it was made from"] = function()
        local a, c, tensors = arch.named "qwen2", config.read(TINY), {}
        for _, t in ipairs(core.safetensors(TINY .. "/model.safetensors").tensors) do
            tensors[#tensors + 1] = { name = arch.to_gguf(a, t.name), shape = t.shape, hf = t.name }
        end
        local plan, id = types.convert(tensors, "f16")
        local tok = tokenizer.read(TINY, { config = c, vocab_size = 2048 })
        local metadata = gguf.metadata(c, tok, { tensors = tensors, file_type = id })
        local header, _, size = gguf.header(metadata, gguf.typed(tensors, plan))
        with_folder({ ["x.gguf"] = header .. ("\0"):rep(size - #header) }, function(dir)
            local model = gguf_model.read(core.gguf(dir .. "/x.gguf"), "x.gguf")
            same(model.items[1].name, tensors[1].hf, "names")
            same(#model.items, #tensors, "tensors")
            local files = {}
            for _, f in ipairs(model.files) do
                files[f.name] = f.text
            end
            local again = config.parse(files["config.json"], "config.json")
            for _, field in ipairs { "hidden_size", "intermediate_size", "num_hidden_layers",
                "num_attention_heads", "rms_norm_eps",
                                     "num_key_value_heads", "vocab_size", "rope_theta",
                                         "tie_word_embeddings", "hidden_act",
                                     "max_position_embeddings", "bos_token_id", "eos_token_id" } do
                same(again.fields[field], c.fields[field], field)
            end
            same(again.fields.dtype, "float16", "dtype")
            assert(files["config.json"]:find('"rope_theta": 10000.0', 1, true))
            assert(files["config.json"]:find('"rms_norm_eps": 1e-06', 1, true))
            with_folder(files, function(back)
                local second = tokenizer.read(back, { config = again, vocab_size = 2048 })
                same(json.encode(second.tokens), json.encode(tok.tokens), "tokens")
                same(json.encode(second.types), json.encode(tok.types), "types")
                same(json.encode(second.merges), json.encode(tok.merges), "merges")
                same(second.pre .. second.chat_template, tok.pre .. tok.chat_template, "pre, template")
                core.remove_tree(back .. "/tokenizer.json")
                same(json.encode(tokenizer.read(back, { vocab_size = 2048 }).tokens),
                    json.encode(tok.tokens), "vocab.json")
            end)
        end)
    end,

    ["a GGUF file that is no whole model is refused"] = function()
        local function refuse(meta, tensors, text)
            local ok, e = pcall(gguf_model.read, { meta = meta, tensors = tensors }, "x.gguf")
            assert(not ok and tostring(e):find(text, 1, true), tostring(e))
        end
        local name = { key = "general.architecture", type = "string", value = "qwen2" }
        refuse({}, {}, "architecture 'nil'")
        refuse({ { key = "general.architecture", type = "string", value = "nosuch" } }, {}, "'nosuch'")
        refuse({ name }, {}, "token_embd.weight")
        local embedding = { name = "token_embd.weight", shape = { 8, 4 }, size = 64, type_name = "F16", format = "f16" }
        refuse({ name }, { embedding }, "output_norm.weight")
        refuse({ name }, { embedding, { name = "rope_freqs.weight", shape = { 4 }, size = 16,
            type_name = "F32", format = "f32" } }, "rope_freqs")
    end,
}
