-- The survival trap: a LoRA update merged into a 4-bit base and quantised again is mostly gone.

local plot = require "qmoon.plot"
local survival = require "qmoon.survival"

return {
    title = "Merging LoRA and quantising: does the training survive?",
    question = "why a fine-tune can vanish in 4 bits, and how to keep it",
    run = function(l)
        l:section "W + dW, then 4 bits"
        l:say("An adapter changes each weight by a little: dW = (alpha / r) B A. If the change is smaller "
            .. "than half the distance between two levels, and the weight sat on a level before, it rounds "
            .. "back to where it was. A weight that has never been quantised sits anywhere between two "
            .. "levels, and there a small change tips some weights over, and on average all of it arrives.")
        local picture = plot.lora {}
        l:picture(picture)
        l:section "How large the update is decides"
        local rows = { { "|dW| / |W|", "base: original", "noise / |dW|", "base: through nf4",
            "base: through int8" } }
        local made = survival.make { seed = 1 }
        for _, ratio in ipairs { 0.005, 0.02, 0.05, 0.2 } do
            local r = survival.measure(made, ratio, "nf4")
            local i = survival.measure(made, ratio, "int8")
            rows[#rows + 1] = { ("%.1f %%"):format(100 * ratio), ("%.1f %%"):format(100 * r.original),
                ("%.2f"):format(r.noise),
                                ("%.1f %%"):format(100 * r.dequantised),
                                    ("%.1f %%"):format(100 * i.dequantised) }
            local key = ("%g"):format(1000 * ratio)
            l:figure { ["original_" .. key] = r.original, ["dequantised_" .. key] = r.dequantised,
                ["noise_" .. key] = r.noise,
                       ["int8_" .. key] = i.dequantised }
        end
        l:table(rows)
        l:say("Survival of the update: the part of the change that is there afterwards, along dW. Random "
            .. "weights; the shape of the effect is general, the thresholds are the model's own. `qmoon "
            .. "pipeline` prints |dW|/|W| of what it merges.")
        l:remember("After QLoRA training, merge into the original 16-bit weights, not into the dequantised "
            .. "4-bit ones.",
            "Or keep the 4-bit base and ship the adapter beside it.",
            "Survival with the original base is complete on average, but comes with rounding noise that can "
                .. "be larger than the update itself.")
        l:read("QLoRA", "https://arxiv.org/abs/2305.14314")
    end,
}
