-- prompt: a plain prompt.  Expressions print their value; an unfinished chunk asks for more; ^D leaves.

local core = require "qmoon.core"

local prompt = {}

local function show(...)
    for i = 1, select("#", ...) do
        local v = select(i, ...)
        if v ~= nil then
            print(v)
        end
    end
end

-- Reads until the chunk is complete; nil at end of input.
local function read_chunk()
    local text
    while true do
        io.write(text and "    >> " or "qmoon> ")
        io.flush()
        local line = io.read "*l"
        if not line then
            return nil
        end
        text = text and text .. "\n" .. line or line
        local chunk = loadstring("return " .. text:gsub("^%s*=", ""), "=prompt")
        if chunk then
            return chunk
        end
        local why
        chunk, why = loadstring(text, "=prompt")
        if chunk then
            return chunk
        elseif not why:find "'<eof>'$" then
            io.stderr:write("error: ", why, "\n")
            text = nil
        end
    end
end

---@param report fun(e: table): integer prints an error
---@param handler fun(e: any): table makes an error object of what was raised
function prompt.run(report, handler)
    print(("qmoon %s  %s  %d threads %s   ^D leaves"):format(core.version, jit.version, core.cpus(), core.simd()))
    while true do
        local chunk = read_chunk()
        if not chunk then
            io.write "\n"
            return
        end
        -- typed loops must be stoppable, and compiled ones are not
        jit.off(chunk, true)
        core.uninterrupt()
        xpcall(function()
            show(chunk())
        end, function(e)
            report(handler(e))
        end)
    end
end

return prompt
