--- Checkpoint folders: 16- and 32-bit safetensors, and bitsandbytes' int8, nf4 and fp4 as transformers
-- saves and loads them.  Source of the layout: transformers and bitsandbytes (see docs/formats.md).

local core = require "qmoon.core"
local arch = require "qmoon.arch"
local config = require "qmoon.config"
local files = require "qmoon.files"
local json = require "qmoon.json"
local Model = require "qmoon.model"
local safetensors = require "qmoon.output.safetensors"
local bnb = require "qmoon.output.bnb"

local folder = {}

folder.formats = { f16 = true, bf16 = true, f32 = true, keep = true, int8 = true, nf4 = true, fp4 = true }

local DEFAULT_SHARD = 5e9

local function torch_name(dtype)
    for _, d in ipairs(core.dtypes()) do
        if d.name == dtype then
            return d.torch
        end
    end
end

-- ---- which files come along ---------------------------------------------------------------------------

local CARRIED = {
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "generation_config.json", "chat_template.jinja", "chat_template.json",
    "preprocessor_config.json", "processor_config.json", "tekken.json",
}

--- What a checkpoint folder of this model has besides weights: its config, architecture and small files.
local function folder_of(model, spec)
    if model.kind == "folder" then
        return { arch = model.config.arch, config = model.config.text, raw = model.config.raw }
    end
    local g = require("qmoon.gguf_model").read(model.gguf, model.path, { pre = spec.pre })
    return { arch = g.arch, config = g.config, raw = core.json_decode(g.config), files = g.files }
end

