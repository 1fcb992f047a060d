-- qmoon compare and qmoon verify: what was written is what was meant, and damage is found.

local core = require "qmoon.core"
local qm = require "qmoon"
local synth = require "qmoon.synth"
local support = dofile "tests/lua/support.lua"
local equal = support.equal

local BASE, ADAPTER = "tests/fixtures/tiny-qwen2", "tests/fixtures/tiny-adapter"

local outputs -- made once

local function made()
    if not outputs then
        local dir = support.scratch()
        outputs = dir
        local status, text = support.run(("pipeline --base %s --adapter %s --out %s"):format(BASE, ADAPTER, dir))
        equal(status, 0, text)
    end
    return outputs
end

local NAMES = { "merged-fp16", "model-int8", "model-int4", "model.gguf", "model-q4_0.gguf" }

local function verify(out, more)
    return support.run(("verify %s %s"):format(out, more or ""))
end

-- What is printed may have lines of progress, on a slow machine, before the JSON.

local T = {}

T["every output of the pipeline verifies: alone, against the merged model, against base and adapter"] = function()
    for _, name in ipairs(NAMES) do
        local out = made() .. "/" .. name
        for _, more in ipairs { "", "--against " .. made() .. "/merged-fp16", ("--against %s --adapter %s"):format(BASE, ADAPTER) } do
            local status, text = verify(out, more)
            equal(status, 0, name .. " " .. more .. ": " .. text)
            assert(text:find("50/50 tensors", 1, true), text)
        end
    end
end

T["without the adapter that was merged in, verification fails and says so"] = function()
    local status, text = verify(made() .. "/model-int4", "--against " .. BASE)
    equal(status, 3)
    assert(text:find "further off than the format's bound" and text:find("--adapter DIR", 1, true), text)
end

local function damaged(name, change)
    local out = support.copy(made() .. "/" .. name)
    local file = out .. "/model.safetensors"
    local header = core.safetensors(file)
    local bytes = change(support.read(file), header.tensors)
    if bytes then
        support.write(file, bytes)
    end
    return out
end

local function tensor_named(tensors, name)
    for _, t in ipairs(tensors) do
        if t.name == name then
            return t
        end
    end
    error("no " .. name)
end

local CODES = "model.layers.2.mlp.up_proj.weight"

