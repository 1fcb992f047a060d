--- The tensors of a model folder: one file, or shards that an index names; safetensors, or PyTorch's .bin.

local core = require "qmoon.core"
local files = require "qmoon.files"
local torch = require "qmoon.source.torch"

local checkpoint = {}

-- Looked for in this order; .bin files beside safetensors are the same weights again.
local LAYOUTS = {
    { index = "model.safetensors.index.json", single = "model.safetensors",
      shard = "^model%-%d+%-of%-%d+%.safetensors$" },
    { index = "pytorch_model.bin.index.json", single = "pytorch_model.bin",
      shard = "^pytorch_model%-%d+%-of%-%d+%.bin$" },
}

--- The tensors of one file, each with its file.
---@param path string
---@return table[] tensors, string? notice
function checkpoint.file(path)
    if not path:find "%.safetensors$" then
        return torch.read(path)
    end
    local h = core.safetensors(path)
    for _, t in ipairs(h.tensors) do
        t.file = h.file
    end
    return h.tensors
end

--- Shards named by an index: every one must be there, and agree with the index on what it holds.
local function indexed_shards(dir, index_name)
    local what = dir .. "/" .. index_name
    local index = core.json_decode(files.read(what), what)
    if type(index) ~= "table" or type(index.weight_map) ~= "table" then
        core.fail("corrupt", "%s: there is no weight_map in it", what)
    end
    local names, seen = {}, {}
    for tensor, shard in pairs(index.weight_map) do
        if type(shard) ~= "string" or shard == "" or shard:find "[/\\%z]" or shard:find("..", 1, true) then
            core.fail("corrupt", "%s: tensor '%s' is said to be in '%s', which is no plain file name", what,
                tensor, tostring(shard))
        end
        if not seen[shard] then
            seen[shard] = true
            names[#names + 1] = shard
        end
    end
    table.sort(names)
    for _, shard in ipairs(names) do
        if not core.stat(dir .. "/" .. shard) then
            core.fail("fail", "%s: shard '%s' is missing; download it again into the same folder", dir, shard)
        end
    end
    return names, index.weight_map, what
end

local function check_against_index(map, found, what)
    for tensor, shard in pairs(map) do
        if found[tensor] ~= shard then
            core.fail("corrupt", "%s: tensor '%s' is said to be in '%s', but it is %s", what, tensor, shard,
                found[tensor] and ("in '%s'"):format(found[tensor]) or "not there; download that shard again")
        end
    end
end

local function read_shards(dir, shards, map, what)
    local tensors, found = {}, {}
    for _, shard in ipairs(shards) do
        for _, t in ipairs((checkpoint.file(dir .. "/" .. shard))) do
            if found[t.name] then
                core.fail("corrupt", "%s: tensor '%s' is both in '%s' and in '%s'", dir, t.name,
                    found[t.name], shard)
            end
            found[t.name] = shard
            if not map or map[t.name] then
                tensors[#tensors + 1] = t
            end
        end
    end
    if map then
        check_against_index(map, found, what)
    end
    return tensors
end

--- All tensors of a model folder.
---@param dir string
---@return table[] tensors {name, dtype, shape, at, size, strides?, file}
function checkpoint.folder(dir)
    for _, layout in ipairs(LAYOUTS) do
        if core.stat(dir .. "/" .. layout.index) then
            return read_shards(dir, indexed_shards(dir, layout.index))
        elseif core.stat(dir .. "/" .. layout.single) then
            return read_shards(dir, { layout.single })
        end
    end
    for _, name in ipairs(core.list(dir)) do
        for _, layout in ipairs(LAYOUTS) do
            if name:find(layout.shard) then
                core.fail("fail", "%s: there are shards (%s) but no %s; download it too", dir, name,
                    layout.index)
            end
        end
    end
    core.fail("fail", "%s: no model.safetensors, no %s and no pytorch_model.bin in this folder", dir,
        LAYOUTS[1].index)
end

-- ---- tensors that are one --------------------------------------------------------------------------------

local function place(t)
    return ("%s %.0f %s %s %s"):format(t.file:path(), t.at, t.dtype, table.concat(t.shape, ","),
        t.strides and table.concat(t.strides, ",") or "")
end

--- PyTorch files hold a tied output head under its own name, too.  Where config.json says that the head is
--- tied and it lies where the embedding lies, it is left out, as safetensors has it.
---@param tensors table[]
---@return table[] tensors, string? notice
function checkpoint.without_tied_head(tensors)
    local others, kept = {}, {}
    for _, t in ipairs(tensors) do
        if not t.name:find "lm_head%.weight$" then
            others[place(t)] = t.name
        end
    end
    local notice
    for _, t in ipairs(tensors) do
        local twin = t.name:find "lm_head%.weight$" and others[place(t)]
        if twin then
            notice = ("%s is %s, as config.json says, and is written once"):format(t.name, twin)
        else
            kept[#kept + 1] = t
        end
    end
    return kept, notice
end

--- How many tensors share their place with another: each is written on its own.
---@param tensors table[]
---@return integer
function checkpoint.shared(tensors)
    local seen, n = {}, 0
    for _, t in ipairs(tensors) do
        if t.size > 0 then
            n = n + (seen[place(t)] and 1 or 0)
            seen[place(t)] = true
        end
    end
    return n
end

return checkpoint
