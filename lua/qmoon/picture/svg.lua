--- A picture as SVG: byte for byte the same wherever it is made.

local core = require "qmoon.core"
local canvas = require "qmoon.picture.canvas"

local svg = {}

local MARGIN = 20

local function wrapped(s, columns)
    local lines, line = {}, nil
    for word in s:gmatch "%S+" do
        if line and #line + #word < columns then
            line = line .. " " .. word
        else
            lines[#lines + 1] = line
            line = word
        end
    end
    lines[#lines + 1] = line
    return lines
end

local function draw_words(c, s, columns, class, step)
    for _, line in ipairs(wrapped(s, columns)) do
        c:text(c.x, c.y, line, class)
        c.y = c.y + step
    end
end

--- All panels below one another; returns the height of it all.
local function draw(picture, c)
    c.y = MARGIN + 12
    c:open { "data-title", "1" }
    draw_words(c, picture.title, 60, "title", 22)
    c:close()
    for i, panel in ipairs(picture.panels) do
        c.y = c.y + 8
        if panel.title then
            c.y = c.y + 8
            c:text(c.x, c.y, panel.title, "heading", "start", { "data-heading", i - 1 })
            c.y = c.y + 12
        end
        c:open { "data-panel", i - 1 }
        c.y = c.y + require("qmoon.chart." .. panel.kind).svg(panel, c)
        c:close()
    end
    c.y = c.y + 16
    c:open { "data-note", "1" }
    draw_words(c, picture.note or "", 92, "small", 17)
    c:close()
    c:open { "data-recipe", "1" }
    draw_words(c, picture:recipe_text(), 104, "tiny", 15)
    c:close()
    return c.y + MARGIN - 12
end

--- The style sheet, for a page that shows several.
---@return string
function svg.style()
    return (core.source "qmoon.picture.style.css")
end

---@param picture qmoon.Picture
---@param options? {style: boolean?} style = false leaves the style sheet to the page
---@return string
function svg.render(picture, options)
    local c = canvas.new()
    local tall = canvas.number(draw(picture, c))
    local width = canvas.number(c.width)
    return table.concat({
        ('<svg xmlns="http://www.w3.org/2000/svg" class="qm" viewBox="0 0 %s %s" role="img">'):format(width,
            tall),
        ("<title>%s</title>"):format(canvas.escape(picture.title)),
        ("<desc>%s %s</desc>"):format(canvas.escape(picture.alt), canvas.escape(picture:recipe_text())),
        options and options.style == false and "" or "<style>\n" .. svg.style() .. "</style>",
        ('<rect class="paper" width="%s" height="%s"/>'):format(width, tall),
        c:body(),
        "</svg>\n",
    }, "\n")
end

return svg
