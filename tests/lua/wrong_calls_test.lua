-- Wrong calls of everything that Lua can reach: tests/fault/wrong_calls.lua makes them, in a process and a folder of
-- its own, and then runs the pipeline.

local core = require "qmoon.core"
local support = dofile "tests/lua/support.lua"

local PROGRAM = core.realpath(arg[-1])
local SCRIPT = core.realpath "tests/fault/wrong_calls.lua"

local T = {}

T["wrong calls raise: no crash, no hang, no gigabytes, and the pipeline runs after them as before"] = function()
    local dir, log = support.scratch(), support.scratch()
    core.mkdir(dir)
    local status = os.execute(("cd %s && ASAN_OPTIONS=allocator_may_return_null=1 timeout 300 %s %s >%s 2>&1"):format(dir, PROGRAM,
        SCRIPT, log))
    local text = support.read(log)
    assert(status == 0, "ended with " .. status .. " after: " .. text:sub(-400))
    local calls, raised, peak = text:match "(%d+) calls, (%d+) raised, peak (%d+) MiB"
    assert(tonumber(calls) > 30000 and tonumber(raised) > calls / 2, "so few: " .. text:sub(-100))
    assert(tonumber(peak) < 1024, "memory: " .. peak .. " MiB")

    local undisturbed = support.scratch()
    support.equal(support.run(("pipeline --base %s/model --adapter %s/adapter --out %s"):format(dir, dir, undisturbed)), 0)
    local n, after = 0, support.tree(dir .. "/done")
    for name, bytes in pairs(support.tree(undisturbed)) do
        if not name:find "^report" then
            n = n + 1
            assert(after[name] == bytes, name .. " has other bytes")
        end
    end
    assert(n > 10, "only " .. n .. " files")
end

return T
