-- pipeline: one pass from a base model and a LoRA adapter to every format.

local qm = require "qmoon"
local cli = require "qmoon.cli"
local files = require "qmoon.files"
local outputs = require "qmoon.outputs"

local o = cli.parse({
    name = "pipeline",
    doc = "Merges a LoRA adapter into a base model and writes it in several formats, reading the base once: merged-fp16/, "
        .. "model-int8/,\nmodel-int4/ (nf4 + double quantisation), model.gguf (F16), model-q4_0.gguf, report.md, report.json.",
    options = cli.writing {
        { "base", kind = "text", value = "DIR", required = true, doc = "model folder: config.json and safetensors" },
        { "adapter", kind = "text", value = "DIR", doc = "peft LoRA adapter; none: the base as it is" },
        { "out", kind = "text", value = "DIR", required = true, doc = "folder for the outputs, made if it is not there" },
        { "outputs", kind = "list", value = "LIST", doc = "some of the outputs above, or name=format of your own" },
    },
    examples = [[
  qmoon pipeline --base Qwen2.5-1.5B-Instruct --adapter adapters --out quantized
  qmoon pipeline --base B --adapter A --out q --outputs model-int4,small.gguf=q6_k
  qmoon plan pipeline --base B --adapter A --out q        what it would do, to the byte]],
}, { ... })
if not o then
    return 0
end

local model = qm.open(o.base)
if o.adapter then
    model = model:merge(o.adapter)
end

local step, finish = require("qmoon.progress").new "merge+encode"
local report = qm.write(model, outputs.choose(o.outputs, o.out), {
    round = "f16", -- every output is encoded from the merged weights as f16 holds them
    threads = o.threads, force = o.force, keep_nonfinite = o.keep_nonfinite, progress = step,
})
finish()
files.write(o.out .. "/report.md", report:markdown())
files.write(o.out .. "/report.json", report:json())
print(report)
print((" report   %s/report.md, report.json"):format(o.out))