T["one changed code, scale or bias is found"] = function()
    local against = "--against " .. made() .. "/merged-fp16"
    for name, place in pairs { [CODES] = 700, [CODES .. ".absmax"] = 3, ["model.layers.1.self_attn.q_proj.bias"] = 21 } do
        local out = damaged("model-int4", function(bytes, tensors)
            local at = tensor_named(tensors, name).at + place
            return bytes:sub(1, at) .. string.char((bytes:byte(at + 1) + 119) % 256) .. bytes:sub(at + 2)
        end)
        local status, text = verify(out, against)
        equal(status, 3, name .. ": " .. text)
        assert(text:find(name:match "layers%.%d", 1, true) and text:find("1 thing is not as it should be", 1, true), text)
        status, text = verify(out, against .. " --json")
        local report = core.json_decode(text:match "{.*}", "json")
        equal(status, 3) equal(report.ok, false) equal(#report.problems, 1)
    end
end

T["NaN is found without a source"] = function()
    local out = damaged("merged-fp16", function(bytes, tensors)
        local at = tensor_named(tensors, "model.norm.weight").at + 10
        return bytes:sub(1, at) .. "\255\127" .. bytes:sub(at + 3)
    end)
    local status, text = verify(out)
    equal(status, 3)
    assert(text:find "model.norm.weight' is NaN", text)
end

T["a file cut short is corrupt, another model's tensors are missing, another tokenizer is told"] = function()
    local out = damaged("model-int4", function(bytes) return bytes:sub(1, -100) end)
    equal((verify(out)), 6)
    local other = support.scratch()
    synth.model(synth.sizes.qwen3.tiny, other, { seed = 1 })
    local status, text = verify(made() .. "/model-int4", "--against " .. other)
    equal(status, 3)
    assert(text:find("in the source, [256] here", 1, true), text)
    status, text = verify(made() .. "/model-int4", "--against " .. other .. " --json")
    equal(status, 3)
    text = text:match "^{.*\n}"
    local problems = table.concat(core.json_decode(text:match "{.*}", "json").problems, "\n")
    assert(problems:find("q_norm.weight: missing", 1, true) and problems:find("q_proj.bias: not in the source", 1, true), problems)
    out = support.copy(made() .. "/merged-fp16")
    support.write(out .. "/tokenizer.json", support.read(out .. "/tokenizer.json") .. " ")
    status, text = verify(out, "--against " .. BASE .. " --adapter " .. ADAPTER)
    equal(status, 3)
    assert(text:find("tokenizer.json is not the source's", 1, true), text)
end

T["every GGUF type and folder format of a model verifies against it"] = function()
    local m = qm.open(BASE)
    local dir = support.scratch()
    local types = { "f16", "bf16", "f32", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k", "iq4_nl",
                    "iq4_xs" }
    local list = {}
    for i, t in ipairs(types) do
        list[i] = { ("%s/%s.gguf"):format(dir, t), format = t }
    end
    for _, f in ipairs { "int8", "nf4", "fp4", "f16", "int4" } do
        list[#list + 1] = { ("%s/%s"):format(dir, f), format = f }
        list[#list + 1] = (f == "nf4" or f == "int4") and { ("%s/%s-dq"):format(dir, f), format = f, double_quant = true } or nil
    end
    for i = 1, #list, 8 do
        qm.write(m, { unpack(list, i, math.min(i + 7, #list)) })
    end
    local compare = require "qmoon.model_compare"
    for _, o in ipairs(list) do
        local found = compare.verify(qm.open(o[1]), m)
        assert(found.ok, o[1] .. ": " .. tostring(found.problems[1]))
        equal(found.tensors, 50, o[1])
    end
end

T["architectures whose rows or norms lie otherwise in GGUF compare as the same values"] = function()
    for _, name in ipairs { "llama", "gemma2", "mixtral", "qwen3moe", "phi3" } do
        local dir = support.scratch()
        synth.model(synth.sizes[name].tiny, dir, { seed = 2 })
        local file = support.scratch() .. ".gguf"
        local m = qm.open(dir)
        qm.write(m, { { file, format = "f32" } })
        local compare = require "qmoon.model_compare"
        local g = qm.open(file)
        for _, way in ipairs { { m, g }, { g, m } } do
            local r, total, only_a, only_b, differ = compare.compare(way[1], way[2])
            assert(total.max < 1e-6, name .. ": " .. tostring(r))
            equal(#differ, 0, name)
            equal(#only_a + #only_b, 0, name)
            assert(compare.verify(way[2], way[1]).ok, name)
        end
    end
end

T["compare lists the worst first, as text, CSV and JSON"] = function()
    local a, b = made() .. "/merged-fp16", made() .. "/model-q4_0.gguf"
    local status, text = support.run(("compare %s %s --json"):format(a, b))
    equal(status, 0)
    local report = core.json_decode(text:match "{.*}", "json")
    equal(#report.tensors, 50) equal(#report.only_a, 0)
    for i = 2, #report.tensors do
        local x, y = report.tensors[i - 1].sqnr, report.tensors[i].sqnr
        assert(y == core.null or x <= y)
    end
    local own = qm.error(qm.open(a):tensor(CODES), qm.open(b):tensor(CODES))
    for _, row in ipairs(report.tensors) do
        if row.tensor == CODES then
            assert(math.abs(row.sqnr - own.sqnr) < 1e-4 and row.b == "Q4_0", text)
        end
    end
    status, text = support.run(("compare %s %s --csv"):format(a, b))
    equal(status, 0)
    equal(select(2, text:gsub("[^\n,]+,[^\n]+\n", "")), 51)
    status, text = support.run(("compare %s %s --worst 2"):format(a, a))
    equal(status, 0)
    assert(text:find "all the same", text) -- of all 50, though two are shown
end

T["compare and verify say what is wrong with their arguments"] = function()
    for args, want in pairs { ["compare " .. BASE] = "B is missing", ["verify"] = "OUT is missing",
                              [("verify %s --adapter x"):format(BASE)] = "goes with --against", ["compare nosuch " .. BASE] = "no such file" } do
        local status, text = support.run(args)
        assert(status ~= 0 and text:find(want, 1, true), text)
    end
end

return T
