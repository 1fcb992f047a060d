-- merge: a base model and a LoRA adapter become one checkpoint.

local qm = require "qmoon"
local cli = require "qmoon.cli"

local o = cli.parse({
    name = "merge",
    doc = "Merges a LoRA adapter into a base model with peft's arithmetic: B.A in f32, scaled, added, rounded once.",
    options = cli.writing {
        { "base", kind = "text", value = "DIR", required = true, doc = "model folder: config.json and safetensors" },
        { "adapter", kind = "list", value = "DIR", required = true, doc = "peft adapter folder, or several separated by commas" },
        { "out", kind = "text", value = "DIR", required = true, doc = "folder for the merged checkpoint" },
        { "dtype", kind = "text", value = "TYPE", choices = { "f16", "bf16", "f32", "keep" }, default = "keep",
          doc = "element type to write; keep: as in the base" },
        { "shard-size", kind = "size", value = "SIZE", default = "5GB", doc = "largest weight file" },
    },
    examples = "  qmoon merge --base Qwen2.5-1.5B --adapter adapters --out merged --dtype f16",
}, { ... })
if not o then
    return 0
end

local model = qm.open(o.base)
for _, adapter in ipairs(o.adapter) do
    model = model:merge(adapter)
end
local step, finish = require("qmoon.progress").new "merge"
local report = qm.write(model, { { o.out, format = o.dtype, shard_size = o.shard_size } },
    { threads = o.threads, force = o.force, keep_nonfinite = o.keep_nonfinite, progress = step })
finish()
print(report)
