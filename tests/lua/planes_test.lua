-- Formats that no other program has, in folders: written, read back, merged into, described; and what is refused.

local core = require "qmoon.core"
local ffi = require "ffi"
local qm = require "qmoon"
local support = dofile "tests/lua/support.lua"

local TINY, ADAPTER, CNN = "tests/fixtures/tiny-qwen2", "tests/fixtures/tiny-adapter", "tests/fixtures/torch/cnn.pt"
local equal, raises = support.equal, support.raises

local T = {}

local function write(model, path, fields)
    fields[1] = path
    return qm.write(model, { fields })
end

local function sign_format(name)
    return qm.format {
        name = name, block = 64, bits = 1,
        encode = function(x)
            local codes, sum = {}, 0
            for i = 1, #x do
                codes[i], sum = x[i] < 0 and 0 or 1, sum + math.abs(x[i])
            end
            return codes, sum / #x
        end,
        decode = function(codes, mean)
            local y = {}
            for i = 1, #codes do
                y[i] = codes[i] == 0 and -mean or mean
            end
            return y
        end,
    }
end

--- Every quantised weight of folder `dir`, looked at and written as f32, is what t:quantize(format) decodes to.
local function check_values(source, dir, format, options)
    local back, plain = qm.open(dir), support.scratch()
    local streams = type(back.items[1]) ~= "nil" and type(format) ~= "table"
    if streams then
        write(back, plain, { format = "f32" })
        plain = qm.open(core.stat(plain .. "/config.json") and plain or plain .. "/model.safetensors")
    end
    local n = 0
    for _, item in ipairs(back.items) do
        if item.source.own then
            local wanted = source:tensor(item.name):quantize(format, options)
            equal(qm.error(wanted, back:tensor(item.name)).max, 0, item.name)
            if streams then
                equal(qm.error(wanted, plain:tensor(item.name)).max, 0, item.name .. " as f32")
            end
            n = n + 1
        end
    end
    assert(n > 0, "nothing was quantised")
    return back, n
end

T["every format that is no GGUF type goes into a folder and comes back"] = function()
    local m = qm.open(TINY)
    for _, f in ipairs(core.formats()) do
        local bnb = f.name == "int8" or f.name == "nf4" or f.name == "fp4"
        if not f.gguf_name and not bnb then
            local dir = support.scratch()
            write(m, dir, { format = f.name })
            local _, n = check_values(m, dir, f.name)
            equal(n, 28, f.name)
        end
    end
end

T["block sizes, whole rows, double quantisation"] = function()
    local m = qm.open(TINY)
    local mine = qm.codebook { name = "planes-test", -1, -0.5, -0.2, 0, 0.15, 0.4, 1 }
    for _, case in ipairs { { "int4:128", block = 128 }, { "int3:row", block = "row" }, { "uint5:100", block = 100 },
                            { "planes-test:32", block = 32 }, { "planes-test:dq", double_quant = true },
                            { "int4:96:dq", block = 96, double_quant = true } } do
        local name, dir = case[1]:match "^[^:]*", support.scratch()
        write(m, dir, { format = case[1] })
        check_values(m, dir, name == "planes-test" and mine or name, { block = case.block, double_quant = case.double_quant })
        local other = support.scratch()
        if not case.double_quant then
            write(m, other, { format = name == "planes-test" and mine or name, block = case.block })
            equal(support.read(dir .. "/model.safetensors"), support.read(other .. "/model.safetensors"), "the same as options")
        end
    end
end

T["formats of functions are written, looked at with their functions, and refused without"] = function()
    local m, dir, name = qm.open(TINY), support.scratch(), "planes-sign"
    local sign = sign_format(name)
    local report = write(m, dir, { format = sign, block = 128 })
    assert(report.outputs[1].error.sqnr > 3 and report.outputs[1].error.sqnr < 20)
    local back = check_values(m, dir, sign, { block = 128 })
    raises("unsupported", { "decoded by functions", "model:tensor" }, write, back, support.scratch(), { format = "f16" })
    local text = support.read(dir .. "/quantization.json"):gsub('"method": "[^"]*"', '"method": "never-made"')
    support.write(dir .. "/quantization.json", text)
    raises("unsupported", { "never-made", "qm.format" }, qm.open, dir)
end

