--- Points of size and quality as a picture: bits per weight against signal to error.

local pareto = {}

--- The points that no other beats in both, from left to right.
---@param points table[] {bits, dB, name}
---@return table[]
function pareto.best(points)
    local sorted, most, line = { unpack(points) }, -math.huge, {}
    table.sort(sorted, function(a, b)
        return a[1] < b[1] or a[1] == b[1] and a[2] > b[2]
    end)
    for _, p in ipairs(sorted) do
        if p[2] > most then
            most, line[#line + 1] = p[2], p
        end
    end
    return line
end

-- An axis around the values, with marks at whole steps.
local function axis(label, points, k, step, wide)
    local low, high, ticks = math.huge, -math.huge, {}
    for _, p in ipairs(points) do
        low, high = math.min(low, p[k]), math.max(high, p[k])
    end
    low, high = math.floor(low / step) * step, math.ceil(high / step + 0.001) * step
    for v = low, high, high - low > wide and (k == 1 and 4 or 2) * step or step do
        ticks[#ticks + 1] = v
    end
    return { label = label, low = low, high = high, ticks = ticks }
end

local MOST_NAMES = 10

--- Everything of the picture but its recipe.
---@param points table[] {bits, dB, name}
---@return table
function pareto.describe(points)
    local best, names = pareto.best(points), {}
    for i, p in ipairs(best) do
        names[i] = p[3]
    end
    local named = table.concat(names, ", ", 1, math.min(MOST_NAMES, #names))
        .. (#names > MOST_NAMES and (" and %d more"):format(#names - MOST_NAMES) or "")
    return {
        title = "Size against quality",
        alt = ("Points for %d formats over bits per weight; none beats %s."):format(#points, named),
        note = ("None of these is both smaller and better than %s. Signal to error is not the quality of "
            .. "text: it ranks formats on the same weights, and 6 dB is one bit."):format(named),
        panels = { {
            kind = "xy", tall = 300, x = axis("bits per weight, scales included", points, 1, 1, 8),
            y = axis("signal to error, dB", points, 2, 5, 40),
            series = { { name = "none is better", style = "line", points = best },
                       { name = "formats", style = "points", points = points } },
        } },
    }
end

return pareto
