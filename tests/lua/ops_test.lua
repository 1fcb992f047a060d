-- Ops: torch's values, every weight format against its own decoded values, wrong arguments of every op (made from
-- the descriptors), NaN, thread counts.

local core = require "qmoon.core"
local qm = require "qmoon"
local support = dofile "tests/lua/support.lua"

local equal = support.equal
local ops = qm.ops

-- Wrong types raise strings, what the core refuses error objects.
local function raises(fn, text)
    local ok, e = pcall(fn)
    assert(not ok, "no error was raised where '" .. text .. "' was expected")
    assert(tostring(e):find(text, 1, true), ("'%s' is not in: %s"):format(text, tostring(e)))
end

local T = {}
local NAN = 0 / 0

-- ---- inputs, as tests/peers/ops.py makes them ----------------------------------------------------------------

local function v(seed, ...)
    local shape, n, list = { ... }, 1, {}
    for _, d in ipairs(shape) do
        n = n * d
    end
    for i = 0, n - 1 do
        list[i + 1] = ((7919 * i + 611953 * seed) % 2003 - 1001) / 512
    end
    return core.tensor(shape, list)
end

local function cache(kv_heads, head_dim, dtype)
    return qm.kv_cache { layers = 2, kv_heads = kv_heads, head_dim = head_dim, context = 200, dtype = dtype or "f32" }
end

-- t x n ones, but for every column that leaves `rest` when divided by `every`.
local function columns(t, n, every, rest, value)
    local list = {}
    for i = 0, t * n - 1 do
        list[i + 1] = i % n % every == rest and value or 1
    end
    return core.tensor({ t, n }, list)
end

-- t[i] of a stack, as a list.
local function list_of(stack)
    local shape, values, list = stack:info().shape, stack:values(), {}
    local each = shape[2] * shape[3]
    for i = 1, shape[1] do
        list[i] = core.tensor({ shape[2], shape[3] }, { unpack(values, (i - 1) * each + 1, i * each) })
    end
    return list
end

local function stack(t)
    return t
end

local HELPERS = { v = v, cache = cache, columns = columns, list = list_of, stack = stack, tensor = qm.tensor }
local ENV = setmetatable({}, { __index = function(_, name)
    return HELPERS[name] or ops[name]
end })

local function evaluate(expression)
    return setfenv(assert(loadstring("return " .. expression)), ENV)()
end

local function largest(list)
    local most = 0
    for _, x in ipairs(list) do
        most = math.max(most, math.abs(x))
    end
    return most
end

