-- Whole models through a GPU: the files are those of the CPU, byte for byte.

local core = require "qmoon.core"
local qm = require "qmoon"
local gguf = require "qmoon.gguf"
local json = require "qmoon.json"
local outputs = require "qmoon.outputs"
local synth = require "qmoon.synth"
local write = require "qmoon.write"
local support = dofile "tests/lua/support.lua"

local BASE, ADAPTER = "tests/fixtures/tiny-qwen2", "tests/fixtures/tiny-adapter"
local T = {}

local function same_tree(a, b)
    local n = 0
    for name, bytes in pairs(support.tree(a)) do
        n = n + 1
        assert(bytes == support.read(b .. "/" .. name), name .. " has other bytes")
    end
    for name in pairs(support.tree(b)) do
        assert(core.stat(a .. "/" .. name), name .. " is one too many")
    end
    return n
end

--- Writes the same on both, or on the CPU and on these devices; returns the folders and reports.
local function both(open, specs_of, options, devices)
    local dirs, reports = {}, {}
    for i, device in ipairs { "cpu", devices or "cuda:0" } do
        local o = { device = device }
        for k, v in pairs(options or {}) do
            o[k] = v
        end
        dirs[i] = support.scratch()
        core.mkdir(dirs[i])
        reports[i] = qm.write(open(), specs_of(dirs[i]), o)
    end
    assert(same_tree(dirs[1], dirs[2]) > 0)
    return dirs, reports
end

T["the five outputs of the pipeline"] = function()
    both(function() return qm.open(BASE):merge(ADAPTER) end, function(dir) return outputs.choose(nil, dir) end, { round = "f16" })
end

-- For compute-sanitizer, under which a kernel takes a thousand times as long.
local SMALL = os.getenv "QMOON_GPU_TEST" == "small"

-- Two layers, wide enough for several chunks in one tensor, and rows that are no multiple of anything round.
local function model()
    local dir = support.scratch()
    local size = {}
    for k, v in pairs(synth.sizes.qwen2["0.5b"]) do
        size[k] = v
    end
    size.num_hidden_layers, size.vocab_size, size.hidden_size, size.intermediate_size = 2, 12000, 896, 1152
    size.num_attention_heads, size.num_key_value_heads = 14, 2
    if SMALL then
        size.num_hidden_layers, size.vocab_size, size.hidden_size, size.intermediate_size = 1, 300, 256, 288
        size.num_attention_heads = 4
    end
    synth.model(size, dir, { seed = 3 })
    return dir, size
end

local KINDS = { "f16", "nf4", "int8", "q4_0.gguf", "q8_0.gguf", "q4_k_m.gguf", "q6_k.gguf" }

