--- Outputs: what a model is written as.  `ls lua/qmoon/output` lists the kinds.
--
-- An output's plan is a pure function of the model's headers and a spec; it knows every byte's place before
-- any weight is read.  qmoon.write carries it out.
--
---@class qmoon.Output
---@field path string       final name; of several files that are no folder, files[i].path are those
---@field folder boolean    a folder of files, or one file
---@field title string      "nf4+dq (bnb)"
---@field files {name:string?, size:integer, writes:{[1]:integer,[2]:string}[]}[]
---@field sinks table<qmoon.Item, table>   where an item's values go: {file, format, block, at, double_quant,
---                                        nested_at, exact_zero, nearest, add, interleave_heads, late, importance, slice,
---                                        round, tensor}, or a list of such ; late(result) gives more writes,
---                                        importance = {count, load() -> f32 tensor}: how much each column counts,
---                                        slice = {from, rows, cols} takes some of the item's rows, round comes
---                                        instead of the output's own, errors are counted under tensor, if given
---@field copies table<qmoon.Item, table>  items carried over byte for byte: {file, at}, or {file, parts = {{from, at}}}
---@field side {name:string, bytes:string?, from:string?, size:integer?, late:function?}[]  small files beside (folders
---                                        only): bytes, a copy, or size bytes that late() gives once all is written
---@field rows {name:string, type:string, bytes:integer, count:integer, why:string?}[]  one per tensor written
---@field notices string[]

local core = require "qmoon.core"
local arch = require "qmoon.arch"
local nearest = require "qmoon.nearest"

local output = {}

local GGUF_ONLY = { "imatrix", "output_tensor_type", "token_embedding_type", "leave_output_tensor", "tensor_types", "profile", "override_kv",
                    "keep_split",
                    "no_fallback", "pure" }

local function refuse_gguf_options(spec)
    for _, key in ipairs(GGUF_ONLY) do
        if spec[key] then
            core.fail("usage", "%s: %s goes with GGUF types, in a file whose name ends in .gguf", spec.path, key)
        end
    end
end

