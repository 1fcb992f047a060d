--- A drawing as SVG text: rectangles, lines, paths and words, nothing else.
--
-- Numbers are rounded to hundredths, so that the same picture is the same bytes on every machine.  Colours
-- are classes
-- (picture/style.css), so that one drawing serves light and dark.

local canvas = {}

---@class qmoon.Canvas
---@field width number     of the drawing
---@field x number         left edge of what is drawn now
---@field y number         its top: charts draw below it and say how much they took
local Canvas = {}
Canvas.__index = Canvas

canvas.WIDTH = 640

---@return qmoon.Canvas
function canvas.new()
    return setmetatable({ width = canvas.WIDTH, x = 20, y = 0, lines = {} }, Canvas)
end

---@param s string
function canvas.escape(s)
    return (s:gsub("[&<>\"]", { ["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;", ['"'] = "&quot;" }))
end

--- A coordinate, shortest: 12, 12.5, 12.25.
---@param v number
function canvas.number(v)
    local s = ("%.2f"):format(v):gsub("0+$", ""):gsub("%.$", "")
    return s == "-0" and "0" or s
end

local number, escape = canvas.number, canvas.escape

local function attributes(list)
    local words = {}
    for i = 1, #list, 2 do
        local v = list[i + 1]
        if v ~= nil and v ~= "" then
            words[#words + 1] = (' %s="%s"'):format(list[i], type(v) == "number" and number(v) or escape(v))
        end
    end
    return table.concat(words)
end

function Canvas:add(form, ...)
    self.lines[#self.lines + 1] = form:format(...)
end

---@param class string
---@param data? any[] more attributes: name, value, name, value …
function Canvas:rect(x, y, w, h, class, data)
    self:add("<rect%s%s/>", attributes { "x", x, "y", y, "width", math.max(0, w), "height", math.max(0, h),
        "class", class },
        attributes(data or {}))
end

function Canvas:line(x1, y1, x2, y2, class)
    self:add("<path%s/>", attributes { "d", ("M%s %sL%s %s"):format(number(x1), number(y1), number(x2),
        number(y2)),
                                       "class", class })
end

function Canvas:path(d, class, data)
    self:add("<path%s%s/>", attributes { "d", d, "class", class }, attributes(data or {}))
end

function Canvas:circle(x, y, r, class, data)
    self:add("<circle%s%s/>", attributes { "cx", x, "cy", y, "r", r, "class", class }, attributes(data or {}))
end

--- Words with their baseline at y.  anchor: "start", "middle" or "end".
function Canvas:text(x, y, s, class, anchor, data)
    self:add("<text%s%s>%s</text>", attributes { "x", x, "y", y, "class", class,
        "text-anchor", anchor ~= "start" and anchor or nil }, attributes(data or {}), escape(s))
end

--- What follows up to close() belongs together; names and values tell the page's script where to draw.
function Canvas:open(data)
    self:add("<g%s>", attributes(data))
end

function Canvas:close()
    self:add "</g>"
end

---@return string
function Canvas:body()
    return table.concat(self.lines, "\n")
end

return canvas
