--- The commands' own tables of options, for shell completion and man pages: nothing about a command is written twice.

local core = require "qmoon.core"
local cli = require "qmoon.cli"

local command_specs = {}

-- Runs a command up to where it says what its options are.
local function captured(name)
    local caught
    local function catch(spec)
        caught = caught or spec
        error(caught, 0)
    end
    local parse, choose = cli.parse, cli.choose
    cli.parse, cli.choose = catch, catch
    pcall(assert(loadstring((core.source("command:" .. name)))), "--help")
    cli.parse, cli.choose = parse, choose
    return caught
end

--- Names of the commands, sorted.
---@return string[]
function command_specs.names()
    local names = {}
    for i, m in ipairs(core.modules "command:") do
        names[i] = m:sub(#"command:" + 1)
    end
    table.sort(names)
    return names
end

--- What qmoon.cli.parse or qmoon.cli.choose is given by a command: {name, doc, arguments, options, commands, examples}.
---@param name string
---@return table
function command_specs.of(name)
    local spec = captured(name)
    if not spec then
        core.fail("fail", "command %s has no table of options", name)
    end
    return spec
end

--- The program's own options.
command_specs.program = {
    { "-e", value = "CODE", doc = "run this code; may be given several times" },
    { "-l", value = "NAME", doc = "require this module into a global" },
    { "-i", doc = "a prompt after the script" },
    { "-v", doc = "version" },
    { "--color", value = "WHEN", doc = "colours: auto, always or never", choices = { "auto", "always", "never" } },
    { "--log", value = "FILE", doc = "write the prompt's session as a script that does it again", file = true },
    { "--no-init", doc = "run no init.lua before the prompt" },
    { "--help", doc = "usage, and the names of the commands" },
    { "--version", doc = "version, threads and instruction set" },
}

return command_specs
