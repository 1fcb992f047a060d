--- Outputs: what a model is written as.  `ls lua/qmoon/output` lists the kinds.
--
-- An output's plan is a pure function of the model's headers and a spec; it knows every byte's place before
-- any weight is read.  qmoon.write carries it out.
--
---@class qmoon.Output
---@field path string       final name
---@field folder boolean    a folder of files, or one file
---@field title string      "nf4+dq (bnb)"
---@field files {name:string?, size:integer, writes:{[1]:integer,[2]:string}[]}[]
---@field sinks table<qmoon.Item, table>   where an item's values go: {file, format, block, at, double_quant,
---                                        nested_at, exact_zero, add, interleave_heads, late, importance, slice,
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
local nearest = require "qmoon.nearest"

local output = {}

local GGUF_ONLY = { "imatrix", "output_tensor_type", "token_embedding_type", "leave_output_tensor", "tensor_types", "profile",
                    "no_fallback", "pure" }

local function refuse_gguf_options(spec)
    for _, key in ipairs(GGUF_ONLY) do
        if spec[key] then
            core.fail("usage", "%s: %s goes with GGUF types, in a file whose name ends in .gguf", spec.path, key)
        end
    end
end

local function check_format(path, format)
    local formats = require("qmoon.output.folder").formats
    if not formats[format] then
        local known = {}
        for name in pairs(formats) do
            known[#known + 1] = name
        end
        table.sort(known)
        local guess = nearest(format, known)
        core.fail("unsupported", "%s: no folder is written as '%s'%s; there are %s, and GGUF types for a name ending in .gguf",
            path, format, guess and (" (did you mean '%s'?)"):format(guess) or "", table.concat(known, " "))
    end
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

--- The kinds by the types they write: bitsandbytes' types and plain floats go to a folder, every type
--- llama-quantize knows to a .gguf file.
---@param model qmoon.Model
---@param spec table {path, format=, …}
---@return qmoon.Output
function output.plan(model, spec)
    local path = spec.path or spec[1]
    if type(path) ~= "string" or path == "" then
        core.fail("usage", "an output needs a path: { \"out/model-int4\", format = \"nf4\" }")
    elseif type(spec.format) ~= "string" then
        core.fail("usage", "%s: an output needs a format: { %q, format = \"nf4\" }", path, path)
    end
    spec = setmetatable({ path = (path:gsub("(.)/+$", "%1")) }, { __index = spec })
    local out
    if path:find "%.gguf$" then
        out = require("qmoon.output.gguf").plan(model, spec)
    else
        refuse_gguf_options(spec)
        check_format(path, spec.format)
        out = require(model.kind == "file" and "qmoon.output.bare" or "qmoon.output.folder").plan(model, spec)
    end
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
