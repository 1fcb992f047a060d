--- A model: named tensors in files, a config, and what is to be done to each tensor on the way out.
--
-- Opening reads headers only.  A model is never changed: merge() gives a new one that shares the files and
-- adds, tensor by tensor, the steps that the stream will take.

local core = require "qmoon.core"
local arch = require "qmoon.arch"
local config = require "qmoon.config"
local files = require "qmoon.files"
local json = require "qmoon.json"
local text = require "qmoon.text"

---@class qmoon.Item an output tensor and where it comes from
---@field name string its name in a checkpoint folder
---@field shape integer[]
---@field source table {file, name, format or nil, dtype, shape, at, size}
---@field actions table[] merge actions of qmoon.lora, in order

---@class qmoon.Model
---@field path string
---@field kind "folder"|"safetensors"|"gguf"
---@field config table? as qmoon.config has it
---@field items qmoon.Item[] in the order they are written
---@field notices string[] what the user should know
local Model = {}
Model.__index = Model

local FLOATS = { f32 = true, f16 = true, bf16 = true }

---@return integer values, integer rows, integer cols
function Model.extent(shape)
    local n = 1
    for _, d in ipairs(shape) do
        n = n * d
    end
    if #shape < 2 then
        return n, 1, n
    end
    local cols = shape[#shape]
    return n, cols > 0 and n / cols or 0, cols
end

local function item_of(t, file)
    local source = { file = file, name = t.name, shape = t.shape, at = t.at, size = t.size,
                     dtype = t.dtype or t.format or t.type_name:lower(),
                     format = t.format or (FLOATS[t.dtype] and t.dtype or nil) }
    return { name = t.name, shape = t.shape, source = source, actions = {} }
end

local function new(fields)
    local m = setmetatable(fields, Model)
    m.notices = m.notices or {}
    m.by_name = {}
    for _, item in ipairs(m.items) do
        m.by_name[item.name] = item
    end
    return m
end

-- ---- opening --------------------------------------------------------------------------------------

--- Shards named by an index: every one must be there, and agree with the index on what it holds.
local function indexed_shards(dir, index_name)
    local what = dir .. "/" .. index_name
    local index = core.json_decode(files.read(what), what)
    if type(index) ~= "table" or type(index.weight_map) ~= "table" then
        core.fail("corrupt", "%s: there is no weight_map in it", what)
    end
    local names, seen = {}, {}
    for tensor, shard in pairs(index.weight_map) do
        if type(shard) ~= "string" or shard == "" or shard:find "[/\\%z]" or shard:find("..", 1, true) then
            core.fail("corrupt", "%s: tensor '%s' is said to be in '%s', which is no plain file name", what, tensor,
                tostring(shard))
        end
        if not seen[shard] then
            seen[shard] = true
            names[#names + 1] = shard
        end
    end
    table.sort(names)
    for _, shard in ipairs(names) do
        if not core.stat(dir .. "/" .. shard) then
            core.fail("fail", "%s: shard '%s' is missing; download it again into the same folder", dir, shard)
        end
    end
    return names, index.weight_map, what
end

local function check_against_index(map, found, what)
    for tensor, shard in pairs(map) do
        if found[tensor] ~= shard then
            core.fail("corrupt", "%s: tensor '%s' is said to be in '%s', but it is %s", what, tensor, shard,
                found[tensor] and ("in '%s'"):format(found[tensor]) or "not there; download that shard again")
        end
    end
end

local function read_shards(dir, shards, map, what)
    local items, found = {}, {}
    for _, shard in ipairs(shards) do
        local h = core.safetensors(dir .. "/" .. shard)
        for _, t in ipairs(h.tensors) do
            if found[t.name] then
                core.fail("corrupt", "%s: tensor '%s' is both in '%s' and in '%s'", dir, t.name, found[t.name], shard)
            end
            found[t.name] = shard
            if not map or map[t.name] then
                items[#items + 1] = item_of(t, h.file)
            end
        end
    end
    if map then
        check_against_index(map, found, what)
    end
    return items
end

local INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"

local function folder_items(dir)
    if core.stat(dir .. "/" .. INDEX) then
        return read_shards(dir, indexed_shards(dir, INDEX))
    elseif core.stat(dir .. "/" .. SINGLE) then
        return read_shards(dir, { SINGLE })
    end
    for _, name in ipairs(core.list(dir)) do
        if name:find "^pytorch_model.*%.bin$" then
            core.fail("unsupported", "%s: weights are in PyTorch's pickle format (%s); convert them to safetensors first",
                dir, name)
        elseif name:find "^model%-%d+%-of%-%d+%.safetensors$" then
            core.fail("fail", "%s: there are shards (%s) but no %s; download it too", dir, name, INDEX)
        end
    end
    core.fail("fail", "%s: no model.safetensors and no %s in this folder", dir, INDEX)
end

-- Names in the order people count: layer 2 before layer 10.
local function in_order(items)
    local key = {}
    for _, item in ipairs(items) do
        key[item] = item.name:gsub("%d+", function(d)
            return ("%06d"):format(d)
        end)
    end
    table.sort(items, function(a, b)
        return key[a] < key[b]
    end)
    return items
end

local function open_folder(path)
    if core.stat(path .. "/adapter_config.json") and not core.stat(path .. "/config.json") then
        core.fail("fail", "%s: this is a LoRA adapter, not a model; open its base model and merge it: "
            .. "qm.open(base):merge(adapter)", path)
    end
    local c = config.read(path)
    if type(c.raw.quantization_config) == "table" then
        core.fail("unsupported", "%s: the model is already quantised (%s); open the 16-bit model it was made from",
            path, tostring(c.raw.quantization_config.quant_method))
    end
    return new { path = path, kind = "folder", config = c, items = in_order(folder_items(path)) }
end

-- Tensors get the names they have in a checkpoint folder, where the architecture is known.
local function open_gguf(path)
    local h = require("qmoon.gguf_split").read(path)
    local a
    for _, pair in ipairs(h.meta) do
        if pair.key == "general.architecture" then
            a = arch.named(pair.value)
        end
    end
    local items = {}
    for i, t in ipairs(h.tensors) do
        local item = item_of(t, t.file)
        item.gguf_name, item.type_name = t.name, t.type_name
        item.name = a and arch.to_hf(a, t.name) or t.name
        items[i] = item
    end
    return new { path = path, kind = "gguf", gguf = h, items = items }
end

--- Opens a model: a folder with config.json and safetensors, a .gguf file (or the first of its parts), or one
--- .safetensors file.
---@param path string
---@return qmoon.Model
function Model.open(path)
    local s = core.stat(path)
    if not s then
        core.fail("fail", "%s: there is no such file or folder", path)
    elseif s.type == "dir" then
        return open_folder((path:gsub("(.)/+$", "%1")))
    elseif path:find "%.gguf$" then
        return open_gguf(path)
    elseif path:find "%.safetensors$" then
        local h = core.safetensors(path)
        local items = {}
        for _, t in ipairs(h.tensors) do
            items[#items + 1] = item_of(t, h.file)
        end
        return new { path = path, kind = "safetensors", items = in_order(items) }
    end
    core.fail("unsupported", "%s: not a model folder, and neither .safetensors nor .gguf", path)
end

-- ---- merging ----------------------------------------------------------------------------------------

local function copy_list(list)
    return { unpack(list or {}) }
end

--- The model as qmoon.lora.plan wants to see it: {tensors = {{name, shape, dtype}}, config = decoded config.json}.
local function described(m)
    local tensors = {}
    for i, item in ipairs(m.items) do
        tensors[i] = { name = item.name, shape = item.shape, dtype = item.source.dtype }
    end
    return { tensors = tensors, config = m.config and m.config.raw or {} }
end

-- An item with an adapter's actions after its own.  A replacement takes the place of all that was before.
local function with_actions(item, name, more, adapter)
    local actions, shape = copy_list(item.actions), item.shape
    for _, a in ipairs(more) do
        if a.kind == "replace" then
            actions, shape = {}, a.tensor.shape
        end
        actions[#actions + 1] = setmetatable({ adapter = adapter }, { __index = a })
    end
    return { name = name, shape = shape, source = item.source, actions = actions }
end

local function merged_items(m, plan, adapter)
    local items = {}
    for i, item in ipairs(m.items) do
        items[i] = with_actions(item, item.name, plan.actions[item.name] or {}, adapter)
    end
    for _, extra in ipairs(plan.extra) do
        items[#items + 1] = with_actions(m.by_name[extra.source], extra.name, extra.actions, adapter)
    end
    return in_order(items)
end

--- config.json with a merge's changes, wherever it has those keys: at the top, and in text_config.
local function changed_config(c, changes)
    local edits, inner = {}, type(c.raw.text_config) == "table" and c.raw.text_config
    for key, value in pairs(changes) do
        edits[#edits + 1] = { key, json.encode(value) }
    end
    table.sort(edits, function(x, y)
        return x[1] < y[1]
    end)
    if inner then
        local nested = {}
        for _, e in ipairs(edits) do
            if inner[e[1]] ~= nil then
                nested[#nested + 1] = e
            end
        end
        edits[#edits + 1] = { "text_config", config.edit(config.member(c.text, "text_config"), nested) }
    end
    local new_config = config.parse(config.edit(c.text, edits), c.dir .. "/config.json")
    new_config.dir = c.dir
    return new_config
end

--- A new model with a LoRA adapter merged in, lazily: nothing is computed until it is written.
---@param adapter string|table folder of a peft adapter, or what qmoon.lora.open gave
---@return qmoon.Model
function Model:merge(adapter)
    local lora = require "qmoon.lora"
    if self.kind == "gguf" then
        core.fail("unsupported", "%s: merge into the model's checkpoint folder, then convert to GGUF", self.path)
    end
    local folder = type(adapter) == "string" and adapter or nil
    adapter = folder and lora.open(folder) or adapter
    local plan = lora.plan(adapter, described(self))
    local n = #(self.adapters or {}) + 1
    local m = { path = self.path, kind = self.kind, config = self.config, items = merged_items(self, plan, n),
                notices = copy_list(self.notices), adapters = copy_list(self.adapters) }
    for _, notice in ipairs(plan.notices) do
        m.notices[#m.notices + 1] = notice
    end
    m.adapters[n] = { path = folder or adapter.path, summary = plan.summary, pairs = plan.pairs, tensors = plan.tensors }
    m.lora_memory = math.max(self.lora_memory or 0, lora.memory(plan))
    if m.config and next(plan.config) then
        m.config = changed_config(m.config, plan.config)
    end
    return new(m)
end

-- ---- looking ------------------------------------------------------------------------------------------

--- A tensor of the model by name, as a view of its file; a merged one is computed.
---@param name string
---@return qmoon.Tensor
function Model:tensor(name)
    local item = self.by_name[name]
    if not item then
        local nearest = require "qmoon.nearest"
        local names = {}
        for _, i in ipairs(self.items) do
            names[#names + 1] = i.name
        end
        local guess = nearest(name, names)
        core.fail("fail", "%s: no tensor '%s'%s", self.path, name, guess and ("; did you mean '%s'?"):format(guess) or "")
    end
    if #item.actions > 0 then
        core.fail("unsupported", "%s: tensor '%s' is merged when it is written; write the model and open that", self.path,
            name)
    end
    return core.view(item.source.file, item.source)
end

--- Parameters of the model, and bytes of its tensors where they lie now.
---@return integer parameters, integer bytes
function Model:size()
    local n, bytes = 0, 0
    for _, item in ipairs(self.items) do
        n = n + Model.extent(item.shape)
        bytes = bytes + item.source.size
    end
    return n, bytes
end

function Model:__tostring()
    local n, bytes = self:size()
    local kind = self.config and self.config.fields.model_type or self.kind
    return ("%s · %s parameters · %s · %d tensors%s"):format(kind, text.count(n), text.bytes(bytes), #self.items,
        self.adapters and (" · %d adapter%s merged in when written"):format(#self.adapters, #self.adapters > 1 and "s" or "")
        or "")
end

return Model
