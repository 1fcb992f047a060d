--- Writing a model: plan, check, stream, verify the count, rename.
--
-- One pass: each source tensor is read once, merged once and encoded into every output.  Files are made at
-- their full size with their headers before the first weight is read, in "<path>.part"; they get their names
-- when all of them are complete.

local core = require "qmoon.core"
local devices = require "qmoon.devices"
local files = require "qmoon.files"
local output = require "qmoon.output"
local reading = require "qmoon.source.reading"
local text = require "qmoon.text"
local write_files = require "qmoon.write_files"

local write = {}

---@class qmoon.Plan
---@field model qmoon.Model
---@field outputs qmoon.Output[]
---@field threads integer
---@field devices table[]   GPUs to use; with them
---@field couriers integer?    so many threads go through them,
---@field courier_memory number   each taking this of a GPU's memory
---@field no_couriers string?  why there are none all the same
---@field memory integer   bytes: the most this program will hold
---@field disk {id:string, path:string, need:integer, free:integer}[] per file system
---@field options table

-- ---- planning --------------------------------------------------------------------------------------

local function round_of(plan, out, item)
    local r = plan.options.round or out.round or out.dtype
    if r == "keep" then
        r = item.source.dtype
    end
    return (r == "f16" or r == "bf16") and r or "none"
end

