-- Architectures: what becomes of a checkpoint's tensors in GGUF, and back; vocabularies; tables from scripts.
-- Whole files are compared with llama.cpp's in tests/peers/architectures.py.

local arch = require "qmoon.arch"
local config = require "qmoon.config"
local core = require "qmoon.core"
local gguf = require "qmoon.gguf"
local json = require "qmoon.json"
local protobuf = require "qmoon.protobuf"
local qm = require "qmoon"
local rope = require "qmoon.rope"
local safetensors = require "qmoon.output.safetensors"
local sentencepiece = require "qmoon.sentencepiece"
local synth = require "qmoon.synth"
local tokenizer = require "qmoon.tokenizer"
local support = dofile "tests/lua/support.lua"
local ffi = require "ffi"

local same, raises = support.equal, support.raises

local PIECES = "tests/fixtures/pieces"
local golden = core.json_decode(support.read "tests/fixtures/golden/mixtral-gguf.json", "mixtral-gguf.json")

-- ---- making and reading models ---------------------------------------------------------------------

local made = {}

--- The folder of a small model with random weights; made once.
local function model(name)
    if not made[name] then
        made[name] = support.scratch()
        synth.model(synth.sizes[name].tiny, made[name], { seed = 7 })
    end
    return made[name]
end

--- {name = {shape, bytes, dtype}} of a folder's one weight file, or of a GGUF file.
local function tensors_of(path)
    local h = path:find "%.gguf$" and core.gguf(path) or core.safetensors(path .. "/model.safetensors")
    local file, t = h.file, {}
    for _, x in ipairs(h.tensors) do
        t[x.name] = { shape = x.shape, bytes = file:read(x.at, x.size), type = x.type_name or x.dtype }
    end
    return t, h.meta
end

