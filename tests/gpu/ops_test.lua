-- Ops on a GPU: the same results as on the CPU within each op's tolerance, the same bits twice, and a captured step that
-- continues as single calls do.

local core = require "qmoon.core"
local ops = qm.ops

local gpu = qm.cuda(0)
local tests = {}

--- ||a - b|| / ||a||, of tensors anywhere.
local function difference(a, b)
    local x, y, num, den = a:to(qm.cpu):values(), b:to(qm.cpu):values(), 0, 0
    assert(#x == #y, ("%d values and %d"):format(#x, #y))
    for i = 1, #x do
        num, den = num + (x[i] - y[i]) ^ 2, den + x[i] ^ 2
    end
    assert(num == num and den == den, "NaN")
    return math.sqrt(num / math.max(den, 1e-30))
end

local function near(a, b, limit, what)
    local d = difference(a, b)
    assert(d <= limit, ("%s: relative difference %.3g, allowed %.3g"):format(what, d, limit))
end

--- Of a product y: beside what its terms come to, because few sums may cancel.
local function near_product(x, w, y, limit, what)
    local exact, sum = ops.linear(x, w), 0
    local a, b, num = exact:values(), y:to(qm.cpu):values(), 0
    for i = 1, #a do
        num = num + (a[i] - b[i]) ^ 2
    end
    for _, v in ipairs(ops.linear(ops.mul(x, x), ops.mul(w, w)):values()) do
        sum = sum + v
    end
    assert(num == num and math.sqrt(num / math.max(sum, 1e-30)) <= limit,
        ("%s: relative difference %.3g, allowed %.3g"):format(what, math.sqrt(num / sum), limit))
end

local seed = 0
local function random(shape, std)
    seed = seed + 1
    return qm.randn { shape[1], shape[2], shape[3], std = std or 1, seed = seed }
end

-- ---- products ----------------------------------------------------------------------------------------------

local TABLES = { "nf4", "nf4:dq", "fp4", "int4", "q4_0", "iq4_nl", "mxfp4", "nf4:32", "nf4:128", "nf4:128:dq", "nf4:32:dq", "nf4:256" }

tests["prepared weights come back byte for byte"] = function()
    for _, f in ipairs(TABLES) do
        for _, shape in ipairs { { 16, 512 }, { 48, 1024 }, { 33, 256 }, { 7, 768 }, { 100, 1536 } } do
            local w = random(shape, 0.02):quantize(f)
            local back = core.prepare(w:to(gpu)):to(qm.cpu)
            assert(back:plane(1) == w:plane(1), f .. ": codes")
            if back:info().double_quant == w:info().double_quant then
                assert(back:plane(2) == w:plane(2) and back:plane(3) == w:plane(3), f .. ": scales")
            end
        end
    end
end

tests["linear of every kind of 4-bit weight, prepared and not"] = function()
    for _, f in ipairs(TABLES) do
        for _, shape in ipairs { { 100, 1536 }, { 17, 256 }, { 64, 4096 } } do
            local w = random(shape, 0.02):quantize(f)
            local exact, there = w:dequantize(), w:to(gpu)
            local packed = core.prepare(there)
            for _, tokens in ipairs { 1, 2, 3, 4, 5, 8, 9, 17, 64 } do
                local x = random { tokens, shape[2] }
                local name = ("%s %dx%d, %d tokens"):format(f, shape[1], shape[2], tokens)
                near_product(x, exact, ops.linear(x:to(gpu), packed), 4e-4, name)
                if tokens == 3 then
                    near_product(x, exact, ops.linear(x:to(gpu), there), 1e-5, name .. ", not prepared")
                end
            end
        end
    end
end

tests["linear of odd shapes"] = function()
    for _, rows in ipairs { 1, 15, 16, 17, 63, 1000 } do
        for _, cols in ipairs { 64, 128, 192, 1536, 3584 } do
            local w = random({ rows, cols }, 0.02):quantize "nf4"
            local exact, packed = w:dequantize(), core.prepare(w:to(gpu))
            for _, tokens in ipairs { 1, 2, 7 } do
                local x = random { tokens, cols }
                near_product(x, exact, ops.linear(x:to(gpu), packed), rows * tokens < 16 and 1e-3 or 4e-4, ("%d x %d, %d tokens"):format(rows, cols, tokens))
            end
        end
    end
    local w = random({ 12, 100 }, 0.02):quantize "nf4" -- groups run over row ends: no layout for it
    local x = random { 2, 100 }
    near(ops.linear(x, w), ops.linear(x:to(gpu), core.prepare(w:to(gpu))), 1e-3, "100 columns")
end

tests["linear of plain weights, with a bias"] = function()
    for _, f in ipairs { "f32", "f16", "bf16", "q8_0", "q6_k", "int8" } do
        local w, b = random({ 37, 1024 }, 0.02):quantize(f), random { 37 }
        for _, tokens in ipairs { 1, 3, 8, 20 } do
            local x = random { tokens, 1024 }
            local y = ops.linear(x:to(gpu), core.prepare(w:to(gpu)), b:to(gpu))
            near(ops.linear(x, w:dequantize(), b), y, f == "f32" and 1e-5 or 6e-4, f .. " " .. tokens)
        end
    end
end

tests["products wait for each other, and for nothing that changes them"] = function()
    local x, d = random { 1, 512 }, 512
    local w = {}
    for i = 1, 5 do
        w[i] = random({ d, d }, 0.04):quantize "nf4"
    end
    local function chain(x, w)
        local q, k, v = ops.linear(x, w[1]), ops.linear(x, w[2]), ops.linear(x, w[3])
        local h = ops.add(x, ops.linear(ops.mul(ops.add(q, k), v), w[4]))
        local y = ops.linear(h, w[5])
        return ops.add(ops.add(h, y), y)
    end
    local there = {}
    for i = 1, 5 do
        there[i] = core.prepare(w[i]:to(gpu))
        w[i] = w[i]:dequantize()
    end
    local first = chain(x:to(gpu), there)
    near(chain(x, w), first, 1e-3, "chain")
    for _ = 1, 5 do
        assert(chain(x:to(gpu), there):to(qm.cpu):plane(1) == first:to(qm.cpu):plane(1), "other bits")
    end
end

tests["large and small activations"] = function()
    local w = random({ 64, 512 }, 0.02):quantize "nf4"
    local list = {}
    for i = 1, 512 do
        list[i] = i == 7 and 1e6 or i == 9 and -3e-7 or math.sin(i) * (i > 256 and 1e-7 or 1)
    end
    local x = core.tensor({ 1, 512 }, list)
    near(ops.linear(x, w:dequantize()), ops.linear(x:to(gpu), core.prepare(w:to(gpu))), 4e-4, "outlier")
end

-- ---- the others ----------------------------------------------------------------------------------------------

tests["values, norms, softmax"] = function()
    local x, y, w, b = random { 5, 300 }, random { 5, 300 }, random { 300 }, random { 60 }
    local X, Y, W, B = x:to(gpu), y:to(gpu), w:to(gpu), b:to(gpu)
    near(ops.add(x, y), ops.add(X, Y), 0, "add")
    near(ops.mul(x, y), ops.mul(X, Y), 0, "mul")
    near(ops.scale(x, 0.3), ops.scale(X, 0.3), 0, "scale")
    near(ops.softcap(x, 3), ops.softcap(X, 3), 1e-6, "softcap")
    near(ops.swiglu(x, y), ops.swiglu(X, Y), 1e-6, "swiglu")
    near(ops.geglu(x, y), ops.geglu(X, Y), 2e-6, "geglu")
    for _, kind in ipairs { "silu", "gelu", "gelu_tanh", "relu" } do
        near(ops.activation(x, kind), ops.activation(X, kind), 2e-6, kind)
    end
    near(ops.rmsnorm(x, w, 1e-6), ops.rmsnorm(X, W, 1e-6), 1e-6, "rmsnorm")
    near(ops.rmsnorm(x, b, 1e-6, 1), ops.rmsnorm(X, B, 1e-6, 1), 1e-6, "rmsnorm of parts")
    near(ops.softmax(x), ops.softmax(X), 1e-6, "softmax")
    local ids = { 3, 299, 0, 7, 100 }
    near(ops.logprobs(x, ids), ops.logprobs(X, ids), 1e-6, "logprobs")
    local a, c = ops.argmax(x), ops.argmax(X)
    for i = 1, 5 do
        assert(a[i] == c[i], "argmax")
    end
    for _, f in ipairs { "f32", "f16", "bf16", "q8_0", "q4_k" } do
        local t = random({ 20, 256 }):quantize(f)
        near(ops.embedding(t, { 3, 19, 0 }), ops.embedding(t:to(gpu), { 3, 19, 0 }), 0, "embedding of " .. f)
    end
    local A, Bt = random { 8, 300 }, random { 40, 8 }
    local z = random { 5, 40 }
    near(ops.lora(z, x, A, Bt, 0.5), ops.lora(z:to(gpu), X, A:to(gpu), Bt:to(gpu), 0.5), 1e-5, "lora")
    assert(ops.sample(X, { temperature = 0.8, seed = 5 }) == ops.sample(x, { temperature = 0.8, seed = 5 }), "sample")
end

tests["rope"] = function()
    local x = random { 3, 4 * 64 }
    for _, kind in ipairs { "neox", "norm" } do
        for _, o in ipairs { { head_dim = 64, kind = kind }, { head_dim = 64, rotary_dim = 32, base = 1e6, kind = kind, scale = 1.5 } } do
            near(ops.rope(x, 17, o), ops.rope(x:to(gpu), 17, o), 1e-6, kind)
        end
    end
    local f = {}
    for i = 1, 32 do
        f[i] = 1 + i / 7
    end
    local factors = core.tensor({ 32 }, f)
    near(ops.rope(x, 5, { head_dim = 64, factors = factors }),
        ops.rope(x:to(gpu), 5, { head_dim = 64, factors = factors:to(gpu) }), 1e-6, "factors")
    for i = 1, 40 do -- one model after the other: frequencies of all, and new factors where old ones may have been
        local base, factors = 1000 * i, core.tensor({ 2 }, { i, i + 1 })
        near(ops.rope(x, 5, { head_dim = 64, base = base }), ops.rope(x:to(gpu), 5, { head_dim = 64, base = base }), 1e-6, "base " .. base)
        local there = factors:to(gpu)
        near(ops.rope(x, 5, { head_dim = 64, rotary_dim = 4, factors = factors }),
            ops.rope(x:to(gpu), 5, { head_dim = 64, rotary_dim = 4, factors = there }), 1e-6, "new factors")
        there:close()
    end
end

--- Calls of so many tokens, one after the other, into one cache: the same as on the CPU.
local function attends(o, dtype, calls)
    local context = 0
    for _, tokens in ipairs(calls) do
        context = context + tokens
    end
    local function cache(device)
        return qm.kv_cache { layers = 1, kv_heads = o.kv_heads, head_dim = o.dim, context = context + (o.spare or 0), dtype = dtype, device = device }
    end
    local here, there = cache(), cache(gpu)
    local options = { heads = o.heads, kv_heads = o.kv_heads, window = o.window, softcap = o.softcap, scale = o.scale }
    local limit = { f16 = 1e-3, q8_0 = 1e-3 }
    for _, tokens in ipairs(calls) do
        local q, k, v = random { tokens, o.heads * o.dim }, random { tokens, o.kv_heads * o.dim }, random { tokens, o.kv_heads * o.dim }
        local y = ops.attention(q:to(gpu), k:to(gpu), v:to(gpu), there, 0, options)
        near(ops.attention(q, k, v, here, 0, options), y, tokens > 8 and limit[dtype] or 2e-5,
            ("%s, %d heads of %d (%d), %d tokens, %d in all"):format(dtype, o.heads, o.dim, o.kv_heads, tokens, there:length()))
        assert(there:length() == here:length())
    end
end

tests["attention, in one call and in many"] = function()
    for _, o in ipairs { { heads = 4, kv_heads = 2, dim = 64 }, { heads = 14, kv_heads = 1, dim = 128 }, { heads = 3, kv_heads = 3, dim = 80, window = 5 },
                         { heads = 8, kv_heads = 4, dim = 32, softcap = 5, scale = 0.2 },
                         { heads = 8, kv_heads = 4, dim = 64, softcap = 5, scale = 0.2, window = 100 }, { heads = 2, kv_heads = 2, dim = 256 } } do
        for _, dtype in ipairs { "f32", "f16" } do
            attends(o, dtype, { 7, 1, 1, 300, 1, 20, 1 })
        end
    end
end

tests["attention of prompts, where tiles of queries and of positions end"] = function()
    for _, o in ipairs { { heads = 1, kv_heads = 1, dim = 128 }, { heads = 7, kv_heads = 1, dim = 64, spare = 50 }, { heads = 8, kv_heads = 2, dim = 128, window = 128, spare = 1 },
                         { heads = 4, kv_heads = 4, dim = 64, window = 65, softcap = 20 }, { heads = 8, kv_heads = 1, dim = 128, softcap = 5, scale = 0.2 },
                         { heads = 2, kv_heads = 1, dim = 128, window = 1 } } do
        for _, dtype in ipairs { "f16", "q8_0" } do
            attends(o, dtype, { 9, 55, 64, 1, 127, 128, 129, 1, 193 })
            attends(o, dtype, { 128, 128, 256 })
        end
    end
end

tests["attention of more than the multiprocessors can begin at once"] = function()
    attends({ heads = 40, kv_heads = 8, dim = 64 }, "f16", { 515, 100 })
end

-- ---- a step ---------------------------------------------------------------------------------------------------

--- A small decoder with random weights, on any device.
local function decoder(device, o)
    o = o or {}
    local d, heads, kv_heads, dim, inner, vocabulary, layers = 256, o.heads or 4, o.kv_heads or 2, o.dim or 64, o.inner or 512, 1000, 3
    local attend = { heads = heads, kv_heads = kv_heads, window = o.window, softcap = o.softcap }
    local turn = { head_dim = dim, kind = o.kind, rotary_dim = o.rotary_dim }
    local gate = o.geglu and ops.geglu or ops.swiglu
    local function feed(h, l)
        if o.parts then
            return ops.linear(gate(ops.linear(h, l.gate), ops.linear(h, l.up)), l.down)
        end
        return ops.feed_forward(h, l.gate, l.up, l.down, o.geglu and "gelu_tanh" or "silu")
    end
    seed = 1000
    local function there(t)
        return device == qm.cpu and t or core.prepare(t:to(device))
    end
    local function weight(n, k)
        return there(random({ n, k }, 0.05):quantize(o.format or "nf4"))
    end
    local function bias(n)
        return o.bias and there(random { n }) or nil
    end
    local ones = {}
    for i = 1, d do
        ones[i] = 1
    end
    local table, norm = there(random({ vocabulary, d }):quantize "bf16"), there(core.tensor({ d }, ones))
    local layer = {}
    for i = 1, layers do
        layer[i] = { q = weight(heads * dim, d), k = weight(kv_heads * dim, d), v = weight(kv_heads * dim, d), o = weight(d, heads * dim),
                     gate = weight(inner, d), up = weight(inner, d), down = weight(d, inner), bq = bias(heads * dim), bv = bias(kv_heads * dim) }
    end
    local head = o.head and there(random({ vocabulary, d }, 0.05):quantize(o.head)) or table
    return function(ids, cache)
        local x, at = ops.embedding(table, ids), cache:length()
        for i, l in ipairs(layer) do
            local h = ops.rmsnorm(x, norm, 1e-6)
            local q, k, v = ops.linear(h, l.q, l.bq), ops.linear(h, l.k), ops.linear(h, l.v, l.bv)
            q, k = ops.rope(q, at, turn), ops.rope(k, at, turn)
            local y = ops.linear(ops.attention(q, k, v, cache, i - 1, attend), l.o)
            x = ops.add(x, o.scaled and ops.scale(y, 0.5) or y)
            h = ops.rmsnorm(x, norm, 1e-6)
            x = ops.add(x, feed(h, l))
        end
        return ops.linear(ops.rmsnorm(x, norm, 1e-6), head)
    end, function()
        return qm.kv_cache { layers = layers, kv_heads = kv_heads, head_dim = dim, context = 700, device = device ~= qm.cpu and device or nil }
    end
end

local function goes_on(program)
    local prompt = { 5, 17, 900, 33, 2 }
    local here, cache_here = decoder(qm.cpu)
    local there, cache_there = decoder(gpu)
    local a, b, c = cache_here(), cache_there(), cache_there()
    near(here(prompt, a), there(prompt, b), 2e-3, "logits of a prompt")
    there(prompt, c)
    local id, singles = 7, {}
    for i = 1, 40 do
        id = ops.argmax(there({ id }, b))[1]
        singles[i] = id
    end
    local step = core.cuda_step(gpu, c, function()
        ops.argmax(there({ 0 }, c))
    end, program)
    assert(c:length() == 5, "a capture appends nothing")
    local hopper = tonumber(tostring(gpu:info().capability):match "%d+") >= 9
    assert((step:programs() > 0) == (program and hopper), "a program where one can be")
    local first = step:run(7, 15)
    local second = step:run(first[15], 25)
    for i = 1, 40 do
        assert((first[i] or second[i - 15]) == singles[i], "token " .. i)
    end
    assert(c:length() == 45)
    c:truncate(5)
    assert(step:run(7, 3)[3] == singles[3], "again from the same place")
    b:truncate(8)
    near(there({ 3 }, c), there({ 3 }, b), program and 1e-3 or 0, "calls between")
    step:close()
end

tests["a captured step goes on as single calls do"] = function()
    goes_on(false)
end
tests["so does one that is a program"] = function()
    goes_on(true)
end

local DECODERS = {
    { prompt = 5 }, { prompt = 5, parts = true }, { prompt = 40, head = "nf4", bias = true }, { prompt = 300, dim = 128, heads = 7, kv_heads = 1, head = "nf4" },
    { prompt = 600, dim = 128, heads = 4, kv_heads = 4, bias = true }, { prompt = 280, dim = 64, heads = 20, kv_heads = 2, geglu = true },
    { prompt = 290, window = 100, softcap = 20 }, { prompt = 33, kind = "norm", dim = 128, heads = 2, kv_heads = 1 },
    { prompt = 20, format = "q4_0" }, { prompt = 20, format = "nf4:dq", head = "nf4:dq" }, { prompt = 20, format = "nf4:128", head = "nf4" },
    { prompt = 20, format = "mxfp4", inner = 992 }, { prompt = 20, format = "nf4:32:dq", inner = 1088, bias = true },
    { prompt = 20, rotary_dim = 32 }, { prompt = 20, dim = 80, heads = 4, kv_heads = 2 }, { prompt = 20, scaled = true },
    { prompt = 20, format = "q8_0" },
}

local function gives_the_logits(program)
    for _, o in ipairs(DECODERS) do
        local name = ("prompt of %d, %s, heads of %d"):format(o.prompt, o.format or "nf4", o.dim or 64)
        local there, cache = decoder(gpu, o)
        local a, b, prompt, logits = cache(), cache(), {}, nil
        for i = 1, o.prompt do
            prompt[i] = i * 37 % 1000
        end
        there(prompt, a)
        there(prompt, b)
        there({ 1 }, a)
        a:truncate(o.prompt)
        local step = core.cuda_step(gpu, b, function()
            logits = there({ 0 }, b)
            ops.argmax(logits)
        end, program)
        local id, bits = 7, {}
        for i = 1, 3 do
            local single = there({ id }, a)
            local nextid = step:run(id, 1)[1]
            near(single, logits, 1e-3, name .. ", token " .. i)
            bits[i] = logits:to(qm.cpu):plane(1)
            id = nextid
        end
        b:truncate(o.prompt)
        id = 7
        for i = 1, 3 do
            id = step:run(id, 1)[1]
            assert(logits:to(qm.cpu):plane(1) == bits[i], name .. ": other bits")
        end
        step:close()
        a:close()
        b:close()
    end
end

tests["a captured step gives the logits of single calls"] = function()
    gives_the_logits(false)
end
tests["and so does a program, but for rounding"] = function()
    gives_the_logits(true)
end

tests["what cannot be captured says so"] = function()
    local _, cache = decoder(gpu)
    local c = cache()
    local ok, e = pcall(core.cuda_step, gpu, c, function()
        error "inner trouble"
    end)
    assert(not ok and tostring(e):find "inner trouble", tostring(e))
    ok, e = pcall(core.cuda_step, gpu, qm.kv_cache { layers = 1, kv_heads = 1, head_dim = 64, context = 8 }, function() end)
    assert(not ok and tostring(e):find "needs a cache there", tostring(e))
    near(ops.add(random { 1, 64 }, random { 1, 64 }), ops.add(random { 1, 64 }, random { 1, 64 }), 10, "still there")
end

return tests
