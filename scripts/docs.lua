-- docs: the sources of the man pages and of the reference.

local cli = require "qmoon.cli"

local o = cli.parse({
    name = "docs",
    doc = "Prints the source of a page: qmoon.1, qmoon-formats.5 and qmoon-lua.3 for scdoc, reference.md in Markdown.",
    arguments = { { "PAGE", doc = "qmoon.1, qmoon-formats.5, qmoon-lua.3 or reference.md" } },
    options = {},
    examples = "  qmoon docs qmoon.1 | scdoc | man -l -",
}, { ... })
if not o then
    return 0
end
io.write(require("qmoon.manual").page(o[1]))
