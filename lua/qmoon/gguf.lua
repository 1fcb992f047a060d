--- GGUF files: what goes into the header, in which order, and its bytes.
--
--   | "GGUF" | u32 3 | u64 tensors | u64 pairs | pairs | infos | padding | data |
--
-- Metadata is an ordered list of rows {key, type, value, elem}, as core.gguf reads it and gguf.header writes
-- it: type is u8 … f64, bool, string or array, and then elem is the type of the elements. A row may have
-- `bytes` besides: those of its pair in the file it comes from, written as they are. Two tools set the
-- pattern: convert_hf_to_gguf.py for what is made from a model folder, llama-quantize for what is made from
-- another GGUF file.

local core = require "qmoon.core"
local card = require "qmoon.model_card"
local files = require "qmoon.files"
local profiles = require "qmoon.gguf_profiles"
local tokenizer = require "qmoon.tokenizer"
local types = require "qmoon.gguf_types"

local gguf = {}

local QUANTIZATION_VERSION = 2 -- GGML_QNT_VERSION: how the block formats are laid out
local ALIGNMENT = 32

-- ---- metadata of a model folder -----------------------------------------------------------------

local function row(key, kind, value)
    return { key = key, type = kind, value = value }
end

local function read_text(path)
    if files.exists(path) then
        return files.read(path)
    end
end

local function read_json(path)
    local text = read_text(path)
    return text and core.json_decode(text, path)
end

-- {name in generation_config.json, name under general.sampling, type}
gguf.sampling = {
    { "sequence", "sequence", "string" }, { "top_k", "top_k", "i32" }, { "top_p", "top_p", "f32" },
    { "min_p", "min_p", "f32" }, { "xtc_probability", "xtc_probability", "f32" },
    { "xtc_threshold", "xtc_threshold", "f32" }, { "temperature", "temp", "f32" },
    { "penalty_last_n", "penalty_last_n", "i32" }, { "repetition_penalty", "penalty_repeat", "f32" },
    { "mirostat", "mirostat", "i32" }, { "mirostat_tau", "mirostat_tau", "f32" },
    { "mirostat_eta", "mirostat_eta", "f32" },
}

