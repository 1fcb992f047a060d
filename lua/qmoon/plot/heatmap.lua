-- Layers by modules: which tensors of a model a format hurts most.

local check = require "qmoon.check"
local core = require "qmoon.core"
local picture = require "qmoon.picture"

local WORST = 8

-- The order that a token meets them in.
local ORDER = {}
for i, name in ipairs { "q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "gate", "gate_proj", "up_proj",
    "gate_up_proj",
                        "down_proj", "w1", "w3", "w2" } do
    ORDER[name] = i
end

--- Layers and modules in order, and the figure of each pair.
local function table_of(list)
    local layers, modules, at, seen = {}, {}, {}, {}
    for _, e in ipairs(list) do
        local layer, module = e.name:match "[.]?(%d+)%.(.+)$"
        if layer then
            module = module:gsub("%.weight$", ""):match "[^.]+$"
            layer = tonumber(layer)
            if not at[layer] then
                at[layer], layers[#layers + 1] = {}, layer
            end
            if not seen[module] then
                seen[module], modules[#modules + 1] = true, module
            end
            at[layer][module] = math.min(at[layer][module] or math.huge,
                e.sqnr) -- of a layer's experts the worst shows
        end
    end
    table.sort(layers)
    table.sort(modules, function(a, b)
        local x, y = ORDER[a] or 99, ORDER[b] or 99
        return x < y or x == y and a < b
    end)
    return layers, modules, at
end

local function worst_rows(list)
    local sorted, rows = { unpack(list) }, { { "worst tensors", "SQNR dB" } }
    table.sort(sorted, function(a, b)
        if a.sqnr ~= b.sqnr then
            return a.sqnr < b.sqnr
        end
        return a.name < b.name
    end)
    for i = 1, math.min(WORST, #sorted) do
        rows[i + 1] = { sorted[i].name, ("%.2f"):format(sorted[i].sqnr) }
    end
    return rows
end

--- The figures of a model's report, those of tensors in layers.
local function measured(model, format)
    local list = {}
    for i, row in ipairs(model:report(format)) do
        list[i] = { name = row.tensor, sqnr = row.sqnr }
    end
    return list
end

local function heat_panel(layers, modules, at)
    local low, high, values, names = math.huge, -math.huge, {}, {}
    for r, layer in ipairs(layers) do
        values[r], names[r] = {}, tostring(layer)
        for c, module in ipairs(modules) do
            local v = at[layer][module]
            values[r][c] = v or false
            low, high = math.min(low, v or low), math.max(high, v or high)
        end
    end
    return { kind = "heat", rows = names, cols = modules, values = values, low = low,
        high = math.max(high, low + 0.01),
             form = "%.1f", unit = "dB", label_width = 30, cell_height = 18 }
end

--- A model's layers by modules, shaded by how well a format keeps them.  Of a model, or of figures at hand.
---
---     qm.plot.heatmap{model = m, "nf4"}
---     qm.plot.heatmap{{name = "layers.0.up_proj", sqnr = 20.7}, {name = "layers.1.up_proj", sqnr = 19.9}}
---
---@param options {[integer]: any, model: qmoon.Model?, data: string?} a model and a format (nf4 unless given), or a
--- list of {name, sqnr}; data says where those are from
---@return qmoon.Picture
local function heatmap(options)
    check.table("heatmap", options, "options")
    check.options("heatmap", options, { "model", "data" }, true)
    local list, recipe = options, { { "data", options.data or "given figures" } }
    if options.model then
        local format = options[1] or "nf4"
        list = measured(options.model, format)
        recipe = { { "model", tostring(options.model.path):match "([^/]+)/*$" },
                   { "format", require("qmoon.formats").label(format) } }
    end
    local entries = {}
    for i, e in ipairs(list) do
        if type(e) ~= "table" or type(e.name) ~= "string" or type(e.sqnr) ~= "number" then
            core.fail("fail", "heatmap: figures are a list of {name =, sqnr =}, or give model = qm.open "
                .. "\"…\"")
        end
        entries[i] = { name = e.name, sqnr = math.max(-99, math.min(e.sqnr, 999)) }
    end
    local layers, modules, at = table_of(entries)
    if not layers[1] then
        core.fail("fail", "heatmap: no tensor's name has a layer's number in it")
    end
    local rows = worst_rows(entries)
    return picture.new {
        title = "Signal to error, layer by layer, in dB",
        alt = ("Cells for %d layers and %d modules; the weakest is %s."):format(#layers, #modules,
            rows[2][1]),
        note = "Higher is better; 6 dB is one bit. A blank cell is the worst of this model: the first to "
            .. "give more bits.",
        recipe = recipe,
        panels = { heat_panel(layers, modules, at), { kind = "cells", rows = rows } },
    }
end

return heatmap
