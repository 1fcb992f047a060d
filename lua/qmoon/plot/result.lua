-- A result of the prompt as a picture: layers by modules of m:report, size against quality of qm.compare and
-- qm.sweep.

local core = require "qmoon.core"
local heatmap = require "qmoon.plot.heatmap"
local frontier = require "qmoon.plot.frontier"

return {
    doc = "a result: of m:report layers by modules, of compare and sweep size against quality",
    --- qm.plot.result(m:report "nf4") or qm.plot.result(qm.compare(t, {"nf4", "q4_0"})); the same is
    --- r:plot().
    make = function(r)
        local has = {}
        for _, c in ipairs(type(r) == "table" and r[1] and r.columns and r:columns() or {}) do
            has[c.key] = true
        end
        if has.tensor and has.sqnr then
            local list = { data = "m:report " .. r[1].format }
            for i, row in ipairs(r) do
                list[i] = { name = row.tensor, sqnr = row.sqnr }
            end
            return heatmap.make(list)
        elseif has.format and has.bits and has.sqnr then
            local points = {}
            for i, row in ipairs(r) do
                local block = row.block and has.block and type(row.block) == "number"
                    and not row.format:find ":%d"
                    and row.block > 0 and (":%d"):format(row.block) or ""
                points[i] = { row.bits, row.sqnr, row.format .. block }
            end
            return frontier.of(points, { { "data", "given figures" } })
        end
        core.fail("fail", "result: a picture is made of what m:report, qm.compare or qm.sweep gave")
    end,
}
