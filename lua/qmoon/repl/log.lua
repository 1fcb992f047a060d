--- A session as a script that does the same again: what was typed, and as comments what was answered.

local core = require "qmoon.core"

local log = {}

---@class qmoon.Log
local Log = {}
Log.__index = Log

--- A log that goes on at the end of a file.
---@param path string
---@return qmoon.Log
function log.open(path)
    local file, why = io.open(path, "a")
    if not file then
        core.fail("fail", "%s; the log goes to a file that can be written", why)
    end
    file:write(("-- qmoon %s session, %s.  `qmoon %s` does it again.\n"):format(core.version, os.date "%Y-%m-%d %H:%M",
        path:find "%.lua$" and path or "./" .. path))
    file:flush()
    return setmetatable({ path = path, file = file }, Log)
end

local function comment(text)
    return "-- " .. text:gsub("\n+$", ""):gsub("\27%[[%d;]*m", ""):gsub("\n", "\n-- ") .. "\n"
end

--- What was typed and what it gave.  names: where the values of an expression were put, such as {"_1", "_2"}.
---@param input string Lua, or a line for the prompt itself
---@param entry {names:string[]?, shown:string?, failed:string?, lua:boolean}
function Log:add(input, entry)
    local file = self.file
    if not entry.lua then
        file:write(comment("qmoon> " .. input))
    elseif entry.failed then -- what it did before it failed is done again
        local chunk = loadstring(input) and ("pcall(function()\n%s\nend)\n"):format(input)
        file:write(chunk or comment(input), comment(entry.failed))
    elseif entry.names and entry.names[1] then
        file:write(("%s = %s\n_ = %s\n"):format(table.concat(entry.names, ", "), input, entry.names[1]))
        if entry.shown then
            file:write(("print(%s)\n"):format(table.concat(entry.names, ", ")))
        end
    else
        file:write("do ", input, "\nend\n")
    end
    if entry.shown and entry.shown ~= "" then
        file:write(comment(entry.shown))
    end
    file:flush()
end

function Log:close()
    self.file:close()
end

return log
