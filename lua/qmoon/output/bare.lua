--- A model without a config.json (a lone .pt, .bin or .safetensors file): a folder with model.safetensors
--- and, where weights are quantised, quantization.json, which says how and with what error.
--
-- Quantised weights are the same tensors that bitsandbytes has for linear layers.  Those of more than two
-- dimensions are taken as rows (qmoon.model); the shape they had is in quant_state and in quantization.json.

local core = require "qmoon.core"
local json = require "qmoon.json"
local assemble = require "qmoon.output.assemble"
local bnb = require "qmoon.output.bnb"
local output = require "qmoon.output"
local tensor = require "qmoon.tensor"

local bare = {}

-- What is no matrix of a layer, by its name; looked for in this order.
local NAMES = {
    { "embed", "embedding" }, { "wte%.weight$", "embedding" }, { "wpe%.weight$", "embedding" },
    { "_token$", "embedding" }, { "position", "embedding" }, { "norm", "norm" }, { "bias$", "bias" },
    { "bias_table$", "bias" }, { "lm_head", "output head" },
}

--- Why a tensor is left as it is, or nil when it is quantised.
local function why_kept(item)
    if not item.source.format then
        return item.source.dtype
    end
    local wide = 0
    for _, d in ipairs(item.shape) do
        wide = wide + (d > 1 and 1 or 0)
    end
    if wide < 2 then
        return "1-D"
    end
    local name = item.name:lower()
    for _, row in ipairs(#item.shape < 4 and NAMES or {}) do -- a convolution is one, whatever it is called
        if name:find(row[1]) then
            return row[2]
        end
    end
end

local function reshaped(item)
    if #item.shape > 2 then
        return item.source.rows == item.shape[1] and "[out, in x kernel]" or "[E x out, in]"
    end
end

-- ---- quantization.json ------------------------------------------------------------------------------------

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

--- The text of quantization.json, with errors or, before they are known, nulls in their places.
local function description(out, spec, errors)
    local quantised, left = {}, {}
    for _, row in ipairs(out.rows) do
        local members = { { "shape", json.array(row.shape) }, { "bytes", row.bytes },
                          { "source_bytes", row.item.source.size } }
        if row.why then
            table.insert(members, 1, { "dtype", row.type })
            members[#members + 1] = { "why", row.why }
            left[#left + 1] = { row.name, json.object(members) }
        else
            local s = row.item.source
            local f = errors and errors[row.item] and tensor.figures(errors[row.item])
            members[#members + 1] = { "rows", s.rows or row.shape[1] }
            for _, key in ipairs(FIGURES) do
                members[#members + 1] = { key == "sqnr" and "sqnr_db" or key, figure(f, key) }
            end
            quantised[#quantised + 1] = { row.name, json.object(members) }
        end
    end
    local n = sums(out.rows)
    return json.encode(json.object {
        { "schema", "qmoon-quantization-1" }, { "method", spec.format },
        { "block", spec.format == "int8" and "row" or spec.block or 64 },
        { "double_quant", spec.double_quant or false },
        { "parameters", n.parameters }, { "quantised_parameters", n.quantised }, { "bytes", n.bytes },
        { "source_bytes", n.source }, { "quantised", json.object(quantised) }, { "left", json.object(left) },
    }, { indent = 2 }), #quantised
end

--- As long as the plan says, whatever the errors turn out to be: JSON readers skip the blanks.
local function description_file(out, spec)
    local text, n = description(out, spec)
    local size = #text + n * #FIGURES * NUMBER + 1
    return { name = "quantization.json", size = size, late = function()
        local now = description(out, spec, out.errors or {})
        return now .. (" "):rep(size - #now - 1) .. "\n"
    end }
end

-- ---- planning ---------------------------------------------------------------------------------------------

---@param model qmoon.Model
---@param spec table as of qmoon.output.folder
---@return qmoon.Output
function bare.plan(model, spec)
    local quantised = assemble.check(spec)
    if spec.format == "same" then
        core.fail("unsupported", "%s: a file without a config.json is not merged into its own quantisation; "
            .. "name a format", model.path)
    end
    spec = setmetatable({ dtype = spec.dtype or quantised and "keep" or spec.format }, { __index = spec })
    local title = spec.format == "keep" and "as it is" or assemble.title(spec)
    local out = { path = spec.path, folder = true, title = title, files = {}, sinks = {}, copies = {},
                  side = {}, rows = {}, notices = {}, format = spec.format, dtype = spec.dtype,
                  coverage = quantised }
    assemble.fill(out, model.items, spec.shard_size, function(item)
        local why = quantised and why_kept(item)
        if not quantised or why then
            local parts, sink = assemble.plain(item, spec.dtype)
            return parts, sink, why or nil
        end
        local parts, sink = bnb.parts(item, spec)
        return parts, sink, nil, reshaped(item)
    end)
    if quantised then
        out.side[#out.side + 1] = description_file(out, spec)
    end
    return out
end

return bare
