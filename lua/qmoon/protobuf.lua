--- Protocol buffers, as much as tokenizer.model files need: the fields of one message, in order.
--
--   field = key, value        key = varint of number * 8 + wire type
--   0: varint   1: 8 bytes   2: varint length, bytes   5: 4 bytes

local core = require "qmoon.core"
local ffi = require "ffi"

local protobuf = {}

--- A varint at `at`: its value and the position after it. Values from 2^53 on lose their last bits.
local function varint(bytes, at, what)
    local value, scale = 0, 1
    for i = at, at + 9 do
        local b = bytes:byte(i)
        if not b then
            break
        end
        value = value + b % 128 * scale
        if b < 128 then
            return value, i + 1
        end
        scale = scale * 128
    end
    core.fail("corrupt", "%s: ends within a number", what)
end

local FIXED = { [1] = 8, [5] = 4 }

--- Iterates over a message's fields: number, wire type, value. Varints are numbers, everything else strings.
---@param bytes string
---@param what string names the file in messages
---@return fun(): integer?, integer?, number|string|nil
function protobuf.fields(bytes, what)
    local at = 1
    return function()
        if at > #bytes then
            return nil
        end
        local key, size
        key, at = varint(bytes, at, what)
        local wire = key % 8
        if wire == 0 then
            local value
            value, at = varint(bytes, at, what)
            return (key - wire) / 8, wire, value
        elseif wire == 2 then
            size, at = varint(bytes, at, what)
        else
            size = FIXED[wire]
        end
        if not size or at + size - 1 > #bytes then
            core.fail("corrupt", "%s: ends within a field, or is no protocol buffer", what)
        end
        at = at + size
        return (key - wire) / 8, wire, bytes:sub(at - size, at - 1)
    end
end

local function varint_bytes(value)
    local bytes = {}
    while value >= 128 do
        bytes[#bytes + 1] = string.char(value % 128 + 128)
        value = math.floor(value / 128)
    end
    return table.concat(bytes) .. string.char(value)
end

--- Bytes of one field: an integer or a boolean as varint, a string with its length.
---@param number integer
---@param value number|string|boolean
---@return string
function protobuf.field(number, value)
    if type(value) == "string" then
        return varint_bytes(number * 8 + 2) .. varint_bytes(#value) .. value
    elseif type(value) == "boolean" then
        value = value and 1 or 0
    end
    return varint_bytes(number * 8) .. varint_bytes(value)
end

local cell = ffi.new "float[1]"

--- The number in the four bytes of a float field.
---@param bytes string
---@return number
function protobuf.to_float(bytes)
    ffi.copy(cell, bytes, 4)
    return tonumber(cell[0])
end

--- Bytes of a field that is a 32-bit float.
---@param number integer
---@param value number
---@return string
function protobuf.float(number, value)
    return varint_bytes(number * 8 + 5) .. core.pack("f", value)
end

return protobuf