--- A copy of a small model with other tensors: change(tensors) edits {name = {shape, bytes, type}}.
local function changed(name, change, edits)
    local dir = support.copy(model(name))
    local tensors, list = tensors_of(dir), {}
    change(tensors)
    for tensor_name, t in pairs(tensors) do
        list[#list + 1] = { name = tensor_name, dtype = t.type, shape = t.shape, size = #t.bytes, bytes = t.bytes }
    end
    table.sort(list, function(a, b) return a.name < b.name end)
    local header = safetensors.layout(list)
    table.sort(list, function(a, b) return a.at < b.at end)
    local parts = { header }
    for _, t in ipairs(list) do
        parts[#parts + 1] = t.bytes
    end
    support.write(dir .. "/model.safetensors", table.concat(parts))
    if edits then
        support.write(dir .. "/config.json", config.edit(support.read(dir .. "/config.json"), edits))
    end
    return dir
end

local function to_gguf(dir, format, options)
    local path = support.scratch() .. ".gguf"
    local spec = { path, format = format or "f32" }
    for key, value in pairs(options or {}) do
        spec[key] = value
    end
    qm.write(qm.open(dir), { spec })
    return path
end

local function bf16_values(bytes)
    local n = #bytes / 2
    local halves, values, cell = ffi.new("uint16_t[?]", n), ffi.new("float[?]", n), ffi.new "uint32_t[1]"
    ffi.copy(halves, bytes, #bytes)
    for i = 0, n - 1 do
        cell[0] = bit.lshift(halves[i], 16)
        ffi.copy(values + i, cell, 4)
    end
    return ffi.string(values, 4 * n)
end

local function f32_list(bytes)
    local values, list = ffi.new("float[?]", #bytes / 4), {}
    ffi.copy(values, bytes, #bytes)
    for i = 1, #bytes / 4 do
        list[i] = tonumber(values[i - 1])
    end
    return list
end

--- Rows of f32 bytes, cut.
local function rows_of(bytes, cols)
    local rows = {}
    for at = 1, #bytes, 4 * cols do
        rows[#rows + 1] = bytes:sub(at, at + 4 * cols - 1)
    end
    return rows
end

--- llama.cpp's order of a head's rows, written as its converter does: [2, half] turned round to [half, 2].
local function interleaved(bytes, cols, heads)
    local rows, out = rows_of(bytes, cols), {}
    local half = #rows / heads / 2
    for head = 0, heads - 1 do
        for i = 0, half - 1 do
            for j = 0, 1 do
                out[head * 2 * half + 2 * i + j + 1] = rows[head * 2 * half + j * half + i + 1]
            end
        end
    end
    return table.concat(out)
end

local function sorted_names(t)
    local names = {}
    for name in pairs(t) do
        names[#names + 1] = name
    end
    table.sort(names)
    return table.concat(names, " ")
end

local NAMES = { "gemma", "gemma2", "gemma3", "llama", "mistral", "mixtral", "phi3", "qwen2", "qwen2moe", "qwen3", "qwen3moe" }

-- ---- tests -------------------------------------------------------------------------------------------

local T = {}

T["ls lua/qmoon/arch is the list of architectures, and each writes all its tensors and nothing else"] = function()
    same(#arch.list(), #NAMES, "tables")
    for _, name in ipairs(NAMES) do
        local c = config.read(model(name))
        same(c.arch, require("qmoon.arch." .. name), name)
        local want = {}
        for _, hf in ipairs(arch.required(c.arch, c.fields)) do
            want[(arch.to_gguf(c.arch, hf))] = true
        end
        if c.fields.rope_scaling and c.fields.rope_scaling.rope_type == "llama3" then
            want["rope_freqs.weight"] = true
        end
        local got, meta = tensors_of(to_gguf(model(name)))
        same(sorted_names(got), sorted_names(want), name)
        same(gguf.get(meta, "general.architecture"), c.arch.name, name)
        for tensor_name, t in pairs(got) do
            assert(t.bytes:find "[^%z]", name .. ": " .. tensor_name .. " is empty")
        end
    end
end

T["rows of queries and keys are interleaved for llama, in weights and biases, and nowhere else"] = function()
    for _, name in ipairs { "llama", "mistral", "mixtral", "qwen3" } do
        local dir = name ~= "llama" and model(name) or changed("llama", function(t)
            local q = t["model.layers.0.self_attn.q_proj.weight"]
            local k = t["model.layers.0.self_attn.k_proj.weight"]
            t["model.layers.0.self_attn.q_proj.bias"] = { shape = { 64 }, type = "bf16", bytes = q.bytes:sub(1, 128) }
            t["model.layers.0.self_attn.k_proj.bias"] = { shape = { 32 }, type = "bf16", bytes = k.bytes:sub(1, 64) }
        end)
        local before, after = tensors_of(dir), tensors_of(to_gguf(dir))
        local heads = { attn_q = 4, attn_k = 2 }
        for hf, t in pairs(before) do
            local tensor = arch.to_gguf(require("qmoon.arch." .. name), hf)
            if not tensor:find "_exps" then
                local n = name ~= "qwen3" and heads[tensor:match "%.(attn_[qk])%."]
                local want = bf16_values(t.bytes)
                want = n and interleaved(want, #t.shape > 1 and t.shape[2] or 1, n) or want
                assert(after[tensor].bytes == want, name .. ": " .. hf)
            end
        end
    end
end

T["interleaving whole blocks of a quantised type is quantising interleaved rows"] = function()
    local f32, q8 = to_gguf(model "llama", "f32"), to_gguf(model "llama", "q8_0")
    local again = support.scratch() .. ".gguf"
    qm.write(qm.open(f32), { { again, format = "q8_0" } })
    local a, b = tensors_of(q8), tensors_of(again)
    for name, t in pairs(a) do
        assert(b[name].bytes == t.bytes, name)
    end
end

T["experts are stacked in order, whether they come one by one or as stacks"] = function()
    local forms = { mixtral = { "block_sparse_moe.experts.%d.w%s", { gate = 1, down = 2, up = 3 } },
                    qwen3moe = { "mlp.experts.%d.%s_proj", { gate = "gate", down = "down", up = "up" } } }
    for name, form in pairs(forms) do
        local before = tensors_of(model(name))
        local function stack(layer, what)
            local parts = {}
            for expert = 0, 3 do
                local hf = ("model.layers.%d." .. form[1] .. ".weight"):format(layer, expert, form[2][what])
                parts[expert + 1] = assert(before[hf], hf)
            end
            return parts
        end
        local after = tensors_of(to_gguf(model(name)))
        for layer = 0, 1 do
            for what in pairs(form[2]) do
                local t, want = after[("blk.%d.ffn_%s_exps.weight"):format(layer, what)], {}
                for i, part in ipairs(stack(layer, what)) do
                    want[i] = bf16_values(part.bytes)
                end
                assert(t.bytes == table.concat(want), name .. " " .. what)
                same(#t.shape .. t.shape[1], "34", "shape")
            end
        end
        local fused = changed(name, function(t)
            for layer = 0, 1 do
                local gate, up, down = stack(layer, "gate"), stack(layer, "up"), stack(layer, "down")
                local both, downs = {}, {}
                for i = 1, 4 do
                    both[i], downs[i] = gate[i].bytes .. up[i].bytes, down[i].bytes
                end
                local function put(what, rows, cols, bytes)
                    t[("model.layers.%d.mlp.experts.%s"):format(layer, what)] =
                        { shape = { 4, rows, cols }, type = "bf16", bytes = table.concat(bytes) }
                end
                put("gate_up_proj", 2 * gate[1].shape[1], gate[1].shape[2], both)
                put("down_proj", down[1].shape[1], down[1].shape[2], downs)
                for hf in pairs(before) do
                    if hf:find("layers." .. layer .. ".", 1, true) and hf:find "experts%.%d+" then
                        t[hf] = nil
                    end
                end
                local router = t[("model.layers.%d.block_sparse_moe.gate.weight"):format(layer)]
                if router then -- transformers 5 has another name for it
                    t[("model.layers.%d.block_sparse_moe.gate.weight"):format(layer)] = nil
                    t[("model.layers.%d.mlp.gate.weight"):format(layer)] = router
                end
            end
        end)
        for _, format in ipairs { "f32", "q4_0" } do
            local one, other = tensors_of(to_gguf(model(name), format)), tensors_of(to_gguf(fused, format))
            for tensor_name, t in pairs(one) do
                assert(other[tensor_name].bytes == t.bytes, name .. " " .. format .. " " .. tensor_name)
            end
        end
    end
end

T["an expert too many, too few, or of another size is an error that names it"] = function()
    local hf = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    raises("corrupt", { hf, "missing" }, to_gguf, changed("mixtral", function(t) t[hf] = nil end))
    raises("corrupt", { "experts.4.w2", "4 experts" }, to_gguf, changed("mixtral", function(t)
        t["model.layers.1.block_sparse_moe.experts.4.w2.weight"] = t[hf]
    end))
    raises("corrupt", hf, to_gguf, changed("mixtral", function(t)
        t[hf] = { shape = { 32, 320 }, type = "bf16", bytes = t[hf].bytes }
    end))
end

T["gemma's norms get one added, as 32-bit floats, and as halves where the checkpoint has halves"] = function()
    local before, after = tensors_of(model "gemma"), tensors_of(to_gguf(model "gemma"))
    local norm = f32_list(bf16_values(before["model.layers.1.input_layernorm.weight"].bytes))
    local got = after["blk.1.attn_norm.weight"]
    local cell = ffi.new "float[1]"
    for i, x in ipairs(f32_list(got.bytes)) do
        cell[0] = norm[i] + 1
        same(x, tonumber(cell[0]), "norm " .. i)
    end
    assert(after["blk.1.attn_q.weight"].bytes == bf16_values(before["model.layers.1.self_attn.q_proj.weight"].bytes))
    local halves = support.scratch()
    qm.write(qm.open(model "gemma"), { { halves, format = "f16" } })
    for _, x in ipairs(f32_list(tensors_of(to_gguf(halves))["blk.1.attn_norm.weight"].bytes)) do
        same(x * 2048, math.floor(x * 2048), "a half between 0.5 and 2")
    end
end

T["gemma's head is left out, unless it is not the embedding"] = function()
    local function with_head(t)
        t["lm_head.weight"] = t["model.embed_tokens.weight"]
    end
    local path = support.scratch() .. ".gguf"
    local plan = qm.plan(qm.open(changed("gemma", with_head)), { { path, format = "f16" } })
    assert(plan.outputs[1].notices[1]:find("lm_head.weight", 1, true), "it is said")
    same(tensors_of(to_gguf(changed("gemma", with_head)))["output.weight"], nil, "output")
    raises("unsupported", { "lm_head.weight", "tie_word_embeddings" }, to_gguf,
        changed("gemma2", with_head, { { "tie_word_embeddings", "false" } }))
end

T["Gemma 3: rows beyond the vocabulary, the model around it, its own way to turn"] = function()
    local more = changed("gemma3", function(t)
        local e = t["model.embed_tokens.weight"]
        t["model.embed_tokens.weight"] = { shape = { 602, 64 }, type = "bf16", bytes = e.bytes .. e.bytes:sub(1, 256) }
    end)
    local a, b = tensors_of(to_gguf(model "gemma3", "q8_0")), tensors_of(to_gguf(more, "q8_0"))
    assert(a["token_embd.weight"].bytes == b["token_embd.weight"].bytes, "trimmed")
    local around = changed("gemma3", function(t)
        local names = {}
        for name in pairs(t) do
            names[#names + 1] = name
        end
        for _, name in ipairs(names) do
            t[name:gsub("^model%.", "model.language_model.")], t[name] = t[name], nil
        end
        t["model.vision_tower.x.weight"] = { shape = { 2 }, type = "bf16", bytes = "\0\0\0\0" }
    end)
    local c = tensors_of(to_gguf(around, "q8_0"))
    for name, t in pairs(a) do
        assert(c[name].bytes == t.bytes, name)
    end
    local _, old = tensors_of(to_gguf(model "gemma3"))
    local _, new = tensors_of(to_gguf(model "gemma3", "f32", { profile = "llama.cpp-0c1e570" }))
    same(gguf.get(old, "gemma3.rope.freq_base"), 1e6, "theta")
    same(gguf.get(old, "gemma3.rope.freq_base_swa"), nil, "only later")
    same(gguf.get(new, "gemma3.rope.freq_base_swa"), 10000, "local theta")
end

-- SHA-256 of torch 2.15's tensors
T["factors of Llama 3's rope scaling are torch's, bit for bit"] = function()
    local function digest(theta, dim, factor, context)
        return core.sha256(core.pack_array("f", rope.llama3 { rope_theta = theta, rope_dim = dim, rope_scaling = {
            rope_type = "llama3", factor = factor, low_freq_factor = 1, high_freq_factor = 4,
            original_max_position_embeddings = context } }))
    end
    same(digest(5e5, 128, 8, 8192), "8b516af9cb5db26ed32831eb6f493dd620843d1cd69ca7bbad760c76061cd565", "3.1 8B, 70B, 405B")
    same(digest(5e5, 64, 32, 8192), "d25a6d176d9313062b8f86440c88649f9e568d573ea66bfa4e85e2424cf35633", "3.2 1B")
    same(digest(5e5, 128, 32, 8192), "af00a6286e9cba87733f6e5dd6b09a2bffd7326e6ac33d346f83f7c2f4857828", "3.2 3B")
    same(digest(1e4, 64, 4, 2048), "51be439f1663a83651169c964307fe79a036040d380bc14f15f52d1150880898", "another")
    same(rope.llama3 { rope_theta = 1e4, rope_dim = 4 }, nil, "no scaling")
    local stored = tensors_of(to_gguf(model "llama", "q8_0"))["rope_freqs.weight"]
    same(stored.type .. #stored.bytes, "F3232", "head_dim / 2 floats, unquantised")
end

T["Phi-3's long factors become tensors, and its attention factor the first key after the architecture"] = function()
    local factors = "[1.5, 2, 3, 4, 5, 6, 7, 8.25]"
    local dir = changed("phi3", function() end, { { "max_position_embeddings", "16384" }, { "rope_scaling",
        ('{"type": "su", "long_factor": %s, "short_factor": %s}'):format(factors, factors) } })
    local t, meta = tensors_of(to_gguf(dir))
    same(t["rope_factors_long.weight"].bytes, core.pack_array("f", { 1.5, 2, 3, 4, 5, 6, 7, 8.25 }), "long")
    same(t["rope_factors_short.weight"].type, "F32", "short")
    same(meta[2].key, "phi3.rope.scaling.attn_factor", "second key")
    same(core.pack("f", meta[2].value), core.pack("f", math.sqrt(1 + math.log(4) / math.log(4096))), "attention")
    same(gguf.get(meta, "phi3.rope.scaling.original_context_length"), 4096, "original")
    same(gguf.get(meta, "phi3.attention.sliding_window"), 0, "none")
    raises("corrupt", "8 numbers", to_gguf, changed("phi3", function() end,
        { { "rope_scaling", '{"type": "longrope", "long_factor": [1], "short_factor": [1]}' } }))
end

T["profiles: the shared expert's gate, the order of keys"] = function()
    local function keys(profile)
        local t, meta = tensors_of(to_gguf(model "qwen2moe", "f16", { profile = profile }))
        local list = {}
        for _, r in ipairs(meta) do
            list[#list + 1] = r.key:match "^qwen2moe%.(expert.*)"
        end
        return t["blk.0.ffn_gate_inp_shexp.weight"].type, table.concat(list, " ")
    end
    local gate, order = keys()
    same(gate, "F16", "November 2025")
    same(order, "expert_used_count expert_count expert_feed_forward_length expert_shared_feed_forward_length", "then")
    gate, order = keys "llama.cpp-0c1e570"
    same(gate, "F32", "later")
    same(order, "expert_count expert_used_count expert_feed_forward_length expert_shared_feed_forward_length", "later")
end

T["an adapter merged on the way to GGUF gives what merging first gives"] = function()
    for _, name in ipairs { "llama", "mixtral", "gemma" } do
        local adapter, folder = support.scratch(), support.scratch()
        synth.adapter(synth.sizes[name].tiny, adapter, { seed = 3, rank = 4 })
        local merged = qm.open(model(name)):merge(adapter)
        local at_once = support.scratch() .. ".gguf"
        qm.write(merged, { { folder, format = "f16" }, { at_once, format = "q8_0" } }, { round = "f16" })
        local a, b = tensors_of(at_once), tensors_of(to_gguf(folder, "q8_0"))
        for tensor_name, t in pairs(a) do
            assert(b[tensor_name].bytes == t.bytes, name .. " " .. tensor_name)
        end
    end
end

-- ---- what does not fit -----------------------------------------------------------------------------------

T["unknown tensors are listed before any work, with the nearest table"] = function()
    local odd = changed("llama", function(t)
        for i = 1, 11 do
            t["model.extra." .. i .. ".weight"] = t["model.norm.weight"]
        end
    end)
    local path = support.scratch() .. ".gguf"
    raises("unsupported", { "11 of its tensors", "model.extra.1.weight", "3 more", "qm.arch.add" }, qm.plan, qm.open(odd),
        { { path, format = "f16" } })
    assert(not core.stat(path), "nothing was written")
    local normed = changed("llama", function(t)
        for layer = 0, 1 do
            for _, what in ipairs { "q", "k" } do
                t[("model.layers.%d.self_attn.%s_norm.weight"):format(layer, what)] =
                    { shape = { 16 }, type = "bf16", bytes = ("\0"):rep(32) }
            end
        end
    end)
    raises("unsupported", { "q_norm", "the table of qwen3 has more" }, to_gguf, normed)
end

T["a model of no known architecture: GGUF says which table is nearest, folders are still written"] = function()
    local unknown = changed("qwen3", function(t) t["model.odd.weight"] = t["model.norm.weight"] end,
        { { "architectures", '["OddForCausalLM"]' }, { "model_type", '"odd"' } })
    raises("unsupported", { "OddForCausalLM", "nearest is qwen3", "model.odd.weight" }, to_gguf, unknown)
    qm.write(qm.open(unknown), { { support.scratch(), format = "nf4" } })
end

T["sizes that no model has are refused by name"] = function()
    for field, value in pairs { num_hidden_layers = "1e9", num_local_experts = "16777217", num_attention_heads = "0",
                                hidden_size = '"64"', num_key_value_heads = "[2]" } do
        raises("corrupt", field, to_gguf, changed("mixtral", function() end, { { field, value } }))
    end
    raises("corrupt", "layers with", to_gguf, changed("mixtral", function() end,
        { { "num_hidden_layers", "10000" }, { "num_local_experts", "10000" } }))
    raises("corrupt", { "q_proj", "3 heads" }, to_gguf, changed("llama", function() end, { { "num_attention_heads", "3" },
        { "head_dim", "16" } }))
end

T["buffers of old checkpoints are left out, and that is said"] = function()
    local dir = changed("llama", function(t)
        t["model.layers.0.self_attn.rotary_emb.inv_freq"] = { shape = { 8 }, type = "f32", bytes = ("\0"):rep(32) }
    end)
    local plan = qm.plan(qm.open(dir), { { support.scratch() .. ".gguf", format = "f16" } })
    assert(plan.outputs[1].notices[1]:find "inv_freq", plan.outputs[1].notices[1])
end

T["a script can add an architecture"] = function()
    local dir = changed("qwen3", function(t)
        t["model.layers.0.odd.weight"] = t["model.layers.0.self_attn.o_proj.weight"]
    end, { { "architectures", '["OddForCausalLM"]' }, { "model_type", '"odd"' } })
    local modules = { { "model.layers.N.odd", "blk.N.odd", "linear", optional = true } }
    for _, m in ipairs(require("qmoon.arch.qwen3").modules) do
        modules[#modules + 1] = m
    end
    local odd = { name = "odd", model_type = "odd", architectures = { "OddForCausalLM" }, modules = modules,
                  metadata = { { "block_count", "u32", "num_hidden_layers" }, { "attention.head_count", "u32", "num_attention_heads" } } }
    qm.arch.add(odd)
    local ok, e = pcall(function()
        local t, meta = tensors_of(to_gguf(dir, "q8_0"))
        same(t["blk.0.odd.weight"].type, "Q8_0", "type")
        same(gguf.get(meta, "odd.block_count"), 2, "metadata")
    end)
    assert(table.remove(arch.list(), 1) == odd)
    assert(ok, e)
end

T["a table that is none is refused, with what is wrong with it"] = function()
    raises("usage", "name", arch.add, {})
    raises("usage", "modules", arch.add, { name = "x" })
    raises("usage", "model_type", arch.add, { name = "x", modules = {}, metadata = {} })
    local function with(module)
        return { name = "x", model_type = "x", metadata = {}, modules = { module } }
    end
    raises("usage", "module 1", arch.add, with { "a" })
    raises("usage", "role 'lineal'", arch.add, with { "a", "b", "lineal" })
    same(#arch.list(), #NAMES, "nothing was added")
end

-- ---- bitsandbytes ------------------------------------------------------------------------------------------

T["int8 and nf4: experts are quantised one by one, routers are not and are in the skip list"] = function()
    for format, suffix in pairs { nf4 = ".absmax", int8 = "" } do
        for name, router in pairs { mixtral = "block_sparse_moe.gate", qwen2moe = "mlp.gate" } do
            local dir = support.scratch()
            qm.write(qm.open(model(name)), { { dir, format = format } })
            local t = tensors_of(dir)
            local skip = json.encode(core.json_decode(support.read(dir .. "/config.json")).quantization_config
                .llm_int8_skip_modules)
            assert(skip:find('"model.layers.1.' .. router .. '"', 1, true), skip)
            same(t["model.layers.1." .. router .. ".weight"].type, "f16", "router")
            local expert = name == "mixtral" and "block_sparse_moe.experts.3.w2" or "mlp.experts.3.down_proj"
            same(t["model.layers.1." .. expert .. ".weight"].type, format == "nf4" and "u8" or "i8", "expert")
            assert(suffix == "" or t["model.layers.1." .. expert .. ".weight" .. suffix], "scales")
        end
    end
end

T["stacks of experts stay 16-bit, and how much of the model that is, is said"] = function()
    local fused = changed("qwen3moe", function(t)
        t["model.layers.0.mlp.experts.down_proj"] = { shape = { 4, 64, 32 }, type = "bf16", bytes = ("\0\1"):rep(4 * 64 * 32) }
    end)
    local dir = support.scratch()
    local plan = qm.plan(qm.open(fused), { { dir, format = "nf4" } })
    local said = table.concat(plan.outputs[1].notices, "\n")
    assert(said:find "1 stacks of experts stay as they are, %d+ %% of the parameters", said)
    qm.write(qm.open(fused), { { dir, format = "nf4" } })
    same(tensors_of(dir)["model.layers.0.mlp.experts.down_proj"].type, "f16", "type")
end

-- ---- vocabularies ----------------------------------------------------------------------------------------------

local function as_floats(list)
    local floats = {}
    for i, x in ipairs(list) do
        floats[i] = json.float(x)
    end
    return floats
end

-- what llama.cpp's converter made of the same tokenizer.model
T["a SentencePiece vocabulary is the reference export, token by token"] = function()
    local t = tokenizer.read(PIECES, { arch = require "qmoon.arch.mixtral", vocab_size = 3000,
                                       config = { fields = {}, raw = { bos_token_id = 1, eos_token_id = 2 } } })
    local rows = tokenizer.metadata(t)
    for _, r in ipairs(rows) do
        local want = assert(golden.metadata[r.key], r.key).value
        if type(want) == "table" then
            local value = r.elem == "f32" and as_floats(r.value) or r.value
            same(#r.value, want.n, r.key)
            same(core.sha256(json.encode(value)), want.sha256_of_json, r.key)
        else
            same(r.value, want, r.key)
        end
    end
    same(#rows, 9, "rows")
end

T["a SentencePiece model is written so that it is read as it was"] = function()
    local pieces = sentencepiece.read(PIECES .. "/tokenizer.model")
    local dir = support.scratch()
    core.mkdir(dir)
    support.write(dir .. "/tokenizer.model", sentencepiece.bytes(pieces, { unk = 0, bos = 1, eos = 2, dummy_prefix = true }))
    local again = sentencepiece.read(dir .. "/tokenizer.model")
    same(#again, #pieces, "pieces")
    for i, p in ipairs(pieces) do
        same(again[i].text .. again[i].score .. again[i].type, p.text .. p.score .. p.type, "piece " .. i)
    end
end

T["a tokenizer.model that is none is refused"] = function()
    local dir = support.scratch()
    core.mkdir(dir)
    local path = dir .. "/tokenizer.model"
    local whole = support.read(PIECES .. "/tokenizer.model")
    local function refused(bytes, text)
        support.write(path, bytes)
        raises("corrupt", { path, text }, sentencepiece.read, path)
    end
    refused("", "no pieces")
    refused(whole:sub(1, 1000), "ends within")
    refused("\10\255\255\255\255\15", "ends within")
    refused("\10\255\255\255\255\255\255\255\255\255\255\255", "ends within")
    refused("\11", "no protocol buffer")
    refused(protobuf.field(1, protobuf.field(1, "a") .. protobuf.field(3, 9)), "unknown type 9")
    refused(protobuf.field(2, "x"), "no pieces")
    for cut = 1, 200 do -- never a crash
        support.write(path, whole:sub(1, cut))
        pcall(sentencepiece.read, path)
    end
end

local function vocabulary(files, kinds, size)
    local dir = support.scratch()
    core.mkdir(dir)
    for name, bytes in pairs(files) do
        support.write(dir .. "/" .. name, bytes)
    end
    return tokenizer.read(dir, { arch = { tokenizer = kinds }, vocab_size = size })
end

local function pieces_file()
    local TYPE = sentencepiece.types
    return sentencepiece.bytes({
        { text = "<unk>", score = 0, type = TYPE.UNKNOWN }, { text = "<s>", score = 0, type = TYPE.CONTROL },
        { text = "<user>", score = 0, type = TYPE.USER_DEFINED }, { text = "▁a", score = -1.5, type = TYPE.NORMAL },
        { text = "<0x0A>", score = 0, type = TYPE.BYTE }, { text = "old", score = -2, type = TYPE.UNUSED },
    }, { dummy_prefix = true })
end

T["tokens that are added to pieces: which file has the last word, what they become"] = function()
    local files = {
        ["tokenizer.model"] = pieces_file(),
        ["added_tokens.json"] = '{"<pad>": 7, "<beyond>": 40}',
        ["tokenizer_config.json"] = [[{"added_tokens_decoder": {"0": {"content": "<unk>", "special": true},
            "3": {"content": "▁b c", "special": false}, "8": {"content": "<|x|>", "special": false},
            "9": {"content": "t", "special": true}}}]],
    }
    local t = vocabulary(files, { "spm" }, 11)
    same(table.concat(t.tokens, "|"), "<unk>|<s>|<user>| b c|<0x0A>|old|[PAD6]|<pad>|<|x|>|t|[PAD10]", "texts")
    same(table.concat(t.types, ""), "33146554335", "types")
    same(table.concat(t.scores, " "), "-1000 0 0 -1000 0 -2 -10000 -1000 -1000 -1000 -10000", "scores")
    same(t.model .. t.pre, "llamadefault", "model")
    assert(t.notes[1]:find "1 tokens beyond", t.notes[1])
    files["tokenizer.json"] = [[{"model": {"type": "BPE"}, "added_tokens": [{"id": 9, "content": "<end>", "special": false},
        {"id": 10, "content": "▁last", "special": true}]}]]
    t = vocabulary(files, { "phi3" }, 11)
    same(table.concat(t.tokens, "|", 8), "<pad>|<|x|>|<end>|▁last", "as they are")
    same(table.concat(t.types, "", 8), "4443", "types as they say")
    raises("usage", "--pre", tokenizer.read, PIECES, { arch = { tokenizer = { "spm" } }, pre = "qwen2" })
end

T["BPE with byte_fallback: bytes are bytes, special is what the config names, scores are gone and that is said"] = function()
    local t = vocabulary({
        ["tokenizer.json"] = [[{"model": {"type": "BPE", "byte_fallback": true, "vocab": {"<unk>": 0, "<s>": 1, "<0x41>": 2,
            "▁a": 3, "<sys>": 4}, "merges": []}, "decoder": {"type": "Sequence"}, "added_tokens": [
            {"id": 1, "content": "<s>", "special": true}, {"id": 4, "content": "<sys>", "special": true},
            {"id": 5, "content": "<tool>", "special": false}, {"id": 6, "content": "</s>", "special": true}]}]],
        ["tokenizer_config.json"] = '{"bos_token": "<s>", "tokenizer_class": "LlamaTokenizer"}',
    }, { "spm", "hf", "bpe" })
    same(table.concat(t.tokens, "|"), "<unk>|<s>|<0x41>|▁a|<sys>|<tool>|</s>", "texts")
    same(table.concat(t.types, ""), "3361143", "types")
    same(t.scores[4], -1000, "score")
    assert(t.notes[1]:find "scores", t.notes[1])
    same(t.ids.of.bos, 1, "bos")
end

T["ids beyond the vocabulary are no special tokens"] = function()
    local t = tokenizer.read(PIECES, { arch = require "qmoon.arch.llama", vocab_size = 3000,
                                       config = { fields = {}, raw = { pad_token_id = 3000, bos_token_id = 1 } } })
    same(t.ids.of.pad, nil, "pad")
    same(t.ids.of.bos, 1, "bos")
end

T["Code Llama's and Granite's vocabularies have rows of their own"] = function()
    local function rows(size)
        local t = tokenizer.read(PIECES, { arch = require "qmoon.arch.llama", vocab_size = size,
                                           config = { fields = { vocab_size = size }, raw = {} } })
        return tokenizer.metadata(t)
    end
    same(gguf.get(rows(32016), "tokenizer.ggml.eot_token_id"), 32010, "eot")
    same(gguf.get(rows(49152), "tokenizer.ggml.add_bos_token"), false, "bos is not added")
    same(gguf.get(rows(3000), "tokenizer.ggml.add_bos_token"), true, "else it is")
end

-- ---- back -----------------------------------------------------------------------------------------------------

T["a folder made of a GGUF file holds the tensors it was made from"] = function()
    for _, name in ipairs { "llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "qwen2moe",
                            "qwen3moe" } do
        local folder = support.scratch()
        qm.write(qm.open(to_gguf(model(name), "bf16")), { { folder, format = "bf16" } })
        local before, after = tensors_of(model(name)), tensors_of(folder)
        same(sorted_names(after), sorted_names(before), name)
        for tensor_name, t in pairs(before) do
            same(table.concat(after[tensor_name].shape, "x"), table.concat(t.shape, "x"), tensor_name)
            local exact = not name:find "gemma" or not tensor_name:find "norm" -- below 2^-16 one more bit goes
            assert(not exact or after[tensor_name].bytes == t.bytes, name .. " " .. tensor_name)
        end
        local a, b = config.read(model(name)), config.read(folder)
        for _, field in ipairs { "hidden_size", "num_attention_heads", "num_key_value_heads", "rope_theta", "vocab_size",
                                 "num_local_experts", "head_dim", "tie_word_embeddings", "max_position_embeddings" } do
            same(b.fields[field], a.fields[field], name .. " " .. field)
        end
        same(json.encode(b.fields.rope_scaling or {}), json.encode(a.fields.rope_scaling or {}), name)
        local again = tensors_of(to_gguf(folder, "bf16"))
        for tensor_name, t in pairs(tensors_of(to_gguf(model(name), "bf16"))) do
            local exact = not name:find "gemma" or not tensor_name:find "norm"
            assert(not exact or again[tensor_name].bytes == t.bytes, name .. " " .. tensor_name)
        end
    end
end

T["… quantised rows and 4-bit folders, too"] = function()
    local q8, folder, straight = to_gguf(model "llama", "q8_0"), support.scratch(), support.scratch()
    qm.write(qm.open(q8), { { folder, format = "f32" }, { straight, format = "nf4" } })
    local a, b = tensors_of(to_gguf(folder, "q8_0")), tensors_of(q8)
    for name, t in pairs(b) do
        assert(a[name].bytes == t.bytes, name)
    end
    local other = support.scratch()
    qm.write(qm.open(folder), { { other, format = "nf4" } })
    a, b = tensors_of(straight), tensors_of(other)
    for name, t in pairs(b) do
        assert(name:find "norm" or name:find "head" or name:find "embed" or a[name].bytes == t.bytes, name)
    end
end

T["what a GGUF file does not say, config.json gets as llama.cpp computes it, and that is said"] = function()
    for name, what in pairs { gemma2 = { "query_pre_attn_scalar", 32 }, gemma3 = { "query_pre_attn_scalar", 32 },
                              qwen2moe = { "norm_topk_prob", false }, qwen3moe = { "norm_topk_prob", true } } do
        local folder = support.scratch()
        local report = qm.write(qm.open(to_gguf(model(name), "f16")), { { folder, format = "f16" } })
        assert(tostring(report):find("do not say " .. what[1], 1, true), name)
        local fields = config.read(folder).fields
        local expected = what[2] == 32 and fields.head_dim or what[2]
        same(fields[what[1]], expected, name)
    end
end

T["a config.json that GGUF cannot carry whole is told so"] = function()
    local folder = support.copy(model "qwen3moe")
    local text = support.read(folder .. "/config.json")
    local changed = config.edit(text, { { "norm_topk_prob", "false" } })
    support.write(folder .. "/config.json", changed)
    local report = qm.write(qm.open(folder), { { support.scratch() .. ".gguf", format = "f16" } })
    assert(tostring(report):find("norm_topk_prob = false; GGUF files of qwen3moe do not say it", 1, true), tostring(report))
end

return T
