-- experts_bench.lua: a mixture of experts and the drawing of tokens on a GPU, in microseconds; in a captured step, as decoding
-- has them.
--
-- Layers have weights of their own, in NF4, and routers of random logits, so that every layer chooses other experts.  Beside the
-- time is what reading the chosen experts once takes at the rate of a copy.

local core = require "qmoon.core"
local median = require("qmoon.bench_inference").median
local qm = require "qmoon"

local ops = qm.ops
local gpu = qm.cuda(0)

local SHAPES = { { "qwen3-30b-a3b", experts = 128, k = 8, dim = 2048, inner = 768, layers = 6 },
                 { "mixtral-8x7b", experts = 8, k = 2, dim = 4096, inner = 14336, layers = 2 } }
local READ = 4.2e12 -- bytes a second
local REPEAT = 4

--- Seconds of one captured step.
local function timed(record)
    local cache = qm.kv_cache { layers = 1, kv_heads = 1, head_dim = 64, context = 1024, device = gpu }
    record()
    local step, times = core.cuda_step(gpu, cache, record), {}
    for i = 1, 7 do
        cache:truncate(0)
        local start = core.now()
        step:run(1, 20)
        times[i] = (core.now() - start) / 20
    end
    step:close()
    cache:close()
    return median(times)
end

local function experts(m, rows, cols, seed)
    local w, list = qm.randn { rows, cols, std = 0.02, seed = seed }:to(gpu), {}
    for e = 1, m.experts do
        list[e] = core.prepare(w:quantize "nf4")
    end
    return list
end

local function layers_of(m)
    local layers = {}
    for i = 1, m.layers do
        layers[i] = { experts(m, m.inner, m.dim, i), experts(m, m.inner, m.dim, i + 50), experts(m, m.dim, m.inner, i + 100) }
        collectgarbage()
    end
    return layers
end

local function chain(m, layers, tokens)
    local x, routers = qm.randn { tokens, m.dim, seed = 1 }:to(gpu), {}
    for i = 1, m.layers do
        routers[i] = qm.randn { tokens, m.experts, seed = 200 + i }:to(gpu)
    end
    local function run(n)
        local y
        for r = 1, n do
            local l = layers[(r - 1) % m.layers + 1]
            y = ops.moe(x, routers[(r - 1) % m.layers + 1], m.k, nil, l[1], l[2], l[3])
        end
        return y
    end
    return run
end

print(tostring(gpu))
for _, m in ipairs(SHAPES) do
    local layers = layers_of(m)
    local bytes = 3 * m.dim * m.inner * 4.5 / 8
    for _, tokens in ipairs { 1, 2, 4, 8 } do
        local run, n = chain(m, layers, tokens), tokens == 1 and REPEAT * m.layers or m.layers -- a step's memory is bounded
        local seconds = timed(function()
            ops.argmax(ops.rows(run(n), 0, 1))
        end) / n
        local chosen = m.experts * (1 - (1 - m.k / m.experts) ^ tokens)
        print(("%-14s %4d tokens %9.1f us a layer, reading %6.1f"):format(m[1], tokens, 1e6 * seconds, 1e6 * chosen * bytes / READ))
    end
    for _, tokens in ipairs { 64, 512 } do
        local run, times = chain(m, layers, tokens), {}
        for i = 1, 5 do
            local start = core.now()
            ops.argmax(run(m.layers)) -- waits
            times[i] = (core.now() - start) / m.layers
        end
        print(("%-14s %4d tokens %9.1f us a layer"):format(m[1], tokens, 1e6 * median(times)))
    end
    layers = nil
    collectgarbage()
    collectgarbage()
end

local logits = qm.randn { 1, 151936, std = 3, seed = 3 }:to(gpu)
for _, o in ipairs { { "argmax" }, { "temperature 0.8", temperature = 0.8 }, { "top_p 0.9", top_p = 0.9 }, { "top_k 40", top_k = 40 },
                     { "top_k 40, top_p 0.9", top_k = 40, top_p = 0.9 } } do
    local options = { temperature = o.temperature, top_k = o.top_k, top_p = o.top_p, seed = 1 }
    print(("%-22s %8.1f us of 151936 logits"):format(o[1], 1e6 * timed(function()
        for _ = 1, 20 do
            if #o[1] > 6 then
                ops.sample(logits, options)
            else
                ops.argmax(logits)
            end
        end
    end) / 20))
end
