-- Every op of the registry on a GPU: its result is the CPU's within the tolerance that its descriptor states, on random
-- values and odd shapes, and the same bits twice.
--
-- Arguments are made from the descriptor: sizes for the words of its shapes, random values, every choice in turn.  What a
-- descriptor cannot say is in SPECIAL.  An op without a way on the GPU fails here.

local core = require "qmoon.core"

local ops = qm.ops
local gpu = qm.cuda(0)
local tests = {}

local SIZES = { { T = 1, D = 64, K = 64, N = 33, V = 1000, R = 8, G = 1, lead = { 1 } }, { T = 5, D = 300, K = 192, N = 100, V = 4097, R = 3, G = 1, lead = { 5 } },
                { T = 37, D = 257, K = 520, N = 63, V = 33, R = 16, G = 1, lead = { 3, 4 } } }

local seed = 100
local function random(shape, std)
    seed = seed + 1
    return qm.randn { shape[1], shape[2], shape[3], std = std or 1, seed = seed }
end

local function number_of(n)
    seed = seed + 1
    return qm.uniform { 1, seed = seed, low = 0, high = 1 }:values()[1] % 1 * n
end

local function ids_of(n, below)
    local list = {}
    for i = 1, n do
        list[i] = math.floor(number_of(below))
    end
    return list
end

