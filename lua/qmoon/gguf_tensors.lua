--- The tensors of a GGUF file made from a checkpoint folder, and which of the checkpoint's tensors go into each.
--
-- Mostly one tensor is one tensor. Experts are stacked, stacks of experts are cut, rows may be interleaved, some
-- tensors have no place in GGUF, and some come from config.json. Nothing is read here: names and shapes only.

local core = require "qmoon.core"
local arch = require "qmoon.arch"
local gguf = require "qmoon.gguf"

local gguf_tensors = {}

local SHOWN = 8 -- names in a message

local function listed(names)
    local more = #names > SHOWN and (", and %d more"):format(#names - SHOWN) or ""
    return table.concat(names, ", ", 1, math.min(SHOWN, #names)) .. more
end

-- ---- what does not fit ---------------------------------------------------------------------------

local function names_of(items)
    local names = {}
    for i, item in ipairs(items) do
        names[i] = item.name
    end
    return names
end

local ADVICE = "a table for it can be given from a script: qm.arch.add{ ... }, see lua/qmoon/arch/init.lua"

--- Says which architecture comes nearest to a model whose own is unknown, and what it lacks.
---@param model qmoon.Model
function gguf_tensors.unknown_architecture(model)
    local names, fields = names_of(model.items), model.config.fields
    local class = (fields.architectures or {})[1] or fields.model_type
    local near, count = arch.nearest(names)
    local hint = "no table has any of its tensors"
    if near then
        local lacking = {}
        for _, name in ipairs(names) do
            if not arch.row(near, name) then
                lacking[#lacking + 1] = name
            end
        end
        local type = near.model_type or near.architectures[1]
        hint = ("the nearest is %s (%s) with %d of %d tensors"):format(near.name, type, count, #names)
            .. (#lacking > 0 and ", without " .. listed(lacking) or "")
    end
    core.fail("unsupported", "%s: architecture '%s' has no table for GGUF; %s; %s. Folders (int8, nf4, fp4, f16) "
        .. "can be written without one", model.path, tostring(class), hint, ADVICE)
end

local function fail_unmapped(model, a, names)
    local near = arch.nearest(names_of(model.items))
    local hint = near and near ~= a
        and (" (the table of %s has more of the model)"):format(near.model_type or near.name) or ""
    core.fail("unsupported", "%s: GGUF's %s has no name for %d of its tensors: %s%s; %s", model.path, a.name, #names,
        listed(names), hint, ADVICE)
end

-- ---- putting together ----------------------------------------------------------------------------

--- A model whose head was made its own cannot be said where GGUF has one tensor for both.
local function check_head(model, row, item)
    if row and row.role == "output" and not model.config.fields.tie_word_embeddings then
        core.fail("unsupported", "%s: tensor '%s' is not the embedding (tie_word_embeddings is false), and a GGUF "
            .. "file of %s has no head of its own", model.path, item.name, model.config.arch.name)
    end
end

local function same_shape(a, b)
    return table.concat(a, "x") == table.concat(b, "x")
end

--- The tensor that a piece belongs to, made when this is its first.
local function tensor_of(g, piece)
    local t = g.by_name[piece.name]
    if not t then
        local experts = piece.expert and g.fields.num_local_experts
        t = { name = piece.name, row = piece.row, layer = piece.layer, each = piece.shape, parts = {}, filled = 0,
              wanted = experts or 1, shape = experts and { experts, unpack(piece.shape) } or piece.shape }
        g.by_name[piece.name] = t
    end
    return t
end

--- A tensor is in the list once it is complete; the stacks of a layer's experts once all of them are, in the
--- table's order.
local function emit(g, t)
    local stacks = {}
    for _, row in ipairs(t.wanted > 1 and g.arch.rows or {}) do
        if row.stacked and not row.also then
            local s = g.by_name[arch.in_layer(row.gguf, t.layer)]
            if not s or s.filled < s.wanted then
                return
            end
            stacks[#stacks + 1] = s
        end
    end
    for _, s in ipairs(stacks[1] and stacks or { t }) do
        g.list[#g.list + 1] = s
    end
end

local function add_piece(g, item, piece, what)
    local t = tensor_of(g, piece)
    local place = (piece.expert or 0) + 1
    if not same_shape(t.each, piece.shape) or place > t.wanted or t.parts[place] then
        core.fail("corrupt", "%s: tensor '%s' does not go with the other tensors of '%s' (%d experts of [%s])", what,
            item.name, t.name, t.wanted, table.concat(t.each, " x "))
    end
    t.parts[place] = { item = item, from = piece.from }
    t.filled = t.filled + 1
    g.seen[item.name], g.seen[arch.to_hf(g.arch, piece.name, piece.expert) or item.name] = true, true
    if t.filled == t.wanted then
        emit(g, t)
    end
end

--- Rows beyond the vocabulary are not carried over where the architecture says so.
local function trim(t, tokens)
    if t.row.trim and tokens and t.shape[1] > tokens then
        t.shape = { tokens, unpack(t.shape, 2) }
        t.parts[1].from = 0
    end
end

local function constants(g)
    for _, c in ipairs(g.arch.constants and g.arch.constants(g.fields) or {}) do
        g.list[#g.list + 1] = { name = c.name, shape = { #c.values }, values = c.values, parts = {} }
    end
end

local function left_out_notices(left_out)
    local notices = {}
    for why, names in pairs(left_out) do
        notices[#notices + 1] = ("%d tensors were left out (%s): %s"):format(#names, why, listed(names))
    end
    table.sort(notices)
    return notices
end

--- A field of config.json that GGUF files do not have, where llama.cpp takes another value for it.
local function unsaid_notice(a, fields)
    local taken = setmetatable({}, { __index = fields })
    if a.unsaid and a.from_gguf then
        a.from_gguf(taken)
        if taken[a.unsaid] ~= fields[a.unsaid] then
            return ("config.json has %s = %s; GGUF files of %s do not say it, and llama.cpp computes with %s"):format(a.unsaid,
                tostring(fields[a.unsaid]), a.name, tostring(taken[a.unsaid]))
        end
    end
end

local SIZES = { "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size" }

local function check_fields(fields, dir)
    for _, name in ipairs(SIZES) do
        if type(fields[name]) ~= "number" then
            core.fail("corrupt", "%s: config.json has no number '%s'", dir, name)
        end
    end
end

--- All tensors in the converter's order. Every one that the architecture needs must be there, and nothing unknown.
---@param model qmoon.Model a folder
---@param a table architecture
---@param tokens integer? how many the tokenizer has
---@return table[] list of {name, shape, parts = {{item, from}} or values = numbers, row}
---@return string[] notices
function gguf_tensors.of(model, a, tokens)
    local g = { arch = a, fields = model.config.fields, list = {}, by_name = {}, seen = {} }
    check_fields(g.fields, model.path)
    local items, unknown, left_out = {}, {}, {}
    for i, item in ipairs(model.items) do
        items[i] = { item = item, hf = item.name, file = not model.adapters and item.source.file:path() or nil }
    end
    constants(g)
    for _, entry in ipairs(gguf.converter_order(items)) do
        local item = entry.item
        local why = arch.left_out(a, item.name)
        local pieces = not why and arch.pieces(a, item.name, item.shape)
        if why then
            check_head(model, arch.row(a, item.name), item)
            left_out[why] = left_out[why] or {}
            table.insert(left_out[why], item.name)
        elseif not pieces then
            unknown[#unknown + 1] = item.name
        end
        for _, piece in ipairs(pieces or {}) do
            add_piece(g, item, piece, model.path)
        end
    end
    if #unknown > 0 then
        fail_unmapped(model, a, unknown)
    end
    for _, name in ipairs(arch.required(a, g.fields)) do
        if not g.seen[name] then
            core.fail("corrupt", "%s: tensor '%s' is missing; config.json says that a %s model has it", model.path,
                name, a.name)
        end
    end
    for _, t in ipairs(g.list) do
        if t.row then
            trim(t, tokens)
        end
    end
    local notices = left_out_notices(left_out)
    notices[#notices + 1] = unsaid_notice(a, g.fields)
    return g.list, notices
end

return gguf_tensors