local function specs(dir)
    local list = {}
    for i, kind in ipairs(KINDS) do
        local gguf = kind:match "^(.+)%.gguf$"
        list[i] = { path = dir .. "/" .. kind, format = gguf or kind, double_quant = kind == "nf4" }
    end
    list[#list + 1] = { path = dir .. "/fp4", format = "fp4", block = 128 }
    list[#list + 1] = { path = dir .. "/int4", format = "int4" }
    return list
end

T["a model of other shapes, in many formats"] = function()
    local dir, size = model()
    local adapter = support.scratch()
    synth.adapter(size, adapter, { seed = 5, rank = 24 })
    local _, reports = both(function() return qm.open(dir):merge(adapter) end, specs)
    for i, out in ipairs(reports[1].outputs) do
        local there = reports[2].outputs[i]
        for _, key in ipairs { "rmse", "sqnr", "cosine", "max" } do
            local a, b = out.error[key], there.error[key]
            assert(a == b, ("%s: %s %.17g and %.17g"):format(out.path, key, a, b))
        end
    end
    assert(#reports[1].moved > 0)
    for i, m in ipairs(reports[1].moved) do
        assert(m.ratio == reports[2].moved[i].ratio, m.name)
    end
end

--- The adapter in a folder with other settings, and with what more(tensor, put) puts beside each of its tensors.
local function changed(dir, settings, more)
    local to = support.copy(dir)
    local config = core.json_decode(support.read(to .. "/adapter_config.json"), "adapter_config.json")
    for k, v in pairs(settings) do
        config[k] = v
    end
    support.write(to .. "/adapter_config.json", json.encode(config))
    local parsed, header, data, at = core.safetensors(dir .. "/adapter_model.safetensors"), {}, {}, 0
    local function put(name, dtype, shape, bytes)
        header[#header + 1] = { name, json.object { { "dtype", dtype }, { "shape", json.array(shape) },
                                                    { "data_offsets", { at, at + #bytes } } } }
        data[#data + 1], at = bytes, at + #bytes
    end
    for _, t in ipairs(parsed.tensors) do
        put(t.name, t.dtype:upper(), t.shape, parsed.file:read(t.at, t.size))
        more(t, put)
    end
    local text = json.encode(json.object(header))
    text = text .. (" "):rep(-#text % 8)
    support.write(to .. "/adapter_model.safetensors", core.pack("L", #text) .. text .. table.concat(data))
    return to
end

--- With magnitudes of its own for every module it changes.
local function with_dora(dir)
    return changed(dir, { use_dora = true }, function(t, put)
        local module = t.name:match "^(.+)%.lora_B%.weight$"
        if module then
            local rows = t.shape[1]
            put(module .. ".lora_magnitude_vector", "F32", { rows }, qm.uniform { rows, low = 0.5, high = 1.5, seed = rows }:plane(1))
        end
    end)
end

T["couriers of several GPUs take turns"] = function()
    local dir, size = model()
    local adapter = support.scratch()
    synth.adapter(size, adapter, { seed = 5, rank = 24 })
    local function on(devices)
        both(function() return qm.open(dir):merge(adapter) end, specs, { threads = 4 }, devices)
    end
    on "cuda:0,cuda:0" -- the same one, opened twice
    local count, all = core.cuda_count(), {}
    for i = 1, count do
        all[i] = "cuda:" .. i - 1
    end
    if count < 2 then
        print "  skipped: couriers of two GPUs, of which this machine has one"
        return
    end
    on(table.concat(all, ","))
    on "auto"
end

T["DoRA, and one adapter after another"] = function()
    local dir, size = model()
    local first, second = support.scratch(), support.scratch()
    synth.adapter(size, first, { seed = 7, rank = 8 })
    synth.adapter(size, second, { seed = 8, rank = 33 })
    local dora = with_dora(first)
    both(function() return qm.open(dir):merge(dora) end, function(to) return { { path = to .. "/m", format = "bf16" }, { path = to .. "/n", format = "nf4" } } end)
    both(function() return qm.open(dir):merge(first):merge(second) end, function(to) return { { path = to .. "/m", format = "f16" } } end)
end

T["sources that are quantised already"] = function()
    local dir = model()
    local made = support.scratch()
    core.mkdir(made)
    qm.write(qm.open(dir), { { path = made .. "/dq", format = "nf4", double_quant = true }, { path = made .. "/q.gguf", format = "q4_k_m" } })
    both(function() return qm.open(made .. "/dq") end, function(to) return { { path = to .. "/m", format = "bf16" } } end)
    both(function() return qm.open(made .. "/q.gguf") end, function(to) return { { path = to .. "/m.gguf", format = "q8_0", allow_requantize = true } } end)
end

T["rows that are replaced"] = function()
    local dir, size = model()
    local plain, rows, done = support.scratch(), { 0, SMALL and 299 or 11999, 260, 77 }, false
    synth.adapter(size, plain, { seed = 9, rank = 4 })
    local adapter = changed(plain, { trainable_token_indices = json.array(rows) }, function(_, put)
        if not done then
            local cols = size.hidden_size
            put("base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta", "F32", { #rows, cols },
                qm.uniform { #rows, cols, low = -2, high = 2, seed = 1 }:plane(1))
        end
        done = true
    end)
    both(function() return qm.open(dir):merge(adapter) end,
         function(to) return { { path = to .. "/m", format = "bf16" }, { path = to .. "/n", format = "int8" } } end)
end

-- Wide enough for k-quants; llama interleaves the rows of heads in GGUF.
local function llama()
    local dir = support.scratch()
    local size = {}
    for k, v in pairs(synth.sizes.llama.tiny) do
        size[k] = v
    end
    size.num_hidden_layers, size.vocab_size, size.hidden_size, size.intermediate_size = 2, 2000, 512, 768
    size.num_attention_heads, size.num_key_value_heads, size.head_dim = 8, 4, nil
    if SMALL then
        size.num_hidden_layers, size.vocab_size = 1, 300
    end
    synth.model(size, dir, { seed = 4 })
    local file = support.scratch() .. ".gguf"
    qm.write(qm.open(dir), { { path = file, format = "f16" } })
    return file
end

T["rows that llama interleaves"] = function()
    local file = llama()
    both(function() return qm.open(file) end, function(to)
        return { { path = to .. "/m", format = "bf16" }, { path = to .. "/n", format = "nf4", double_quant = true },
                 { path = to .. "/q.gguf", format = "q8_0" } }
    end)
end

--- An importance matrix for a GGUF file: random sums of squares, some of them nothing.
local function importances(file)
    local list, sums = {}, {}
    for _, t in ipairs(core.gguf(file).tensors) do
        if #t.shape == 2 then
            local n = t.shape[2]
            local values = qm.uniform { n, low = 0, high = 4096, seed = n + #list }:values()
            for i = 1, n, 9 do
                values[i] = 0
            end
            for _, part in ipairs { { ".in_sum2", { 1, n }, values }, { ".counts", { 1, 1 }, { 100 } } } do
                sums[#sums + 1] = core.pack_array("f", part[3])
                list[#list + 1] = { name = t.name .. part[1], shape = part[2], type = 0, size = #sums[#sums] }
            end
        end
    end
    local header, at, size = gguf.header({ { key = "general.type", type = "string", value = "imatrix" },
        { key = "imatrix.datasets", type = "array", elem = "string", value = { "none" } },
        { key = "imatrix.chunk_count", type = "u32", value = 1 }, { key = "imatrix.chunk_size", type = "u32", value = 512 } }, list)
    local bytes, done = { header }, #header
    for i, data in ipairs(sums) do
        bytes[#bytes + 1] = ("\0"):rep(at[i] - done) .. data
        done = at[i] + #data
    end
    local path = support.scratch()
    support.write(path, table.concat(bytes) .. ("\0"):rep(size - done))
    return path
end

T["importance matrices"] = function()
    local file = llama()
    local matrix = importances(file)
    both(function() return qm.open(file) end, function(to)
        local list = {}
        for i, kind in ipairs { "q4_k_m", "q2_k", "q3_k_m", "q5_k_s", "q6_k", "iq4_nl", "iq4_xs", "q4_0", "q4_1", "q5_0", "q5_1" } do
            list[i] = { path = ("%s/%s.gguf"):format(to, kind), format = kind, imatrix = matrix }
        end
        return list
    end)
end

T["what is not finite is found where the CPU finds it"] = function()
    local dir = model()
    local path = dir .. "/model.safetensors"
    local parsed = core.safetensors(path)
    local bytes, messages = support.read(path), {}
    for _, t in ipairs(parsed.tensors) do
        if t.name:find(SMALL and "layers.0.mlp.up_proj" or "layers.1.mlp.up_proj", 1, true) then
            local at = t.at + 2 * 70001
            support.write(path, bytes:sub(1, at) .. "\192\127" .. bytes:sub(at + 3))
        end
    end
    for i, device in ipairs { "cpu", "cuda:0" } do
        local to = support.scratch()
        local ok, e = pcall(qm.write, qm.open(dir), { { path = to, format = "nf4" } }, { device = device })
        assert(not ok and not core.stat(to))
        messages[i] = e.message
    end
    assert(messages[1] == messages[2] and messages[1]:find "NaN", messages[2])
end

T["the plan says which device, and what it takes of it"] = function()
    local function plan(device)
        return write.plan(qm.open(BASE), { { path = support.scratch(), format = "nf4" } }, { device = device, threads = 3 })
    end
    local p = plan "cuda:0"
    assert(p.couriers == 3 and p.threads == 3 and p.courier_memory > 0)
    assert(require("qmoon.plan_text").text(p):find("device cuda:0", 1, true))
    assert(plan "auto".couriers == 3 and not plan "cpu".couriers)
    support.raises("usage", "--device", plan, "gpu")
    support.raises("usage", "cuda:77", plan, "cuda:77")
end

return T
