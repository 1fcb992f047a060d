--- Do an adapter's tensors fit a base tensor, and which way round?
local core = require "qmoon.core"

local M = {}

--- transformers' Conv1D keeps a linear layer's weight as [in x out].  These are its users; everywhere else a
--- weight is [out x in], whatever fan_in_fan_out says: peft corrects the option by the layer it finds.
local CONV1D = {
    gpt2 = true, ["openai-gpt"] = true, imagegpt = true, decision_transformer = true, clvp_decoder = true,
}
local CONV1D_MODULES = { c_attn = true, c_proj = true, c_fc = true, q_attn = true }

---@param shape integer[]
---@return string
function M.text(shape)
    return "[" .. table.concat(shape, " x ") .. "]"
end

local function same(shape, ...)
    local want = { ... }
    if #shape ~= #want then
        return false
    end
    for i, n in ipairs(want) do
        if shape[i] ~= n then
            return false
        end
    end
    return true
end

function M.equal(a, b)
    return same(a, unpack(b))
end

--- "; the adapter is for another model": the end of every message about a misfit.
function M.other_model(adapter)
    local base = adapter.config.base
    return base and ("the adapter is for another model (it was trained on '%s')"):format(base)
        or "the adapter is for another model"
end

--- An adapter tensor whose shape does not go with what it belongs to.
---@param adapter table
---@param t table the adapter tensor
---@param base table|string the base tensor, or words for what was expected
function M.misfit(adapter, t, base)
    if type(base) == "table" then
        base = ("base tensor '%s' %s"):format(base.name, M.text(base.shape))
    end
    core.fail("fail", "%s: tensor '%s' %s does not fit %s; %s", adapter.path, t.name, M.text(t.shape), base,
        M.other_model(adapter))
end

local function leaf(module)
    return module:match "[^.]+$"
end

--- Does this module keep its weight as [in x out]?  Only a square weight leaves any doubt.
local function is_conv1d(module, model)
    local kind = model.config.model_type
    return CONV1D[kind] and CONV1D_MODULES[leaf(module)] or false
end

--- Checks the factors of one module against the weight they change.
---@param adapter table
---@param s qmoon.lora.site
---@param weight {name:string, shape:integer[]}
---@param model table
---@return boolean flipped the base tensor is the transpose of B x A
function M.check_pair(adapter, s, weight, model)
    local a, b, w = s.A.shape, s.B.shape, weight.shape
    if #a ~= 2 or #b ~= 2 then
        core.fail("unsupported", "%s: tensor '%s' %s: only matrices are merged here (a convolution?); merge this "
            .. "adapter with peft first", adapter.path, s.A.name, M.text(#a ~= 2 and a or b))
    elseif a[1] ~= b[2] then
        core.fail("corrupt", "%s: tensors '%s' %s and '%s' %s: their ranks differ", adapter.path, s.A.name,
            M.text(a), s.B.name, M.text(b))
    end
    local flipped
    if s.embedding then
        flipped = true
    elseif b[1] == a[2] then
        flipped = is_conv1d(s.module, model)
    else
        flipped = same(w, a[2], b[1]) and not same(w, b[1], a[2])
    end
    local rows, cols = b[1], a[2]
    if flipped then
        rows, cols = cols, rows
    end
    if not same(w, rows, cols) then
        M.misfit(adapter, same(w, rows, w[2] or 0) and s.A or s.B, weight)
    end
    return flipped
end

return M
