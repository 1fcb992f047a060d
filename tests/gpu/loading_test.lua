-- Models loaded to a GPU: the same bytes and bits however they come there, and the memory that was foretold.

local core = require "qmoon.core"
local support = dofile "tests/lua/support.lua"

local gpu = qm.cuda(0)
local MODEL = "tests/fixtures/tiny-qwen2"
local IDS = {}
for i = 1, 50 do
    IDS[i] = i * 37 % 2000
end

local tests = {}

local function load_with(list, threads)
    list.device, list.couriers = gpu, core.couriers({ gpu }, threads)
    local pool = core.pool(threads)
    local got = core.load(pool, list)
    pool:close()
    list.couriers:close()
    return got
end

local function same(a, b, what)
    local info = b:info()
    for plane = 1, 3 do
        assert(a:plane(plane) == b:plane(plane), ("%s: plane %d"):format(what, plane))
    end
    assert(a:info().offset == info.offset and a:info().double_quant == info.double_quant, what)
end

tests["weights come as they are, or as the CPU quantises them"] = function()
    local list, want, name = {}, {}, {}
    for i, shape in ipairs { { 700, 512 }, { 3, 256 }, { 2050, 4096 }, { 1000, 768 } } do
        local t = qm.randn { shape[1], shape[2], std = 0.02, seed = i }
        for _, from in ipairs { "f32", "bf16", "f16", "nf4:dq", "q8_0", "int8", "q4_k" } do
            local source = shape[2] % 256 == 0 and t:quantize(from) or t:quantize "bf16"
            for _, to in ipairs { {}, { "nf4", double_quant = true }, { "nf4", block = 128 }, { "fp4" },
                                  { "int8" }, { "q4_0" }, { "q6_k" },
                                  { "f16" }, { "nvfp4" } } do
                list[#list + 1] = { tensor = source, format = to[1], block = to.block,
                                    double_quant = to.double_quant }
                want[#want + 1] = to[1] and source:quantize(to[1],
                    { block = to.block, double_quant = to.double_quant }) or source
                name[#name + 1] = ("%s to %s, %d x %d"):format(from, to[1] or "itself", shape[1], shape[2])
            end
        end
    end
    for _, threads in ipairs { 1, 7 } do
        for i, t in ipairs(load_with(list, threads)) do
            same(t:to(qm.cpu), want[i], name[i])
        end
    end
end

tests["laid-out weights come back byte for byte"] = function()
    local list, want = {}, {}
    for i, f in ipairs { "nf4", "nf4:dq", "fp4", "q4_0", "iq4_nl", "mxfp4", "int4" } do
        local t = qm.randn { 1300, 5120, std = 0.02, seed = i }:quantize "bf16"
        local format, dq = f:match "^(%w+):?(.*)$"
        list[i] = { tensor = t, format = f:find "_" and f or format, double_quant = dq == "dq",
                    prepare = true }
        want[i] = t:quantize(f)
    end
    for i, t in ipairs(load_with(list, 5)) do
        same(t:to(qm.cpu), want[i], list[i].format)
    end
end

local function logits(lm)
    return lm:forward(IDS, lm:cache(64), { all = true }):to(qm.cpu):plane(1)
end

tests["a model quantised while it is loaded is the one that was quantised to a folder"] = function()
    for _, case in ipairs { { "nf4" }, { "nf4:dq", double_quant = true }, { "fp4" }, { "int8" }, { "int4" },
                            { "nf4:128", block = 128 } } do
        local word, out = case[1], support.scratch()
        local format = word:match "^%w+"
        qm.write(qm.open(MODEL), { { out, format = format, block = case.block,
                                     double_quant = case.double_quant,
                                     dtype = format ~= "int4" and "bf16" or nil } })
        for _, exact in ipairs { false, true } do
            local written = qm.load(out, { device = gpu, exact = exact })
            local loaded = qm.load(MODEL, { device = gpu, exact = exact, load = word })
            assert(logits(written) == logits(loaded), ("%s: other logits (exact = %s)"):format(word,
                tostring(exact)))
        end
    end
    for _, word in ipairs { "q4_0", "q8_0", "q6_k" } do
        local here, there = qm.load(MODEL, { load = word }), qm.load(MODEL, { device = gpu, load = word })
        local a, b = here:forward(IDS, here:cache(64)):values(),
            there:forward(IDS, there:cache(64)):to(qm.cpu):values()
        local most, largest = 0, 0
        for i = 1, #a do
            most, largest = math.max(most, math.abs(a[i] - b[i])), math.max(largest, math.abs(a[i]))
        end
        assert(most <= 5e-3 * largest, ("%s: logits differ by %g of %g"):format(word, most, largest))
    end
end

-- ---- memory -----------------------------------------------------------------------------------------------

local function close(have, said, what)
    local off = (have - said) / said
    assert(math.abs(off) <= 0.02, ("%s: %.4f MB, foretold were %.4f MB (%+.2f %%)"):format(what, have / 1e6,
        said / 1e6, 100 * off))
end

--- Loads, generates, and holds what was taken to what was foretold.
local function check_memory(path, options, prompt, tokens)
    collectgarbage()
    collectgarbage()
    local ids = {}
    for i = 1, prompt do
        ids[i] = i * 31 % 1000
    end
    local d = qm.cuda(0) -- with nothing in it yet
    options.device = d
    options.expect = { tokens = prompt + tokens, decode = true }
    local start = d:used()
    local lm = qm.load(path, options)
    local used, most = d:used()
    local f, what = lm.forecast, ("%s, load = %s"):format(path, tostring(options.load))
    local ops = options.load and core.kept_memory(d, false) or 0 -- taken before the first weight is laid out
    close(used - start, f.weights + ops, what .. ": weights")
    local free_before = d:memory()
    assert(most - start <= 1.02 * (f.weights + f.loading + ops), what .. ": more while it was loaded")
    for _ = 1, 2 do -- the second prompt is read beside the step of the first
        lm:generate { ids = ids, tokens = tokens, ignore_eos = true }
    end
    local _, peak, held = d:used()
    close(math.max(most, peak) - start, f.peak, what .. ": the most at any time")
    local taken, said = free_before - d:memory(), f.peak - f.weights + f.libraries
    print((" %s: %.1f MB used at most, %.1f held, %.1f foretold; from the GPU after loading %.1f, "
        .. "foretold %.1f"):format(what, (math.max(most, peak) - start) / 1e6, held / 1e6, f.peak / 1e6,
            taken / 1e6, said / 1e6))
    assert(taken <= said + 0.02 * (f.peak + f.libraries),
        "what is free has more taken from it than was foretold")
    lm = nil
    collectgarbage()
    collectgarbage()
    d:close()
end

tests["memory is what was foretold: the small model"] = function()
    for _, load in ipairs { false, "nf4", "nf4:dq", "q8_0" } do
        check_memory(MODEL, { load = load or nil }, 60, 30)
        check_memory(MODEL, { load = load or nil }, 900, 30)
        check_memory(MODEL, { load = load or nil }, 20, 5)
    end
end

tests["memory is what was foretold: a larger model"] = function()
    local dir = support.scratch "/dev/shm"
    local synth = require "qmoon.synth"
    synth.model(synth.sizes.qwen2["0.3b"], dir, { seed = 3, shard_size = 2e8 })
    for _, load in ipairs { false, "nf4", "nf4:dq", "int8" } do
        check_memory(dir, { load = load or nil }, 700, 100)
    end
end

tests["what does not fit is refused before it is loaded, with what would"] = function()
    local ok, e = pcall(qm.load, MODEL, { device = gpu, expect = { tokens = 1000 }, context = 2 ^ 24,
                                          kv = "f32" })
    assert(ok, tostring(e)) -- 1000 tokens of a long context do fit
    local lm = qm.load(MODEL, { device = gpu })
    ok, e = pcall(qm.load, MODEL, { device = gpu, context = 2 ^ 29, expect = { tokens = 2 ^ 29 },
                                    kv = "f32" })
    assert(not ok and e.kind == "nofit" and tostring(e):find "does not fit cuda:0"
        and tostring(e):find "free", tostring(e))
    assert(#lm:generate({ ids = { 1, 2, 3 }, tokens = 3, ignore_eos = true }).ids == 3, "others go on")
end

return tests
