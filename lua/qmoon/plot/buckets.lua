-- Bucket use: how many weights get each code, and how many bits that is worth.

local check = require "qmoon.check"
local levels = require "qmoon.levels"
local picture = require "qmoon.picture"
local sample = require "qmoon.sample"

--- How many values are nearest to each level; on a border the lower one takes them.
local function count(shares, list)
    local counts = {}
    for i = 1, #list do
        counts[i] = 0
    end
    for _, v in ipairs(shares) do
        local low, high = 1, #list
        while low < high do
            local middle = math.floor((low + high) / 2)
            if v > (list[middle] + list[middle + 1]) / 2 then
                low = middle + 1
            else
                high = middle
            end
        end
        counts[low] = counts[low] + 1
    end
    return counts
end

--- Bits that codes used so often carry at most.
local function entropy(counts, n)
    local bits = 0
    for _, c in ipairs(counts) do
        bits = bits - (c > 0 and c / n * math.log(c / n) / math.log(2) or 0)
    end
    return bits
end

--- Rows of bars: code k of every format beside each other.
local function rows_of(found, n)
    local rows, most = {}, 0
    for _, f in ipairs(found) do
        most = math.max(most, #f.levels)
    end
    for k = 1, most do
        local row = { labels = {}, values = {}, texts = {} }
        for i, f in ipairs(found) do
            local share = f.levels[k] and f.counts[k] / n
            row.labels[i] = share and ("%.3f"):format(f.levels[k]) or ""
            row.values[i] = share or false
            row.texts[i] = share and ("%.2f %%"):format(100 * share) or ""
        end
        rows[k] = row
    end
    return rows
end

local function live(found, t, block)
    if #found ~= 2 then
        return nil
    end
    return { name = "buckets", data = t, levels = { found[1].levels, found[2].levels },
             names = { found[1].label, found[2].label }, sliders = { sample.slider("block", 4, 12, block) } }
end

--- The share of weights that get each code, and the entropy.
---
---     qm.plot.buckets{t = t, "nf4", "int4", block = 64}
---     qm.plot.buckets{data = "student"}
---
---@param options? {[integer]: qmoon.FormatSpec, t: qmoon.Tensor?, block: integer?, data: string?, seed: integer?} one
--- format or two with fixed levels, nf4 and int4 unless given; the tensor, normal values unless given
---@return qmoon.Picture
local function buckets(options)
    options = check.options("buckets", options, { "t", "block", "data", "seed" }, true)
    local block = check.whole("buckets", options.block or 64, "block", 1)
    local t, recipe = sample.of("buckets", options)
    local shares = sample.shares(t, block)
    local found, heads, labels, bits = {}, {}, {}, {}
    for i, spec in ipairs(options[1] and options or { "nf4", "int4" }) do
        local list, label = levels.of(spec)
        found[i] = { levels = list, label = label, counts = count(shares, list) }
        bits[i] = entropy(found[i].counts, #shares)
        heads[i], labels[i] = ("%s: %.2f bits"):format(label, bits[i]), label
    end
    local n = #found[1].levels
    return picture.new {
        title = "How often each code is used",
        alt = ("Bars, one a code, with the share of weights that get it; %s."):format(table.concat(heads,
            ", ")),
        note = ("Codes used equally often would carry log2 of their number, %.2f bits for %d of them. What "
            .. "is missing is paid for and not used."):format(math.log(n) / math.log(2), n),
        recipe = sample.join(recipe, { { "formats", table.concat(labels, " ") }, { "block", block } }),
        panels = { { kind = "bars", title = "share of the weights", series = heads,
            rows = rows_of(found, #shares) } },
        entropy = bits,
        live = live(found, t, block),
    }
end

return buckets
