--- What an adapter does to one module: its tensors as a list of actions, with every check on the way.
local config = require "qmoon.lora.config"
local shapes = require "qmoon.lora.shapes"

local M = {}

--- Types that an update is rounded to, by the base's type: peft merges in the type it loads the base as.
--- Where the base would lose by that, the merge is done in f32 and rounded once, at the end.
local ROUNDED = { f16 = { f16 = true }, bf16 = { bf16 = true, f16 = true }, f32 = {} }

--- Both factors or neither, and what goes with them only beside them.
local function check_complete(ctx, s)
    local cfg = ctx.adapter.config
    if (s.A == nil) ~= (s.B == nil) then
        ctx:fail("corrupt", s.A or s.B, "no lora_%s%s beside it; the adapter is incomplete",
            s.embedding and "embedding_" or "", s.A and "B" or "A")
    elseif s.magnitude and not s.A then
        ctx:fail("corrupt", s.magnitude, "no lora_A and lora_B beside it; the adapter is incomplete")
    elseif s.magnitude and not cfg.dora then
        ctx:fail("corrupt", s.magnitude, "this is DoRA's, and adapter_config.json does not say use_dora")
    elseif s.A and cfg.dora and not s.magnitude then
        ctx:fail("corrupt", s.A, "adapter_config.json says use_dora, and there is no lora_magnitude_vector "
            .. "beside it")
    elseif s.B_bias and not s.B then
        ctx:fail("corrupt", s.B_bias, "no lora_B.weight beside it; the adapter is incomplete")
    elseif s.B_bias and not cfg.lora_bias then
        ctx:fail("corrupt", s.B_bias, "a LoRA bias, and adapter_config.json does not say lora_bias")
    elseif s.A and cfg.lora_bias and not s.B_bias then
        ctx:fail("corrupt", s.B, "adapter_config.json says lora_bias, and there is no lora_B.bias beside it")
    end
    local ways = (s.A and 1 or 0) + (s.rows and 1 or 0) + (s.own.weight and 1 or 0)
    if ways > 1 then
        ctx:fail("unsupported", s.A or s.rows, "module '%s' is changed in two ways at once (LoRA, trained "
            .. "tokens, modules_to_save), which peft cannot do either", s.module)
    end
end

--- Parameters that peft saved with the adapter without training them alone: embeddings and biases.
local function check_saved(ctx, s, param, t)
    local base = ctx:find(s.module .. "." .. param)
    if param == "bias" and ctx.adapter.config.bias ~= "none" then
        return
    elseif param == "weight" and (ctx.pair:is_input(base) or ctx.pair:is_head(base, s.module)) then
        return
    end
    ctx:fail("fail", t, "neither LoRA nor listed in modules_to_save%s; nothing says what to do with it",
        param == "bias" and ", and bias is 'none'" or "")
end