-- Every value within `tolerance` of the largest one.
local function near(got, want, tolerance, what)
    equal(#got, #want, what .. ": count")
    local most = largest(want) * tolerance
    for i, x in ipairs(want) do
        assert(math.abs(got[i] - x) <= most, ("%s: value %d is %.9g, not %.9g"):format(what, i, got[i], x))
    end
end

T["torch's values"] = function()
    for _, case in ipairs(dofile "tests/fixtures/ops.lua") do
        local name, expression, want, tolerance = case[1], case[2], case[4] or case[3], case[4] and case[3] or 2e-6
        near(evaluate(expression):values(), want, tolerance, name)
    end
end

-- ---- linear over every format -------------------------------------------------------------------------------------

local function formats()
    local list = {}
    for _, f in ipairs(core.formats()) do
        list[#list + 1] = f.name
    end
    for _, more in ipairs { "nf4:32", "nf4:128:dq", "fp4:dq", "nf4:4096", "int4:row" } do
        list[#list + 1] = more
    end
    return list
end

T["linear over a weight of any format is linear over its decoded values"] = function()
    local tried = 0
    for _, shape in ipairs { { 9, 512 }, { 33, 256 }, { 5, 100 }, { 17, 33 } } do
        local w = qm.randn { shape[1], shape[2], seed = 3, std = 0.1 }
        for _, name in ipairs(formats()) do
            local ok, q = pcall(w.quantize, w, name)
            if ok then
                tried = tried + 1
                for _, t in ipairs { 1, 2, 5, 17 } do
                    local x = v(t, t, shape[2])
                    near(ops.linear(x, q):values(), ops.linear(x, q:dequantize()):values(), 1e-5,
                         ("%s, %d x %d, %d tokens"):format(name, shape[1], shape[2], t))
                end
                near(ops.embedding(q, { shape[1] - 1, 0 }):values(), ops.embedding(q:dequantize(), { shape[1] - 1, 0 }):values(),
                     0, name .. ": embedding")
            end
        end
    end
    assert(tried > 100, "only " .. tried .. " formats took these shapes")
end

T["linear over a codebook, and experts of a quantised stack"] = function()
    local book = qm.codebook { -1, -0.5, -0.1, 0, 0.2, 0.7, 1 }
    local q = qm.randn { 20, 96, seed = 1 }:quantize(book, { block = 32 })
    near(ops.linear(v(1, 3, 96), q):values(), ops.linear(v(1, 3, 96), q:dequantize()):values(), 1e-5, "codebook")
    local x, router = v(1, 7, 64), v(2, 7, 3)
    local gate, up, down = qm.randn { 3, 32, 64, seed = 1 }, qm.randn { 3, 32, 64, seed = 2 }, qm.randn { 3, 64, 32, seed = 3 }
    for _, format in ipairs { "nf4:dq", "q8_0", "q4_0", "f16" } do
        local g, u, d = gate:quantize(format), up:quantize(format), down:quantize(format)
        near(ops.moe(x, router, 2, {}, g, u, d):values(),
             ops.moe(x, router, 2, nil, g:dequantize(), u:dequantize(), d:dequantize()):values(), 1e-5, format)
    end
end

-- ---- weights laid out for speed ------------------------------------------------------------------------------------

-- Both sides within the tolerance that docs/numerics.md states, relative to the largest value.
local PREPARED = 2e-4

-- What runs at a lower level than this CPU's.
local function at_level(level, run)
    local best = core.simd()
    core.simd(level)
    local result = run()
    core.simd(best)
    return result
end

local function prepared_is_plain(w, what)
    local p, shape = ops.prepare(w), w:info().shape
    local rows, cols = shape[#shape - 1], shape[#shape]
    for _, t in ipairs { 1, 2, 4, 7, 13, 17, 40 } do
        local x, bias = v(t, t, cols), v(9, rows)
        local fast = ops.linear(x, p, bias)
        near(fast:values(), ops.linear(x, w, bias):values(), PREPARED, ("%s, %d tokens"):format(what, t))
        assert(at_level("avx2", function() return ops.linear(x, p, bias):plane(1) end) == fast:plane(1),
            ("%s, %d tokens: AVX2 gives other bits"):format(what, t))
    end
    near(p:values(), w:values(), 0, what .. ": values")
    return p
end

T["a prepared weight of any format gives what the plain one does"] = function()
    for _, shape in ipairs { { 40, 512 }, { 16, 256 }, { 7, 768 }, { 19, 96 }, { 33, 160 }, { 5, 37 } } do
        local w = qm.randn { shape[1], shape[2], seed = 5, std = 0.05 }
        for _, name in ipairs(formats()) do
            local ok, q = pcall(w.quantize, w, name)
            if ok then
                prepared_is_plain(q, ("%s, %d x %d"):format(name, shape[1], shape[2]))
            end
        end
    end
    prepared_is_plain(qm.randn { 20, 96, seed = 1 }:quantize(qm.codebook { -1, -0.5, -0.1, 0, 0.2, 0.7, 1 }, { block = 32 }), "codebook")
end

T["below AVX2 a prepared weight is computed with as it decodes"] = function()
    local x, w = v(1, 3, 96), qm.randn { 19, 96, seed = 5 }:quantize "q4_0"
    local p = ops.prepare(w)
    at_level("scalar", function()
        assert(ops.linear(x, p):plane(1) == ops.linear(x, w):plane(1))
        equal(ops.prepare(w):info().bytes, w:info().bytes)
    end)
end

T["prepared weights: stacks of experts, twice, without rows, with NaN, of huge and tiny values"] = function()
    local x, router = v(1, 7, 64), v(2, 7, 3)
    for _, rows in ipairs { 32, 24 } do -- 24: experts that do not begin with a panel
        local gate, up, down = qm.randn { 3, rows, 64, seed = 1 }, qm.randn { 3, rows, 64, seed = 2 }, qm.randn { 3, 64, rows, seed = 3 }
        for _, format in ipairs { "nf4:32", "q8_0", "f16" } do
            local ok, d = pcall(down.quantize, down, format)
            if ok then
                local g, u = gate:quantize(format), up:quantize(format)
                near(ops.moe(x, router, 2, {}, ops.prepare(g), ops.prepare(u), ops.prepare(d)):values(),
                     ops.moe(x, router, 2, {}, g, u, d):values(), PREPARED, format)
            end
        end
    end
    local w = qm.randn { 33, 64, seed = 1 }:quantize "q4_0"
    local twice = ops.prepare(ops.prepare(w))
    equal(tostring(twice):match "^%S+ %S+", tostring(w):match "^%S+ %S+")
    local y = ops.linear(v(1, 1, 64), twice):values()
    w:close()
    collectgarbage()
    near(ops.linear(v(1, 1, 64), twice):values(), y, 0, "after the first is closed")
    equal(#ops.linear(core.tensor({ 0, 64 }, {}), twice):values(), 0)
    equal(ops.prepare(v(1, 5)):info().count, 5)
    local list = v(3, 64):values()
    list[40] = NAN
    assert(ops.linear(core.tensor({ 1, 64 }, list), twice):stats().nan == 33, "NaN was lost")
    for _, scale in ipairs { 1e30, 1e-30, 1e-36, 0 } do
        local scaled = ops.scale(v(3, 3, 64), scale)
        near(ops.linear(scaled, twice):values(), ops.linear(scaled, twice:dequantize()):values(), scale > 1e-30 and PREPARED or 1, "scale " .. scale)
    end
end

T["calls at once give what they give one after another"] = function()
    local before, weights = ops.threads(), {}
    for i, word in ipairs { "q4_0", "q8_0", "nf4", "nf4:dq", "q6_k", "q4_k", "f16", "f32", "int8", "int4" } do
        for j, rows in ipairs { 300, 16, 7 } do
            local w = qm.randn { rows, 256, seed = 10 * i + j }:quantize(word)
            weights[#weights + 1] = { w, nil }
            weights[#weights + 1] = { ops.prepare(w), v(i, rows) }
        end
    end
    local other = v(9, 5, 256)
    for _, threads in ipairs { 1, 2, 5 } do
        ops.threads(threads)
        for _, t in ipairs { 1, 5, 70 } do
            local x = v(5, t, 256)
            for at = 1, #weights do
                local calls, want = {}, {}
                for n = 1, 1 + at % 8 do -- up to 8 calls, of changing company
                    local w = weights[(at + 7 * n) % #weights + 1]
                    calls[n] = { n == 5 and other or x, w[1], w[2] }
                    want[n] = ops.linear(calls[n][1], w[1], w[2])
                end
                local got = { ops.at_once("linear", unpack(calls)) }
                equal(#got, #calls)
                for n, y in ipairs(got) do
                    assert(y:plane(1) == want[n]:plane(1), ("call %d of %d, %d tokens"):format(n, #calls, t))
                end
            end
        end
    end
    ops.threads(before)
    local x, w = v(1, 2, 64), v(2, 3, 64)
    local a, b = ops.at_once("add", { x, x }, { w, w })
    assert(a:plane(1) == ops.add(x, x):plane(1) and b:plane(1) == ops.add(w, w):plane(1), "an op without a way of its own")
    equal(select("#", ops.at_once "linear"), 0)
    raises(function() ops.at_once("linear", { x, w }, { x, v(1, 3, 65) }) end, "its K is 65")
    raises(function() ops.at_once("linear", { x, w }, { x }) end, "weight is missing")
    raises(function() ops.at_once("linear", { x, w }, { x, 5 }) end, "weight must be a tensor")
    raises(function() ops.at_once("linear", { x, w }, x) end, "table expected")
    raises(function() ops.at_once("argmax", { x }) end, "no op 'argmax' that makes a tensor")
    raises(function() ops.at_once("linear", { x, w }, { x, w }, { x, w }, { x, w }, { x, w }, { x, w }, { x, w }, { x, w },
        { x, w }) end, "8 at most")
end

T["a feed-forward is its products and their gate, bit for bit"] = function()
    local formats, before = { "q4_0", "nf4", "f16", "f32" }, ops.threads()
    for i, word in ipairs(formats) do
        local other = formats[i % 4 + 1]
        local gate, up = qm.randn { 128, 256, seed = i }:quantize(word), qm.randn { 128, 256, seed = 10 + i }:quantize(other)
        local down = qm.randn { 37, 128, seed = 20 + i }:quantize(word)
        for _, w in ipairs { { gate, up, down }, { ops.prepare(gate), ops.prepare(up), ops.prepare(down) }, { ops.prepare(gate), up, down } } do
            for _, t in ipairs { 1, 5, 70 } do
                local x, b, c, d = v(5, t, 256), t == 5 and v(6, 128) or nil, t == 70 and v(7, 128) or nil, t == 5 and v(8, 37) or nil
                local g, u = ops.linear(x, w[1], b), ops.linear(x, w[2], c)
                for _, threads in ipairs { 1, 3 } do
                    ops.threads(threads)
                    local what = ("%s, %d tokens"):format(word, t)
                    for kind, gated in pairs { silu = ops.swiglu, gelu_tanh = ops.geglu } do
                        equal(ops.feed_forward(x, w[1], w[2], w[3], kind, b, c, d):plane(1), ops.linear(gated(g, u), w[3], d):plane(1), what)
                    end
                end
            end
        end
    end
    ops.threads(before)
end

-- ---- the cache ---------------------------------------------------------------------------------------------------

-- Types of cached numbers, and how far attention over them may be from that over f32.
local KEPT = { { "f32", 0 }, { "f16", 1e-3 }, { "bf16", 1e-2 }, { "q8_0", 1e-2 } }

T["attention a token at a time is attention of all at once, and a cache can be cut back and copied"] = function()
    local q, k, values = v(1, 70, 128), v(2, 70, 64), v(3, 70, 64)
    local shape = { heads = 4, kv_heads = 2, window = 40 }
    local exact = ops.attention(q, k, values, cache(2, 32), 0, shape):values()
    for _, kept in ipairs(KEPT) do
        local dtype = kept[1]
        local all = ops.attention(q, k, values, cache(2, 32, dtype), 0, shape):values()
        near(all, exact, kept[2], dtype)
        local one = cache(2, 32, dtype)
        local function row(t, i)
            return ops.embedding(t, { i })
        end
        for i = 0, 69 do
            local y = ops.attention(row(q, i), row(k, i), row(values, i), one, 0, shape):values()
            for j = 1, 128 do
                equal(y[j], all[128 * i + j], ("%s: token %d, value %d"):format(dtype, i, j))
            end
        end
        equal(one:length(), 0, "layer 1 holds nothing yet")
        ops.attention(row(q, 0), row(k, 0), row(values, 0), one, 1, shape)
        equal(one:length(), 1)
        local other = one:copy()
        one:truncate(0)
        equal(one:length(), 0)
        equal(other:length(), 1)
        near(ops.attention(row(q, 1), row(k, 1), row(values, 1), other, 1, shape):values(), { unpack(all, 129, 256) }, 0, dtype .. ": a copy")
        local again = ops.attention(q, k, values, one, 0, shape):values()
        near(again, all, 0, "after truncate")
        local bits = { f32 = 32, f16 = 16, bf16 = 16, q8_0 = 8.5 }
        equal(other:bytes(), 2 * 2 * 2 * 200 * 32 * bits[dtype] / 8)
        equal(other:info().dtype, dtype)
    end
end

T["what an 8-bit cache cannot hold is not lost in it"] = function()
    for _, odd in ipairs { NAN, math.huge } do
        local list = v(2, 1, 32):values()
        list[5] = odd
        local y = ops.attention(v(1, 1, 32), v(2, 1, 32), core.tensor({ 1, 32 }, list), cache(1, 32, "q8_0"), 0, { heads = 1, kv_heads = 1 })
        equal(y:stats().nan, 32)
    end
    raises(function() cache(1, 80, "q8_0") end, "heads of 80")
end

T["a full cache refuses and stays as it was"] = function()
    local small = qm.kv_cache { layers = 1, kv_heads = 1, head_dim = 4, context = 3 }
    local shape = { heads = 1, kv_heads = 1 }
    ops.attention(v(1, 2, 4), v(2, 2, 4), v(3, 2, 4), small, 0, shape)
    raises(function() ops.attention(v(1, 2, 4), v(2, 2, 4), v(3, 2, 4), small, 0, shape) end, "larger context")
    equal(small:length(), 2)
    raises(function() ops.attention(v(1, 1, 4), v(2, 1, 4), v(3, 1, 4), small, 1, shape) end, "layers 0 to 0")
    raises(function() ops.attention(v(1, 1, 8), v(2, 1, 8), v(3, 1, 8), small, 0, { heads = 2, kv_heads = 2 }) end, "cache of 1 heads of 4")
    small:close()
    raises(function() small:length() end, "closed")
end

-- ---- choosing ----------------------------------------------------------------------------------------------------

T["argmax, and draws that follow their probabilities"] = function()
    equal(table.concat(ops.argmax(qm.tensor { { 1, 3, 3 }, { -5, -7, -6 } }), " "), "1 0")
    local logits = qm.tensor { { 9, 9, 9, 9 }, { math.log(0.5), math.log(0.3), math.log(0.15), math.log(0.05) } }
    local function counts(options)
        local n = { [0] = 0, 0, 0, 0 }
        for step = 1, 4000 do
            options.step = step
            local id = ops.sample(logits, options)
            n[id] = n[id] + 1
        end
        return n
    end
    local n = counts { seed = 7 }
    for i, p in ipairs { 0.5, 0.3, 0.15, 0.05 } do
        assert(math.abs(n[i - 1] / 4000 - p) < 0.03, ("id %d: %d of 4000"):format(i - 1, n[i - 1]))
    end
    n = counts { seed = 7, top_k = 2 }
    equal(n[2] + n[3], 0)
    assert(math.abs(n[0] / 4000 - 0.625) < 0.03)
    n = counts { seed = 8, top_p = 0.79 } -- 0.5 and 0.3 reach it
    equal(n[2] + n[3], 0)
    n = counts { seed = 8, top_p = 0.81 }
    equal(n[3], 0)
    assert(n[2] > 300)
    n = counts { seed = 1, temperature = 0.25 } -- 0.5^4 : 0.3^4
    assert(math.abs(n[0] / 4000 - 0.8785) < 0.03)
    equal(ops.sample(logits, { temperature = 0 }), 0)
    equal(ops.sample(logits, { seed = 3, step = 9 }), ops.sample(logits, { seed = 3, step = 9 }))
end

T["NaN and infinities: shown or refused, never drawn"] = function()
    raises(function() ops.argmax(qm.tensor { { 1, NAN, 3 } }) end, "NaN in column 1")
    raises(function() ops.sample(qm.tensor { { 1, NAN, 3 } }) end, "NaN")
    raises(function() ops.sample(qm.tensor { { -math.huge, -math.huge } }) end, "no number")
    equal(ops.sample(qm.tensor { { -math.huge, 2, -math.huge } }), 1)
    local x = qm.tensor { { 1, NAN, 3, 4 } }
    for _, y in ipairs { ops.softmax(x), ops.linear(x, v(1, 3, 4)), ops.rmsnorm(x, v(1, 4), 0), ops.swiglu(x, x),
                         ops.activation(x, "gelu"), ops.softcap(x, 3), ops.rope(x, 0, { head_dim = 4 }) } do
        assert(y:stats().nan > 0, "a NaN went in and none came out")
    end
    equal(ops.activation(qm.tensor { -1e30, -200, 1e30 }, "silu"):values()[1], 0)
    equal(ops.activation(qm.tensor { -1e30, -200, 200 }, "silu"):values()[3], 200)
    equal(ops.softmax(qm.tensor { { -math.huge, 0 } }):values()[1], 0)
    assert(ops.attention(x, v(2, 1, 4), v(3, 1, 4), cache(1, 4), 0, { heads = 1, kv_heads = 1 }):stats().nan > 0)
end

T["rows, columns and gates"] = function()
    local x = qm.tensor { { 1, 2, 3 }, { 4, 5, 6 }, { 7, 8, 9 } }
    equal(table.concat(ops.rows(x, 1, 2):values(), " "), "4 5 6 7 8 9")
    equal(table.concat(ops.columns(x, 1, 2):values(), " "), "2 3 5 6 8 9")
    equal(#ops.rows(x, 3, 0):values() + #ops.columns(x, 0, 0):values(), 0)
    raises(function() ops.rows(x, 2, 2) end, "rows 2 to 3 of 3")
    raises(function() ops.columns(x, 0, 4) end, "columns 0 to 3 of 3")
    equal(table.concat(ops.gated(x, qm.tensor { { 0 }, { 100 }, { -1000 } }):values(), " "), "0.5 1 1.5 4 5 6 0 0 0")
    raises(function() ops.gated(x, v(1, 3, 2)) end, "one gate")
end

-- p ln(p / q) summed by hand; what is added to all logits of a row changes nothing, and no probability is no trouble.
T["divergence of predictions"] = function()
    local p, q, expected = { 0.5, 0.25, 0.25 }, { 0.2, 0.2, 0.6 }, 0
    local function logits(list, shift)
        local t = {}
        for i, value in ipairs(list) do
            t[i] = math.log(value) + shift
        end
        return t
    end
    for i = 1, 3 do
        expected = expected + p[i] * math.log(p[i] / q[i])
    end
    local kl = ops.kl(qm.tensor { logits(p, 3), logits(p, 0), { 0, 0, -2000 } },
        qm.tensor { logits(q, -50), logits(p, 9), { 0, 0, 2 } }):values()
    near(kl, { expected, 0, math.log(1 + math.exp(2) / 2) }, 1e-6, "kl")
end

-- ---- GPUs --------------------------------------------------------------------------------------------------------

-- tests/gpu/registry_test.lua compares what they compute.
T["every op runs on a GPU too, in a build that has CUDA"] = function()
    local there = {}
    for _, name in ipairs(core.cuda_ops() or {}) do
        assert(ops[name], name .. " is no op")
        there[name] = true
    end
    for _, op in ipairs(next(there) and ops.list() or {}) do
        assert(there[op.name], op.name .. " has no way on a GPU; cuda/run.c has the list of them")
    end
end

-- ---- threads -----------------------------------------------------------------------------------------------------

T["results do not depend on the number of threads"] = function()
    local w = { qm.randn { 300, 256, seed = 1 } }
    for _, format in ipairs { "q4_0", "nf4", "q6_k", "f16" } do
        w[#w + 1] = w[1]:quantize(format)
        w[#w + 1] = ops.prepare(w[#w])
    end
    local before, results = ops.threads(), {}
    for _, threads in ipairs { 1, 2, 3, 7 } do
        equal(ops.threads(threads), threads)
        local out = {}
        for _, weight in ipairs(w) do
            for _, t in ipairs { 1, 40 } do
                out[#out + 1] = ops.linear(v(5, t, 256), weight):plane(1)
            end
        end
        out[#out + 1] = ops.attention(v(1, 90, 64), v(2, 90, 32), v(3, 90, 32), cache(4, 8), 0, { heads = 8, kv_heads = 4 }):plane(1)
        out[#out + 1] = ops.rmsnorm(v(1, 500, 300), v(2, 300), 1e-6):plane(1)
        results[#results + 1] = table.concat(out)
    end
    ops.threads(before)
    for i = 2, #results do
        assert(results[i] == results[1], "bytes differ")
    end
end

-- ---- wrong arguments ---------------------------------------------------------------------------------------------

-- A call of every op that works, as a list of arguments; `fields` are those of its table.
local GOOD = {
    activation = { v(1, 2, 4), "silu" },
    add = { v(1, 2, 4), v(2, 2, 4) },
    argmax = { v(1, 2, 4) },
    attention = { v(1, 2, 8), v(2, 2, 4), v(3, 2, 4), false, 0, { heads = 2, kv_heads = 1 } },
    columns = { v(1, 2, 4), 1, 3 },
    embedding = { v(1, 3, 4), { 0, 2 } },
    feed_forward = { v(1, 2, 4), v(2, 3, 4), v(3, 3, 4), v(4, 4, 3), "silu", v(5, 3), v(6, 3), v(7, 4) },
    gated = { v(1, 2, 4), v(2, 2, 1) },
    geglu = { v(1, 2, 4), v(2, 2, 4) },
    kl = { v(1, 2, 4), v(2, 2, 4) },
    linear = { v(1, 2, 4), v(2, 3, 4), v(3, 3) },
    linear_int8 = { v(1, 2, 4), v(2, 3, 4):quantize "int8", v(3, 3), 6 },
    logprobs = { v(1, 2, 4), { 0, 3 } },
    lora = { v(1, 2, 5), v(2, 2, 4), v(3, 3, 4), v(4, 5, 3), 1 },
    moe = { v(1, 2, 4), v(2, 2, 3), 2, { normalise = true }, v(3, 3, 6, 4), v(4, 3, 6, 4), v(5, 3, 4, 6) },
    mul = { v(1, 2, 4), v(2, 2, 4) },
    rmsnorm = { v(1, 2, 4), v(2, 4), 1e-6, 0 },
    rope = { v(1, 2, 8), 0, { head_dim = 4, rotary_dim = 4, base = 100, kind = "norm", factors = v(1, 2), scale = 1 } },
    rows = { v(1, 3, 4), 1, 2 },
    sample = { v(1, 2, 4), { temperature = 1, top_k = 2, top_p = 0.5, seed = 1, step = 2 } },
    scale = { v(1, 2, 4), 2 },
    softcap = { v(1, 2, 4), 2 },
    softmax = { v(1, 2, 4) },
    swiglu = { v(1, 2, 4), v(2, 2, 4) },
}

local function good(name)
    local args = { unpack(GOOD[name]) }
    if name == "attention" then
        args[4] = cache(1, 4)
    end
    for i, a in ipairs(args) do
        if type(a) == "table" and a[1] == nil then
            args[i] = {}
            for key, value in pairs(a) do
                args[i][key] = value
            end
        end
    end
    return args
end

-- Where parameter p of an op is in a list of arguments: the list or the table of options, and the key.
local function place(op, args, name)
    local next_one, options = 1, nil
    for _, p in ipairs(op.params) do
        local at
        if p.named then
            if not options then
                options, next_one = next_one, next_one + 1
            end
            at = options
        else
            at, next_one = next_one, next_one + 1
        end
        if p.name == name then
            if p.named then
                return args[at], name
            end
            return args, at
        end
    end
end

local function call_with(op, name, value)
    local args = good(op.name)
    local holder, key = place(op, args, name)
    holder[key] = value
    return function()
        op.call(unpack(args, 1, 8))
    end
end

local closed = v(1, 2, 2)
closed:close()

-- Values that are wrong for every parameter of a kind.
local WRONG = {
    tensor = { 1, "x", true, {}, closed, v(9, 1, 1, 1, 1, 1, 97), core.tensor({}, { 1 }):quantize "f16" },
    weight = { 1, "x", true, {}, closed, v(9, 1, 1, 1, 1, 1, 97) },
    weights = { 1, "x", {}, { 1 }, { closed }, { v(9, 97) }, v(9, 97, 97) },
    int = { "1", {}, true, 0.5, NAN, math.huge, -1, 2 ^ 60 },
    float = { "1", {}, true, NAN, math.huge, -math.huge },
    bool = { 1, "true", {} },
    string = { 1, true, {}, "", "silu ", "nonsense" },
    ids = { 1, "x", { -1 }, { 0.5 }, { "1" }, { 2 ^ 31 }, { 2 ^ 40 }, { 1e6 }, v(1, 4) },
    cache = { 1, "x", {}, closed },
}

-- Whether a parameter is the op's only tensor and takes any leading dimensions.
local function alone(op, param)
    local tensors = 0
    for _, p in ipairs(op.params) do
        tensors = tensors + (p.kind == "tensor" and 1 or 0) + (p.kind == "weight" and 1 or 0)
    end
    return tensors == 1 and param.kind == "tensor" and param.shape:sub(1, 3) == "..."
end

T["wrong arguments of every op are refused by an error that names the parameter"] = function()
    local calls = 0
    for _, op in ipairs(ops.list()) do
        assert(GOOD[op.name], "no call of op " .. op.name .. " here; add one")
        op.call(unpack(good(op.name), 1, 8))
        for _, p in ipairs(op.params) do
            local any_shape = p.shape == "*" or alone(op, p)
            for i, wrong in ipairs(WRONG[p.kind]) do
                if not (any_shape and i == 6) then
                    calls = calls + 1
                    local ok, e = pcall(call_with(op, p.name, wrong))
                    local what = ("%s, %s, wrong value %d"):format(op.name, p.name, i)
                    assert(not ok, what .. " was taken")
                    assert(tostring(e):find(op.name, 1, true), what .. ": " .. tostring(e))
                end
            end
            if not p.optional then
                raises(call_with(op, p.name, nil), p.name)
            end
            for _, number in ipairs { p.least and p.least - 1, p.most and p.most * 2 + 2 } do
                raises(call_with(op, p.name, number), p.name)
            end
        end
        local args = good(op.name)
        args[#args + 1] = 1
        raises(function() op.call(unpack(args)) end, #args > 1 and op.name or "takes")
    end
    assert(calls > 200)
    raises(function() ops.rope(v(1, 2, 8), 0, { head_dim = 4, hed_dim = 4 }) end, "no option 'hed_dim'")
    raises(function() ops.linear(v(1, 2, 4), v(2, 3, 5)) end, "its K is 5, that of x is 4")
    raises(function() ops.embedding(v(1, 3, 4), { 3 }) end, "beyond the 3 rows")
    raises(function() qm.kv_cache { layers = 1, kv_heads = 1, head_dim = 1 } end, "context")
    raises(function() qm.kv_cache { layers = 1, kv_heads = 1, head_dim = 1, context = 1, dtype = "f8" } end, "f32, f16, bf16 or q8_0, not 'f8'")
    raises(function() qm.kv_cache { layers = 65536, kv_heads = 65536, head_dim = 65536, context = 2 ^ 30 } end, "smaller context")
end

T["help of every op names its parameters"] = function()
    for _, op in ipairs(ops.list()) do
        local text = ops.help(op.name)
        for _, p in ipairs(op.params) do
            assert(text:find(p.name, 1, true), op.name .. ": " .. p.name)
        end
        assert(ops.help():find(op.name .. "(", 1, true))
    end
    raises(function() ops.help "lineal" end, "no op 'lineal'")
end

T["tensors without rows or columns"] = function()
    local none, zero = core.tensor({ 0, 4 }, {}), core.tensor({ 2, 0 }, {})
    equal(#ops.linear(none, v(1, 3, 4)):values(), 0)
local b = v(1, 3):values()
    near(ops.linear(zero, core.tensor({ 3, 0 }, {}), v(1, 3)):values(), { b[1], b[2], b[3], b[1], b[2], b[3] }, 0, "bias alone")
    equal(#ops.softmax(none):values(), 0)
    equal(#ops.softmax(zero):values(), 0)
    equal(#ops.embedding(v(1, 3, 4), {}):values(), 0)
    equal(#ops.rope(none, 0, { head_dim = 4 }):values(), 0)
    equal(#ops.attention(none, none, none, cache(1, 4), 0, { heads = 1, kv_heads = 1 }):values(), 0)
    equal(#ops.moe(none, core.tensor({ 0, 3 }, {}), 2, {}, v(3, 3, 6, 4), v(4, 3, 6, 4), v(5, 3, 4, 6)):values(), 0)
    equal(#ops.argmax(none), 0)
    raises(function() ops.argmax(zero) end, "no values")
    raises(function() ops.sample(none) end, "no logits")
    equal(#ops.linear_int8(none, v(2, 3, 4):quantize "int8"):values(), 0)
end

return T
