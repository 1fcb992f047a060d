--- How a model's weights come into memory: as they are, or quantised on the way (options.load), and from
--- there to what computes.
--
-- A place (qmoon.graph.weights) becomes a weight of core.load. Where nothing is to be done to it, as for a
-- 16-bit weight on the CPU, it stays in its mapped file.

local core = require "qmoon.core"
local ops = require "qmoon.ops"
local planes = require "qmoon.output.planes"
local progress = require "qmoon.progress"

local loading = {}

local PLAIN = { f32 = true, f16 = true, bf16 = true }

-- Threads that read: the copy to a GPU is fed from the page cache by about eight.
local MOST_READERS = 16

-- ---- which weights ----------------------------------------------------------------------------------------

-- bitsandbytes quantises matrices, not stacks, and rounds what it decodes to the type that it quantised.
local BNB = { nf4 = true, fp4 = true, int8 = true }
local ROUNDED = { nf4 = true, fp4 = true }

--- What `load` asks for: a format as everywhere, "nf4", "nf4:dq", "int4:128", "q4_0", or a value.
---@param word qmoon.FormatSpec?
---@return table?
function loading.spec(word)
    local spec = word and planes.spec(word)
    if spec and type(spec.format) == "table" then
        core.fail("unsupported",
            "load: format '%s' is made of functions; write the model in it with qm.write, and load that",
            spec.label)
    end
    return spec
end

-- Linear layers, as when a folder is written (qmoon.output.folder).
local function is_quantised(spec, place, shape)
    local role = place.role == "linear" or place.role == "experts" and not BNB[spec.info.name]
    return role and #shape == 2 and not planes.misfit(spec, shape[2])
end

--- What is to be done with the tensor at a place: an entry for core.load.
---@param place qmoon.Place
---@param w qmoon.Weights
---@param options table of the runner
---@param spec table?
---@return table
local function entry_of(place, w, options, spec)
    local tensor = place.owner[place.key]
    local info = tensor:info()
    local entry = { tensor = tensor, place = place, bytes = info.bytes, format = nil }
    entry.mapped = #info.shape >= 2
    if not entry.mapped then
        return entry
    elseif spec and is_quantised(spec, place, info.shape) then
        entry.format, entry.block, entry.double_quant = spec.format, spec.block, spec.double_quant
        entry.round = ROUNDED[spec.info.name] and info.format ~= "f32" and PLAIN[info.format] and info.format
            or nil
    elseif place.owner == w.top.token_embd and options.device and not PLAIN[info.format] then
        entry.format = "f16" -- rows are looked up there by ids that only the device knows
    end
    local int8 = (entry.format or info.format) == "int8"
    entry.llm_int8 = options.llm_int8 and int8 and place.key == "weight"
    entry.prepare = not options.exact and not entry.llm_int8 and place.owner ~= w.top.token_embd
    return entry
end

local function as_in_files(a, b)
    local p, q = a.place, b.place
    if p.path ~= q.path then
        return p.path < q.path
    elseif p.at ~= q.at then
        return p.at < q.at
    end
    return a.number < b.number
end

--- All weights of a model, in the order of the files.
---@param w qmoon.Weights
---@param options table of the runner
---@return table[]
function loading.list(w, options)
    local spec, list = loading.spec(options.load), {}
    for i, place in ipairs(w.list) do
        list[i] = entry_of(place, w, options, spec)
        list[i].number = i
    end
    table.sort(list, as_in_files)
    local modules = { w.top }
    for layer = 0, #w.layers do
        modules[#modules + 1] = w.layers[layer]
    end
    for _, layer in ipairs(modules) do
        for _, m in pairs(layer) do
            for _, l in ipairs(m.lora or {}) do
                for _, key in ipairs { "A", "B" } do
                    list[#list + 1] = { tensor = l[key], place = { owner = l, key = key },
                                        bytes = l[key]:info().bytes }
                end
            end
        end
    end
    return list
end

-- ---- doing it ---------------------------------------------------------------------------------------------

local function paths(list)
    local index, n = {}, 0
    for _, e in ipairs(list) do
        local path = e.place.path
        if path and not index[path] then
            n = n + 1
            index[path] = n
        end
    end
    return index, n
end

--- A function of the bytes that are done, and one to call at the end: "loading shards 7/19", or tensors of a
--- single file.
local function shower(list, options)
    if not (options.progress or core.terminal(2)) then
        return nil, function() end
    end
    local shards, n = paths(list)
    local total, ends = 0, {}
    for i, e in ipairs(list) do
        total = total + e.bytes
        ends[i] = total
    end
    local step, finish = progress.new(n > 1 and "loading shards" or "loading")
    local at = 1
    return function(bytes)
        while at < #list and ends[at] <= bytes do
            at = at + 1
        end
        local e = list[at]
        local name = e.tensor:info().name or ""
        step { index = n > 1 and shards[e.place.path] or at, tensors = n > 1 and n or #list, tensor = name,
               bytes = bytes, total = total }
    end, finish
end

--- Only what has to be read.
local function needs_work(list, device)
    local some = {}
    for _, e in ipairs(list) do
        some[#some + 1] = (device or e.format) and e or nil
    end
    return some
end

--- How many threads read.
---@param list table[]
---@param options table
---@return integer
function loading.threads(list, options)
    local bytes = 0
    for _, e in ipairs(list) do
        bytes = bytes + e.bytes
    end
    local most = options.device and MOST_READERS or math.huge
    return math.max(1, math.min(options.threads or core.cpus(), most, math.ceil(bytes / 2 ^ 23)))
end

--- The tensors to compute with, by those that were read: on options.device or here; on `plan` only their
--- sizes.
---@param list table[] from loading.list
---@param options table of the runner
---@param plan userdata? from core.plan_device
---@return table<qmoon.Tensor, qmoon.Tensor>
function loading.bring(list, options, plan)
    local device, loaded = plan or options.device, {}
    local some = needs_work(list, device)
    local threads = plan and 1 or loading.threads(some, options)
    local job = { device = device, couriers = options.device and not plan
        and core.couriers({ device }, threads) or nil }
    for i, e in ipairs(some) do
        job[i] = { tensor = e.tensor, format = e.format, block = e.block, double_quant = e.double_quant,
                   round = e.round, prepare = e.prepare }
    end
    local finish
    if not plan then
        job.progress, finish = shower(some, options)
    end
    local pool = core.pool(threads)
    local ok, result = pcall(core.load, pool, job)
    pool:close()
    if job.couriers then
        job.couriers:close()
    end
    if finish then
        finish()
    end
    if not ok then
        error(result, 0)
    end
    for i, e in ipairs(some) do
        loaded[e.tensor] = result[i]
    end
    for _, e in ipairs(device and {} or list) do
        local t = loaded[e.tensor] or e.tensor
        loaded[e.tensor] = e.prepare and ops.prepare(t) or t -- what core.load laid out stays as it is
    end
    return loaded
end

return loading
