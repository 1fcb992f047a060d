--- A model: named tensors in files, a config, and what is to be done to each tensor on the way out.
--
-- Opening reads headers only.  A model is never changed: merge() gives a new one that shares the files and
-- adds, tensor by tensor, the steps that the stream will take.

local core = require "qmoon.core"
local arch = require "qmoon.arch"
local bnb = require "qmoon.source.bnb"
local checkpoint = require "qmoon.source.checkpoint"
local config = require "qmoon.config"
local json = require "qmoon.json"
local planes = require "qmoon.source.planes"
local text = require "qmoon.text"
local torch = require "qmoon.source.torch"

---@class qmoon.Item an output tensor and where it comes from
---@field name string its name in a checkpoint folder
---@field shape integer[]
---@field source table {file, name, format or nil, dtype, shape, at, size, strides?, rows?, cols?}; of a quantised
---              weight at is a list, and there are quantised ("nf4+dq"), parts, and what core/stream.h's qm_source has
---@field actions table[] merge actions of qmoon.lora, in order

---@class qmoon.Model
---@field path string
---@field kind "folder"|"gguf"|"file"
---@field config table? as qmoon.config has it
---@field items qmoon.Item[] in the order they are written
---@field notices string[] what the user should know
---@field quantised string? "nf4+dq", when weights are quantised by bitsandbytes
local Model = {}
Model.__index = Model

-- The object of a method: called with '.' instead of ':' it is missing.
local function check(self, name)
    if type(self) ~= "table" or getmetatable(self) ~= Model then
        core.fail("fail", "%s: called on something that is no model; it is a method: m:%s(…)", name, name)
    end