local function set_aside(ctx, s)
    for _, t in ipairs(s.spare) do
        if not next(s.own) then
            ctx:fail("corrupt", t, "no trained copy beside it; the adapter is incomplete")
        end
        ctx:use(t)
    end
    if #s.spare > 0 then
        ctx:notice("%s: %d untrained or repeated copies in the adapter are left aside; the trained one is "
            .. "used", s.module, #s.spare)
    end
end

--- Checks that a module's tensors belong together and works out its factor.
---@param s qmoon.lora.site
function M.check(ctx, s)
    check_complete(ctx, s)
    for param, t in pairs(s.saved) do
        check_saved(ctx, s, param, t)
    end
    set_aside(ctx, s)
    if s.A then
        s.scaling = config.scaling(ctx.adapter.config, s.module)
        if s.A.shape[1] ~= s.scaling.rank then
            ctx:fail("corrupt", s.A, "has shape %s, and adapter_config.json gives this module rank %d (r, "
                .. "rank_pattern)", shapes.text(s.A.shape), s.scaling.rank)
        end
    end
end

local function low_rank(ctx, s, weight, list)
    local cfg = ctx.adapter.config
    local flipped = shapes.check_pair(ctx.adapter, s, weight, ctx.model.config.model_type)
    local left, right = s.B, s.A
    if flipped then -- the transpose of B x A is (A transposed) x (B transposed)
        left, right = right, left
    end
    -- peft rounds the update before adding it for embeddings and for MiCA, but not within DoRA
    local rounds = not cfg.dora and (s.embedding or cfg.init == "mica")
    list[#list + 1] = {
        kind = "low_rank", left = ctx:ref(left, flipped), right = ctx:ref(right, flipped),
        rank = s.scaling.rank, scale = s.scaling.scale, round_delta = rounds and ROUNDED[weight.dtype] or nil,
    }
    if s.magnitude then
        shapes.check_vector(ctx.adapter, s.magnitude, s.B)
        list[#list + 1] = { kind = "dora", magnitude = ctx:ref(s.magnitude), by_column = flipped }
    end
    ctx.plan.pairs = ctx.plan.pairs + 1
    table.insert(ctx.plan.scales, {
        module = s.module, rank = s.scaling.rank, alpha = s.scaling.alpha, scale = s.scaling.scale,
        dora = cfg.dora,
    })
end

--- The indices of trained tokens: one list for the input embedding, or lists by the end of a module's name.
local function token_indices(ctx, s)
    local list = ctx.adapter.config.token_rows
    if type(next(list)) ~= "string" then
        return list
    end
    for name, indices in pairs(list) do
        if s.module:sub(-#name) == name then
            return indices
        end
    end
    return {}
end

local function rows(ctx, s, weight)
    local t, indices, seen = s.rows, token_indices(ctx, s), {}
    if type(indices) ~= "table" or #indices == 0 then
        ctx:fail("corrupt", t, "trainable_token_indices has no list for '%s'", s.module)
    elseif #t.shape ~= 2 or t.shape[1] ~= #indices or t.shape[2] ~= weight.shape[2] then
        shapes.misfit(ctx.adapter, t, ("%d token indices and base tensor '%s' %s"):format(#indices,
            weight.name, shapes.text(weight.shape)))
    end
    for _, index in ipairs(indices) do
        if type(index) ~= "number" or index % 1 ~= 0 or index < 0 or index >= weight.shape[1] then
            ctx:fail("fail", t, "token index %s is not in the base's vocabulary of %d", tostring(index),
                weight.shape[1])
        elseif seen[index] then
            ctx:fail("corrupt", t, "trainable_token_indices names token %d twice", index)
        end
        seen[index] = true
    end
    return { kind = "rows", row = indices, values = ctx:ref(t) }
end

--- A saved parameter in place of the base's.  Only a vocabulary may have another size.
local function replace(ctx, t, base)
    local vocabulary = ctx.pair:is_input(base) or ctx.pair:is_head(base)
    local fits = shapes.equal(t.shape, base.shape)
    if not fits and not (vocabulary and #t.shape == 2 and t.shape[2] == base.shape[2]) then
        shapes.misfit(ctx.adapter, t, base)
    end
    return { kind = "replace", tensor = t }
end

--- Everything that is done to one weight, first to last.
---@param s qmoon.lora.site?
---@param base table the base tensor
---@param replacement table? adapter tensor that takes its place
---@return qmoon.lora.action[] list, integer[] shape of the result
function M.weight(ctx, s, base, replacement)
    local list, weight = {}, base
    ctx.check_type(base)
    if replacement then
        list[1] = replace(ctx, replacement, base)
        weight = { name = base.name, shape = replacement.shape, dtype = base.dtype }
    end
    if s and s.A then
        low_rank(ctx, s, weight, list)
    elseif s and s.rows then
        list[#list + 1] = rows(ctx, s, weight)
    end
    return list, weight.shape
end

--- Everything that is done to a module's bias.
---@return qmoon.lora.action[] list, table? base
function M.bias(ctx, s)
    local list, name = {}, s.module .. ".bias"
    local saved, base = s.own.bias or s.saved.bias, ctx:find(name)
    if saved then
        base = ctx:need(name, saved)
        ctx.check_type(base)
        list[1] = replace(ctx, ctx:use(saved), base)
    end
    if s.B_bias then
        if s.embedding then
            ctx:fail("unsupported", s.B_bias, "an embedding has no bias to add this to")
        elseif not base then
            ctx:fail("fail", s.B_bias, "lora_bias adds to a bias that '%s' does not have; peft cannot merge "
                .. "this adapter either", s.module)
        elseif not shapes.equal(s.B_bias.shape, base.shape) then
            shapes.misfit(ctx.adapter, s.B_bias, base)
        end
        ctx.check_type(base)
        list[#list + 1] = { kind = "add", values = ctx:ref(s.B_bias), scale = s.scaling.scale }
    end
    return list, base
end

return M
