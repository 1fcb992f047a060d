--- A picture's numbers: as CSV, and as a gnuplot script that holds them.

local data = {}

local function cell(v)
    if type(v) == "number" then
        return ("%.9g"):format(v)
    end
    return v
end

local function quoted(v)
    return type(v) == "string" and v:find '[,"\n]' and '"' .. v:gsub('"', '""') .. '"' or v
end

---@param picture qmoon.Picture
---@return string
function data.csv(picture)
    local lines = { "# " .. picture.title, "# " .. picture:recipe_text() }
    for i, panel in ipairs(picture.panels) do
        if #picture.panels > 1 then
            lines[#lines + 1] = ("# panel %d%s"):format(i, panel.title and ": " .. panel.title or "")
        end
        for _, row in ipairs(require("qmoon.chart." .. panel.kind).rows(panel)) do
            local cells = {}
            for k, v in ipairs(row) do
                cells[k] = quoted(cell(v))
            end
            lines[#lines + 1] = table.concat(cells, ",")
        end
    end
    return table.concat(lines, "\n") .. "\n"
end

local function block(panel)
    local lines = { "$data << EOD" }
    local rows = require("qmoon.chart." .. panel.kind).rows(panel)
    for i = 2, #rows do
        local cells = {}
        for k, v in ipairs(rows[i]) do
            cells[k] = type(v) == "number" and cell(v) or ('"%s"'):format((v:gsub('"', "'")))
        end
        lines[#lines + 1] = table.concat(cells, " ")
    end
    lines[#lines + 1] = "EOD"
    return table.concat(lines, "\n")
end

--- One plot a panel, below one another; data and commands in one file that people can edit.
---@param picture qmoon.Picture
---@return string
function data.gnuplot(picture)
    local n = #picture.panels
    local lines = { "# " .. picture.title, "# " .. picture:recipe_text(), "# gnuplot -p FILE, or set a "
        .. "terminal and an output first",
                    "set encoding utf8", "set termoption noenhanced",
                        ("set multiplot layout %d,1 title %q"):format(n, picture.title) }
    for _, panel in ipairs(picture.panels) do
        lines[#lines + 1] = "reset"
        lines[#lines + 1] = block(panel)
        if panel.title then
            lines[#lines + 1] = ("set title %q"):format(panel.title)
        end
        lines[#lines + 1] = require("qmoon.chart." .. panel.kind).gnuplot(panel)
    end
    lines[#lines + 1] = "unset multiplot"
    return table.concat(lines, "\n") .. "\n"
end

return data
