--- A plan as text and as JSON: what qmoon.write would do.

local core = require "qmoon.core"
local devices = require "qmoon.devices"
local json = require "qmoon.json"
local output = require "qmoon.output"
local text = require "qmoon.text"

local plan_text = {}

local function kept_summary(out)
    local parameters, order = {}, {}
    for _, row in ipairs(out.rows) do
        if row.why then
            if not parameters[row.why] then
                order[#order + 1] = row.why
            end
            parameters[row.why] = (parameters[row.why] or 0) + row.count
        end
    end
    table.sort(order, function(a, b)
        return parameters[a] > parameters[b]
    end)
    local words = {}
    for i, why in ipairs(order) do
        words[i] = ("%s %s"):format(why, text.count(parameters[why]))
    end
    return table.concat(words, ", ")
end

---@param plan qmoon.Plan
---@return string
function plan_text.text(plan)
    local model = plan.model
    local n, bytes = model:size()
    local lines = { (" source    %s  %s parameters in %d tensors"):format(text.bytes(bytes), text.count(n), #model.items) }
    for _, a in ipairs(model.adapters or {}) do
        lines[#lines + 1] = (" adapter   %s"):format(a.summary)
    end
    local rows = { { "output", "format", "size", "bytes", "bits/w", "not quantised" } }
    local total = 0
    for _, out in ipairs(plan.outputs) do
        local _, _, bits = output.weights(out)
        local size = output.size(out)
        total = total + size
        rows[#rows + 1] = { out.path:match "[^/]+$" .. (out.folder and "/" or ""), out.title, text.bytes(size),
                            ("%.0f"):format(size), ("%.3f"):format(bits), kept_summary(out) }
    end
    lines[#lines + 1] = text.table(rows)
    for _, out in ipairs(plan.outputs) do
        for _, notice in ipairs(out.notices) do
            lines[#lines + 1] = (" note      %s: %s"):format(out.path:match "[^/]+$", notice)
        end
    end
    for _, notice in ipairs(model.notices) do
        lines[#lines + 1] = " note      " .. notice
    end
    local free = {}
    for _, d in ipairs(plan.disk) do
        free[#free + 1] = ("%s of %s free"):format(text.bytes(d.need), text.bytes(d.free))
    end
    lines[#lines + 1] = " device " .. devices.describe(plan)
    lines[#lines + 1] = (" disk %s · peak RAM %s of %s · one pass over the source"):format(table.concat(free, ", "),
        text.memory(plan.memory), text.memory(core.memory().available))
    return table.concat(lines, "\n")
end

---@param plan qmoon.Plan
---@return string
function plan_text.json(plan)
    local outputs = {}
    for i, out in ipairs(plan.outputs) do
        local tensors = {}
        for k, row in ipairs(out.rows) do
            tensors[k] = { name = row.name, shape = json.array(row.shape), type = row.type, bytes = row.bytes,
                           unquantised = row.why }
        end
        local weights, parameters, bits = output.weights(out)
        outputs[i] = { path = out.path, format = out.title, size = output.size(out), weight_bytes = weights,
                       parameters = parameters, bits_per_weight = bits, tensors = json.array(tensors),
                       notices = json.array(out.notices) }
    end
    local disk = {}
    for i, d in ipairs(plan.disk) do
        disk[i] = { path = d.path, need = d.need, free = d.free }
    end
    local _, bytes = plan.model:size()
    return json.encode({ schema = "qmoon-plan-1", source = plan.model.path, source_bytes = bytes, outputs = outputs,
                         disk = disk, device = devices.describe(plan), memory = plan.memory, memory_available = core.memory().available,
                         notices = json.array(plan.model.notices) }, { indent = 2 })
end

return plan_text
