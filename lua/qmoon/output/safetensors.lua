--- The bytes of safetensors files, as the reference writer lays them out: tensors sorted by element type,
-- widest first, then by name; header padded with blanks to a multiple of 8.  Source: huggingface/safetensors.

local core = require "qmoon.core"
local json = require "qmoon.json"

local safetensors = {}

local rank, info = {}, {}
for i, d in ipairs(core.dtypes()) do
    rank[d.name], info[d.name] = i, d
end

---@param dtype string
---@param shape integer[]
---@return integer bytes
function safetensors.size(dtype, shape)
    local bits = info[dtype].bits
    for _, d in ipairs(shape) do
        bits = bits * d
    end
    return bits / 8
end

--- Header of one file.  Sets t.at of every tensor to its place in the file.
---@param tensors {name:string, dtype:string, shape:integer[], size:integer}[]
---@return string header, integer size of the whole file
function safetensors.layout(tensors)
    local sorted = { unpack(tensors) }
    table.sort(sorted, function(a, b)
        if a.dtype ~= b.dtype then
            return rank[a.dtype] > rank[b.dtype]
        end
        return a.name < b.name
    end)
    local at, entries = 0, { '{"__metadata__":{"format":"pt"}' }
    for _, t in ipairs(sorted) do
        entries[#entries + 1] = ('%s:{"dtype":"%s","shape":[%s],"data_offsets":[%.0f,%.0f]}'):format(
            json.encode(t.name), info[t.dtype].safetensors, table.concat(t.shape, ","), at, at + t.size)
        t.at = at
        at = at + t.size
    end
    local text = table.concat(entries, ",") .. "}"
    text = text .. (" "):rep(-#text % 8)
    local header = core.pack("L", #text) .. text
    for _, t in ipairs(sorted) do
        t.at = t.at + #header
    end
    return header, at + #header
end

--- Cuts groups of tensors into files of at most `limit` bytes of data, never a group apart.
---@param groups table[][] lists of tensors
---@param limit integer
---@return table[][] files, each a list of tensors
function safetensors.shards(groups, limit)
    local files, size = { {} }, 0
    for _, group in ipairs(groups) do
        local need = 0
        for _, t in ipairs(group) do
            need = need + t.size
        end
        if size > 0 and size + need > limit then
            files[#files + 1], size = {}, 0
        end
        size = size + need
        for _, t in ipairs(group) do
            table.insert(files[#files], t)
        end
    end
    return files
end

--- Name of file i of n.
function safetensors.name(i, n)
    return n == 1 and "model.safetensors" or ("model-%05d-of-%05d.safetensors"):format(i, n)
end

--- model.safetensors.index.json for several files.
---@param files table[][]
---@param parameters integer
---@return string
function safetensors.index(files, parameters)
    local map, total = {}, 0
    for i, tensors in ipairs(files) do
        for _, t in ipairs(tensors) do
            map[t.name] = safetensors.name(i, #files)
            total = total + t.size
        end
    end
    return json.encode({ metadata = { total_parameters = parameters, total_size = total }, weight_map = map },
        { indent = 2 }) .. "\n"
end

return safetensors
