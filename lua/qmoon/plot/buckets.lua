-- Bucket use: how many weights get each code, and how many bits that is worth.

local levels = require "qmoon.levels"
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
        if c > 0 then
            bits = bits - c / n * math.log(c / n) / math.log(2)
        end
    end
    return bits
end

local function make(options)
    options = options or {}
    local specs = options[1] and options or { "nf4", "int4" }
    local block = options.block or 64
    local t, recipe = sample.of(options)
    local shares = sample.shares(t, block)
    local names, labels, found, most, bits = {}, {}, {}, 0, {}
    for i = 1, #specs do
        local list, label = levels.of(specs[i])
        local counts = count(shares, list)
        found[i] = { list = list, counts = counts }
        bits[i] = entropy(counts, #shares)
        names[i], labels[i] = ("%s: %.2f bits"):format(label, bits[i]), label
        most = math.max(most, #list)
    end
    local rows = {}
    for k = 1, most do
        rows[k] = { labels = {}, values = {}, texts = {} }
        for i, f in ipairs(found) do
            local share = f.list[k] and f.counts[k] / #shares
            rows[k].labels[i] = share and ("%.3f"):format(f.list[k]) or ""
            rows[k].values[i] = share or false
            rows[k].texts[i] = share and ("%.2f %%"):format(100 * share) or ""
        end
    end
    local first = levels.of(specs[1])
    return {
        title = "How often each code is used",
        alt = ("Bars, one a code, with the share of weights that get it; %s."):format(table.concat(names,
            ", ")),
        note = ("Codes used equally often would carry log2 of their number, %.2f bits for %d of them. "
            .. "What is missing is paid for and "
            .. "not used."):format(math.log(#first) / math.log(2), #first),
        recipe = sample.join(recipe, { { "formats", table.concat(labels, " ") }, { "block", block } }),
        panels = { { kind = "bars", title = "share of the weights", series = names, rows = rows } },
        entropy = bits,
        live = #specs == 2 and { name = "buckets", sliders = { { "block", 4, 12,
            math.log(block) / math.log(2), power = true } },
            data = t, levels = { found[1].list, found[2].list }, names = labels } or nil,
    }
end

return { doc = "the share of weights that get each code, and the entropy", make = make, count = count,
    entropy = entropy }
