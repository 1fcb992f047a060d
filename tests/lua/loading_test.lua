-- Weights that are quantised while a model is loaded, and what its memory was said to be: qm.load's `load`
-- and `expect`.

local core = require "qmoon.core"
local support = dofile "tests/lua/support.lua"

local MODEL = "tests/fixtures/tiny-qwen2"
local IDS = { 1, 5, 9, 300, 77, 12, 900, 4, 4, 31 }

local tests = {}

local function logits(lm)
    return lm:forward(IDS, lm:cache(16), { all = true }):plane(1)
end

-- What a folder of the same format gives is what loading so gives, bit for bit, in either way of computing.
tests["a model quantised while it is loaded is the one that was quantised to a folder"] = function()
    for _, case in ipairs { { "nf4" }, { "nf4:dq", format = "nf4", double_quant = true }, { "fp4" },
                            { "int8" }, { "int4" },
                            { "nf4:128", format = "nf4", block = 128 },
                            { "int3:32", format = "int3", block = 32 },
                            { "nvfp4" } } do
        local word, out = case[1], support.scratch()
        qm.write(qm.open(MODEL), { { out, format = case.format or word, block = case.block,
                                     double_quant = case.double_quant,
                                     dtype = ({ nf4 = "bf16", fp4 = "bf16", int8 = "bf16" })[case.format
                                         or word] } })
        for _, exact in ipairs { true, false } do
            local written, loaded = qm.load(out, { exact = exact }),
                qm.load(MODEL, { exact = exact, load = word })
            assert(logits(written) == logits(loaded), ("%s: other logits (exact = %s)"):format(word,
                tostring(exact)))
        end
    end
end

tests["LLM.int8 of weights that are quantised while they are loaded"] = function()
    local out = support.scratch()
    qm.write(qm.open(MODEL), { { out, format = "int8", dtype = "bf16" } })
    assert(logits(qm.load(out, { llm_int8 = true })) == logits(qm.load(MODEL,
        { llm_int8 = true, load = "int8" })))
end

tests["the same with any number of threads"] = function()
    local one = logits(qm.load(MODEL, { load = "nf4:dq", threads = 1 }))
    assert(one == logits(qm.load(MODEL, { load = "nf4:dq", threads = 5 })))
end

