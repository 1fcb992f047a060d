-- Size against quality: bits per weight and signal to error, and the formats that none beats.

local explore = require "qmoon.explore"
local levels = require "qmoon.levels"
local sample = require "qmoon.sample"

local DEFAULT = { "q2_k", "q3_k", "nf4:256", "nf4:dq", "nf4", "iq4_xs", "iq4_nl", "int4", "q4_0", "fp4",
    "mxfp4", "nvfp4", "q4_k", "q4_1",
                  "q5_0", "q5_k", "q6_k" }

--- The points that no other beats in both, from left to right.
local function pareto(points)
    local sorted, best, line = { unpack(points) }, -math.huge, {}
    table.sort(sorted, function(a, b)
        return a[1] < b[1] or a[1] == b[1] and a[2] > b[2]
    end)
    for _, p in ipairs(sorted) do
        if p[2] > best then
            best, line[#line + 1] = p[2], p
        end
    end
    return line
end

local function every(low, high, step)
    local list = {}
    for v = low, high, step do
        list[#list + 1] = v
    end
    return list
end

local function described(points, recipe)
    local low, high, least, most = math.huge, 0, math.huge, -math.huge
    for _, p in ipairs(points) do
        low, high, least, most = math.min(low, p[1]), math.max(high, p[1]), math.min(least, p[2]),
            math.max(most, p[2])
    end
    low, high, least, most = math.floor(low), math.ceil(high + 0.001), math.floor(least / 5) * 5,
        math.ceil(most / 5 + 0.001) * 5
    local best, line = pareto(points), {}
    for i, p in ipairs(best) do
        line[i] = p[3]
    end
    local named = table.concat(line, ", ", 1, math.min(10, #line))
        .. (#line > 10 and (" and %d more"):format(#line - 10) or "")
    return {
        title = "Size against quality",
        alt = ("Points for %d formats over bits per weight; none beats %s."):format(#points, named),
        note = ("None of these is both smaller and better than %s. Signal to error is not the quality of "
            .. "text: it ranks formats "
            .. "on the same weights, and 6 dB is one bit."):format(named),
        recipe = recipe,
        panels = { {
            kind = "xy", tall = 300,
            x = { label = "bits per weight, scales included", low = low, high = high,
                ticks = every(low, high, high - low > 8 and 4 or 1) },
            y = { label = "signal to error, dB", low = least, high = most,
                ticks = every(least, most, most - least > 40 and 10 or 5) },
            series = { { name = "none is better", style = "line", points = best },
                       { name = "formats", style = "points", points = points } },
        } },
        best = line,
    }
end

return {
    doc = "bits per weight against signal to error, and the formats that none beats",
    of = described,
    --- qm.plot.frontier{t = tensor, "nf4", "q4_0", mine}
    make = function(options)
        options = options or {}
        local list = options[1] and options or DEFAULT
        local t, recipe = sample.of(options)
        local points, names = {}, {}
        for i, spec in ipairs(list) do
            local format, label = levels.format(spec)
            local q = t:quantize(format)
            points[i], names[i] = { q:info().bits, explore.error(t, q).sqnr, label }, label
        end
        local p = described(points, sample.join(recipe, { { "formats", table.concat(names, " ") } }))
        p.live = { name = "frontier", sliders = { { "bits", 2, 6, 4 }, { "block", 4, 12, 6, power = true } },
            data = t }
        return p
    end,
}
