--- Operations of inference: qm.ops.linear(x, w), qm.ops.rope(q, 0, {head_dim = 64}) …
--
-- Every op of core/ops is a function here, made from its descriptor: which parameters there are, what shapes they
-- have and what each means is in qm.ops.help "rope", and a wrong argument raises an error that names it.
-- Activations are f32 tensors, weights tensors of any format; nothing is changed but a cache.

local core = require "qmoon.core"
local text = require "qmoon.text"

local ops = {}

local by_name = {}
for _, op in ipairs(core.ops()) do
    by_name[op.name] = op
    ops[op.name] = op.call
end

--- Descriptors of all ops, in order of name: {name, doc, shape, tolerance, params = {{name, kind, doc, …}, …}}.
---@return table[]
function ops.list()
    return core.ops()
end

local function signature(op)
    local parts, fields, slot = {}, {}, nil
    for _, p in ipairs(op.params) do
        local name = p.optional and ("[%s]"):format(p.name) or p.name
        if p.named then
            slot = slot or #parts + 1
            fields[#fields + 1] = name
        else
            parts[#parts + 1] = name
        end
    end
    if slot then
        table.insert(parts, slot, "{" .. table.concat(fields, ", ") .. "}")
    end
    return ("%s(%s)"):format(op.name, table.concat(parts, ", "))
end

--- What an op takes, as text; of all ops, one line each, without a name.
---@param name? string
---@return string
function ops.help(name)
    local rows = {}
    if not name then
        for _, op in ipairs(core.ops()) do
            rows[#rows + 1] = { signature(op), op.doc }
        end
        return text.table(rows)
    end
    local op = by_name[name]
    if not op then
        core.fail("usage", "there is no op '%s'; qm.ops.help() lists them", name)
    end
    for _, p in ipairs(op.params) do
        local what = p.shape and ("%s [%s]"):format(p.kind, p.shape) or p.choices or p.kind
        rows[#rows + 1] = { "  " .. p.name, what, p.doc .. (p.absent and (" (%g)"):format(p.absent) or "") }
    end
    return ("%s -> %s\n%s\n%s"):format(signature(op), op.shape, op.doc, text.table(rows))
end

--- How many threads ops use (all processors, or QMOON_THREADS); sets it when a number is given.  Results do not
--- depend on it.
---@param n? integer
---@return integer
function ops.threads(n)
    return core.ops_threads(n)
end

--- Several calls of one op, each a list of its arguments, and their results: the same as one after another. Linear
--- layers of the same x are computed together, so that no thread waits between them.
---
---     local q, k, v = qm.ops.at_once("linear", { x, wq }, { x, wk }, { x, wv, bias })
---
---@param name string
---@param ... table
---@return qmoon.Tensor ...
function ops.at_once(name, ...)
    return core.at_once(name, ...)
end

--- A weight laid out for speed, once, when a model is loaded: the same tensor, with a copy of its codes beside it in the
--- order that this CPU multiplies fastest.  `linear` and `moe` use that, everything else what was there before.
---@param weight qmoon.Tensor
---@return qmoon.Tensor
function ops.prepare(weight)
    return core.prepare(weight)
end

local asked = tonumber(os.getenv "QMOON_THREADS")
if asked and asked >= 1 and asked <= 1024 and asked % 1 == 0 then
    core.ops_threads(asked)
end

return ops
