--- Checkpoint folders: 16- and 32-bit safetensors, and bitsandbytes' int8, nf4 and fp4 as transformers
-- saves and loads them.  Source of the layout: transformers and bitsandbytes (see docs/formats.md).

local core = require "qmoon.core"
local arch = require "qmoon.arch"
local config = require "qmoon.config"
local files = require "qmoon.files"
local json = require "qmoon.json"
local Model = require "qmoon.model"
local assemble = require "qmoon.output.assemble"
local bnb = require "qmoon.output.bnb"
local description = require "qmoon.output.description"
local planes = require "qmoon.output.planes"

local folder = {}

-- keep: floats as they are in the source.  same: quantised as the source is, tensor by tensor.
folder.formats = { f16 = true, bf16 = true, f32 = true, keep = true, int8 = true, nf4 = true, fp4 = true, same = true }

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
    local g = require("qmoon.gguf_model").read(model.gguf, model.path, { pre = spec.pre, items = model.items })
    return { arch = g.arch, config = g.config, raw = core.json_decode(g.config), files = g.files, items = g.items,
             notices = g.notices }
end

local function side_files(model, view)
    local side = {}
    for _, f in ipairs(view.files or {}) do
        if f.name ~= "config.json" then
            side[#side + 1] = { name = f.name, bytes = f.text }
        end
    end
    if view.files or not model.path then -- a model of sizes only has no folder
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

-- Integers, booleans and the like are carried over; they are no weights.
local function plain_parts(item, dtype)
    local source = item.source
    if not source.format and source.dtype:find "^f" then
        core.fail("unsupported", "%s: tensor '%s' is %s, which is not converted; only f32, f16 and bf16 are",
            source.file:path(), source.name, source.dtype)
    elseif not source.format and not torch_name(source.dtype) then
        core.fail("unsupported", "%s: tensor '%s' is %s, which this program cannot decode", source.file:path(), source.name,
            source.dtype)
    end
    return assemble.plain(item, dtype)
end

--- Why a tensor stays as it is, or nil when it is quantised: transformers quantises the weights of linear layers,
--- and never the output head. Stacks of experts, which bitsandbytes does not know, are rows for the other formats.
local function why_kept(a, item, own)
    local role = a and arch.role(a, item.name)
    if role == "experts" then
        return not own and role or planes.misfit(own, item.shape[#item.shape])
    elseif not item.name:find "%.weight$" or #item.shape < 2 then
        return #item.shape < 2 and (role == "norm" and "norm" or role == "bias" and "bias" or "1-D") or "not a weight"
    elseif #item.shape > 2 then
        return ("%d-D"):format(#item.shape)
    elseif not item.source.format then
        return item.source.dtype
    end
    if role and role ~= "linear" then
        return role
    elseif role then
        return own and planes.misfit(own, item.shape[2])
    end
    local module = item.name:gsub("%.weight$", "")
    if module:find "embed" or module:find "wte$" or module:find "wpe$" then
        return "embedding"
    elseif module:find "lm_head$" or module == "output" then
        return "output"
    elseif module:find "norm" or module:find "ln_" then
        return "norm"
    end
    return own and planes.misfit(own, item.shape[2])
end

local REASONS = { embedding = "embedding", output = "output head", norm = "norm", bias = "bias", experts = "expert stacks" }

--- Says how much of the model its stacks of experts are, which bitsandbytes does not quantise; and who can load
--- experts that are quantised one by one.
local function note_experts(out, a)
    local tensors, stacked, total, single = 0, 0, 0, false
    for _, row in ipairs(out.rows) do
        local module = a and arch.row(a, row.name)
        total = total + row.count
        single = single or module and module.stacked and not row.why
        if row.why == REASONS.experts then
            tensors, stacked = tensors + 1, stacked + row.count
        end
    end
    if single then
        out.notices[#out.notices + 1] = "experts are quantised one by one, as transformers 4 loads them; transformers 5 puts them in "
            .. "stacks, which it cannot do with quantised ones"
    end
    if tensors > 0 then
        out.notices[#out.notices + 1] = ("%d stacks of experts stay as they are, %.0f %% of the parameters: bitsandbytes quantises "
            .. "matrices; a checkpoint with a tensor for each expert (transformers 4) is quantised"):format(tensors,
            100 * stacked / total)
    end
end

-- ---- config ---------------------------------------------------------------------------------------------

--- quantization_config of the source for a merge that keeps it, with the modules that are in 16 bit now named.
local function kept_quantization(raw, skip)
    local q = raw.quantization_config
    if type(q.llm_int8_skip_modules) ~= "table" then
        return nil
    end
    local all, seen = {}, {}
    for _, list in ipairs { q.llm_int8_skip_modules, skip } do
        for _, name in ipairs(list) do
            if not seen[name] then
                all[#all + 1], seen[name] = name, true
            end
        end
    end
    return json.encode(json.array(all))
end

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
    if spec.own then
        edits[#edits + 1] = { "quantization_config", json.encode(json.object { { "quant_method", "qmoon" },
                                                                               { "format", spec.own.label } }, { indent = 2 }) }
    elseif spec.same then
        local modules = kept_quantization(raw, skip)
        local text = config.member(view.config, "quantization_config")
        edits[#edits + 1] = modules and { "quantization_config",
                                          config.edit(text, { { "llm_int8_skip_modules", modules } }) } or nil
    else
        edits[#edits + 1] = { "quantization_config", spec.quantised and bnb.config(spec, dtype, skip) or nil }
    end
    return config.edit(view.config, edits)
end

-- ---- planning ------------------------------------------------------------------------------------------

--- How a weight is quantised when it is quantised as in the source.
local function same_spec(item)
    local s = item.source
    return { format = s.format, block = s.block, double_quant = s.double_quant, dtype = s.dtype }
end

--- Everything written for one item, as parts that stay in one file, the sink that fills them, and why it is not
--- quantised.
local function item_parts(view, item, spec)
    local why = spec.quantised and (why_kept(view.arch, item, spec.own)
        or spec.same and not item.source.quantised and "not quantised in the source")
    if spec.same and item.source.quantised and #item.actions == 0 then
        return assemble.carried(item)
    elseif spec.own and not why then
        local own = setmetatable({ block = spec.same and item.source.block or spec.own.block }, { __index = spec.own })
        local parts, sink = planes.parts(item, own, spec)
        return parts, sink, nil, #item.shape > 2 and "[E x out, in]" or nil
    elseif spec.same and item.source.quantised then
        return bnb.parts(item, same_spec(item))
    end
    if not spec.quantised or why then
        local parts, sink = plain_parts(item, spec.dtype)
        return parts, sink, why and (REASONS[why] or why)
    end
    return bnb.parts(item, spec)
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
    s.same = spec.format == "same"
    if s.same and not model.quantised then
        core.fail("usage", "%s: its weights are not quantised, so there is no quantisation to keep; name a format",
            model.path)
    end
    for _, item in ipairs(s.same and model.items or {}) do
        if item.source.own and not s.own then
            s.own = planes.spec(item.source.own, { block = item.source.block, double_quant = item.source.double_quant })
        end
    end
    s.quantised = assemble.check(s) or s.same
    s.dtype = s.same and "keep" or s.quantised and (spec.dtype or s.own and "keep" or "f16") or spec.format
    return s
end

local function title(spec, model)
    if spec.same and not spec.own then
        return model.quantised .. " (bnb)"
    elseif not spec.quantised then
        return spec.format == "keep" and "as it is" or spec.format
    end
    return assemble.title(spec) .. (spec.own and "" or " (bnb)")
end

---@param model qmoon.Model
---@param spec {path:string, format:string, double_quant:boolean?, block:integer?, dtype:string?, shard_size:number?, zero_blocks:string?, rounding:string?}
---@return qmoon.Output
function folder.plan(model, spec)
    spec = resolve(spec, model)
    local view = folder_of(model, spec)
    local out = { path = spec.path, folder = true, title = title(spec, model), files = {}, sinks = {}, copies = {}, rows = {},
                  side = {}, notices = view.notices or {}, format = spec.format, dtype = spec.dtype }
    assemble.fill(out, view.items or model.items, spec.shard_size, function(item)
        return item_parts(view, item, spec)
    end)
    -- a block of zeros is code 0, level -1, and its scale does not come back as 0 from the second level
    local nf4_dq = spec.same and model.quantised == "nf4+dq" or spec.format == "nf4" and spec.double_quant
    out.zero_blocks_drift = nf4_dq and spec.zero_blocks ~= "exact" and spec.rounding ~= "nearest"
    if spec.own then
        out.notices[#out.notices + 1] = "weights in this format are read by this program alone; see quantization.json"
        out.side[1] = description.file(out, spec)
    elseif spec.quantised then
        note_experts(out, view.arch)
    end
    out.skip = spec.quantised and not spec.own and skip_list(out.rows) or nil
    table.insert(out.side, 1, { name = "config.json", bytes = config_text(view, spec, out.skip) })
    for _, s in ipairs(side_files(model, view)) do
        out.side[#out.side + 1] = s
    end
    return out
end

return folder
