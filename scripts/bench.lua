-- bench: whole commands on synthetic checkpoints, beside llama-quantize where it is.

local core = require "qmoon.core"
local cli = require "qmoon.cli"
local json = require "qmoon.json"
local synth = require "qmoon.synth"
local text = require "qmoon.text"

local o = cli.parse({
    name = "bench",
    doc = "Times whole commands on a synthetic checkpoint, each as its own process, alternating with llama-quantize where it is\n"
        .. "given. Prints medians. What the machine does besides shows in the spread, so compare ratios.",
    arguments = { { "NAME", optional = true, doc = "pipeline or quantize (default: both)" } },
    options = {
        { "dir", kind = "text", value = "DIR", default = "bench", doc = "where checkpoints and outputs go; kept between runs" },
        { "like", kind = "text", value = "SIZE", default = "1.5b", doc = "shapes of the checkpoint: 0.5b 1.5b 3b 7b" },
        { "runs", kind = "integer", value = "N", default = 3, doc = "runs of each command" },
        { "threads", kind = "integer", value = "N", doc = "threads of both (default: all processors)" },
        { "types", kind = "list", value = "LIST", doc = "types for quantize (default: q4_0 q8_0 q6_k)" },
        { "llama", kind = "text", value = "DIR", doc = "folder with llama-quantize" },
        { "json", doc = "for machines" },
    },
}, { ... })
if not o then
    return 0
end

local program = core.realpath "/proc/self/exe"
local threads = o.threads or core.cpus()
local model, adapter = ("%s/%s"):format(o.dir, o.like), ("%s/%s-adapter"):format(o.dir, o.like)
local results = {}

local function quote(s)
    return "'" .. s:gsub("'", "'\\''") .. "'"
end

--- Runs a command and returns its seconds and what it printed.
local function timed(command)
    local log = o.dir .. "/log"
    local started = core.now()
    local status = os.execute(command .. " >" .. quote(log) .. " 2>&1")
    local seconds = core.now() - started
    local f = io.open(log)
    local output = f:read "*a"
    f:close()
    if status ~= 0 then
        core.fail("fail", "bench: this failed: %s: %s", command, output:sub(-300):gsub("\n", " "))
    end
    return seconds, output
end

local function median(list)
    table.sort(list)
    local n = #list
    return n % 2 == 1 and list[(n + 1) / 2] or (list[n / 2] + list[n / 2 + 1]) / 2
end

local function prepare()
    core.mkdir(o.dir)
    if not core.stat(model) then
        synth.model(synth.sizes.qwen2[o.like], model, { seed = 1 })
        synth.adapter(synth.sizes.qwen2[o.like], adapter, { seed = 1, rank = 16 })
    end
end

local function add(row)
    results[#results + 1] = row
    if not o.json then
        print((" %-26s %8.2f s  (%.2f to %.2f)  %s"):format(row.name, row.seconds, row.least, row.most, row.note or ""))
    end
    return row
end

local function summary(name, seconds, note)
    local least, most = math.huge, 0
    for _, s in ipairs(seconds) do
        least, most = math.min(least, s), math.max(most, s)
    end
    return add { name = name, seconds = median(seconds), least = least, most = most, note = note, runs = #seconds }
end

local function source_size()
    local n = 0
    for _, name in ipairs(core.list(model)) do
        n = n + (name:find "%.safetensors$" and core.stat(model .. "/" .. name).size or 0)
    end
    return n
end

local benchmarks = {}

function benchmarks.pipeline()
    local out = o.dir .. "/out"
    local seconds, peak = {}, 0
    for i = 1, o.runs do
        core.remove_tree(out)
        local printed
        seconds[i], printed = timed(("%s pipeline --base %s --adapter %s --out %s --threads %d --json"):format(quote(program),
            quote(model), quote(adapter), quote(out), threads))
        peak = math.max(peak, core.json_decode(printed:match "{.*}").peak_memory)
    end
    core.remove_tree(out)
    local row = summary("pipeline " .. o.like, seconds)
    row.peak_memory = peak
    row.note = ("%s of source, peak RAM %s"):format(text.bytes(source_size()), text.memory(peak))
    if not o.json then
        print("   " .. row.note)
    end
end

function benchmarks.quantize()
    local f16 = o.dir .. "/" .. o.like .. "-f16.gguf"
    if not core.stat(f16) then
        timed(("%s quantize %s %s --type f16"):format(quote(program), quote(model), quote(f16)))
    end
    local out = o.dir .. "/out.gguf"
    for _, t in ipairs(o.types or { "q4_0", "q8_0", "q6_k" }) do
        local ours, theirs = {}, {}
        for i = 1, o.runs do
            core.remove_tree(out)
            ours[i] = timed(("%s quantize %s %s --type %s --threads %d"):format(quote(program), quote(f16), quote(out), t, threads))
            if o.llama then
                core.remove_tree(out)
                theirs[i] = timed(("%s %s %s %s %d"):format(quote(o.llama .. "/llama-quantize"), quote(f16), quote(out), t:upper(),
                    threads))
            end
        end
        core.remove_tree(out)
        local a = summary(("quantize %s %s"):format(o.like, t), ours, text.bytes(core.stat(f16).size / median(ours)) .. "/s of F16")
        if o.llama then
            local b = summary(("llama-quantize %s"):format(t), theirs)
            a.peer, a.ratio = b.seconds, b.seconds / a.seconds
            if not o.json then
                print(("   %.1f times as fast"):format(a.ratio))
            end
        end
    end
end

prepare()
if o[1] and not benchmarks[o[1]] then
    core.fail("usage", "bench: no benchmark '%s'; there are pipeline, quantize", o[1])
end
if not o.json then
    print((" %d threads, %s, %s"):format(threads, core.simd(), jit.version))
end
for _, name in ipairs { "pipeline", "quantize" } do
    if not o[1] or o[1] == name then
        benchmarks[name]()
    end
end
if o.json then
    print(json.encode({ schema = "qmoon-bench-1", threads = threads, simd = core.simd(), results = results }, { indent = 2 }))
end
