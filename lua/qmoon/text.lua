--- Numbers and tables as people read them.

local text = {}

--- Bytes in the units of file sizes: 3.087 GB, 5.78 MB.
---@param n number
---@return string
function text.bytes(n)
    local unit = { "B", "kB", "MB", "GB", "TB" }
    local i = 1
    while n >= 999.5 and i < #unit do
        n, i = n / 1000, i + 1
    end
    return i == 1 and ("%d B"):format(n) or ("%.4g %s"):format(n, unit[i])
end

--- Bytes in the units of memory: 0.4 GiB.
---@param n number
---@return string
function text.memory(n)
    if n < 1024 ^ 3 then
        return ("%.0f MiB"):format(n / 1024 ^ 2)
    end
    return ("%.1f GiB"):format(n / 1024 ^ 3)
end

--- Bytes of a tensor: 96 B, 512 KiB, 4.00 MiB.
---@param n number
---@return string
function text.amount(n)
    local unit = { "B", "KiB", "MiB", "GiB", "TiB" }
    local i = 1
    while n >= 1024 and i < #unit do
        n, i = n / 1024, i + 1
    end
    local whole = i == 1 or i == 2 and n == math.floor(n)
    return ((whole and "%.0f" or n < 10 and "%.2f" or n < 100 and "%.1f" or "%.0f") .. " %s"):format(n, unit[i])
end

--- A count: 2.899 M, 1.544 B.
---@param n number
---@return string
function text.count(n)
    if n < 1e6 then
        return ("%d"):format(n)
    elseif n < 1e9 then
        return ("%.3f M"):format(n / 1e6)
    end
    return ("%.3f B"):format(n / 1e9)
end

---@param seconds number
---@return string
function text.duration(seconds)
    if seconds < 60 then
        return ("%.1f s"):format(seconds)
    elseif seconds < 3600 then
        return ("%d min %02d s"):format(seconds / 60, seconds % 60)
    end
    return ("%d h %02d min"):format(seconds / 3600, seconds % 3600 / 60)
end

--- "[4096 x 4100]"
---@param shape integer[]
---@return string
function text.shape(shape)
    return "[" .. table.concat(shape, " x ") .. "]"
end

--- Characters of a UTF-8 string, as columns of a terminal (no wide characters are used here).
---@param s string
---@return integer
function text.width(s)
    local _, n = s:gsub("[^\128-\191]", "")
    return n
end

--- Lines no wider than `width`, broken at blanks; what was broken and indented goes on two columns further in.
---@param s string
---@param width integer
---@return string
function text.fold(s, width)
    local lines = {}
    for line in (s .. "\n"):gmatch "(.-)\n" do
        local indent = line:match "^ *"
        while text.width(line) > width do
            local cut
            for at in line:gmatch "() " do
                if at > #indent + 2 and text.width(line:sub(1, at - 1)) <= width then
                    cut = at
                end
            end
            if not cut then
                break
            end
            lines[#lines + 1] = (line:sub(1, cut - 1):gsub(" +$", ""))
            line = (indent ~= "" and indent .. "  " or "") .. line:sub(cut + 1):gsub("^ +", "")
        end
        lines[#lines + 1] = line
    end
    return table.concat(lines, "\n")
end

--- Rows of cells as aligned lines.  The first row is the header; a column whose cells are numbers is
--- set to the right.
---@param rows string[][]
---@param indent? string
---@return string
function text.table(rows, indent)
    local widths, right = {}, {}
    for r, row in ipairs(rows) do
        for c, cell in ipairs(row) do
            widths[c] = math.max(widths[c] or 0, text.width(cell))
            if r > 1 and cell ~= "" then
                right[c] = (right[c] ~= false) and cell:find "^[-+]?[%d.]" ~= nil
            end
        end
    end
    local lines = {}
    for _, row in ipairs(rows) do
        local cells = {}
        for c, cell in ipairs(row) do
            local pad = (" "):rep(widths[c] - text.width(cell))
            cells[c] = right[c] and pad .. cell or cell .. pad
        end
        lines[#lines + 1] = (indent or " ") .. (table.concat(cells, "  "):gsub("%s+$", ""))
    end
    return table.concat(lines, "\n")
end

--- The same rows in Markdown.
---@param rows string[][]
---@return string
function text.markdown(rows)
    local lines = {}
    for r, row in ipairs(rows) do
        lines[#lines + 1] = "| " .. table.concat(row, " | ") .. " |"
        if r == 1 then
            lines[#lines + 1] = "|" .. (" --- |"):rep(#row)
        end
    end
    return table.concat(lines, "\n")
end

return text
