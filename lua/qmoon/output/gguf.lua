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

local CHOICES = { "pure", "allow_requantize", "output_tensor_type", "token_embedding_type", "leave_output_tensor", "tensor_types",
                  "profile" }

--- What types.plan wants to know: of the model, and as the spec asks for it.
local function type_options(meta, what, spec, imatrix)
    local options = gguf.model_options(meta, what)
    for _, key in ipairs(CHOICES) do
        options[key] = spec[key]
    end
    options.imatrix = imatrix ~= nil
    return options
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

local function from_folder(model, spec, imatrix)
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
                                                              config = config, profile = spec.profile })
    local meta, notes = gguf.metadata(config, tok, { tensors = list, file_type = between_id, name = spec.name,
                                                     profile = spec.profile })
    if CONVERTED[wanted] then
        return list, plan, meta, notes
    end
    for i, t in ipairs(list) do
        t.type_name = plan[i].type_name
    end
    list = types.sorted(list)
    plan = types.plan(list, spec.format, type_options(meta, config.dir .. "/config.json", spec, imatrix))
    return list, plan, gguf.quantized_metadata(meta, id, { imatrix = imatrix and imatrix:metadata() }), notes, true
end

-- ---- from a GGUF file ---------------------------------------------------------------------------------

local function from_gguf(model, spec, imatrix)
    local list = {}
    for i, item in ipairs(model.items) do
        list[i] = { item = item, name = item.gguf_name, shape = item.shape, type_name = item.type_name }
    end
    list = types.sorted(list)
    local plan, id = types.plan(list, spec.format, type_options(model.gguf.meta, model.path, spec, imatrix))
    local meta = gguf.quantized_metadata(gguf.exact(model.gguf), id, { imatrix = imatrix and imatrix:metadata() })
    return list, plan, meta, {}, true
end

-- ---- importance ----------------------------------------------------------------------------------------

--- Gives every tensor that is quantised its weights, as qmoon.write loads them, and says which go without.
local function weigh(imatrix, list, plan, typed, out)
    local missing = {}
    for i, t in ipairs(list) do
        local sink = out.sinks[t.item]
        if sink and not CONVERTED[typed[i].type_name] then
            local entry, why = imatrix:entry(t.name, t.shape)
            if entry then
                sink.weights = { count = entry.count, load = function() return imatrix:weights(entry) end }
            elseif plan[i].needs_imatrix then
                core.fail("unsupported", "%s: there is nothing about tensor '%s', and %s is garbage without it", imatrix.path, t.name,
                    typed[i].type_name)
            else
                missing[#missing + 1] = why == "size" and t.name .. " (another size)" or t.name
            end
        end
    end
    if #missing > 0 then
        out.notices[#out.notices + 1] = ("%d tensors are not in %s and quantised without: %s"):format(#missing, imatrix.path,
            table.concat(missing, ", ", 1, math.min(3, #missing)) .. (#missing > 3 and ", …" or ""))
    end
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

--- Says how many tensors got another type because of their rows, or fails when that is not wanted.
local function check_fallbacks(out, list, plan, spec)
    local names = {}
    for i, t in ipairs(list) do
        if plan[i].reason and plan[i].reason:find "^fallback" then
            names[#names + 1] = t.name
        end
    end
    if #names == 0 then
        return
    elseif spec.no_fallback then
        core.fail("unsupported", "%s: %s does not divide the rows of %d tensors: %s", spec.path, types.ftype(spec.format), #names,
            table.concat(names, ", ", 1, math.min(4, #names)) .. (#names > 4 and ", …" or ""))
    end
    out.notices[#out.notices + 1] = ("%d tensors have rows that %s does not divide and got another type"):format(#names,
        types.ftype(spec.format))
end

--- spec: path, format; pre and name as gguf.metadata and the tokenizer take them; pure, allow_requantize, profile,
--- leave_output_tensor, output_tensor_type, token_embedding_type, tensor_types as types.plan takes them; no_fallback;
--- imatrix = path of an importance matrix, or what imatrix.read gave.
---@param model qmoon.Model
---@param spec table
---@return qmoon.Output
function output.plan(model, spec)
    if spec.double_quant or spec.block then
        core.fail("usage", "%s: block and double_quant go with nf4 and fp4 folders; GGUF types have blocks of their own", spec.path)
    elseif model.kind == "safetensors" then
        core.fail("unsupported", "%s: a GGUF file needs the model's config and tokenizer; open the folder", model.path)
    end
    local imatrix = spec.imatrix
    if type(imatrix) == "string" then
        imatrix = require("qmoon.imatrix").read(imatrix)
    end
    local list, plan, meta, notes, ggml = (model.kind == "gguf" and from_gguf or from_folder)(model, spec, imatrix)
    local typed = gguf.typed(list, plan)
    local header, offsets, size = gguf.header(meta, typed, { ggml_dims = ggml })
    local out = { path = spec.path, folder = false, title = title(spec.format, typed), files = { { size = size, writes = { { 0, header } } } },
                  sinks = {}, copies = {}, side = {}, rows = {}, notices = notes or {}, format = spec.format,
                  round = spec.round or (model.adapters and "f16") or "none" }
    for i, t in ipairs(list) do
        place(out, t, typed[i], offsets[i])
        out.rows[i] = { name = t.name, type = typed[i].type_name, bytes = typed[i].size, count = (Model.extent(t.shape)),
                        shape = t.shape, item = t.item, why = why_kept(typed[i].type_name, plan[i].reason) }
    end
    check_fallbacks(out, list, plan, spec)
    if imatrix then
        weigh(imatrix, list, plan, typed, out)
    end
    return out
end

return output
