--- Tensors of PyTorch files.  core.torch lists all that are in a file; here the model among them is found.

local core = require "qmoon.core"

local torch = {}

--- Whether torch.save may have written a file of this name.
---@param path string
---@return boolean
function torch.is_name(path)
    return path:find "%.bin$" ~= nil or path:find "%.pth?$" ~= nil or path:find "%.ckpt$" ~= nil
end

-- What training loops keep a model under, besides their optimizer and counters; the first that is there.
local WRAPPERS = { "state_dict", "model_state_dict", "model", "module", "net", "params", "params_ema" }

local function wrapper_of(tensors)
    local groups, flat = {}, false
    for _, t in ipairs(tensors) do
        flat = flat or not t.group
        if t.group and not groups[t.group] then
            groups[t.group] = true
            groups[#groups + 1] = t.group
        end
    end
    for _, name in ipairs(flat and {} or WRAPPERS) do
        if groups[name] then
            return name, groups
        end
    end
end

--- The tensors of a file's model, under the names that its state dict has.
---@param path string
---@return table[] tensors {name, dtype, shape, at, size, strides?, file}, string? notice what was left out
function torch.read(path)
    local h = core.torch(path)
    local wrapper, groups = wrapper_of(h.tensors)
    local tensors, left = {}, {}
    for _, t in ipairs(h.tensors) do
        t.file = h.file
        if not wrapper or t.group == wrapper then
            t.name = wrapper and t.name:sub(#wrapper + 2) or t.name
            tensors[#tensors + 1] = t
        end
    end
    for _, group in ipairs(groups or {}) do
        left[#left + 1] = group ~= wrapper and group or nil
    end
    return tensors, left[1] and ("%s: the model is what '%s' holds; left out: %s"):format(path, wrapper,
        table.concat(left, ", ")) or nil
end

return torch
