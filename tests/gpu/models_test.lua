-- Models of every architecture, small and random, on a GPU: what they compute there is what they compute here.

local support = dofile "tests/lua/support.lua"
local same_choices = dofile "tests/gpu/choices.lua"
local synth = require "qmoon.synth"

local ops = qm.ops
local gpu = qm.cuda(0)
local tests = {}

local function ids_of(n)
    local ids = {}
    for i = 1, n do
        ids[i] = (i * 7919 + 13) % 599
    end
    return ids
end

--- The largest difference beside the largest value.
local function difference(a, b)
    local x, y, most, off = a:to(qm.cpu):values(), b:to(qm.cpu):values(), 0, 0
    assert(#x == #y)
    for i, v in ipairs(x) do
        assert(v == v and y[i] == y[i], "NaN")
        most, off = math.max(most, math.abs(v)), math.max(off, math.abs(v - y[i]))
    end
    return off / most
end

--- A folder with a model of an architecture's tiny size, but wide enough for groups of 64.
local function folder(name)
    local size = {}
    for key, value in pairs(synth.sizes[name].tiny) do
        size[key] = value
    end
    size.hidden_size, size.intermediate_size = 128, 320
    size.moe_intermediate_size = size.moe_intermediate_size and 128
    size.shared_expert_intermediate_size = size.shared_expert_intermediate_size and 192
    local dir = support.scratch()
    synth.model(size, dir, { seed = 5 })
    return dir
end

local function agree(path, limit, what)
    local here, there = qm.load(path, { exact = true }), qm.load(path, { device = gpu, kv = "f32", program = false })
    local prompt = ids_of(50)
    local d = difference(here:forward(prompt, nil, { all = true }), there:forward(prompt, nil, { all = true }))
    assert(d <= limit, ("%s: logits are off by %.3g of the largest, allowed %.3g"):format(what, d, limit))
    local o = { ids = { unpack(prompt, 1, 6) }, tokens = 20, ignore_eos = true }
    local chosen, walked = here:generate(o).ids, qm.load(path, { device = gpu })
    same_choices(here, o.ids, chosen, there:generate(o).ids, 5e-3, what)
    same_choices(here, o.ids, chosen, walked:generate(o).ids, 5e-3, what .. ", as programs")
    local cache, ids = there:cache(32), {}
    local logits = there:forward(o.ids, cache)
    for i = 1, 20 do
        ids[i] = ops.argmax(logits)[1]
        logits = there:forward({ ids[i] }, cache)
    end
    assert(table.concat(ids, " ") == table.concat(there:generate(o).ids, " "), what .. ": the captured step chooses otherwise")
    o.temperature, o.top_p, o.seed = 0.9, 0.9, 3
    local drawn = table.concat(there:generate(o).ids, " ")
    assert(drawn == table.concat(there:generate(o).ids, " "), what .. ": two runs draw otherwise")
    return d
end

for _, name in ipairs { "gemma", "gemma2", "gemma3", "llama", "mistral", "mixtral", "phi3", "qwen2", "qwen2moe", "qwen3", "qwen3moe" } do
    tests[name .. " in bf16, nf4 and q4_0"] = function()
        local dir = folder(name)
        local out = support.scratch()
        qm.write(qm.open(dir), { { out .. "/nf4", format = "nf4", double_quant = true }, { out .. "/q4_0.gguf", format = "q4_0" } })
        print(("    %-10s off by %.2g in bf16, %.2g in nf4, %.2g in q4_0"):format(name, agree(dir, 1e-4, name),
            agree(out .. "/nf4", 3e-3, name .. " in nf4"), agree(out .. "/q4_0.gguf", 3e-3, name .. " in q4_0")))
    end
end

local BASE = "tests/fixtures/tiny-qwen2"

tests["a step draws what single calls draw"] = function()
    local lm = qm.load(BASE, { device = gpu, program = false })
    local o = { ids = { 465, 303, 5 }, tokens = 40, temperature = 1.1, top_k = 50, top_p = 0.95, seed = 11, ignore_eos = true }
    local step, cache, ids = lm:generate(o).ids, lm:cache(64), {}
    local logits = lm:forward(o.ids, cache)
    for i = 1, 40 do
        local options = { temperature = 1.1, top_k = 50, top_p = 0.95, seed = 11, step = i - 1 }
        ids[i] = ops.sample(logits, options)
        assert(ids[i] == ops.sample(logits:to(qm.cpu), options), "the CPU draws otherwise")
        logits = lm:forward({ ids[i] }, cache)
    end
    assert(table.concat(ids, " ") == table.concat(step, " "))
end

tests["LLM.int8 on both sides"] = function()
    local out = support.scratch()
    qm.write(qm.open(BASE), { { out, format = "int8" } })
    local here, there = qm.load(out, { llm_int8 = true }), qm.load(out, { llm_int8 = true, device = gpu, kv = "f32" })
    for _, n in ipairs { 1, 7, 60 } do
        local d = difference(here:forward(ids_of(n), nil, { all = true }), there:forward(ids_of(n), nil, { all = true }))
        assert(d <= 3e-2, ("%d tokens: off by %.3g"):format(n, d)) -- a code that falls on the other side goes a long way
    end
    local o = { ids = ids_of(6), tokens = 20, ignore_eos = true }
    same_choices(here, o.ids, here:generate(o).ids, there:generate(o).ids, 5e-3, "int8")
end

tests["every type of cache, and the commands"] = function()
    local text = support.scratch()
    support.write(text, support.read "README.md" :sub(1, 6000))
    for _, kv in ipairs { "f32", "f16", "bf16", "q8_0" } do
        local ppl = {}
        for _, device in ipairs { "cpu", "cuda:0" } do
            local status, out = support.run(("perplexity %s --text %s --window 256 --kv %s --device %s --json"):format(BASE, text, kv, device))
            assert(status == 0, out)
            ppl[device] = tonumber(out:match '"ppl"%s*:%s*([%d.]+)')
            assert(ppl[device], out)
        end
        print(("    perplexity with %-4s keys and values: %.5f, on a GPU %.5f"):format(kv, ppl.cpu, ppl["cuda:0"]))
        assert(math.abs(ppl["cuda:0"] / ppl.cpu - 1) <= 1e-3, kv)
    end
    local status, out = support.run(("perplexity %s --text %s --window 256 --reference %s --by-layer --device cuda:0 --json"):format(BASE, text, BASE))
    assert(status == 0 and out:match '"kl_max"%s*:%s*0[^.]', out)
    local tasks = support.scratch()
    support.write(tasks, '{"prompt": "The city is", "choices": [" old", " new", " far away"], "answer": 1}\n'
        .. '{"prompt": "It was a", "choices": [" day", " dark and stormy night"], "answer": 0}\n')
    local labels = {}
    for _, device in ipairs { "cpu", "cuda:0" } do
        status, out = support.run(("evaluate %s --tasks %s --device %s --json"):format(BASE, tasks, device))
        assert(status == 0, out)
        labels[device] = out:match '"labels"%s*:%s*(%b[])'
    end
    assert(labels.cpu and labels.cpu == labels["cuda:0"], out)
    for _, more in ipairs { "", "--temp 0.8 --top-p 0.9 --seed 3", "--kv q8_0" } do
        local status, out = support.run(("generate %s --prompt 'Once upon a time' --tokens 20 --device cuda:0 %s"):format(BASE, more))
        assert(status == 0, out)
    end
end

tests["a NaN among the logits is an error"] = function()
    local bad = qm.tensor { { 1, 0 / 0, 3 } }:to(gpu)
    support.raises("fail", "NaN", ops.argmax, bad)
    support.raises("fail", "NaN", ops.sample, bad)
    support.raises("fail", "NaN", ops.sample, bad, { temperature = 0 })
    support.raises("fail", "no number", ops.sample, qm.tensor { { -math.huge, -math.huge } }:to(gpu))
    assert(ops.sample(qm.tensor { { -math.huge, 2, -math.huge } }:to(gpu)) == 1)
    assert(ops.argmax(qm.tensor { { -0.0, 0.0, -1 } }:to(gpu))[1] == 0, "zeros are equal")
end

return tests
