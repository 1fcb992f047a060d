-- Which format: computed from the model and the card.

local core = require "qmoon.core"
local explore = require "qmoon.explore"
local footprint = require "qmoon.footprint"

local GIB = 2 ^ 30

-- What can be written, the format of its weights, and who runs it.
local CANDIDATES = {
    { "f16", "f16", "anything" }, { "int8", "int8", "transformers + bitsandbytes" },
        { "nf4", "nf4", "transformers + bitsandbytes" },
    { "nf4:dq", "nf4:dq", "transformers + bitsandbytes" }, { "q8_0", "q8_0", "llama.cpp" },
        { "q6_k", "q6_k", "llama.cpp" },
    { "q5_k_m", "q5_k", "llama.cpp" }, { "q4_k_m", "q4_k", "llama.cpp" }, { "q4_0", "q4_0", "llama.cpp" },
        { "q3_k_m", "q3_k", "llama.cpp" },
    { "q2_k", "q2_k", "llama.cpp" },
}

local function measured(model, context)
    local t = core.random("student", { 512, 1024 }, 1, 5, 0.02)
    local cache = footprint.token(model) * context
    local list = {}
    for i, c in ipairs(CANDIDATES) do
        local q = t:quantize(c[2])
        local need = (footprint.weights(model, c[1]).total + cache) / GIB + footprint.WORKSPACE
        list[i] = { name = c[1], runs = c[3], need = need, sqnr = explore.error(t, q).sqnr }
    end
    table.sort(list, function(a, b)
        return a.sqnr > b.sqnr
    end)
    return list
end

return {
    title = "Which format?",
    question = "which format to take for a model and a card, computed",
    options = { "model", "card", "context" },
    run = function(l, o)
        local model, title = footprint.of(o.model or "llama 3-8b")
        local card, context = (o.card or 8 * GIB) / GIB, o.context or 8192
        l:section("%s on %.4g GiB with %d tokens of context", title, card, context)
        local rows, first = { { "format", "needs", "", "SQNR dB", "runs in" } }, {}
        for _, c in ipairs(measured(model, context)) do
            local fits = c.need <= card
            rows[#rows + 1] = { c.name, ("%.2f GiB"):format(c.need), fits and "fits"
                or ("%.2f too much"):format(c.need - card),
                                ("%.1f"):format(c.sqnr), c.runs }
            if fits then
                first[c.runs] = first[c.runs] or c
                first.best = first.best or c
            end
            l:figure { ["need_" .. c.name] = c.need }
        end
        l:table(rows)
        l:say("Needs are weights (computed tensor by tensor), the cache of keys and values in 16 bit, and "
            .. "%g GiB for the rest, an estimate. Signal to error is on heavy-tailed values; it ranks "
            .. "formats and does not measure text.",
            footprint.WORKSPACE)
        l:section "So"
        l:figure { best = first.best and first.best.name or "none" }
        if not first.best then
            l:say("Nothing in the list fits. A smaller model in a better format is mostly the better "
                .. "choice; or %d tokens of context, which take %.2f GiB, could be fewer.", context,
                    footprint.token(model) * context / GIB)
        else
            l:say("The best that fits is %s: %.2f GiB of %.4g, %.1f dB.", first.best.name, first.best.need,
                card, first.best.sqnr)
            for _, runs in ipairs { "llama.cpp", "transformers + bitsandbytes" } do
                local c = first[runs]
                l:say("For %s: %s", runs, c and ("%s (%.2f GiB)."):format(c.name, c.need) or "none fits.")
            end
            l:say("To train an adapter on it, take nf4 (with double quantisation if it is tight): that is "
                .. "what QLoRA loads.")
        end
        l:remember("First what fits with the context you need, then the most bits of that.",
            "Nobody can say it without the model's shapes: `qmoon demo which-format --model 'mixtral 8x7b' "
                .. "--card 48GiB`.")
    end,
}
