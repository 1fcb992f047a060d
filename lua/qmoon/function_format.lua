--- Formats given as two functions over a block: for experiments that no table of levels can express.
--
-- Blocks are plain lists.  That costs a copy in and one out, which LuaJIT compiles, and in return nothing a
-- function does can reach memory that is not its own.  What comes back is checked, number by number.  Codes
-- are packed as those of codebooks are (core/formats/bits.h): a block begins on a byte, first code in the
-- high bits.

local core = require "qmoon.core"
local bit = require "bit"
local ffi = require "ffi"
local formats = require "qmoon.formats"

local MOST_SCALES = 4

---@class qmoon.FunctionFormat
local Format = {}
Format.__index = Format

-- What a format was made of: buffers are sized by it, so it is kept where nobody can change it.
local specs = setmetatable({}, { __mode = "k" })

-- tensor -> the format that can decode it
local owners = setmetatable({}, { __mode = "k" })

-- ---- one block --------------------------------------------------------------------------------------------

-- Codes into bytes from out[at] on; returns the place behind them.
local function pack(out, at, codes, n, bits)
    local held, count = 0, 0
    for i = 1, n do
        held, count = bit.bor(bit.lshift(held, bits), codes[i]), count + bits
        if count >= 8 then
            count = count - 8
            out[at], at = bit.rshift(held, count), at + 1
            held = bit.band(held, bit.lshift(1, count) - 1)
        end
    end
    if count > 0 then
        out[at], at = bit.lshift(held, 8 - count), at + 1
    end
    return at
end

local function unpack_codes(bytes, at, codes, n, bits)
    local held, count = 0, 0
    local mask = bit.lshift(1, bits) - 1
    for i = 1, n do
        if count < bits then
            held, at, count = bit.bor(bit.lshift(bit.band(held, 255), 8), bytes[at]), at + 1, count + 8
        end
        count = count - bits
        codes[i] = bit.band(bit.rshift(held, count), mask)
    end
    return at
end

