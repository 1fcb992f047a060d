--- quantization.json: how the weights of a folder are quantised, and with what error.
--
-- It lies beside weights that were in a lone file, and beside those in formats that no other program has; of the
-- latter it is also what they are read by (qmoon.source.planes).

local core = require "qmoon.core"
local json = require "qmoon.json"
local tensor = require "qmoon.tensor"

local description = {}

description.NAME, description.SCHEMA = "quantization.json", "qmoon-quantization-1"

local NUMBER = 24 -- digits of the longest
local FIGURES = { "rmse", "max", "sqnr", "cosine" }

local function figure(f, key)
    return f and f[key] ~= math.huge and f[key] or core.null
end

local function sums(rows)
    local n = { parameters = 0, quantised = 0, bytes = 0, source = 0 }
    for _, row in ipairs(rows) do
        n.parameters, n.bytes = n.parameters + row.count, n.bytes + row.bytes
        n.quantised = n.quantised + (row.why and 0 or row.count)
        n.source = n.source + row.item.source.size
    end
    return n
end

--- A codebook's levels, each as the shortest text that gives the same f32.
local function levels_of(own)
    local list = own and type(own.format) == "userdata" and own.format:levels() or nil
    for i, level in ipairs(list or {}) do
        list[i] = json.float(json.widen(level))
    end
    return list and json.array(list) or nil
end

local function quantised_row(row, f)
    local s = row.item.source
    local members = { { "shape", json.array(row.shape) }, { "bytes", row.bytes }, { "source_bytes", s.size },
                      { "rows", s.rows or (#row.shape > 1 and row.count / row.shape[#row.shape]) or 1 } }
    if row.block then
        members[#members + 1] = { "block", row.block }
    end
    for _, key in ipairs(FIGURES) do
        members[#members + 1] = { key == "sqnr" and "sqnr_db" or key, figure(f, key) }
    end
    return json.object(members)
end

--- The text, with errors or, before they are known, nulls in their places; and how many weights are quantised.
local function text_of(out, spec, errors)
    local quantised, left = {}, {}
    for _, row in ipairs(out.rows) do
        if row.why then
            left[#left + 1] = { row.name, json.object { { "dtype", row.type }, { "shape", json.array(row.shape) },
                                                        { "bytes", row.bytes }, { "source_bytes", row.item.source.size },
                                                        { "why", row.why } } }
        else
            local f = errors and errors[row.item] and tensor.figures(errors[row.item])
            quantised[#quantised + 1] = { row.name, quantised_row(row, f) }
        end
    end
    local n, own = sums(out.rows), spec.own
    local block = own and (own.block or own.info.block) or spec.format == "int8" and "row" or spec.block or 64
    local members = {
        { "schema", description.SCHEMA }, { "method", own and own.info.name or spec.format },
        { "block", block == 0 and "row" or block }, { "double_quant", (own or spec).double_quant or false },
        { "parameters", n.parameters }, { "quantised_parameters", n.quantised }, { "bytes", n.bytes },
        { "source_bytes", n.source },
    }
    local levels = levels_of(own)
    if own then
        members[#members + 1] = { "layout", "planes" }
        members[#members + 1] = levels and { "levels", levels } or nil
    end
    members[#members + 1] = { "quantised", json.object(quantised) }
    members[#members + 1] = { "left", json.object(left) }
    return json.encode(json.object(members), { indent = 2 }), #quantised
end

--- The file, for an output's `side`: as long as the plan says, whatever the errors turn out to be (JSON readers skip
--- the blanks at its end).
---@param out qmoon.Output
---@param spec table
---@return table
function description.file(out, spec)
    local text, n = text_of(out, spec)
    local size = #text + n * #FIGURES * NUMBER + 1
    return { name = description.NAME, size = size, late = function()
        local now = text_of(out, spec, out.errors or {})
        return now .. (" "):rep(size - #now - 1) .. "\n"
    end }
end

return description
