-- LoRA adapters: names, options, shapes, refusals; and the numbers, on matrices worked out by hand.

local core = require "qmoon.core"
local json = require "qmoon.json"
local lora = require "qmoon.lora"
local Model = require "qmoon.model"
local write = require "qmoon.write"
local support = dofile "tests/lua/support.lua"

local same, raises = support.equal, support.raises

-- ---- making checkpoints ---------------------------------------------------------------------------------

local PREFIX = "base_model.model."

local function count(shape)
    local n = 1
    for _, d in ipairs(shape) do
        n = n * d
    end
    return n
end

--- A safetensors file of f32 tensors {name, shape, values}; without values they are 0, 1, 2 …
local function safetensors(tensors)
    local header, data, at = {}, {}, 0
    for _, t in ipairs(tensors) do
        local name, shape, values = t[1], t[2], t[3]
        if not values then
            values = {}
            for i = 1, count(shape) do
                values[i] = i - 1
            end
        end
        assert(#values == count(shape), name)
        local bytes = core.pack_array("f", values)
        header[#header + 1] = { name, json.object {
            { "dtype", "F32" }, { "shape", json.array(shape) }, { "data_offsets", { at, at + #bytes } } } }
        data[#data + 1], at = bytes, at + #bytes
    end
    local text = json.encode(json.object(header))
    text = text .. (" "):rep(-#text % 8)
    return core.pack("L", #text) .. text .. table.concat(data)
end

local function folder(files)
    local dir = support.scratch()
    core.mkdir(dir)
    for name, bytes in pairs(files) do
        support.write(dir .. "/" .. name, bytes)
    end
    return dir
end

local function adapter_folder(config, tensors)
    return folder { ["adapter_config.json"] = config, ["adapter_model.safetensors"] = safetensors(tensors) }
end

--- An adapter folder.  Options are those of adapter_config.json, over r = 2 and alpha = 4.
local function adapter(tensors, options)
    local config = { peft_type = "LORA", r = 2, lora_alpha = 4, base_model_name_or_path = "org/other-base" }
    for key, value in pairs(options or {}) do
        config[key] = value
    end
    return adapter_folder(json.encode(config), tensors)
end

--- The two factors of one module, with values or without.
local function pair(module, out, rank, inner, a, b)
    return { PREFIX .. module .. ".lora_A.weight", { rank, inner }, a },
        { PREFIX .. module .. ".lora_B.weight", { out, rank }, b }
end

local Q = "model.layers.0.self_attn.q_proj"
local LAYER = {
    { "model.embed_tokens.weight", { 10, 4 } },
    { Q .. ".weight", { 6, 4 } }, { Q .. ".bias", { 6 } },
    { "model.layers.0.mlp.up_proj.weight", { 8, 4 } },
    { "model.layers.1.self_attn.q_proj.weight", { 6, 4 } },
    { "model.norm.weight", { 4 } },
}

--- The base as a plan sees it.
local function base(tensors, config)
    local list = {}
    for i, t in ipairs(tensors or LAYER) do
        list[i] = { name = t[1], shape = t[2], dtype = t.dtype or "bf16" }
    end
    return { tensors = list, config = config or {} }
end

local function plan(tensors, options, model)
    return lora.plan(lora.open(adapter(tensors, options)), model or base())
end

local function refused(kind, text, tensors, options, model)
    return raises(kind, text, plan, tensors, options, model)
end

local function with(list, ...)
    local all = { unpack(list) }
    for _, t in ipairs { ... } do
        all[#all + 1] = t
    end
    return all
end

local function says(p, text)
    for _, n in ipairs(p.notices) do
        if n:find(text, 1, true) then
            return
        end
    end
    error("no notice says '" .. text .. "': " .. table.concat(p.notices, "; "), 2)
end

-- ---- running a merge -----------------------------------------------------------------------------------

local function open(config, tensors)
    return Model.open(folder { ["config.json"] = config, ["model.safetensors"] = safetensors(tensors) })
end

--- Merges f32 tensors and returns the values of every tensor written, and the config's text.
local function merge(tensors, config, adapter_tensors, options)
    config.model_type = config.model_type or "toy"
    local model = open(json.encode(config), tensors):merge(adapter(adapter_tensors, options))
    local out = support.scratch()
    write.run(write.plan(model, { { out, format = "f32" } }))
    local values = {}
    local h = core.safetensors(out .. "/model.safetensors")
    for _, t in ipairs(h.tensors) do
        values[t.name] = core.view(h.file, t):values(1, count(t.shape))
    end
    return values, support.read(out .. "/config.json")
end

local function same_list(got, want, what)
    assert(got, what .. " was not written")
    same(table.concat(got, " "), table.concat(want, " "), what)
end

local T = {}

-- ---- names and options ---------------------------------------------------------------------------------

T["a pair becomes one low-rank action"] = function()
    local p = plan { pair(Q, 6, 2, 4) }
    local list = p.actions[Q .. ".weight"]
    same(#list, 1)
    same(list[1].kind, "low_rank")
    same(list[1].left.tensor.name, PREFIX .. Q .. ".lora_B.weight")
    same(list[1].right.tensor.name, PREFIX .. Q .. ".lora_A.weight")
    same(list[1].left.transpose, nil)
    same(list[1].scale, 2)
    same(list[1].round_delta, nil)
    same(p.pairs, 1)
    same(p.tensors, 2)
    same(lora.memory(p), 4 * (2 * 4 + 6 * 2))
    same(p.summary, "r=2 alpha=4, 1 of 1 pairs matched")
end

T["rsLoRA divides by the root of the rank"] = function()
    local p = plan({ pair(Q, 6, 2, 4) }, { use_rslora = true })
    same(p.actions[Q .. ".weight"][1].scale, 4 / math.sqrt(2))
end

T["patterns match the end of a module's name, and the first in the file wins"] = function()
    local config = [[{"peft_type": "LORA", "r": 2, "lora_alpha": 4,
        "rank_pattern": {"layers\\.1\\..*": 3},
        "alpha_pattern": {"zz": 1, "q_proj": 6, "model.layers.0.self_attn.q_proj": 8, "roj": 5,
                          "^up_proj": 7}}]]
    local tensors = { pair(Q, 6, 2, 4) }
    tensors[3], tensors[4] = pair("model.layers.1.self_attn.q_proj", 6, 3, 4)
    tensors[5], tensors[6] = pair("model.layers.0.mlp.up_proj", 8, 2, 4)
    local p = lora.plan(lora.open(adapter_folder(config, tensors)), base())
    local scale = {}
    for _, s in ipairs(p.scales) do
        scale[s.module] = s.scale
    end
    same(scale[Q], 6 / 2, "bare name, tried before the longer one")
    same(scale["model.layers.1.self_attn.q_proj"], 6 / 3, "rank by regular expression")
    same(scale["model.layers.0.mlp.up_proj"], 4 / 2, "part of a word and an anchored name do not match")
    local swapped = config:gsub('"q_proj": 6, (.-: 8)', '%1, "q_proj": 6')
    for _, s in ipairs(lora.plan(lora.open(adapter_folder(swapped, tensors)), base()).scales) do
        same(s.scale, s.module == Q and 8 / 2 or 2, s.module)
    end
end

T["names: the adapter's name inside, no prefix, other nesting"] = function()
    local function named(form)
        return plan { { form:format "lora_A", { 2, 4 } }, { form:format "lora_B", { 6, 2 } } }
    end
    for _, form in ipairs {
        PREFIX .. Q .. ".%s.default.weight", Q .. ".%s.weight", PREFIX .. Q .. ".base_layer.%s.weight",
        PREFIX .. Q:gsub("^model%.", "") .. ".%s.weight", PREFIX .. "language_model." .. Q .. ".%s.weight",
    } do
        same(#named(form).actions[Q .. ".weight"], 1, form)
    end
    says(named(PREFIX .. "language_model." .. Q .. ".%s.weight"), "'language_model.model.' are taken for")
    refused("unsupported", "several adapters", { { PREFIX .. Q .. ".lora_A.one.weight", { 2, 4 } },
                                                 { PREFIX .. Q .. ".lora_B.two.weight", { 6, 2 } } })
end

T["options that change the algebra are refused by name"] = function()
    local tensors = { pair(Q, 6, 2, 4) }
    for option, value in pairs {
        target_parameters = { "mlp.experts.gate_up_proj" }, layer_replication = { { 0, 2 } },
        use_qalora = true, alora_invocation_tokens = { 1 }, arrow_config = { a = 1 }, use_bdlora = { a = 1 },
        velora_config = { a = 1 }, monteclora_config = { a = 1 }, kasa_config = { a = 1 },
        lora_from_the_future = 3,
    } do
        refused("unsupported", { option, "adapter_config.json" }, tensors, { [option] = value })
    end
    for _, init in ipairs { "pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "whatever" } do
        refused("unsupported", { init, "original base" }, tensors, { init_lora_weights = init })
    end
    for _, kind in ipairs { "ADALORA", "LOHA", "LOKR", "IA3", "VERA", "OFT" } do
        refused("unsupported", kind, tensors, { peft_type = kind })
    end
    refused("unsupported", "bias 'some'", tensors, { bias = "some" })
    refused("unsupported", "lora_bias", tensors, { use_dora = true, lora_bias = true })
end

T["options that switch nothing on pass"] = function()
    local p = plan({ pair(Q, 6, 2, 4) }, {
        lora_from_the_future = core.null, another = false, list = {}, text = "", use_qalora = false,
        arrow_config = core.null, loftq_config = {}, megatron_core = "megatron.core", peft_version = "0.21.0",
        init_lora_weights = "gaussian", task_type = "CAUSAL_LM", lora_dropout = 0.1, qalora_group_size = 16,
    })
    same(p.pairs, 1)
end

T["a configuration that makes no sense"] = function()
    local tensors = { pair(Q, 6, 2, 4) }
    refused("corrupt", "'r'", tensors, { r = 0 })
    refused("corrupt", "'r'", tensors, { r = 2.5 })
    refused("corrupt", "lora_alpha", tensors, { lora_alpha = "many" })
    refused("corrupt", "rank_pattern", tensors, { rank_pattern = { q_proj = "x" } })
    refused("corrupt", "peft_type", tensors, { peft_type = core.null })
    refused("corrupt", "modules_to_save", tensors, { modules_to_save = { 1 } })
    refused("corrupt", "target_modules", tensors, { target_modules = { {} } })
    refused("corrupt", "q[proj", tensors, { alpha_pattern = { ["q[proj"] = 1 } })
    refused("corrupt", { "rank 3", "[2 x 4]" }, tensors, { rank_pattern = { q_proj = 3 } })
end

T["folders that are no adapter"] = function()
    raises("fail", "no such folder", lora.open, support.scratch())
    raises("fail", "no adapter_config.json", lora.open, folder { ["x.txt"] = "" })
    local config = '{"peft_type": "LORA"}'
    raises("corrupt", { "adapter_model.bin", "torch.save" }, lora.open,
        folder { ["adapter_config.json"] = config, ["adapter_model.bin"] = "PK" })
    raises("fail", "adapter_model.safetensors", lora.open, folder { ["adapter_config.json"] = config })
    raises("corrupt", "adapter_config.json", lora.open, adapter_folder('{"r": 1, "r": 2}', {}))
    refused("corrupt", "no tensors", {})
    local outer = folder {}
    core.mkdir(outer .. "/second")
    support.write(outer .. "/second/adapter_config.json", config)
    raises("fail", outer .. "/second", lora.open, outer)
end

-- ---- every tensor has a use, and fits ------------------------------------------------------------------

T["an adapter for another model"] = function()
    local wide = { pair(Q, 6, 2, 5) }
    refused("fail", { "lora_A", "[2 x 5]", "[6 x 4]", "another model", "org/other-base" }, wide)
    refused("fail", { "lora_B", "[7 x 2]", "another model" }, { pair(Q, 7, 2, 4) })
    refused("fail", { "layers.9", "another model" }, { pair("model.layers.9.self_attn.q_proj", 6, 2, 4) })
end

T["incomplete adapters"] = function()
    local a, b = pair(Q, 6, 2, 4)
    refused("corrupt", { a[1], "lora_B" }, { a })
    refused("corrupt", { b[1], "lora_A" }, { b })
    refused("corrupt", { "ranks", "[3 x 4]", "[6 x 2]" }, { { a[1], { 3, 4 } }, b }, { r = 3 })
    refused("corrupt", "same thing", { a, b, { PREFIX .. Q .. ".lora_A.default.weight", { 2, 4 } } })
    local m = { PREFIX .. Q .. ".lora_magnitude_vector", { 6 } }
    refused("corrupt", { m[1], "use_dora" }, { a, b, m })
    refused("corrupt", "lora_magnitude_vector", { a, b }, { use_dora = true })
    refused("corrupt", m[1], { m }, { use_dora = true })
    refused("fail", { m[1], "[5]" }, { a, b, { m[1], { 5 } } }, { use_dora = true })
    local bias = { PREFIX .. Q .. ".lora_B.bias", { 6 } }
    refused("corrupt", { bias[1], "lora_bias" }, { a, b, bias })
    refused("corrupt", "lora_B.bias", { a, b }, { lora_bias = true })
end

T["tensors without a use"] = function()
    local a, b = pair(Q, 6, 2, 4)
    refused("fail", { "norm.weight", "modules_to_save" }, { a, b, { PREFIX .. "model.norm.weight", { 4 } } })
    refused("fail", { "q_proj.bias", "bias is 'none'" }, { a, b, { PREFIX .. Q .. ".bias", { 6 } } })
    refused("unsupported", "lora_diag", { a, b, { PREFIX .. Q .. ".lora_diag", { 2 } } })
    refused("fail", "no 'score.weight'", { a, b, { PREFIX .. "score.weight", { 2, 4 } } },
        { modules_to_save = { "score" } })
    refused("corrupt", "peft does not write", { a, b, { PREFIX .. Q .. ".lora_A.x.y.weight", { 1 } } })
    refused("unsupported", "convolutions", { { a[1], { 2, 4, 1, 1 } }, b })
end

T["two modules for one base tensor"] = function()
    local a, b = pair(Q, 6, 2, 4)
    local c, d = pair("language_model." .. Q, 6, 2, 4)
    refused("corrupt", { "two modules", Q .. ".weight" }, { a, b, c, d })
end

T["quantised base tensors are refused"] = function()
    local tensors = with(LAYER)
    tensors[2] = { Q .. ".weight", { 6, 4 }, dtype = "u8" }
    refused("unsupported", { Q .. ".weight", "u8" }, { pair(Q, 6, 2, 4) }, nil, base(tensors))
    tensors[1] = { "model.embed_tokens.weight", { 10, 4 }, dtype = "i8" }
    refused("unsupported", "i8", { pair("lm_head", 10, 2, 4) }, nil, base(tensors))
end

T["target modules without tensors are reported"] = function()
    says(plan({ pair(Q, 6, 2, 4) }, { target_modules = { "q_proj", "up_proj" } }), "'up_proj': 1 of 1")
    says(plan({ pair(Q, 6, 2, 4) }, { target_modules = { "q_proj" } }), "'q_proj': 1 of 2")
    local some = { target_modules = { "q_proj" }, layers_to_transform = { 0 } }
    same(#plan({ pair(Q, 6, 2, 4) }, some).notices, 0)
    says(plan({ pair(Q, 6, 2, 4) }, { base_model_name_or_path = "u/base-bnb-4bit" }), "4-bit")
end

T["trained tokens must be in the vocabulary, once each"] = function()
    local rows = { PREFIX .. "model.embed_tokens.token_adapter.trainable_tokens_delta", { 2, 4 } }
    local p = plan({ rows }, { trainable_token_indices = { 9, 3 } })
    same_list(p.actions["model.embed_tokens.weight"][1].row, { 9, 3 }, "rows")
    local function wrong(kind, text, indices)
        refused(kind, text, { rows }, { trainable_token_indices = indices })
    end
    wrong("fail", { "token index 10", "vocabulary of 10" }, { 1, 10 })
    wrong("corrupt", "token 4 twice", { 4, 4 })
    wrong("fail", "3 token indices", { 1, 2, 3 })
    wrong("corrupt", "trainable_token_indices", nil)
    wrong("corrupt", "trainable_token_indices", { lm_head = { 1, 2 } })
end

T["which updates are rounded before they are added"] = function()
    local emb = { { PREFIX .. "model.embed_tokens.lora_embedding_A", { 2, 10 } },
                  { PREFIX .. "model.embed_tokens.lora_embedding_B", { 4, 2 } } }
    local action = plan(emb).actions["model.embed_tokens.weight"][1]
    same(action.left.transpose and action.right.transpose, true)
    same(action.left.tensor.name, emb[1][1])
    assert(action.round_delta.f16 and action.round_delta.bf16, "bf16 base: both 16-bit types")
    local mica = plan({ pair(Q, 6, 2, 4) }, { init_lora_weights = "mica" }).actions[Q .. ".weight"][1]
    assert(mica.round_delta.bf16)
    local wide = with(LAYER)
    wide[1] = { "model.embed_tokens.weight", { 10, 4 }, dtype = "f32" }
    same(next(plan(emb, nil, base(wide)).actions["model.embed_tokens.weight"][1].round_delta), nil)
    local dora = with(emb, { PREFIX .. "model.embed_tokens.lora_magnitude_vector", { 4 } })
    local list = plan(dora, { use_dora = true }).actions["model.embed_tokens.weight"]
    same(list[1].round_delta, nil, "DoRA")
    same(list[2].by_column, true)
end

-- ---- the numbers ---------------------------------------------------------------------------------------

local W = { 1, 2, 3, 4, 5, 6 } -- [2 x 3]

T["W + s B A"] = function()
    local factors = { pair("a.q", 2, 1, 3, { 1, 10, 100 }, { 1, -1 }) }
    local v = merge({ { "a.q.weight", { 2, 3 }, W } }, {}, factors, { r = 1, lora_alpha = 3 })
    same_list(v["a.q.weight"], { 4, 32, 303, 1, -25, -294 }, "merged")
end

T["Conv1D weights are transposed: by shape, and by module where square"] = function()
    local zero = { 0, 0, 0, 0 }
    local tensors = { { "h.0.c_attn.weight", { 3, 2 }, W }, { "h.0.c_proj.weight", { 2, 2 }, zero } }
    local factors = with({ pair("h.0.c_attn", 2, 1, 3, { 1, 10, 100 }, { 1, -1 }) },
        pair("h.0.c_proj", 2, 1, 2, { 1, 2 }, { 1, 0 }))
    local v = merge(tensors, { model_type = "gpt2" }, factors, { r = 1, lora_alpha = 1 })
    same_list(v["h.0.c_attn.weight"], { 2, 1, 13, -6, 105, -94 }, "not square")
    same_list(v["h.0.c_proj.weight"], { 1, 0, 2, 0 }, "square")
    v = merge(tensors, { model_type = "toy" }, factors, { r = 1, lora_alpha = 1, fan_in_fan_out = true })
    same_list(v["h.0.c_proj.weight"], { 1, 2, 0, 0 }, "square, no Conv1D: peft corrects fan_in_fan_out")
end

T["DoRA gives rows their trained length"] = function()
    local m = { PREFIX .. "a.q.lora_magnitude_vector", { 2 }, { 10, 26 } }
    local factors = { pair("a.q", 2, 1, 2, { 1, 0 }, { 3, 5 }) }
    local options = { r = 1, lora_alpha = 1, use_dora = true }
    local v = merge({ { "a.q.weight", { 2, 2 }, { 0, 4, 0, 12 } } }, {}, with(factors, m), options)
    same_list(v["a.q.weight"], { 6, 8, 10, 24 }, "rows (3 4) and (5 12)")
end

T["DoRA on an embedding gives columns their length"] = function()
    local untied = { { "model.embed_tokens.weight", { 2, 2 }, { 0, 0, 4, 12 } },
                     { "lm_head.weight", { 2, 2 } } }
    local v = merge(untied, {}, {
        { PREFIX .. "model.embed_tokens.lora_embedding_A", { 1, 2 }, { 1, 0 } },
        { PREFIX .. "model.embed_tokens.lora_embedding_B", { 2, 1 }, { 3, 5 } },
        { PREFIX .. "model.embed_tokens.lora_magnitude_vector", { 2 }, { 10, 26 } },
    }, { r = 1, lora_alpha = 1, use_dora = true })
    same_list(v["model.embed_tokens.weight"], { 6, 10, 8, 24 }, "columns (3 4) and (5 12)")
    same_list(v["lm_head.weight"], { 0, 1, 2, 3 }, "head")
end

T["biases: replaced, and added to"] = function()
    local a, b = pair("a.q", 2, 1, 3, { 0, 0, 0 }, { 0, 0 })
    local model = { { "a.q.weight", { 2, 3 }, W }, { "a.q.bias", { 2 }, { 1, 2 } },
                    { "a.k.bias", { 2 }, { 5, 6 } } }
    local v = merge(model, {}, { a, b, { PREFIX .. "a.q.lora_B.bias", { 2 }, { 10, 20 } } },
        { r = 1, lora_alpha = 0.5, lora_bias = true })
    same_list(v["a.q.bias"], { 6, 12 }, "lora_bias")
    v = merge(model, {}, { a, b, { PREFIX .. "a.q.base_layer.bias", { 2 }, { 7, 8 } },
                           { PREFIX .. "a.k.bias", { 2 }, { 9, 9 } } },
        { r = 1, lora_alpha = 1, bias = "all" })
    same_list(v["a.q.bias"], { 7, 8 }, "bias of a wrapped module")
    same_list(v["a.k.bias"], { 9, 9 }, "bias of another")
    local q = "model.layers.1.self_attn.q_proj"
    refused("fail", { "lora_B.bias", "does not have" },
        with({ pair(q, 6, 2, 4) }, { PREFIX .. q .. ".lora_B.bias", { 6 } }), { lora_bias = true })
end

T["trained token rows in any order"] = function()
    local rows = { PREFIX .. "model.embed_tokens.token_adapter.trainable_tokens_delta", { 2, 2 },
                   { 7, 8, 9, 10 } }
    local v = merge({ { "model.embed_tokens.weight", { 3, 2 }, W } }, {}, { rows },
        { trainable_token_indices = { 2, 0 } })
    same_list(v["model.embed_tokens.weight"], { 9, 10, 3, 4, 7, 8 }, "rows 2 and 0")
    same(v["lm_head.weight"], nil, "trained tokens keep embeddings tied")
end

-- ---- embeddings ----------------------------------------------------------------------------------------

local E = { { "model.embed_tokens.weight", { 3, 2 }, W } }
local EMBED = {
    { PREFIX .. "model.embed_tokens.lora_embedding_A", { 1, 3 }, { 1, 0, 0 } },
    { PREFIX .. "model.embed_tokens.lora_embedding_B", { 2, 1 }, { 10, 20 } },
}
local HEAD = { pair("lm_head", 3, 1, 2, { 100, 200 }, { 0, 0, 1 }) }
local ONE = { r = 1, lora_alpha = 1 }

local function tie_of(text)
    return core.json_decode(text).tie_word_embeddings
end

T["tied embeddings part when one side is changed"] = function()
    local v, config = merge(E, { tie_word_embeddings = true }, EMBED, ONE)
    same_list(v["model.embed_tokens.weight"], { 11, 22, 3, 4, 5, 6 }, "input")
    same_list(v["lm_head.weight"], W, "head")
    same(tie_of(config), false)
    v, config = merge(E, { tie_word_embeddings = true }, HEAD, ONE)
    same_list(v["model.embed_tokens.weight"], W, "input")
    same_list(v["lm_head.weight"], { 1, 2, 3, 4, 105, 206 }, "head")
    same(tie_of(config), false)
    v, config = merge(E, {}, with(EMBED, unpack(HEAD)), ONE)
    same_list(v["model.embed_tokens.weight"], { 11, 22, 3, 4, 5, 6 }, "input")
    same_list(v["lm_head.weight"], { 1, 2, 3, 4, 105, 206 }, "head")
    same(tie_of(config), false, "the key is added")
    says(plan(EMBED, ONE, base(E)), "embeddings untied: the adapter changes the input embedding only")
    says(plan(HEAD, ONE, base(E)), "the output head only")
end

T["tied embeddings with the same update on both sides stay tied"] = function()
    local head = { pair("lm_head", 3, 1, 2, { 10, 20 }, { 1, 0, 0 }) } -- the transposes of EMBED
    local v, config = merge(E, { tie_word_embeddings = true }, with(EMBED, unpack(head)), ONE)
    same_list(v["model.embed_tokens.weight"], { 11, 22, 3, 4, 5, 6 }, "input")
    same(v["lm_head.weight"], nil)
    same(tie_of(config), true)
    same(plan(with(EMBED, unpack(head)), ONE, base(E)).pairs, 2)
    head[2][3] = { 1, 0, 1 }
    same(plan(with(EMBED, unpack(head)), ONE, base(E)).config.tie_word_embeddings, false)
end

T["modules_to_save on tied embeddings"] = function()
    local new = { 9, 8, 7, 6, 5, 4 }
    local function saved(module, values)
        return { PREFIX .. module .. ".weight", { 3, 2 }, values }
    end
    local v = merge(E, {}, { saved("lm_head", new) }, { modules_to_save = { "lm_head" } })
    same_list(v["model.embed_tokens.weight"], W, "input")
    same_list(v["lm_head.weight"], new, "head")
    local both = { saved("model.embed_tokens", new), saved("lm_head", new) }
    v = merge(E, {}, both, { modules_to_save = { "lm_head", "embed_tokens" } })
    same_list(v["model.embed_tokens.weight"], new, "input")
    same(v["lm_head.weight"], nil, "equal copies stay tied")
    v = merge(E, {}, both, { modules_to_save = { "embed_tokens" }, ensure_weight_tying = true })
    same(v["lm_head.weight"], nil, "tied on purpose")
    both[2] = saved("lm_head", W)
    v = merge(E, {}, both, { modules_to_save = { "lm_head", "embed_tokens" } })
    same_list(v["model.embed_tokens.weight"], new, "input")
    same_list(v["lm_head.weight"], W, "head")
end

T["a base saved with the adapter is the base of both sides"] = function()
    local saved = { PREFIX .. "model.embed_tokens.base_layer.weight", { 3, 2 }, { 0, 0, 0, 0, 0, 0 } }
    local v = merge(E, {}, with(EMBED, saved), ONE)
    same_list(v["model.embed_tokens.weight"], { 10, 20, 0, 0, 0, 0 }, "input")
    same_list(v["lm_head.weight"], { 0, 0, 0, 0, 0, 0 }, "head")
end

T["a resized vocabulary: the config follows, both sides must be there"] = function()
    local big = { 0, 0, 0, 0, 0, 0, 7, 8 }
    local input = { PREFIX .. "model.embed_tokens.weight", { 4, 2 }, big }
    local head = { PREFIX .. "lm_head.weight", { 4, 2 }, big }
    local v, config = merge(E, { vocab_size = 3, tie_word_embeddings = true }, { input, head })
    same_list(v["model.embed_tokens.weight"], big, "input")
    same(v["lm_head.weight"], nil)
    same(core.json_decode(config).vocab_size, 4)
    local alone = { modules_to_save = { "embed_tokens" } }
    refused("fail", { "4 in the input", "3 in the head" }, { input }, alone, base(E))
    local untied = with(E, { "lm_head.weight", { 3, 2 } })
    same(plan({ input, head }, nil, base(untied)).config.vocab_size, 4)
    refused("fail", "3 in the head", { input }, nil, base(untied))
    refused("fail", "another model", { { PREFIX .. "lm_head.weight", { 3, 5 } } }, nil, base(E))
end

T["copies that peft writes beside trained modules are left aside"] = function()
    local x = PREFIX .. "lm_head."
    local list = { { x .. "weight", { 3, 2 }, W }, { x .. "modules_to_save.weight", { 3, 2 }, W },
                   { x .. "original_module.weight", { 3, 2 } } }
    local p = plan(list, { modules_to_save = { "lm_head" } }, base(E))
    same(p.tensors, 3)
    says(p, "left aside")
    list[2][3] = { 0, 0, 0, 0, 0, 1 }
    refused("corrupt", "differ", list, { modules_to_save = { "lm_head" } }, base(E))
    refused("corrupt", "incomplete", { list[3] }, { modules_to_save = { "lm_head" } }, base(E))
end

T["two ways at once on one module"] = function()
    refused("unsupported", "two ways", with(EMBED, { PREFIX .. "model.embed_tokens.weight", { 3, 2 } }),
        { r = 1, modules_to_save = { "embed_tokens" } }, base(E))
end

T["one adapter after another"] = function()
    local model = open('{"model_type": "toy"}', E)
    local rows = { PREFIX .. "model.embed_tokens.token_adapter.trainable_tokens_delta", { 1, 2 }, { 7, 8 } }
    local tokens = adapter({ rows }, { trainable_token_indices = { 2 } })
    local out = support.scratch()
    write.run(write.plan(model:merge(tokens):merge(adapter(EMBED, ONE)), { { out, format = "f32" } }))
    local h = core.safetensors(out .. "/model.safetensors")
    local v = {}
    for _, t in ipairs(h.tensors) do
        v[t.name] = core.view(h.file, t):values(1, 6)
    end
    same_list(v["model.embed_tokens.weight"], { 11, 22, 3, 4, 7, 8 }, "input: both adapters")
    same_list(v["lm_head.weight"], { 1, 2, 3, 4, 7, 8 }, "head: tied when the first was merged")
end

return T