--- Sinks of one item, grouped by what its values are rounded to and which rows they are; usually one group.
local function sink_groups(plan, item)
    local groups, order = {}, {}
    for _, out in ipairs(plan.outputs) do
        local sinks = out.sinks[item] or {}
        for _, sink in ipairs(sinks.format and { sinks } or sinks) do
            local r, slice = sink.round or round_of(plan, out, item), sink.slice
            local key = slice and ("%s %.0f %.0f %.0f"):format(r, slice.from, slice.rows, slice.cols) or r
            if not groups[key] then
                groups[key] = { round = r, slice = slice, sinks = {}, whole = {} }
                order[#order + 1] = groups[key]
            end
            table.insert(sink.whole and groups[key].whole or groups[key].sinks, { out = out, spec = sink })
        end
    end
    return order
end

--- The job of core.stream for one group of sinks; `steps` may be nil when only its memory is asked for.
local function job_of(plan, item, group, steps, source)
    local job = { source = source or reading.of(item.source, group.slice), round = group.round, steps = steps, sinks = {},
                  keep_nonfinite = plan.options.keep_nonfinite or false, errors = plan.options.errors ~= false }
    -- what torch adds to f16 is f16
    local half = group.round == "f16" or group.round == "none" and (job.source.round or job.source.format) == "f16"
    for i, s in ipairs(group.sinks) do
        local spec = s.spec
        job.sinks[i] = { format = spec.format, block = spec.block, double_quant = spec.double_quant,
                         exact_zero = spec.exact_zero, nearest = spec.nearest, factor = spec.factor, at = spec.at,
                         nested_at = spec.nested_at, offset = spec.offset,
                         add = spec.add, round_added = half and "f16" or nil,
                         interleave_heads = spec.interleave_heads,
                         file = s.out.open and s.out.open[spec.file] }
    end
    return job
end

-- With GPUs, so many bytes of source are under way before results are looked at.
local BATCH = 2 ^ 30

local PROGRAM = 10 * 2 ^ 20 -- code, libraries, stacks: measured

--- What an item's importances take while they are read: the bytes, the quotients, and both once more on their way to C.
local function importance_memory(group)
    local sum = 0
    for _, s in ipairs(group.sinks) do
        sum = sum + 16 * (s.spec.importance and s.spec.importance.count or 0)
    end
    return sum
end

local function count_of(item)
    local n = 1
    for _, d in ipairs(item.shape) do
        n = n * d
    end
    return n
end

-- Formats of functions get a tensor's values as a whole: as f32, as Lua's bytes, its planes, and decoded again.
local function whole_memory(item, group)
    return #group.whole > 0 and 16 * count_of(item) or 0
end

--- The most this program will hold. Planning reads the same headers and tokenizers as running does, so what it has
--- taken so far is part of the answer; then come the stream's buffers on top of what Lua keeps.
local function peak_memory(plan)
    local most = 0
    for _, item in ipairs(plan.model.items) do
        for _, group in ipairs(sink_groups(plan, item)) do
            local stream = core.stream_memory(job_of(plan, item, group), plan.threads)
            most = math.max(most, stream + importance_memory(group) + whole_memory(item, group))
        end
    end
    collectgarbage()
    local kept = collectgarbage "count" * 1024 + PROGRAM + (plan.couriers or 0) * plan.pinned + (plan.couriers and BATCH / 4 or 0)
    return math.max(core.memory().peak, most + 2 * (plan.model.lora_memory or 0) + kept)
end

local function parent(path)
    return (files.split(path))
end

--- Settles how many couriers there are to the GPUs: as many as threads, if their memory will do.
local function plan_couriers(plan)
    plan.devices, plan.courier_memory, plan.pinned = devices.choose(plan.options.device), 0, 0
    for _, item in ipairs(#plan.devices > 0 and plan.model.items or {}) do
        for _, group in ipairs(sink_groups(plan, item)) do
            local need = core.courier_memory(job_of(plan, item, group), plan.devices[1])
            plan.courier_memory, plan.pinned = math.max(plan.courier_memory, need[1]), math.max(plan.pinned, need[2])
        end
    end
    if plan.courier_memory == 0 then
        plan.no_couriers = #plan.devices > 0 and "no tensor is large enough to go to a GPU" or nil
        return
    end
    local couriers = devices.couriers(plan.devices, plan.threads, plan.courier_memory)
    if couriers < 1 then
        plan.no_couriers = ("%s of memory for one tensor's pieces do not fit %s"):format(text.memory(plan.courier_memory),
            tostring(plan.devices[1]))
        if plan.options.device ~= "auto" then
            core.fail("nofit", "%s; use --device cpu", plan.no_couriers)
        end
        return
    end
    plan.couriers, plan.threads = couriers, couriers
end

local function disk_needs(plan)
    local disks, order = {}, {}
    for _, out in ipairs(plan.outputs) do
        local free, id = core.disk_free(parent(out.path))
        if not disks[id] then
            disks[id] = { id = id, path = parent(out.path), need = 0, free = free }
            order[#order + 1] = disks[id]
        end
        disks[id].need = disks[id].need + output.size(out)
    end
    return order
end

local function absolute(path)
    local s = core.stat(path)
    if s then
        return core.realpath(path)
    end
    local folder, name = files.split(path)
    return (folder ~= path and absolute(folder) or folder) .. "/" .. name
end

local function inside(inner, outer)
    return inner == outer or inner:sub(1, #outer + 1) == outer .. "/"
end

--- The names that an output will have on disk: its own, or those of its files.
local function paths_of(out)
    local paths = {}
    for i, f in ipairs(out.files) do
        paths[i] = f.path
    end
    return paths[1] and paths or { out.path }
end

local function check_paths(plan)
    local seen = {}
    local sources = { core.realpath(plan.model.path) }
    for i, part in ipairs(plan.model.gguf and plan.model.gguf.parts or {}) do
        sources[i] = core.realpath(part)
    end
    local function check(name)
        local path = absolute(name)
        for _, source in ipairs(sources) do
            if inside(source, path) then
                core.fail("usage", "%s: this is where the model is read from; choose another output", name)
            end
        end
        for _, a in ipairs(plan.model.adapters or {}) do
            if inside(core.realpath(a.path), path) then
                core.fail("usage", "%s: the adapter is read from there; choose another output", name)
            end
        end
        for other in pairs(seen) do
            if inside(path, other) or inside(other, path) then
                core.fail("usage", "%s: two outputs have the same name, or one lies in the other", name)
            end
        end
        seen[path] = true
        if core.stat(name) and not plan.options.force then
            core.fail("fail", "%s: is there already; --force replaces it", name)
        end
    end
    for _, out in ipairs(plan.outputs) do
        for _, name in ipairs(paths_of(out)) do
            check(name)
        end
    end
end

--- What would be written, to the byte, and what it takes.  Reads headers only.
---@param model qmoon.Model
---@param specs table[] {path, format=, …} each
---@param options? table {round=, threads=, device=, force=, keep_nonfinite=, progress=}
---@return qmoon.Plan
function write.plan(model, specs, options)
    options = options or {}
    local plan = { model = model, outputs = {}, options = options, threads = options.threads or core.cpus() }
    for _, spec in ipairs(specs) do
        plan.outputs[#plan.outputs + 1] = output.plan(model, spec)
    end
    if #plan.outputs == 0 then
        core.fail("usage", "nothing to write: no outputs were named")
    end
    model.tokenizers = nil
    check_paths(plan)
    plan.disk = disk_needs(plan)
    plan_couriers(plan)
    plan.memory = peak_memory(plan)
    return plan
end

--- Raises "nofit" when disk or memory will not do.
---@param plan qmoon.Plan
function write.check(plan)
    for _, d in ipairs(plan.disk) do
        if d.need > d.free then
            core.fail("nofit", "%s: %s are to be written and %s are free; free some, choose fewer --outputs, or another disk",
                d.path, text.bytes(d.need), text.bytes(d.free))
        end
    end
    local available = core.memory().available
    if plan.memory > available then
        core.fail("nofit", "%s of memory are needed and %s are free; try --threads 1", text.memory(plan.memory),
            text.memory(available))
    end
end

-- ---- adapters -----------------------------------------------------------------------------------------

local function load_ref(ref)
    local file = ref.tensor.file
    local t = core.view(file, ref.tensor)
    local copy = ref.transpose and t:transpose() or t:dequantize()
    file:release()
    return copy
end

--- Steps of core.stream for an item's actions, with the adapter's tensors loaded; and the source, which a
--- "replace" action changes.
local function steps_of(plan, item, group, pool)
    local round, source, steps = group.round, reading.of(item.source, group.slice), {}
    for i, a in ipairs(item.actions) do
        local step
        if a.kind == "replace" then
            local t = a.tensor
            source = reading.of({ file = t.file, name = t.name, format = t.dtype, shape = t.shape, at = t.at, size = t.size,
                                  strides = t.strides }, group.slice)
            steps = {}
        elseif a.kind == "low_rank" then
            step = { kind = "low_rank", left = load_ref(a.left), right = load_ref(a.right), rank = a.rank,
                     scale = a.scale, round_delta = a.round_delta and a.round_delta[round] and round or nil }
        elseif a.kind == "dora" then
            step = { kind = "dora", magnitude = load_ref(a.magnitude), by_column = a.by_column }
        elseif a.kind == "add" then
            step = { kind = "add", values = load_ref(a.values), scale = a.scale }
        elseif a.kind == "rows" then
            step = { kind = "rows", row = a.row, values = load_ref(a.values) }
        end
        if step then
            steps[#steps + 1] = step
            if a.by_column then
                local job = { source = source, steps = steps, sinks = {} }
                step.norm = load_ref(a.magnitude) -- any tensor of that size, until the norms are known
                step.norm = core.column_norms(pool, job, #steps - 1)
            end
            local following = item.actions[i + 1]
            if following and following.adapter ~= a.adapter then
                step.round_after = round -- as peft does it: one adapter after another, each rounded
            end
        end
    end
    return steps, source
end

-- ---- running -------------------------------------------------------------------------------------------------

--- Errors of what a sink wrote, added to those of the other parts of its tensor.
local function note_result(out, tensor, result)
    out.errors = out.errors or {}
    local sum = out.errors[tensor]
    if not sum then
        out.errors[tensor] = result.error
    else
        for key, value in pairs(result.error) do
            sum[key] = key:find "^max" and math.max(sum[key], value) or sum[key] + value
        end
    end
    out.zero_groups = (out.zero_groups or 0) + result.zero_groups
end

-- Frees an item's adapter tensors at once: Lua's collector does not know what they weigh.
local function close_steps(steps)
    for _, step in ipairs(steps) do
        for _, field in ipairs { "left", "right", "magnitude", "norm", "values" } do
            if step[field] then
                step[field]:close()
            end
        end
    end
end

--- Puts the importances for a group's sinks into their job; returns what is to be closed after it.
local function load_importance(group, job)
    local loaded = {}
    for i, s in ipairs(group.sinks) do
        if s.spec.importance then
            job.sinks[i].importance = s.spec.importance.load()
            loaded[#loaded + 1] = job.sinks[i].importance
        end
    end
    return loaded
end

--- Formats with a factor for the whole tensor need a pass before the one that writes.
local function measure_factors(pool, job)
    for _, sink in ipairs(job.sinks) do
        if sink.factor then
            sink.factor = core.stream_factor(pool, { source = job.source, round = job.round, steps = job.steps,
                                                     keep_nonfinite = job.keep_nonfinite }, sink.format)
        end
    end
end

--- Sinks that take all of a tensor's values at once.
local function run_whole(pool, item, group, job)
    if #group.whole == 0 then
        return
    end
    local values = core.stream_values(pool, { source = job.source, round = job.round, steps = job.steps,
                                              keep_nonfinite = job.keep_nonfinite })
    for _, s in ipairs(group.whole) do
        local sums = s.spec.whole(values, s.spec, s.out.open[s.spec.file])
        note_result(s.out, s.spec.tensor or item, { error = sums, zero_groups = 0 })
    end
    values:close()
end

local function copy_planes(plan, item)
    for _, out in ipairs(plan.outputs) do
        local copy = out.copies[item]
        if copy then
            reading.copy(item.source, out.open[copy.file], copy)
        end
    end
end

--- A job with all that it needs, ready to run.
local function prepare(plan, item, group, pool)
    local steps, source = steps_of(plan, item, group, pool)
    local job = job_of(plan, item, group, steps, source)
    local importances = load_importance(group, job)
    measure_factors(pool, job)
    run_whole(pool, item, group, job)
    return { item = item, group = group, job = job, steps = steps, importances = importances }
end

local function complete(plan, entry, result)
    close_steps(entry.steps)
    for _, t in ipairs(entry.importances) do
        t:close()
    end
    for k, s in ipairs(entry.group.sinks) do
        note_result(s.out, s.spec.tensor or entry.item, result.sinks[k])
        result.sinks[k].factor = entry.job.sinks[k].factor
        if s.spec.late then
            for _, w in ipairs(s.spec.late(result.sinks[k])) do
                s.out.open[s.spec.file]:write(w[1], w[2])
            end
        end
    end
    if #entry.steps > 0 and result.ww > 0 then
        plan.moved[#plan.moved + 1] = { name = entry.item.name, ratio = math.sqrt(result.dd / result.ww) }
    end
end

--- Runs what has been gathered: one tensor here; with GPUs, several, so that none waits for the last of another.
local function run_batch(plan, pool, couriers, batch, progress)
    local jobs = { couriers = couriers or nil, progress = progress }
    for i, entry in ipairs(batch) do
        jobs[i] = entry.job
    end
    for i, result in ipairs(core.streams(pool, jobs)) do
        complete(plan, batch[i], result)
    end
end

local function run_all(plan, pool, couriers)
    local progress = plan.options.progress
    local _, total = plan.model:size()
    local batch, gathered, done = {}, 0, 0
    for i, item in ipairs(plan.model.items) do
        local function tick(bytes)
            if progress then
                progress { tensor = item.name, index = i, tensors = #plan.model.items,
                           bytes = done + math.min(bytes or 0, gathered), total = total }
            end
        end
        if core.interrupted() then
            core.fail("interrupt", "interrupted")
        end
        copy_planes(plan, item)
        gathered = gathered + item.source.size
        for _, group in ipairs(sink_groups(plan, item)) do
            batch[#batch + 1] = prepare(plan, item, group, pool)
            if not couriers then
                tick()
                run_batch(plan, pool, nil, batch, tick)
                batch = {}
            end
        end
        if not couriers or gathered >= BATCH or i == #plan.model.items then
            tick()
            run_batch(plan, pool, couriers, batch, tick)
            batch, gathered, done = {}, 0, done + gathered
        end
    end
end

--- Carries a plan out.  On any failure, or Ctrl-C, what was begun is removed and nothing that was there before
--- has changed.
---@param plan qmoon.Plan
---@return table report {plan, seconds, peak}
function write.run(plan)
    local started = core.now()
    plan.moved = {}
    local pool = core.pool(plan.threads)
    local couriers
    local ok, e = pcall(function()
        couriers = plan.couriers and core.couriers(plan.devices, plan.couriers)
        for _, out in ipairs(plan.outputs) do
            write_files.open(out)
        end
        run_all(plan, pool, couriers)
        for _, out in ipairs(plan.outputs) do
            write_files.complete(out)
        end
        for _, out in ipairs(plan.outputs) do
            write_files.name(out)
        end
    end)
    pool:close()
    if couriers then
        couriers:close()
    end
    if not ok then
        for _, out in ipairs(plan.outputs) do
            write_files.drop(out)
        end
        error(e, 0)
    end
    return { plan = plan, seconds = core.now() - started, peak = core.memory().peak }
end

-- For reports, which stream as writing does but write nothing.
write.steps_of, write.close_steps = steps_of, close_steps

return write
