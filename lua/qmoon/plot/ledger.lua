-- Bits ledger: what the bits of a weight are spent on.

local check = require "qmoon.check"
local core = require "qmoon.core"
local formats = require "qmoon.formats"
local picture = require "qmoon.picture"

local NESTED = 256 -- scales with one second-level scale in bitsandbytes' double quantisation

--- Bits a weight of codes, of first- and of second-level scales.
local function parts(spec)
    local name, options = formats.resolve(spec)
    local info = core.random("normal", { 16, 4096 }, 1, 0, 1):quantize(name, options):info()
    local per = 8 / info.count
    if info.planes[2] == 0 then -- codes and scales lie together in the blocks
        local codes = tonumber((type(name) == "string" and name or ""):match "^%D*(%d+)") or info.bits
        return { codes, info.bits - codes, 0 }
    elseif info.double_quant then
        local groups = info.count / info.block
        return { info.planes[1] * per, groups * per, 4 * math.ceil(groups / NESTED) * per }
    end
    return { info.planes[1] * per, info.bits - info.planes[1] * per, 0 }
end

--- Bits per weight, split into codes and scales.
---
---     qm.plot.ledger{"nf4", "nf4:dq", "q4_0", "q4_k"}
---
---@param list? qmoon.FormatSpec[] formats
---@return qmoon.Picture
local function ledger(list)
    list = check.options("ledger", list, {}, true)
    list = list[1] and list or { "nf4", "nf4:dq", "nf4:32", "int4:128", "q4_0", "q4_k", "int3" }
    local rows, names, total = {}, {}, {}
    for i, spec in ipairs(list) do
        local p, name = parts(spec), formats.label(spec)
        total[name] = p[1] + p[2] + p[3]
        names[i], rows[i] = name, { label = name, parts = p, text = ("%.3f bits"):format(total[name]) }
    end
    local single, double = total["nf4"], total["nf4:dq"]
    local both = single ~= nil and double ~= nil
    return picture.new {
        title = "What a weight's bits are spent on",
        alt = "Stacked bars of codes, scales and scales of the scales, in bits per weight.",
        note = both and ("Double quantisation turns nf4's %.3f bits into %.3f: it saves %.3f, which is "
            .. "%.1f %%."):format(
            single, double, single - double, 100 * (1 - double / single)) or nil,
        recipe = { { "formats", table.concat(names, " ") } },
        panels = { { kind = "stack", names = { "codes", "scales", "scales of scales" }, rows = rows,
            label_width = 80 } },
        live = both and { name = "ledger", rows = rows,
                          sliders = { { "bits", 2, 8, 4 }, { "block", 4, 12, 6, power = true } } } or nil,
    }
end

return ledger