local function shape_of(text, sizes)
    local shape = {}
    for word in text:gmatch "%S+" do
        if word == "..." then
            for _, d in ipairs(sizes.lead) do
                shape[#shape + 1] = d
            end
        else
            shape[#shape + 1] = sizes[word]
        end
    end
    return shape
end

--- One list of arguments: {value, …} and options; choice: which of a string parameter's.
local function generic(op, sizes, choice)
    local list, options, n = {}, {}, 0
    for _, p in ipairs(op.params) do
        local value
        if p.kind == "tensor" or p.kind == "weight" then
            value = random(shape_of(p.shape, sizes), p.kind == "weight" and 0.1 or 1)
        elseif p.kind == "ids" then
            value = ids_of(sizes[p.shape], sizes.V)
        elseif p.kind == "float" or p.kind == "int" then
            value = not p.optional and 0.5 + number_of(2) or nil
            value = value and p.kind == "int" and math.floor(value) or value
        elseif p.kind == "string" then
            local words = {}
            for word in p.choices:gmatch "%S+" do
                words[#words + 1] = word
            end
            value = words[choice % #words + 1]
        else
            error(op.name .. ": " .. p.name .. " is a " .. p.kind .. ", which SPECIAL must make")
        end
        if p.named then
            options[p.name] = value
        else
            n = n + 1
            list[n] = value
        end
    end
    list[n + 1] = next(options) and options or nil
    return list
end

local function copies(t, f)
    local list = {}
    for i, one in ipairs(t) do
        list[i] = f(one)
    end
    return list
end

local function split(t)
    local shape, values, list = t:info().shape, t:values(), {}
    for i = 1, shape[1] do
        local one = {}
        for k = 1, shape[2] * shape[3] do
            one[k] = values[(i - 1) * shape[2] * shape[3] + k]
        end
        list[i] = core.tensor({ shape[2], shape[3] }, one)
    end
    return list
end

-- Weights of products are multiplied by as ops.prepare lays them out, on both sides from the same values.
local PRODUCTS = { "f32", "f16", "bf16", "nf4", "nf4:dq", "q4_0", "mxfp4", "q8_0" }

local SPECIAL = {
    columns = function(s)
        return { { random { s.T, s.D }, math.floor(s.D / 3), math.floor(s.D / 2) } }
    end,
    rows = function(s)
        return { { random { s.T, s.D }, math.floor(s.T / 3), math.floor((s.T + 1) / 2) } }
    end,
    rmsnorm = function(s)
        return { { random { s.T, s.D }, random { s.D }, 1e-6 }, { random { s.T, 3 * s.D }, random { s.D }, 1e-5, 1 } }
    end,
    embedding = function(s)
        local list = {}
        for _, f in ipairs { "f32", "f16", "bf16", "q8_0" } do
            list[#list + 1] = { random { s.V, 96 }:quantize(f), ids_of(s.T, s.V) }
        end
        return list
    end,
    linear = function(s)
        local list = {}
        for _, f in ipairs(PRODUCTS) do
            for _, tokens in ipairs { s.T, 9, 64 } do
                list[#list + 1] = { random { tokens, 512 }, random({ s.N, 512 }, 0.05):quantize(f), tokens == 9 and random { s.N } or nil,
                                    prepared = true, limit = f == "f32" and 1e-5 or nil, what = f }
            end
        end
        return list
    end,
    feed_forward = function(s)
        local list = {}
        for i, f in ipairs(PRODUCTS) do
            for _, tokens in ipairs { s.T, 9, 70 } do
                local function bias(when, n)
                    return tokens == when and random { n } or nil
                end
                list[#list + 1] = { random { tokens, 512 }, random({ 192, 512 }, 0.05):quantize(f), random({ 192, 512 }, 0.05):quantize(f),
                                    random({ s.N, 192 }, 0.05):quantize(f), i % 2 == 0 and "silu" or "gelu_tanh", bias(9, 192), bias(70, 192),
                                    bias(70, s.N), prepared = true, limit = f == "f32" and 1e-5 or nil, what = f }
            end
        end
        return list
    end,
    linear_int8 = function(s)
        local list = {}
        for _, k in ipairs { s.K, 96, 100, 1024 } do
            local w = random({ s.N, k }, 0.05):quantize "int8"
            list[#list + 1] = { random { s.T, k }, w, limit = 0 }
            list[#list + 1] = { random { s.T, k }, w, random { s.N }, 2.5, limit = 0 } -- outliers in many columns
            list[#list + 1] = { random { 70, k }, w, random { s.N }, 3.5, limit = 0 }
            list[#list + 1] = { random({ s.T, k }, 4), w, nil, 0, limit = 0 }
        end
        return list
    end,
    rope = function(s)
        local list = {}
        for _, kind in ipairs { "neox", "norm" } do
            list[#list + 1] = { random { s.T, 3 * 80 }, 11, { head_dim = 80, kind = kind } }
            list[#list + 1] = { random { s.T, 64 }, 700, { head_dim = 64, rotary_dim = 16, base = 5e5, scale = 1.2, kind = kind } }
        end
        return list
    end,
    attention = function(s)
        local list = {}
        for _, kept in ipairs { "f32", "f16", "bf16", "q8_0" } do
            for _, o in ipairs { { 4, 2, 64 }, { 3, 1, 96, window = 9 }, { 8, 8, 128, softcap = 4 } } do
                local function cache(device)
                    return qm.kv_cache { layers = 1, kv_heads = o[2], head_dim = o[3], context = 64, dtype = kept, device = device }
                end
                local here, there = cache(), cache(gpu)
                local options = { heads = o[1], kv_heads = o[2], window = o.window, softcap = o.softcap }
                for _, tokens in ipairs { 3, s.T, 1 } do
                    local prompt = tokens > 8 and o[3] ~= 96 and (kept == "f16" or kept == "q8_0") -- on tensor cores
                    list[#list + 1] = { random { tokens, o[1] * o[3] }, random { tokens, o[2] * o[3] }, random { tokens, o[2] * o[3] }, here, 0, options,
                                        replace = { [4] = there }, limit = not prompt and 1e-5 or nil, what = kept }
                end
            end
        end
        return list
    end,
    moe = function(s)
        local list = {}
        for _, m in ipairs { { 4, 2, 64, 96 }, { 60, 4, 128, 64 }, { 9, 9, 64, 64 } } do
            local gate, up, down = random({ m[1], m[4], m[3] }, 0.1), random({ m[1], m[4], m[3] }, 0.1), random({ m[1], m[3], m[4] }, 0.1)
            for _, f in ipairs { "f32", "bf16", "nf4:32", "q4_0", "q8_0" } do
                local g, u, d = gate:quantize(f), up:quantize(f), down:quantize(f)
                local function of(t)
                    return copies(split(t:dequantize()), function(one)
                        return one:quantize(f)
                    end)
                end
                for _, tokens in ipairs { s.T, 2, 4, 130 } do
                    local x, router, options = random { tokens, m[3] }, random { tokens, m[1] }, { normalise = tokens ~= 2 }
                    list[#list + 1] = { x, router, m[2], options, of(g), of(u), of(d), prepared = true, limit = f == "f32" and 1e-5 or nil,
                                        what = f .. " in a list, " .. tokens }
                    list[#list + 1] = { x, router, m[2], options, g, u, d, limit = f == "f32" and 1e-5 or nil, what = f .. " in a stack, " .. tokens }
                end
            end
        end
        return list
    end,
    sample = function(s)
        local list = {}
        for step = 0, 30 do
            local logits = random({ 2, s.V }, 3)
            for _, o in ipairs { { temperature = 0.7 }, { top_k = 5 }, { top_p = 0.8, temperature = 1.5 }, { top_k = 40, top_p = 0.95 }, { temperature = 0 } } do
                o.seed, o.step = 7, step
                list[#list + 1] = { logits, o }
            end
            for _, o in ipairs { { temperature = 1e5 }, { top_p = 0.5 }, { top_k = 700 } } do -- nearly or all alike
                o.seed, o.step = 8, step
                list[#list + 1] = { ops.scale(logits, o.temperature and 1 or 0), o }
            end
        end
        return list
    end,
}

local function is_tensor(v)
    return type(v) == "userdata" and pcall(function() return v:info().shape[0] end) and v.quantize ~= nil
end

--- The same arguments on the GPU.
local function there(list)
    local out = {}
    for i, v in pairs(list) do
        if type(i) ~= "number" then
            out[i] = v
        elseif list.replace and list.replace[i] then
            out[i] = list.replace[i]
        elseif type(v) == "table" and is_tensor(v[1]) then
            out[i] = copies(v, function(t)
                return list.prepared and core.prepare(t:to(gpu)) or t:to(gpu)
            end)
        elseif is_tensor(v) then
            out[i] = v:to(gpu)
            local info = v:info()
            if list.prepared and i > 1 and #info.shape > 1 then
                out[i] = core.prepare(out[i])
            end
        else
            out[i] = v
        end
    end
    return out
end

local function last(list)
    local n = 0
    for i in pairs(list) do
        n = type(i) == "number" and math.max(n, i) or n
    end
    return n
end

local function values_of(y)
    if type(y) == "number" then
        return { y }
    end
    return type(y) == "table" and y or y:to(qm.cpu):values()
end

--- The largest difference beside the largest value.
local function difference(got, want)
    assert(#got == #want, ("%d values and %d"):format(#got, #want))
    local most, off = 0, 0
    for i, v in ipairs(want) do
        assert(got[i] == got[i] and v == v, "NaN")
        most, off = math.max(most, math.abs(v)), math.max(off, math.abs(v - got[i]))
    end
    return off == 0 and 0 or off / math.max(most, 1e-30)
end

local worst = {}

local function compare(op, list, what)
    local far, n = there(list), last(list)
    local want = values_of(op.call(unpack(list, 1, n)))
    local cache = op.name == "attention" and far[4]
    local before = cache and cache:length()
    local first = values_of(op.call(unpack(far, 1, n)))
    if cache then
        cache:truncate(before)
    end
    local second = values_of(op.call(unpack(far, 1, n)))
    assert(difference(second, first) == 0, what .. ": other bits the second time")
    local off, allowed = difference(first, want), list.limit or op.tolerance
    worst[op.name] = math.max(worst[op.name] or 0, off)
    assert(off <= allowed, ("%s: off by %.3g of the largest value, allowed %.3g"):format(what, off, allowed))
end

for _, op in ipairs(ops.list()) do
    tests["op " .. op.name] = function()
        for i, sizes in ipairs(SIZES) do
            local cases = SPECIAL[op.name] and SPECIAL[op.name](sizes)
            if not cases then
                cases = {}
                for choice = 0, 3 do
                    cases[#cases + 1] = generic(op, sizes, choice)
                end
            end
            for k, list in ipairs(cases) do
                compare(op, list, ("%s, sizes %d, case %d%s"):format(op.name, i, k, list.what and ", " .. list.what or ""))
            end
        end
        print(("    %-12s off by %.2g, allowed %.2g"):format(op.name, worst[op.name], op.tolerance))
    end
end

return tests
