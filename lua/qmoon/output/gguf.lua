--- GGUF files.  Of a checkpoint folder: as llama.cpp's converter writes it, and for quantised types as
-- llama-quantize goes on from there, in one step.  Of a GGUF file: as llama-quantize writes it.

local core = require "qmoon.core"
local gguf = require "qmoon.gguf"
local gguf_tensors = require "qmoon.gguf_tensors"
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

--- Rows of metadata that a person gave take the place of those that are there, at the end, as llama-quantize has it.
local function overridden(rows, overrides)
    local given, list = {}, {}
    for _, r in ipairs(overrides or {}) do
        given[r.key] = true
    end
    for _, r in ipairs(rows) do
        list[#list + 1] = not given[r.key] and r or nil
    end
    for _, r in ipairs(overrides or {}) do
        list[#list + 1] = r
    end
    return list
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

--- The converter, which makes f32, f16 and bf16 of a folder, has none of llama-quantize's choices.
local function refuse_choices(spec)
    for _, key in ipairs { "imatrix", "output_tensor_type", "token_embedding_type", "leave_output_tensor",
                           "tensor_types" } do
        if spec[key] then
            core.fail("usage", "%s: %s goes with quantised types, not %s", spec.path, key, spec.format)
        end
    end
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

--- The tokenizer's metadata takes longer to read than all else; several GGUF outputs of one model share it.
local function tokenizer_of(model, spec)
    local config = model.config
    local key = tostring(spec.pre) .. "/" .. tostring(spec.profile)
    model.tokenizers = model.tokenizers or {}
    model.tokenizers[key] = model.tokenizers[key]
        or require("qmoon.tokenizer").read(config.dir, { pre = spec.pre, vocab_size = config.fields.vocab_size, config = config,
                                                         profile = spec.profile })
    return model.tokenizers[key]
end

local function from_folder(model, spec, imatrix)
    local config = model.config
    local a = config.arch
    if not a then
        gguf_tensors.unknown_architecture(model)
    end
    local tok = tokenizer_of(model, spec)
    local list, notes = gguf_tensors.of(model, a, #tok.tokens)
    local wanted, id = types.ftype(spec.format)
    local between = CONVERTED[wanted] and wanted or float_between(model, spec)
    local plan, between_id = types.convert(list, between:lower(), spec.profile)
    local meta, more = gguf.metadata(config, tok, { tensors = list, file_type = between_id, name = spec.name,
                                                    profile = spec.profile })
    for _, note in ipairs(more) do
        notes[#notes + 1] = note
    end
    meta = overridden(meta, spec.override_kv)
    if CONVERTED[wanted] then
        refuse_choices(spec)
        return list, plan, meta, notes
    end
    for i, t in ipairs(list) do
        t.type_name = plan[i].type_name
    end
    list = types.sorted(list)
    plan = types.plan(list, spec.format, type_options(meta, config.dir .. "/config.json", spec, imatrix))
    return list, plan, gguf.quantized_metadata(meta, id, { imatrix = imatrix and imatrix:metadata(), overrides = spec.override_kv }),
        notes, true
end

-- ---- from a GGUF file ---------------------------------------------------------------------------------

--- The number of the part that a tensor's file is.
local function part_numbers(model)
    local number = {}
    for i, path in ipairs(model.gguf.parts) do
        number[path] = i
    end
    return number
end

local function from_gguf(model, spec, imatrix)
    local list, number = {}, part_numbers(model)
    for i, item in ipairs(model.items) do
        list[i] = { name = item.gguf_name, shape = item.shape, type_name = item.type_name, parts = { { item = item } },
                    file = spec.keep_split and number[item.source.file:path()] or nil }
    end
    list = spec.keep_split and list or types.sorted(list)
    local options = type_options(overridden(model.gguf.meta, spec.override_kv), model.path, spec, imatrix)
    options.in_file_order = spec.keep_split
    local plan, id = types.plan(list, spec.format, options)
    local meta = gguf.quantized_metadata(gguf.exact(model.gguf), id, { imatrix = imatrix and imatrix:metadata(),
                                                                       overrides = spec.override_kv })
    return list, plan, meta, {}, true
end

-- ---- importance ----------------------------------------------------------------------------------------

--- Gives every tensor that is quantised its importances, as qmoon.write loads them, and says which go without.
local function weigh(imatrix, list, plan, typed, out)
    local missing = {}
    for i, t in ipairs(list) do
        local sinks = t.sinks or {}
        if sinks[1] and not CONVERTED[typed[i].type_name] then
            local entry, why = imatrix:entry(t.name, t.shape)
            if entry then
                for expert, sink in ipairs(sinks) do
                    local matrix = #sinks > 1 and expert - 1 or nil
                    sink.importance = { count = entry.count / #sinks,
                                        load = function() return imatrix:values(entry, matrix) end }
                end
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

--- The rows of an item that make a part of a tensor; nil when it is all of them, as they are.
local function slice_of(t, part, heads)
    local rows, cols = t.shape[#t.shape - 1] or 1, t.shape[#t.shape]
    if part.from then
        for _, action in ipairs(part.item.actions) do
            if action.kind ~= "replace" then
                core.fail("unsupported", "%s: tensor '%s' goes to GGUF in parts, which cannot be merged into; merge into a "
                    .. "folder first and convert that", part.item.source.file:path(), part.item.name)
            end
        end
        return { from = part.from, rows = rows, cols = cols }
    end
    return heads and #t.shape == 1 and { from = 0, rows = cols, cols = 1 } or nil
end

local function add_sink(out, item, sink)
    local list = out.sinks[item] or {}
    list[#list + 1] = sink
    out.sinks[item] = list
end

--- Where the values of tensor t come from and go to.
local function place(out, t, typed, at, fields)
    local row, each = t.row or {}, typed.size / math.max(1, #t.parts)
    local first = t.parts[1]
    if t.values then
        table.insert(out.files[1].writes, { at, core.pack_array("f", t.values) })
    elseif first.item.type_name == typed.type_name and #first.item.actions == 0 then
        out.copies[first.item] = { file = t.file or 1, at = at }
    elseif not first.item.source.format then
        core.fail("unsupported", "%s: tensor '%s' is %s, which this program cannot decode", first.item.source.file:path(),
            first.item.name, first.item.source.dtype)
    else
        local heads = row.heads and fields[row.heads]
        if heads and t.shape[1] % (2 * heads) ~= 0 then
            core.fail("corrupt", "%s: tensor '%s' has %d rows, which are no %d heads of two halves (config.json: %s)",
                first.item.source.file:path(), first.item.name, t.shape[1], heads, row.heads)
        end
        t.sinks = {} -- one for each part
        for i, part in ipairs(t.parts) do
            t.sinks[i] = { file = t.file or 1, format = format_of[typed.type_name], at = { at + (i - 1) * each }, tensor = t,
                           add = row.add, interleave_heads = heads, slice = slice_of(t, part, heads) }
            add_sink(out, part.item, t.sinks[i])
        end
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

--- One file with all tensors; or, split as the source is, one for each of its parts.
---@return table[] files, integer[] offsets of the tensors in theirs
local function files_of(model, spec, list, typed, meta, ggml)
    if not spec.keep_split then
        local header, offsets, size = gguf.header(meta, typed, { ggml_dims = ggml })
        return { { size = size, writes = { { 0, header } } } }, offsets
    end
    local split = require "qmoon.gguf_split"
    local n, stem, files, offsets = #model.gguf.parts, spec.path:gsub("%.gguf$", ""), {}, {}
    for part = 1, n do
        local mine, numbers = {}, {}
        for i, t in ipairs(typed) do
            if list[i].file == part then
                mine[#mine + 1], numbers[#numbers + 1] = t, i
            end
        end
        local rows = part == 1 and meta or {}
        local header, at, size = gguf.header(n > 1 and split.part_keys(rows, part, n, #list) or rows, mine, { ggml_dims = ggml })
        for k, i in ipairs(numbers) do
            offsets[i] = at[k]
        end
        files[part] = { path = split.name(stem, part, n), size = size, writes = { { 0, header } } }
    end
    return files, offsets
end

--- spec: path, format; pre and name as gguf.metadata and the tokenizer take them; pure, allow_requantize, profile,
--- leave_output_tensor, output_tensor_type, token_embedding_type, tensor_types as types.plan takes them; no_fallback;
--- override_kv = rows of metadata; keep_split = in as many parts as the source, named after path;
--- imatrix = path of an importance matrix, or what imatrix.read gave.
---@param model qmoon.Model
---@param spec table
---@return qmoon.Output
function output.plan(model, spec)
    if spec.double_quant or spec.block then
        core.fail("usage", "%s: block and double_quant go with nf4 and fp4 folders; GGUF types have blocks of their own", spec.path)
    elseif model.kind == "file" then
        core.fail("unsupported", "%s: a GGUF file needs the model's config and tokenizer; open the folder", model.path)
    elseif spec.keep_split and model.kind ~= "gguf" then
        core.fail("usage", "%s: keep_split goes with GGUF files in parts; cut the file afterwards: qmoon gguf split", spec.path)
    end
    local imatrix = spec.imatrix
    if type(imatrix) == "string" then
        imatrix = require("qmoon.imatrix").read(imatrix)
    end
    local list, plan, meta, notes, ggml = (model.kind == "gguf" and from_gguf or from_folder)(model, spec, imatrix)
    local typed = gguf.typed(list, plan)
    local files, offsets = files_of(model, spec, list, typed, meta, ggml)
    local out = { path = spec.path, folder = false, title = title(spec.format, typed), files = files,
                  sinks = {}, copies = {}, side = {}, rows = {}, notices = notes or {}, format = spec.format,
                  round = spec.round or (model.adapters and "f16") or "none" }
    for i, t in ipairs(list) do
        place(out, t, typed[i], offsets[i], model.config and model.config.fields)
        out.rows[i] = { name = t.name, type = typed[i].type_name, bytes = typed[i].size, count = (Model.extent(t.shape)),
                        shape = t.shape, item = t, why = why_kept(typed[i].type_name, plan[i].reason) }
    end
    check_fallbacks(out, list, plan, spec)
    if imatrix then
        weigh(imatrix, list, plan, typed, out)
    end
    return out
end

return output
