-- compare: the error between two models, tensor by tensor.

local qm = require "qmoon"
local cli = require "qmoon.cli"
local json = require "qmoon.json"
local terminal = require "qmoon.terminal"

local o = cli.parse({
    name = "compare",
    doc = "Shows how far the tensors of B are from those of A, the worst first.  Either may be a model folder, a .gguf,\n"
        .. ".safetensors, .bin or .pt file, 16-bit or quantised.",
    arguments = { { "A", doc = "what errors are measured against" }, { "B", doc = "what has them" } },
    options = {
        { "worst", kind = "integer", value = "N", doc = "this many tensors only" },
        { "csv", doc = "all rows as CSV" },
        { "json", doc = "everything, for machines" },
    },
    examples = [[
  qmoon compare Qwen2.5-1.5B quantized/model-int4
  qmoon compare quantized/model.gguf quantized/model-q4_0.gguf --worst 10]],
}, { ... })
if not o then
    return 0
end

local a, b = qm.open(o[1]), qm.open(o[2])
local r, total, only_a, only_b, differ = require("qmoon.model_compare").compare(a, b)
local finite = json.finite
if o.json then
    print(json.encode(json.object {
        { "schema", "qmoon-compare-1" }, { "a", a.path }, { "b", b.path },
        { "total", { rmse = finite(total.rmse), mse = finite(total.mse), max = finite(total.max), sqnr = finite(total.sqnr),
                     cosine = finite(total.cosine), bias = finite(total.bias) } },
        { "only_a", json.array(only_a) }, { "only_b", json.array(only_b) }, { "shapes_differ", json.array(differ) },
        { "tensors", require("qmoon.result").objects(r) },
    }, { indent = 2 }))
    return 0
end
r = o.worst and #r > 0 and r:worst(o.worst) or r
io.write(o.csv and r:csv() or terminal.text(r:text { width = terminal.columns(), all = not terminal.columns() }) .. "\n")
