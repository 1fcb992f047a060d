-- FP4 as bitsandbytes has it: a sign, two bits of exponent, one of mantissa, and one odd value.

local core = require "qmoon.core"
local explore = require "qmoon.explore"
local levels = require "qmoon.levels"
local plot = require "qmoon.plot"
local sample = require "qmoon.sample"

local function bits(code)
    local digits = {}
    for i = 4, 1, -1 do
        digits[i], code = code % 2, math.floor(code / 2)
    end
    return table.concat(digits)
end

--- What code k decodes to with a scale of 1: 16 values whose largest is 1, and the bytes that name all codes.
local function decoded()
    local bytes = {}
    for k = 0, 15, 2 do
        bytes[#bytes + 1] = string.char(k * 16 + k + 1)
    end
    return core.tensor_of_planes("fp4", { 1, 16 }, 64, { table.concat(bytes), core.pack("f", 1) }):values()
end

return {
    title = "The four bits of FP4",
    question = "what bitsandbytes' FP4 is: 1-2-1, not a sign and three bits of exponent",
    run = function(l)
        l:section "All sixteen codes, decoded"
        local values, rows = decoded(), { { "code", "value", "x 12", "code", "value", "x 12" } }
        for k = 0, 7 do
            rows[k + 2] = { bits(k), ("%.6f"):format(values[k + 1]), ("%.4g"):format(12 * values[k + 1]),
                bits(k + 8),
                            ("%.6f"):format(values[k + 9]), ("%.4g"):format(12 * values[k + 9]) }
        end
        l:table(rows)
        local odd, powers = {}, {}
        for k = 0, 7 do
            local v = math.floor(12 * values[k + 1] * 10000 + 0.5) / 10000
            local _, is = math.frexp(v)
            local list = v > 0.1 and (2 ^ (is - 1) == v and powers or odd) or nil
            if list then
                list[#list + 1] = v
            end
        end
        table.sort(odd)
        l:say("Times 12, all magnitudes but one are whole. %s are no powers of two, so one bit of the three "
            .. "must be a mantissa: two bits of exponent and one of mantissa, as in OCP's E2M1. The order "
            .. "of the codes is bitsandbytes' own.", table.concat(odd, ", "))
        l:figure { not_powers = table.concat(odd, " "), smallest = values[2], two_thirds = values[3] }
        l:section "Next to E2M1 and to three bits of exponent"
        l:picture(plot.rulers { "fp4", "e2m1", "e3m0", "nf4" })
        l:say("FP4's smallest magnitude is %.4f of the scale, where E2M1 has %.4f: a value just above 0 "
            .. "rounds to something that is nearly 0.",
            values[2], 0.5 / 6)
        l:section "Signal to error in dB, blocks of 64"
        local data, found = { { "data", "fp4", "e2m1", "e3m0", "nf4" } }, {}
        for i, kind in ipairs(sample.kinds) do
            local t = sample.of("demo", { data = kind, rows = 1024 })
            data[i + 1] = { kind }
            for k = 2, 5 do
                local db = explore.error(t, t:quantize((levels.format(data[1][k])))).sqnr
                data[i + 1][k] = ("%.2f"):format(db)
                found[data[1][k] .. "_" .. kind] = db
            end
        end
        l:table(data)
        l:figure(found)
        l:say("On normal values E2M1 with its even smallest step is %.2f dB better than FP4, and three bits "
            .. "of exponent are %.2f dB worse.",
            found.e2m1_normal - found.fp4_normal, found.fp4_normal - found.e3m0_normal)
        l:remember("FP4 is a table of sixteen values; so is NF4. Neither is computed with: both are decoded "
            .. "to 16 bits first.",
            "For weights NF4 has less error than FP4 at the same size.")
    end,
}
