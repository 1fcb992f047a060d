-- fp16 against bf16: overflow against rounding.

local core = require "qmoon.core"
local explore = require "qmoon.explore"
local minifloat = require "qmoon.minifloat"
local plot = require "qmoon.plot"

local F16, BF16 = minifloat.layout "f16", minifloat.layout "bf16"

local function held(x, layout)
    local v = minifloat.round(x, layout)
    return v == math.huge and "infinity" or ("%.7g"):format(v)
end

--- Sum of squares of n values, rounded after each step, as a kernel that accumulates in that type does.
local function sum_of_squares(list, layout)
    local sum = 0
    for _, v in ipairs(list) do
        sum = minifloat.round(sum + minifloat.round(v * v, layout), layout)
    end
    return sum
end

local function count_zeros(t, format)
    local x, y, n = t:values(), t:quantize(format):dequantize():values(), 0
    for i = 1, #x do
        n = n + (x[i] ~= 0 and y[i] == 0 and 1 or 0)
    end
    return n
end

return {
    title = "fp16 or bf16: the compute type",
    question = "where fp16 overflows, where bf16 rounds, and which to take",
    run = function(l)
        l:section "The same 16 bits, cut differently"
        l:picture(plot.bits { value = 70000, "f32", "f16", "bf16" })
        local rows = { { "value", "as f16", "as bf16" } }
        for _, x in ipairs { 0.1, 1 / 3, 1000.5, 65504, 70000, 3e-8, 1e-9 } do
            rows[#rows + 1] = { ("%.7g"):format(x), held(x, F16), held(x, BF16) }
        end
        l:table(rows)
        l:section "fp16 ends at 65504"
        local x = core.random("normal", { 4096 }, 1, 0, 5):values()
        local f16, bf16, exact = sum_of_squares(x, F16), sum_of_squares(x, BF16), 0
        for _, v in ipairs(x) do
            exact = exact + v * v
        end
        l:say("A norm sums squares. For %d activations with deviation 5 the sum is %.0f; accumulated in f16 "
            .. "it is %s, in bf16 %.0f. That is why norms and sums are computed in f32, whatever the "
            .. "compute type.", #x, exact,
                f16 == math.huge and "infinity" or
            ("%.0f"):format(f16), bf16)
        l:figure { sum_exact = exact, sum_f16 = f16 == math.huge and "infinity" or f16, sum_bf16 = bf16 }
        l:section "bf16 keeps eight bits of precision"
        local w = core.random("normal", { 1024, 1024 }, 1, 0, 0.02)
        local as16, asb16 = explore.error(w, w:quantize "f16").sqnr, explore.error(w, w:quantize "bf16").sqnr
        local tiny = core.random("normal", { 1024, 1024 }, 1, 0, 1e-7)
        l:say("Weights of deviation 0.02 keep %.1f dB in f16 and %.1f dB in bf16; nf4 keeps about %.0f, so "
            .. "neither is what limits 4-bit quality. In the other direction, values as small as 1e-7 "
            .. "become 0 in f16 %.0f %% of the time, in bf16 %.0f %%.", as16, asb16,
            explore.error(w, w:quantize "nf4").sqnr, 100 * count_zeros(tiny, "f16") / 1024 ^ 2,
                100 * count_zeros(tiny, "bf16") / 1024 ^ 2)
        l:figure { weights_f16 = as16, weights_bf16 = asb16, zeros_f16 = count_zeros(tiny, "f16"),
            zeros_bf16 = count_zeros(tiny, "bf16") }
        l:remember("A model trained in bf16 may have activations beyond 65504: fp16 then gives infinities. "
            .. "Take bf16 where the GPU has it.",
            "GPUs before compute capability 8.0 (such as the T4) have no bf16 units: there fp16 is the "
                .. "choice, with f32 norms.",
            "Casting a bf16 checkpoint to fp16 wants a check for overflow; qmoon stops at non-finite values "
                .. "unless told otherwise.")
    end,
}
