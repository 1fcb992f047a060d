-- Bits ledger: what the bits of a weight are spent on.

local core = require "qmoon.core"
local formats = require "qmoon.formats"

local NESTED = 256 -- scales with one second-level scale in bitsandbytes' double quantisation

--- Bits a weight of codes, of first- and of second-level scales.
local function parts(spec)
    local name, options = formats.resolve(spec)
    local q = core.random("normal", { 16, 4096 }, 1, 0, 1):quantize(name, options)
    local info = q:info()
    local per = 8 / info.count
    local codes = tonumber((type(name) == "string" and name or ""):match "^%D*(%d+)")
    if info.planes[2] == 0 then -- codes and scales lie together in the blocks
        return { codes, info.bits - codes, 0 }
    elseif info.double_quant then
        local groups = info.count / info.block
        return { info.planes[1] * per, groups * per, 4 * math.ceil(groups / NESTED) * per }
    end
    return { info.planes[1] * per, info.bits - info.planes[1] * per, 0 }
end

return {
    doc = "bits per weight, split into codes and scales",
    --- qm.plot.ledger{"nf4", "nf4:dq", "q4_0"}
    make = function(list)
        list = list and list[1] and list or { "nf4", "nf4:dq", "nf4:32", "int4:128", "q4_0", "q4_k", "int3" }
        local rows, names, by = {}, {}, {}
        for i, spec in ipairs(list) do
            local p = parts(spec)
            local total = p[1] + p[2] + p[3]
            names[i] = formats.label(spec)
            by[names[i]] = total
            rows[i] = { label = names[i], parts = p, text = ("%.3f bits"):format(total) }
        end
        local saved = by["nf4"] and by["nf4:dq"] and 1 - by["nf4:dq"] / by["nf4"]
        return {
            title = "What a weight's bits are spent on",
            alt = "Stacked bars of codes, scales and scales of the scales, in bits per weight.",
            note = saved and ("Double quantisation turns nf4's %.3f bits into %.3f: it saves %.3f, which "
                .. "is %.1f %%."):format(by["nf4"],
                by["nf4:dq"], by["nf4"] - by["nf4:dq"], 100 * saved) or nil,
            recipe = { { "formats", table.concat(names, " ") } },
            panels = { { kind = "stack", names = { "codes", "scales", "scales of scales" }, rows = rows,
                label_width = 80 } },
            live = saved and { name = "ledger", rows = rows,
                               sliders = { { "bits", 2, 8, 4 }, { "block", 4, 12, 6, power = true } } }
                                   or nil,
        }
    end,
}
