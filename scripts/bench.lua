-- bench: whole commands on synthetic checkpoints, beside llama-quantize and cp where they do the same.

local core = require "qmoon.core"
local cli = require "qmoon.cli"
local json = require "qmoon.json"
local synth = require "qmoon.synth"
local text = require "qmoon.text"

-- As `make bench` takes them: every kind of search, and what whole files are limited by.
local TYPES = { "q4_0", "q8_0", "mxfp4_moe", "q4_k_m", "q5_k_m", "q6_k", "q3_k_m", "q2_k", "iq4_nl", "iq4_xs" }

local o = cli.parse({
    name = "bench",
    doc = "Times whole commands on a synthetic checkpoint, each as its own process, alternating with llama-quantize (or cp) where\n"
        .. "it is given. Prints medians of seconds and of processor time; the latter and ratios say more on a shared machine.",
    arguments = { { "NAME", optional = true, many = true, doc = "pipeline, convert, quantize, inference (default: all)" } },
    options = {
        { "dir", kind = "text", value = "DIR", default = "bench", doc = "where checkpoints and outputs go; kept between runs" },
        { "like", kind = "text", value = "SIZE", default = "1.5b", doc = "shapes of the checkpoint: 0.3b 0.5b 1.5b 3b 7b" },
        { "runs", kind = "integer", value = "N", default = 3, doc = "runs of each command" },
        { "threads", kind = "list", value = "LIST", doc = "numbers of threads, of both (default: 1 and all processors)" },
        { "types", kind = "list", value = "LIST", doc = "types for quantize or inference (default: several)" },
        { "load", kind = "list", value = "LIST",
          doc = "inference: the checkpoint itself, quantised while it is loaded (nf4, nf4:dq, q4_0 …): seconds, memory, speed" },
        { "round", kind = "text", value = "DTYPE", default = "f16", choices = { "f16", "bf16" }, doc = "of the file quantised" },
        { "llama", kind = "text", value = "DIR", doc = "folder with llama-quantize and llama-bench" },
        { "json", doc = "for machines" },
    },
}, { ... })
if not o then
    return 0
end

local program = core.realpath "/proc/self/exe"
local model, adapter = ("%s/%s"):format(o.dir, o.like), ("%s/%s-adapter"):format(o.dir, o.like)
local results = {}

local function thread_counts()
    local all = core.cpus()
    local list = {}
    for i, n in ipairs(o.threads or (all > 1 and { "1", tostring(all) } or { "1" })) do
        list[i] = tonumber(n)
        if not list[i] or list[i] < 1 or list[i] % 1 ~= 0 then
            core.fail("usage", "bench: --threads %s: whole numbers from 1, separated by commas", n)
        end
    end
    return list
end

local threads = thread_counts()

local function quote(s)
    return "'" .. s:gsub("'", "'\\''") .. "'"
end

local function read(path)
    local f = io.open(path)
    local bytes = f:read "*a"
    f:close()
    return bytes
end

--- Runs a command; returns its seconds, its processor seconds and what it printed.
local function timed(command)
    local log, spent = o.dir .. "/log", o.dir .. "/times"
    local started = core.now()
    -- the second line of `times` is that of the children: 0m1.230s 0m0.450s
    local status = os.execute(("(%s) >%s 2>&1; s=$?; times >%s; exit $s"):format(command, quote(log), quote(spent)))
    local seconds, cpu = core.now() - started, 0
    if status ~= 0 then
        core.fail("fail", "bench: this failed: %s: %s", command, read(log):sub(-300):gsub("\n", " "))
    end
    for minutes, rest in read(spent):match("\n(.*)"):gmatch "(%d+)m([%d.]+)s" do
        cpu = cpu + 60 * tonumber(minutes) + tonumber(rest)
    end
    return seconds, cpu, read(log)
end

local function median(list)
    table.sort(list)
    local n = #list
    return n % 2 == 1 and list[(n + 1) / 2] or (list[n / 2] + list[n / 2 + 1]) / 2
end

