-- Layers by modules: which tensors of a model a format hurts most.

local core = require "qmoon.core"
local explore = require "qmoon.explore"
local text = require "qmoon.text"

local WORST = 8

--- Error of every matrix of a model in a format: {name, sqnr}.
local function measured(model, format)
    local list = {}
    for _, item in ipairs(model.items) do
        if #item.shape == 2 and item.name:find "layers%.%d+%." and #item.actions == 0 then
            local t = model:tensor(item.name)
            local q = t:quantize(format)
            list[#list + 1] = { name = item.name, sqnr = explore.error(t, q).sqnr }
            q:close()
            t:close()
        end
    end
    return list
end

-- The order that a token meets them in.
local ORDER = {}
for i, name in ipairs { "q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "gate", "gate_proj", "up_proj",
    "gate_up_proj", "down_proj",
                        "w1", "w3", "w2" } do
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
            -- experts of a layer share a cell, the worst shows
            at[layer][module] = math.min(at[layer][module] or math.huge, e.sqnr)
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
    local rows = { { "worst tensors", "SQNR dB" } }
    table.sort(list, function(a, b)
        if a.sqnr ~= b.sqnr then
            return a.sqnr < b.sqnr
        end
        return a.name < b.name
    end)
    for i = 1, math.min(WORST, #list) do
        rows[i + 1] = { list[i].name, ("%.2f"):format(list[i].sqnr) }
    end
    return rows
end

return {
    doc = "a model's layers by modules, shaded by how well a format keeps them",
    --- qm.plot.heatmap{model = qm.open "…", "nf4"}, or of figures at hand: qm.plot.heatmap{{name =, sqnr =},
    --- …}
    make = function(options)
        local list, recipe = options, { { "data", options.data or "given figures" } }
        if options.model then
            local format = options[1] or "nf4"
            list = measured(options.model, format)
            recipe = { { "model", tostring(options.model.path):match "[^/]+$" }, { "format", format } }
        end
        local entries = {}
        for i, e in ipairs(list) do
            entries[i] = { name = e.name, sqnr = math.min(e.sqnr, 999) }
        end
        local layers, modules, at = table_of(entries)
        if not layers[1] then
            core.fail("fail", "heatmap: no tensor's name has a layer's number in it")
        end
        local low, high, values, names = math.huge, -math.huge, {}, {}
        for r, layer in ipairs(layers) do
            values[r], names[r] = {}, tostring(layer)
            for c, module in ipairs(modules) do
                local v = at[layer][module]
                values[r][c] = v or false
                low, high = math.min(low, v or low), math.max(high, v or high)
            end
        end
        local rows = worst_rows(entries)
        return {
            title = "Signal to error, layer by layer, in dB",
            alt = ("Cells for %d layers and %d modules; the weakest is %s."):format(#layers, #modules,
                rows[2][1]),
            note = "Higher is better; 6 dB is one bit. A blank cell is the worst of this model: the first "
                .. "to give more bits.",
            recipe = recipe,
            panels = { { kind = "heat", rows = names, cols = modules, values = values, low = low,
                high = math.max(high, low + 0.01),
                         form = "%.1f", unit = "dB", label_width = 30, cell_height = 18 },
                       { kind = "cells", rows = rows } },
        }
    end,
}
