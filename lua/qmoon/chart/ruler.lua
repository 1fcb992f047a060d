--- Ruler: marks on a line, one line a row.
--
-- panel = {kind = "ruler", low =, high =, rows = {{label =, levels = {…}, note =}}}

local canvas = require "qmoon.picture.canvas"

local ruler = {}

local MARKS = 65 -- columns: one for every 1/32 of -1 to 1

local function column(panel, v)
    return math.floor((v - panel.low) / (panel.high - panel.low) * (MARKS - 1) + 0.5)
end

local function axis_text(panel, screen)
    local cells = {}
    for i = 0, MARKS - 1 do
        cells[i] = " "
    end
    for k = 0, 4 do
        local label = ("%g"):format(panel.low + (panel.high - panel.low) * k / 4)
        local at = math.min(MARKS - #label, math.max(0,
            math.floor((MARKS - 1) * k / 4 + 0.5 - #label / 2 + 0.5)))
        for i = 1, #label do
            cells[at + i - 1] = label:sub(i, i)
        end
    end
    return screen:paint((" "):rep(10) .. table.concat(cells, "", 0, MARKS - 1):gsub("%s+$", ""), "dim")
end

---@param panel table
---@param screen qmoon.Screen
---@return string[]
function ruler.text(panel, screen)
    local lines = {}
    for i, row in ipairs(panel.rows) do
        local on, parts = {}, {}
        for _, v in ipairs(row.levels) do
            on[column(panel, v)] = true
        end
        for c = 0, MARKS - 1 do
            parts[#parts + 1] = on[c] and screen:paint("|", i) or screen:paint("─", "dim")
        end
        lines[i] = (" %s %s %s"):format(screen:field(row.label, 8), table.concat(parts), row.note or "")
    end
    lines[#lines + 1] = axis_text(panel, screen)
    return lines
end

local LEFT, RIGHT, STEP = 100, 570, 40

---@param panel table
---@param c qmoon.Canvas
---@return number height
function ruler.svg(panel, c)
    local function x(v)
        return LEFT + (v - panel.low) / (panel.high - panel.low) * (RIGHT - LEFT)
    end
    for i, row in ipairs(panel.rows) do
        local y = c.y + STEP * i - 12
        c:open { "data-x0", LEFT, "data-x1", RIGHT, "data-low", panel.low, "data-high", panel.high, "data-y",
            y,
                 "data-ruler", row.key or row.label }
        c:text(LEFT - 12, y + 4, row.label, "label", "end", { "data-part", "label" })
        c:line(LEFT, y, RIGHT, y, "axis")
        local d = {}
        for k, v in ipairs(row.levels) do
            d[k] = ("M%s %sv20"):format(canvas.number(x(v)), canvas.number(y - 10))
        end
        c:path(table.concat(d), "tick s" .. (i - 1) % 6 + 1)
        c:text(RIGHT + 12, y + 4, row.note or "", "small", "start", { "data-part", "note" })
        c:close()
    end
    local bottom = c.y + STEP * #panel.rows + 14
    for k = 0, 4 do
        local v = panel.low + (panel.high - panel.low) * k / 4
        c:text(x(v), bottom, ("%g"):format(v), "small", "middle")
    end
    return STEP * #panel.rows + 26
end

---@return table[] rows the first are the names of the columns
function ruler.rows(panel)
    local rows = { { "line", "row", "code", "level" } }
    for i, row in ipairs(panel.rows) do
        for k, v in ipairs(row.levels) do
            rows[#rows + 1] = { i, row.label, k - 1, v }
        end
    end
    return rows
end

--- gnuplot commands; the data are in $data, with the columns of rows().
function ruler.gnuplot(panel)
    local names = {}
    for i, row in ipairs(panel.rows) do
        names[i] = ("'%s' %d"):format(row.label, i)
    end
    return ("set yrange [%g:0]\nset ytics (%s)\nplot $data using 4:1 with points pointtype 2 notitle"):format(
        #panel.rows + 1, table.concat(names, ", "))
end

return ruler