T["a codebook in a folder needs nobody to remember it"] = function()
    local m, dir = qm.open(TINY), support.scratch()
    local fitted = qm.kmeans(m:tensor "model.layers.0.mlp.up_proj.weight", { levels = 5 })
    write(m, dir, { format = fitted })
    local levels = core.json_decode(support.read(dir .. "/quantization.json")).levels
    equal(#levels, 5)
    for i, v in ipairs(fitted:levels()) do
        equal(tonumber(ffi.cast("float", levels[i])), v, "level")
    end
    local status, said = support.run(("inspect %s"):format(dir))
    equal(status, 0, said)
    assert(said:find "kmeans5 +28", said)
    check_values(m, dir, fitted)
end

T["merged into, it is quantised again as it was, and nothing else is touched"] = function()
    local m, dir, merged, direct = qm.open(TINY), support.scratch(), support.scratch(), support.scratch()
    write(m, dir, { format = "uint4:32" })
    local report = write(qm.open(dir):merge(ADAPTER), merged, { format = "same" })
    assert(tostring(report):find "quantised a second time")
    local back = qm.open(merged)
    equal(back.quantised, "uint4")
    write(qm.open(dir), direct, { format = "f32" }) -- the same by way of f32
    local byway, steps = support.scratch(), support.scratch()
    write(qm.open(direct):merge(ADAPTER), byway, { format = "bf16", round = "bf16" })
    write(qm.open(byway), steps, { format = "uint4:32" })
    local differ = 0
    for _, item in ipairs(back.items) do
        if item.source.own then
            differ = math.max(differ, qm.error(qm.open(steps):tensor(item.name), back:tensor(item.name)).rmse)
        end
    end
    assert(differ < 1e-3, differ)
end

T["convolutions and stacks are rows, with quantization.json"] = function()
    local m, dir = qm.open(CNN), support.scratch()
    local report = write(m, dir, { format = "int4:9" })
    assert(tostring(report):find "as rows %[out, in x kernel%]")
    local d = core.json_decode(support.read(dir .. "/quantization.json"))
    equal(d.method, "int4")
    equal(d.block, 9)
    local stem = d.quantised["stem.weight"]
    equal(stem.rows, stem.shape[1])
    assert(stem.rmse > 0 and d.bytes < d.source_bytes)
    check_values(m, dir, "int4:9")
end

T["rows that a format does not divide are left, and said"] = function()
    local m, dir = qm.open(support.qwen2 { hidden = 48, ffn = 40, layers = 2, heads = 2, kv = 1, vocab = 100 }), support.scratch()
    write(m, dir, { format = "nvfp4" })
    local d = core.json_decode(support.read(dir .. "/quantization.json"))
    equal(d.left["model.layers.0.mlp.down_proj.weight"].why, "rows not a multiple of 16")
    assert(d.quantised["model.layers.0.mlp.up_proj.weight"])
    check_values(m, dir, "nvfp4")
end

T["GGUF of such a folder is GGUF of what it decodes to"] = function()
    local m, dir, plain, a, b = qm.open(TINY), support.scratch(), support.scratch(), support.scratch(), support.scratch()
    write(m, dir, { format = "int6" })
    write(qm.open(dir), plain, { format = "f32" })
    write(qm.open(dir), a .. ".gguf", { format = "q8_0", name = "x" })
    write(qm.open(plain), b .. ".gguf", { format = "q8_0", name = "x" })
    for i, t in ipairs(qm.open(a .. ".gguf").items) do
        local u = qm.open(b .. ".gguf").items[i]
        if t.source.dtype == "q8_0" then
            equal(t.source.file:read(t.source.at, t.source.size), u.source.file:read(u.source.at, u.source.size), t.name)
        end
    end
end

T["wrong names are told what there is"] = function()
    local m = qm.open(TINY)
    raises("unsupported", ".gguf", write, m, support.scratch(), { format = "q4_k_m" })
    raises("unsupported", ".gguf", write, m, support.scratch(), { format = "mxfp4" })
    raises("unsupported", { "no folder is written as", "did you mean 'uint4'" }, write, m, support.scratch(), { format = "uint44" })
    raises("usage", "neither a block size", write, m, support.scratch(), { format = "int4:x" })
    raises("usage", "needs a format", qm.write, m, { { support.scratch() } })
    raises("unsupported", "go into folders", write, m, support.scratch() .. ".gguf", { format = sign_format "planes-gguf" })
    raises("usage", "formats that have an absmax", write, m, support.scratch(), { format = "uint4", double_quant = true })
    raises("usage", "formats that have an absmax", write, m, support.scratch(), { format = "nvfp4:dq" })
end

T["a damaged quantization.json, or tensors that are not what it says"] = function()
    local m, dir = qm.open(TINY), support.scratch()
    write(m, dir, { format = "uint3" })
    local path = dir .. "/quantization.json"
    local text = support.read(path)
    local function refuse(kind, what, from, to)
        local changed, n = text:gsub(from, to)
        assert(n > 0, from)
        support.write(path, changed)
        raises(kind, what, qm.open, dir)
    end
    refuse("unsupported", "schema", "qmoon%-quantization%-1", "qmoon-quantization-9")
    refuse("corrupt", "in planes", '"layout": "planes"', '"layout": "tiles"')
    refuse("corrupt", "sizes that no weight has", '"rows": 256', '"rows": 7')
    refuse("corrupt", "sizes that no weight has", '"rows": 256', '"rows": 1e300')
    refuse("corrupt", "sizes that no weight has", '"shape": %[\n%s+256,', '"shape": [-256,')
    refuse("corrupt", "says f32 of", '"block": 64', '"block": 32')
    refuse("corrupt", "is missing", '"model.layers.0.mlp.down_proj.weight"', '"model.layers.9.mlp.down_proj.weight"')
    refuse("corrupt", "double quantised", '"double_quant": false', '"double_quant": true')
    refuse("unsupported", "only functions", '"method": "uint3"', '"method": "q4_0x"')
    support.write(path, text)
    qm.open(dir)
    os.remove(path)
    raises("fail", "is missing", qm.open, dir)
end

return T
