-- Staircase: what comes out for what goes in, and the error.

local check = require "qmoon.check"
local levels = require "qmoon.levels"
local picture = require "qmoon.picture"

local LOW, HIGH = -1.25, 1.25

--- Corners of the staircase of a list of levels.
local function steps(list)
    local points = { { LOW, list[1] } }
    for i = 2, #list do
        points[#points + 1] = { (list[i - 1] + list[i]) / 2, list[i] }
    end
    points[#points + 1] = { HIGH, list[#list] }
    return points
end

local function errors(list)
    local points = { { LOW, list[1] - LOW } }
    for i = 2, #list do
        local x = (list[i - 1] + list[i]) / 2
        points[#points + 1] = { x, list[i - 1] - x }
        points[#points + 1] = { x, list[i] - x }
    end
    points[#points + 1] = { HIGH, list[#list] - HIGH }
    return points
end

--- Input against output of a quantiser, and its error.
---
---     qm.plot.staircase{"int4", "nf4"}
---
---@param formats? qmoon.FormatSpec[] with fixed levels; int4 and nf4 unless given
---@return qmoon.Picture
local function staircase(formats)
    formats = check.options("staircase", formats, {}, true)
    local stairs, saws, names = {}, {}, {}
    for i, spec in ipairs(formats[1] and formats or { "int4", "nf4" }) do
        local values, label = levels.of(spec)
        stairs[i] = { name = label, style = "step", points = steps(values) }
        saws[i] = { name = label, style = "line", points = errors(values) }
        names[i] = label
    end
    local x = { label = "input, as a share of the block's largest", low = LOW, high = HIGH,
                ticks = { -1, -0.5, 0, 0.5, 1 } }
    return picture.new {
        title = "What goes in and what comes out: " .. table.concat(names, " and "),
        alt = "A staircase that rises with the input and is flat beyond -1 and 1; below it the error, a saw.",
        note = "Beyond -1 and 1 the stairs end: with the block's own scale nothing lies there. The teeth of "
            .. "the saw are as high as half the distance of two levels: even for int4, finer in the middle "
            .. "and coarser outside for nf4.",
        recipe = { { "formats", table.concat(names, " ") } },
        panels = {
            { kind = "xy", key = "stairs", title = "output", x = x, tall = 190, lines = 11, series = stairs,
              y = { label = "", low = LOW, high = HIGH, ticks = { -1, -0.5, 0, 0.5, 1 } } },
            { kind = "xy", key = "saws", title = "error: output less input", x = x, tall = 110, lines = 9,
                series = saws,
              y = { label = "", low = -0.25, high = 0.25, ticks = { -0.2, -0.1, 0, 0.1, 0.2 } } },
        },
        live = table.concat(names, " ") == "int4 nf4" and { name = "staircase",
            sliders = { { "bits", 2, 6, 4 } } } or nil,
    }
end

return staircase
