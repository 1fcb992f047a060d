-- Where models come from: PyTorch's files, bitsandbytes' checkpoints, lone files without a config.  The
-- fixtures were written by torch, peft, transformers and bitsandbytes (tests/peers/source_fixtures.py), and
-- so were the expected digests.

local core = require "qmoon.core"
local checkpoint = require "qmoon.source.checkpoint"
local qm = require "qmoon"
local reading = require "qmoon.source.reading"
local safetensors = require "qmoon.output.safetensors"
local support = dofile "tests/lua/support.lua"

local TORCH, BNB, TINY = "tests/fixtures/torch", "tests/fixtures/bnb", "tests/fixtures/tiny-qwen2"
local equal, raises = support.equal, support.raises

local T = {}

local torch_name = {}
for _, d in ipairs(core.dtypes()) do
    torch_name[d.name] = d.torch
end

local function expected(dir)
    return core.json_decode(support.read(dir .. "/expected.json"))
end

local function shape_text(shape)
    return table.concat(shape, " x ")
end

--- Tensors of a safetensors file by name, each with its bytes.
local function tensors_of(path)
    local by_name = {}
    for _, t in ipairs((checkpoint.file(path))) do
        t.bytes = t.file:read(t.at, t.size)
        by_name[t.name] = t
    end
    return by_name
end

