-- Memory skyline: what a model takes on a card, against what the card has.

local footprint = require "qmoon.footprint"

local GIB = 2 ^ 30
local RESERVE = 0.8 -- GiB for the driver's context, the program and activations: an estimate, and said to be one

return {
    doc = "weights, cache and workspace of a model in several formats, against a card",
    --- qm.plot.memory{model = "mixtral 8x7b", card = 24, context = 4096, "nf4:dq", "q4_0"}
    make = function(options)
        options = options or {}
        local model, name = options.model or "mixtral 8x7b", options.name
        if type(model) == "string" then
            model, name = footprint.of(model)
        end
        name = name or model.path:match "([^/]+)/*$"
        local card, context = options.card or 24, options.context or 4096
        local list = options[1] and options or { "f16", "int8", "nf4", "nf4:dq", "q4_0", "q3_k_m", "q2_k" }
        local cache = footprint.token(model) * context / GIB
        local rows, fits = {}, {}
        for i, format in ipairs(list) do
            local w = footprint.weights(model, format)
            local total = w.total / GIB + cache + RESERVE
            rows[i] = { label = format, parts = { w.codes / GIB, w.scales / GIB, w.plain / GIB, cache,
                RESERVE },
                        text = ("%.2f GiB"):format(total), bad = total > card, total = total }
            fits[#fits + 1] = total <= card and format or nil
        end
        local shown, beyond = {}, {}
        for _, row in ipairs(rows) do -- far beyond the card, a bar only squeezes the others
            local list = row.total <= 2.2 * card and shown or beyond
            list[#list + 1] = row
        end
        for i, row in ipairs(beyond) do
            beyond[i] = ("%s takes %s"):format(row.label, row.text)
        end
        local n = footprint.weights(model, "f16").count
        return {
            title = ("%s on a card of %g GiB, with a context of %d"):format(name, card, context),
            alt = ("Stacked bars of weights, cache and workspace in GiB against a line at %g GiB; %s."):format(card,
                #fits > 0 and table.concat(fits, ", ") .. " stay below it" or "none stays below it"),
            note = (#fits > 0 and ("Below the line: %s."):format(table.concat(fits, ", "))
                or "None of these fits.")
                .. (beyond[1] and (" Not drawn: %s."):format(table.concat(beyond, ", ")) or ""),
            recipe = { { "model", name }, { "parameters", ("%.2f billion"):format(n / 1e9) },
                { "context", context },
                       { "workspace", ("%g GiB (an estimate)"):format(RESERVE) } },
            panels = { { kind = "stack", names = { "codes", "scales", "16 bit", "cache", "workspace" },
                rows = shown,
                         limit = { value = card, label = ("%g GiB"):format(card) }, label_width = 70 } },
            all = rows,
            live = { name = "memory", quantised = footprint.weights(model, "nf4").quantised,
                token = footprint.token(model), card = card,
                     rows = shown, sliders = { { "bits", 2, 8, 4 }, { "block", 4, 12, 6, power = true },
                         { "context", 9, 17, math.floor(math.log(context) / math.log(2) + 0.5),
                             power = true } } },
        }
    end,
}