local function side_files(model, view)
    local side = {}
    for _, f in ipairs(view.files or {}) do
        if f.name ~= "config.json" then
            side[#side + 1] = { name = f.name, bytes = f.text }
        end
    end
    if view.files then
        return side
    end
    local function carry(name)
        side[#side + 1] = { name = name, from = model.path .. "/" .. name }
    end
    for _, name in ipairs(CARRIED) do
        if files.exists(model.path .. "/" .. name) then
            carry(name)
        end
    end
    for _, name in ipairs(core.list(model.path)) do
        if name:find "%.py$" or name:find "%.tiktoken$" then
            carry(name)
        end
    end
    local templates = model.path .. "/additional_chat_templates"
    local s = core.stat(templates)
    for _, name in ipairs(s and s.type == "dir" and core.list(templates) or {}) do
        carry("additional_chat_templates/" .. name)
    end
    return side
end

-- ---- tensors --------------------------------------------------------------------------------------------

local FLOAT = { f32 = true, f16 = true, bf16 = true }

-- Integers, booleans and the like are carried over; they are no weights.
local function plain_dtype(item, spec)
    local source = item.source
    if not source.format then
        if source.dtype:find "^f" then
            core.fail("unsupported", "%s: tensor '%s' is %s, which is not converted; only f32, f16 and bf16 are",
                source.file:path(), source.name, source.dtype)
        elseif not torch_name(source.dtype) then
            core.fail("unsupported", "%s: tensor '%s' is %s, which this program cannot decode", source.file:path(), source.name,
                source.dtype)
        end
        return nil
    end
    if spec.dtype == "keep" then
        return FLOAT[source.format] and source.format or "f16"
    end
    return spec.dtype
end

-- One tensor in one piece.
local function plain_parts(item, spec)
    local dtype = plain_dtype(item, spec)
    local part = { name = item.name, dtype = dtype or item.source.dtype, shape = item.shape, plane = dtype and 1 }
    part.size = safetensors.size(part.dtype, item.shape)
    return { part }, dtype and { format = dtype }
end

--- Why a tensor stays as it is in a bitsandbytes checkpoint, or nil when it is quantised: transformers
--- quantises the weights of linear layers, and never the output head.
local function why_kept(a, item)
    local role = a and arch.role(a, item.name)
    if not item.name:find "%.weight$" or #item.shape < 2 then
        return #item.shape < 2 and (role == "norm" and "norm" or role == "bias" and "bias" or "1-D") or "not a weight"
    elseif #item.shape > 2 then
        return ("%d-D"):format(#item.shape)
    elseif not item.source.format then
        return item.source.dtype
    end
    if role then
        return role ~= "linear" and role or nil
    end
    local module = item.name:gsub("%.weight$", "")
    if module:find "embed" or module:find "wte$" or module:find "wpe$" then
        return "embedding"
    elseif module:find "lm_head$" or module == "output" then
        return "output"
    elseif module:find "norm" or module:find "ln_" then
        return "norm"
    end
    return nil
end

local REASONS = { embedding = "embedding", output = "output head", norm = "norm", bias = "bias" }

-- ---- config ---------------------------------------------------------------------------------------------

local function config_text(view, spec, skip)
    local raw = view.raw
    local dtype = torch_name(spec.dtype)
    local edits = {}
    if dtype then
        local key = raw.dtype and "dtype" or raw.torch_dtype and "torch_dtype" or "dtype"
        edits[1] = { key, json.encode(dtype) }
        if raw.dtype and raw.torch_dtype then
            edits[2] = { "torch_dtype", json.encode(dtype) }
        end
    end
    if spec.quantised then
        edits[#edits + 1] = { "quantization_config", bnb.config(spec, dtype, skip) }
    end
    return config.edit(view.config, edits)
end

-- ---- planning ------------------------------------------------------------------------------------------

--- Everything written for one item, as parts that stay in one file, and the sink that fills them.
local function item_parts(view, item, spec)
    local why = spec.quantised and why_kept(view.arch, item)
    if not spec.quantised or why then
        local parts, sink = plain_parts(item, spec)
        return parts, sink, why and (REASONS[why] or why)
    end
    local parts, sink = bnb.parts(item, spec)
    return parts, sink, nil
end

local function skip_list(rows)
    local skip, seen = {}, {}
    for _, row in ipairs(rows) do
        local module = row.why and #row.shape == 2 and row.name:match "^(.*)%.weight$"
        if module and not module:find "embed_tokens$" then
            skip[#skip + 1], seen[module] = module, true
        end
    end
    if not seen.lm_head then
        skip[#skip + 1] = "lm_head"
    end
    table.sort(skip)
    return skip
end

local function resolve(spec, model)
    local s = setmetatable({}, { __index = spec })
    s.quantised = spec.format == "int8" or spec.format == "nf4" or spec.format == "fp4"
    s.dtype = s.quantised and (spec.dtype or "f16") or spec.format
    if s.quantised and not (FLOAT[s.dtype]) then
        core.fail("usage", "%s: dtype must be f16, bf16 or f32 for what stays unquantised, not '%s'", spec.path, s.dtype)
    elseif s.format == "int8" and (spec.double_quant or spec.block) then
        core.fail("usage", "%s: int8 has one scale a row; double_quant and block go with nf4 and fp4", spec.path)
    elseif not s.quantised and (spec.double_quant or spec.block) then
        core.fail("usage", "%s: %s has no scales; double_quant and block go with nf4 and fp4", spec.path, s.format)
    end
    if model.kind == "safetensors" then
        core.fail("unsupported", "%s: a checkpoint folder needs a config.json; open the folder, not the file", model.path)
    end
    return s
end

local function title(spec)
    if not spec.quantised then
        return spec.format == "keep" and "as it is" or spec.format
    end
    return ("%s%s%s (bnb)"):format(spec.format, spec.block and ":" .. spec.block or "", spec.double_quant and "+dq" or "")
end

---@param model qmoon.Model
---@param spec {path:string, format:string, double_quant:boolean?, block:integer?, dtype:string?, shard_size:number?, zero_blocks:string?}
---@return qmoon.Output
function folder.plan(model, spec)
    spec = resolve(spec, model)
    local view = folder_of(model, spec)
    local out = { path = spec.path, folder = true, title = title(spec), files = {}, sinks = {}, copies = {}, rows = {},
                  notices = {}, format = spec.format, dtype = spec.dtype }
    local groups, where, parameters = {}, {}, 0
    for _, item in ipairs(model.items) do
        local parts, sink, why = item_parts(view, item, spec)
        local bytes = 0
        for _, p in ipairs(parts) do
            bytes = bytes + p.size
        end
        local count = Model.extent(item.shape)
        parameters = parameters + count
        out.rows[#out.rows + 1] = { name = item.name, type = sink and sink.title or sink and sink.format or parts[1].dtype,
                                    bytes = bytes, count = count, why = why, shape = item.shape, item = item }
        groups[#groups + 1] = parts
        where[item] = { parts = parts, sink = sink }
    end
    local shards = safetensors.shards(groups, spec.shard_size or DEFAULT_SHARD)
    for i, tensors in ipairs(shards) do
        local header, size = safetensors.layout(tensors)
        local file = { name = safetensors.name(i, #shards), size = size, writes = { { 0, header } } }
        for _, t in ipairs(tensors) do
            t.file = i
            if t.bytes then
                file.writes[#file.writes + 1] = { t.at, t.bytes }
            end
        end
        out.files[i] = file
    end
    for item, w in pairs(where) do
        local first = w.parts[1]
        if w.sink then
            bnb.place(w.sink, w.parts)
            out.sinks[item] = w.sink
        else
            out.copies[item] = { file = first.file, at = first.at }
        end
    end
    -- a block of zeros is code 0, level -1, and its scale does not come back as 0 from the second level
    out.zero_blocks_drift = spec.format == "nf4" and spec.double_quant and spec.zero_blocks ~= "exact"
    out.side = side_files(model, view)
    if #shards > 1 then
        table.insert(out.side, 1, { name = "model.safetensors.index.json", bytes = safetensors.index(shards, parameters) })
    end
    out.skip = spec.quantised and skip_list(out.rows) or nil
    table.insert(out.side, 1, { name = "config.json", bytes = config_text(view, spec, out.skip) })
    return out
end

return folder