end

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
    local source = { file = file, name = t.name, shape = t.shape, at = t.at, size = t.size, strides = t.strides,
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

--- Items of tensors {name, dtype, shape, at, size, file}, the quantised ones put together.
local function items_of(tensors, path, quantization, dtype, own)
    local items, left, sources, notice = {}, nil, nil, nil
    if own then
        left, sources = planes.collect(own, tensors, dtype)
    else
        left, sources, notice = bnb.collect(tensors, path, quantization, dtype)
    end
    for _, t in ipairs(left) do
        items[#items + 1] = item_of(t, t.file)
    end
    for _, s in ipairs(sources) do
        items[#items + 1] = { name = s.name, shape = s.shape, source = s, actions = {} }
    end
    return in_order(items), sources, { notice }
end

local function note_quantised(m, sources)
    if sources[1] then
        m.quantised = sources[1].quantised
        m.notices[#m.notices + 1] = sources[1].own and ("%d weights are %s: their values are what that decodes to"):format(
            #sources, m.quantised) or ("%d weights are %s of bitsandbytes: their values are those that it decodes them to"):format(
            #sources, m.quantised)
    end
    return m
end

-- GPT-2 and its kin keep their linear weights turned round; quantised, they lie the usual way.
local TURNED = { gpt2 = true, ["openai-gpt"] = true, imagegpt = true, decision_transformer = true }

local SHORT = { float32 = "f32", float16 = "f16", bfloat16 = "bf16" }

local function open_checkpoint(path)
    local c = config.read(path)
    local quantization = type(c.raw.quantization_config) == "table" and c.raw.quantization_config or {}
    local tied, tensors = nil, checkpoint.folder(path)
    if c.fields.tie_word_embeddings then
        tensors, tied = checkpoint.without_tied_head(tensors)
    end
    local own = planes.is_config(quantization) and planes.open(path, true)
    local items, sources, notices = items_of(tensors, path, next(quantization) and quantization or false,
        SHORT[c.fields.dtype], own)
    if own then
        return note_quantised(new { path = path, kind = "folder", config = c, items = items, notices = notices }, sources)
    elseif sources[1] and not next(quantization) then
        core.fail("corrupt", "%s: tensor '%s' is %s of bitsandbytes, but config.json has no quantization_config", path,
            sources[1].name, sources[1].quantised)
    elseif sources[1] and TURNED[c.fields.model_type] then
        core.fail("unsupported", "%s: quantised %s weights lie the other way round than in its 16-bit checkpoints; load it with "
            .. "transformers", path, c.fields.model_type)
    end
    notices[#notices + 1] = tied
    return note_quantised(new { path = path, kind = "folder", config = c, items = items, notices = notices }, sources)
end

--- One file without a config: convolutions and stacks of matrices are rows all the same.  A convolution's filters are
--- [out, in, height, width] and make `out` rows; experts are [E, out, in] and make E * out.
local function as_rows(item)
    local shape, s = item.shape, item.source
    if #shape > 2 and not s.rows then
        local n, rows, cols = Model.extent(shape)
        if n > 0 and item.name:find "weight$" and not item.name:find "expert" then
            rows, cols = shape[1], n / shape[1]
        end
        s.rows, s.cols = rows, cols
    end
end

local function open_file(path)
    local folder, tensors, notice = core.stat(path).type == "dir"
    if folder then
        tensors = checkpoint.folder(path)
    else
        tensors, notice = checkpoint.file(path)
    end
    local items, sources, notices = items_of(tensors, path, nil, nil, folder and planes.open(path))
    for _, item in ipairs(items) do
        as_rows(item)
    end
    notices[#notices + 1] = notice
    local shared = checkpoint.shared(tensors)
    if shared > 0 then
        notices[#notices + 1] = ("tensors that are others under another name: %d; each is written on its own"):format(shared)
    end
    return note_quantised(new { path = path, kind = "file", items = items, notices = notices }, sources)
end

local function open_folder(path)
    if core.stat(path .. "/config.json") then
        return open_checkpoint(path)
    elseif core.stat(path .. "/adapter_config.json") then
        core.fail("fail", "%s: this is a LoRA adapter, not a model; open its base model and merge it: "
            .. "qm.open(base):merge(adapter)", path)
    elseif core.stat(path .. "/quantization.json") then -- of a file without a config, quantised by this program
        return open_file(path)
    end
    return open_checkpoint(path)
end

-- Tensors get the names they have in a checkpoint folder, where the architecture is known.
local function open_gguf(path)
    local h = require("qmoon.gguf_split").read(path)
    local a = arch.of_gguf(h.meta)
    local items = {}
    for i, t in ipairs(h.tensors) do
        local item = item_of(t, t.file)
        item.gguf_name, item.type_name = t.name, t.type_name
        local hf, row = nil, nil
        if a then
            hf, row = arch.to_hf(a, t.name)
        end
        item.name = hf and not row.stacked and hf or t.name
        items[i] = item
    end
    return new { path = path, kind = "gguf", gguf = h, items = items }
end

--- Opens a model: a folder with config.json and safetensors or PyTorch's .bin, 16-bit or quantised by bitsandbytes; a
--- .gguf file (or the first of its parts); or one .safetensors, .bin, .pt, .pth or .ckpt file.
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
    elseif path:find "%.safetensors$" or torch.is_name(path) then
        return open_file(path)
    end
    core.fail("unsupported", "%s: not a model folder, and none of .safetensors, .gguf, .bin, .pt, .pth, .ckpt", path)
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
---
---     merged = m:merge "adapter"
---
---@param adapter string|table folder of a peft adapter, or what qmoon.lora.open gave
---@return qmoon.Model
function Model:merge(adapter)
    check(self, "merge")
    local lora = require "qmoon.lora"
    if type(adapter) ~= "string" and type(adapter) ~= "table" then
        core.fail("fail", "merge: adapter must be the folder of a peft adapter, not a %s", type(adapter))
    end
    if self.kind == "gguf" then
        core.fail("unsupported", "%s: merge into the model's checkpoint folder, then convert to GGUF", self.path)
    end
    local folder = type(adapter) == "string" and adapter or nil
    adapter = folder and lora.open(folder) or adapter
    local plan = lora.plan(adapter, described(self))
    local n = #(self.adapters or {}) + 1
    local m = { path = self.path, kind = self.kind, config = self.config, quantised = self.quantised,
                items = merged_items(self, plan, n),
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

--- A tensor of the model by name, as a view of its file.
---
---     m:tensor "model.layers.0.mlp.down_proj.weight"
---
---@param name string
---@return qmoon.Tensor
function Model:tensor(name)
    check(self, "tensor")
    local item = self.by_name[name]
    if not item then
        local nearest = require "qmoon.nearest"
        local names = {}
        for _, i in ipairs(self.items) do
            names[#names + 1] = i.name
        end
        local guess = nearest(tostring(name), names)
        core.fail("fail", "%s: no tensor '%s'%s", self.path, tostring(name), guess and ("; did you mean '%s'?"):format(guess) or "")
    end
    if #item.actions > 0 then
        core.fail("unsupported", "%s: tensor '%s' is merged when it is written; write the model and open that", self.path,
            name)
    end
    local s = item.source
    if type(s.own) == "table" then
        local bytes = {}
        for i, from in ipairs(s.parts) do
            bytes[i] = from.file:read(from.at, from.size)
        end
        return s.own:of_planes(s.shape, s.block, bytes, s.name)
    end
    return core.view(s.file, s)
end

--- The error that a format would make in every matrix of the model: a result, the worst tensor first.  The model is
--- streamed, so memory does not grow with it, and nothing is written.  Vectors (norms, biases) are left out.
---
---     m:report("nf4", {match = "down_proj"}):worst(3)
---     m:report("q4_k", {skip = "embed", {"v_proj|down_proj", "q6_k"}, {"norm", "keep"}})
---     m:report("nf4"):save "report.csv"
---
---@param format qmoon.FormatSpec
---@param rules? {match: string|string[]|nil, skip: string|string[]|nil, threads: integer?, [integer]: string[]} regular expressions over tensor names; {pattern, format or "keep"} gives some tensors a format of their own, the first that matches
---@return qmoon.Result with tensor, format, values, bits, and the figures of qm.error
function Model:report(format, rules)
    check(self, "report")
    return require("qmoon.model_report").of(self, format, rules)
end

--- How far another model's tensors are from this one's: a result, the worst first.  Both are streamed side by side;
--- either may be a folder, a GGUF file or a single file.  `qmoon compare` and `qmoon verify` do it from a shell.
---
---     qm.write(m, {{"written-nf4", format = "nf4"}})
---     m:compare(qm.open "written-nf4"):worst(3)
---
---@param other qmoon.Model without adapters
---@return qmoon.Result with tensor, a, b, values, and the figures of qm.error
function Model:compare(other)
    check(self, "compare")
    if type(other) ~= "table" or getmetatable(other) ~= Model then
        core.fail("fail", "compare: other must be what qm.open gives, not a %s", type(other))
    elseif other.adapters then
        core.fail("unsupported", "compare: %s has adapters that are not merged yet; compare the other way round: other:compare(m)",
            other.path)
    end
    return (require("qmoon.model_compare").compare(self, other))
end

--- The model's tensors: a result with tensor, type, shape, values and bytes.
---
---     m:tensors "layers\\.0\\."
---
---@param pattern? string a regular expression over names
---@return qmoon.Result
function Model:tensors(pattern)
    check(self, "tensors")
    return require("qmoon.model_report").tensors(self, pattern)
end

--- Parameters of the model, and bytes of its tensors where they lie now.
---
---     parameters, bytes = m:size()
---
---@return integer parameters, integer bytes
function Model:size()
    check(self, "size")
    local n, bytes = 0, 0
    for _, item in ipairs(self.items) do
        n = n + Model.extent(item.shape)
        bytes = bytes + item.source.size
    end
    return n, bytes
end

-- The type that most of the bytes are in, and whether others are there.
local function main_type(m)
    local bytes, best, kinds = {}, nil, 0
    for _, item in ipairs(m.items) do
        local t = item.type_name or item.source.quantised or item.source.dtype
        kinds = kinds + (bytes[t] and 0 or 1)
        bytes[t] = (bytes[t] or 0) + item.source.size
        best = (not best or bytes[t] > bytes[best]) and t or best
    end
    return best and best .. (kinds > 1 and " and others" or "") or "empty"
end

-- A head that is the embedding is counted once; where it is much of the model, that is worth knowing.
local function tied_text(m, n)
    if not (m.config and m.config.fields.tie_word_embeddings) then
        return ""
    end
    for _, item in ipairs(m.items) do
        if item.name:find "embed_tokens%.weight$" then
            local count = Model.extent(item.shape)
            return (" · embeddings tied (%s = %.1f %%)"):format(text.count(count), 100 * count / n)
        end
    end
    return ""
end

function Model:__tostring()
    local n, bytes = self:size()
    local kind = self.config and self.config.fields.model_type or self.kind
    for _, pair in ipairs(self.gguf and self.gguf.meta or {}) do
        kind = pair.key == "general.architecture" and pair.value .. " gguf" or kind
    end
    return ("%s · %s parameters · %s · %s · %d tensors%s%s"):format(kind, text.count(n), main_type(self), text.bytes(bytes),
        #self.items, tied_text(self, n), self.adapters and (" · %d adapter%s merged in when written"):format(#self.adapters, #self.adapters > 1 and "s" or "")
        or "")
end

return Model
