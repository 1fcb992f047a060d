-- fuzz.lua [SEED [SECONDS [DEVICE [only=I|kind=KIND]]]]: random tensors, products and models, on a GPU beside the CPU, until the time
-- is up (default: seed 1, a minute, cuda:0).  Case I of a seed is always the same, so that what fails can be repeated.

local bit = require "bit"
local core = require "qmoon.core"
local ffi = require "ffi"
local synth = require "qmoon.synth"
local support = dofile "tests/lua/support.lua"
local same_choices = dofile "tests/gpu/choices.lua"
local ops = qm.ops

local SEED, SECONDS, DEVICE = tonumber(arg[1] or 1), tonumber(arg[2] or 60), arg[3] or "cuda:0"
local ONLY, KIND = tonumber((arg[4] or ""):match "^only=(%d+)$"), (arg[4] or ""):match "^kind=(%a+)$"
local there = DEVICE == "cpu" and qm.cpu or qm.cuda(tonumber(DEVICE:match "%d+"))

-- ---- chance -------------------------------------------------------------------------------------------------

local state

--- Cases that follow each other have nothing in common: murmur3's last steps.
local function start(case)
    local h = SEED * 7919 + case
    for _, by in ipairs { 0x85ebca6b, 0xc2b2ae35 } do
        h = bit.bxor(h, bit.rshift(h, 15)) % 2 ^ 32
        h = tonumber(ffi.cast("uint64_t", h) * by % 2 ^ 32)
    end
    state = bit.bxor(h, bit.rshift(h, 16)) % 2147483646 + 1
end

local function rnd(n) -- 0 <= x < 1, or one of 1 ... n
    state = state * 16807 % 2147483647 -- Park and Miller's
    local x = (state - 1) / 2147483646
    return n and math.floor(x * n) + 1 or x
