-- plan: what a command would write, to the byte, and what it would take; nothing is written.

local core = require "qmoon.core"
local cli = require "qmoon.cli"
local commands = require "qmoon.commands"
local plan_text = require "qmoon.plan_text"
local write = require "qmoon.write"

local args = { ... }
local name = args[1]
local command = commands[name]
if not command then
    cli.parse({
        name = "plan",
        doc = "Shows what a command would write, from headers only and by the code that the command runs. Exit status 4 when it\n"
            .. "would not fit.",
        arguments = { { "COMMAND", doc = "pipeline, merge or quantize, with its own options; and --json" } },
        options = {},
        examples = "  qmoon plan pipeline --base Qwen2.5-1.5B --adapter adapters --out quantized",
    }, args)
    if name and name:sub(1, 1) ~= "-" then
        core.fail("usage", "plan: no plan for '%s'; there are pipeline, merge, quantize", name)
    end
    return 0
end

local spec = setmetatable({ name = "plan " .. name }, { __index = command })
local o = cli.parse(spec, { unpack(args, 2) })
if not o then
    return 0
end
local model, outputs, options = command.prepare(o)
local plan = write.plan(model, outputs, options)
print(o.json and plan_text.json(plan) or plan_text.text(plan))
write.check(plan)
