--- What the parts of a plan share: both sides' tensors, what is used already, what there is to say.
local core = require "qmoon.core"
local shapes = require "qmoon.lora.shapes"

local Context = {}
Context.__index = Context

--- The types that weights are merged in, and adapters stored in.
Context.DTYPES = { f32 = true, f16 = true, bf16 = true }

--- Prefixes that differ between the class an adapter was trained on and the checkpoint, in the order tried:
--- vision models were nested anew between transformers 4 and 5, and a bare backbone has no "model.".
local RENAMES = {
    { "", "" },
    { "model.", "language_model.model." }, { "model.", "model.language_model." },
    { "language_model.model.", "model." }, { "language_model.model.", "model.language_model." },
    { "model.language_model.", "model." }, { "model.language_model.", "language_model.model." },
    { "language_model.", "" }, { "", "language_model." },
    { "model.", "" }, { "", "model." }, { "transformer.", "" }, { "", "transformer." },
}

---@param adapter table
---@param model {tensors:table[], config:table}
---@param plan qmoon.lora.plan
function Context.new(adapter, model, plan)
    local index = {}
    for _, t in ipairs(model.tensors) do
        index[t.name] = t
    end
    return setmetatable({
        adapter = adapter, model = model, plan = plan, index = index, used = {}, renamed = {},
    }, Context)
end

--- The base tensor for a name spelled as in the adapter, or nil.
function Context:find(name)
    for _, r in ipairs(RENAMES) do
        if name:sub(1, #r[1]) == r[1] then
            local t = self.index[r[2] .. name:sub(#r[1] + 1)]
            if t then
                self.renamed[r] = true
                return t
            end
        end
    end
    return nil
end

--- The base tensor that adapter tensor `t` changes; there must be one.
function Context:need(name, t)
    local base = self:find(name)
    if not base then
        self:fail("fail", t, "the base model has no '%s'; %s", name, shapes.other_model(self.adapter))
    end
    return base
end

--- Raises when a base tensor is of a type that nothing can be added to.
function Context.check_type(base)
    if not Context.DTYPES[base.dtype] then
        core.fail("unsupported", "base tensor '%s' is %s: an adapter is merged into f32, f16 or bf16 "
            .. "weights; use the model as it was before quantisation", base.name, tostring(base.dtype))
    end
end

--- Marks an adapter tensor as used.
function Context:use(t)
    if self.used[t] then
        self:fail("fail", t, "would be used twice")
    end
    self.used[t] = true
    self.plan.tensors = self.plan.tensors + 1
    return t
end

---@return qmoon.lora.ref
function Context:ref(t, transpose)
    return { tensor = self:use(t), transpose = transpose or nil }
end

function Context:notice(format, ...)
    table.insert(self.plan.notices, format:format(...))
end

--- Raises an error about one adapter tensor.
function Context:fail(kind, t, format, ...)
    core.fail(kind, "%s: tensor '%s': %s", self.adapter.path, t.name, format:format(...))
end

function Context:report_renames()
    for _, r in ipairs(RENAMES) do
        if self.renamed[r] and r ~= RENAMES[1] then
            self:notice("adapter names starting '%s' are taken for '%s' of the base", r[1], r[2])
        end
    end
end

return Context
