--- Pictures: one description, shown on a terminal, as SVG, as a page and as data.
--
-- A description is a table of panels, each of a kind that a file in lua/qmoon/chart draws in every form:
--
--   picture.new {
--       title = "…", alt = "what there is to see, in a sentence", note = "what to take from it",
--       recipe = {{"data", "normal, 4096 values"}, {"seed", 1}},    -- what to repeat it with
--       panels = {{kind = "ruler", …}, {kind = "bars", title = "…", …}},
--       live = {name = "buckets", sliders = {…}, …},                -- for the page:
-- lua/qmoon/picture/page.js
--   }

local core = require "qmoon.core"
local files = require "qmoon.files"
local screen = require "qmoon.screen"

local picture = {}

---@class qmoon.Picture
---@field title string
---@field alt string
---@field note string?
---@field recipe table[]   {name, value} in order
---@field panels table[]
---@field live table?
local Picture = {}
Picture.__index = Picture

---@param description table
---@return qmoon.Picture
function picture.new(description)
    return setmetatable(description, Picture)
end

--- Whether a value is a picture.
function picture.is(value)
    return getmetatable(value) == Picture
end

local function check(self, method)
    if getmetatable(self) ~= Picture then
        core.fail("fail", "%s: called with '.' or on something else; a picture's method is called as p:%s(…)",
            method,
            method)
    end
    return self
end

--- What the picture was made of, and by which program: its recipe, in a line.
---
---     print(qm.plot.rulers{"nf4"}:recipe_text())
---
---@return string
function Picture:recipe_text()
    local words = {}
    for i, pair in ipairs(check(self, "recipe_text").recipe) do
        words[i] = ("%s %s"):format(pair[1], tostring(pair[2]))
    end
    words[#words + 1] = "qmoon " .. core.version
    return table.concat(words, " · ")
end

--- The picture as lines of a terminal; of standard output's unless a screen is given.
---
---     print(qm.plot.ledger{"nf4", "nf4:dq"}:text())
---
---@param on? qmoon.Screen
---@return string
function Picture:text(on)
    check(self, "text")
    on = on or screen.here()
    if not screen.is(on) then
        core.fail("fail", "text: wants a screen of qmoon.screen, or nothing, not a %s", type(on))
    end
    local lines = {}
    local function add(list, colour)
        for _, l in ipairs(list) do
            lines[#lines + 1] = colour and on:paint(l, colour) or l
        end
    end
    add(on:wrap(self.title), "bold")
    for _, panel in ipairs(self.panels) do
        add(panel.title and { "", " " .. panel.title } or {})
        add(require("qmoon.chart." .. panel.kind).text(panel, on))
    end
    add(self.note and on:wrap(self.note) or {})
    add(on:wrap(self:recipe_text()), "dim")
    return on:plain(table.concat(lines, "\n"))
end

Picture.__tostring = function(self)
    return self:text()
end

--- The picture as SVG: the same bytes every time, light and dark through CSS, with title and description.
---
---     #qm.plot.rulers{"nf4"}:svg()
---
---@return string
function Picture:svg()
    return require("qmoon.picture.svg").render(check(self, "svg"))
end

--- A page of its own with sliders that compute the picture anew: everything it needs is in it.
---
---     #qm.plot.ledger{}:html()
---
---@return string
function Picture:html()
    return require("qmoon.picture.page").render(check(self, "html").title, { self })
end

--- The numbers of the picture, as CSV.
---
---     qm.plot.rulers{"nf4"}:csv()
---
---@return string
function Picture:csv()
    return require("qmoon.picture.data").csv(check(self, "csv"))
end

--- A gnuplot script with the data in it.
---
---     qm.plot.rulers{"nf4"}:gnuplot()
---
---@return string
function Picture:gnuplot()
    return require("qmoon.picture.data").gnuplot(check(self, "gnuplot"))
end

local AS = { svg = "svg", html = "html", htm = "html", csv = "csv", gp = "gnuplot", gnuplot = "gnuplot",
    txt = "text" }

--- Writes it, in the form that the name's ending says: .svg .html .csv .gp .txt.
---
---     qm.plot.buckets{t = t}:save "buckets.svg"
---
---@param path string
---@return qmoon.Picture itself
function Picture:save(path)
    check(self, "save")
    if type(path) ~= "string" then
        core.fail("fail", "save: path must be a string, not a %s", type(path))
    end
    local ending = path:match "%.(%w+)$"
    local method = AS[ending and ending:lower()]
    if not method then
        core.fail("usage", "%s: a picture is saved as .svg, .html, .csv, .gp (gnuplot) or .txt", path)
    end
    local plain = screen.new { width = 80, utf8 = true, colour = false }
    files.write(path, method == "text" and self:text(plain) .. "\n" or self[method](self))
    return self
end

picture.methods = Picture

return picture
