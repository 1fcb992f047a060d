--- The model architectures this program knows: one table each, `ls lua/qmoon/arch`; arch.add takes one more.
--
-- A table says what a model of that architecture is made of and what GGUF calls it:
--
--   name            GGUF's name: general.architecture and the prefix of metadata keys
--   model_type      what config.json calls it
--   architectures   the class names of config.json that mean it
--   defaults        config fields that a config.json may leave out, as transformers fills them in
--   complete        function(fields): sets fields that follow from others
--   modules         rows {hf, gguf, role, …}; N stands for the layer, E for the expert; a list of rows may stand
--                   for a row (qmoon.decoder has some)
--   strip           what names have too much in larger models ("language_model.")
--   left_out        rows {Lua pattern, why} of tensors that GGUF has no place for
--   metadata        rows {key, type, field}, in the order GGUF files have them; "a.b" is a field of a field, a
--                   row whose field is absent is left out, and a list of rows may stand for a row
--   own_order       true when newer converters keep to that order, too (gguf_profiles.lua: order)
--   rope_scaling    rope scalings that GGUF can say, how -> "keys" (of `metadata`) or "tensor"
--   constants       function(fields): list of {name, values}, tensors that are in no checkpoint
--   tokenizer       kinds of tokenizer.lua in the order they are looked for; { "bpe" } when absent
--   tokenizer_rows  function(fields, tokenizer_config): metadata rows before the vocabulary, and after it
--   tokenizer_class transformers' name of the tokenizer that goes with tokenizer.model
--   unsaid          what config.json needs and GGUF files do not say; a folder made of one gets what llama.cpp computes with
--   from_gguf       function(fields, has): config fields that a GGUF file says otherwise, or not at all
--   moe             true when GGUF has one name for this and for a model without experts
--
-- Fields of a row of `metadata`: only = rope scaling it goes with, first = true puts it before general.type,
-- profile = flag that a profile must have (gguf_profiles.lua).
--
-- Fields of a row of `modules`:
--
--   bias = true           there is a bias, too; "optional": there may be one
--   tied = true           absent when embeddings are shared
--   optional = true       a model may lack it
--   also = true           another name for what a row above has
--   heads = field         number of heads whose rows GGUF wants interleaved (llama's way to rotate)
--   add = 1               added to every value on the way to GGUF
--   trim = true           GGUF has as many rows as the vocabulary has tokens
--   left_out = why        GGUF has no place for it
--   plain = true          the checkpoint's name does not end in .weight
--
-- With E in the checkpoint's name, GGUF stacks all experts to one tensor. Where `gguf` is a list, the checkpoint
-- has the stack, and every expert's rows are cut evenly among the names. Roles: embedding, output, norm, linear,
-- router, experts (a stack); a bias has the role bias.

local core = require "qmoon.core"

local arch = {}

local PREFIX = "qmoon.arch."
local MOST_NAMES = 1e6 -- layers times experts: more is no model, but would take memory

-- Buffers that old checkpoints have and every program computes itself.
local BUFFERS = {
    { "%.attention%.masked_bias$", "a buffer" }, { "%.attention%.bias$", "a buffer" },
    { "%.rotary_emb%.inv_freq$", "a buffer" },
}

-- ---- tables --------------------------------------------------------------------------------------

local function suffixes_of(module)
    return module.bias and { "weight", "bias" } or { "weight" }
end

local function row_of(module, suffix)
    local names = type(module[2]) == "table" and module[2] or { module[2] }
    local gguf = {}
    for i, name in ipairs(names) do
        gguf[i] = name .. "." .. suffix
    end
    local bias = suffix == "bias"
    return setmetatable({
        hf = module.plain and module[1] or module[1] .. "." .. suffix,
        gguf = gguf[1],
        parts = type(module[2]) == "table" and gguf or nil,
        role = bias and "bias" or module[3],
        optional = module.optional or bias and module.bias == "optional",
        stacked = module[1]:find "%f[%w]E%f[%W]" ~= nil,
    }, { __index = module })
end

--- The rows of a list in which a list of rows may stand for a row.
local function flat(rows)
    local all = {}
    for _, row in ipairs(rows) do
        for _, r in ipairs(type(row) == "table" and type(row[1]) == "table" and row or { row }) do
            all[#all + 1] = r
        end
    end
    return all
end

--- Rows of tensors from rows of modules: a module has a weight and maybe a bias.
local function index(a)
    a.modules, a.metadata = flat(a.modules), flat(a.metadata)
    a.by_hf, a.by_gguf, a.rows = {}, {}, {}
    for _, module in ipairs(a.modules) do
        for _, suffix in ipairs(suffixes_of(module)) do
            local row = row_of(module, suffix)
            a.rows[#a.rows + 1] = row
            a.by_hf[row.hf] = row
            a.by_gguf[row.gguf] = a.by_gguf[row.gguf] or row
        end
    end
    return a
end

local loaded

--- Every architecture: those that were added, the last one first, then the files in order.
---@return table[]
function arch.list()
    if not loaded then
        loaded = {}
        for _, name in ipairs(core.modules(PREFIX)) do
            loaded[#loaded + 1] = index(require(name))
        end
    end
    return loaded
end

local ROLES = { embedding = true, output = true, norm = true, linear = true, router = true, experts = true }

local function check_modules(a)
    for i, m in ipairs(flat(a.modules)) do
        local gguf = type(m) == "table" and (type(m[2]) == "table" and m[2][1] or m[2])
        if type(m) ~= "table" or type(m[1]) ~= "string" or type(gguf) ~= "string" and not m.left_out then
            core.fail("usage", "architecture '%s': module %d must be { name in the checkpoint, name in GGUF, role }",
                a.name, i)
        elseif not ROLES[m[3]] then
            core.fail("usage", "architecture '%s': module '%s' has role '%s'; there are embedding, output, norm, "
                .. "linear, router, experts", a.name, m[1], tostring(m[3]))
        end
    end
end

local NEEDED = { { "name", "string" }, { "modules", "table" } }

--- One more architecture, from a script. It comes before those that are there, so it may replace one.
---@param a table as this file's top says; name, modules, metadata, and model_type or architectures, are needed
---@return table a
function arch.add(a)
    for _, need in ipairs(NEEDED) do
        if type(a) ~= "table" or type(a[need[1]]) ~= need[2] then
            core.fail("usage", "arch.add: an architecture needs %s (a %s)", need[1], need[2])
        end
    end
    if type(a.metadata) ~= "table" or not (a.model_type or a.architectures) then
        core.fail("usage", "architecture '%s': needs metadata, and model_type or architectures to know its models by",
            a.name)
    end
    check_modules(a)
    a.architectures, a.defaults = a.architectures or {}, a.defaults or { tie_word_embeddings = true }
    a.rope_scaling = a.rope_scaling or {}
    table.insert(arch.list(), 1, index(a))
    return a
end

-- ---- finding one ---------------------------------------------------------------------------------

local function has(list, value)
    for _, v in ipairs(list) do
        if v == value then
            return true
        end
    end
    return false
end

--- The architecture of a config.json (decoded), or nil: by its first class name, else by model_type.
---@param config table
---@return table?
function arch.of(config)
    local class = type(config.architectures) == "table" and config.architectures[1]
    for _, a in ipairs(arch.list()) do
        if class and has(a.architectures, class) or not class and a.model_type == config.model_type then
            return a
        end
    end
end

--- The architecture that GGUF files call `name`, or nil. With experts it may be another than without.
---@param name string
---@param experts integer? how many the model has
---@return table?
function arch.named(name, experts)
    local found
    for _, a in ipairs(arch.list()) do
        if a.name == name then
            if (a.moe or false) == ((experts or 0) > 0) then
                return a
            end
            found = found or a
        end
    end
    return found
end

--- The architecture of a GGUF file, or nil.
---@param meta table[] rows {key, value}
---@return table?
function arch.of_gguf(meta)
    local of = {}
    for _, row in ipairs(meta) do
        of[row.key] = row.value
    end
    local name = of["general.architecture"]
    local experts = of[tostring(name) .. ".expert_count"]
    return name and arch.named(name, type(experts) == "number" and experts or nil)
end

--- How many modules a model of the architecture must have.
local function needed_rows(a)
    local count = 0
    for _, row in ipairs(a.rows) do
        count = count + ((row.optional or row.also or row.left_out) and 0 or 1)
    end
    return count
end

--- The architecture whose table has the most of these names, and how many; of several the one that wants least
--- besides.
---@param names string[] of tensors, as a checkpoint has them
---@return table? a, integer count
function arch.nearest(names)
    local best, most = nil, 0
    for _, a in ipairs(arch.list()) do
        local count = 0
        for _, name in ipairs(names) do
            count = count + (arch.row(a, name) and 1 or 0)
        end
        if count > most or best and count == most and needed_rows(a) < needed_rows(best) then
            best, most = a, count
        end
    end
    return best, most
end

-- ---- names ---------------------------------------------------------------------------------------

--- Takes the numbers out of a tensor name: "blk.12.attn_q.weight" -> "blk.N.attn_q.weight", 12.
local function generic(name)
    local layer, expert
    local text = name:gsub("%.(%d+)%f[.]", function(n)
        if not layer then
            layer = tonumber(n)
            return ".N"
        end
        expert = tonumber(n)
        return ".E"
    end)
    return text, layer, expert
end

local function specific(name, layer, expert)
    return (name:gsub("%f[%w]N%f[%W]", tostring(layer)):gsub("%f[%w]E%f[%W]", tostring(expert)))
end

--- A name of a table's row in one layer.
---@param name string
---@param layer integer?
---@return string
function arch.in_layer(name, layer)
    return specific(name, layer)
end

local function stripped(a, hf)
    for _, part in ipairs(a.strip or {}) do
        hf = hf:gsub(part:gsub("%p", "%%%0"), "")
    end
    return hf
end

--- The row of a checkpoint's tensor, its layer and expert; nil when the architecture has none such.
---@return table? row, integer? layer, integer? expert
function arch.row(a, hf)
    local name, layer, expert = generic(stripped(a, hf))
    return a.by_hf[name], layer, expert
end

--- A checkpoint tensor's name in GGUF, its row, layer and expert; nil when there is none.
---@return string? name, table? row, integer? layer, integer? expert
function arch.to_gguf(a, hf)
    local row, layer, expert = arch.row(a, hf)
    if row and not row.left_out then
        return specific(row.gguf, layer), row, layer, expert
    end
end

--- The way back; `expert` picks one of a stacked tensor's.
---@return string? name, table? row, integer? layer
function arch.to_hf(a, gguf, expert)
    local name, layer = generic(gguf)
    local row = a.by_gguf[name]
    if row then
        return specific(row.hf, layer, expert), row, layer
    end
end

--- "embedding", "output", "norm", "linear", "router", "experts", "bias"; nil for a tensor the architecture
--- does not have.
---@return string?
function arch.role(a, hf)
    local row = arch.row(a, hf)
    return row and row.role
end

--- Why GGUF has no place for a tensor of the checkpoint, or nil.
---@return string?
function arch.left_out(a, hf)
    local row = arch.row(a, hf)
    if row then
        return row.left_out
    end
    for _, list in ipairs { a.left_out or {}, BUFFERS } do
        for _, rule in ipairs(list) do
            if hf:find(rule[1]) then
                return rule[2]
            end
        end
    end
end

--- Rows of an expert stack [E, rows, cols], cut among the names of its row.
local function cut(row, layer, shape)
    local pieces, experts, rows = {}, shape[1], shape[2] / #row.parts
    for expert = 0, experts - 1 do
        for i, name in ipairs(row.parts) do
            pieces[#pieces + 1] = { name = specific(name, layer), row = row, layer = layer, expert = expert,
                                    from = (expert * #row.parts + i - 1) * rows, shape = { rows, shape[3] } }
        end
    end
    return pieces
end

--- Where a checkpoint's tensor goes in GGUF: list of {name, row, layer, shape, expert of a stack or nil, from = first
--- of its rows in the checkpoint's tensor, or nil: all}. nil when the architecture has no such tensor.
---@param a table
---@param hf string
---@param shape integer[]
---@return table[]? pieces
function arch.pieces(a, hf, shape)
    local name, row, layer, expert = arch.to_gguf(a, hf)
    if not name then
        return nil
    elseif row.parts then
        return #shape == 3 and shape[2] % #row.parts == 0 and cut(row, layer, shape) or nil
    end
    return { { name = name, row = row, layer = layer, expert = row.stacked and expert or nil, shape = shape } }
end

--- Every tensor a model with these config fields must have, by its name in the checkpoint.
---@param fields table
---@return string[]
function arch.required(a, fields)
    local names = {}
    if fields.num_hidden_layers * (a.moe and fields.num_local_experts or 1) > MOST_NAMES then
        core.fail("corrupt", "a model of %.0f layers with %.0f experts is none", fields.num_hidden_layers,
            a.moe and fields.num_local_experts or 0)
    end
    local function add(row, layer)
        for expert = 0, row.stacked and fields.num_local_experts - 1 or 0 do
            names[#names + 1] = specific(row.hf, layer, expert)
        end
    end
    for _, row in ipairs(a.rows) do
        local needed = not (row.optional or row.also or row.left_out or row.tied and fields.tie_word_embeddings)
        if needed and row.hf:find "%f[%w]N%f[%W]" then
            for layer = 0, fields.num_hidden_layers - 1 do
                add(row, layer)
            end
        elseif needed then
            add(row)
        end
    end
    return names
end

return arch
