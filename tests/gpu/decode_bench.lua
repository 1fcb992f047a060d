-- decode_bench.lua [MODEL …]: tokens a second of whole decoders, in the shapes of known models with random NF4 weights.
--
-- Every layer has weights of its own; the output head is bf16, as Hugging Face's checkpoints have it, or NF4 as well.
-- Decoding is one captured step, after a context of 512 tokens; the prompt is 2048 tokens in calls of 2048.

local core = require "qmoon.core"
local median = require("qmoon.bench_inference").median
local qm = require "qmoon"

local ops = qm.ops
local gpu = qm.cuda(0)

local SHAPES = {
    ["qwen2.5-7b"] = { width = 3584, layers = 28, heads = 28, kv_heads = 4, dim = 128, inner = 18944, vocabulary = 152064, bias = true },
    ["llama-3-8b"] = { width = 4096, layers = 32, heads = 32, kv_heads = 8, dim = 128, inner = 14336, vocabulary = 128256 },
    ["qwen2.5-1.5b"] = { width = 1536, layers = 28, heads = 12, kv_heads = 2, dim = 128, inner = 8960, vocabulary = 151936, bias = true },
}
local CONTEXT, STEPS, PROMPT = 512, 128, 2048

local function decoder(m, format)
    local kept = {}
    local function weight(n, k, f)
        local key = n .. "x" .. k
        kept[key] = kept[key] or qm.randn { n, k, std = 0.02, seed = n + k }:to(gpu)
        local q = kept[key]:quantize(f or format)
        return core.prepare(q), q
    end
    local function vector(n)
        return qm.randn { n, std = 0.5, seed = n }:to(gpu)
    end
    local layers, q, kv = {}, m.heads * m.dim, m.kv_heads * m.dim
    for i = 1, m.layers do
        layers[i] = { q = weight(q, m.width), k = weight(kv, m.width), v = weight(kv, m.width), o = weight(m.width, q),
                      gate = weight(m.inner, m.width), up = weight(m.inner, m.width), down = weight(m.width, m.inner),
                      bq = m.bias and vector(q), bk = m.bias and vector(kv), n1 = vector(m.width), n2 = vector(m.width) }
    end
    kept = {}
    local values = qm.uniform { m.vocabulary, m.width, seed = 9 }:to(gpu)
    local table, norm = values:quantize "bf16", vector(m.width)
    local heads = { bf16 = table, [format] = core.prepare(values:quantize(format)) }
    values = nil
    collectgarbage()
    local turn, attend = { head_dim = m.dim, base = 1e6 }, { heads = m.heads, kv_heads = m.kv_heads }
    return function(ids, cache, head)
        local x, at = ops.embedding(table, ids), cache:length()
        for i, l in ipairs(layers) do
            local h = ops.rmsnorm(x, l.n1, 1e-6)
            local q, k, v = ops.linear(h, l.q, l.bq or nil), ops.linear(h, l.k, l.bk or nil), ops.linear(h, l.v, l.bk or nil)
            q, k = ops.rope(q, at, turn), ops.rope(k, at, turn)
            x = ops.add(x, ops.linear(ops.attention(q, k, v, cache, i - 1, attend), l.o))
            h = ops.rmsnorm(x, l.n2, 1e-6)
            x = ops.add(x, ops.feed_forward(h, l.gate, l.up, l.down, "silu"))
        end
        if #ids > 1 then
            return x
        end
        return ops.linear(ops.rmsnorm(x, norm, 1e-6), heads[head])
    end
end

local function ids(n)
    local list = {}
    for i = 1, n do
        list[i] = i * 7919 % 100000
    end
    return list
end

local function measure(name, m, format, forward, head)
    local cache = qm.kv_cache { layers = m.layers, kv_heads = m.kv_heads, head_dim = m.dim, context = PROMPT + 2 * STEPS, device = gpu }
    forward(ids(CONTEXT), cache)
    forward({ 1 }, cache, head)
    cache:truncate(CONTEXT)
    local decode, prompt = {}, {}
    for _, way in ipairs { "launches", "program" } do
        local rates = {}
        local step = core.cuda_step(gpu, cache, function()
            ops.argmax(forward({ 1 }, cache, head))
        end, way == "program")
        for i = 1, 5 do
            cache:truncate(CONTEXT)
            local start = core.now()
            step:run(1, STEPS)
            rates[i] = STEPS / (core.now() - start)
        end
        step:close()
        cache:truncate(CONTEXT)
        decode[#decode + 1] = ("%s %6.0f tokens/s %8.1f us"):format(way, median(rates), 1e6 / median(rates))
    end
    for i = 1, 3 do
        cache:truncate(0)
        local start = core.now()
        local x = forward(ids(PROMPT), cache)
        ops.argmax(x) -- waits
        prompt[i] = PROMPT / (core.now() - start)
    end
    cache:close()
    print(("%-14s %-5s head %-5s  decode: %s   prompt %7.0f tokens/s"):format(name, format, head,
        table.concat(decode, ", "), median(prompt)))
    io.stdout:flush()
end

print(tostring(gpu))
for _, name in ipairs(#arg > 0 and arg or { "qwen2.5-1.5b", "qwen2.5-7b", "llama-3-8b" }) do
    local m = SHAPES[name]
    local forward = decoder(m, "nf4")
    measure(name, m, "nf4", forward, "bf16")
    measure(name, m, "nf4", forward, "nf4")
    forward = nil
    collectgarbage()
    collectgarbage()
end
