-- Does it fit? Mixtral 8x7B on 24 GiB unless told otherwise.

local footprint = require "qmoon.footprint"
local plot = require "qmoon.plot"

local GIB = 2 ^ 30
local CANDIDATES = { "f16", "int8", "q6_k", "q5_k_m", "q4_k_m", "nf4", "q4_0", "nf4:dq", "q3_k_l", "q3_k_m",
    "q3_k_s", "q2_k" }

return {
    title = "Does it fit?",
    question = "whether Mixtral 8x7B runs on 24 GiB, or another model on another card",
    options = { "model", "card", "context" },
    run = function(l, o)
        local name, context = o.model or "mixtral 8x7b", o.context or 4096
        local card = (o.card or 24 * GIB) / GIB
        local model, title = footprint.of(name)
        l:section("Weights first: %s, tensor by tensor", title)
        local f16, dq, nf4 = footprint.weights(model, "f16"), footprint.weights(model, "nf4:dq"),
            footprint.weights(model, "nf4")
        l:lines(("parameters      %.2f billion"):format(f16.count / 1e9),
            ("quantised       %.2f billion: the linear layers"):format(dq.quantised / 1e9),
            ("kept in 16 bit  %.2f billion: embeddings, output head, norms"):format((dq.count - dq.quantised) / 1e9),
            ("nf4 + dq        codes %.2f + scales %.2f + rest %.2f = %.2f GB = %.2f GiB"):format(dq.codes / 1e9, dq.scales / 1e9,
                dq.plain / 1e9, dq.total / 1e9, dq.total / GIB),
                    ("nf4             %.2f GB = %.2f GiB"):format(nf4.total / 1e9, nf4.total / GIB))
        local cache = footprint.token(model)
        l:section "Then what it needs to run"
        l:say("Each token of context keeps %.0f KiB of keys and values in 16 bit (2 x layers x heads of "
            .. "them x size of a head x 2 bytes): %.2f GiB for %d tokens. The driver's context, the program "
            .. "and its activations take about %g GiB; that figure is an estimate, the others are computed.",
                cache / 1024, cache * context / GIB, context, footprint.WORKSPACE)
        l:figure { parameters = f16.count, nf4_dq_gb = dq.total / 1e9, nf4_gb = nf4.total / 1e9,
            token_kib = cache / 1024,
                   cache_gib = cache * context / GIB, scales_dq_gb = dq.scales / 1e9,
                       scales_nf4_gb = nf4.scales / 1e9 }
        local picture = plot.memory { model = model, name = title, card = card, context = context,
            unpack(CANDIDATES) }
        l:picture(picture)
        local fits, verdict = {}, nil
        for _, row in ipairs(picture.all) do
            if not row.bad then
                fits[#fits + 1] = ("%s (%.2f GiB, %.2f to spare)"):format(row.label, row.total,
                    card - row.total)
            end
            verdict = row.label == "nf4:dq" and row or verdict
        end
        l:figure { total_nf4_dq_gib = verdict.total, fits_nf4_dq = not verdict.bad }
        l:section "The answer"
        l:say("nf4 with double quantisation takes %.2f GiB of %.4g: it %s. %s", verdict.total, card,
            verdict.bad and "does not fit" or "fits",
            #fits > 0 and "What does, best first: " .. table.concat(fits, "; ") .. "."
                or "Nothing in the list does.")
        if not o.model then
            l:say("A widely copied guide promises 10 to 12 GB. %.1f billion parameters times a quarter of a "
                .. "byte is %.1f GB: that would be two bits a weight, not four.", f16.count / 1e9,
                    f16.count / 4e9)
            l:figure { quarter_byte_gb = f16.count / 4e9 }
        end
        l:remember("Count stored bytes tensor by tensor; parameters times four bits leaves out scales and "
            .. "16-bit tensors.",
            "Weights that just fit leave no room for context: look at the whole bar.")
    end,
}
