-- Common claims, each with the computation that decides it.

local core = require "qmoon.core"
local affine = require "qmoon.affine"
local explore = require "qmoon.explore"
local footprint = require "qmoon.footprint"
local levels = require "qmoon.levels"
local minifloat = require "qmoon.minifloat"

local GIB = 2 ^ 30

local function gb(name, format)
    return footprint.weights(footprint.model(name), format).total / 1e9
end

local function normal_sqnr(format, data)
    local t = data == "uniform" and core.random("uniform", { 512, 1024 }, 1, -1, 1)
        or core.random("normal", { 512, 1024 }, 1, 0, 0.02)
    return explore.error(t, t:quantize(format)).sqnr
end

-- The different values that nf4 gives back for uniform data, as shares of the scale: its table, whatever the
-- data.
local function used_levels()
    local t = core.random("uniform", { 64, 1024 }, 1, -1, 1)
    local q = t:quantize "nf4"
    local back, scales = q:dequantize():values(), core.tensor({ 1024 }, q:scales()):values()
    local seen, list = {}, {}
    for i, v in ipairs(back) do
        local level = math.floor(v / scales[math.ceil(i / 64)] * 1e4 + 0.5) / 1e4
        if not seen[level] then
            seen[level], list[#list + 1] = true, level
        end
    end
    table.sort(list)
    return list
end

-- {claim, function: whether it holds (true, false, "half"), the arithmetic in a sentence, figures}
local CLAIMS = {
    { "Mixtral 8x7B in NF4 takes 10 to 12 GB", function()
        local v = gb("mixtral 8x7b", "nf4:dq")
        return v <= 12, ("%.1f GB (%.1f GiB) with double quantisation, %.1f without; weights alone"):format(v,
            v * 1e9 / GIB,
            gb("mixtral 8x7b", "nf4")), { mixtral_dq = v }
    end },
    { "Mixtral 8x7B in INT8 takes 22 to 24 GB", function()
        local v = gb("mixtral 8x7b", "int8")
        return v <= 24, ("%.1f GB (%.1f GiB)"):format(v, v * 1e9 / GIB), { mixtral_int8 = v }
    end },
    { "Mistral-7B in INT8 takes 7 to 8 GB", function()
        local v = gb("mistral 7b", "int8")
        return v >= 7 and v <= 8, ("%.2f GB"):format(v), { mistral_int8 = v }
    end },
    { "FP32 holds 3.141592653589793", function()
        local v = minifloat.round(math.pi, minifloat.layout "f32")
        return v == math.pi, ("its nearest is %.17g, right to %d digits; that number takes FP64"):format(v,
            7), { pi_f32 = v }
    end },
    { "INT8 stores 3.14159 as 3", function()
        local s = affine.symmetric(affine.nine, 8)
        local code = affine.round(math.pi / s.step)
        return code == 3, ("it stores round(x / scale): with a largest value of 5.64, code %d, which reads "
            .. "%.3f"):format(code, code * s.step),
            { pi_code = code }
    end },
    { "The nine numbers become 123 209 217 76 119 93 0 81 99", function()
        local a, wrong = affine.affine(affine.nine, 8), 0
        for i, code in ipairs(a.codes) do
            wrong = wrong + (code ~= affine.printed[i] and 1 or 0)
        end
        return wrong == 0, ("they become %s; %d of %d are wrong"):format(table.concat(a.codes, " "), wrong,
            #a.codes),
            { nine = table.concat(a.codes, " ") }
    end },
    { "NF4 weights take half a byte, an eighth of FP32", function()
        local bits, dq = 4 + 32 / 64, 4 + 8 / 64 + 32 / (64 * 256)
        return bits / 8 == 0.5 or "half", ("%.4f byte with scales (%.2f times smaller), %.4f with double "
            .. "quantisation (%.2f)"):format(bits / 8, 32 / bits, dq / 8,
            32 / dq), { nf4_ratio = 32 / bits, dq_ratio = 32 / dq }
    end },
    { "Double quantisation saves 15 to 30 %", function()
        local bits, dq = 4 + 32 / 64, 4 + 8 / 64 + 32 / (64 * 256)
        local model = 1 - gb("llama 2-7b", "nf4:dq") / gb("llama 2-7b", "nf4")
        return 1 - dq / bits >= 0.15, ("%.3f of %.1f bits: %.1f %% of the quantised weights, %.1f %% of "
            .. "Llama-2-7B"):format(bits - dq, bits,
            100 * (1 - dq / bits), 100 * model), { dq_saves = 1 - dq / bits, dq_saves_model = model }
    end },
    { "(7 B / 64) x 1 byte = 109 MB is what it saves", function()
        local n = 7e9 / 64
        local saved = (4 * n - n - 4 * n / 256) / 1e6
        return math.abs(saved - 109) < 1, ("%.1f MB is what the 8-bit scales take; saved are %.0f - %.1f - "
            .. "%.1f = %.0f MB"):format(n / 1e6, 4 * n / 1e6, n / 1e6,
            4 * n / 256 / 1e6, saved), { saved_mb = saved }
    end },
    { "NF4's buckets adapt to the weights", function()
        local list, other = levels.of "nf4", used_levels()
        local differ = #list ~= #other
        for i, v in ipairs(list) do
            differ = differ or math.abs(v - other[i]) > 1e-4
        end
        return differ, ("its %d levels are a fixed table, from %g to %g; only the scale is the block's own"):format(#list, list[1], list[#list]),
            { nf4_levels = #list }
    end },
    { "NF4 is always better than INT4", function()
        local bell, even = normal_sqnr "nf4" - normal_sqnr "int4",
            normal_sqnr("nf4", "uniform") - normal_sqnr("int4", "uniform")
        return bell > 0 and (even > 0 or "half"), ("%+.2f dB on bell-shaped values, %+.2f dB on even ones; "
            .. "at equal bits q4_0 has %+.2f dB on the bell"):format(bell, even,
            normal_sqnr "q4_0" - normal_sqnr "nf4"), { bell = bell, even = even }
    end },
    { "FP4 is a sign and three bits of exponent", function()
        local list, odd = levels.of "fp4", {}
        for _, v in ipairs(list) do
            local twelfth = math.floor(12 * v * 1000 + 0.5) / 1000
            local f = twelfth > 0.1 and math.frexp(twelfth) or 0.5
            odd[#odd + 1] = f ~= 0.5 and ("%g/12"):format(twelfth) or nil
        end
        return #odd == 0, ("its magnitudes include %s, no powers of two: 1-2-1, as E2M1"):format(table.concat(odd, ", ")),
            { fp4_odd = table.concat(odd, " ") }
    end },
    { "A 7B model in INT8 fits on 8 GB", function()
        local model = footprint.model "llama 2-7b"
        local w, kv = footprint.weights(model, "int8").total / GIB, footprint.token(model) * 4096 / GIB
        return w + kv < 8, ("%.2f GiB of weights and %.1f GiB of cache for 4096 tokens: %.1f GiB"):format(w,
            kv, w + kv),
            { int8_7b = w + kv }
    end },
    { "Qwen2.5-1.5B: INT8 is half, NF4 and Q4_0 a quarter of FP16", function()
        local f16, i8, nf4, q4 = gb("qwen2 1.5b", "f16"), gb("qwen2 1.5b", "int8"),
            gb("qwen2 1.5b", "nf4:dq"), gb("qwen2 1.5b", "q4_0")
        local near = math.abs(i8 / f16 - 0.5) < 0.02 and math.abs(nf4 / f16 - 0.25) < 0.02
            and math.abs(q4 / f16 - 0.25) < 0.02
        return near, ("%.1f, %.1f and %.1f %%: its embedding is %.0f %% of it and stays in 16 bit (Q6_K in "
            .. "GGUF)"):format(100 * i8 / f16,
            100 * nf4 / f16, 100 * q4 / f16, 100 * 151936 * 1536 * 2 / 1e9 / f16),
                { qwen_int8 = i8 / f16, qwen_nf4 = nf4 / f16, qwen_q4_0 = q4 / f16 }
    end },
    { "A smaller group_size saves memory", function()
        local at128, at32 = 4 + 16 / 128 + 4 / 128, 4 + 16 / 32 + 4 / 32
        return at32 < at128, ("smaller groups have more scales: int4 with a zero point takes %.3f bits at "
            .. "128, %.3f at 32"):format(at128, at32),
            { group128 = at128, group32 = at32 }
    end },
    { "bf16 reaches 3.39e38", function()
        local top = minifloat.limits(minifloat.layout "bf16").max
        return math.abs(top / 3.39e38 - 1) < 0.001, ("its largest number is %.4g; f16's is %.0f"):format(top,
            minifloat.limits(minifloat.layout "f16").max), { bf16_max = top }
    end },
}

local VERDICT = { [true] = "right", [false] = "wrong", half = "half right" }

return {
    title = "Common claims, computed",
    question = "which of the numbers that tutorials repeat are right",
    run = function(l)
        l:section "Claim, verdict, computation"
        local count = { right = 0, wrong = 0, ["half right"] = 0 }
        for i, claim in ipairs(CLAIMS) do
            local holds, why, figures = claim[2]()
            local verdict = VERDICT[holds]
            count[verdict] = count[verdict] + 1
            l:claim(i, claim[1], verdict, why)
            l:figure(figures)
        end
        l:figure { claims = #CLAIMS, right = count.right, wrong = count.wrong, half = count["half right"] }
        l:say("%d claims: %d right, %d half right, %d wrong. Every figure was computed just now; the claims "
            .. "are quoted from guides that this project started from.", #CLAIMS, count.right,
                count["half right"], count.wrong)
        l:remember("Before repeating a number, do the division: bytes over parameters must give the bits "
            .. "you think you have.")
    end,
}
