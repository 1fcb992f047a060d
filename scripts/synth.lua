-- synth: a checkpoint of real shapes with random weights, for benchmarks.

local core = require "qmoon.core"
local cli = require "qmoon.cli"
local nearest = require "qmoon.nearest"
local synth = require "qmoon.synth"

local function names(t)
    local list = {}
    for name in pairs(t) do
        list[#list + 1] = name
    end
    table.sort(list)
    return list
end

local function sizes()
    local list = {}
    for i, a in ipairs(names(synth.sizes)) do
        list[i] = ("%s: %s"):format(a, table.concat(names(synth.sizes[a]), " "))
    end
    return table.concat(list, "; ")
end

local o = cli.parse({
    name = "synth",
    doc = "Makes a checkpoint of a published model's shapes with random bf16 weights (and an adapter, if asked). The same\n"
        .. "arguments give the same bytes.",
    options = {
        { "arch", kind = "text", value = "NAME", default = "qwen2", choices = names(synth.sizes), doc = "architecture" },
        { "like", kind = "text", value = "SIZE", required = true, doc = "whose shapes: see below" },
        { "out", kind = "text", value = "DIR", required = true, doc = "folder of the checkpoint" },
        { "adapter", kind = "text", value = "DIR", doc = "folder of a LoRA adapter on all linear layers" },
        { "rank", kind = "integer", value = "N", default = 16, doc = "rank of the adapter" },
        { "seed", kind = "integer", value = "N", default = 1, doc = "another seed, other weights" },
        { "shard-size", kind = "size", value = "SIZE", default = "5GB", doc = "largest weight file" },
        { "threads", kind = "integer", value = "N", doc = "threads (default: all processors)" },
        { "force", doc = "write into a folder that is there" },
    },
    examples = "  qmoon synth --arch qwen2 --like 1.5b --out /tmp/m --adapter /tmp/a\n  qmoon synth --arch mixtral --like 8x7b --out /tmp/m"
        .. "\n\nsizes:\n  " .. sizes():gsub("; ", "\n  "),
}, { ... })
if not o then
    return 0
end

local size = synth.sizes[o.arch][o.like]
if not size then
    local known = names(synth.sizes[o.arch])
    local guess = nearest(o.like, known)
    core.fail("usage", "synth: there is no %s like '%s'%s; there are %s", o.arch, o.like,
        guess and (" (did you mean '%s'?)"):format(guess) or "", table.concat(known, " "))
end
local started = core.now()
synth.model(size, o.out, o)
if o.adapter then
    synth.adapter(size, o.adapter, o)
end
print((" %s %s in %.1f s: %s%s"):format(o.arch, o.like, core.now() - started, o.out, o.adapter and ", " .. o.adapter or ""))
