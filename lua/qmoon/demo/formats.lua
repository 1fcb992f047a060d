-- The table of precisions, with their true sizes.

local core = require "qmoon.core"
local explore = require "qmoon.explore"
local footprint = require "qmoon.footprint"

local LIST = { "f32", "bf16", "f16", "f8_e4m3", "int8", "q8_0", "q6_k", "q5_k", "nf4", "nf4:dq", "fp4",
    "q4_0", "q4_k", "iq4_xs", "mxfp4",
               "int4:128", "q3_k", "q2_k" }
local IN_MODEL = { f16 = "f16", bf16 = "bf16", f32 = "f32", int8 = "int8", nf4 = "nf4", ["nf4:dq"] = "nf4:dq",
    fp4 = "fp4", q4_0 = "q4_0",
                   q8_0 = "q8_0", q6_k = "q6_k", q4_k = "q4_k_m", q5_k = "q5_k_m", q3_k = "q3_k_m",
                       q2_k = "q2_k", iq4_xs = "iq4_xs" }

return {
    title = "Precisions and their true sizes",
    question = "how many bits each format really takes, scales included",
    run = function(l)
        l:section "Bits a weight, and what Llama-2-7B takes"
        local t = core.random("normal", { 256, 4096 }, 1, 0, 0.02)
        local model = footprint.model "llama 2-7b"
        local whole = footprint.weights(model, "f16").total
        local rows = { { "format", "bits", "of f32", "SQNR dB", "Llama-2-7B", "of f16", "written as" } }
        for _, spec in ipairs(LIST) do
            local q = t:quantize(spec)
            local bits, db = q:info().bits, explore.error(t, q).sqnr
            local as = IN_MODEL[spec]
            local size = as and footprint.weights(model, as).total
            rows[#rows + 1] = { spec, ("%.3f"):format(bits), ("%.1f %%"):format(100 * bits / 32),
                db == math.huge and "exact" or
                ("%.2f"):format(db), size and ("%.3f GB"):format(size / 1e9) or "", size
                    and ("%.1f %%"):format(100 * size / whole) or "",
                as or "" }
            l:figure { ["bits_" .. spec] = bits, ["gb_" .. spec] = size and size / 1e9 or nil }
        end
        l:table(rows)
        l:say("SQNR is signal to error on normal values; 6 dB is one bit. A model's size is not its "
            .. "parameters times these bits: embeddings, output head and norms keep 16 bits in folders for "
            .. "transformers, and llama.cpp gives some tensors more bits.")
        local nf4, dq = footprint.weights(model, "nf4").total, footprint.weights(model, "nf4:dq").total
        l:say("So \"4-bit is an eighth of 32-bit\" is %.2f times in fact for nf4 (%.3f bits), %.2f with "
            .. "double quantisation; of the f16 model %.1f %% and %.1f %% are left, not 25.", 32 / 4.5, 4.5,
                32 / (4 + 8 / 64 + 32 / (64 * 256)),
                100 * nf4 / whole, 100 * dq / whole)
        l:figure { nf4_of_f16 = nf4 / whole, dq_of_f16 = dq / whole }
        l:remember("Read bits per weight with scales, then add what stays in 16 bit.",
            "`qmoon formats` lists every format; `qmoon plan` gives a model's size to the byte.")
    end,
}
