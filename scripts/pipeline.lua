-- pipeline: one pass from a base model and a LoRA adapter to every format.  Its options are in qmoon.commands; the same by
-- hand is qm.write(qm.open(base):merge(adapter), { { "out/model-int4", format = "nf4", double_quant = true }, ... }).

local cli = require "qmoon.cli"
local files = require "qmoon.files"

local report, o = cli.write(require("qmoon.commands").pipeline, { ... }, "merge+encode")
if not report then
    return 0
end
files.write(o.out .. "/report.md", report:markdown())
files.write(o.out .. "/report.json", report:json())
if not o.json then
    print((" report   %s/report.md, report.json"):format(o.out))
end
