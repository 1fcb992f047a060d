--- Lines, steps and points over two axes.
--
-- panel = {kind = "xy", lines = 13, tall = 240, x = {label =, low =, high =, log = true}, y = {…},
--          series = {{name =, style = "line" | "step" | "points", points = {{x, y, label}, …}}}}
-- Points with labels are lettered, and told below.  "step" holds a value up to the next x.

local canvas = require "qmoon.picture.canvas"

local xy = {}

local COLUMNS = 62
local GLYPHS = { "•", "+", "x", "o", "*", "#" }

local function scale(axis, v)
    if axis.log then
        return (math.log(v) - math.log(axis.low)) / (math.log(axis.high) - math.log(axis.low))
    end
    return (v - axis.low) / (axis.high - axis.low)
end

--- Marks of an axis: powers of two on a logarithmic one, else four equal parts.
local function ticks(axis)
    local list = axis.ticks or {}
    if axis.ticks then
        return list
    elseif axis.log then
        local v = axis.low
        while v <= axis.high * 1.001 do
            list[#list + 1] = v
            v = v * 4
        end
        return list
    end
    for k = 0, 4 do
        list[#list + 1] = axis.low + (axis.high - axis.low) * k / 4
    end
    return list
end

local function letter(i)
    return string.char((i <= 26 and 96 or 38) + i)
end

-- Points between two neighbours, one a column, so that lines are drawn without gaps.
local function between(series, panel, put)
    for i = 2, #series.points do
        local a, b = series.points[i - 1], series.points[i]
        local xa, xb = scale(panel.x, a[1]), scale(panel.x, b[1])
        local ya, yb = scale(panel.y, a[2]), scale(panel.y, b[2])
        local steps = math.max(1, math.floor((xb - xa) * COLUMNS + 0.5))
        for k = 0, steps do
            local t = k / steps
            put(xa + (xb - xa) * t, series.style == "step" and (t < 1 and ya or yb) or ya + (yb - ya) * t)
        end
    end
end

-- Lines of a plot on the terminal.
local function lines_of(panel)
    return panel.lines or 13
end

local function plotted(panel)
    local grid, told, n = {}, {}, 0
    local tall = lines_of(panel)
    for s, series in ipairs(panel.series) do
        local function put(fx, fy, glyph)
            if fx >= -0.001 and fx <= 1.001 and fy >= -0.001 and fy <= 1.001 then
                local line = math.floor((1 - fy) * (tall - 1) + 0.5)
                local column = math.floor(fx * (COLUMNS - 1) + 0.5)
                grid[line] = grid[line] or {}
                grid[line][column] = { glyph or GLYPHS[(s - 1) % #GLYPHS + 1], s }
            end
        end
        if series.style ~= "points" then
            between(series, panel, put)
        end
        for _, p in ipairs(series.style == "points" and series.points or {}) do
            local glyph
            if p[3] then
                n = n + 1
                glyph = letter(n)
                told[n] = glyph .. " " .. p[3]
            end
            put(scale(panel.x, p[1]), scale(panel.y, p[2]), glyph)
        end
    end
    return grid, told
end

local function x_axis(panel, screen)
    local cells = {}
    for i = 0, COLUMNS + 7 do
        cells[i] = " "
    end
    for _, v in ipairs(ticks(panel.x)) do
        local label = ("%.4g"):format(v)
        local at = math.floor(scale(panel.x, v) * (COLUMNS - 1) - #label / 2 + 1)
        for i = 1, #label do
            cells[math.max(0, at + i - 1)] = label:sub(i, i)
        end
    end
    return (" "):rep(9) .. screen:paint((table.concat(cells, "", 0, COLUMNS + 7):gsub("%s+$", "")), "dim")
end

---@return string[]
function xy.text(panel, screen)
    local grid, told = plotted(panel)
    local lines, marks, tall = {}, {}, lines_of(panel)
    if panel.y.label ~= "" then
        lines[1] = " " .. panel.y.label
    end
    for _, v in ipairs(ticks(panel.y)) do
        marks[math.floor((1 - scale(panel.y, v)) * (tall - 1) + 0.5)] = ("%.4g"):format(v)
    end
    for l = 0, tall - 1 do
        local cells = {}
        for c = 0, COLUMNS - 1 do
            local cell = grid[l] and grid[l][c]
            cells[c + 1] = cell and screen:paint(cell[1], cell[2]) or " "
        end
        lines[#lines + 1] = (" %s │%s"):format(screen:field(marks[l] or "", 6, true),
            table.concat(cells):gsub("%s+$", ""))
    end
    lines[#lines + 1] = (" "):rep(8) .. "└" .. ("─"):rep(COLUMNS)
    lines[#lines + 1] = x_axis(panel, screen)
    local words = {}
    for s, series in ipairs(panel.series) do
        if series.name ~= "" then
            words[#words + 1] = screen:paint(GLYPHS[(s - 1) % #GLYPHS + 1], s) .. " " .. series.name
        end
    end
    lines[#lines + 1] = (" "):rep(9) .. panel.x.label .. (words[1] and "      " .. table.concat(words, "   ")
        or "")
    for _, l in ipairs(told[1] and screen:wrap(table.concat(told, " · "), (" "):rep(9)) or {}) do
        lines[#lines + 1] = l
    end
    return lines
end

local LEFT, RIGHT = 64, 606

local function path(series, x, y)
    local d = {}
    for i, p in ipairs(series.points) do
        local px, py = canvas.number(x(p[1])), canvas.number(y(p[2]))
        if i == 1 then
            d[i] = ("M%s %s"):format(px, py)
        elseif series.style == "step" then
            d[i] = ("H%sV%s"):format(px, py)
        else
            d[i] = ("L%s %s"):format(px, py)
        end
    end
    return table.concat(d)
end

-- Where a label may go, seen from its point: beside it first, then higher and lower, with a line back to it.
local OFFSETS = { 0, 14, -14, 28, -28, 42, -42, 56, -56, 70, -70, 84, -84 }

local function crosses(a, taken)
    for _, b in ipairs(taken) do
        if a[1] < b[3] and b[1] < a[3] and a[2] < b[4] and b[2] < a[4] then
            return true
        end
    end
    return false
end

--- What labels must not cover: points, and lines in short pieces.
local function obstacles(panel, x, y)
    local taken = {}
    for _, series in ipairs(panel.series) do
        for i, p in ipairs(series.points) do
            local px, py = x(p[1]), y(p[2])
            if series.style == "points" then
                taken[#taken + 1] = { px - 5, py - 5, px + 5, py + 5 }
            elseif i > 1 then
                local q = series.points[i - 1]
                local qx, qy = x(q[1]), y(q[2])
                local n = math.max(1, math.floor(math.abs(px - qx) / 6))
                for k = 0, n do
                    local ax, ay = qx + (px - qx) * k / n, qy + (py - qy) * k / n
                    taken[#taken + 1] = { ax - 1, ay - 1, ax + 1, ay + 1 }
                end
            end
        end
    end
    return taken
end

--- Labels beside points, each where it covers nothing.
local function place_labels(c, panel, series, x, y)
    local taken, points = obstacles(panel, x, y), { unpack(series.points) }
    table.sort(points, function(a, b)
        return a[2] > b[2] or a[2] == b[2] and a[1] < b[1]
    end)
    for _, p in ipairs(points) do
        local px, py, w = x(p[1]), y(p[2]), 7 * #(p[3] or "")
        local chosen
        for _, dy in ipairs(OFFSETS) do
            for _, left in ipairs { px + 12, px - 12 - w } do
                local box = { left - 2, py + dy - 7, left + w + 2, py + dy + 7 }
                if not chosen and left > LEFT and left + w < c.width and not crosses(box, taken) then
                    chosen = { left, dy, box }
                end
            end
        end
        chosen = chosen or { px + 12, 0, { px, py, px, py } }
        taken[#taken + 1] = chosen[3]
        if math.abs(chosen[2]) > 0 then
            c:line(px, py, chosen[1] > px and chosen[1] - 2 or chosen[1] + w + 2, py + chosen[2], "grid")
        end
        c:text(chosen[1], py + chosen[2] + 4, p[3] or "", "small")
    end
end

---@return number height
function xy.svg(panel, c)
    local tall = panel.tall or 240
    local top, bottom = c.y + 22, c.y + 22 + tall
    local function x(v)
        return LEFT + scale(panel.x, v) * (RIGHT - LEFT)
    end
    local function y(v)
        return bottom - scale(panel.y, v) * (bottom - top)
    end
    c:text(c.x, c.y + 12, panel.y.label, "small")
    for _, v in ipairs(ticks(panel.y)) do
        c:line(LEFT, y(v), RIGHT, y(v), "grid")
        c:text(LEFT - 8, y(v) + 4, ("%.4g"):format(v), "small", "end")
    end
    for _, v in ipairs(ticks(panel.x)) do
        c:text(x(v), bottom + 18, ("%.4g"):format(v), "small", "middle")
    end
    c:line(LEFT, bottom, RIGHT, bottom, "axis")
    c:open { "data-xy", panel.key or "1", "data-x0", LEFT, "data-x1", RIGHT, "data-top", top, "data-bottom",
        bottom,
             "data-xlow", panel.x.low, "data-xhigh", panel.x.high, "data-xlog", panel.x.log and "1" or "",
                 "data-ylow",
             panel.y.low, "data-yhigh", panel.y.high }
    for s, series in ipairs(panel.series) do
        if series.style == "points" then
            place_labels(c, panel, series, x, y)
            for _, p in ipairs(series.points) do
                c:circle(x(p[1]), y(p[2]), 4.5, "s" .. s, { "data-series", series.name })
            end
        else
            c:path(path(series, x, y), "curve s" .. s, { "data-series", series.name, "data-style",
                series.style })
        end
    end
    c:close()
    c:text((LEFT + RIGHT) / 2, bottom + 38, panel.x.label, "small", "middle")
    local at = LEFT
    for s, series in ipairs(panel.series) do
        if series.name ~= "" and #panel.series > 1 then
            c:rect(at, bottom + 50, 12, 12, "s" .. s)
            c:text(at + 17, bottom + 60, series.name, "small")
            at = at + 40 + 6.6 * #series.name
        end
    end
    return bottom + (at > LEFT and 70 or 46) - c.y
end

function xy.rows(panel)
    local rows = { { "series", panel.x.label, panel.y.label, "label" } }
    for _, series in ipairs(panel.series) do
        for _, p in ipairs(series.points) do
            rows[#rows + 1] = { series.name, p[1], p[2], p[3] or "" }
        end
    end
    return rows
end

local function quoted(s)
    return (s:gsub("'", "''"))
end

function xy.gnuplot(panel)
    local plots = {}
    for i, series in ipairs(panel.series) do
        local style = series.style == "points" and "points pointtype 7" or series.style == "step" and "steps"
            or "lines"
        plots[i] = ("$data using 2:((strcol(1) eq '%s') ? $3 : NaN) with %s title '%s'"):format(series.name,
            style, series.name)
        if series.style == "points" then
            plots[i] = plots[i] .. (", $data using 2:((strcol(1) eq '%s') ? $3 : NaN):4 with labels left "
                .. "offset 1,0 notitle"):format(
                series.name)
        end
    end
    return ("%sset xrange [%g:%g]\nset yrange [%g:%g]\nset xlabel '%s'\nset ylabel '%s'\nset datafile "
        .. "missing 'NaN'\nplot %s"):format(
        panel.x.log and "set logscale x 2\n" or "", panel.x.low, panel.x.high, panel.y.low, panel.y.high,
        quoted(panel.x.label), quoted(panel.y.label), table.concat(plots, ", \\\n     "))
end

return xy
