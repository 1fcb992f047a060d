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

function picture.is(value)
    return getmetatable(value) == Picture
end

--- What the picture was made of, and by which program.
---@return string
function Picture:recipe_text()
    local words = {}
    for i, pair in ipairs(self.recipe) do
        words[i] = ("%s %s"):format(pair[1], tostring(pair[2]))
    end
    words[#words + 1] = "qmoon " .. core.version
    return table.concat(words, " · ")
end

--- The picture as lines of a terminal; of standard output's unless a screen is given.
---@param on? qmoon.Screen
---@return string
function Picture:text(on)
    on = on or screen.here()
    local lines = {}
    for _, l in ipairs(on:wrap(self.title)) do
        lines[#lines + 1] = on:paint(l, "bold")
    end
    for _, panel in ipairs(self.panels) do
        if panel.title then
            lines[#lines + 1] = ""
            lines[#lines + 1] = " " .. panel.title
        end
        for _, l in ipairs(require("qmoon.chart." .. panel.kind).text(panel, on)) do
            lines[#lines + 1] = l
        end
    end
    for _, l in ipairs(self.note and on:wrap(self.note) or {}) do
        lines[#lines + 1] = l
    end
    for _, l in ipairs(on:wrap(self:recipe_text())) do
        lines[#lines + 1] = on:paint(l, "dim")
    end
    return on:plain(table.concat(lines, "\n"))
end

Picture.__tostring = Picture.text

---@return string
function Picture:svg()
    return require("qmoon.picture.svg").render(self)
end

--- A page of its own: everything it needs is in it.
---@return string
function Picture:html()
    return require("qmoon.picture.page").render(self.title, { self })
end

---@return string
function Picture:csv()
    return require("qmoon.picture.data").csv(self)
end

--- A gnuplot script with the data in it.
---@return string
function Picture:gnuplot()
    return require("qmoon.picture.data").gnuplot(self)
end

local AS = { svg = "svg", html = "html", htm = "html", csv = "csv", gp = "gnuplot", gnuplot = "gnuplot",
    txt = "text" }

--- Writes it, in the form that the name's ending says: .svg .html .csv .gp .txt.
---@param path string
---@return qmoon.Picture itself
function Picture:save(path)
    local ending = path:match "%.(%w+)$"
    local method = AS[ending and ending:lower()]
    if not method then
        core.fail("usage", "%s: a picture is saved as .svg, .html, .csv, .gp (gnuplot) or .txt", path)
    end
    local plain = screen.new { width = 80, utf8 = true, colour = false }
    files.write(path, self[method](self, method == "text" and plain or nil)
        .. (method == "text" and "\n" or ""))
    return self
end

return picture
