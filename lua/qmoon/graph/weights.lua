--- A model's weights as a forward pass asks for them: by GGUF's names, whatever files they are in.
--
--   weights.top["token_embd"].weight          weights.layers[3]["attn_q"].weight, .bias, .lora
--   weights.layers[3]["ffn_up_exps"].experts[e + 1]
--
-- GGUF's are the names that every checkpoint of an architecture has in common (qmoon.arch knows the way).  Weights stay
-- where they are: views of the mapped files, experts and halves of a tensor being views of some of its rows.  Vectors
-- (norms, biases) are decoded to f32 once; what functions of a script decode, too; and a PyTorch tensor that does not lie in
-- order is copied.

local core = require "qmoon.core"
local arch = require "qmoon.arch"
local reading = require "qmoon.source.reading"

local weights = {}

---@class qmoon.Module
---@field name string the weight's name in the files, for messages
---@field weight qmoon.Tensor?
---@field bias qmoon.Tensor?
---@field experts qmoon.Tensor[]? one weight for each expert
---@field lora {A:qmoon.Tensor, B:qmoon.Tensor, scale:number}[]? what an adapter adds
---@field add number? what every value of a norm counts from
---@field llm_int8 boolean? computed as LLM.int8 does

--- Where a tensor of the files stands: owner[key], the weight or bias of a module or one of its experts.
---@class qmoon.Place
---@field owner table
---@field key string|integer
---@field role string of qmoon.arch
---@field path string of its file
---@field at integer where it begins there

---@class qmoon.Weights
---@field list qmoon.Place[] all of them
---@field top table<string, qmoon.Module>
---@field layers table<integer, table<string, qmoon.Module>> from 0
---@field interleaved boolean llama's rows of queries and keys lie as GGUF wants them

--- Values that functions of a script decode, which ops cannot call: as f32.
local function decoded(source, slice)
    if slice then
        core.fail("unsupported", "%s: tensor '%s' is needed in parts, and format '%s' is decoded by functions, as a whole; "
            .. "write the model as f32 first", source.file:path(), source.name, source.quantised)
    end
    local bytes = {}
    for i, from in ipairs(source.parts) do
        bytes[i] = from.file:read(from.at, from.size)
    end
    return source.own:of_planes(source.shape, source.block, bytes, source.name):dequantize()
end

--- A tensor over `slice` of an item's rows {from, rows, cols}, or over all of it.
local function view(source, shape, slice)
    if type(source.own) == "table" then
        return decoded(source, slice)
    elseif source.strides and not slice then
        return core.view(source.file, source)
    elseif not source.format then
        core.fail("unsupported", "%s: tensor '%s' is %s, which this program cannot decode", source.file:path(), source.name,
            source.dtype)
    end
    local s = reading.of(source, slice)
    if s.strides then
        return core.view(s.file, { name = s.name, at = s.at[1], dtype = source.dtype, shape = s.shape, strides = s.strides })
    end
    s.shape = shape
    return core.view(s.file, s)
end

local function vector(t)
    local v = t:dequantize()
    t:close()
    return v
end

-- ---- where a tensor goes --------------------------------------------------------------------------------

--- The parts of an item: {name in GGUF, row, shape, expert?, from?}; nil when the architecture has no use for it.
local function pieces_of(a, item)
    local name = item.gguf_name
    if not name then
        return arch.pieces(a, item.name, item.shape)
    end
    local _, row = arch.to_hf(a, name, 0)
    if not row then
        return nil
    elseif row.role == "router" and #item.shape == 1 then
        return { { name = name, row = row, shape = { 1, item.shape[1] } } } -- one row, which GGUF has as a vector
    elseif not row.stacked then
        return { { name = name, row = row, shape = item.shape } }
    end
    local list = {}
    for expert = 0, item.shape[1] - 1 do
        list[expert + 1] = { name = name, row = row, expert = expert, from = expert * item.shape[2],
                             shape = { item.shape[2], item.shape[3] } }
    end
    return list
end

local function module_of(w, name)
    local layer, rest = name:match "^blk%.(%d+)%.(.*)$"
    local modules = w.top
    if layer then
        layer = tonumber(layer)
        w.layers[layer] = w.layers[layer] or {}
        modules = w.layers[layer]
    end
    local key, part = (rest or name):match "^(.*)%.(%a+)$"
    modules[key] = modules[key] or {}
    return modules[key], part
end

local CONSTANTS = { ["rope_freqs.weight"] = true, ["rope_factors_long.weight"] = true, ["rope_factors_short.weight"] = true }

