--- Histogram of values, with marks on the axis and borders between them.
--
-- panel = {kind = "histogram", low =, high =, counts = {…}, levels = {…}, borders = {…}}

local canvas = require "qmoon.picture.canvas"

local histogram = {}

local HEIGHT = 8 -- lines on the terminal
local UPRIGHT = { "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█" }

local function most(counts)
    local n = 0
    for _, v in ipairs(counts) do
        n = math.max(n, v)
    end
    return n > 0 and n or 1
end

--- counts in as many columns as the screen has for them
local function columns(panel, width)
    local list, n = {}, #panel.counts
    for c = 1, width do
        list[c] = 0
        for i = math.floor((c - 1) * n / width) + 1, math.floor(c * n / width) do
            list[c] = list[c] + panel.counts[i]
        end
    end
    return list
end

local function marks(panel, list, width, glyph)
    local cells = {}
    for c = 1, width do
        cells[c] = " "
    end
    for _, v in ipairs(list) do
        local c = math.floor((v - panel.low) / (panel.high - panel.low) * width) + 1
        cells[math.max(1, math.min(width, c))] = glyph
    end
    return table.concat(cells)
end

---@return string[]
function histogram.text(panel, screen)
    local width = #panel.counts
    while width > screen.width - 12 do -- halves, so that every column counts as many bins
        width = math.floor(width / 2)
    end
    local list = columns(panel, width)
    local top, lines = most(list), {}
    for line = HEIGHT, 1, -1 do
        local cells = {}
        for c = 1, width do
            local eighths = math.floor(list[c] / top * HEIGHT * 8 + 0.5) - (line - 1) * 8
            if line == 1 and list[c] > 0 then
                eighths = math.max(1, eighths)
            end
            cells[c] = eighths <= 0 and " " or UPRIGHT[math.min(8, eighths)]
        end
        lines[#lines + 1] = (" " .. (" "):rep(8) .. screen:paint((table.concat(cells):gsub("%s+$", "")),
            1)):gsub("%s+$", "")
    end
    lines[#lines + 1] = " levels  " .. screen:paint(marks(panel, panel.levels, width, "|"), 2)
    lines[#lines + 1] = " borders " .. screen:paint(marks(panel, panel.borders, width, "┊"), "dim")
    local low, high = ("%g"):format(panel.low), ("%g"):format(panel.high)
    lines[#lines + 1] = (" "):rep(9) .. low .. (" "):rep(math.floor(width / 2) - #low)
        .. ("%g"):format((panel.low + panel.high) / 2)
        .. (" "):rep(width - math.floor(width / 2) - 1 - #high) .. high
    return lines
end

local TALL = 180

---@return number height
function histogram.svg(panel, c)
    local from, to = c.x + 10, c.width - c.x - 10
    local bottom, n = c.y + TALL, #panel.counts
    local function x(v)
        return from + (v - panel.low) / (panel.high - panel.low) * (to - from)
    end
    local function marks_path(list, y1, y2)
        local d = {}
        for i, v in ipairs(list) do
            d[i] = ("M%s %sV%s"):format(canvas.number(x(v)), canvas.number(y1), canvas.number(y2))
        end
        return table.concat(d)
    end
    c:open { "data-histogram", "1", "data-x0", from, "data-x1", to, "data-low", panel.low, "data-high",
        panel.high,
             "data-top", c.y + 10, "data-bottom", bottom }
    c:path(marks_path(panel.borders, c.y + 4, bottom), "border", { "data-part", "borders" })
    local d, top = { ("M%s %s"):format(canvas.number(from), canvas.number(bottom)) }, most(panel.counts)
    for i, v in ipairs(panel.counts) do
        d[#d + 1] = ("V%sH%s"):format(canvas.number(bottom - v / top * (TALL - 10)),
            canvas.number(from + (to - from) * i / n))
    end
    c:path(table.concat(d) .. ("V%sZ"):format(canvas.number(bottom)), "area s1", { "data-part", "area" })
    c:line(from, bottom, to, bottom, "axis")
    c:path(marks_path(panel.levels, bottom, bottom + 14), "tick s2", { "data-part", "levels" })
    c:close()
    for k = 0, 4 do
        local v = panel.low + (panel.high - panel.low) * k / 4
        c:text(x(v), bottom + 30, ("%g"):format(v), "small", "middle")
    end
    return TALL + 40
end

function histogram.rows(panel)
    local rows, n = { { "middle", "count" } }, #panel.counts
    for i, v in ipairs(panel.counts) do
        rows[i + 1] = { panel.low + (panel.high - panel.low) * (i - 0.5) / n, v }
    end
    return rows
end

function histogram.gnuplot(panel)
    local arrows = {}
    for i, v in ipairs(panel.levels) do
        arrows[i] = ("set arrow from %s, graph 0 to %s, graph 0.06 nohead linecolor 2 front\n"):format(canvas.number(v),
            canvas.number(v))
    end
    return table.concat(arrows) .. "set style fill solid 0.5\nset boxwidth 1 relative\nplot $data using 1:2 "
        .. "with boxes notitle"
end

return histogram
