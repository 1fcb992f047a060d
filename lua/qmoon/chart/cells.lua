--- A table whose cells may be marked.
--
-- panel = {kind = "cells", rows = {{…}, …} the first being the header, marks = {[row] = {[column] = "bad" |
-- "good"}}}

local text = require "qmoon.text"

local cells = {}

local function mark(panel, r, k)
    return panel.marks and panel.marks[r] and panel.marks[r][k]
end

local function widths(rows, screen)
    local list = {}
    for _, row in ipairs(rows) do
        for k, s in ipairs(row) do
            list[k] = math.max(list[k] or 0, text.width(screen and screen:plain(s) or s))
        end
    end
    return list
end

---@return string[]
function cells.text(panel, screen)
    local wide, lines = widths(panel.rows, screen), {}
    for r, row in ipairs(panel.rows) do
        local list = {}
        for k, s in ipairs(row) do
            local field = screen:field(s, wide[k], k > 1 or panel.right)
            list[k] = screen:paint(field, r == 1 and "bold" or mark(panel, r, k) or "")
            if mark(panel, r, k) == "bad" then
                list[k] = list[k] .. "!"
            elseif panel.marks and k > 1 then
                list[k] = list[k] .. " "
            end
        end
        lines[r] = (" " .. table.concat(list, panel.marks and " " or "  ")):gsub("%s+$", "")
    end
    return lines
end

local STEP, CHARACTER = 24, 7.6

---@return number height
function cells.svg(panel, c)
    local wide, x = widths(panel.rows), {}
    local at = c.x
    local sum = 0
    for k, n in ipairs(wide) do
        sum = sum + n * CHARACTER + 16
        x[k] = k
    end
    local stretch = math.min(1.25, (c.width - 2 * c.x) / sum)
    for k, n in ipairs(wide) do
        x[k] = { at, at + (n * CHARACTER + 8) * stretch }
        at = at + (n * CHARACTER + 16) * stretch
    end
    for r, row in ipairs(panel.rows) do
        local y = c.y + STEP * (r - 1)
        if r == 2 then
            c:line(c.x, y - 2, at - 8, y - 2, "axis")
        end
        c:open { "data-cells", r - 1 }
        for k, s in ipairs(row) do
            local bad = mark(panel, r, k) == "bad"
            if bad then
                c:rect(x[k][1], y + 1, x[k][2] - x[k][1] + 4, STEP - 4, "badfill")
            end
            local class = r == 1 and "mono head" or bad and "mono badtext" or mark(panel, r, k) == "good"
                and "mono goodtext" or "mono"
            c:text(k == 1 and not panel.right and x[k][1] or x[k][2], y + 15, s, class,
                (k > 1 or panel.right) and "end" or "start")
        end
        c:close()
    end
    return STEP * #panel.rows + 6
end

function cells.rows(panel)
    return panel.rows
end

--- Tables are no curves: the labels stand where the cells are.
function cells.gnuplot(panel)
    local labels = { ("unset border\nunset tics\nset xrange [0:%d]\nset yrange [%d:0]"):format(#panel.rows[1] + 1, #panel.rows + 1) }
    for r, row in ipairs(panel.rows) do
        for k, s in ipairs(row) do
            labels[#labels + 1] = ("set label %q at %d,%d center"):format(s, k, r)
        end
    end
    return table.concat(labels, "\n") .. "\nplot NaN notitle"
end

return cells
