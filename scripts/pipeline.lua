-- pipeline: one pass from a base model and a LoRA adapter to every format.

local qm = require "qmoon"
local cli = require "qmoon.cli"
local command = require("qmoon.commands").pipeline
local files = require "qmoon.files"

local o = cli.parse(command, { ... })
if not o then
    return 0
end
local model, outputs, options = command.prepare(o)
local step, finish = require("qmoon.progress").new "merge+encode"
options.progress = step
local report = qm.write(model, outputs, options)
finish()

files.write(o.out .. "/report.md", report:markdown())
files.write(o.out .. "/report.json", report:json())
print(report)
print((" report   %s/report.md, report.json"):format(o.out))
