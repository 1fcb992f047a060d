--- Stacked bars: what something is made of, one line a row, with a limit that must not be passed.
--
-- panel = {kind = "stack", names = {"codes", "scales"}, rows = {{label =, parts = {4, 0.5}, text =, bad =
-- true}},
--          high =, limit = {value =, label =}}

local canvas = require "qmoon.picture.canvas"

local stack = {}

local GLYPHS = { "█", "▓", "▒", "░", "+", "·" }

local function sum(list)
    local n = 0
    for _, v in ipairs(list) do
        n = n + v
    end
    return n
end

local function high_of(panel)
    local high = panel.high or panel.limit and 1.15 * panel.limit.value or 0
    for _, row in ipairs(panel.rows) do
        high = math.max(high, sum(row.parts))
    end
    return high
end

--- Columns of each part; a part that is there takes at least one.
local function columns(row, high, width)
    local list, at, shown = {}, 0, 0
    for i, v in ipairs(row.parts) do
        at = at + v
        local upto = math.floor(at / high * width + 0.5)
        list[i] = v > 0 and math.max(1, upto - shown) or 0
        shown = shown + list[i]
    end
    return list
end

local function widest(panel, key)
    local n = 0
    for _, row in ipairs(panel.rows) do
        n = math.max(n, #(row[key] or ""))
    end
    return n
end

local function legend(panel, screen)
    local words = {}
    for i, name in ipairs(panel.names) do
        words[i] = screen:paint(GLYPHS[i], i) .. " " .. name
    end
    return " " .. table.concat(words, "   ")
end

---@return string[]
function stack.text(panel, screen)
    local label, behind, high = widest(panel, "label"), widest(panel, "text"), high_of(panel)
    local width = screen.width - label - behind - 4
    local limit = panel.limit and math.floor(panel.limit.value / high * width + 0.5)
    local lines = {}
    for i, row in ipairs(panel.rows) do
        local cells, at = {}, 0
        for k, n in ipairs(columns(row, high, width)) do
            for _ = 1, n do
                at = at + 1
                cells[at] = screen:paint(at == limit and "│" or GLYPHS[k], at == limit and "bad" or k)
            end
        end
        for c = at + 1, width do
            cells[c] = c == limit and screen:paint("│", "bad") or " "
        end
        local text = row.text or ("%.4g"):format(sum(row.parts))
        lines[i] = (" %s %s %s"):format(screen:field(row.label, label), table.concat(cells, "", 1, width),
            screen:paint(screen:field(text, behind, true), row.bad and "bad" or "bold"))
    end
    lines[#lines + 1] = legend(panel, screen) .. (limit and "   " .. screen:paint("│", "bad") .. " "
        .. panel.limit.label or "")
    return lines
end

local STEP, BAR = 30, 20

---@return number height
function stack.svg(panel, c)
    local high = high_of(panel)
    local from = c.x + (panel.label_width or 150)
    local to = c.width - c.x - (panel.text_width or 96)
    for i, row in ipairs(panel.rows) do
        local y, x = c.y + STEP * (i - 1), from
        c:open { "data-stack", i - 1, "data-x0", from, "data-x1", to, "data-high", high }
        c:text(from - 8, y + 15, row.label, "label", "end", { "data-part", "label" })
        for k, v in ipairs(row.parts) do
            local w = v / high * (to - from)
            c:rect(x, y, w, BAR, "s" .. k)
            x = x + w
        end
        c:text(c.width - c.x, y + 15, row.text or ("%.4g"):format(sum(row.parts)), row.bad
            and "label badtext" or "label", "end",
            { "data-part", "text" })
        c:close()
    end
    local y = c.y + STEP * #panel.rows
    if panel.limit then
        local x = from + panel.limit.value / high * (to - from)
        c:open { "data-limit", panel.limit.value, "data-at", x }
        c:line(x, c.y - 6, x, y, "limit")
        c:text(x, y + 12, panel.limit.label, "small badtext", "middle")
        c:close()
        y = y + 16
    end
    local x = from
    for k, name in ipairs(panel.names) do
        c:rect(x, y + 8, 12, 12, "s" .. k)
        c:text(x + 17, y + 18, name, "small")
        x = x + 36 + 6.6 * #name
    end
    return y + 28 - c.y
end

function stack.rows(panel)
    local head = { "line", "row" }
    for _, name in ipairs(panel.names) do
        head[#head + 1] = name
    end
    local rows = { head }
    for i, row in ipairs(panel.rows) do
        rows[i + 1] = { i, row.label, unpack(row.parts) }
    end
    return rows
end

function stack.gnuplot(panel)
    local plots = {}
    for k, name in ipairs(panel.names) do
        plots[k] = ("$data using %d%s title '%s'"):format(k + 2, k == 1 and ":xtic(2)" or "", name)
    end
    local limit = panel.limit and (", %s with lines title '%s'"):format(canvas.number(panel.limit.value),
        panel.limit.label) or ""
    return "set style data histograms\nset style histogram rowstacked\nset style fill solid 0.6\nset "
        .. "boxwidth 0.7\nset yrange [0:*]\nplot " .. table.concat(plots, ", \\\n     ") .. limit
end

return stack