local function prepare()
    core.mkdir(o.dir)
    if not synth.sizes.qwen2[o.like] then
        core.fail("usage", "bench: --like %s: not among the sizes of qwen2", o.like)
    elseif not core.stat(model) then
        synth.model(synth.sizes.qwen2[o.like], model, { seed = 1 })
        synth.adapter(synth.sizes.qwen2[o.like], adapter, { seed = 1, rank = 16 })
    end
end

-- ---- measuring -----------------------------------------------------------------------------------------

--- Several commands in turn, o.runs times: what stands in the way of one stands in the way of the others.  Each is
--- {name, command, clear = what it writes}; returns a row of figures for each.
local function alternate(commands, note)
    local times = {}
    for _ = 1, o.runs do
        for i, c in ipairs(commands) do
            times[i] = times[i] or { seconds = {}, cpu = {} }
            core.remove_tree(c.clear)
            local seconds, cpu, printed = timed(c[2])
            table.insert(times[i].seconds, seconds)
            table.insert(times[i].cpu, cpu)
            times[i].printed = printed
            core.remove_tree(c.clear)
        end
    end
    local rows = {}
    for i, c in ipairs(commands) do
        local t = times[i]
        local row = { name = c[1], seconds = median(t.seconds), least = t.seconds[1], most = t.seconds[#t.seconds],
                      cpu = median(t.cpu), runs = o.runs, printed = t.printed }
        rows[i], results[#results + 1] = row, row
        if not o.json then
            print((" %-34s %8.2f s  (%.2f to %.2f)  %8.2f s of CPU  %s"):format(row.name, row.seconds, row.least, row.most,
                row.cpu, note and note(row) or ""))
        end
    end
    return rows
end

local function say(format, ...)
    if not o.json then
        print("   " .. format:format(...))
    end
end

local function weights_file()
    local size, file = 0, nil
    for _, name in ipairs(core.list(model)) do
        if name:find "%.safetensors$" then
            file = model .. "/" .. name
            size = size + core.stat(file).size
        end
    end
    return size, file
end

-- ---- the benchmarks --------------------------------------------------------------------------------------

local benchmarks = {}

function benchmarks.pipeline()
    local out = o.dir .. "/out"
    local row = alternate { { "pipeline " .. o.like,
        ("%s pipeline --base %s --adapter %s --out %s --threads %d --json"):format(quote(program), quote(model), quote(adapter),
            quote(out), threads[#threads]), clear = out } }[1]
    row.peak_memory = core.json_decode(row.printed:match "{.*}").peak_memory
    say("%s of source, peak RAM %s", text.bytes((weights_file())), text.memory(row.peak_memory))
end

--- A folder to a GGUF file of floats, beside copying its weights (and waiting for the disk, as we do).
function benchmarks.convert()
    local size, file = weights_file()
    local copy, gguf = o.dir .. "/copy", o.dir .. "/out.gguf"
    local function rate(row)
        return text.bytes(size / row.seconds) .. "/s"
    end
    for _, t in ipairs { "f16", "bf16" } do
        local rows = alternate({
            { ("%s to %s"):format(o.like, t), ("%s quantize %s %s --type %s --threads %d"):format(quote(program), quote(model),
                quote(gguf), t, threads[#threads]), clear = gguf },
            { "cp and sync", ("cp %s %s && sync %s"):format(quote(file), quote(copy), quote(copy)), clear = copy },
        }, rate)
        rows[1].of_copying = rows[2].seconds / rows[1].seconds
        say("at %.0f %% of the rate of copying", 100 * rows[1].of_copying)
    end
end

--- The same float GGUF file by us and by llama-quantize, which has no fsync in it.
local function quantize_commands(source, t, n)
    local out = o.dir .. "/out.gguf"
    local commands = { { ("%s, threads %d"):format(t, n), ("%s quantize %s %s --type %s --threads %d"):format(quote(program),
        quote(source), quote(out), t, n), clear = out } }
    if o.llama then
        commands[2] = { ("llama-quantize, threads %d"):format(n), ("%s %s %s %s %d"):format(quote(o.llama .. "/llama-quantize"),
            quote(source), quote(out), t:upper(), n), clear = out }
    end
    return commands
end

function benchmarks.quantize()
    local source = ("%s/%s-%s.gguf"):format(o.dir, o.like, o.round)
    if not core.stat(source) then
        timed(("%s quantize %s %s --type %s"):format(quote(program), quote(model), quote(source), o.round))
    end
    local weights = core.stat(source).size / 2
    local function rate(row)
        return ("%.1f M weights/s"):format(weights / row.seconds / 1e6)
    end
    for _, t in ipairs(o.types or TYPES) do
        local one
        for _, n in ipairs(threads) do
            local rows = alternate(quantize_commands(source, t, n), rate)
            local ours, theirs = rows[1], rows[2]
            ours.type, ours.threads = t, n
            if theirs then
                ours.ratio, ours.cpu_ratio = theirs.seconds / ours.seconds, theirs.cpu / ours.cpu
                say("%.1f times as fast; %.1f times less CPU", ours.ratio, ours.cpu_ratio)
            end
            if one then
                ours.scaling = one.seconds / ours.seconds
                say("%.2f times one thread's speed", ours.scaling)
            end
            one = n == 1 and ours or one
        end
    end
end

--- One decoder's ops in several formats, beside llama-bench on a file of the same shapes.
function benchmarks.inference()
    local inference, ops = require "qmoon.bench_inference", require "qmoon.ops"
    local f = synth.sizes.qwen2[o.like]
    ops.threads(threads[#threads])
    local f16 = o.dir .. "/" .. o.like .. "-f16.gguf"
    local options = { runs = o.runs, tokens = 64, prompt = 512 }
    for _, word in ipairs(o.load or {}) do
        local row = inference.loaded(model, word, options)
        results[#results + 1] = row
        if not o.json then
            print(inference.loaded_text(row))
        end
    end
    for _, t in ipairs(o.types or o.load and {} or { "q4_0", "q8_0", "f16", "nf4", "q4_k", "q6_k" }) do
        local peer, file = o.llama and o.llama .. "/llama-bench", nil
        local there = peer and core.stat(peer) and (t == "f16" or t:find "^q")
        if there then
            file = t == "f16" and f16 or ("%s/%s-%s.gguf"):format(o.dir, o.like, t)
            if not core.stat(file) then
                timed(("%s quantize %s %s --type %s"):format(quote(program), quote(model), quote(file), t == "q4_k" and "q4_k_s" or t))
            end
        end
        local row = inference.row(f, t, options, file and { program = peer, file = file })
        results[#results + 1] = row
        if not o.json then
            print((" %-6s %8s  decode %6.2f tokens/s, %5.1f GB/s, %3.0f %% of %5.1f GB/s  prompt %7.1f tokens/s"):format(t,
                text.bytes(row.bytes), row.decode, row.speed / 1e9, 100 * row.of_roof, row.roof / 1e9, row.prompt))
        end
        if row.peer_decode then
            say("llama.cpp: decode %.2f tokens/s (ours %.2f times), prompt %.1f tokens/s (ours %.2f times)", row.peer_decode,
                row.ratio, row.peer_prompt, row.prompt_ratio)
        end
    end
end

local NAMES = { "pipeline", "convert", "quantize", "inference" }
local chosen, loads = #o > 0 and o or NAMES, false
for _, name in ipairs(chosen) do
    if not benchmarks[name] then
        core.fail("usage", "bench: no benchmark '%s'; there are %s", name, table.concat(NAMES, ", "))
    end
    loads = loads or name == "inference"
end
if o.load and not loads then
    core.fail("usage", "bench: --load goes with inference")
end
prepare()
if not o.json then
    print((" %s, %s, %d processors"):format(core.simd(), jit.version, core.cpus()))
end
for _, name in ipairs(chosen) do
    benchmarks[name]()
end
if o.json then
    for _, row in ipairs(results) do
        row.printed = nil
    end
    print(json.encode({ schema = "qmoon-bench-2", simd = core.simd(), results = results }, { indent = 2 }))
end
