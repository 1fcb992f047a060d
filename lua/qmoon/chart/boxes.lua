--- The bits of numbers as boxes: sign, exponent, mantissa.
--
-- panel = {kind = "boxes", rows = {{label =, bits = "0101", fields = {1, 5, 10}, note =, more =}}}

local boxes = {}

local LETTERS = { "S", "E", "M" }
local COLOURS = { 2, 1, 3 }

--- Which field each bit belongs to.
local function owners(row)
    local list = {}
    for k, n in ipairs(row.fields) do
        for _ = 1, n do
            list[#list + 1] = k
        end
    end
    return list
end

---@return string[]
function boxes.text(panel, screen)
    local lines = {}
    for _, row in ipairs(panel.rows) do
        local bits, letters, last = {}, {}, nil
        for i, k in ipairs(owners(row)) do
            local space = last and last ~= k and " " or ""
            bits[i] = space .. screen:paint(row.bits:sub(i, i), COLOURS[k])
            letters[i] = space .. screen:paint(LETTERS[k], COLOURS[k])
            last = k
        end
        lines[#lines + 1] = (" %s %s  %s"):format(screen:field(row.label, 8), table.concat(letters),
            screen:paint(row.more or "", "dim"))
        lines[#lines + 1] = (" %s %s  %s"):format(screen:field("", 8), table.concat(bits),
            screen:paint(row.note or "", "bold"))
    end
    return lines
end

local STEP, BOX = 58, 15

---@return number height
function boxes.svg(panel, c)
    local left = c.x + 84
    for r, row in ipairs(panel.rows) do
        local y = c.y + STEP * (r - 1)
        local own = owners(row)
        c:open { "data-boxes", row.label }
        c:text(left - 12, y + 17, row.label, "label", "end")
        for i, k in ipairs(own) do
            local x = left + (i - 1) * (BOX + 1) + (k - 1) * 6
            c:rect(x, y, BOX, 24, "bit s" .. COLOURS[k], { "data-bit", i - 1 })
            c:text(x + BOX / 2, y + 17, row.bits:sub(i, i), "mono onbit", "middle", { "data-bit", i - 1 })
        end
        c:text(left, y + 42, row.note or "", "label", "start", { "data-part", "note" })
        c:text(left + 170, y + 42, row.more or "", "small")
        c:close()
    end
    return STEP * #panel.rows
end

function boxes.rows(panel)
    local rows = { { "format", "sign", "exponent", "mantissa", "bits", "note" } }
    for _, row in ipairs(panel.rows) do
        rows[#rows + 1] = { row.label, row.fields[1], row.fields[2], row.fields[3], row.bits, row.note or "" }
    end
    return rows
end

function boxes.gnuplot()
    return "set style data histograms\nset style histogram rowstacked\nset style fill solid 0.6\nset "
        .. "boxwidth 0.7\nplot $data using 2:xtic(1) title 'sign', $data using 3 title 'exponent', $data "
        .. "using 4 title 'mantissa'"
end

return boxes
