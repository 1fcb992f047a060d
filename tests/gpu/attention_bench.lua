-- attention_bench.lua: attention of prompts on a GPU, in microseconds a layer, keys and values put into the cache included.
--
-- Shapes are [query heads / heads of keys, head]; "+ 4000" are tokens that the cache has from before.

local core = require "qmoon.core"
local median = require("qmoon.bench_inference").median
local qm = require "qmoon"

local ops = qm.ops
local gpu = qm.cuda(0)

local SHAPES = { { "qwen2.5-7b", heads = 28, kv_heads = 4, dim = 128 }, { "llama-3-8b", heads = 32, kv_heads = 8, dim = 128 },
                 { "qwen2.5-1.5b", heads = 12, kv_heads = 2, dim = 128 }, { "llama-3.2-1b", heads = 32, kv_heads = 8, dim = 64 } }
local CALLS = { { 512, 0 }, { 2048, 0 }, { 8192, 0 }, { 64, 4000 } }
local REPEAT = 20

local function measure(m, tokens, before)
    local kv = m.kv_heads * m.dim
    local cache = qm.kv_cache { layers = 1, kv_heads = m.kv_heads, head_dim = m.dim, context = tokens + before, device = gpu }
    local function values(n, cols, seed)
        return qm.randn { n, cols, seed = seed }:to(gpu)
    end
    local function attend(q, k, v)
        return ops.attention(q, k, v, cache, 0, { heads = m.heads, kv_heads = m.kv_heads })
    end
    if before > 0 then
        attend(values(before, m.heads * m.dim, 4), values(before, kv, 5), values(before, kv, 6))
    end
    local q, k, v, times = values(tokens, m.heads * m.dim, 1), values(tokens, kv, 2), values(tokens, kv, 3), {}
    for i = 1, 6 do
        local start, y = core.now(), nil
        for _ = 1, REPEAT do
            cache:truncate(before)
            y = attend(q, k, v)
        end
        ops.argmax(y) -- waits
        times[i] = (core.now() - start) / REPEAT
        collectgarbage()
    end
    cache:close()
    local seconds, products = median({ unpack(times, 2) }), 4 * m.heads * m.dim * (tokens * before + tokens * (tokens + 1) / 2)
    print(("attention %-13s [%d/%d, %d]  %4d%-7s tokens %8.1f us %5.0f TFLOP/s"):format(m[1], m.heads, m.kv_heads, m.dim, tokens,
        before > 0 and " + " .. before or "", seconds * 1e6, products / seconds * 1e-12))
end

print(tostring(gpu))
for _, m in ipairs(SHAPES) do
    for _, c in ipairs(CALLS) do
        measure(m, c[1], c[2])
    end
end
