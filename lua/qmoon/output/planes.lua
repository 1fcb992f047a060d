--- A weight in any format, as tensors of a checkpoint: one for each plane of the format, named after it.
--
--   X.codes  U8 [bytes]   X.scales  F32 [groups]   …      what planes there are: qm.formats()
--   double quantised      X.absmax  U8 [groups]    X.nested_absmax  F32 [groups / 256]   X.nested_offset  F32 []
--   nvfp4                 X.factor  F32 []         of the whole tensor
--
-- bitsandbytes has a layout of its own for its formats (bnb.lua). Which weights are quantised, and how, stands in
-- quantization.json (description.lua); qmoon.source.planes reads both.

local core = require "qmoon.core"
local formats = require "qmoon.formats"
local safetensors = require "qmoon.output.safetensors"
local Model = require "qmoon.model"

local planes = {}

local NESTED = 256

local info_of = {}
for _, f in ipairs(core.formats()) do
    info_of[f.name] = f
end

--- The description of a format given by name or by value.
---@param format qmoon.FormatSpec
---@return table
function planes.info(format)
    return type(format) == "string" and info_of[format] or format:info()
end

--- How weights are to be quantised: the format itself, by name or value, its block and double quantisation.
---@param format qmoon.FormatSpec with options in its name or without
---@param options {block: integer|"row"|nil, double_quant: boolean?}
---@return {format: string|userdata|table, info: table, block: integer|"row"|nil, double_quant: boolean?, label: string}
function planes.spec(format, options)
    local value, merged = formats.resolve(format, options)
    local info = planes.info(value)
    local label = info.name .. (merged.block and ":" .. merged.block or "") .. (merged.double_quant and "+dq" or "")
    if merged.double_quant and not info.can_double_quant then
        core.fail("usage", "%s: double_quant goes with formats that have an absmax, not %s", label, info.name)
    elseif type(value) == "table" and merged.double_quant then
        core.fail("usage", "%s: a format of functions is not double quantised", label)
    end
    return { format = value, info = info, block = merged.block, double_quant = merged.double_quant, label = label }
end

--- Why rows of a tensor do not go into a format, or nil.
---@param spec table from planes.spec
---@param cols integer
---@return string?
function planes.misfit(spec, cols)
    local block = tonumber(spec.block) or spec.info.block
    if not spec.info.over_rows and block > 1 and cols % block ~= 0 then
        return ("rows not a multiple of %d"):format(block)
    end
end

local function tensor_of(name, dtype, bytes)
    local each = safetensors.size(dtype, {})
    return { name = name, dtype = dtype, shape = { bytes / each }, size = bytes }
end

local function scalar(name)
    return { name = name, dtype = "f32", shape = {}, size = 4 }
end

-- The format of functions needs the whole tensor at once, in Lua.
local function by_functions(spec, block)
    return function(values, sink, file)
        local q = spec.format:quantize(values, { block = block })
        for i, at in ipairs(sink.at) do
            file:write(at, q:plane(i))
        end
        local sums = values:errors(q)
        q:close()
        return sums
    end
end

--- What is known once a tensor is through: numbers for the whole of it, into the tensors at `places`.
local function late_numbers(places)
    return function(result)
        local writes = {}
        for field, part in pairs(places) do
            writes[#writes + 1] = { part.at, core.pack("f", result[field]) }
        end
        return writes
    end
end

--- The tensors that hold an item's weight, first the planes in order, and the sink that fills them.
---@param item qmoon.Item
---@param spec table from planes.spec
---@param quirks {zero_blocks:string?, rounding:string?}
---@return table[] parts, table sink
function planes.parts(item, spec, quirks)
    local n, _, cols = Model.extent(item.shape)
    cols = item.source.cols or cols
    local sizes, block = core.plane_sizes(type(spec.format) == "table" and spec.format:opaque() or spec.format, n, cols,
        spec.block, item.name)
    local parts, late = {}, {}
    for i, plane in ipairs(spec.info.planes) do
        local nested = spec.double_quant and i == 2
        parts[i] = tensor_of(item.name .. "." .. plane.name, nested and "u8" or plane.dtype,
            nested and sizes[i] / 4 or sizes[i])
    end
    local sink = { format = spec.format, title = spec.label, block = block, double_quant = spec.double_quant,
                   exact_zero = quirks.zero_blocks == "exact", nearest = quirks.rounding == "nearest",
                   planes = #parts }
    if spec.double_quant then
        local nested = tensor_of(item.name .. ".nested_absmax", "f32", 4 * math.ceil(sizes[2] / 4 / NESTED))
        parts[#parts + 1], sink.nested = nested, nested
        late.offset = scalar(item.name .. ".nested_offset")
        parts[#parts + 1] = late.offset
    end
    if spec.info.tensor_range > 0 then
        sink.factor = 1 -- until the tensor has been seen
        late.factor = scalar(item.name .. ".factor")
        parts[#parts + 1] = late.factor
    end
    if type(spec.format) == "table" then
        sink.whole = by_functions(spec, block)
    end
    sink.late = next(late) and late_numbers(late) or nil
    sink.place = planes.place
    return parts, sink
end

--- Once the parts have their place in a file, the sink learns it.
function planes.place(sink, parts)
    sink.file, sink.at = parts[1].file, {}
    for i = 1, sink.planes do
        sink.at[i] = parts[i].at
    end
    sink.nested_at = sink.nested and sink.nested.at
end

return planes
