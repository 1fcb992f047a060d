-- plot: one of qm.plot's pictures, printed or written.

local core = require "qmoon.core"
local cli = require "qmoon.cli"
local plot = require "qmoon.plot"
local terminal = require "qmoon.terminal"

local o = cli.parse({
    name = "plot",
    doc = "Draws one of the pictures that qm.plot has. Without a NAME: which there are.",
    arguments = { { "NAME", optional = true, doc = "the picture" },
                  { "FORMAT", optional = true, many = true, doc = "formats to draw (nine: numbers)" } },
    options = {
        { "out", kind = "text", value = "FILE", doc = "write it: .svg .html .csv .gp (gnuplot) .txt" },
        { "data", kind = "text", value = "KIND", doc = "values to draw: normal, student, outlier, uniform" },
        { "seed", kind = "integer", value = "N", doc = "of those values" },
        { "block", kind = "integer", value = "N", doc = "buckets, weights: values with one scale" },
        { "bits", kind = "integer", value = "N", doc = "nine: bits of a code" },
        { "value", kind = "number", value = "X", doc = "bits: the number" },
        { "ratio", kind = "number", value = "X", doc = "lora: |dW| / |W|" },
        { "model", kind = "text", value = "NAME",
            doc = "heatmap: a model; memory: one, or a family and size" },
        { "card", kind = "size", value = "SIZE", doc = "memory: of the card, such as 24GiB" },
        { "context", kind = "integer", value = "N", doc = "memory: tokens" },
    },
    examples = "  qmoon plot rulers int4 fp4 nf4 --out rulers.svg\n  qmoon plot heatmap nf4 --model "
        .. "Qwen2.5-1.5B --out layers.html",
}, { ... })
if not o then
    return 0
end
local name = o[1]
if not name then
    print(terminal.text(tostring(plot)))
    return 0
elseif name == "result" then
    core.fail("usage", "plot: result draws what m:report and qm.compare gave; in a script, r:plot()")
end

local options = { data = o.data, seed = o.seed, block = o.block, bits = o.bits, value = o.value,
    ratio = o.ratio,
                  card = o.card and o.card / 2 ^ 30, context = o.context }
options.model = o.model and name == "heatmap" and require("qmoon").open(o.model) or o.model
for i = 2, #o do
    options[i - 1] = name == "nine" and tonumber(o[i]) or o[i]
end
local picture = plot[name](options)
if o.out then
    picture:save(o.out)
    print((" %s: %s"):format(name, o.out))
else
    print(picture)
end
