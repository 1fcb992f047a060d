--- Cells shaded by their value: a table of layers by modules, or strips of a matrix.
--
-- panel = {kind = "heat", rows = {labels}, cols = {labels}, values = {{…}, …}, low =, high =, form = "%.1f",
--          diverging = true (low is minus high, 0 is the middle), unit =, legend = false}
-- A value that is nil or false is a cell that is not there.

local heat = {}

local SHADES = { " ", "░", "▒", "▓", "█" }
local NEGATIVE = { "O", "o", "=", "-", " " } -- other signs, not only another colour

local function share(panel, v)
    return math.max(0, math.min(1, (v - panel.low) / (panel.high - panel.low)))
end

local function shade(panel, v, screen)
    if not v then
        return screen:paint("·", "dim")
    end
    local f = share(panel, v)
    if not panel.diverging then
        return screen:paint(SHADES[math.min(5, math.floor(f * 5) + 1)], 1)
    elseif f < 0.5 then
        return screen:paint(NEGATIVE[math.min(5, math.floor(f * 10) + 1)], 2)
    end
    return screen:paint(SHADES[math.min(5, math.floor((f - 0.5) * 10) + 1)], 1)
end

local function widest(list)
    local n = 0
    for _, s in ipairs(list) do
        n = math.max(n, #s)
    end
    return n
end

local MOST_LINES = 24

--- Rows as the terminal has room for: of neighbours, the lowest value of each column.
local function fewer(panel)
    local per = math.ceil(#panel.values / MOST_LINES)
    if per == 1 then
        return panel
    end
    local values, names = {}, {}
    for r, row in ipairs(panel.values) do
        local k = math.ceil(r / per)
        values[k] = values[k] or {}
        names[k] = names[k] and names[k]:match "^[^-]*" .. "-" .. panel.rows[r] or panel.rows[r]
        for i = 1, #panel.values[1] do
            local v = row[i]
            values[k][i] = v and math.min(v, values[k][i] or math.huge) or values[k][i] or false
        end
    end
    return setmetatable({ values = values, rows = names }, { __index = panel })
end

---@return string[]
function heat.text(panel, screen)
    panel = fewer(panel)
    local label, n = widest(panel.rows), #panel.values[1]
    local names, form = panel.cols or {}, panel.form or "%.4g"
    local wide = names[1] and math.max(2, math.min(10, math.floor((screen.width - label - 3) / n) - 1)) or 1
    local gap, lines = names[1] and " " or "", {}
    if names[1] then
        local cells = {}
        for i, name in ipairs(names) do
            cells[i] = screen:field(name, wide)
        end
        lines[1] = screen:paint((" " .. (" "):rep(label + 1) .. table.concat(cells, " ")):gsub("%s+$", ""),
            "dim")
    end
    for r, row in ipairs(panel.values) do
        local cells = {}
        for i = 1, n do
            local mark = shade(panel, row[i], screen)
            local value = names[1] and row[i] and form:format(row[i]) or ""
            cells[i] = mark .. screen:field(value == "" and "" or " " .. value, wide - 1)
        end
        lines[#lines + 1] = (" %s %s"):format(screen:field(panel.rows[r], label),
            table.concat(cells, gap)):gsub("%s+$", "")
    end
    if panel.diverging then
        lines[#lines + 1] = screen:paint(" " .. (" "):rep(label + 1) .. "- = o O below 0, ░ ▒ ▓ █ above",
            "dim")
    else
        lines[#lines + 1] = screen:paint((" %sblank %s  ·  █ %s %s"):format((" "):rep(label + 1),
            form:format(panel.low),
            form:format(panel.high), panel.unit or ""), "dim")
    end
    return lines
end

--- Class of a cell: h0 to h8, or n4 to p4 around 0.
---@return string
function heat.class(panel, v)
    if not v then
        return "h-none"
    end
    local f = share(panel, v)
    if not panel.diverging then
        return "h" .. math.min(8, math.floor(f * 9))
    end
    local k = math.floor((f - 0.5) * 2 * 4 + (f >= 0.5 and 0.5 or -0.5) + (f < 0.5 and 1 or 0))
    k = math.max(-4, math.min(4, k))
    return k < 0 and "n" .. -k or "p" .. k
end

-- Letters on a shade: as dark as they can be on light ones, in either colour scheme.
local function ink(class)
    return (class == "h6" or class == "h7" or class == "h8") and "on" or class == "h5" and "mid" or "off"
end

---@return number height
function heat.svg(panel, c)
    local n, rows = #panel.values[1], #panel.values
    local from, top = c.x + (panel.label_width or 90), c.y
    local cell = (c.width - c.x - from) / n
    local tall = panel.cell_height or 18
    if panel.cols then
        for i, name in ipairs(panel.cols) do
            c:text(from + cell * (i - 0.5), top + 12, name, "tiny", "middle")
        end
        top = top + 18
    end
    for r, row in ipairs(panel.values) do
        local y = top + (tall + 2) * (r - 1)
        c:text(from - 8, y + tall / 2 + 4, panel.rows[r], "small", "end")
        c:open { "data-heat", r - 1, "data-low", panel.low, "data-high", panel.high }
        for i = 1, n do
            c:rect(from + cell * (i - 1), y, cell - (panel.cols and 1.5 or 0), tall,
                heat.class(panel, row[i]))
            if panel.cols and row[i] and cell > 34 then
                c:text(from + cell * (i - 0.5), y + tall / 2 + 4, (panel.form or "%.4g"):format(row[i]),
                    "tiny " .. ink(heat.class(panel, row[i])), "middle")
            end
        end
        c:close()
    end
    if panel.legend == false then
        return top + (tall + 2) * rows - c.y
    end
    local y, form = top + (tall + 2) * rows + 16, panel.form or "%.4g"
    local steps = panel.diverging and { "n4", "n3", "n2", "n1", "p0", "p1", "p2", "p3", "p4" }
        or { "h0", "h1", "h2", "h3", "h4", "h5", "h6", "h7", "h8" }
    c:text(from, y + 10, form:format(panel.low), "small")
    local x = from + 12 + 6.6 * #form:format(panel.low)
    for i, class in ipairs(steps) do
        c:rect(x + 16 * (i - 1), y, 16, 12, class)
    end
    c:text(x + 16 * #steps + 8, y + 10, form:format(panel.high) .. " " .. (panel.unit or ""), "small")
    return y + 20 - c.y
end

function heat.rows(panel)
    local rows = { { "row", "column", "value", "row name", "column name" } }
    for r, row in ipairs(panel.values) do
        for i = 1, #panel.values[1] do
            if row[i] then
                rows[#rows + 1] = { r, i, row[i], panel.rows[r], panel.cols and panel.cols[i] or i }
            end
        end
    end
    return rows
end

function heat.gnuplot(panel)
    return ("set cbrange [%g:%g]\nset yrange [%g:0.5]\nplot $data using 2:1:3 with image pixels notitle"):format(panel.low, panel.high,
        #panel.values + 0.5)
end

return heat
