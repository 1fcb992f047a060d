-- merge: its options and what they mean are in qmoon.commands.

local cli = require "qmoon.cli"

cli.write(require("qmoon.commands").merge, { ... }, "merge")
