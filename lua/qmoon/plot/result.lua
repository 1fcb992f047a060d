-- A result of the prompt as a picture: layers by modules of m:report, size against quality of qm.compare and
-- qm.sweep.

local core = require "qmoon.core"
local heatmap = require "qmoon.plot.heatmap"
local pareto = require "qmoon.pareto"
local picture = require "qmoon.picture"
local results = require "qmoon.result"

local function of_report(r)
    local list = { data = "m:report " .. r[1].format }
    for i, row in ipairs(r) do
        list[i] = { name = row.tensor, sqnr = row.sqnr }
    end
    return heatmap(list)
end

-- Rows of one format with several blocks are told apart by the block.
local function of_comparison(r)
    local points, seen = {}, {}
    for _, row in ipairs(r) do
        seen[row.format] = (seen[row.format] or 0) + 1
    end
    for _, row in ipairs(r) do
        if row.sqnr < math.huge then
            local name = row.format .. (seen[row.format] > 1 and row.block
                and (":%s"):format(tostring(row.block)) or "")
            points[#points + 1] = { row.bits, row.sqnr, name }
        end
    end
    if not points[1] then
        core.fail("fail", "result: no row has an error to draw")
    end
    local p = pareto.describe(points)
    p.recipe = { { "data", "given figures" } }
    return picture.new(p)
end

--- A result of m:report as layers by modules, one of compare or sweep as size against quality.
---
---     qm.plot.result(qm.compare(t, {"nf4", "q4_0", "int8"}))
---     qm.plot.result(m:report "nf4")
---
---@param r qmoon.Result
---@return qmoon.Picture
local function result(r)
    local has = {}
    for _, c in ipairs(results.is(r) and r[1] and r:columns() or {}) do
        has[c.key] = true
    end
    if has.tensor and has.sqnr and has.format then
        return of_report(r)
    elseif has.format and has.bits and has.sqnr then
        return of_comparison(r)
    end
    core.fail("fail", "result: a picture is made of what m:report, qm.compare or qm.sweep gave")
end

return result