tests["core.load makes what quantize makes, of every kind of tensor"] = function()
    local pool = core.pool(3)
    local weights, want = { }, {}
    for i, shape in ipairs { { 700, 512 }, { 3, 256 }, { 64, 4096 }, { 1000, 768 } } do
        local t = qm.randn { shape[1], shape[2], std = 0.02, seed = i }
        for _, from in ipairs { "f32", "bf16", "nf4:dq", "q8_0", "int8" } do
            local source = t:quantize(from)
            for _, to in ipairs { { "nf4", double_quant = true }, { "nf4", block = 128 }, { "fp4" },
                                  { "int8" }, { "q4_0" }, { "q6_k" },
                                  { "f16" }, { "nvfp4" } } do
                weights[#weights + 1] = { tensor = source, format = to[1], block = to.block,
                                          double_quant = to.double_quant }
                want[#want + 1] = source:quantize(to[1], { block = to.block, double_quant = to.double_quant })
            end
        end
    end
    local seen = 0
    weights.progress = function(bytes)
        seen = math.max(seen, bytes)
    end
    local got = core.load(pool, weights)
    for i, w in ipairs(want) do
        for plane = 1, 3 do
            assert(got[i]:plane(plane) == w:plane(plane), ("weight %d, plane %d"):format(i, plane))
        end
        assert(got[i]:info().offset == w:info().offset)
    end
    assert(seen > 0)
    pool:close()
end

tests["core.load refuses what it cannot do"] = function()
    local pool = core.pool(2)
    local t = qm.randn { 4, 64, seed = 1 }
    for _, case in ipairs { { { tensor = t, format = "q6_k" }, "64" },
                            { { tensor = t, format = "f16", double_quant = true }, "quantise again" },
                            { {}, "no tensor" }, { { tensor = t, format = "nonesuch" }, "nonesuch" } } do
        local ok, e = pcall(core.load, pool, { case[1] })
        assert(not ok and tostring(e):find(case[2], 1, true), tostring(e))
    end
    pool = core.pool(1) -- the thread that calls the function has something to do
    local ok, e = pcall(core.load, pool, { { tensor = t, format = "nf4" }, progress = function()
        error "enough"
    end })
    assert(not ok and tostring(e):find "enough", tostring(e))
    assert(core.load(pool, { { tensor = t, format = "nf4" } })[1]:info().format == "nf4", "still there")
    pool:close()
end

tests["tidy closes what ops made, but for what is returned"] = function()
    local ops, x = qm.ops, qm.randn { 2, 64, seed = 1 }
    local inner
    local y, z = core.tidy(function()
        inner = ops.scale(x, 2)
        local deeper = core.tidy(function()
            return ops.add(inner, ops.scale(x, 3))
        end)
        return ops.add(deeper, x), 7
    end)
    assert(z == 7 and y:info().shape[1] == 2)
    assert(not pcall(inner.info, inner), "what was not returned is closed")
    assert(x:info().shape[2] == 64, "what was there before is not")
    local kept
    local ok, e = pcall(core.tidy, function()
        kept = ops.scale(x, 2)
        error "trouble"
    end)
    assert(not ok and tostring(e):find "trouble" and not pcall(kept.info, kept))
    local after = ops.scale(x, 2)
    assert(after:info(), "outside of it nothing is closed")
end

tests["a plan counts what would be taken"] = function()
    local plan = core.plan_device()
    local t = qm.randn { 256, 256, seed = 1 }
    local pool = core.pool(1)
    local got = core.load(pool, { device = plan, { tensor = t, format = "nf4", double_quant = true },
                                  { tensor = t } })
    local now = core.plan_memory(plan)
    assert(now == 256 * 256 / 2 + 256 * 256 / 64 + 4 * 4 + 256 * 256 * 4, now)
    assert(not pcall(got[2].values, got[2]), "it has no values")
    got[2]:close()
    assert(core.plan_memory(plan) == now - 256 * 256 * 4)
    pool:close()
end

tests["weights that are laid out here give their planes back, and make them again"] = function()
    local pool, source = core.pool(2), qm.open(MODEL):tensor "model.layers.1.mlp.down_proj.weight"
    local rows, cols = unpack(source:info().shape)
    local x = qm.randn { 3, cols, seed = 4 }
    for _, o in ipairs { { format = "nf4" }, { format = "nf4", double_quant = true }, { format = "int8" },
                         { format = "q4_0" }, { format = "q6_k" }, { format = "int3", block = 32 },
                         { format = "q8_0" }, { format = "f16" } } do
        local want = source:quantize(o.format, { block = o.block, double_quant = o.double_quant })
        local got = core.load(pool, { { tensor = source, format = o.format, block = o.block,
                                        double_quant = o.double_quant, prepare = true } })[1]
        if core.simd() ~= "scalar" then
            support.raises("unsupported", "t:to(qm.cpu) makes them again", qm.ops.embedding, got, { 0 })
        end
        assert(qm.ops.linear(x, got):plane(1) == qm.ops.linear(x, qm.ops.prepare(want)):plane(1), o.format)
        local again, info = got:to(qm.cpu), got:info()
        for plane = 1, 3 do
            assert(got:plane(plane) == want:plane(plane) and again:plane(plane) == want:plane(plane), o.format)
            assert(info.planes[plane] == want:info().planes[plane])
        end
        assert(info.name == source:info().name and again:info().name == info.name)
        assert(got:dequantize():plane(1) == want:dequantize():plane(1))
        assert(table.concat(got:values(5, 70), " ") == table.concat(want:values(5, 70), " "))
        assert(qm.ops.embedding(again, { rows - 1 }):plane(1) == qm.ops.embedding(want, { rows - 1 }):plane(1))
        assert(got:quantize "q8_0":plane(1) == want:quantize "q8_0":plane(1))
    end
    local heap = qm.randn { 64, 64, seed = 3 } -- would have to be kept for it
    local kept = core.load(pool, { { tensor = heap, format = "nf4", prepare = true } })[1]
    assert(qm.ops.embedding(kept, { 1 }))
    pool:close()
end

tests["a weight that is quantised on the way takes the memory of one copy"] = function()
    if core.simd() == "scalar" then
        return
    end
    local source = qm.open(MODEL):tensor "model.layers.1.mlp.down_proj.weight"
    local pool = core.pool(1)
    local n = source:info().count
    for _, case in ipairs { { "nf4", n / 2 + n / 64 * 4 }, { "nf4", n / 2 + n / 64 * 4, double_quant = true },
                            { "q4_0", n / 32 * 18 }, { "q8_0", n / 32 * 34 } } do
        local plan = core.plan_device()
        local got = core.load(pool, { device = plan, { tensor = source, format = case[1], prepare = true,
                                                       double_quant = case.double_quant } })
        support.equal(core.plan_memory(plan), case[2], case[1])
        local y = qm.ops.linear(qm.randn { 1, source:info().shape[2], seed = 1 }:to(plan), got[1])
        assert(y:info().count == source:info().shape[1])
    end
    pool:close()
end

tests["memory is what it was said to be"] = function()
    local plain, quantised = qm.load(MODEL), qm.load(MODEL, { load = "nf4", expect = { tokens = 64 } })
    local mapped = plain:memory()
    local left, copied = quantised:memory()
    local _, size = qm.open(MODEL):size()
    assert(mapped <= size and mapped > 0.98 * size, "all but the vectors lies in the file")
    assert(left < mapped and copied > 0)
    local cache = quantised:cache(64)
    assert(quantised.forecast.kv == cache:bytes(), "the cache")
    assert(quantised.forecast.tokens == 64)
end

-- Of a process of its own, whose heap has no holes that weights could fill.
tests["the memory that a process holds is what was foretold"] = function()
    if support.read "/proc/self/maps":find "lib[at]san" then
        return -- a sanitizer's own memory would count
    end
    local dir, script = support.scratch(), support.scratch() .. ".lua"
    local size = { vocab_size = 4096, hidden_size = 1024, intermediate_size = 4096, num_hidden_layers = 4,
                   num_attention_heads = 8,
                   num_key_value_heads = 4, max_position_embeddings = 512, rms_norm_eps = 1e-6,
                   tie_word_embeddings = false, pre = "qwen2",
                   rope_theta = 10000, architectures = { "Qwen2ForCausalLM" }, model_type = "qwen2" }
    require("qmoon.synth").model(size, dir, { seed = 5, shard_size = 3e7 })
    support.write(script, [[
        local core = require "qmoon.core"
        qm.ops.threads(2)
        local before = core.memory().own
        local lm = qm.load(arg[1], { load = "nf4", threads = 2 })
        print(("%.0f %.0f"):format(core.memory().own - before, lm.forecast.weights))]])
    local status, out = support.run(script .. " " .. dir)
    assert(status == 0, out)
    local have, said = out:match "^(%d+) (%d+)"
    assert(math.abs(have - said) < 0.02 * said + 3e6, out) -- the tokenizer, headers, threads
    os.remove(script)
end

tests["generate --load, with and without words about memory"] = function()
    local command = ('generate %s --prompt "Once upon a time" --tokens 8 --load nf4:dq'):format(MODEL)
    local status, quiet = support.run(command)
    assert(status == 0 and not quiet:find "forecast" and not quiet:find "loading", quiet)
    local _, verbose = support.run(command .. " --verbose")
    assert(verbose:find "forecast  weights 2%.%d+ MB and 1%.%d+ MB in mapped files"
        and verbose:find "loaded    ", verbose)
    status, quiet = support.run(command .. "x")
    assert(status == 2 and quiet:find "dqx", quiet)
end

tests["bench inference --load tells how a model that is quantised on the way loads and runs"] = function()
    local bench = require "qmoon.bench_inference"
    local row = bench.loaded(MODEL, "nf4:dq", { runs = 2, tokens = 4, prompt = 16 })
    local mapped, copied = qm.load(MODEL, { load = "nf4:dq", expect = { tokens = 16 } }):memory()
    assert(row.mapped == mapped and row.weights == copied and row.source == select(2, qm.open(MODEL):size()))
    assert(row.seconds > 0 and row.decode > 0 and row.prompt > 0)
    assert(bench.loaded_text(row):find "^ nf4:dq loaded in [%d.]+ s")
    local status, out = support.run("bench --help")
    assert(status == 0 and out:find("--load LIST", 1, true), out)
    status, out = support.run "bench quantize --load nf4"
    assert(status == 2 and out:find("goes with inference", 1, true), out)
end

-- ---- --device auto ---------------------------------------------------------------------------------------

local GENERATE = ('generate %s --prompt "Once upon a time" --tokens 8 --greedy --json'):format(MODEL)

local function ids_of(text)
    return text:match '"ids":%s*(%b[])' or error(text)
end

tests["--device auto without a GPU says why in a line, and computes what --device cpu does"] = function()
    local count, why = core.cuda_count()
    if count > 0 then
        return
    end
    local status, here = support.run(GENERATE .. " --device cpu")
    assert(status == 0 and not here:find "computing on", here)
    local line = (" %s; computing on the CPU\n"):format(why)
    for _, command in ipairs { GENERATE, GENERATE .. " --load nf4" } do
        local s, auto = support.run(command .. " --device auto")
        assert(s == 0 and auto:find(line, 1, true), auto)
        assert(select(2, auto:gsub("computing on the CPU", "")) == 1, auto)
        assert(command ~= GENERATE or ids_of(auto) == ids_of(here), auto)
    end
    local text = support.scratch()
    support.write(text, ("Once upon a time there was a moon. "):rep(8))
    local s, both = support.run(("perplexity %s --reference %s --text %s --window 16 --json --device auto"):format(
        MODEL, MODEL, text))
    assert(s == 0 and select(2, both:gsub("computing on the CPU", "")) == 1, "said once for both: " .. both)
    status, here = support.run(GENERATE .. " --device cuda:0")
    assert(status == 5 and here:find(why, 1, true), "asked for by name it is an error: " .. here)
    assert(support.run("quantize " .. MODEL .. " " .. support.scratch() .. " --type nf4 --device auto") == 0)
end

-- A device that only counts stands for a GPU of so little memory; all else is what a GPU would see.
tests["--device auto, and the model does not fit the GPU: it is said, and computed here"] = function()
    local script = support.scratch() .. ".lua"
    support.write(script, [[
        local core, devices, running = require "qmoon.core", require "qmoon.devices", require "qmoon.running"
        local gpu = core.plan_device()
        debug.getmetatable(gpu).__index.memory = function()
            return 140e6, 150e6
        end
        devices.choose = function()
            return { gpu }
        end
        local lm = running.load(arg[1], { device = arg[2], context = 60000 }, { tokens = tonumber(arg[3]) })
        local other = running.load(arg[1], { beside = lm }, { tokens = 8 })
        assert(not lm.options.device and not other.options.device, "a reference is where the model is")
        print(table.concat(lm:generate{ ids = { 1, 5, 9, 300 }, tokens = 6, ignore_eos = true }.ids, " "))]])
    local want = qm.load(MODEL):generate { ids = { 1, 5, 9, 300 }, tokens = 6, ignore_eos = true }.ids
    local status, out = support.run(("%s %s auto 50000"):format(script, MODEL))
    assert(status == 0 and out:find(table.concat(want, " ") .. "\n", 1, true), out)
    local lines = { out:match "([^\n]*does not fit plan[^\n]*)\n" }
    assert(#lines == 1 and lines[1]:find("these would: --", 1, true)
        and lines[1]:find "; computing on the CPU$", out)
    assert(lines[1]:find "libraries 70 MB: 185%.8 MB, and 140 MB are free", out)
    status, out = support.run(("%s %s cuda:0 50000"):format(script, MODEL))
    assert(status == 4 and out:find "does not fit plan" and not out:find "computing on", out)
    os.remove(script)
end

return tests
