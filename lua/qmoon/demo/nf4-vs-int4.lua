-- NF4 against INT4: rulers, buckets and errors, on data of four kinds.

local affine = require "qmoon.affine"
local explore = require "qmoon.explore"
local plot = require "qmoon.plot"
local sample = require "qmoon.sample"

local FORMATS = { "int4", "nf4", "fp4", "q4_0" }

local function sqnr_table(l)
    local rows, found = { { "data", unpack(FORMATS) } }, {}
    for _, kind in ipairs(sample.kinds) do
        local t = sample.of("demo", { data = kind, rows = 1024 })
        local row = { kind }
        for _, format in ipairs(FORMATS) do
            local db = explore.error(t, t:quantize(format)).sqnr
            row[#row + 1] = ("%.2f"):format(db)
            found[format .. "_" .. kind] = db
        end
        rows[#rows + 1] = row
    end
    l:table(rows)
    l:figure(found)
    return found
end

return {
    title = "NF4 against INT4",
    question = "why 16 uneven levels beat 15 even ones, and when they do not",
    run = function(l)
        l:section "First, what a scale is: nine numbers in eight bits"
        local nine = affine.symmetric(affine.nine, 8)
        l:say("A block of weights is stored as whole numbers and one scale. Symmetric INT8 divides by the "
            .. "scale, %.6f here, the largest magnitude %.2f over 127, and rounds:", nine.step,
                127 * nine.step)
        l:picture(plot.nine {})
        l:section "Four bits leave sixteen levels: where should they lie?"
        l:say("INT4 spaces them evenly. NF4 puts them at quantiles of the normal distribution, close "
            .. "together near 0, where most weights are.")
        l:picture(plot.rulers { "int4", "fp4", "nf4" })
        l:section "Which codes the weights get"
        local buckets = plot.buckets {}
        l:picture(buckets)
        l:figure { entropy_nf4 = buckets.entropy[1], entropy_int4 = buckets.entropy[2] }
        l:section "What it does to the error: signal to error in dB, higher is better"
        local db = sqnr_table(l)
        local gain = db.nf4_normal - db.int4_normal
        l:figure { gain_db = gain, rmse_less = 1 - 10 ^ (-gain / 20) }
        l:say("On bell-shaped values NF4 is %.2f dB better than INT4 with the same block of 64, which is "
            .. "%.0f %% less error. On even values it is %.2f dB worse: its levels are fixed, and made for "
            .. "a bell. Only the scale adapts to the block.", gain,
            100 * (1 - 10 ^ (-gain / 20)), db.int4_uniform - db.nf4_uniform)
        l:say("Q4_0 has even levels, too, but a scale for every 32 values, in 16 bits: the same 4.5 bits a "
            .. "weight. On normal values it reaches %.2f dB against NF4's %.2f. The block size matters as "
            .. "much as the levels.",
                db.q4_0_normal, db.nf4_normal)
        l:remember("NF4 wins over INT4 on bell-shaped weights at the same block size; it loses on evenly "
            .. "spread ones.",
            "A smaller block can do more than a better set of levels: compare at equal bits, scales "
                .. "included.",
            "Neither uses all of its four bits: the codes near 0 are used most.")
        l:read("QLoRA, which introduced NF4", "https://arxiv.org/abs/2305.14314")
    end,
}
