-- Size against quality: bits per weight and signal to error, and the formats that none beats.

local check = require "qmoon.check"
local explore = require "qmoon.explore"
local levels = require "qmoon.levels"
local pareto = require "qmoon.pareto"
local picture = require "qmoon.picture"
local sample = require "qmoon.sample"

local DEFAULT = { "q2_k", "q3_k", "nf4:256", "nf4:dq", "nf4", "iq4_xs", "iq4_nl", "int4", "q4_0", "fp4",
    "mxfp4", "nvfp4",
                  "q4_k", "q4_1", "q5_0", "q5_k", "q6_k" }

--- Bits per weight against signal to error, and the formats that none beats.
---
---     qm.plot.frontier{t = t, "nf4", "q4_0", "q4_k", qm.kmeans(t)}
---
---@param options? {[integer]: qmoon.FormatSpec, t: qmoon.Tensor?, data: string?, seed: integer?} formats; the tensor,
--- normal values unless given
---@return qmoon.Picture
local function frontier(options)
    options = check.options("frontier", options, { "t", "data", "seed" }, true)
    local t, recipe = sample.of("frontier", options)
    local points, names = {}, {}
    for i, spec in ipairs(options[1] and options or DEFAULT) do
        local format, label = levels.format(spec)
        local q = t:quantize(format)
        points[i], names[i] = { q:info().bits, explore.error(t, q).sqnr, label }, label
    end
    local p = pareto.describe(points)
    p.recipe = sample.join(recipe, { { "formats", table.concat(names, " ") } })
    p.live = { name = "frontier", data = t, sliders = { { "bits", 2, 6, 4 },
        { "block", 4, 12, 6, power = true } } }
    return picture.new(p)
end

return frontier