local function place(w, item, piece)
    local m, part = module_of(w, piece.name)
    local slice = piece.from and { from = piece.from, rows = piece.shape[1], cols = piece.shape[2] } or nil
    local t = view(item.source, piece.shape, slice)
    local owner, key = m, part
    if piece.expert then
        m.experts = m.experts or {}
        owner, key = m.experts, piece.expert + 1
    end
    owner[key] = not piece.expert and (part == "bias" or #piece.shape == 1) and vector(t) or t
    local at = item.source.at
    w.list[#w.list + 1] = { owner = owner, key = key, role = piece.row.role, path = item.source.file:path(),
                            at = (type(at) == "table" and at[1] or at) + (piece.from or 0) }
    m.name = part ~= "bias" and (item.gguf_name or item.name) or m.name
    m.add = item.gguf_name == nil and piece.row.add or nil -- GGUF has it in the values
    w.interleaved = w.interleaved or item.gguf_name ~= nil and piece.row.heads ~= nil
    return m
end

-- ---- adapters -------------------------------------------------------------------------------------------------

--- A tensor of an adapter's file.
local function of_adapter(t)
    return view({ file = t.file, name = t.name, format = t.dtype, dtype = t.dtype, at = t.at, size = t.size, shape = t.shape,
                  strides = t.strides }, t.shape)
end

local function matrix(ref)
    local t = of_adapter(ref.tensor)
    return ref.transpose and t:transpose() or t:dequantize()
end

local function refuse(model, item, what)
    core.fail("unsupported", "%s: the adapter has %s for tensor '%s', and that is done by merging only: qmoon merge, and run the "
        .. "result", model.path, what, item.name)
end

local WHAT = { dora = "DoRA's magnitudes", rows = "new rows", add = "values to add" }

--- What adapters do to a weight: a replacement comes instead of it, low-rank updates beside it.
local function adapt(model, item, pieces, m)
    for _, a in ipairs(item.actions) do
        if a.kind == "replace" then
            local t, part = of_adapter(a.tensor), item.name:match "[^.]+$"
            m[part], m.lora = #item.shape == 1 and vector(t) or t, nil
        elseif a.kind ~= "low_rank" then
            refuse(model, item, WHAT[a.kind] or a.kind)
        elseif #pieces > 1 or pieces[1].expert or pieces[1].row.role ~= "linear" then
            refuse(model, item, "an update")
        else
            m.lora = m.lora or {}
            m.lora[#m.lora + 1] = { A = matrix(a.right), B = matrix(a.left), scale = a.scale }
        end
    end
end

-- ---- all of them ----------------------------------------------------------------------------------------------

local function find(w, name)
    local layer, key = name:match "^blk%.(%d+)%.(.*)%.%a+$"
    local modules = layer and (w.layers[tonumber(layer)] or {}) or w.top
    return modules[key or name:match "^(.*)%.%a+$"], name:match "%a+$"
end

local function check_complete(model, a, fields, w)
    for _, hf in ipairs(arch.required(a, fields)) do
        local name, _, _, expert = arch.to_gguf(a, hf)
        local m, part = find(w, name)
        local there = m and (m.experts and m.experts[(expert or 0) + 1] or m[part])
        if not there then
            core.fail("corrupt", "%s: tensor '%s' is missing; is the model complete?", model.path,
                model.kind == "gguf" and name or hf)
        end
    end
end

--- What config fields say of shapes; 0 stands for any size.
local function expected(f, head_dim)
    local width, q, kv = f.hidden_size, f.num_attention_heads * head_dim, f.num_key_value_heads * head_dim
    return { token_embd = { 0, width }, output = { 0, width }, output_norm = { width }, attn_norm = { width }, ffn_norm = { width },
             attn_q = { q, width }, attn_k = { kv, width }, attn_v = { kv, width }, attn_qkv = { q + 2 * kv, width },
             attn_output = { width, q }, attn_q_norm = { head_dim }, attn_k_norm = { head_dim }, ffn_gate = { 0, width },
             ffn_up = { 0, width }, ffn_down = { width, 0 }, ffn_gate_inp = { 0, width } }
end

local function sorted_keys(t)
    local keys = {}
    for key in pairs(t) do
        keys[#keys + 1] = key
    end
    table.sort(keys)
    return keys
end

local function check_shapes(model, modules, shapes)
    for _, key in ipairs(sorted_keys(modules)) do
        local m, want = modules[key], shapes[key]
        local have = m.weight and m.weight:info().shape
        local fits = not (want and have) or #have == #want
        for i, d in ipairs(fits and want and have or {}) do
            fits = fits and (want[i] == 0 or want[i] == d)
        end
        if not fits then
            core.fail("corrupt", "%s: tensor '%s' is [%s], and the config makes it [%s]", model.path, m.name,
                table.concat(have, " x "), (table.concat(want, " x "):gsub("%f[%d]0%f[%D]", "any")))
        end
    end
end

--- All weights of an opened model.
---@param model qmoon.Model
---@param a table its architecture
---@param fields table its config
---@param head_dim integer
---@return qmoon.Weights
function weights.read(model, a, fields, head_dim)
    local w = { list = {}, top = {}, layers = {}, interleaved = false }
    for _, item in ipairs(model.items) do
        local pieces = pieces_of(a, item)
        if pieces then
            local m
            for _, piece in ipairs(pieces) do
                m = place(w, item, piece)
            end
            adapt(model, item, pieces, m)
        elseif CONSTANTS[item.gguf_name] then
            module_of(w, item.gguf_name).weight = vector(view(item.source, item.shape))
        elseif not arch.left_out(a, item.name) then
            core.fail("unsupported", "%s: tensor '%s' has no place in the forward pass of %s", model.path,
                item.gguf_name or item.name, a.model_type)
        end
    end
    check_complete(model, a, fields, w)
    local shapes = expected(fields, head_dim)
    check_shapes(model, w.top, shapes)
    for layer = 0, fields.num_hidden_layers - 1 do
        check_shapes(model, w.layers[layer], shapes)
    end
    return w
end

return weights
