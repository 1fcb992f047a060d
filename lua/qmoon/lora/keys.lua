--- Adapter tensor names: which module a tensor belongs to and what it is there.
--
--     base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight
--     '--- prefix ----''--------------- module ------------''- role -'
--
-- peft wraps modules in others, and their names are in the way: X.base_layer.weight is X's own weight,
-- X.modules_to_save.weight a trained copy of it.  Files written before peft 0.3, and state dicts saved by
-- hand, keep the adapter's name too: lora_A.default.weight.
local core = require "qmoon.core"
local reading = require "qmoon.source.reading"

local M = {}

--- What a name component says about the tensor.
local ROLES = {
    lora_A = "A", lora_B = "B",
    lora_embedding_A = "A", lora_embedding_B = "B",
    lora_magnitude_vector = "magnitude",
    trainable_tokens_delta = "rows",
}

---@class qmoon.lora.site   everything the adapter says about one module
---@field module string     its full name, as the adapter spells it
---@field embedding boolean the factors are an embedding's: A is [rank x rows], B [columns x rank]
---@field A table?          adapter tensors …
---@field B table?
---@field B_bias table?
---@field magnitude table?
---@field rows table?       trained rows of an embedding
---@field own table<string, table>    by parameter: a trained copy of this module alone (modules_to_save)
---@field saved table<string, table>  by parameter: the base's parameter as it was saved with the adapter
---@field spare table[]     tensors that say the same again, or are replaced by `own`

local function split(name)
    local parts = {}
    for part in name:gmatch "[^.]+" do
        parts[#parts + 1] = part
    end
    return parts
end

--- The module's name without peft's wrappers.
local function module_name(parts, last)
    local kept = {}
    for i = 1, last do
        if parts[i] ~= "base_layer" and parts[i] ~= "token_adapter" then
            kept[#kept + 1] = parts[i]
        end
    end
    return table.concat(kept, ".")
end

--- peft matches modules_to_save by the end of a module's name; a tensor below such a module is saved with it.
local function is_listed(module, list)
    local upto = ""
    for part in module:gmatch "[^.]+" do
        upto = upto == "" and part or upto .. "." .. part
        for _, entry in ipairs(list) do
            if upto:sub(-#entry) == entry then
                return true
            end
        end
    end
    return false
end

local function parameter(name)
    return name == "weight" or name == "bias"
end

--- Splits a name into module, role and the words after the role.
local function parse(name)
    local parts = split((name:gsub("^base_model%.model%.", "", 1)))
    for i = #parts, 2, -1 do
        local role = ROLES[parts[i]]
        if role then
            return {
                module = module_name(parts, i - 1), role = role, tail = { unpack(parts, i + 1) },
                embedding = parts[i]:find "^lora_embedding_" ~= nil,
            }
        elseif parts[i]:find "^lora_" then
            core.fail("unsupported", "adapter tensor '%s': '%s' belongs to a variant of LoRA that is not "
                .. "supported; merge this adapter with peft first", name, parts[i])
        elseif parts[i] == "modules_to_save" or parts[i] == "original_module" then
            return { module = module_name(parts, i - 1), role = parts[i], tail = { unpack(parts, i + 1) } }
        end
    end
    local last = parts[#parts]
    return {
        module = module_name(parts, #parts - 1), role = "parameter", tail = { last },
        wrapped = parts[#parts - 1] == "base_layer",
    }
end

--- Takes the adapter's name off what follows the role: {"default", "weight"} -> "weight".
local function strip_adapter_name(k, t, names)
    local tail = k.tail
    if tail[1] and not parameter(tail[1]) then
        names[tail[1]] = true
        if next(names, next(names)) then
            core.fail("unsupported", "adapter tensor '%s': the file holds several adapters; save them one to "
                .. "a folder (save_pretrained with selected_adapters)", t.name)
        end
        tail = { unpack(tail, 2) }
    end
    if #tail > 1 or (tail[1] and not parameter(tail[1])) then
        core.fail("corrupt", "adapter tensor '%s' has a name that peft does not write", t.name)
    end
    return tail[1] or "weight"
end

local function site_of(sites, module)
    local s = sites.by_module[module]
    if not s then
        s = { module = module, own = {}, saved = {}, spare = {} }
        sites.by_module[module] = s
        sites[#sites + 1] = s
    end
    return s
end

local function put(place, key, t)
    if place[key] then
        core.fail("corrupt", "adapter tensors '%s' and '%s' are for the same thing", place[key].name, t.name)
    end
    place[key] = t
end

--- A parameter of the base saved in full: trained alone, or as it was in the base that peft wrapped.
local function put_parameter(s, k, t, config)
    local name = k.tail[1]
    if not k.wrapped and is_listed(k.module, config.modules_to_save) then
        put(s.own, name, t)
    else
        put(s.saved, name, t)
    end
end

--- Two trained copies come from peft saving embeddings twice; they must be the same bytes.
local function drop_copies(s, adapter, copies)
    for name, t in pairs(copies) do
        if not s.own[name] then
            s.own[name] = t
        elseif M.same_bytes(adapter, s.own[name], t) then
            s.spare[#s.spare + 1] = t
        else
            core.fail("corrupt", "%s: tensors '%s' and '%s' are two trained copies of one parameter and "
                .. "differ", adapter.path, s.own[name].name, t.name)
        end
    end
end

--- Do two adapter tensors hold the same values in the same shape and format?
function M.same_bytes(adapter, a, b)
    if a.dtype ~= b.dtype or a.size ~= b.size or #a.shape ~= #b.shape then
        return false
    end
    for i, n in ipairs(a.shape) do
        if b.shape[i] ~= n then
            return false
        end
    end
    if a.strides or b.strides then
        return reading.bytes(a) == reading.bytes(b)
    end
    local piece = 2 ^ 20
    for at = 0, a.size - 1, piece do
        local n = math.min(piece, a.size - at)
        if adapter.file:read(a.at + at, n) ~= adapter.file:read(b.at + at, n) then
            return false
        end
    end
    return true
end

--- Sorts an adapter's tensors by module, in the order of the file.
---@param adapter table
---@return qmoon.lora.site[]
function M.sites(adapter)
    local sites = { by_module = {} }
    local names, copies = {}, {}
    for _, t in ipairs(adapter.tensors) do
        local k = parse(t.name)
        local s = site_of(sites, k.module)
        if k.role == "parameter" then
            put_parameter(s, k, t, adapter.config)
        elseif k.role == "modules_to_save" then
            copies[s] = copies[s] or {}
            put(copies[s], strip_adapter_name(k, t, names), t)
        elseif k.role == "original_module" then
            s.spare[#s.spare + 1] = t
        else
            local is_bias = strip_adapter_name(k, t, names) == "bias"
            if is_bias and k.role ~= "B" then
                core.fail("corrupt", "adapter tensor '%s' has a name that peft does not write", t.name)
            end
            put(s, is_bias and "B_bias" or k.role, t)
            if k.role == "A" or k.role == "B" then
                s.embedding = s.embedding or k.embedding
            end
        end
    end
    for s, list in pairs(copies) do
        drop_copies(s, adapter, list)
    end
    return sites
end

return M
