--- A new GGUF file whose tensors are those of others, byte for byte: a header, the data copied behind it, and
--- both read again and compared before the file gets its name.

local core = require "qmoon.core"
local gguf = require "qmoon.gguf"

local copy = {}

local PIECE = 2 ^ 20

local function stop_when_interrupted()
    if core.interrupted() then
        core.fail("interrupt", "interrupted")
    end
end

--- Calls fn(offset in the tensor, length) until the tensor is through.
local function in_pieces(t, fn)
    for done = 0, t.size - 1, PIECE do
        stop_when_interrupted()
        fn(done, math.min(PIECE, t.size - done))
    end
end

-- Leading ones, which ggml drops, make no difference.
local function shape_key(t)
    local key = table.concat(t.shape, " ") .. " "
    while key:sub(1, 2) == "1 " do
        key = key:sub(3)
    end
    return key
end

local function same_tensor(a, b)
    return a.name == b.name and a.type == b.type and a.size == b.size and shape_key(a) == shape_key(b)
end

--- Raises "verify" unless the file at `path` has exactly these tensors, from these bytes.
---@param path string
---@param tensors table[] {name, type, shape, size, file, at}
function copy.check(path, tensors)
    local h = core.gguf(path)
    if #h.tensors ~= #tensors then
        core.fail("verify", "%s: has %d tensors instead of %d", path, #h.tensors, #tensors)
    end
    for i, t in ipairs(tensors) do
        local written = h.tensors[i]
        if not same_tensor(t, written) then
            core.fail("verify", "%s: tensor %d is '%s', not '%s' as it was", path, i, written.name, t.name)
        end
        in_pieces(t, function(done, n)
            if t.file:read(t.at + done, n) ~= h.file:read(written.at + done, n) then
                core.fail("verify", "%s: tensor '%s' was not copied as it is: is the disk sound?", path,
                    t.name)
            end
        end)
    end
end

--- Everything but the last step: the file is complete, checked, and still called "<path>.part".
---@param path string
---@param rows table[] metadata, as gguf.header wants it
---@param tensors table[] {name, type, shape, size, file, at} in the order they are to have
---@param options? {ggml_dims: boolean?} as gguf.header has it
---@return userdata outfile
---@return integer size
function copy.prepare(path, rows, tensors, options)
    local header, at, size = gguf.header(rows, tensors, options)
    local out = core.outfile(path, size)
    local ok, e = pcall(function()
        out:write(0, header)
        for i, t in ipairs(tensors) do
            in_pieces(t, function(done, n)
                out:write(at[i] + done, t.file:read(t.at + done, n))
            end)
        end
        copy.check(path .. ".part", tensors)
    end)
    if not ok then
        out:drop()
        error(e, 0)
    end
    return out, size
end

--- Writes the file at `path`, replacing one that is there.
---@return integer size
function copy.write(path, rows, tensors, options)
    local out, size = copy.prepare(path, rows, tensors, options)
    out:finish()
    return size
end

return copy
