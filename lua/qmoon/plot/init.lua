--- Pictures by name: qm.plot.rulers{"int4", "nf4"}.  `ls lua/qmoon/plot` lists them; a new one is a new file.
--
-- A file returns the function that draws: an annotated one, which takes a table of options or nothing and
-- returns a
-- picture.  The first sentence of its annotation is what lists say of it.

local core = require "qmoon.core"
local doc = require "qmoon.doc"
local nearest = require "qmoon.nearest"
local text = require "qmoon.text"

local PREFIX = "qmoon.plot."

local plot = {}

--- The names of all pictures.
---@return string[]
local function names()
    local list = {}
    for i, m in ipairs(core.modules(PREFIX)) do
        list[i] = m:sub(#PREFIX + 1)
    end
    return list
end

local Plot = { safe_names = names } -- for completion at the prompt

function Plot.__index(_, name)
    if type(name) ~= "string" then
        return nil
    end
    if not core.source(PREFIX .. name) then
        local guess = nearest(name, names())
        core.fail("fail", "there is no picture '%s'%s; there are %s", name,
            guess and (" (did you mean '%s'?)"):format(guess) or "", table.concat(names(), " "))
    end
    local draw = require(PREFIX .. name)
    rawset(plot, name, draw)
    return draw
end

-- qm.plot(): the names; printed, what each shows.
function Plot.__call()
    return names()
end

function Plot.__tostring()
    local rows = { { "picture", "shows" } }
    for _, name in ipairs(names()) do
        rows[#rows + 1] = { name, (doc.of(plot[name]).summary:gsub("%.$", "")) }
    end
    return text.table(rows)
end

return setmetatable(plot, Plot)
