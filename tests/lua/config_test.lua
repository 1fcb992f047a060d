-- config.json: one set of fields for two styles, and edits that leave the rest of the text alone.

local core = require "qmoon.core"
local config = require "qmoon.config"
local arch = require "qmoon.arch"

local function parse(text)
    return config.parse(text, "config.json").fields
end

local function same(got, want)
    assert(got == want, ("got %s\nwant %s"):format(got, want))
end

local FOUR = [[{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "torch_dtype": "bfloat16", "rope_theta": 1000000.0,
    "hidden_size": 256, "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}}]]
local FIVE = [[{"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "dtype": "bfloat16", "hidden_size": 256,
    "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "rope_theta": 1000000.0}}]]

return {
    ["both styles give the same fields"] = function()
        for _, text in ipairs { FOUR, FIVE } do
            local f = parse(text)
            assert(f.dtype == "bfloat16" and f.rope_theta == 1e6 and f.hidden_size == 256)
            assert(f.rope_scaling.rope_type == "yarn" and f.rope_scaling.factor == 4)
            assert(f.rope_scaling.original_max_position_embeddings == 512)
            assert(f.torch_dtype == nil and f.rope_parameters == nil and f.rope_scaling.rope_theta == nil)
        end
    end,

    ["what is left out is as transformers has it, and null is not left out"] = function()
        local f = parse [[{"architectures": ["Qwen2ForCausalLM"], "num_attention_heads": 14, "rope_scaling": null}]]
        assert(f.num_key_value_heads == 32 and f.rope_theta == 10000 and f.rms_norm_eps == 1e-6)
        assert(f.tie_word_embeddings == false and f.max_position_embeddings == 32768
            and f.rope_scaling == nil)
        f = parse [[{"architectures": ["Qwen2ForCausalLM"], "num_attention_heads": 14, "num_key_value_heads": null}]]
        assert(f.num_key_value_heads == 14)
        f = parse [[{"architectures": ["Qwen2ForCausalLM"], "rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}]]
        assert(f.rope_scaling == nil and f.rope_theta == 5)
    end,

    ["the folder of the tiny model"] = function()
        local c = config.read "tests/fixtures/tiny-qwen2"
        assert(c.arch == arch.named "qwen2" and c.dir == "tests/fixtures/tiny-qwen2")
        assert(c.fields.num_hidden_layers == 4 and c.fields.dtype == "bfloat16"
            and c.fields.tie_word_embeddings == true)
        assert(c.fields.rope_theta == 10000 and c.fields.rope_scaling == nil)
    end,

    ["an unknown architecture has no table, and fields all the same"] = function()
        local c = config.parse([[{"architectures": ["NoSuchModel"], "model_type": "qwen2", "hidden_size": 8}]], "x")
        assert(c.arch == nil and c.fields.hidden_size == 8)
        assert(config.parse([[{"model_type": "qwen2"}]], "x").arch.name == "qwen2")
    end,

    ["a folder without config.json, and text that is no object, are errors"] = function()
        local ok, e = pcall(config.read, "tests/fixtures")
        assert(not ok and tostring(e):find "no config.json")
        assert(not pcall(config.parse, "[1]", "x") and not pcall(config.parse, "{", "x"))
    end,

    ["an edit changes its own key and nothing else"] = function()
        local text = '{\n  "eps": 1e-06,\n  "theta": 10000.0,\n  "s": "a\\"}b\\\\",\n  "deep": {"theta": [1, {"eps": 2}]}\n}\n'
        same(config.edit(text, { { "theta", "5.0" } }), (text:gsub("10000%.0", "5.0")))
        same(config.edit(text, { { "eps" } }), (text:gsub('"eps": 1e%-06,\n  ', "", 1)))
        same(config.edit(text, { { "s" } }), (text:gsub(',\n  "s": "a\\"}b\\\\"', "", 1)))
        same(config.edit(text, { { "deep" } }), (text:gsub(',\n  "deep".-\n}', "\n}", 1)))
        same(config.edit(text, { { "none" } }), text)
        same(config.edit(text, { { "new", '{\n  "x": 1\n}' } }),
            (text:gsub("\n}\n$", ',\n  "new": {\n    "x": 1\n  }\n}\n')))
        same(config.edit(text, { { "deep", "[\n  1\n]" } }), (text:gsub('"deep": .-\n}',
            '"deep": [\n    1\n  ]\n}')))
    end,

    ["edits of short and empty objects"] = function()
        same(config.edit("{}", { { "a", "1" } }), '{\n  "a": 1\n}')
        same(config.edit('{"a":1}', { { "a" } }), "{}")
        same(config.edit('{"a":1}', { { "b", '"x"' } }), '{"a":1,"b": "x"}')
        same(config.edit('{ "a" : [ ] , "b":null }', { { "a" }, { "b", "true" } }), '{ "b":true }')
        same(config.edit('{"ab": 1}', { { "ab", "2" } }), '{"ab": 2}')
        same(config.edit('{"\\u0061": 1}', { { "a", "2" } }),
            '{"\\u0061": 2}') -- a key is what it says, however written
    end,

    ["an edited config is still JSON, whatever is removed"] = function()
        local text = config.read("tests/fixtures/tiny-qwen2").text
        for key in pairs(core.json_decode(text, "config.json")) do
            local less = core.json_decode(config.edit(text, { { key } }), "edited")
            assert(less[key] == nil)
            local more = core.json_decode(config.edit(text, { { key, "[1, {}]" }, { "z" .. key, '"%1"' } }),
                "edited")
            assert(more[key][1] == 1 and more["z" .. key] == "%1")
        end
    end,

    ["names go to GGUF and back"] = function()
        local a = arch.named "qwen2"
        local name, row, layer = arch.to_gguf(a, "model.layers.12.self_attn.q_proj.bias")
        assert(name == "blk.12.attn_q.bias" and row.role == "bias" and layer == 12)
        assert(arch.to_hf(a, name) == "model.layers.12.self_attn.q_proj.bias")
        assert(arch.to_gguf(a, "lm_head.weight") == "output.weight")
        assert(arch.to_gguf(a, "model.layers.0.self_attn.o_proj.bias") == nil)
        assert(arch.to_gguf(a, "model.layers.x.mlp.up_proj.weight") == nil)
        assert(arch.role(a, "model.norm.weight") == "norm")
        assert(arch.role(a, "model.embed_tokens.weight") == "embedding")
        local names = arch.required(a, { num_hidden_layers = 2, tie_word_embeddings = true })
        assert(#names == 2 + 2 * 12 and #arch.required(a, { num_hidden_layers = 2 }) == 3 + 2 * 12)
        for _, hf in ipairs(names) do
            assert(arch.to_hf(a, (arch.to_gguf(a, hf))) == hf)
        end
    end,
}
