-- merge: see qmoon.commands for its options.

local qm = require "qmoon"
local cli = require "qmoon.cli"
local command = require("qmoon.commands").merge

local o = cli.parse(command, { ... })
if not o then
    return 0
end
local model, outputs, options = command.prepare(o)
local step, finish = require("qmoon.progress").new "merge"
options.progress = step
local report = qm.write(model, outputs, options)
finish()
print(report)