local function check_list(what, list, n)
    if type(list) ~= "table" then
        error(("gave a %s instead of a list of %s"):format(type(list), what), 0)
    elseif list[n] == nil or list[n + 1] ~= nil then
        error(("gave %d %s for a block of %d values"):format(#list, what, n), 0)
    end
end

local function check_codes(codes, n, most)
    check_list("codes", codes, n)
    for i = 1, n do
        local c = codes[i]
        if type(c) ~= "number" or not (c >= 0 and c <= most and c == math.floor(c)) then
            error(("gave code %s for value %d; codes go from 0 to %d"):format(tostring(c), i, most), 0)
        end
    end
end

local function check_scale(s, i, count)
    if type(s) ~= "number" then
        error(("gave %s as scale %d; scales = %d of them are declared"):format(tostring(s), i, count), 0)
    end
end

-- Scales of a block into out[at] …, or read from there.
local function store_scales(out, at, count, a, b, c, d, extra)
    if (count < 1 and a or count < 2 and b or count < 3 and c or count < 4 and d or extra) ~= nil then
        error(("gave more than the codes and %d scales; declare scales = n"):format(count), 0)
    end
    if count >= 1 then check_scale(a, 1, count) out[at] = a end
    if count >= 2 then check_scale(b, 2, count) out[at + 1] = b end
    if count >= 3 then check_scale(c, 3, count) out[at + 2] = c end
    if count >= 4 then check_scale(d, 4, count) out[at + 3] = d end
end

local function load_scales(from, at, count)
    if count == 0 then
        return
    elseif count == 1 then
        return from[at]
    elseif count == 2 then
        return from[at], from[at + 1]
    elseif count == 3 then
        return from[at], from[at + 1], from[at + 2]
    end
    return from[at], from[at + 1], from[at + 2], from[at + 3]
end

-- ---- all blocks -------------------------------------------------------------------------------------------

-- Calls run(first value, how many, number of the block) for every block.  Whatever goes wrong inside says
-- where.
local function each_block(format, verb, n, block, run)
    local number = 0
    local ok, e = pcall(function()
        for first = 0, n - 1, block do
            number = number + 1
            if number % 256 == 0 and core.interrupted() then
                core.fail("interrupt", "interrupted")
            end
            run(first, math.min(block, n - first), number)
        end
    end)
    if not ok then
        if type(e) == "table" and e.message then
            error(e, 0)
        end
        core.fail("fail", "format '%s': %s, block %d: %s", format.name, verb, number, tostring(e))
    end
end

-- A string's bytes as numbers: view.at[i].  The string is kept with them, as they lie in it.
local function view(type, bytes)
    return { at = ffi.cast(type, bytes), bytes = bytes }
end

local function trim(list, n)
    for i = #list, n + 1, -1 do
        list[i] = nil
    end
end

--- A quantised copy of t; t:quantize(format) comes here.
---@param t qmoon.Tensor
---@param options? {block: integer|"row"|nil}
---@return qmoon.Tensor
function Format:quantize(t, options)
    options = options or {}
    local spec = specs[self]
    if options.double_quant then
        core.fail("unsupported", "format '%s': double_quant goes with formats that have an absmax", spec.name)
    end
    local shape, bits, per_block = t:info().shape, spec.bits, spec.scales
    local _, block = core.plane_sizes(spec.opaque, 0, shape[#shape] or 1, options.block or spec.block)
    local x = view("const float *", t:dequantize():plane(1))
    local n = #x.bytes / 4
    local groups = math.ceil(n / block)
    local scales = ffi.new("float[?]", groups * per_block + 1)
    local codes, at = ffi.new("uint8_t[?]", groups * math.ceil(block * bits / 8) + 1), 0
    local list, most = {}, 2 ^ bits - 1
    each_block(spec, "encode", n, block, function(first, m, number)
        for i = 1, m do
            list[i] = x.at[first + i - 1]
        end
        trim(list, m)
        local c, s1, s2, s3, s4, extra = spec.encode(list)
        check_codes(c, m, most)
        store_scales(scales, (number - 1) * per_block, per_block, s1, s2, s3, s4, extra)
        at = pack(codes, at, c, m, bits)
    end)
    return self:of_planes(shape, block, { ffi.string(codes, at), ffi.string(scales, groups * per_block * 4) }, t:info().name)
end

--- The f32 values of a tensor in this format; q:dequantize() comes here.
---@param q qmoon.Tensor
---@return qmoon.Tensor
function Format:dequantize(q)
    local spec, info = specs[self], q:info()
    if owners[q] ~= self then
        core.fail("fail", "format '%s' did not make this tensor, which is %s", spec.name, info.format)
    end
    local n, codes, at = info.count, {}, 0
    local bytes, scales = view("const uint8_t *", q:plane(1)), view("const float *", q:plane(2))
    local y = ffi.new("float[?]", n + 1)
    each_block(spec, "decode", n, info.block, function(first, m, number)
        at = unpack_codes(bytes.at, at, codes, m, spec.bits)
        trim(codes, m)
        local values = spec.decode(codes, load_scales(scales.at, (number - 1) * spec.scales, spec.scales))
        check_list("values", values, m)
        for i = 1, m do
            local v = values[i]
            if type(v) ~= "number" then
                error(("gave a %s as value %d"):format(type(v), i), 0)
            end
            y[first + i - 1] = v
        end
    end)
    return core.tensor_of_planes("f32", info.shape, nil, { ffi.string(y, n * 4) }, info.name)
end

--- The same format for core, which knows its sizes and nothing else.
---@return userdata
function Format:opaque()
    return specs[self].opaque
end

--- A tensor of this format from the bytes of its planes.
---@param shape integer[]
---@param block integer
---@param planes string[]
---@param name string?
---@return qmoon.Tensor
function Format:of_planes(shape, block, planes, name)
    local q = core.tensor_of_planes(specs[self].opaque, shape, block, planes, name)
    owners[q] = self
    return q
end

--- As an entry of qm.formats().
---@return table
function Format:info()
    return specs[self].opaque:info()
end

function Format:__tostring()
    local spec = specs[self]
    return ("format %s: %d-bit codes, %d f32 a block of %s, by functions"):format(spec.name, spec.bits,
        spec.scales, tostring(spec.block))
end

-- ---- making -----------------------------------------------------------------------------------------------

---@class qmoon.FunctionFormatSpec
---@field name string
---@field block integer|"row"|nil values that are encoded together: any number, or a row; 64 unless given
---@field bits integer?           of a code: 1 to 8, 8 unless given
---@field scales integer?         numbers kept for each block: 0 to 4, 1 unless given
---@field encode fun(x: number[]): integer[], ...
---@field decode fun(codes: integer[], ...): number[]
local KNOWN = { name = "string", bits = "number", scales = "number", encode = "function", decode = "function" }

local function check_spec(spec)
    for k, v in pairs(spec) do
        if k ~= "block" and not KNOWN[k] then
            core.fail("fail", "format: there are fields name, block, bits, scales, encode, decode; no '%s'",
                tostring(k))
        elseif k ~= "block" and type(v) ~= KNOWN[k] then
            core.fail("fail", "format: field '%s' must be a %s, not a %s", k, KNOWN[k], type(v))
        end
    end
    for _, k in ipairs { "name", "encode", "decode" } do
        if spec[k] == nil then
            core.fail("fail", "format: field '%s' is missing: qm.format{name=, block=, encode=, decode=}", k)
        end
    end
    if (spec.scales or 1) > MOST_SCALES then
        core.fail("fail", "format '%s': up to %d scales a block, not %g", spec.name, MOST_SCALES, spec.scales)
    end
end

local function_format = {}

--- A format given as two functions, usable by value or by its name in t:quantize, qm.compare and qm.error.
---
--- encode(x) is given a block's values as a list and returns a list of as many codes, whole numbers from 0 to
--- 2^bits - 1, and then the block's scales: as many numbers as `scales` says, which are kept as f32 (a scale,
--- a zero point, whatever decode needs).  decode(codes, scale, …) is given those back and returns as many
--- values. Lists that are passed in are used again for the next block: do not keep them.  Your own may be
--- used again, too, if their length follows the block's: the last block of a tensor may be short.  Blocks run
--- over row ends.
---
---     sign = qm.format{
---         name = "sign", block = 64, bits = 1,
---         encode = function(x)
---             local codes, sum = {}, 0
---             for i = 1, #x do
---                 codes[i], sum = x[i] < 0 and 0 or 1, sum + math.abs(x[i])
---             end
---             return codes, sum / #x
---         end,
---         decode = function(codes, mean)
---             local y = {}
---             for i = 1, #codes do
---                 y[i] = codes[i] == 0 and -mean or mean
---             end
---             return y
---         end,
---     }
---     qm.compare(t, {"int2", sign, "sign:128"})        -- 1.5 bits/weight: 1 + 32/64
---
--- Raises: a field missing or of the wrong type.  Using it raises, with the number of the block, what a
--- function raised, and when one returns another number of codes, scales or values, or a code out of range.
---@param spec qmoon.FunctionFormatSpec
---@return qmoon.FunctionFormat
function function_format.format(spec)
    check_spec(spec)
    local block, bits, scales = spec.block or 64, spec.bits or 8, spec.scales or 1
    local self = setmetatable({}, Format)
    specs[self] = {
        name = spec.name, block = block, bits = bits, scales = scales,
        encode = spec.encode, decode = spec.decode,
        opaque = core.opaque(spec.name, bits, scales, block),
    }
    formats.register(spec.name, self)
    return self
end

--- The tensor itself, or its values when only functions can decode it.
---@param t qmoon.Tensor
---@return qmoon.Tensor
function function_format.plain(t)
    local owner = owners[t]
    return owner and owner:dequantize(t) or t
end

return function_format
