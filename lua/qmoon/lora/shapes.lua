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

---@param a integer[]
---@param b integer[]
---@return boolean
function M.equal(a, b)
    if #a ~= #b then
        return false
    end
    for i, n in ipairs(a) do
        if b[i] ~= n then
            return false
        end
    end
    return true
end

--- The end of every message about a misfit.
function M.other_model(adapter)
    local base = adapter.config.base
    return "the adapter is for another model" .. (base and (" (it was trained on '%s')"):format(base) or "")
end

--- Raises: an adapter tensor's shape does not go with what it belongs to.
---@param adapter table
---@param t table the adapter tensor
---@param other table|string a tensor, or words for what was expected
function M.misfit(adapter, t, other)
    if type(other) == "table" then
        other = ("base tensor '%s' %s"):format(other.name, M.text(other.shape))
    end
    core.fail("fail", "%s: tensor '%s' %s does not fit %s; %s", adapter.path, t.name, M.text(t.shape), other,
        M.other_model(adapter))
end

local function is_conv1d(module, model_type)
    return CONV1D[model_type] and CONV1D_MODULES[module:match "[^.]+$"] or false
end

--- Is the base weight the transpose of B x A?  Its shape says, unless it is square.
local function is_flipped(s, weight, model_type)
    local rows, cols = s.B.shape[1], s.A.shape[2]
    if s.embedding then
        return true
    elseif rows == cols then
        return is_conv1d(s.module, model_type)
    end
    return M.equal(weight.shape, { cols, rows })
end

--- Checks the factors of one module against the weight they change.
---@param adapter table
---@param s qmoon.lora.site
---@param weight {name:string, shape:integer[]}
---@param model_type string?
---@return boolean flipped the base tensor is the transpose of B x A
function M.check_pair(adapter, s, weight, model_type)
    for _, t in ipairs { s.A, s.B } do
        if #t.shape ~= 2 then
            core.fail("unsupported", "%s: tensor '%s' %s: only matrices are merged here, no convolutions; "
                .. "merge this adapter with peft first", adapter.path, t.name, M.text(t.shape))
        end
    end
    local a, b = s.A.shape, s.B.shape
    if a[1] ~= b[2] then
        core.fail("corrupt", "%s: tensors '%s' %s and '%s' %s have different ranks", adapter.path, s.A.name,
            M.text(a), s.B.name, M.text(b))
    end
    local flipped = is_flipped(s, weight, model_type)
    local want = flipped and { a[2], b[1] } or { b[1], a[2] }
    if not M.equal(weight.shape, want) then
        local rows_fit = weight.shape[flipped and 2 or 1] == b[1]
        M.misfit(adapter, rows_fit and s.A or s.B, weight)
    end
    return flipped
end

--- DoRA's magnitudes: one for each row of B, whatever dimensions of size 1 are around them.
function M.check_vector(adapter, t, b)
    local n = 1
    for _, size in ipairs(t.shape) do
        n = n * size
    end
    if n ~= b.shape[1] then
        M.misfit(adapter, t, ("the %d rows of '%s'"):format(b.shape[1], b.name))
    end
end

return M
