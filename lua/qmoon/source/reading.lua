--- How an item's values and bytes are read: sources for core.stream, and plain copies.

local core = require "qmoon.core"

local reading = {}

local function fail_slice(s, why)
    core.fail("unsupported", "%s: tensor '%s' is needed in parts, and %s; write the model as 16-bit first "
        .. "(qmoon quantize … --type keep) and go on from there", s.file:path(), s.name, why)
end

-- Parts of a quantised weight begin where blocks do, those of a double-quantised one where 256 blocks do.
local function cut_planes(source, s, slice)
    local first = slice.from * slice.cols
    local before, group = core.plane_sizes(s.format, first, source.cols, s.block)
    if slice.cols ~= source.cols or first % (group * (s.double_quant and 256 or 1)) ~= 0 then
        fail_slice(s, ("its parts do not begin with its %s blocks"):format(s.quantised))
    end
    for i, bytes in ipairs(before) do
        source.at[i] = source.at[i] + (s.double_quant and i == 2 and first / group or bytes)
    end
    if s.double_quant then
        source.nested_at = source.nested_at + first / group / 256 * 4
    end
end

local BYTES = { f32 = 4, f16 = 2, bf16 = 2 }

local function cut_strided(source, s, slice)
    if #s.shape == 2 and slice.cols == source.cols then
        source.at[1] = source.at[1] + slice.from * s.strides[1] * BYTES[s.format]
        source.shape = { slice.rows, slice.cols }
    elseif slice.from > 0 or slice.rows * slice.cols ~= source.rows * source.cols then
        fail_slice(s, "its elements do not lie in order")
    end
end

--- The source of core.stream for the values at `s`, or for the rows of it that a slice names: {from, rows,
--- cols, interleaved_heads}.  A vector may be taken as rows of one value.
---@param s table source of an item, or a tensor with format, file, name, shape, at and size
---@param slice table?
---@return table
function reading.of(s, slice)
    local n = 1
    for _, d in ipairs(s.shape) do
        n = n * d
    end
    local cols = #s.shape < 2 and n or s.shape[#s.shape]
    local source = { file = s.file, files = s.files, name = s.name, format = s.format, block = s.block,
                     round = s.round,
                     rows = s.rows or (cols > 0 and n / cols or 0), cols = s.cols or cols,
                     at = type(s.at) == "table" and { unpack(s.at) } or { s.at },
                     strides = s.strides, shape = s.strides and s.shape,
                     double_quant = s.double_quant, nested_at = s.nested_at, offset = s.offset, factor = s.factor }
    if slice then
        if type(s.at) == "table" then
            cut_planes(source, s, slice)
        elseif s.strides then
            cut_strided(source, s, slice)
        else
            source.at[1] = source.at[1] + slice.from * s.size / (source.rows * source.cols / slice.cols)
        end
        source.rows, source.cols, source.interleaved_heads = slice.rows, slice.cols, slice.interleaved_heads
    end
    return source
end

-- ---- copying ----------------------------------------------------------------------------------------------

local COPY = 2 ^ 20

local function copy_run(from, to, at)
    for done = 0, from.size - 1, COPY do
        to:write(at + done, from.file:read(from.at + done, math.min(COPY, from.size - done)))
    end
end

local function copy_strided(s, to, at)
    local n = 1
    for _, d in ipairs(s.shape) do
        n = n * d
    end
    for done = 0, n - 1, COPY do
        local bytes = core.gather(s.file, s, done, math.min(COPY, n - done))
        to:write(at + done * (s.size / n), bytes)
    end
end

--- Carries bytes over as they are: all of a tensor's to one place, or those of each tensor that a weight is
--- made of.
---@param s table source of an item
---@param to userdata outfile
---@param copy {at:integer?, parts:{from:table, at:integer}[]?}
function reading.copy(s, to, copy)
    for _, p in ipairs(copy.parts or {}) do
        copy_run(p.from, to, p.at)
    end
    if not copy.parts then
        (s.strides and copy_strided or copy_run)(s, to, copy.at)
    end
end

--- A tensor's bytes, in order; of a quantised weight those of its codes.
---@param s table source of an item
---@return string
function reading.bytes(s)
    if s.strides then
        local n = 1
        for _, d in ipairs(s.shape) do
            n = n * d
        end
        return core.gather(s.file, s, 0, n)
    end
    local run = s.parts and s.parts[1] or s
    return s.file:read(run.at, run.size)
end

return reading
