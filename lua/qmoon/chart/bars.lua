--- Horizontal bars, in one column or several side by side.
--
-- panel = {kind = "bars", series = {"nf4", "int4"}, rows = {{labels = {…}, values = {…}, texts = {…}, bad =
-- true}},
--          high = the value of a full bar}; labels, values and texts have one entry a series, labels may be
-- one string.

local bars = {}

local function high_of(panel)
    local high = panel.high or 0
    for _, row in ipairs(panel.rows) do
        for s = 1, #panel.series do
            high = math.max(high, row.values[s] or 0)
        end
    end
    return high > 0 and high or 1
end

local function label_of(row, s)
    return type(row.labels) == "table" and (row.labels[s] or "") or s == 1 and row.labels or ""
end

local function text_of(row, s)
    return row.texts and row.texts[s] or row.values[s] and ("%.4g"):format(row.values[s]) or ""
end

-- Columns of the labels and of the texts behind the bars.
local function widths(panel, screen)
    local label, behind = {}, {}
    for s = 1, #panel.series do
        label[s], behind[s] = 0, 0
        for _, row in ipairs(panel.rows) do
            label[s] = math.max(label[s], #screen:plain(label_of(row, s)))
            behind[s] = math.max(behind[s], #screen:plain(text_of(row, s)))
        end
    end
    return label, behind
end

---@return string[]
function bars.text(panel, screen)
    local n, high = #panel.series, high_of(panel)
    local label, behind = widths(panel, screen)
    local room = math.floor((screen.width - 1) / n)
    local lines, head = {}, {}
    for s, name in ipairs(panel.series) do
        head[s] = screen:field((" "):rep(label[s] + 1) .. name, room)
    end
    if n > 1 or panel.series[1] ~= "" then
        lines[1] = screen:paint((" " .. table.concat(head)):gsub("%s+$", ""), "bold")
    end
    for _, row in ipairs(panel.rows) do
        local cells = {}
        for s = 1, n do
            local width = math.max(4, room - label[s] - behind[s] - 3)
            cells[s] = row.values[s] and ("%s %s %s "):format(screen:field(label_of(row, s), label[s], true),
                screen:bar(row.values[s] / high, width, row.bad and "bad" or s),
                    screen:field(text_of(row, s), behind[s], true))
                or (" "):rep(room)
        end
        lines[#lines + 1] = (" " .. table.concat(cells)):gsub("%s+$", "")
    end
    return lines
end

local STEP, BAR = 22, 15

--- Where labels end, bars begin and end, of series s.
local function places(panel, c, s)
    local n = #panel.series
    local room = (c.width - 2 * c.x) / n
    local left = c.x + (s - 1) * room
    local label = panel.label_width or (n > 1 and 58 or 150)
    return left + label, left + label + 8, left + room - (panel.text_width or 64)
end

---@return number height
function bars.svg(panel, c)
    local high, top = high_of(panel), c.y
    local named = #panel.series > 1 or panel.series[1] ~= ""
    for s, name in ipairs(panel.series) do
        local label, from, to = places(panel, c, s)
        if named then
            c:text(from, top + 12, name, "label", "start", { "data-series", s - 1 })
        end
        c:open { "data-bars", s - 1, "data-x0", from, "data-x1", to, "data-high", high }
        for i, row in ipairs(panel.rows) do
            if row.values[s] then
                local y = top + (named and 20 or 0) + STEP * (i - 1)
                local w = row.values[s] / high * (to - from)
                c:text(label, y + 12, label_of(row, s), "small", "end")
                c:rect(from, y, w, BAR, row.bad and "bad" or "s" .. s)
                c:text(from + w + 6, y + 12, text_of(row, s), "small")
            end
        end
        c:close()
    end
    return (named and 20 or 0) + STEP * #panel.rows + 6
end

function bars.rows(panel)
    local rows = { { "line", "series", "label", "value" } }
    for s, name in ipairs(panel.series) do
        for i, row in ipairs(panel.rows) do
            if row.values[s] then
                rows[#rows + 1] = { i, name, label_of(row, s), row.values[s] }
            end
        end
    end
    return rows
end

function bars.gnuplot(panel)
    local plots = {}
    for s, name in ipairs(panel.series) do
        plots[s] = ("$data using ((strcol(2) eq '%s') ? $1 + %g : NaN):4%s with boxes title '%s'"):format(name,
            (s - 1) * 0.8 / #panel.series, s == 1 and ":xtic(3)" or "", name)
    end
    return ("set boxwidth %g\nset style fill solid 0.6\nset yrange [0:*]\nplot %s"):format(0.8 / #panel.series,
        table.concat(plots, ", \\\n     "))
end

return bars
