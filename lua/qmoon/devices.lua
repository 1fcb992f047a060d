--- Which GPUs a run uses, and how many threads go through them: what --device means.

local core = require "qmoon.core"
local text = require "qmoon.text"

local devices = {}

local opened = setmetatable({}, { __mode = "v" })

--- A GPU is opened once, so that the tensors of two models are on the same one.
local function open(index)
    opened[index] = opened[index] or core.cuda(index)
    return opened[index]
end

local function gpu(word)
    local index = word:match "^cuda:(%d+)$" or word == "cuda" and "0"
    if not index then
        core.fail("usage", "--device: auto, cpu, cuda:0, cuda:1 … are devices, '%s' is none", word)
    end
    return open(tonumber(index))
end

--- The GPUs of a word: every one there is for "auto" (none for nil and "cpu"), or those named, separated by commas.
---@param word string?
---@return table[] list, string? why there are none for "auto"
function devices.choose(word)
    local list = {}
    if word == nil or word == "cpu" then
        return list
    elseif word == "auto" then
        local count, why = core.cuda_count()
        for i = 1, count do
            list[i] = open(i - 1)
        end
        return list, count == 0 and (why or "there is no GPU") or nil
    end
    for each in word:gmatch "[^,]+" do
        list[#list + 1] = gpu(each)
    end
    return list
end

--- How many couriers fit into the GPUs' memory, of those that `threads` would use: each GPU takes its turn, so the smallest
--- decides.  need: bytes of one courier.
---@param list table[]
---@param threads integer
---@param need number
---@return integer
function devices.couriers(list, threads, need)
    local each = math.huge
    for _, d in ipairs(list) do
        each = math.min(each, math.floor(0.9 * d:memory() / need))
    end
    return math.min(threads, each * #list)
end

--- "cuda:0 NVIDIA H200, 139.8 GiB · 16 pieces of 92 MiB at a time", or "cpu".
---@param plan qmoon.Plan
---@return string
function devices.describe(plan)
    if not plan.couriers then
        return plan.no_couriers and ("cpu (%s)"):format(plan.no_couriers) or "cpu"
    end
    local names = {}
    for i, d in ipairs(plan.devices) do
        names[i] = tostring(d)
    end
    return ("%s · %d pieces of %s at a time"):format(table.concat(names, "; "), plan.couriers, text.memory(plan.courier_memory))
end

return devices
