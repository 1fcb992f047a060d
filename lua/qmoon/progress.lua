--- Progress on stderr: one line that renews itself on a terminal, a plain line every few seconds elsewhere.

local core = require "qmoon.core"
local terminal = require "qmoon.terminal"
local text = require "qmoon.text"

local progress = {}

local BAR, EVERY_TTY, EVERY_PLAIN = 22, 0.1, 5

local function bar(share, fancy)
    local full = math.floor(share * BAR + 0.5)
    return (fancy and "█" or "#"):rep(full) .. (fancy and "·" or "."):rep(BAR - full)
end

local function short(name, width)
    name = name:gsub("^model%.", ""):gsub("%.weight$", "")
    return #name <= width and name .. (" "):rep(width - #name) or terminal.text "…" .. name:sub(-(width - 1))
end

--- A function to hand to qm.write as options.progress, and one to call when all is done.
---@param title string
---@return fun(state: table) step, fun() finish
function progress.new(title)
    local columns = core.terminal(2)
    local plain = not columns or os.getenv "TERM" == "dumb"
    local fancy = terminal.utf8()
    local started, last, drawn = core.now(), -math.huge, false
    local function step(s)
        local now = core.now()
        if now - last < (plain and EVERY_PLAIN or EVERY_TTY) or (plain and now - started < EVERY_PLAIN) then
            return
        end
        last = now
        local share = s.total > 0 and s.bytes / s.total or 1
        local seconds = now - started
        local rate = seconds > 0.2 and s.bytes / seconds or 0
        local eta = rate > 0 and text.duration((s.total - s.bytes) / rate) or "-"
        if plain then
            io.stderr:write((" %s %d/%d %s  %s of %s  %s/s  ETA %s\n"):format(title, s.index, s.tensors, s.tensor,
                text.bytes(s.bytes), text.bytes(s.total), text.bytes(rate), eta))
            return
        end
        local line = (" %s %s %d/%d %s %s/s ETA %s"):format(title, bar(share, fancy), s.index, s.tensors,
            short(s.tensor, math.max(8, math.min(28, columns - 62))), text.bytes(rate), eta)
        io.stderr:write("\r", line, "\27[K")
        drawn = true
    end
    local function finish()
        if drawn then
            io.stderr:write "\r\27[K"
        end
    end
    return step, finish
end

return progress