--- Writes tensors {name, dtype, shape, bytes} as one safetensors file.
local function write_tensors(path, by_name)
    local list = {}
    for name, t in pairs(by_name) do
        list[#list + 1] = { name = name, dtype = t.dtype, shape = t.shape, size = #t.bytes, bytes = t.bytes }
    end
    local header, size = safetensors.layout(list)
    local o = core.outfile(path, size)
    o:write(0, header)
    for _, t in ipairs(list) do
        o:write(t.at, t.bytes)
    end
    o:finish()
end

--- A copy of a bitsandbytes fixture whose tensors a function has changed.
local function changed(name, change)
    local dir = support.copy(BNB .. "/" .. name)
    local tensors = tensors_of(dir .. "/model.safetensors")
    change(tensors, dir)
    write_tensors(dir .. "/model.safetensors", tensors)
    return dir
end

local function same_file(a, b)
    assert(support.read(a) == support.read(b), a .. " and " .. b .. " differ")
end

-- ---- PyTorch ----------------------------------------------------------------------------------------------

T["every tensor of torch's files is read as torch reads it"] = function()
    local n = 0
    for file, tensors in pairs(expected(TORCH)) do
        local h = core.torch(TORCH .. "/" .. file)
        local found = {}
        for _, t in ipairs(h.tensors) do
            t.file = h.file
            local want = tensors[t.name == "tensor" and "" or t.name]
            assert(want, file .. " has no " .. t.name)
            found[t.name == "tensor" and "" or t.name] = true
            equal(torch_name[t.dtype], want.dtype, t.name)
            equal(shape_text(t.shape), shape_text(want.shape), t.name)
            equal(core.sha256(reading.bytes(t)), want.sha256, file .. " " .. t.name)
            n = n + 1
        end
        for name in pairs(tensors) do
            assert(found[name], file .. ": " .. name .. " was not read")
        end
    end
    assert(n > 100)
end

--- A [4, 256] weight whose second row is zeros, quantised with the given options and decoded again: that row.
local function zeros_through_nf4(options)
    local dir, row = support.scratch(), {}
    core.mkdir(dir)
    for i = 1, 256 do
        row[i] = math.sin(i)
    end
    row = core.pack_array("f", row)
    write_tensors(dir .. "/w.safetensors", { ["w.weight"] = { dtype = "f32", shape = { 4, 256 },
                                                              bytes = row .. ("\0"):rep(#row) .. row .. row } })
    options[1], options.format, options.double_quant = dir .. "/q", "nf4", true
    qm.write(qm.open(dir .. "/w.safetensors"), { options })
    qm.write(qm.open(dir .. "/q"), { { dir .. "/back", format = "f32" } })
    return tensors_of(dir .. "/back/model.safetensors")["w.weight"].bytes:sub(#row + 1, 2 * #row)
end

T["all-zero blocks under double quantisation: bitsandbytes' small constant, or zeros"] = function()
    assert(zeros_through_nf4 {}:find "[^%z]", "bitsandbytes' code 0 came back as zeros")
    for _, options in ipairs { { zero_blocks = "exact" }, { rounding = "nearest" } } do
        assert(not zeros_through_nf4(options):gsub("%z%z%z\128", ""):find "[^%z]", "zeros came back as something else")
    end
end

T["a model in .bin shards gives the files that the same in safetensors gives"] = function()
    local a, b = support.scratch(), support.scratch()
    for _, spec in ipairs { { format = "f16" }, { format = "int8" }, { format = "nf4", double_quant = true } } do
        for from, to in pairs { ["/model"] = a, ["/model-safetensors"] = b } do
            qm.write(qm.open(TORCH .. from), { setmetatable({ to .. spec.format }, { __index = spec }) })
        end
        for _, name in ipairs { "model.safetensors", "config.json" } do
            same_file(a .. spec.format .. "/" .. name, b .. spec.format .. "/" .. name)
        end
    end
    assert(qm.open(TORCH .. "/model").notices[1]:find "lm_head.weight is model.embed_tokens.weight")
end

T["an adapter in .bin merges as the same in safetensors"] = function()
    local a, b = support.scratch(), support.scratch()
    qm.write(qm.open(TORCH .. "/model"):merge(TORCH .. "/adapter-bin"), { { a, format = "f32" } })
    qm.write(qm.open(TORCH .. "/model-safetensors"):merge(TORCH .. "/adapter"), { { b, format = "f32" } })
    same_file(a .. "/model.safetensors", b .. "/model.safetensors")
end

T["shards must be there, and hold what the index says"] = function()
    local dir = support.copy(TORCH .. "/model")
    os.remove(dir .. "/pytorch_model-00002-of-00002.bin")
    raises("fail", "pytorch_model-00002-of-00002.bin", qm.open, dir)
    os.remove(dir .. "/pytorch_model.bin.index.json")
    raises("fail", "no pytorch_model.bin.index.json", qm.open, dir)
    dir = support.copy(TORCH .. "/model")
    local index = support.read(dir .. "/pytorch_model.bin.index.json")
    support.write(dir .. "/pytorch_model.bin.index.json",
        (index:gsub('("model.norm.weight": "pytorch_model%-0000)2', "%11")))
    raises("corrupt", { "model.norm.weight", "00001" }, qm.open, dir)
end

T["the model among what a training loop saved"] = function()
    local m = qm.open(TORCH .. "/cnn.pt")
    assert(m.by_name["stem.weight"] and not m.by_name["optimizer.state.0.exp_avg"])
    assert(m.notices[1]:find "'state_dict' holds; left out: optimizer")
    assert(qm.open(TORCH .. "/rnn.pth").by_name["lstm.weight_ih_l0"])
    assert(qm.open(TORCH .. "/big-keys.pt").by_name["blocks.1.3"])
    assert(qm.open(TORCH .. "/vit.bin").notices[1]:find "under another name: 1;")
    raises("unsupported", "torch.nn.modules.container.Sequential", qm.open, TORCH .. "/module.pt")
end

T["tensors that do not lie in order can be looked at"] = function()
    local m = qm.open(TORCH .. "/vit.bin")
    local k, v = m:tensor "blocks.0.attn.k", m:tensor "blocks.0.attn.v"
    equal(v:info().format, "bf16")
    local raw = core.torch(TORCH .. "/vit.bin")
    for _, t in ipairs(raw.tensors) do
        if t.name == "blocks.0.attn.v" then
            t.strides = nil
            equal(qm.error(core.view(raw.file, t):transpose(), v).max, 0, "transposed")
        end
    end
    equal(k:info().count, 256)
end

-- ---- lone files -------------------------------------------------------------------------------------------

--- The tensor of a model as rows, contiguous, f32.
local function as_matrix(m, name, rows)
    local t = m:tensor(name):dequantize()
    return core.tensor({ rows, t:info().count / rows }, t:values())
end

T["a lone file is written with the planes of a linear layer and a description"] = function()
    local m, dir = qm.open(TORCH .. "/cnn.pt"), support.scratch()
    local report = qm.write(m, { { dir .. "/nf4", format = "nf4", double_quant = true, block = 32 },
                                 { dir .. "/int8", format = "int8" } })
    local four = tensors_of(dir .. "/nf4/model.safetensors")
    local eight = tensors_of(dir .. "/int8/model.safetensors")
    for name, rows in pairs { ["stem.weight"] = 8, ["depthwise.weight"] = 8, ["body.weight"] = 16,
            ["line.weight"] = 12 } do
        local matrix = as_matrix(m, name, rows)
        local q = matrix:quantize("nf4", { block = 32, double_quant = true })
        equal(four[name].bytes, q:codes(), name)
        equal(four[name .. ".absmax"].bytes, q:scales(), name)
        local state = core.json_decode(four[name .. ".quant_state.bitsandbytes__nf4"].bytes)
        equal(shape_text(state.shape), shape_text(m.by_name[name].shape), name)
        equal(state.dtype, "float32", name)
        q = matrix:quantize "int8"
        equal(eight[name].bytes, q:codes(), name)
        equal(eight[name:gsub("weight$", "SCB")].bytes, q:scales(), name)
    end
    equal(four["norm.running_var"].dtype, "f32", "what is left stays as it is")
    equal(four["norm.num_batches_tracked"].dtype, "i64", "integers")

    local d = core.json_decode(support.read(dir .. "/nf4/quantization.json"))
    equal(d.method, "nf4", "method")
    equal(d.block, 32, "block")
    equal(d.double_quant, true, "double_quant")
    equal(d.quantised_parameters, 3032, "parameters")
    equal(d.left["norm.weight"].why, "1-D", "why")
    equal(shape_text(d.quantised["body.weight"].shape), "16 x 8 x 3 x 3", "shape")
    equal(d.quantised["body.weight"].bytes,
        576 + 36 + 64 + 1024 + 4 + #four["body.weight.quant_state.bitsandbytes__nf4"].bytes,
        "bytes")
    local back = qm.open(dir .. "/nf4")
    local sqnr = qm.error(as_matrix(m, "body.weight", 16), as_matrix(back, "body.weight", 16)).sqnr
    assert(math.abs(d.quantised["body.weight"].sqnr_db - sqnr) < 0.01, "sqnr")
    assert(tostring(report):find("97.71 % of 3103 parameters quantised · 4 as rows [out, in x kernel] "
        .. "(2912) · left: 1-D (70), "
        .. "i64 (1)", 1, true), tostring(report))
end

T["experts are stacked rows, words decide what is no matrix"] = function()
    local m, dir = qm.open(TORCH .. "/vit.bin"), support.scratch()
    local report = qm.write(m, { { dir, format = "int8" } })
    local t = tensors_of(dir .. "/model.safetensors")
    equal(shape_text(t["blocks.0.experts.up"].shape), "4 x 6 x 16", "shape")
    equal(t["blocks.0.experts.up.SCB"].size, 24 * 4, "rows")
    equal(t["patch_embed.proj.weight"].dtype, "i8", "a convolution, whatever it is called")
    equal(t["embed.weight"].dtype, "f32", "named as an embedding")
    equal(t["blocks.0.attn.v.SCB"].size, 16 * 4, "transposed")
    equal(t["pos_embed"].dtype, "f32", "an embedding")
    equal(t["cls_token"].dtype, "f32", "1-D but for its shape")
    assert(tostring(report):find("1 as rows [E x out, in] (384)", 1, true), tostring(report))
    local back = qm.open(dir)
    equal(qm.error(m:tensor "blocks.0.experts.up", back:tensor "blocks.0.experts.up").sqnr > 40, true, "int8")
    raises("usage", "--allow-requantize", qm.write, back, { { dir .. "x", format = "nf4" } })
end

T["a lone file can be written as it is, or in another type"] = function()
    for _, file in ipairs { "cnn.pt", "rnn-legacy.pth", "vit.bin", "types.pt" } do
        local m, dir = qm.open(TORCH .. "/" .. file), support.scratch()
        qm.write(m, { { dir .. "/keep", format = "keep" }, { dir .. "/f16", format = "f16" } })
        local kept, n = tensors_of(dir .. "/keep/model.safetensors"), 0
        for _, item in ipairs(m.items) do
            equal(kept[item.name].bytes, reading.bytes(item.source), file .. " " .. item.name)
            n = n + 1
        end
        equal(#m.items, n, file)
        assert(not core.stat(dir .. "/keep/quantization.json"))
    end
end

-- ---- bitsandbytes: reading --------------------------------------------------------------------------------

T["weights that transformers and bitsandbytes wrote decode to what they decode them to"] = function()
    for name, weights in pairs(expected(BNB)) do
        local dir, m, n = support.scratch(), qm.open(BNB .. "/" .. name), 0
        qm.write(m, { { dir .. "/keep", format = "keep" }, { dir .. "/f32", format = "f32" } })
        local kept = tensors_of(dir .. "/keep/model.safetensors")
        local wide = tensors_of(dir .. "/f32/model.safetensors")
        for weight, want in pairs(weights) do
            local t = want.dtype == "float32" and wide[weight] or kept[weight]
            equal(torch_name[t.dtype], want.dtype, weight)
            equal(shape_text(t.shape), shape_text(want.shape), weight)
            equal(core.sha256(t.bytes), want.sha256, name .. " " .. weight)
            local seen = m:tensor(weight):dequantize()
            equal(seen:plane(1), wide[weight].bytes, name .. " " .. weight)
            n = n + 1
        end
        equal(n, 7, "weights")
        equal(support.read(dir .. "/keep/config.json"):find "quantization_config", nil, "config")
        equal(qm.open(dir .. "/keep").quantised, nil, "plain")
    end
end

T["what this program quantised is read back: every kind, block and type"] = function()
    local specs = { { format = "int8" }, { format = "int8", dtype = "bf16" } }
    for _, block in ipairs { 32, 64, 256, 4096 } do
        for _, format in ipairs { "nf4", "fp4" } do
            specs[#specs + 1] = { format = format, block = block, double_quant = true,
                                  dtype = block == 64 and "bf16" or "f16" }
            specs[#specs + 1] = { format = format, block = block, dtype = block == 64 and "f32" or "f16" }
        end
    end
    local source, dir, out = qm.open(TINY), support.scratch(), {}
    for i, spec in ipairs(specs) do
        out[i] = { ("%s/%d"):format(dir, i), format = spec.format, block = spec.block,
            double_quant = spec.double_quant, dtype = spec.dtype }
    end
    for first = 1, #out, 6 do
        qm.write(source, { unpack(out, first, first + 5) })
    end
    for i, spec in ipairs(specs) do
        local m = qm.open(out[i][1])
        equal(m.quantised, spec.format .. (spec.double_quant and "+dq" or ""), "kind")
        for _, name in ipairs { "model.layers.0.mlp.down_proj.weight",
                "model.layers.3.self_attn.k_proj.weight" } do
            local original = source:tensor(name)
            local rounded = original:quantize(spec.dtype or "f16")
            local q = rounded:quantize(spec.format, { block = spec.block, double_quant = spec.double_quant })
            local want = q:dequantize()
            if spec.format ~= "int8" then
                want = want:quantize(spec.dtype or "f16"):dequantize()
            end
            equal(m:tensor(name):dequantize():plane(1), want:plane(1), name)
            equal(m.by_name[name].source.dtype, spec.dtype or "f16", name)
        end
    end
end

T["GGUF of a quantised checkpoint is that of its 16-bit form"] = function()
    local dir = support.scratch()
    qm.write(qm.open(TINY), { { dir .. "/nf4", format = "nf4", double_quant = true, dtype = "bf16" } })
    qm.write(qm.open(dir .. "/nf4"), { { dir .. "/bf16", format = "keep" } })
    for _, format in ipairs { "f16", "q8_0", "q4_0" } do
        local report
        for _, from in ipairs { "nf4", "bf16" } do
            local r = qm.write(qm.open(dir .. "/" .. from),
                { { ("%s/%s-%s.gguf"):format(dir, from, format), format = format, name = "m" } })
            report = report or r
        end
        same_file(("%s/nf4-%s.gguf"):format(dir, format), ("%s/bf16-%s.gguf"):format(dir, format))
        equal(tostring(report):find "quantised a second time" ~= nil, format ~= "f16", format)
    end
end

T["pieces of a weight may lie in several shards"] = function()
    local dir = support.copy(BNB .. "/nf4-dq")
    local all, map, halves = tensors_of(dir .. "/model.safetensors"), {}, { {}, {} }
    for name, t in pairs(all) do
        local i = (name:find "%.absmax$" or name:find "%.nested_absmax$") and 2 or 1
        halves[i][name] = t
        map[name] = ("model-0000%d-of-00002.safetensors"):format(i)
    end
    for i, half in ipairs(halves) do
        write_tensors(("%s/model-0000%d-of-00002.safetensors"):format(dir, i), half)
    end
    os.remove(dir .. "/model.safetensors")
    support.write(dir .. "/model.safetensors.index.json", require("qmoon.json").encode { weight_map = map })
    local one, two = support.scratch(), support.scratch()
    qm.write(qm.open(BNB .. "/nf4-dq"), { { one, format = "keep" } })
    qm.write(qm.open(dir), { { two, format = "keep" } })
    same_file(one .. "/model.safetensors", two .. "/model.safetensors")
    local name = "model.layers.0.mlp.up_proj.weight"
    local whole = qm.open(BNB .. "/nf4-dq"):tensor(name)
    equal(qm.open(dir):tensor(name):dequantize():plane(1), whole:dequantize():plane(1), name)
end

-- ---- bitsandbytes: merging and quantising again -----------------------------------------------------------

local ADAPTER = BNB .. "/adapter"
local MERGED = { q_proj = true, k_proj = true, v_proj = true, o_proj = true, gate_proj = true }

T["merging keeps the quantisation: by hand it comes to the same"] = function()
    for _, name in ipairs { "nf4-dq", "fp4", "int8" } do
        local base, dir = BNB .. "/" .. name, support.scratch()
        local report = qm.write(qm.open(base):merge(ADAPTER), { { dir .. "/same", format = "same" } })
        assert(tostring(report):find("5 weights were " .. name:gsub("%-", "+"), 1, true), tostring(report))
        -- dequantise, merge, quantise: each a file of its own
        local m = qm.open(base)
        local dtype = m.by_name["model.layers.0.mlp.up_proj.weight"].source.dtype
        qm.write(m, { { dir .. "/16", format = name == "int8" and "f32" or "keep" } })
        qm.write(qm.open(dir .. "/16"):merge(ADAPTER), { { dir .. "/merged", format = dtype } })
        qm.write(qm.open(dir .. "/merged"), { { dir .. "/hand", format = name:match "^%w+",
                                                double_quant = name:find "dq" and true, dtype = dtype } })
        local before, same = tensors_of(base .. "/model.safetensors"), tensors_of(dir .. "/same/model.safetensors")
        local hand = tensors_of(dir .. "/hand/model.safetensors")
        local carried, merged = 0, 0
        for tensor, t in pairs(same) do
            local module = tensor:match "(%w+_proj)%."
            if module and MERGED[module] and not tensor:find "bias" then
                equal(t.bytes, hand[tensor].bytes, name .. " " .. tensor)
                merged = merged + 1
            else
                equal(t.bytes, before[tensor].bytes, name .. " " .. tensor)
                carried = carried + 1
            end
        end
        assert(carried > 5 and merged >= 15)
        local a, b = core.json_decode(support.read(base .. "/config.json")),
            core.json_decode(support.read(dir .. "/same/config.json"))
        equal(b.quantization_config.bnb_4bit_quant_type, a.quantization_config.bnb_4bit_quant_type, "config")
        equal(qm.open(dir .. "/same").quantised, qm.open(base).quantised, "opens again")
    end
end

T["the command keeps the quantisation of its base, or writes 16 bit"] = function()
    local dir = support.scratch()
    local command = ("merge --base %s/nf4-dq --adapter %s --out %s"):format(BNB, ADAPTER, dir)
    local status, text = support.run(command .. "/keep")
    equal(status, 0, text)
    assert(text:find "nf4%+dq %(bnb%)" and text:find "quantised a second time", text)
    status, text = support.run(command .. "/f16 --dtype f16")
    equal(status, 0, text)
    equal(qm.open(dir .. "/f16").quantised, nil, "16 bit")
    status, text = support.run(("inspect %s/keep"):format(dir))
    assert(status == 0 and text:find "nf4%+dq +7", text)
    status, text = support.run(("inspect %s/nf4-dq --json --sha256"):format(BNB))
    equal(core.json_decode(text).tensors[3].type, "nf4+dq", "type")
end

T["quantising again is refused, unless it is asked for"] = function()
    local dir = support.scratch()
    raises("usage", { "nf4+dq already", "--allow-requantize" }, qm.write, qm.open(BNB .. "/nf4-dq"),
        { { dir, format = "int8" } })
    qm.write(qm.open(BNB .. "/nf4-dq"), { { dir, format = "int8", allow_requantize = true } })
    equal(qm.open(dir).quantised, "int8", "kind")
    raises("usage", "no quantisation to keep", qm.write, qm.open(TINY), { { dir .. "x", format = "same" } })
end

-- ---- bitsandbytes: damage ---------------------------------------------------------------------------------

local W = "model.layers.0.mlp.up_proj.weight"
local STATE = W .. ".quant_state.bitsandbytes__nf4"

-- quant_state with one thing changed, as JSON text.
local function with_state(from, to)
    return function(t)
        local text, n = t[STATE].bytes:gsub(from, to)
        assert(n == 1, t[STATE].bytes)
        t[STATE] = { dtype = "u8", shape = { #text }, bytes = text }
    end
end

local function without(name)
    return function(t)
        t[name] = nil
    end
end

local function with(name, dtype, shape, bytes)
    return function(t)
        t[name] = { dtype = dtype, shape = shape, bytes = bytes or t[name].bytes }
    end
end

T["whatever is wrong with a quantised weight is said"] = function()
    local cases = {
        { "corrupt", "'extra'", with_state("}", ', "extra": 1}') },
        { "corrupt", "no 'dtype'", with_state('"dtype": "%w+", ', "") },
        { "corrupt", "dtype 'int8'", with_state('"bfloat16"', '"int8"') },
        { "corrupt", "quant_type 'fp4'", with_state('"nf4"', '"fp4"') },
        { "corrupt", "blocksize of 60", with_state('"blocksize": 64', '"blocksize": 60') },
        { "corrupt", "blocksize", with_state('"blocksize": 64', '"blocksize": 64.5') },
        { "corrupt", "absmax", with_state('"blocksize": 64', '"blocksize": 128') },
        { "corrupt", "bytes of codes", with_state("%[90, 64%]", "[90, 66]") },
        { "corrupt", "'shape'", with_state("%[90, 64%]", '[90, "64"]') },
        { "corrupt", "'shape'", with_state("%[90, 64%]", "5760") },
        { "corrupt", "'shape'", with_state("%[90, 64%]", "[9007199254740991, 9007199254740991]") },
        { "corrupt", "'shape'", with_state("%[90, 64%]", "[-90, -64]") },
        { "corrupt", "nested_blocksize of 128", with_state('"nested_blocksize": 256',
            '"nested_blocksize": 128') },
        { "corrupt", "nested_dtype", with_state('"nested_dtype": "float32"', '"nested_dtype": "float16"') },
        { "corrupt", "nested_offset", with_state('"nested_offset": [%d.e-]+', '"nested_offset": null') },
        { "corrupt", "quant_state", with_state("^{", "") },
        { "corrupt", ".absmax' is missing", without(W .. ".absmax") },
        { "corrupt", ".nested_absmax' is missing", without(W .. ".nested_absmax") },
        { "corrupt", ".quant_map' is missing", without(W .. ".quant_map") },
        { "corrupt", "not there", without(W) },
        { "corrupt", "belongs to no quantised weight", without(STATE) },
        { "corrupt", "needs u8 with 90", with(W .. ".absmax", "u8", { 89 }, ("x"):rep(89)) },
        { "corrupt", "needs u8", with(W .. ".absmax", "f32", { 90 }, ("x"):rep(360)) },
        { "corrupt", "another table", with(W .. ".quant_map", "f32", { 16 }, ("\0"):rep(64)) },
        { "corrupt", "another table", with(W .. ".nested_quant_map", "f32", { 256 }, ("\0"):rep(1024)) },
        { "corrupt", "bnb_4bit_quant_storage", with(W, "bf16", { 1440, 1 }) },
        { "corrupt", "is none that bitsandbytes writes", with(W .. ".zero", "u8", { 1 }, "x") },
        { "corrupt", "belongs to no quantised weight", with("other.SCB_.quant_map", "f32", { 1 }, "1234") },
        { "unsupported", "begins with -1", function(t)
            local map = t[W .. ".nested_quant_map"]
            map.bytes = core.pack("f", -1) .. map.bytes:sub(5)
        end },
    }
    for _, case in ipairs(cases) do
        raises(case[1], case[2], qm.open, changed("nf4-dq", case[3]))
    end
end

T["codes filed under a wider type are read, when config.json says so"] = function()
    local dir = changed("nf4-dq", function(t, dir)
        for name, w in pairs(t) do
            if name:find "_proj%.weight$" then
                t[name] = { dtype = "bf16", shape = { #w.bytes / 2, 1 }, bytes = w.bytes }
            end
        end
        local config = support.read(dir .. "/config.json"):gsub('"bnb_4bit_quant_storage": "uint8"',
            '"bnb_4bit_quant_storage": "bfloat16"')
        support.write(dir .. "/config.json", config)
    end)
    local narrow = qm.open(BNB .. "/nf4-dq"):tensor(W)
    equal(qm.open(dir):tensor(W):dequantize():plane(1), narrow:dequantize():plane(1), "values")
end

T["whatever is wrong with an int8 weight is said"] = function()
    local module = W:gsub("%.weight$", "")
    local function refused(kind, text, change)
        raises(kind, text, qm.open, changed("int8", change))
    end
    refused("unsupported", "tiles of an old GPU", with(module .. ".weight_format", "u8", {}, "\2"))
    refused("corrupt", "no f32 for each row", with(module .. ".SCB", "f32", { 89 }, ("\0"):rep(356)))
    refused("corrupt", "no f32 for each row", with(module .. ".SCB", "f16", { 180 }, ("\0"):rep(360)))
    refused("corrupt", "belongs to no quantised weight", without(module .. ".SCB"))
    refused("corrupt", "not there", without(W))
    refused("corrupt", "scales of an int8 weight", with(W, "u8", { 90, 64 }))
    qm.open(changed("int8", without(module .. ".weight_format"))) -- files of 2022 have none
end

-- The quantization_config of a fixture with texts replaced.
local function with_config(name, ...)
    local dir, args = support.copy(BNB .. "/" .. name), { ... }
    local text = support.read(dir .. "/config.json")
    for i = 1, #args, 2 do
        local n
        text, n = text:gsub(args[i], args[i + 1])
        assert(n > 0, args[i])
    end
    support.write(dir .. "/config.json", text)
    return dir
end

T["config.json and tensors must agree"] = function()
    raises("corrupt", { "says fp4+dq", "is nf4+dq" }, qm.open, with_config("nf4-dq", '"nf4"', '"fp4"'))
    raises("corrupt", "says nf4, but", qm.open, with_config("nf4-dq", '(double_quant": )true', "%1false"))
    raises("corrupt", "neither load_in_4bit nor load_in_8bit", qm.open, with_config("nf4-dq",
        '(load_in_4bit": )true', "%1false"))
    raises("unsupported", "already quantised (gptq)", qm.open, with_config("nf4-dq", '"bitsandbytes"',
        '"gptq"'))
    raises("corrupt", "no quantization_config", qm.open, with_config("nf4-dq", '"quantization_config"',
        '"something_else"'))
    raises("unsupported", "the other way round", qm.open, with_config("nf4-dq", '"model_type": "qwen2"',
        '"model_type": "gpt2"'))
    local m = qm.open(with_config("nf4-dq", '"llm_int8_skip_modules": null',
        '"llm_int8_skip_modules": ["model.layers.0.mlp"]'))
    assert(m.notices[1]:find "3, the first is", m.notices[1])
    local dir = support.copy(TORCH .. "/model-safetensors")
    local config = core.json_decode(support.read(BNB .. "/int8/config.json"))
    support.write(dir .. "/config.json",
        (support.read(dir .. "/config.json"):gsub("}%s*$", ', "quantization_config": '
        .. require("qmoon.json").encode(config.quantization_config) .. "}")))
    raises("corrupt", "but none is", qm.open, dir)
end

return T
