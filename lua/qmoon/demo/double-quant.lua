-- Double quantisation: what it saves, to the bit, and what it costs.

local core = require "qmoon.core"
local explore = require "qmoon.explore"
local footprint = require "qmoon.footprint"
local plot = require "qmoon.plot"

local BLOCK, NESTED = 64, 256

return {
    title = "Double quantisation",
    question = "what quantising the scales saves: 8 % of the bits, not 15 or 30",
    run = function(l)
        l:section "Where the bits go"
        local single, double = 4 + 32 / BLOCK, 4 + 8 / BLOCK + 32 / (BLOCK * NESTED)
        l:lines(("single  4 + 32/%d              = %.9g bits a weight"):format(BLOCK, single),
            ("double  4 + 8/%d + 32/(%d*%d) = %.9g"):format(BLOCK, BLOCK, NESTED, double),
            ("saved   %.9g bits, %.2f %%"):format(single - double, 100 * (1 - double / single)))
        l:figure { single = single, double = double, saved = single - double,
            saved_share = 1 - double / single }
        l:picture(plot.ledger { "nf4", "nf4:dq", "nf4:128", "nf4:128:dq" })
        l:section "In megabytes, for seven billion weights in blocks of 64"
        local n = 7e9
        local scales, small, second = n / BLOCK * 4 / 1e6, n / BLOCK / 1e6, n / (BLOCK * NESTED) * 4 / 1e6
        l:table({ { "", "MB" }, { "f32 scales, one a block", ("%.1f"):format(scales) },
            { "8-bit scales instead", ("%.1f"):format(small) }, { "and f32 scales of those",
                ("%.1f"):format(second) },
            { "saved", ("%.1f"):format(scales - small - second) } })
        l:figure { scales_mb = scales, small_mb = small, second_mb = second,
            saved_mb = scales - small - second }
        local model = footprint.model "llama 2-7b"
        local with, without = footprint.weights(model, "nf4:dq").total, footprint.weights(model, "nf4").total
        l:say("A real model keeps its embeddings in 16 bit, so it saves less of its whole: Llama-2-7B goes "
            .. "from %.3f to %.3f GB, %.1f %%.",
            without / 1e9, with / 1e9, 100 * (1 - with / without))
        l:figure { llama_nf4_gb = without / 1e9, llama_dq_gb = with / 1e9 }
        l:section "What it costs"
        local t = core.random("normal", { 1024, 1024 }, 1, 0, 0.02)
        local plain, nested = explore.error(t, t:quantize "nf4").sqnr,
            explore.error(t, t:quantize "nf4:dq").sqnr
        l:say("On normal weights the signal to error goes from %.3f to %.3f dB. The other way to save "
            .. "scales is larger blocks: nf4 with blocks of 256 has %.3f bits and %.3f dB.", plain, nested,
                4 + 32 / 256,
                explore.error(t, t:quantize "nf4:256").sqnr)
        l:figure { sqnr_single = plain, sqnr_double = nested }
        l:remember(("It saves %.3f of %.1f bits, %.1f %%, of the quantised weights only."):format(single - double, single,
            100 * (1 - double / single)), "It costs next to nothing in error. It goes with the 4-bit "
                .. "formats, not with int8.")
    end,
}
