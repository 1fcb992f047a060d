--- A model without a config.json (a lone .pt, .bin or .safetensors file; a GGUF file of an architecture that has no
--- table): a folder with model.safetensors, of weights that are quantised quantization.json, which says how and with
--- what error, and of GGUF its metadata as gguf.json.
--
-- Quantised weights are the same tensors that bitsandbytes has for linear layers, or planes (planes.lua).  Those of more than two
-- dimensions are taken as rows (qmoon.model); the shape they had is in quant_state and in quantization.json.

local core = require "qmoon.core"
local assemble = require "qmoon.output.assemble"
local bnb = require "qmoon.output.bnb"
local gguf = require "qmoon.gguf"
local json = require "qmoon.json"
local description = require "qmoon.output.description"
local planes = require "qmoon.output.planes"

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

local plain = {} -- element types that are carried over
for _, d in ipairs(core.dtypes()) do
    plain[d.name] = true
end

local function reshaped(item)
    if #item.shape > 2 then
        return item.source.rows == item.shape[1] and "[out, in x kernel]" or "[E x out, in]"
    end
end

-- ---- planning ---------------------------------------------------------------------------------------------

local function metadata_text(meta)
    local members = {}
    for i, r in ipairs(meta) do
        members[i] = { r.key, r.type == "array" and json.array(r.value) or r.value }
    end
    return json.encode(json.object { { "schema", "qmoon-gguf-1" }, { "metadata", json.object(members) } }, { indent = 2 }) .. "\n"
end

--- Parts, sink, why it is not quantised, and how it was reshaped.
local function item_parts(item, spec)
    local cols = item.source.cols or item.shape[#item.shape] or 1
    local why = spec.quantised and (why_kept(item) or spec.own and planes.misfit(spec.own, cols))
    if not item.source.format and not plain[item.source.dtype] then
        core.fail("unsupported", "%s: tensor '%s' is %s, which this program cannot decode", item.source.file:path(), item.name,
            item.source.dtype)
    elseif not spec.quantised or why then
        local parts, sink = assemble.plain(item, spec.dtype)
        return parts, sink, why or nil
    end
    local parts, sink
    if spec.own then
        parts, sink = planes.parts(item, spec.own, spec)
    else
        parts, sink = bnb.parts(item, spec)
    end
    return parts, sink, nil, reshaped(item)
end

---@param model qmoon.Model
---@param spec table as of qmoon.output.folder
---@return qmoon.Output
function bare.plan(model, spec)
    local quantised = assemble.check(spec)
    if spec.format == "same" then
        core.fail("unsupported", "%s: a file without a config.json is not merged into its own quantisation; "
            .. "name a format", model.path)
    end
    spec = setmetatable({ dtype = spec.dtype or quantised and "keep" or spec.format, quantised = quantised },
        { __index = spec })
    local title = spec.format == "keep" and "as it is" or assemble.title(spec)
    local out = { path = spec.path, folder = true, title = title, files = {}, sinks = {}, copies = {},
                  side = {}, rows = {}, notices = {}, format = spec.format, dtype = spec.dtype,
                  coverage = quantised }
    assemble.fill(out, model.items, spec.shard_size, function(item)
        return item_parts(item, spec)
    end)
    if model.kind == "gguf" then
        out.notices[1] = ("architecture '%s' has no table here, so tensors keep their GGUF names and there is no config.json; the "
            .. "metadata is in gguf.json"):format(tostring((gguf.get(model.gguf.meta, "general.architecture"))))
        out.side[1] = { name = "gguf.json", bytes = metadata_text(model.gguf.meta) }
    end
    if quantised then
        out.side[#out.side + 1] = description.file(out, spec)
    end
    return out
end

return bare