end
local function one(list) return list[rnd(#list)] end
local function chance(p) return rnd() < p end

--- 1 ... most, small ones more often, and often beside a multiple of something round.
local function length(most)
    local n = math.floor(most ^ rnd() + 0.5)
    if chance(0.5) then
        local round = one { 8, 16, 32, 64, 128, 256 }
        n = math.floor(n / round) * round + one { -1, 0, 0, 0, 1 }
    end
    return math.max(1, math.min(most, n))
end

--- A tensor of values that formats find hard now and then, as one of the types of weights.
local function tensor(rows, cols)
    local t = qm.randn { rows, cols, std = 10 ^ (2 * rnd() - 3), seed = rnd(1e9) }
    if chance(0.3) then
        local v = t:values()
        for _ = 1, rnd(20) do
            v[rnd(#v)] = one { 0, -0.0, 1e-30, -1e30, 3e38, 65504, 1e-45, 0.5 }
        end
        if chance(0.3) then -- a run of zeros
            for i = rnd(#v), math.min(#v, rnd(#v)) do
                v[i] = 0
            end
        end
        t = qm.tensor(v, { rows, cols })
    end
    return t
end

-- ---- what is compared -----------------------------------------------------------------------------------------

local function same_planes(a, b, what)
    for i = 1, 3 do
        assert(a:plane(i) == b:plane(i), what .. ": plane " .. i)
    end
end

local FORMATS = {}
for _, f in ipairs(core.formats()) do
    FORMATS[#FORMATS + 1] = f.name
end

local GGUF = {}
for _, f in ipairs(core.formats()) do
    GGUF[f.name] = f.gguf_name and not ("bf16 f16 f32"):find(f.name, 1, true) or nil
end

local function random_format()
    if chance(0.15) then
        local levels, n = {}, 8 + rnd(8)
        for i = 1, n do
            levels[i] = 2 * rnd() - 1
        end
        levels[1] = chance(0.5) and 1 or -1
        return qm.codebook(levels), "codebook of " .. n
    end
    local name = chance(0.4) and one { "nf4", "fp4", "int4", "q4_0", "q8_0", "int8" } or one(FORMATS)
    local spec = name
    if name == "nf4" or name == "fp4" or name:match "^u?int%dg?$" and name ~= "int8" and chance(0.5) then
        spec = spec .. ":" .. one { 32, 64, 128, 256, 512 }
    end
    if (name == "nf4" or name == "fp4" or name == "int4") and chance(0.4) then
        spec = spec .. ":dq"
    end
    return spec, spec
end

local kinds = {}

function kinds.codec()
    local format, name = random_format()
    local rows, cols = length(200), length(chance(0.2) and 20000 or 2000)
    local cols256 = chance(0.7) and (cols + 255) / 256 - (cols + 255) / 256 % 1 or nil
    cols = cols256 and cols256 * 256 or cols
    local t = tensor(rows, cols)
    local what = ("%s of %d x %d"):format(name, rows, cols)
    local ok, here = pcall(t.quantize, t, format)
    local good, far = pcall(function() return t:to(there):quantize(format) end)
    if not ok or not good then
        assert(ok == good, what .. ": only one refuses: " .. tostring(ok and far or here))
        return what .. ", refused"
    end
    same_planes(here, far, what)
    local x, y = here:dequantize():plane(1), far:dequantize():plane(1)
    if x ~= y then -- a NaN is a NaN, whatever its bits
        x, y = ffi.cast("const float *", x), ffi.cast("const float *", y)
        for i = 0, rows * cols - 1 do
            assert(x[i] == y[i] or x[i] ~= x[i] and y[i] ~= y[i], ("%s: value %d is %g and %g"):format(what, i, x[i], y[i]))
        end
    end
    local a, b = qm.error(t, here), qm.error(t:to(there), far)
    for _, key in ipairs { "rmse", "max" } do
        assert(a[key] == b[key] or a[key] ~= a[key] and b[key] ~= b[key] or math.abs(a[key] - b[key]) <= 1e-6 * math.abs(a[key]),
            ("%s: %s %.9g and %.9g"):format(what, key, a[key], b[key]))
    end
    return what
end

local furthest = {} -- of a kind of case

--- The root of the mean square of the differences, beside that of the values, or what it is expected to be.
local function near(kind, a, b, limit, what, expected)
    local x, y, size, off = a:to(qm.cpu):values(), b:to(qm.cpu):values(), 0, 0
    assert(#x == #y, "as many values")
    for i, v in ipairs(x) do
        assert(v == v and y[i] == y[i], what .. ": NaN")
        size, off = size + v * v, off + (v - y[i]) ^ 2
    end
    local d = math.sqrt(off / math.max(1e-30, expected and #x * expected ^ 2 or size))
    furthest[kind] = math.max(furthest[kind] or 0, d)
    assert(d <= limit, ("%s: off by %.3g, allowed %.3g"):format(what, d, limit))
end

function kinds.product()
    local name = one { "nf4", "nf4:32", "nf4:128", "nf4:256", "nf4:dq", "fp4", "fp4:128:dq", "int4", "int4:32", "q4_0", "iq4_nl", "mxfp4", "q8_0", "int8", "q6_k", "bf16",
        "f16", "f32" }
    local rows, cols, tokens = length(3000), length(60) * one { 64, 128, 256 }, length(chance(0.3) and 900 or 40)
    local what = ("%d tokens, %s of %d x %d"):format(tokens, name, rows, cols)
    local std = 10 ^ (rnd() * 4 - 2)
    local w, x = qm.randn { rows, cols, std = 0.02, seed = rnd(1e9) }, qm.randn { tokens, cols, std = std, seed = rnd(1e9) }
    local bias = chance(0.3) and qm.randn { rows, std = 0.1, seed = rnd(1e9) } or nil
    local ok, q = pcall(w.quantize, w, name)
    if not ok then
        return what .. ", refused"
    end
    local laid = core.prepare(q:to(there))
    local far = function() return ops.linear(x:to(there), laid, bias and bias:to(there)) end
    local a, b = ops.linear(x, q, bias), far()
    near("products", a, b, 1e-3, what, 0.02 * std * math.sqrt(cols))
    assert(b:to(qm.cpu):plane(1) == far():to(qm.cpu):plane(1), what .. ": other bits the second time")
    return what
end

local ARCHS = { "gemma", "gemma2", "gemma3", "llama", "mistral", "mixtral", "phi3", "qwen2", "qwen2moe", "qwen3", "qwen3moe" }

local function random_model()
    local name, size = one(ARCHS), {}
    for key, value in pairs(synth.sizes[name].tiny) do
        size[key] = value
    end
    size.head_dim = one { 32, 64, 64, 128, 128, 96 }
    size.num_key_value_heads = one { 1, 2, 3 }
    size.num_attention_heads = size.num_key_value_heads * one { 1, 2, 4, 7 }
    if name ~= "gemma" and name ~= "gemma2" and name ~= "gemma3" and not name:find "^qwen3" then
        size.hidden_size = size.head_dim * size.num_attention_heads
        size.head_dim = nil
    else
        size.hidden_size = 64 * rnd(12)
    end
    size.intermediate_size = 32 * rnd(40)
    size.num_hidden_layers = rnd(3)
    size.moe_intermediate_size = size.moe_intermediate_size and 32 * rnd(8)
    size.shared_expert_intermediate_size = size.shared_expert_intermediate_size and 32 * rnd(8)
    for _, key in ipairs { "num_experts", "num_local_experts" } do
        size[key] = size[key] and 2 + rnd(10)
    end
    size.vocab_size = 600 + rnd(500)
    local dir = support.scratch()
    synth.model(size, dir, { seed = rnd(1e6) })
    return dir, ("%s, %d wide, %d/%d heads of %d, ffn %d, %d layers"):format(name, size.hidden_size, size.num_attention_heads,
        size.num_key_value_heads, size.head_dim or size.hidden_size / size.num_attention_heads, size.intermediate_size,
        size.num_hidden_layers), size
end

function kinds.model()
    local dir, what = random_model()
    local load = one { false, "nf4", "nf4:dq", "fp4", "int4", "q4_0", "iq4_nl", "mxfp4", "q8_0", "int8", "nf4:128", "q6_k" } or nil
    local kv = one { "f16", "f16", "f32", "bf16" }
    what = ("%s; %s, cache %s"):format(what, load or "bf16", kv)
    local ok, here = pcall(qm.load, dir, { load = load, exact = true })
    local good, far = pcall(qm.load, dir, { load = load, device = DEVICE ~= "cpu" and there or nil, kv = kv })
    if not ok or not good then
        assert(ok == good, what .. ": only one refuses: " .. tostring(ok and far or here))
        return what .. ", refused: " .. tostring(here):sub(1, 100)
    end
    local n, ids = length(300), {}
    for i = 1, n do
        ids[i] = rnd(590)
    end
    local cache, second, past = here:cache(n + 40), far:cache(n + 40), 0
    while past < n do -- in pieces: a prompt may go on where another ended
        local piece, count = {}, chance(0.5) and n - past or rnd(n - past)
        for i = 1, count do
            piece[i] = ids[past + i]
        end
        near("models, cache " .. kv, here:forward(piece, cache, { all = true }), far:forward(piece, second, { all = true }),
            1e-2, ("%s, tokens %d to %d"):format(what, past + 1, past + count))
        past = past + count
    end
    local o = { ids = { unpack(ids, 1, math.min(n, 30)) }, tokens = 20, ignore_eos = true }
    local chosen = far:generate(o).ids
    same_choices(here, o.ids, here:generate(o).ids, chosen, 1e-2, what)
    assert(table.concat(chosen, " ") == table.concat(far:generate(o).ids, " "), what .. ": other tokens the second time")
    return what
end

function kinds.pipeline()
    local dir, what, size = random_model()
    local trees = {}
    local format, name = random_format()
    local adapter, rank = chance(0.5) and support.scratch(), length(80)
    if adapter then
        synth.adapter(size, adapter, { seed = rnd(1e6), rank = rank })
        what = ("adapter of rank %d on %s"):format(rank, what)
    end
    local round = one { "f16", "bf16", "f32" }
    what = ("%s, rounded to %s, of %s"):format(name, round, what)
    for i, device in ipairs { "cpu", DEVICE } do
        local out = support.scratch() .. (GGUF[name] and ".gguf" or "")
        local model = qm.open(dir)
        local ok, e = pcall(qm.write, adapter and model:merge(adapter) or model, { { path = out, format = format } },
            { device = device, round = round })
        trees[i] = not ok and tostring(e):gsub(out, "OUT") or GGUF[name] and { file = support.read(out) } or support.tree(out)
    end
    if type(trees[1]) == "string" then
        assert(trees[1] == trees[2], what .. ": " .. trees[1] .. " / " .. tostring(trees[2]))
        return what .. ", refused: " .. trees[1]:sub(1, 100)
    end
    assert(type(trees[2]) == "table", what .. ": only one refuses: " .. tostring(trees[2]))
    for name, bytes in pairs(trees[1]) do
        local other = trees[2][name]
        assert(other, what .. ": no " .. name)
        local n, first, last = 0, nil, nil
        for k = 1, other ~= bytes and #bytes or 0 do
            if bytes:byte(k) ~= other:byte(k) then
                n, first, last = n + 1, first or k, k
            end
        end
        assert(other == bytes, ("%s: %s, %d bytes and %d: %d differ, from %s to %s"):format(what, name, #bytes, #other, n, first, last))
    end
    return what
end

-- ---- all of it ------------------------------------------------------------------------------------------------

local WHAT = { "codec", "codec", "product", "product", "model", "pipeline" }
local began, i, failed, refused = core.now(), ONLY or 0, 0, 0
repeat
    start(i)
    local kind = one(WHAT)
    kind = KIND or kind
    local ok, what = xpcall(kinds[kind], function(e) return tostring(e) .. (ONLY and "\n" .. debug.traceback() or "") end)
    if not ok then
        failed = failed + 1
        print(("FAIL case %d, %s: %s"):format(i, kind, what))
    elseif ONLY or os.getenv "FUZZ_VERBOSE" then
        print(("ok   case %d, %s: %s"):format(i, kind, what))
    end
    refused = refused + (ok and what:find ", refused" and 1 or 0)
    collectgarbage()
    i = i + 1
until ONLY or core.now() - began > SECONDS
for kind, d in pairs(furthest) do
    print(("%s: off by %.2g at most"):format(kind, d))
end
print(("seed %d, cases %d to %d, %d of them refused by both"):format(SEED, ONLY or 0, i - 1, refused))
print(("%d passed, %d failed"):format(i - (ONLY or 0) - failed, failed))
os.exit(failed == 0 and 0 or 1)
