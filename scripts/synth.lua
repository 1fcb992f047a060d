-- synth: a checkpoint of real shapes with random weights, for benchmarks.

local core = require "qmoon.core"
local cli = require "qmoon.cli"
local synth = require "qmoon.synth"

local o = cli.parse({
    name = "synth",
    doc = "Makes a checkpoint of a published model's shapes with random bf16 weights (and an adapter, if asked). The same\n"
        .. "arguments give the same bytes.",
    options = {
        { "arch", kind = "text", value = "NAME", default = "qwen2", choices = { "qwen2" }, doc = "architecture" },
        { "like", kind = "text", value = "SIZE", required = true, choices = { "tiny", "0.5b", "1.5b", "3b", "7b" }, doc = "whose shapes" },
        { "out", kind = "text", value = "DIR", required = true, doc = "folder of the checkpoint" },
        { "adapter", kind = "text", value = "DIR", doc = "folder of a LoRA adapter on all linear layers" },
        { "rank", kind = "integer", value = "N", default = 16, doc = "rank of the adapter" },
        { "seed", kind = "integer", value = "N", default = 1, doc = "another seed, other weights" },
        { "shard-size", kind = "size", value = "SIZE", default = "5GB", doc = "largest weight file" },
        { "threads", kind = "integer", value = "N", doc = "threads (default: all processors)" },
        { "force", doc = "write into a folder that is there" },
    },
    examples = "  qmoon synth --arch qwen2 --like 1.5b --out /tmp/m --adapter /tmp/a",
}, { ... })
if not o then
    return 0
end

local size = synth.sizes[o.arch][o.like]
local started = core.now()
synth.model(size, o.out, o)
if o.adapter then
    synth.adapter(size, o.adapter, o)
end
print((" %s %s in %.1f s: %s%s"):format(o.arch, o.like, core.now() - started, o.out, o.adapter and ", " .. o.adapter or ""))