--- Names of what a folder can be written as: bitsandbytes' and plain ones, and every other format but GGUF's.
local function folder_formats()
    local names, gguf = {}, {}
    for name in pairs(require("qmoon.output.folder").formats) do
        names[#names + 1] = name
    end
    for _, f in ipairs(require("qmoon.formats").list()) do
        if f.gguf_name then
            gguf[f.name] = true
        else
            names[#names + 1] = not require("qmoon.output.folder").formats[f.name] and f.name or nil
        end
    end
    table.sort(names)
    return names, gguf
end

local function fail_format(path, name)
    local known, gguf = folder_formats()
    if gguf[name] or pcall(require("qmoon.gguf_types").ftype, name) then
        core.fail("unsupported", "%s: %s is a type of GGUF files, and goes into one: give a name that ends in .gguf", path, name)
    end
    local guess = nearest(name, known)
    core.fail("unsupported", "%s: no folder is written as '%s'%s; there are %s, and GGUF types for a name ending in .gguf",
        path, name, guess and (" (did you mean '%s'?)"):format(guess) or "", table.concat(known, " "))
end

--- The spec for a folder with its format settled: a plain or bitsandbytes one by its name, options taken out of that,
--- or `own`, any other (qmoon.output.planes).
local function folder_spec(spec)
    local known = require("qmoon.output.folder").formats
    local name = type(spec.format) == "string" and spec.format:match "^[^:]*"
    name = name and known[name:lower()] and name:lower() or name
    local of_name = name and require("qmoon.formats").options(spec.format) or {}
    local block, double_quant = spec.block or of_name.block, spec.double_quant or of_name.double_quant
    if name and not known[name] then
        local names, gguf = folder_formats()
        local there = false
        for _, n in ipairs(names) do
            there = there or n == name
        end
        if gguf[name] or not there then
            fail_format(spec.path, name)
        end
    end
    local own
    if not name or not known[name] then
        own = require("qmoon.output.planes").spec(name or spec.format, { block = block, double_quant = double_quant })
    end
    return setmetatable({ format = own and own.label or name, block = block, double_quant = double_quant, own = own },
        { __index = spec })
end

local FLOAT = { f32 = true, f16 = true, bf16 = true }

--- Weights that bitsandbytes quantised and that are quantised once more: what that costs is said, and a folder of them
--- is written only when something was merged in, or on request.
local function note_requantised(model, spec, out)
    local again, carried = 0, 0
    for _, item in ipairs(model.quantised and model.items or {}) do
        local sinks = out.sinks[item] or {}
        if item.source.quantised then
            carried = carried + (out.copies[item] and 1 or 0)
            for _, sink in ipairs(sinks.format and { sinks } or sinks) do
                again = again + (FLOAT[sink.format] and 0 or 1)
            end
        end
    end
    if again > 0 and out.folder and not model.adapters and not spec.allow_requantize then
        core.fail("usage", "%s: its weights are %s already; quantising them again costs quality: start from the original, or allow "
            .. "it with --allow-requantize", model.path, model.quantised)
    elseif again > 0 then
        out.notices[#out.notices + 1] = ("%d weights were %s and are quantised a second time; errors are against the %s values, to "
            .. "which add what the first time cost"):format(again, model.quantised, model.adapters and "merged" or "dequantised")
    end
    if carried > 0 then
        out.notices[#out.notices + 1] = ("%d weights that nothing was merged into are carried over byte for byte"):format(carried)
    end
end

--- Weights that only functions of a script decode can be looked at and carried over, not streamed.
local function refuse_functions(model, spec, out)
    for _, item in ipairs(model.items) do
        if type(item.source.own) == "table" and not (out.copies[item] and out.copies[item].parts) then
            core.fail("unsupported", "%s: tensor '%s' is in format %s, which is decoded by functions, one tensor at a time "
                .. "(model:tensor(name):dequantize()); %s is not written from it", model.path, item.name, item.source.quantised,
                spec.path)
        end
    end
end

--- The kinds by the types they write: bitsandbytes' types and plain floats go to a folder, every type
--- llama-quantize knows to a .gguf file.
---@param model qmoon.Model
---@param spec table {path, format=, …}
---@return qmoon.Output
function output.plan(model, spec)
    local path = spec.path or spec[1]
    if type(path) ~= "string" or path == "" then
        core.fail("usage", "an output needs a path: { \"out/model-int4\", format = \"nf4\" }")
    elseif spec.format == nil then
        core.fail("usage", "%s: an output needs a format: { %q, format = \"nf4\" }", path, path)
    end
    spec = setmetatable({ path = (path:gsub("(.)/+$", "%1")) }, { __index = spec })
    local out
    if path:find "%.gguf$" and type(spec.format) ~= "string" then
        core.fail("unsupported", "%s: GGUF files have types of their own; formats made in Lua go into folders", path)
    elseif path:find "%.gguf$" then
        out = require("qmoon.output.gguf").plan(model, spec)
    else
        refuse_gguf_options(spec)
        spec = folder_spec(spec)
        local bare = model.kind == "file" or model.kind == "gguf" and not arch.of_gguf(model.gguf.meta)
        out = require(bare and "qmoon.output.bare" or "qmoon.output.folder").plan(model, spec)
    end
    refuse_functions(model, spec, out)
    note_requantised(model, spec, out)
    return out
end

--- Sum of the sizes of all its files.
---@param o qmoon.Output
---@return integer
function output.size(o)
    local n = 0
    for _, f in ipairs(o.files) do
        n = n + f.size
    end
    for _, s in ipairs(o.side) do
        n = n + (s.size or s.bytes and #s.bytes or core.stat(s.from).size)
    end
    return n
end

--- Bytes of weights, parameters, bits per weight.
---@param o qmoon.Output
---@return integer bytes, integer parameters, number bits
function output.weights(o)
    local bytes, count = 0, 0
    for _, row in ipairs(o.rows) do
        bytes, count = bytes + row.bytes, count + row.count
    end
    return bytes, count, count > 0 and 8 * bytes / count or 0
end

return output
