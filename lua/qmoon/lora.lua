--- Merging a LoRA adapter: which adapter tensor changes which base tensor, and by which arithmetic.
--
-- A plan is made from the names, shapes and options of both sides.  It reads no weights, with one exception:
-- where an adapter holds the same tensor twice, the copies are compared.  docs/numerics.md ("LoRA merge")
-- says what each action computes and where that comes from.
local core = require "qmoon.core"
local Context = require "qmoon.lora.context"
local Pair = require "qmoon.lora.tied"
local actions = require "qmoon.lora.actions"
local config = require "qmoon.lora.config"
local keys = require "qmoon.lora.keys"
local shapes = require "qmoon.lora.shapes"
local checkpoint = require "qmoon.source.checkpoint"

local M = {}

---@class qmoon.lora.ref      an adapter tensor as an action needs it: contiguous f32
---@field tensor table        {name=, dtype=, shape=, at=, size=, file=}
---@field transpose boolean?  its two dimensions are exchanged when it is loaded

---@class qmoon.lora.action
---@field kind "replace"|"low_rank"|"dora"|"add"|"rows"
---@field tensor table?             replace: the adapter tensor that takes the base's place
---@field left qmoon.lora.ref?      low_rank: [rows x rank]
---@field right qmoon.lora.ref?     low_rank: [rank x columns]
---@field rank integer?
---@field scale number?             low_rank, add
---@field round_delta table<string, boolean>?  low_rank: types written whose update is rounded to them first
---@field magnitude qmoon.lora.ref? dora: one value a row, or a column
---@field by_column boolean?
---@field row integer[]?            rows: row numbers from 0, in the order of the values
---@field values qmoon.lora.ref?    add: one value a column; rows: [#row x columns]

---@class qmoon.lora.plan
---@field actions table<string, qmoon.lora.action[]>  by base tensor name, in the order they are done
---@field extra {name:string, source:string, actions:qmoon.lora.action[]}[]  tensors the base does not have
---@field config table<string, any>  what config.json must say afterwards, at every level that has these keys
---@field notices string[]
---@field scales {module:string, rank:integer, alpha:number, scale:number, dora:boolean}[]
---@field pairs integer    pairs merged: all the adapter has
---@field tensors integer  adapter tensors used: all the adapter has
---@field summary string

-- ---- opening --------------------------------------------------------------------------------------------

local function no_adapter(dir)
    for _, name in ipairs(core.list(dir)) do
        if core.stat(dir .. "/" .. name .. "/adapter_config.json") then
            core.fail("fail", "%s: no adapter_config.json here, but there is one in %s/%s: name that folder",
                dir, dir, name)
        end
    end
    core.fail("fail", "%s: no adapter_config.json; --adapter takes the folder that peft's save_pretrained "
        .. "wrote", dir)
end

local function weights_file(dir)
    for _, name in ipairs { "adapter_model.safetensors", "adapter_model.bin" } do
        if core.stat(dir .. "/" .. name) then
            return dir .. "/" .. name
        end
    end
    core.fail("fail", "%s: neither adapter_model.safetensors nor adapter_model.bin beside adapter_config.json; is the "
        .. "download complete?", dir)
end

--- Opens the folder of a peft adapter: its options, and the names and shapes of its tensors.
---@param dir string
---@return {path:string, config:table, tensors:table[], file:userdata}
function M.open(dir)
    local found = core.stat(dir)
    if not found or found.type ~= "dir" then
        core.fail("fail", "%s: no such folder; --adapter takes the folder of a peft adapter", dir)
    elseif not core.stat(dir .. "/adapter_config.json") then
        no_adapter(dir)
    end
    local what = dir .. "/adapter_config.json"
    local text = core.infile(what)
    local adapter = { path = weights_file(dir) }
    adapter.config = config.read(text:read(0, text:size()), what)
    adapter.tensors = checkpoint.file(adapter.path)
    for _, t in ipairs(adapter.tensors) do
        adapter.file = t.file
        if not Context.DTYPES[t.dtype] then
            core.fail("unsupported", "%s: tensor '%s' is %s; adapters of f32, f16 and bf16 are merged",
                adapter.path, t.name, t.dtype)
        end
    end
    return adapter
end

-- ---- planning ---------------------------------------------------------------------------------------------

local function set_actions(ctx, base, list)
    if #list == 0 then
        return
    elseif ctx.plan.actions[base.name] then
        core.fail("corrupt", "%s: two modules of the adapter change base tensor '%s'", ctx.adapter.path,
            base.name)
    end
    ctx.plan.actions[base.name] = list
end

local function plan_weight(ctx, s)
    local replacement = s.own.weight or s.saved.weight
    local any = replacement or s.A or s.rows
    if any then
        local base = ctx:need(s.module .. ".weight", any)
        set_actions(ctx, base, (actions.weight(ctx, s, base, replacement and ctx:use(replacement))))
    end
end

local function plan_modules(ctx)
    local input, head
    for _, s in ipairs(keys.sites(ctx.adapter)) do
        actions.check(ctx, s)
        local list, bias = actions.bias(ctx, s)
        set_actions(ctx, bias, list)
        local weight = ctx:find(s.module .. ".weight")
        if ctx.pair.tied and ctx.pair:is_input(weight) then
            input = s
        elseif ctx.pair.tied and ctx.pair:is_head(weight, s.module) then
            head = s
        else
            plan_weight(ctx, s)
        end
    end
    if input or head then
        ctx.pair:plan(ctx, input, head)
    else
        ctx.pair:check_sizes(ctx)
    end
end

local function check_all_used(ctx)
    for _, t in ipairs(ctx.adapter.tensors) do
        if not ctx.used[t] then
            ctx:fail("fail", t, "has no use in this merge; %s", shapes.other_model(ctx.adapter))
        end
    end
end

--- The tensors decide what is merged; the list of target modules only tells whether some are missing.
local function report_missing(ctx)
    local cfg = ctx.adapter.config
    for _, target in ipairs(cfg.some_layers_only and {} or cfg.targets) do
        local all, missing = 0, 0
        for _, t in ipairs(ctx.model.tensors) do
            local module = #t.shape == 2 and t.name:match "^(.*)%.weight$"
            if module and ("." .. module):sub(-#target - 1) == "." .. target then
                all = all + 1
                missing = missing + (ctx.plan.actions[t.name] and 0 or 1)
            end
        end
        if missing > 0 then
            ctx:notice("target module '%s': %d of %d in the base have no tensors in the adapter", target,
                missing, all)
        end
    end
end

local function report_base_precision(ctx)
    local base = ctx.adapter.config.base
    if base and base:find "%-4bit$" then
        ctx:notice("the adapter was trained on a 4-bit base ('%s'); it is merged into the weights given",
            base)
    end
end

local function summary(plan)
    local text, seen = {}, {}
    for _, s in ipairs(plan.scales) do
        local one = ("r=%d alpha=%g%s"):format(s.rank, s.alpha, s.dora and " DoRA" or "")
        if not seen[one] then
            seen[one] = true
            text[#text + 1] = one
        end
    end
    local options = table.concat(text, " / ") .. (text[1] and ", " or "")
    return ("%s%d of %d pairs matched"):format(options, plan.pairs, plan.pairs)
end

--- Puts every adapter tensor to its use, or says why it has none.
---@param adapter table from open()
---@param model {tensors:table[], config:table} the base: {name, shape, dtype} of each tensor, by its Hugging
--- Face name, and config.json as decoded
---@return qmoon.lora.plan
function M.plan(adapter, model)
    if #adapter.tensors == 0 then
        core.fail("corrupt", "%s: holds no tensors", adapter.path)
    end
    local plan = { actions = {}, extra = {}, config = {}, notices = {}, scales = {}, pairs = 0, tensors = 0 }
    local ctx = Context.new(adapter, model, plan)
    ctx.pair = Pair.of(model)
    plan_modules(ctx)
    check_all_used(ctx)
    ctx:report_renames()
    report_missing(ctx)
    report_base_precision(ctx)
    plan.summary = summary(plan)
    return plan
end

-- ---- memory -----------------------------------------------------------------------------------------------

local function values_in(r)
    local n = 1
    for _, size in ipairs(r and r.tensor.shape or { 0 }) do
        n = n * size
    end
    return n
end

local function bytes_of(list)
    local n = 0
    for _, a in ipairs(list) do
        n = n + values_in(a.left) + values_in(a.right) + values_in(a.values)
        n = n + values_in(a.magnitude) * (a.by_column and 2 or 1) -- by column: the norms as well
    end
    return 4 * n
end

--- The most bytes that the adapter's side of one tensor takes as f32.
---@param plan qmoon.lora.plan
---@return integer
function M.memory(plan)
    local most = 0
    for _, list in pairs(plan.actions) do
        most = math.max(most, bytes_of(list))
    end
    for _, t in ipairs(plan.extra) do
        most = math.max(most, bytes_of(t.actions))
    end
    return most
end

return M
