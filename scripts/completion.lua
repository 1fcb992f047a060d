-- completion: the script that makes a shell complete qmoon's commands and options.

local cli = require "qmoon.cli"

local o = cli.parse({
    name = "completion",
    doc = "Prints a completion script, made from the same tables that parse the options.",
    arguments = { { "SHELL", doc = "bash, zsh or fish" } },
    options = {},
    examples = [[
  source <(qmoon completion bash)
  qmoon completion zsh > "${fpath[1]}/_qmoon"
  qmoon completion fish > ~/.config/fish/completions/qmoon.fish]],
}, { ... })
if not o then
    return 0
end
io.write(require("qmoon.completion").of(o[1]))