local function add_sampling(rows, dir)
    local settings = read_json(dir .. "/generation_config.json") or {}
    settings.repetition_penalty = settings.penalty_repeat or settings.repetition_penalty
    for _, s in ipairs(gguf.sampling) do
        local value = settings[s[1]]
        if value ~= nil and value ~= core.null then
            rows[#rows + 1] = row("general.sampling." .. s[2], s[3], value)
        end
    end
end

local GENERAL = {
    "name", "author", "version", "organization", "finetune", "basename", "description", "size_label",
    "license", "license.name", "license.link", "source.url", "source.doi", "source.uuid", "source.repo_url",
}

--- base_model or dataset: general.base_model.count, general.base_model.0.name, …
local function add_references(rows, what, list)
    if not list then
        return
    end
    rows[#rows + 1] = row("general." .. what .. ".count", "u32", #list)
    for i, entry in ipairs(list) do
        for _, field in ipairs { "name", "version", "organization", "repo_url" } do
            if entry[field] and entry[field] ~= "" then
                rows[#rows + 1] = row(("general.%s.%d.%s"):format(what, i - 1, field), "string", entry[field])
            end
        end
    end
end

local function add_general(rows, general)
    for _, key in ipairs(GENERAL) do
        if general[key] and general[key] ~= "" then
            rows[#rows + 1] = row("general." .. key, "string", general[key])
        end
    end
    add_references(rows, "base_model", general.base_model)
    add_references(rows, "dataset", general.dataset)
    for _, key in ipairs { "tags", "languages" } do
        if #general[key] > 0 then
            local list = general[key]
            rows[#rows + 1] = { key = "general." .. key, type = "array", elem = "string", value = list }
        end
    end
end

--- Parameters in all, and the size label: with experts "8x7B", E times what one expert and the rest have.
local function count(tensors)
    local total, active, experts, stacks = 0, 0, 0, 0
    for _, t in ipairs(tensors) do
        local n = 1
        for _, d in ipairs(t.shape) do
            n = n * d
        end
        total = total + n
        if t.name:find("_exps.", 1, true) and #t.shape >= 3 then
            n, experts, stacks = n / t.shape[1], experts + t.shape[1], stacks + 1
        end
        active = active + n
    end
    if stacks > 0 then
        return total, ("%dx%s"):format(math.floor(experts / stacks), card.size_label(active))
    end
    return total, total > 0 and card.size_label(total) or nil
end

-- sentence-transformers' name of a pooling mode, llama.cpp's number
local POOLING = {
    { "pooling_mode_mean_tokens", 1 }, { "pooling_mode_cls_token", 2 }, { "pooling_mode_lasttoken", 3 },
}

--- Embedding models say in modules.json how they make one vector of many.
local function pooling_type(dir)
    for _, module in ipairs(read_json(dir .. "/modules.json") or {}) do
        if type(module.type) == "string" and module.type:find "Pooling$" then
            local path = ("%s/%s/config.json"):format(dir, module.path)
            local pooling = read_json(path) or {}
            for _, mode in ipairs(POOLING) do
                if pooling[mode[1]] == true then
                    return mode[2]
                end
            end
            core.fail("unsupported", "%s: GGUF knows pooling by mean, cls and last token only", path)
        end
    end
end

local function field_of(fields, path)
    local value = fields
    for name in path:gmatch "[^.]+" do
        value = type(value) == "table" and value[name] or nil
    end
    return value
end

--- How a model's rope scaling is said in GGUF: {type, how = "keys" or "tensor"}; nil when it has none.
local function scaling_of(config)
    local a, scaling = config.arch, config.fields.rope_scaling
    local how = scaling and a.rope_scaling[scaling.rope_type]
    if scaling and not how then
        core.fail("unsupported", "%s: rope scaling '%s' cannot be expressed in a GGUF file of %s",
            config.dir or "config.json", tostring(scaling.rope_type), a.name)
    end
    return scaling and { type = scaling.rope_type, how = how }
end

--- Whether a row of an architecture's metadata goes with this model and this profile.
local function applies(r, scaling, profile)
    local fits = not r.only or scaling and r.only == scaling.type
    local is_key = not r[3]:find "^rope_scaling%." or scaling and scaling.how == "keys"
    return fits and is_key and (not r.profile or profile[r.profile])
end

--- An architecture's rows of metadata in the order that a profile has them in.
local function in_order(a, profile)
    local list = { unpack(a.metadata) }
    if profile.order and not a.own_order then
        local at = {}
        for i, r in ipairs(list) do
            at[r] = profile.order[r[1]] or 1000 + i
        end
        table.sort(list, function(x, y) return at[x] < at[y] end)
    end
    return list
end

--- The architecture's rows; with `first`, those that come before general.type.
local function add_architecture(rows, config, extra, profile, first)
    local a, scaling = config.arch, scaling_of(config)
    for _, r in ipairs(in_order(a, profile)) do
        local value = extra[r[3]]
        if value == nil then
            value = field_of(config.fields, r[3])
        end
        if value ~= nil and (r.first or false) == first and applies(r, scaling, profile) then
            rows[#rows + 1] = row(r[1]:find "^general%." and r[1] or a.name .. "." .. r[1], r[2], value)
        end
    end
end

-- Least and greatest whole number of a type.
local WHOLE = { u8 = { 0, 255 }, i8 = { -128, 127 }, u16 = { 0, 65535 }, i16 = { -32768, 32767 }, u32 = { 0, 2 ^ 32 - 1 },
                i32 = { -2 ^ 31, 2 ^ 31 - 1 }, u64 = { 0, 2 ^ 53 }, i64 = { -2 ^ 53, 2 ^ 53 } }

--- Whether metadata of a type can hold a value of Lua's.
---@param kind string
---@param value any
---@return boolean
function gguf.holds(kind, value)
    if WHOLE[kind] then
        return type(value) == "number" and value % 1 == 0 and value >= WHOLE[kind][1] and value <= WHOLE[kind][2]
    elseif kind == "f32" or kind == "f64" then
        return type(value) == "number" and value == value
    elseif kind == "bool" then
        return type(value) == "boolean"
    end
    return type(value) == "string"
end

--- Values come from files that anybody may have written; each must be one that its key can hold.
local function check_rows(rows, dir)
    for _, r in ipairs(rows) do
        local list = r.type == "array" and r.value or { r.value }
        for i = 1, r.type == "array" and #list or 1 do
            if not gguf.holds(r.elem or r.type, list[i]) then
                core.fail("corrupt", "%s: '%s' would be %s, which is no %s; config.json or a file of the tokenizer is damaged", dir,
                    r.key, type(list[i]) == "table" and "a list" or tostring(list[i]), r.elem or r.type)
            end
        end
    end
    return rows
end

local function append(rows, more)
    for _, r in ipairs(more) do
        rows[#rows + 1] = r
    end
end

--- The metadata of a GGUF file made from a model folder, in the converter's order.
---
--- options: tensors = {name = GGUF name, shape} of the whole file, file_type = id, name = instead of the
--- folder's, folder = name to guess from instead of the folder's own, profile.
---@param config table from config.read
---@param tok table from tokenizer.read
---@param options table
---@return table[] rows
---@return string[] notes what was found and could not be carried over
function gguf.metadata(config, tok, options)
    local a = config.arch
    if not a then
        local class = (config.fields.architectures or {})[1] or config.fields.model_type
        core.fail("unsupported", "%s: architecture '%s' is not one this program can write as GGUF",
            config.dir,
            tostring(class))
    end
    local parameters, size_label = count(options.tensors)
    local general, notes = card.general {
        card = read_text(config.dir .. "/README.md"), name_or_path = config.fields._name_or_path,
        folder = options.folder or core.realpath(config.dir):match "[^/]*$",
        parameters = parameters, name = options.name,
    }
    general.size_label = general.size_label or size_label

    local profile = profiles.named(options.profile)
    local extra = { file_type = options.file_type, pooling_type = pooling_type(config.dir) }
    local rows = { row("general.architecture", "string", a.name) }
    add_architecture(rows, config, extra, profile, true)
    rows[#rows + 1] = row("general.type", "string", "model")
    if profile.sampling then
        add_sampling(rows, config.dir)
    end
    add_general(rows, general)
    add_architecture(rows, config, extra, profile, false)
    rows[#rows + 1] = row("general.quantization_version", "u32", QUANTIZATION_VERSION)
    append(rows, tokenizer.metadata(tok))
    append(notes, tok.notes or {})
    return check_rows(rows, config.dir), notes
end

--- Tensors in the converter's order: part file by part file, by name in the checkpoint.
---@param tensors table[] {hf = name in the checkpoint, file = part or nil}
---@return table[] sorted
function gguf.converter_order(tensors)
    local list = {}
    append(list, tensors)
    table.sort(list, function(a, b)
        if (a.file or "") ~= (b.file or "") then
            return (a.file or "") < (b.file or "")
        end
        return a.hf < b.hf
    end)
    return list
end

-- ---- metadata of a quantised file ---------------------------------------------------------------

local DROPPED = {
    ["general.quantization_version"] = true, ["general.file_type"] = true,
    ["split.no"] = true, ["split.count"] = true, ["split.tensors.count"] = true,
}

local LONGEST = 127 -- bytes llama-quantize has for a string that it adds

local function imatrix_rows(imatrix)
    local rows = { row("quantize.imatrix.file", "string", imatrix.file:sub(1, LONGEST)) }
    if imatrix.dataset then
        rows[2] = row("quantize.imatrix.dataset", "string", imatrix.dataset:sub(1, LONGEST))
    end
    rows[#rows + 1] = row("quantize.imatrix.entries_count", "u32", imatrix.entries)
    if imatrix.chunks and imatrix.chunks > 0 then
        rows[#rows + 1] = row("quantize.imatrix.chunks_count", "u32", imatrix.chunks)
    end
    return rows
end

--- The metadata that llama-quantize writes when it makes a file of another: all of it in order, with the
--- file type, and what says which importance matrix was used, at the end.
---@param meta table[] of the source
---@param file_type integer
---@param options? {imatrix: {file: string, dataset: string?, entries: integer, chunks: integer?}?, overrides: table[]?}
---@return table[] rows
function gguf.quantized_metadata(meta, file_type, options)
    local added = { row("general.quantization_version", "u32", QUANTIZATION_VERSION),
                    row("general.file_type", "u32", file_type) }
    append(added, options and options.overrides or {})
    if options and options.imatrix then
        append(added, imatrix_rows(options.imatrix))
    end
    local rows, replaced = {}, {}
    for _, r in ipairs(added) do
        replaced[r.key] = true
    end
    for _, r in ipairs(meta) do
        if not DROPPED[r.key] and not replaced[r.key] then
            rows[#rows + 1] = r
        end
    end
    append(rows, added)
    return rows
end

--- The metadata of a file with the bytes of every pair, so that what is carried over stays as it is: whole
--- numbers above 2^53 and the bits of a NaN get lost on the way through Lua.
---@param h table from core.gguf
---@return table[] rows
function gguf.exact(h)
    local rows = {}
    for i, r in ipairs(h.meta) do
        rows[i] = { key = r.key, type = r.type, elem = r.elem, value = r.value, bytes = h.file:read(r.at, r.size) }
    end
    return rows
end

--- The value of a key, or nil.
---@param meta table[]
---@param key string
function gguf.get(meta, key)
    for _, r in ipairs(meta) do
        if r.key == key then
            return r.value
        end
    end
end

--- What types.plan wants to know of a model, from its metadata.
---@param meta table[]
---@param what string names the file in messages
---@return {arch: string, n_layer: integer, n_head: integer, n_head_kv: integer, n_expert: integer}
function gguf.model_options(meta, what)
    local arch = gguf.get(meta, "general.architecture")
    local function number(key, absent)
        local value = gguf.get(meta, tostring(arch) .. "." .. key)
        if type(value) == "table" then
            value = value[1] -- one for each layer; the rules look at the first
        end
        if value == nil and absent == nil then
            core.fail("corrupt", "%s: metadata '%s.%s' is missing", what, tostring(arch), key)
        elseif value ~= nil and not gguf.holds("u32", value) then
            core.fail("corrupt", "%s: metadata '%s.%s' is %s, not a whole number", what, tostring(arch), key, tostring(value))
        end
        return value or absent
    end
    local heads = number("attention.head_count")
    return {
        arch = arch, n_layer = number "block_count", n_head = heads,
        n_head_kv = number("attention.head_count_kv", heads), n_expert = number("expert_count", 0),
    }
end

-- ---- bytes ----------------------------------------------------------------------------------------

local KINDS = { u8 = 0, i8 = 1, u16 = 2, i16 = 3, u32 = 4, i32 = 5, f32 = 6, bool = 7, string = 8, array = 9,
                u64 = 10, i64 = 11, f64 = 12 }
local LETTERS = { u8 = "B", i8 = "b", u16 = "H", i16 = "h", u32 = "I", i32 = "i", f32 = "f", string = "s",
                  u64 = "L", i64 = "l", f64 = "d" }

local function bool_byte(value)
    return value and "\1" or "\0"
end

local function value_bytes(r)
    if r.type == "bool" then
        return bool_byte(r.value)
    elseif r.type ~= "array" then
        return core.pack(LETTERS[r.type], r.value)
    end
    local head = core.pack("IL", KINDS[r.elem], #r.value)
    if r.elem ~= "bool" then
        return head .. core.pack_array(LETTERS[r.elem], r.value)
    end
    local bytes = {}
    for i, v in ipairs(r.value) do
        bytes[i] = bool_byte(v)
    end
    return head .. table.concat(bytes)
end

local function pair_bytes(r)
    if r.bytes then
        return r.bytes
    end
    local known = KINDS[r.type] and (r.type ~= "array" or KINDS[r.elem] and r.elem ~= "array")
    if not known then
        core.fail("unsupported", "metadata '%s': GGUF has no type %s of %s", r.key, tostring(r.type),
            tostring(r.elem))
    end
    return core.pack("sI", r.key, KINDS[r.type]) .. value_bytes(r)
end

--- Dimensions in GGUF's order, row length first. The Python writer keeps them all, ggml drops trailing ones.
local function dimensions(shape, ggml)
    local dims = {}
    for i = #shape, 1, -1 do
        dims[#dims + 1] = shape[i]
    end
    while ggml and #dims > 1 and dims[#dims] == 1 do
        dims[#dims] = nil
    end
    if ggml and #dims == 0 then
        dims[1] = 1
    end
    return dims
end

local function info_bytes(t, offset, ggml)
    if #t.name > 63 then
        core.fail("unsupported", "tensor '%s': GGUF names have at most 63 bytes", t.name)
    end
    local dims = dimensions(t.shape, ggml)
    return core.pack("sI", t.name, #dims) .. core.pack_array("L", dims) .. core.pack("IL", t.type, offset)
end

local function once(list, field, what)
    local seen = {}
    for _, item in ipairs(list) do
        if seen[item[field]] then
            core.fail("fail", "%s '%s' occurs twice", what, item[field])
        end
        seen[item[field]] = true
    end
end

local function padded(n, alignment)
    return math.ceil(n / alignment) * alignment
end

--- The bytes before the data, and where everything goes.
---@param metadata table[] rows
---@param tensors table[] {name, type = ggml id, shape = torch order, size = bytes}, in file order
---@param options? {ggml_dims: boolean?} drop trailing ones of shapes, as llama-quantize does
---@return string header padded up to the data
---@return integer[] offsets of each tensor from the start of the file
---@return integer size of the whole file, the last tensor's padding included
function gguf.header(metadata, tensors, options)
    local alignment = gguf.get(metadata, "general.alignment") or ALIGNMENT
    once(metadata, "key", "metadata")
    once(tensors, "name", "tensor")
    local parts = { "GGUF", core.pack("ILL", 3, #tensors, #metadata) }
    for _, r in ipairs(metadata) do
        parts[#parts + 1] = pair_bytes(r)
    end
    local relative, at = {}, 0
    for i, t in ipairs(tensors) do
        parts[#parts + 1] = info_bytes(t, at, options and options.ggml_dims)
        relative[i] = at
        at = at + padded(t.size, alignment)
    end
    local header = table.concat(parts)
    local start = padded(#header, alignment)
    for i = 1, #relative do
        relative[i] = start + relative[i]
    end
    return header .. ("\0"):rep(start - #header), relative, start + at
end

--- Tensors ready for gguf.header from a plan of types.
---@param tensors table[] {name, shape}
---@param plan table[] {type_name} from types.plan or types.convert
---@return table[] {name, type, type_name, shape, size}
function gguf.typed(tensors, plan)
    local list = {}
    for i, t in ipairs(tensors) do
        local name = plan[i].type_name
        list[i] = { name = t.name, shape = t.shape, type_name = name, type = types.type(name).id,
                    size = types.size(t.shape, name) }
    end
    return list
end

return gguf
