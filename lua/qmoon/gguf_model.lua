--- A GGUF file as a model folder: config.json, tokenizer files, and where its tensors go in a checkpoint.
--
-- GGUF keeps less than a folder does. What it does not say is as transformers has it (the architecture's
-- defaults), or as llama.cpp computes without being told (from_gguf), and then there is a notice. Files are in transformers 4's style, which
-- all versions read. On the way stacks of experts are cut, interleaved rows put back and ones taken off norms.

local core = require "qmoon.core"
local ffi = require "ffi"
local arch = require "qmoon.arch"
local gguf = require "qmoon.gguf"
local json = require "qmoon.json"
local rope = require "qmoon.rope"
local tokenizer = require "qmoon.gguf_tokenizer"

local gguf_model = {}

local ROPE_FREQS = "rope_freqs.weight"
local LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"

--- Whether a tensor is what config.json says in other words.
local function is_constant(a, name)
    return name == ROPE_FREQS and a.rope_scaling.llama3 == "tensor"
        or (name == LONG or name == SHORT) and a.rope_scaling.longrope == "tensor"
end

-- ---- tensors --------------------------------------------------------------------------------------

local function shape_of(item, expert)
    return expert and { unpack(item.shape, 2) } or item.shape
end

--- One of the checkpoint's tensors as an item of its own: which rows of which item, and what is done to them.
local function piece(item, row, hf, expert, fields, what)
    local shape = shape_of(item, expert)
    local wanted = (row.role == "norm" or row.role == "bias") and 1 or 2
    if #shape ~= wanted or shape[1] < 1 or (shape[2] or 1) < 1 then
        core.fail("corrupt", "%s: tensor '%s' is [%s], and should have %d dimensions", what, item.gguf_name or item.name,
            table.concat(item.shape, " x "), #item.shape - #shape + wanted)
    end
    local rows, cols = #shape > 1 and shape[1] or 1, shape[#shape]
    local heads = row.heads and fields[row.heads]
    if heads and #shape == 1 then
        rows, cols = cols, 1
    end
    if heads and rows % (2 * heads) ~= 0 then
        core.fail("corrupt", "%s: tensor '%s' has %d rows, which are no %d heads of two halves", what,
            item.gguf_name or item.name, rows, heads)
    end
    local slice = (expert or heads)
        and { from = (expert or 0) * rows, rows = rows, cols = cols, interleaved_heads = heads } or nil
    return { name = hf, shape = shape, actions = {}, role = row.role, add = row.add and -row.add, part_of = item,
             slice = slice, source = setmetatable({ shape = shape }, { __index = item.source }) }
end

local function pieces_of(a, item, fields, what)
    local name, list = item.gguf_name or item.name, {}
    local hf, row = arch.to_hf(a, name)
    if not item.source.format then
        core.fail("unsupported", "%s: tensor '%s' is %s, which this program cannot decode", what, name,
            item.source.dtype)
    elseif not hf then
        core.fail("unsupported", "%s: tensor '%s' has no place in a model folder of %s", what, name, a.name)
    elseif not row.stacked then
        return { piece(item, row, hf, nil, fields, what) }
    elseif #item.shape ~= 3 or item.shape[1] ~= fields.num_local_experts then
        core.fail("corrupt", "%s: tensor '%s' is no stack of %s experts", what, name,
            tostring(fields.num_local_experts))
    end
    for expert = 0, item.shape[1] - 1 do
        list[#list + 1] = piece(item, row, (arch.to_hf(a, name, expert)), expert, fields, what)
    end
    return list
end

--- Items with the names they have in a checkpoint; every one the architecture needs must be there.
---@param items qmoon.Item[] of the GGUF file
---@return qmoon.Item[]
local function items_of(a, items, fields, what)
    local list, have = {}, {}
    for _, item in ipairs(items) do
        if not is_constant(a, item.gguf_name) then
            for _, p in ipairs(pieces_of(a, item, fields, what)) do
                list[#list + 1] = p
                have[p.name] = true
            end
        end
    end
    for _, hf in ipairs(arch.required(a, fields)) do
        if not have[hf] then
            core.fail("corrupt", "%s: tensor '%s' is missing", what, (arch.to_gguf(a, hf)))
        end
    end
    return list
end

-- ---- config.json ----------------------------------------------------------------------------------

local TORCH = { F32 = "float32", BF16 = "bfloat16" }

--- The type that most of the weights have, or that is right for what they were made from.
local function dtype_of(g)
    local values = {}
    for _, t in ipairs(g.tensors) do
        if #t.shape > 1 then
            local dtype = TORCH[t.type_name] or "float16"
            values[dtype] = (values[dtype] or 0) + t.size
        end
    end
    local best = "float16"
    for dtype, size in pairs(values) do
        if size > (values[best] or 0) then
            best = dtype
        end
    end
    return best
end

-- What llama.cpp takes when a file does not say.
local ABSENT = { rope_theta = 10000 }

-- Fields that only say what others imply.
local DERIVED = { "rope_dim", "rope_attention_factor", "file_type", "pooling_type" }

--- Config fields from the architecture's metadata rows read backwards; f32 values are marked as floats.
local function fields_of(a, g, what)
    local fields = {}
    for key, value in pairs(a.defaults) do
        fields[key] = ABSENT[key] or value
    end
    for _, row in ipairs(a.metadata) do
        local value = gguf.get(g.meta, a.name .. "." .. row[1])
        if value ~= nil and not (gguf.holds(row[2], value) and (row[2] ~= "f32" or value - value == 0)) then
            core.fail("corrupt", "%s: metadata '%s.%s' is %s, and config.json needs one %s there", what, a.name, row[1],
                type(value) == "table" and "a list" or tostring(value), row[2])
        end
        if row[2] == "f32" then
            local number = value and json.widen(value) or ABSENT[row[3]] or a.defaults[row[3]]
            value = number and json.float(number)
        end
        local outer, inner = row[3]:match "^(.-)%.(.*)$"
        if outer and value ~= nil then
            fields[outer] = fields[outer] or {}
            fields[outer][inner] = value
        elseif value ~= nil and not outer then
            fields[row[3]] = value
        end
    end
    if fields.rope_scaling then
        fields.rope_scaling.type = fields.rope_scaling.rope_type -- the name it had at first
    end
    return fields
end

local function tensor(g, name)
    for _, t in ipairs(g.tensors) do
        if t.name == name then
            return t
        end
    end
end

--- The numbers of a small F32 tensor, as config.json has them.
local function numbers(t, what)
    if not t or t.type_name ~= "F32" or #t.shape ~= 1 or t.shape[1] > 2 ^ 16 then
        core.fail("corrupt", "%s: '%s' and '%s' are no pair of lists of numbers", what, LONG, SHORT)
    end
    local stored, list = ffi.new("float[?]", t.shape[1]), {}
    ffi.copy(stored, t.file:read(t.at, t.size), t.size)
    for i = 1, t.shape[1] do
        list[i] = json.float(json.widen(tonumber(stored[i - 1])))
    end
    return json.array(list)
end

--- What is in no metadata row: sizes from tensors, factors of rope from theirs.
local function complete(a, g, fields, what)
    local embedding = tensor(g, "token_embd.weight")
    if not embedding then
        core.fail("corrupt", "%s: tensor 'token_embd.weight' is missing", what)
    end
    fields.vocab_size = embedding.shape[1]
    fields.tie_word_embeddings = not tensor(g, "output.weight")
    for _, name in ipairs { "num_hidden_layers", "num_attention_heads", "hidden_size" } do
        if (fields[name] or 0) < 1 then
            core.fail("corrupt", "%s: the metadata says %s = %s", what, name, tostring(fields[name]))
        end
    end
    fields.num_key_value_heads = fields.num_key_value_heads or fields.num_attention_heads
    if a.defaults.head_dim and not gguf.get(g.meta, a.name .. ".attention.key_length") then
        fields.head_dim = fields.hidden_size / fields.num_attention_heads
    end
    if a.from_gguf then
        a.from_gguf(fields, function(name)
            return tensor(g, name) ~= nil
        end)
    end
    if tensor(g, LONG) and is_constant(a, LONG) then
        fields.rope_scaling = { type = "longrope", long_factor = numbers(tensor(g, LONG), what),
                                short_factor = numbers(tensor(g, SHORT), what) }
    end
    local factors = tensor(g, ROPE_FREQS)
    if factors and is_constant(a, ROPE_FREQS) then
        local scaling = rope.llama3_of(factors, gguf.get(g.meta, a.name .. ".rope.freq_base") or ABSENT.rope_theta)
        if not scaling then
            core.fail("unsupported", "%s: the factors in '%s' are not those of Llama 3's rope scaling", what,
                ROPE_FREQS)
        end
        fields.rope_scaling = scaling
    end
    for _, name in ipairs(DERIVED) do
        fields[name] = nil
    end
end

local function config_text(a, g, fields, dtype)
    fields.architectures = { a.architectures[1] }
    fields.model_type = a.model_type
    fields.torch_dtype = dtype
    for field, name in pairs { bos_token_id = "bos", eos_token_id = "eos", pad_token_id = "padding",
                               unk_token_id = "unknown" } do
        fields[field] = tokenizer.special_id(g.meta, name) or a.defaults[field] and core.null -- or transformers has its own
    end
    return json.encode(fields, { indent = 2 }) .. "\n"
end

local function generation_text(g)
    local settings = {}
    for field, name in pairs { bos_token_id = "bos", eos_token_id = "eos", pad_token_id = "padding" } do
        settings[field] = tokenizer.special_id(g.meta, name)
    end
    for _, s in ipairs(gguf.sampling) do
        local value = gguf.get(g.meta, "general.sampling." .. s[2])
        if value ~= nil then
            settings[s[1]] = s[3] == "f32" and json.float(json.widen(value)) or value
        end
    end
    return json.encode(next(settings) and settings or json.object {}, { indent = 2 }) .. "\n"
end

-- ---- all of it --------------------------------------------------------------------------------------

--- GGUF tensors as the items of a model that was opened for nothing else.
local function plain_items(g)
    local items = {}
    for i, t in ipairs(g.tensors) do
        items[i] = { name = t.name, gguf_name = t.name, shape = t.shape, actions = {},
                     source = { format = t.format, dtype = t.type_name } }
    end
    return items
end

local function notices_of(a, g)
    local notices = {}
    for _, row in ipairs(a.rows) do
        if row.add then
            notices[1] = "norms are stored with one added to them, which was taken off again; of values below 2^-16 "
                .. "the last bits are lost"
        end
    end
    if a.unsaid then
        notices[#notices + 1] = ("GGUF files do not say %s; config.json has what llama.cpp computes with"):format(a.unsaid)
    end
    if gguf.get(g.meta, "tokenizer.ggml.model") == "llama" then
        notices[#notices + 1] = "tokenizer.model is made anew of its pieces and scores; GGUF does not keep its normaliser, nor "
            .. "which pieces users defined, so it cuts text as llama.cpp does"
    end
    return notices
end

--- config.json of a model that is run from its GGUF file, as text. What no file of its architecture says is as
--- llama.cpp takes it.
---@param a table architecture
---@param g table from core.gguf
---@param what string names the file in messages
---@return string
function gguf_model.config(a, g, what)
    local fields = fields_of(a, g)
    complete(a, g, fields, what)
    return config_text(a, g, fields, dtype_of(g))
end

--- What a model folder made of a GGUF file holds.
---
--- options: dtype = torch's name for config.json instead of the file's own, pre = name of the pre-tokenizer,
--- items = of the opened model.
---@param g table from core.gguf
---@param what string names the file in messages
---@param options? table
---@return table model {arch, fields, config = text, files = {{name, text}, …} with config.json, items, notices}
function gguf_model.read(g, what, options)
    options = options or {}
    local a = arch.of_gguf(g.meta)
    if not a then
        core.fail("unsupported", "%s: architecture '%s' is not one this program can make a model folder of", what,
            tostring((gguf.get(g.meta, "general.architecture"))))
    end
    local fields = fields_of(a, g, what)
    complete(a, g, fields, what)
    local items = items_of(a, options.items or plain_items(g), fields, what)
    local files = tokenizer.files(g.meta, { pre = options.pre, context = fields.max_position_embeddings,
                                            class = a.tokenizer_class }, what)
    local config = config_text(a, g, fields, options.dtype or dtype_of(g))
    table.insert(files, 1, { name = "config.json", text = config })
    table.insert(files, 2, { name = "generation_config.json", text = generation_text(g) })
    return { arch = a, fields = fields, config = config, files = files, items = items, notices = notices_of(a, g) }
end

return gguf_model
