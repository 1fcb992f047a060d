--- GGUF files.  Of a checkpoint folder: as llama.cpp's converter writes it, and for quantised types as
-- llama-quantize goes on from there, in one step.  Of a GGUF file: as llama-quantize writes it.

local core = require "qmoon.core"
local arch = require "qmoon.arch"
local gguf = require "qmoon.gguf"
local types = require "qmoon.gguf_types"
local Model = require "qmoon.model"

local output = {}

local format_of = {} -- "Q4_0" -> "q4_0"
for _, f in ipairs(core.formats()) do
    if f.gguf_name then
        format_of[f.gguf_name] = f.name
    end
end

local CONVERTED = { F32 = true, F16 = true, BF16 = true }
local UPPER = { f32 = "F32", f16 = "F16", bf16 = "BF16" }

-- ---- from a checkpoint folder ----------------------------------------------------------------------

local function unmapped(model, a, names)
    core.fail("unsupported", "%s: GGUF's %s has no name for %d tensor%s, the first is '%s'", model.path, a.name, #names,
        #names > 1 and "s" or "", names[1])
end

--- Every item with its GGUF name; all tensors of the architecture must be there, and none besides.
local function mapped(model, a)
    local list, unknown, seen = {}, {}, {}
    for _, item in ipairs(model.items) do
        local name = arch.to_gguf(a, item.name)
        if name then
            list[#list + 1] = { item = item, name = name, hf = item.name, shape = item.shape,
                                file = not model.adapters and item.source.file:path() or nil }
            seen[item.name] = true
        else
            unknown[#unknown + 1] = item.name
        end
    end
    if #unknown > 0 then
        unmapped(model, a, unknown)
    end
    for _, name in ipairs(arch.required(a, model.config.fields)) do
        if not seen[name] then
            core.fail("corrupt", "%s: tensor '%s' is missing; config.json says that a %s model has it", model.path, name, a.name)
        end
    end
    return list
end

--- The float type of the GGUF file that stands, unwritten, between folder and quantised file.
local function float_between(model, spec)
    local dtype = spec.round or (model.adapters and "f16")
    if dtype then
        return UPPER[dtype]
    end
    for _, item in ipairs(model.items) do
        if #item.shape > 1 then
            return UPPER[item.source.dtype] or "F32"
        end
    end
    return "F32"
end

local function from_folder(model, spec)
    local config = model.config
    local a = config.arch
    if not a then
        core.fail("unsupported", "%s: architecture '%s' is not one this program can write as GGUF; folders (int8, nf4, fp4, f16) can "
            .. "still be written", model.path, tostring(config.fields.model_type))
    end
    local list = gguf.converter_order(mapped(model, a))
    local wanted, id = types.ftype(spec.format)
    local between = CONVERTED[wanted] and wanted or float_between(model, spec)
    local plan, between_id = types.convert(list, between:lower())
    local tok = require("qmoon.tokenizer").read(config.dir, { pre = spec.pre, vocab_size = config.fields.vocab_size,
                                                              config = config })
    local meta, notes = gguf.metadata(config, tok, { tensors = list, file_type = between_id, name = spec.name })
    if CONVERTED[wanted] then
        return list, plan, meta, notes
    end
    for i, t in ipairs(list) do
        t.type_name = plan[i].type_name
    end
    list = types.sorted(list)
    local options = gguf.model_options(meta, config.dir .. "/config.json")
    options.pure, options.allow_requantize = spec.pure, spec.allow_requantize
    plan = types.plan(list, spec.format, options)
    return list, plan, gguf.quantized_metadata(meta, id), notes, true
end

-- ---- from a GGUF file ---------------------------------------------------------------------------------

local function from_gguf(model, spec)
    local list = {}
    for i, item in ipairs(model.items) do
        list[i] = { item = item, name = item.gguf_name, shape = item.shape, type_name = item.type_name }
    end
    list = types.sorted(list)
    local options = gguf.model_options(model.gguf.meta, model.path)
    options.pure, options.allow_requantize = spec.pure, spec.allow_requantize
    local plan, id = types.plan(list, spec.format, options)
    return list, plan, gguf.quantized_metadata(gguf.exact(model.gguf), id), {}, true
end

-- ---- the plan ------------------------------------------------------------------------------------------

local REASONS = { ["kept: 1-D"] = "norms and biases" }

local function why_kept(type_name, reason)
    if format_of[type_name] and CONVERTED[type_name] then
        return reason and (REASONS[reason] or reason:gsub("^kept: ", "")) or nil
    end
end

local function place(out, t, typed, at)
    local item = t.item
    local same = item.type_name == typed.type_name and #item.actions == 0
    if same then
        out.copies[item] = { file = 1, at = at }
    else
        out.sinks[item] = { file = 1, format = format_of[typed.type_name], at = { at } }
    end
end

local function title(wanted, typed)
    local count, other = {}, {}
    local _, _, default = types.ftype(wanted)
    for _, t in ipairs(typed) do
        if t.type_name ~= default and not CONVERTED[t.type_name] and not count[t.type_name] then
            count[t.type_name] = true
            other[#other + 1] = t.type_name
        end
    end
    table.sort(other)
    return types.ftype(wanted) .. (#other > 0 and (" (+%s)"):format(table.concat(other, ", ")) or "")
end

---@param model qmoon.Model
---@param spec {path:string, format:string, pure:boolean?, allow_requantize:boolean?, pre:string?, name:string?}
---@return qmoon.Output
function output.plan(model, spec)
    if spec.double_quant or spec.block then
        core.fail("usage", "%s: block and double_quant go with nf4 and fp4 folders; GGUF types have blocks of their own", spec.path)
    elseif model.kind == "safetensors" then
        core.fail("unsupported", "%s: a GGUF file needs the model's config and tokenizer; open the folder", model.path)
    end
    local list, plan, meta, notes, ggml = (model.kind == "gguf" and from_gguf or from_folder)(model, spec)
    local typed = gguf.typed(list, plan)
    local header, offsets, size = gguf.header(meta, typed, { ggml_dims = ggml })
    local out = { path = spec.path, folder = false, title = title(spec.format, typed), files = { { size = size, writes = { { 0, header } } } },
                  sinks = {}, copies = {}, side = {}, rows = {}, notices = notes or {}, format = spec.format,
                  round = spec.round or (model.adapters and "f16") or "none" }
    local fallbacks = 0
    for i, t in ipairs(list) do
        place(out, t, typed[i], offsets[i])
        local reason = plan[i].reason
        fallbacks = fallbacks + (reason and reason:find "^fallback" and 1 or 0)
        out.rows[i] = { name = t.name, type = typed[i].type_name, bytes = typed[i].size, count = (Model.extent(t.shape)),
                        shape = t.shape, item = t.item, why = why_kept(typed[i].type_name, reason) }
    end
    if fallbacks > 0 then
        out.notices[#out.notices + 1] = ("%d tensors have rows that %s does not divide and got another type"):format(fallbacks,
            types.ftype(spec.format))
    end
    return out
end

return output
