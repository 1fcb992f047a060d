--- What was written and what it cost: per output sizes and errors, worst tensors, what was left as it is.

local core = require "qmoon.core"
local evaluation = require "qmoon.evaluation"
local json = require "qmoon.json"
local output = require "qmoon.output"
local tensor = require "qmoon.tensor"
local text = require "qmoon.text"

local report = {}

local Report = {}
Report.__index = Report

local WORST = 5

local function add(into, s)
    for _, k in ipairs { "n", "xx", "yy", "xy", "dd", "d" } do
        into[k] = into[k] + s[k]
    end
    local larger = s.max_d ~= s.max_d or s.max_d > into.max_d -- a NaN is the largest
    into.max_d = larger and s.max_d or into.max_d
    return into
end

local function zero_sums()
    return { n = 0, xx = 0, yy = 0, xy = 0, dd = 0, d = 0, max_d = 0 }
end

-- Parameters left unquantised, by reason.
local function kept_of(out)
    local kept, order, quantised = {}, {}, 0
    for _, row in ipairs(out.rows) do
        if row.why then
            if not kept[row.why] then
                kept[row.why] = { why = row.why, tensors = 0, parameters = 0 }
                order[#order + 1] = kept[row.why]
            end
            kept[row.why].tensors = kept[row.why].tensors + 1
            kept[row.why].parameters = kept[row.why].parameters + row.count
        else
            quantised = quantised + row.count
        end
    end
    table.sort(order, function(a, b)
        return a.parameters > b.parameters
    end)
    return order, quantised
end

local function figures_of(out)
    local sum, rows = zero_sums(), {}
    for _, row in ipairs(out.rows) do
        local s = out.errors and row.item and out.errors[row.item]
        if s then
            add(sum, s)
            local f = tensor.figures(s)
            f.name, f.type = row.name, row.type
            rows[#rows + 1] = f
        end
    end
    table.sort(rows, function(a, b)
        if a.sqnr ~= b.sqnr then
            return a.sqnr < b.sqnr
        end
        return a.name < b.name
    end)
    return tensor.figures(sum), rows
end

local function kept_text(kept)
    local words = {}
    for _, k in ipairs(kept) do
        words[#words + 1] = ("%s (%s)"):format(k.why, text.count(k.parameters))
    end
    return table.concat(words, ", ")
end

-- What a person should know of an output, found out while writing it.
---@param worst table? the tensor with the least SQNR
local function notices_of(out, worst)
    local notices = { unpack(out.notices) }
    if worst and worst.sqnr == -math.huge then
        notices[#notices + 1] = ("tensor '%s' decodes to infinities or NaN: it holds some, or values beyond what a scale of %s can be; "
            .. "a wider type keeps them (of a .gguf: --tensor-type NAME=bf16)"):format(worst.name, worst.type)
    end
    if out.zero_blocks_drift and (out.zero_groups or 0) > 0 then
        notices[#notices + 1] = ("%d blocks of nothing but zeros come back as a small constant, as from bitsandbytes; "
            .. "--zero-blocks exact writes them so that they stay zeros"):format(out.zero_groups)
    end
    return notices
end

-- How much is quantised, what was taken as rows for it, and what was left and why.
local function coverage_of(out, parameters, quantised, kept)
    local counts, words = {}, { ("%.2f %% of %s parameters quantised"):format(100 * quantised / parameters, text.count(parameters)) }
    for _, row in ipairs(out.rows) do
        if row.reshaped then
            local c = counts[row.reshaped] or { tensors = 0, parameters = 0 }
            counts[row.reshaped] = c
            c.tensors, c.parameters = c.tensors + 1, c.parameters + row.count
        end
    end
    for _, shape in ipairs { "[out, in x kernel]", "[E x out, in]" } do
        local c = counts[shape]
        words[#words + 1] = c and ("%d as rows %s (%s)"):format(c.tensors, shape, text.count(c.parameters)) or nil
    end
    words[#words + 1] = #kept > 0 and "left: " .. kept_text(kept) or nil
    return table.concat(words, " · ")
end

local function entry_of(out)
    local weights, parameters, bits = output.weights(out)
    local total, tensors = figures_of(out)
    local kept, quantised = kept_of(out)
    return { path = out.path, title = out.title, size = output.size(out), weights = weights, parameters = parameters,
             bits = bits, error = total, tensors = tensors, kept = kept, quantised = quantised,
             zero_groups = out.zero_groups or 0, notices = notices_of(out, tensors[1]), folder = out.folder,
             coverage = out.coverage and coverage_of(out, parameters, quantised, kept),
             exact_max = not out.title:find "dq" }
end

---@param result table what qmoon.write.run gave
---@return table report
function report.of(result)
    local plan = result.plan
    local _, source = plan.model:size()
    local r = { model = plan.model, source = source, seconds = result.seconds, peak = result.peak, planned = plan.memory,
                threads = plan.threads, couriers = plan.couriers, device = plan.couriers and tostring(plan.devices[1]):match "^%S+" .. (#plan.devices > 1 and " and others" or ""),
                outputs = {}, moved = plan.moved }
    for i, out in ipairs(plan.outputs) do
        r.outputs[i] = entry_of(out)
    end
    return setmetatable(r, Report)
end

-- ---- text -------------------------------------------------------------------------------------------------------

local function number(x, form)
    return x == math.huge and "exact" or form:format(x)
end

local function rows_of(r)
    local rows = { { "output", "format", "size", "bits/w", "ratio", "rmse", "SQNR dB", "cosine", "max|e|" } }
    for _, o in ipairs(r.outputs) do
        local name = o.path:match "[^/]+$" .. (o.folder and "/" or "")
        local exact = o.error.sqnr == math.huge
        rows[#rows + 1] = { name, o.title, text.bytes(o.size), ("%.3f"):format(o.bits),
                            ("%.1f %%"):format(100 * o.weights / r.source),
                            exact and "0" or ("%.3e"):format(o.error.rmse), number(o.error.sqnr, "%.2f"),
                            exact and "1" or ("%.6f"):format(o.error.cosine), exact and "0" or ("%.4g"):format(o.error.max) }
    end
    return rows
end

local function moved_text(r)
    if #r.moved == 0 then
        return nil
    end
    local low, high = math.huge, 0
    for _, m in ipairs(r.moved) do
        low, high = math.min(low, m.ratio), math.max(high, m.ratio)
    end
    local pairs = 0
    for _, a in ipairs(r.model.adapters or {}) do
        pairs = pairs + a.pairs
    end
    return ("%d of %d pairs merged · |dW|/|W| %.2g-%.2g %%"):format(pairs, pairs, 100 * low, 100 * high)
end

function Report:__tostring()
    local lines = { text.table(rows_of(self)) }
    local merged = moved_text(self)
    if merged then
        lines[#lines + 1] = " LoRA     " .. merged
    end
    for _, o in ipairs(self.outputs) do
        lines[#lines + 1] = o.coverage and (" coverage %s"):format(o.coverage) or nil
    end
    for _, n in ipairs(self.model.notices) do
        lines[#lines + 1] = " note     " .. n
    end
    for _, o in ipairs(self.outputs) do
        for _, n in ipairs(o.notices) do
            lines[#lines + 1] = (" note     %s: %s"):format(o.path:match "[^/]+$", n)
        end
    end
    if self.evaluation then
        lines[#lines + 1] = text.table(evaluation.rows(self))
        lines[#lines + 1] = " " .. evaluation.caption(self)
    end
    lines[#lines + 1] = (" done in %s · %s of source read once · peak RAM %s (planned %s) · %d threads%s"):format(
        text.duration(self.seconds), text.bytes(self.source), text.memory(self.peak), text.memory(self.planned), self.threads,
        self.couriers and " through " .. self.device or "")
    return table.concat(lines, "\n")
end

--- report.md
---@return string
function Report:markdown()
    local lines = { "# What was written", "", ("Source `%s`, %s in %d tensors. Errors are against the values every output was "
        .. "encoded from."):format(self.model.path, text.bytes(self.source), #self.model.items), "", text.markdown(rows_of(self)) }
    local function add_line(...)
        lines[#lines + 1] = string.format(...)
    end
    add_line("")
    add_line("Sizes are of whole files; bits/w and ratio count all weights, scales included. For double-quantised formats max|e| is "
        .. "an upper bound.")
    if self.evaluation then
        lines[#lines + 1] = "\n## What it does to predictions\n\n" .. text.markdown(evaluation.rows(self))
        add_line("")
        add_line("%s. Change is of perplexity, KL divergence in nats from the reference's predictions.", evaluation.caption(self))
    end
    local merged = moved_text(self)
    if merged then
        add_line("")
        add_line("LoRA: %s.", merged)
    end
    for _, n in ipairs(self.model.notices) do
        add_line("")
        add_line("Note: %s", n)
    end
    for _, o in ipairs(self.outputs) do
        add_line("")
        add_line("## %s", o.path:match "[^/]+$")
        add_line("")
        add_line("%s; left unquantised: %s.", o.title, #o.kept > 0 and kept_text(o.kept) or "nothing")
        if o.coverage then
            add_line("Coverage: %s.", o.coverage)
        end
        for _, n in ipairs(o.notices) do
            add_line("%s.", n)
        end
        if o.error.sqnr ~= math.huge then
            local rows = { { "worst tensors", "type", "rmse", "SQNR dB", "cosine" } }
            for i = 1, math.min(WORST, #o.tensors) do
                local t = o.tensors[i]
                rows[#rows + 1] = { t.name, t.type, ("%.3e"):format(t.rmse), number(t.sqnr, "%.2f"), ("%.6f"):format(t.cosine) }
            end
            add_line("")
            lines[#lines + 1] = text.markdown(rows)
        end
    end
    return table.concat(lines, "\n") .. "\n"
end

local function error_object(e)
    return { rmse = json.finite(e.rmse), mse = json.finite(e.mse), max = json.finite(e.max), sqnr_db = json.finite(e.sqnr),
             cosine = json.finite(e.cosine), bias = json.finite(e.bias) }
end

local function evaluation_object(e)
    if not e then
        return nil
    end
    return { ppl = e.ppl, nll = e.nll, tokens = e.tokens, ppl_interval = e.ppl_interval and json.array(e.ppl_interval),
             reference_ppl = e.reference_ppl, kl_mean = e.kl_mean, kl_p99 = e.kl_p99, kl_max = e.kl_max,
             top1_agreement = e.top1_agreement, tokens_per_second = e.tokens_per_second,
             prompt_tokens_per_second = e.prompt_tokens_per_second }
end

--- report.json.  The same input gives the same bytes, so times and memory are in it only when asked for; an
--- evaluation's tokens per second always.
---@param with_times boolean?
---@return string
function Report:json(with_times)
    local outputs = {}
    for i, o in ipairs(self.outputs) do
        local tensors, kept = {}, {}
        for k, t in ipairs(o.tensors) do
            tensors[k] = error_object(t)
            tensors[k].name, tensors[k].type = t.name, t.type
        end
        for k, e in ipairs(o.kept) do
            kept[k] = e
        end
        outputs[i] = { path = o.path, format = o.title, size = o.size, weight_bytes = o.weights, parameters = o.parameters,
                       bits_per_weight = o.bits, ratio = o.weights / self.source, error = error_object(o.error),
                       max_is_bound = not o.exact_max, zero_groups = o.zero_groups, unquantised = json.array(kept),
                       quantised_parameters = o.quantised, coverage = o.coverage, evaluation = evaluation_object(o.evaluation),
                       tensors = json.array(tensors), notices = json.array(o.notices) }
    end
    local seconds, peak, planned
    if with_times then
        seconds, peak, planned = self.seconds, self.peak, self.planned
    end
    return json.encode({ schema = "qmoon-report-1", seconds = seconds, peak_memory = peak, planned_memory = planned, version = core.version, source = self.model.path,
                         source_bytes = self.source, notices = json.array(self.model.notices),
                         evaluation = self.evaluation, outputs = json.array(outputs) }, { indent = 2 }) .. "\n"
end

return report
