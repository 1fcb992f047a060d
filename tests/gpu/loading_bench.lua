-- loading_bench.lua FOLDER [SIZE …]: how long models of random weights take to a GPU, quantised on the way,
-- and the memory that was foretold and taken. Their checkpoints are written to FOLDER and stay in the page
-- cache. FOLDER/qwen2-SIZE is left there for loading_bench.py, which loads it with transformers and
-- bitsandbytes.

local core = require "qmoon.core"
local loading = require "qmoon.loading"
local qm = require "qmoon"
local synth = require "qmoon.synth"

local CONTEXT, PROMPT, TOKENS = 2048, 512, 64
local RUNS = 2

local folder = arg[1] or "/dev/shm"
local sizes = #arg > 1 and { unpack(arg, 2) } or { "1.5b", "7b" }

-- Seconds in which weights are brought, without the forecast, headers and tokenizer.
local bringing = 0
local bring = loading.bring
function loading.bring(list, options, plan)
    local started = core.now()
    local loaded = bring(list, options, plan)
    bringing = plan and bringing or core.now() - started
    return loaded
end

local function gb(bytes)
    return ("%.3f"):format(bytes / 1e9)
end

local function collect()
    collectgarbage()
    collectgarbage()
end

--- One load: seconds in all, seconds of bringing, the runner; best of some.
local function load_once(path, gpu, word, threads)
    local started = core.now()
    local lm = qm.load(path, { device = gpu, load = word or nil, threads = threads,
                               expect = { tokens = PROMPT + TOKENS, decode = true }, context = CONTEXT })
    return core.now() - started, bringing, lm
end

local function row(path, word, size)
    local seconds, brought, lm, gpu, start, most, held = math.huge, math.huge, nil, nil, nil, nil, nil
    for _ = 1, RUNS do
        lm = nil
        collect()
        if gpu then
            gpu:close()
        end
        gpu = qm.cuda(0)
        start = gpu:used()
        local all, part
        all, part, lm = load_once(path, gpu, word)
        seconds, brought = math.min(seconds, all), math.min(brought, part)
    end
    local weights
    weights, most, held = gpu:used()
    local f, before = lm.forecast, gpu:memory()
    local ids = {}
    for i = 1, PROMPT do
        ids[i] = i * 31 % 1000
    end
    lm:generate { ids = ids, tokens = TOKENS, ignore_eos = true }
    -- again: the prompt is read beside the step of the first
    lm:generate { ids = ids, tokens = TOKENS, ignore_eos = true }
    local _, peak, reserved = gpu:used()
    print(("%-7s %6.2f s %6.2f s %6.1f GB/s  weights %s (said %s)  loading %s (said %s, %s held)  "
        .. "all %s (said %s, %s held; %s more of the GPU)"):format(word or "bf16", seconds, brought,
            size / brought / 1e9, gb(weights - start), gb(f.weights),
            gb(most - start), gb(f.weights + f.loading), gb(held),
            gb(math.max(peak, most) - start), gb(f.peak), gb(reserved), gb(before - gpu:memory())))
    io.stdout:flush()
    lm = nil
    collect()
    gpu:close()
end

print(tostring(qm.cuda(0)), core.cpus() .. " processors")
for _, name in ipairs(sizes) do
    local path = folder .. "/qwen2-" .. name
    if not core.stat(path) then
        local started = core.now()
        synth.model(synth.sizes.qwen2[name], path, { seed = 1, shard_size = 2e9 })
        print(("%s written in %.1f s"):format(path, core.now() - started))
    end
    local model = qm.open(path)
    local _, size = model:size()
    print(("%s: %s GB, with a prompt of %d tokens and %d more"):format(name, gb(size), PROMPT, TOKENS))
    for _, word in ipairs { false, "nf4", "nf4:dq", "fp4", "int8", "q4_0" } do
        row(path, word, size)
    end
    for _, threads in ipairs { 1, 2, 4, 8 } do
        local gpu = qm.cuda(0)
        local _, brought, lm = load_once(path, gpu, "nf4", threads)
        print(("nf4, %d threads: %.2f s"):format(threads, brought))
        lm = nil
        collect()
        gpu:close()
    end
    -- As before there were couriers for it: one thread, page by page through the map.
    local gpu = qm.cuda(0)
    local started, bytes = core.now(), 0
    for _, item in ipairs(model.items) do
        if bytes < 3e9 and #item.shape == 2 then
            local t = core.view(item.source.file, { name = item.name, at = item.source.at,
                                                    size = item.source.size, dtype = "bf16",
                                                    format = "bf16", shape = item.shape })
            t:to(gpu):close()
            bytes = bytes + item.source.size
        end
    end
    print(("one tensor after the other, t:to(gpu): %.1f GB/s"):format(bytes / (core.now() - started) / 1e9))
    gpu:close()
end
