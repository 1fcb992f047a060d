--- From items to safetensors files: every part of every item gets its place, and sinks learn theirs.

local core = require "qmoon.core"
local Model = require "qmoon.model"
local bnb = require "qmoon.output.bnb"
local safetensors = require "qmoon.output.safetensors"

local assemble = {}

assemble.FLOAT = { f32 = true, f16 = true, bf16 = true }

local DEFAULT_SHARD = 5e9

--- What an item's values become when they are written plainly; nil for what is carried over, as integers are.
---@param item qmoon.Item
---@param dtype string f16, bf16, f32 or keep
---@return string?
function assemble.dtype(item, dtype)
    local source = item.source
    if not source.format then
        return nil
    elseif dtype == "keep" then
        return assemble.FLOAT[source.dtype] and source.dtype or "f16"
    end
    return dtype
end

--- One tensor in one piece.
---@return table[] parts, table? sink
function assemble.plain(item, dtype)
    dtype = assemble.dtype(item, dtype)
    local part = { name = item.name, dtype = dtype or item.source.dtype, shape = item.shape }
    part.size = safetensors.size(part.dtype, item.shape)
    return { part }, dtype and { format = dtype }
end

--- A quantised weight as the source has it, byte for byte.
---@return table[] parts, nil sink
function assemble.carried(item)
    local parts = {}
    for i, from in ipairs(item.source.parts) do
        parts[i] = { name = from.name, dtype = from.dtype, shape = from.shape, size = from.size, from = from }
    end
    return parts, nil
end

local function copy_of(parts)
    if not parts[1].from then
        return { file = parts[1].file, at = parts[1].at }
    end
    return { file = parts[1].file, parts = parts }
end

--- An item of the model has its sink; one that stands for such an item or a part of it (see gguf_model.lua)
--- is one more sink of that.
local function add_sink(out, item, sink)
    local whole = item.part_of
    if not whole then
        out.sinks[item] = sink
        return
    end
    sink.tensor, sink.slice, sink.add, sink.round = item, item.slice, item.add, item.add and "none" or nil
    local list = out.sinks[whole] or {}
    list[#list + 1] = sink
    out.sinks[whole] = list
end

local function file_of(tensors, i, n)
    local header, size = safetensors.layout(tensors)
    local file = { name = safetensors.name(i, n), size = size, writes = { { 0, header } } }
    for _, t in ipairs(tensors) do
        t.file = i
        if t.bytes then
            file.writes[#file.writes + 1] = { t.at, t.bytes }
        end
    end
    return file
end

--- Fills files, sinks, copies and rows of an output; and its index, when there are several files.
---@param out qmoon.Output
---@param items qmoon.Item[]
---@param shard_size number?
---@param parts_of fun(item):table[], table?, string?, string?  parts, sink, why it is not quantised, how it
---       was reshaped
function assemble.fill(out, items, shard_size, parts_of)
    local groups, sinks, parameters = {}, {}, 0
    for i, item in ipairs(items) do
        local parts, sink, why, reshaped = parts_of(item)
        local bytes, count = 0, (Model.extent(item.shape))
        for _, p in ipairs(parts) do
            bytes = bytes + p.size
        end
        parameters = parameters + count
        local type = sink and (sink.title or sink.format) or item.source.quantised or parts[1].dtype
        out.rows[i] = { name = item.name, type = type, bytes = bytes, count = count, why = why,
                        reshaped = reshaped, shape = item.shape, item = item, block = sink and sink.block or item.source.block }
        groups[i], sinks[i] = parts, sink or false
    end
    local shards = safetensors.shards(groups, shard_size or DEFAULT_SHARD)
    for i, tensors in ipairs(shards) do
        out.files[i] = file_of(tensors, i, #shards)
    end
    for i, item in ipairs(items) do
        if sinks[i] then
            (sinks[i].place or bnb.place)(sinks[i], groups[i])
            add_sink(out, item, sinks[i])
        else
            out.copies[item] = copy_of(groups[i])
        end
    end
    if #shards > 1 then
        out.side[#out.side + 1] = { name = "model.safetensors.index.json",
                                    bytes = safetensors.index(shards, parameters) }
    end
end

--- Whether a format's name means that weights are quantised; what is wrong with its options is said here.
---@param spec table
---@return boolean
function assemble.check(spec)
    local quantised = spec.own or spec.format == "int8" or spec.format == "nf4" or spec.format == "fp4"
    if spec.dtype and not assemble.FLOAT[spec.dtype] then
        core.fail("usage", "%s: dtype must be f16, bf16 or f32 for what stays unquantised, not '%s'",
            spec.path, spec.dtype)
    elseif spec.own then
        return true
    elseif spec.format == "int8" and (spec.double_quant or spec.block) then
        core.fail("usage", "%s: int8 has one scale a row; double_quant and block go with nf4 and fp4",
            spec.path)
    elseif not quantised and (spec.double_quant or spec.block) then
        core.fail("usage", "%s: %s has no scales; double_quant and block go with nf4 and fp4", spec.path,
            spec.format)
    end
    return quantised
end

---@param spec table
---@return string
function assemble.title(spec)
    if spec.own then
        return spec.own.label
    end
    local block = spec.block and ":" .. spec.block or ""
    return spec.format .. block .. (spec.double_quant and "+dq" or "")
end

return assemble
