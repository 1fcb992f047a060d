-- formats: the number formats of this program, from their descriptors.

local qm = require "qmoon"
local cli = require "qmoon.cli"
local json = require "qmoon.json"
local text = require "qmoon.text"

local o = cli.parse({
    name = "formats",
    doc = "Lists the number formats: values per group, bits per weight with scales, and whose bytes they are.",
    options = { { "markdown", doc = "as the table in README.md" }, { "json", doc = "for machines" } },
}, { ... })
if not o then
    return 0
end

local function bits(f)
    local sum = 0
    for _, p in ipairs(f.planes) do
        sum = sum + p.bits + (f.block > 0 and 8 * p.bytes / f.block or 0)
    end
    return f.block > 0 and ("%.4g"):format(sum) or ("%g + 32/row"):format(sum)
end

local function group(f)
    if f.any_block then
        return f.block == 0 and "row (any)" or ("%d (any)"):format(f.block)
    elseif f.block == 0 then
        return "row"
    elseif f.block_max > 0 then
        return ("%d (%d-%d)"):format(f.block, f.block_min, f.block_max)
    end
    return ("%d"):format(f.block)
end

local list = qm.formats()
if o.json then
    print(json.encode(list, { indent = 2 }))
    return 0
end
local rows = { { "format", "group", "bits/weight", "GGUF", "bytes as written by", "what it is" } }
for _, f in ipairs(list) do
    rows[#rows + 1] = { f.name, group(f), bits(f), f.gguf_name or "", f.source, f.doc }
end
print(o.markdown and text.markdown(rows) or text.table(rows))
