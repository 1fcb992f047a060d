-- Memory skyline: what a model takes on a card, against what the card has.

local check = require "qmoon.check"
local footprint = require "qmoon.footprint"
local picture = require "qmoon.picture"

local GIB = 2 ^ 30
local NAMES = { "codes", "scales", "16 bit", "cache", "workspace" }

local function bar_of(model, format, context, card)
    local w = footprint.weights(model, format)
    local cache = footprint.token(model) * context / GIB
    local total = w.total / GIB + cache + footprint.WORKSPACE
    return { label = format, parts = { w.codes / GIB, w.scales / GIB, w.plain / GIB, cache,
        footprint.WORKSPACE },
             text = ("%.2f GiB"):format(total), bad = total > card, total = total }
end

local function note_of(rows, beyond)
    local fits, words = {}, {}
    for _, row in ipairs(rows) do
        fits[#fits + 1] = not row.bad and row.label or nil
    end
    for i, row in ipairs(beyond) do
        words[i] = ("%s takes %s"):format(row.label, row.text)
    end
    return (fits[1] and ("Below the line: %s."):format(table.concat(fits, ", ")) or "None of these fits.")
        .. (words[1] and (" Not drawn: %s."):format(table.concat(words, ", ")) or "")
end

--- Weights, cache and workspace of a model in several formats, against a card.
---
---     qm.plot.memory{model = "mixtral 8x7b", card = 24, context = 4096, "nf4:dq", "q4_0"}
---     qm.plot.memory{model = m, card = 8}
---
---@param options? {[integer]: string, model: string|qmoon.Model|nil, name: string?, card: number?, context: integer?}
--- formats; a family and size or a model; GiB of the card, tokens of context
---@return qmoon.Picture
local function memory(options)
    options = check.options("memory", options, { "model", "name", "card", "context" }, true)
    local model, name = options.model or "mixtral 8x7b", options.name
    if type(model) == "string" then
        model, name = footprint.of(model)
    end
    footprint.check(model)
    name = name or tostring(model.path):match "([^/]+)/*$"
    local card = check.number("memory", options.card or 24, "card")
    local context = check.whole("memory", options.context or 4096, "context", 1)
    local rows, shown, beyond = {}, {}, {}
    for i, format in ipairs(options[1] and options or { "f16", "int8", "nf4", "nf4:dq", "q4_0", "q3_k_m",
        "q2_k" }) do
        local row = bar_of(model, format, context, card)
        rows[i] = row
        local list = row.total <= 2.2 * card and shown or beyond -- a longer bar only squeezes the others
        list[#list + 1] = row
    end
    local w = footprint.weights(model, "nf4")
    return picture.new {
        title = ("%s on a card of %g GiB, with a context of %d"):format(name, card, context),
        alt = ("Stacked bars of weights, cache and workspace in GiB against a line at %g GiB."):format(card),
        note = note_of(rows, beyond),
        recipe = { { "model", name }, { "parameters", ("%.2f billion"):format(w.count / 1e9) },
            { "context", context },
                   { "workspace", ("%g GiB (an estimate)"):format(footprint.WORKSPACE) } },
        panels = { { kind = "stack", names = NAMES, rows = shown, label_width = 70,
                     limit = { value = card, label = ("%g GiB"):format(card) } } },
        all = rows,
        live = { name = "memory", quantised = w.quantised, token = footprint.token(model), card = card,
            rows = shown,
                 sliders = { { "bits", 2, 8, 4 }, { "block", 4, 12, 6, power = true },
                             { "context", 9, 17, math.floor(math.log(context) / math.log(2) + 0.5),
                                 power = true } } },
    }
end

return memory
