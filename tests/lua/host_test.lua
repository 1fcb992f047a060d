-- The program's own command line.

local core = require "qmoon.core"
local support = dofile "tests/lua/support.lua"

local function check(args, status, text)
    local got, printed = support.run(args)
    support.equal(got, status, args .. ": " .. printed)
    if text then
        assert(printed:find(text, 1, true), ("'%s' does not print '%s' but: %s"):format(args, text, printed))
    end
    return printed
end

local function script(code, name)
    local dir = support.scratch()
    core.mkdir(dir)
    local path = dir .. "/" .. (name or "s.lua")
    support.write(path, code)
    return path
end

local T = {}

T["-e runs code, several in turn, and the library is there as qm"] = function()
    check([[-e 'x = 20' -e 'print(x + 1, qm.version)']], 0, "21\t" .. core.version)
    check([[-e'print(1)']], 0, "1")
    check([[-e 'this is no lua']], 1, "error: ")
end

T["-l requires a module into a global, -v tells the version"] = function()
    check([[-l qmoon.json -e 'print(_G["qmoon.json"].encode{1,2})']], 0, "[1, 2]")
    check("-v", 0, "qmoon " .. core.version)
    check("--version", 0, "LuaJIT")
end

T["a script gets its arguments in arg and ..."] = function()
    local path = script [[print(arg[0], arg[1], arg[2], select("#", ...), (...))]]
    check(path .. " a 'b c'", 0, path .. "\ta\tb c\t2\ta")
    check("-- " .. path .. " x", 0, "x")
end

T["a script may begin with #! and return its exit status"] = function()
    check(script "#!/usr/bin/env qmoon\nprint 'from a shebang'", 0, "from a shebang")
    check(script "return 3", 3)
end

T["- and piped input are scripts"] = function()
    local _, text = support.run("- a", [[print("piped", ...)]])
    assert(text:find("piped\ta", 1, true), text)
end

T["an error in a script is one line and exit status 1"] = function()
    local printed = check(script "local t = nil\nprint(t.x)", 1, "s.lua:2")
    support.equal(select(2, printed:gsub("\n", "\n")), 1, "lines")
end

T["a global that was never set is an error with a guess"] = function()
    check(script "prnt(1)", 1, "did you mean 'print'?")
end

T["a command is a name without a slash; a path or .lua is a file"] = function()
    check("nosuch", 2, "no command 'nosuch'")
    check("inspec", 2, "did you mean 'inspect'?")
    check("./nosuch", 2, "no such script")
    check("nosuch.lua", 2, "no such script")
    check("--nosuch", 2, "unknown option")
    check("-e", 2, "needs a value")
end

T["the prompt prints values, asks for the rest of a chunk, and survives errors"] = function()
    local _, text = support.run("-i", "1+1\n=2+3\nfor i = 1, 2 do\nprint(i * 100)\nend\nnosuch.x\n'still here'\n")
    for _, want in ipairs { "2", "5", "100", "200", "error: ", "still here" } do
        assert(text:find(want, 1, true), want .. " is not in " .. text)
    end
end

T["--help prints usage and the commands"] = function()
    local text = check("--help", 0, "usage: qmoon")
    for _, m in ipairs(core.modules "command:") do
        assert(text:find(m:sub(9), 1, true), m)
    end
end

return T
