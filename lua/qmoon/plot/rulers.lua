-- Rulers: the levels of formats on one line from -1 to 1.

local check = require "qmoon.check"
local levels = require "qmoon.levels"
local picture = require "qmoon.picture"

--- The levels of formats on one line.  Formats whose levels are fixed, by name or by value.
---
---     qm.plot.rulers{"int4", "fp4", "nf4"}
---     qm.plot.rulers{"nf4", qm.codebook{-1, -0.5, 0, 0.5, 1}}:save "rulers.svg"
---
---@param formats? qmoon.FormatSpec[] int4, fp4, e2m1 and nf4 unless given
---@return qmoon.Picture
local function rulers(formats)
    formats = check.options("rulers", formats, {}, true)
    local list = formats[1] and formats or { "int4", "fp4", "e2m1", "nf4" }
    local rows, names, sliding = {}, {}, false
    for i, spec in ipairs(list) do
        local values, label = levels.of(spec)
        rows[i] = { label = label, levels = values, note = ("%d"):format(#values) }
        names[i] = label
        sliding = sliding or label == "int4" or label == "nf4"
    end
    return picture.new {
        title = "Levels, as shares of a block's largest magnitude",
        alt = ("Marks on a line from -1 to 1, one line for each of %s."):format(table.concat(names, ", ")),
        note = "The number behind a line is how many different values there are. Evenly spaced levels suit "
            .. "evenly spread weights; bell-shaped ones crowd near 0, and so do the levels of nf4.",
        recipe = { { "formats", table.concat(names, " ") } },
        panels = { { kind = "ruler", low = -1, high = 1, rows = rows } },
        live = sliding and { name = "rulers", sliders = { { "bits", 2, 6, 4 } } } or nil,
    }
end

return rulers
