--- A screen that pictures and lessons are laid out for: columns, UTF-8 or not, colour or not.  Everything is
--- written in
--- UTF-8 and put into ASCII on the way out where the screen has no more (qmoon.terminal knows which).

local terminal = require "qmoon.terminal"
local text = require "qmoon.text"

local screen = {}

---@class qmoon.Screen
---@field width integer   columns
---@field utf8 boolean
---@field colour boolean
local Screen = {}
Screen.__index = Screen

local ANSI = { "34", "33", "36", "35", "32", "31", dim = "2", bold = "1", bad = "31;1", good = "32;1" }

---@param fields {width: integer, utf8: boolean, colour: boolean}
---@return qmoon.Screen
function screen.new(fields)
    return setmetatable(fields, Screen)
end

--- Whether a value is a screen.
function screen.is(value)
    return getmetatable(value) == Screen
end

--- The screen behind standard output; never wider than 80 columns.
---@return qmoon.Screen
function screen.here()
    local width = math.max(40, math.min(80, terminal.columns() or 80))
    return screen.new { width = width, utf8 = terminal.utf8(), colour = terminal.colour(1) }
end

--- UTF-8 text as this screen has it.
---@param s string
---@return string
function Screen:plain(s)
    return self.utf8 and s or terminal.ascii(s)
end

--- Text in a colour: a series 1 to 6, or "dim", "bold", "bad", "good".
---@param s string
---@param colour integer|string
function Screen:paint(s, colour)
    if not self.colour or s == "" or colour == "" then
        return s
    end
    local code = ANSI[type(colour) == "number" and (colour - 1) % 6 + 1 or colour]
    return ("\27[%sm%s\27[0m"):format(code, s)
end

local EIGHTHS = { "▏", "▎", "▍", "▌", "▋", "▊", "▉" }

--- A horizontal bar, as wide as its share of `width` columns, and blanks up to there.
---@param share number 0 to 1
---@param width integer
---@param colour integer|string
function Screen:bar(share, width, colour)
    local eighths = math.floor(math.max(0, math.min(1, share)) * width * 8 + 0.5)
    local full, rest = math.floor(eighths / 8), eighths % 8
    local bar = ("█"):rep(full) .. (EIGHTHS[rest] or "")
    return self:paint(bar, colour) .. (" "):rep(width - full - (rest > 0 and 1 or 0))
end

--- A string in a field of some columns: cut, or filled up with blanks on the right (or left).
---@param s string
---@param width integer
---@param right boolean? set to the right
function Screen:field(s, width, right)
    s = self:plain(s)
    local n = text.width(s)
    if n > width then
        return (s:gsub("^(" .. ("[^\128-\191][\128-\191]*"):rep(width) .. ").*$", "%1"))
    end
    local pad = (" "):rep(width - n)
    return right and pad .. s or s .. pad
end

--- A paragraph as lines of this screen's width.
---@param s string
---@param indent? string
---@return string[]
function Screen:wrap(s, indent)
    indent = indent or " "
    local lines, line, used = {}, nil, 0
    for word in self:plain(s):gmatch "%S+" do
        local n = text.width(word)
        if line and used + 1 + n <= self.width then
            line, used = line .. " " .. word, used + 1 + n
        else
            lines[#lines + 1] = line
            line, used = indent .. word, #indent + n
        end
    end
    lines[#lines + 1] = line
    return lines
end

return screen
