--- Quartermoon from Lua: `local qm = require "qmoon"`.

local core = require "qmoon.core"

local qm = { version = core.version }

--- Opens a model by its headers: a folder with config.json and safetensors, a .gguf, .safetensors, .bin or .pt file.
---
---     m = qm.open "model"
---
---@param path string
---@return qmoon.Model
function qm.open(path)
    if type(path) ~= "string" then
        core.fail("fail", "open: path must be a string, the name of a folder or file, not a %s", type(path))
    end
    return require("qmoon.model").open(path)
end

local OPTIONS = { "round", "threads", "device", "force", "keep_nonfinite", "progress", "errors" }

local function check_model(what, model, outputs)
    if type(model) ~= "table" or type(model.items) ~= "table" then
        core.fail("fail", "%s: model must be what qm.open gives, not a %s", what, type(model))
    elseif type(outputs) ~= "table" then
        core.fail("fail", "%s: outputs must be a list such as {{\"out/model-int4\", format = \"nf4\"}}, not a %s", what,
            type(outputs))
    end
end

--- Writes a model as one or several outputs in one pass over it.
---
---     print(qm.write(m, {{"out/model-int4", format = "nf4", double_quant = true}, {"out/model.gguf", format = "q4_0"}}))
---
---@param model qmoon.Model
---@param outputs table[] {path, format=, double_quant=, block=, dtype=, shard_size=} each
---@param options? table {round=, threads=, device=, force=, keep_nonfinite=, progress=}
---@return table report; tostring gives the size and error table
function qm.write(model, outputs, options)
    check_model("write", model, outputs)
    require("qmoon.check").options("write", options, OPTIONS)
    local write = require "qmoon.write"
    local plan = write.plan(model, outputs, options)
    write.check(plan)
    return require("qmoon.report").of(write.run(plan))
end

--- What qm.write would do, to the byte; nothing is written.
---
---     qm.plan(m, {{"planned.gguf", format = "q4_k_m"}}).memory
---
---@param model qmoon.Model
---@param outputs table[]
---@param options? table
---@return qmoon.Plan
function qm.plan(model, outputs, options)
    check_model("plan", model, outputs)
    require("qmoon.check").options("plan", options, OPTIONS)
    return require("qmoon.write").plan(model, outputs, options)
end

--- Every number format there is: list of {name, doc, block, planes, …}, those made with a name at run time last.
---
---     for _, f in ipairs(qm.formats()) do print(f.name, f.doc) end
---
---@return table[]
function qm.formats()
    return require("qmoon.formats").list()
end

--- A model that can be run: qm.load(path):generate{prompt = "Once"}.  Weights stay in their mapped files.
---
---     lm = qm.load("model", {context = 64, load = "nf4"})
---     lm:generate{prompt = "Once", tokens = 2, greedy = true}
---
---@param source string|qmoon.Model a path as qm.open takes it, or what that gave; a merge is then applied unmerged
---@param options? {adapter: string|string[]|nil, context: integer?, kv: "f32"|"f16"|"bf16"|"q8_0"|nil, llm_int8: boolean?, exact: boolean?}
---@return qmoon.Runner
function qm.load(source, options)
    if type(source) ~= "string" and not (type(source) == "table" and type(source.items) == "table") then
        core.fail("fail", "load: source must be a path or what qm.open gives, not a %s", type(source))
    end
    require("qmoon.check").table("load", options or {}, "options")
    return require("qmoon.runner").load(source, options)
end

---@class qmoon.Device
---@field info fun(self): table    {name, index, capability, multiprocessors, memory, l2, driver, runtime, own_rcp}
---@field memory fun(self): number, number    bytes free, bytes in all
---@field close fun(self)    tensors on it stay

--- A GPU, opened; they are counted from 0.  Tensors go there with t:to(gpu) and back with t:to(qm.cpu).
---
---     gpu = qm.cuda(0)                      -- needs a GPU
---     t:to(gpu):quantize("nf4"):to(qm.cpu)
---
---@param index? integer
---@return qmoon.Device
function qm.cuda(index)
    return core.cuda(index)
end

--- This machine's memory, for t:to(qm.cpu).
qm.cpu = "cpu"

--- The tokenizer of a model: a folder, a .gguf file, or what qm.open gave.
---
---     ids = qm.tokenizer("model"):encode "Hello"
---
---@param model string|qmoon.Model
---@param options? {pre: string?}
---@return qmoon.Tokenizer
function qm.tokenizer(model, options)
    return require("qmoon.tokenize").open(model, options)
end

qm.arch = require "qmoon.arch"

local tensors = require "qmoon.tensor"
for _, name in ipairs { "tensor", "randn", "uniform", "student_t", "read" } do
    qm[name] = tensors[name]
end
require "qmoon.arithmetic"
local explore = require "qmoon.explore"
for _, name in ipairs { "error", "error_by", "compare", "sweep" } do
    qm[name] = explore[name]
end

local codebooks = require "qmoon.codebook"
for _, name in ipairs { "codebook", "kmeans", "quantile_codebook" } do
    qm[name] = codebooks[name]
end
qm.format = require("qmoon.function_format").format
qm.plot = require "qmoon.plot"

qm.ops = require "qmoon.ops"

---@class qmoon.Cache
---@field length fun(self): integer    tokens that every layer holds
---@field truncate fun(self, tokens: integer)    forgets all tokens but the first
---@field bytes fun(self): number    memory when it is full
---@field info fun(self): table    {layers, kv_heads, head_dim, context, dtype}
---@field copy fun(self): qmoon.Cache
---@field close fun(self)

--- A cache of keys and values for qm.ops.attention: {layers=, kv_heads=, head_dim=, context=, dtype="f16"|"f32"|"bf16"|"q8_0"}.
---
---     cache = qm.kv_cache{layers = 2, kv_heads = 2, head_dim = 32, context = 128, dtype = "f16"}
---     cache:bytes()
---
---@param shape {layers: integer, kv_heads: integer, head_dim: integer, context: integer, dtype: "f16"|"f32"|"bf16"|"q8_0"|nil}
---@return qmoon.Cache
function qm.kv_cache(shape)
    return core.kv_cache(shape)
end

return qm
