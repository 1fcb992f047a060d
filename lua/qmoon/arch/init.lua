--- The model architectures this program knows: one table each, `ls lua/qmoon/arch`.
--
-- A table says what a model of that architecture is made of and what GGUF calls it:
--
--   name            GGUF's name: general.architecture and the prefix of metadata keys
--   model_type      what config.json calls it
--   architectures   the class names of config.json that mean it
--   defaults        config fields that a config.json may leave out, as transformers fills them in
--   modules         rows {hf, gguf, role, bias=, …}; N stands for the layer, E for the expert
--   metadata        rows {key, type, field}, in the order GGUF files have them; "a.b" is a field of
--                   a field, a row whose field is absent is left out
--   rope_scaling    set of the rope scalings that `metadata` can express
--
-- In a row of `modules`, tied = true means that the tensor is absent when embeddings are shared, and E in
-- the checkpoint's name that GGUF stacks all experts to one tensor. arch.to_gguf hands the row out, so what
-- another architecture needs done to its values (rows permuted, one added to norms) is one more field there.

local core = require "qmoon.core"

local arch = {}

local PREFIX = "qmoon.arch."

--- Rows of tensors from rows of modules: a module has a weight and maybe a bias.
local function index(a)
    a.by_hf, a.by_gguf, a.rows = {}, {}, {}
    for _, module in ipairs(a.modules) do
        for _, suffix in ipairs(module.bias and { "weight", "bias" } or { "weight" }) do
            local row = setmetatable({
                hf = module[1] .. "." .. suffix,
                gguf = module[2] .. "." .. suffix,
                role = suffix == "bias" and "bias" or module[3],
            }, { __index = module })
            a.rows[#a.rows + 1] = row
            a.by_hf[row.hf], a.by_gguf[row.gguf] = row, row
        end
    end
    return a
end

local loaded

--- Every architecture, in file order.
function arch.list()
    if not loaded then
        loaded = {}
        for _, name in ipairs(core.modules(PREFIX)) do
            loaded[#loaded + 1] = index(require(name))
        end
    end
    return loaded
end

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

--- The architecture that GGUF files call `name`, or nil.
---@param name string
---@return table?
function arch.named(name)
    for _, a in ipairs(arch.list()) do
        if a.name == name then
            return a
        end
    end
end

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

--- A checkpoint tensor's name in GGUF, its row, layer and expert; nil when the architecture has none such.
---@return string? name, table? row, integer? layer, integer? expert
function arch.to_gguf(a, hf)
    local name, layer, expert = generic(hf)
    local row = a.by_hf[name]
    if row then
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

--- "embedding", "output", "norm", "linear", "bias"; nil for a tensor the architecture does not have.
---@return string?
function arch.role(a, hf)
    local row = a.by_hf[(generic(hf))]
    return row and row.role
end

--- Every tensor a model with these config fields must have, by its name in the checkpoint.
---@param fields table
---@return string[]
function arch.required(a, fields)
    local names = {}
    local function add(row, layer)
        for expert = 0, row.hf:find("%f[%w]E%f[%W]") and fields.num_local_experts - 1 or 0 do
            names[#names + 1] = specific(row.hf, layer, expert)
        end
    end
    for _, row in ipairs(a.rows) do
        if row.hf:find("%f[%w]N%f[%W]") then
            for layer = 0, fields.num_hidden_layers - 1 do
                add(row, layer)
            end
        elseif not (row.tied and fields.tie_word_embeddings) then
            add(row)
        end
    end
    return names
end

return arch
