--- What may be shown: how wide, in colour or not, and which characters.

local core = require "qmoon.core"

local terminal = {}

local function env(name)
    local value = os.getenv(name)
    return value ~= "" and value or nil
end

local wanted = "auto" -- what --color asked for

--- Sets what --color=WHEN asks for: "auto", "always" or "never".
---@param when "auto"|"always"|"never"
function terminal.set_colour(when)
    wanted = when
end

--- Whether the stream (1: standard output, 2: standard error) gets colours.  --color decides, then NO_COLOR and
--- TERM=dumb, which forbid them, then FORCE_COLOR and CLICOLOR_FORCE, then whether it is a terminal.
---@param fd? integer
---@return boolean
function terminal.colour(fd)
    if wanted ~= "auto" then
        return wanted == "always"
    elseif env "NO_COLOR" then
        return false
    end
    if env "TERM" == "dumb" then
        return false
    end
    local force = env "FORCE_COLOR" or env "CLICOLOR_FORCE"
    if force and force ~= "0" then
        return true
    end
    return core.terminal(fd or 1) ~= nil and terminal.cursor()
end

--- Whether the terminal can move its cursor.
---@return boolean
function terminal.cursor()
    return (env "TERM" or "dumb") ~= "dumb"
end

--- Whether characters beyond ASCII are shown.  A locale that says otherwise is believed; no locale at all is a
--- container, whose terminal is elsewhere and can.
---@return boolean
function terminal.utf8()
    local locale = env "LC_ALL" or env "LC_CTYPE" or env "LANG"
    return not locale or locale:upper():find "UTF%-?8" ~= nil
end

local width -- what :width asked for

--- Sets how many columns there are, whatever the terminal says; nil: as it says.
---@param columns integer?
function terminal.set_columns(columns)
    width = columns
end

--- Columns of standard output; nil when it is no terminal.
---@return integer?
function terminal.columns()
    return width or core.terminal(1)
end

-- One character for one where columns matter; words only where prose has them.
local STAND_IN = {
    ["·"] = "|", ["…"] = "...", ["×"] = "x", ["≤"] = "<=", ["≥"] = ">=", ["±"] = "+-", ["→"] = "->", ["–"] = "-", ["—"] = "-",
    ["▁"] = "_", ["▂"] = ".", ["▃"] = ":", ["▄"] = "-", ["▅"] = "=", ["▆"] = "+", ["▇"] = "*", ["█"] = "#",
    ["▏"] = "|", ["▎"] = "|", ["▍"] = "|", ["▌"] = "|", ["▋"] = "#", ["▊"] = "#", ["▉"] = "#",
    ["░"] = ".", ["▒"] = "+", ["▓"] = "%", ["─"] = "-", ["│"] = "|", ["└"] = "+", ["┊"] = ":", ["•"] = "*",
    ["✓"] = "ok", ["✗"] = "no", ["µ"] = "u", ["σ"] = "s", ["Σ"] = "sum", ["√"] = "sqrt", ["Δ"] = "d",
    ["┌"] = "+", ["┬"] = "+", ["┐"] = "+", ["├"] = "+", ["┼"] = "+", ["┤"] = "+", ["┴"] = "+", ["┘"] = "+", ["−"] = "-", ["∞"] = "inf",
    ["‖"] = "|", ["≈"] = "~", ["½"] = "1/2", ["α"] = "alpha", ["é"] = "e",
}

--- The text in ASCII: stand-ins for what our own output uses, "?" for other characters.
---@param text string
---@return string
function terminal.ascii(text)
    return (text:gsub("[\194-\244][\128-\191]+", function(character)
        return STAND_IN[character] or "?"
    end))
end

--- The text as standard output shows it.
---@param text string
---@return string
function terminal.text(text)
    return terminal.utf8() and text or terminal.ascii(text)
end

local CODES = { red = "31", green = "32", yellow = "33", blue = "34", cyan = "36", bold = "1", dim = "2" }

--- The text in a colour of the 16, where standard output (or stream fd) has them.
---@param text string
---@param name "red"|"green"|"yellow"|"blue"|"cyan"|"bold"|"dim"
---@param fd? integer
---@return string
function terminal.paint(text, name, fd)
    if not terminal.colour(fd) then
        return text
    end
    return ("\27[%sm%s\27[0m"):format(CODES[name], text)
end

return terminal
