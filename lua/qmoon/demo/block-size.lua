-- Block size: bits of scales against error.

local core = require "qmoon.core"
local explore = require "qmoon.explore"
local plot = require "qmoon.plot"

local function figures(t, spec)
    local q = t:quantize(spec)
    return q:info().bits, explore.error(t, q).sqnr
end

return {
    title = "Block size",
    question = "how many weights should share a scale, at equal bits",
    run = function(l)
        l:section "Every halving of the block costs bits and gains precision"
        local normal = core.random("normal", { 1024, 1024 }, 1, 0, 0.02)
        local heavy = core.random("student", { 1024, 1024 }, 1, 5, 0.02)
        local rows = { { "block", "bits", "nf4 normal", "nf4 heavy tails", "int4 normal",
            "int4 heavy tails" } }
        local nf4, int4 = {}, {}
        for power = 5, 12 do
            local block = 2 ^ power
            local name = (":%d"):format(block)
            local bits, a = figures(normal, "nf4" .. name)
            local _, b = figures(heavy, "nf4" .. name)
            local _, c = figures(normal, "int4" .. name)
            local _, d = figures(heavy, "int4" .. name)
            rows[#rows + 1] = { ("%d"):format(block), ("%.4f"):format(bits), ("%.2f"):format(a),
                ("%.2f"):format(b), ("%.2f"):format(c),
                                ("%.2f"):format(d) }
            nf4[#nf4 + 1], int4[#int4 + 1] = { block, b }, { block, d }
            l:figure { ["nf4_" .. block] = a, ["int4_" .. block] = c, ["nf4_heavy_" .. block] = b,
                ["bits_" .. block] = bits }
        end
        l:table(rows)
        l:say("Signal to error in dB. Heavy tails are Student's t with 5 degrees of freedom, nearer to real "
            .. "weights than the bell.")
        l:section "The same as a picture"
        l:picture(require("qmoon.picture").new {
            title = "Signal to error by block size, heavy-tailed values",
            alt = "Two falling lines over the block size, nf4 above int4.",
            recipe = { { "data", "Student's t, 5 degrees of freedom, 1048576 values" }, { "seed", 1 },
                { "formats", "nf4 int4" } },
            panels = { { kind = "xy", x = { label = "values with one scale", low = 32, high = 4096,
                log = true },
                         y = { label = "dB", low = 8, high = 22, ticks = { 8, 10, 12, 14, 16, 18, 20, 22 } },
                         series = { { name = "nf4", style = "line", points = nf4 },
                             { name = "int4", style = "line", points = int4 } } } },
        })
        l:section "At equal bits"
        l:picture(plot.frontier { "nf4:64", "nf4:32", "nf4:128", "int4:64", "int4:32", "q4_0", "q4_1", "q4_k",
            "iq4_nl", "iq4_xs", "nf4:dq" })
        local _, nf464 = figures(normal, "nf4:64")
        local _, q40 = figures(normal, "q4_0")
        l:figure { nf4_block64 = nf464, q4_0 = q40 }
        l:say("nf4 with blocks of 64 and f32 scales has 4.5 bits, as has q4_0 with blocks of 32 and f16 "
            .. "scales: %.2f dB against %.2f.", nf464, q40)
        l:remember("Scales are bits, too: compare formats at equal bits per weight with everything counted.",
            "Halve the bits of a scale, and you can have twice as many of them.")
        l:read("LLM datatypes: weights are nearer to Student's t than to the normal",
            "https://arxiv.org/abs/2405.03103")
    end,
}
