--- What a format would cost a model: every matrix streamed through it, nothing written.

local core = require "qmoon.core"
local check = require "qmoon.check"
local explore = require "qmoon.explore"
local formats = require "qmoon.formats"
local reading = require "qmoon.source.reading"
local result = require "qmoon.result"
local tensor = require "qmoon.tensor"
local text = require "qmoon.text"
local write = require "qmoon.write"

local model_report = {}

-- ---- rules -------------------------------------------------------------------------------------------------------------

local function matcher(what, pattern)
    local list = {}
    for i, p in ipairs(type(pattern) == "table" and pattern or { pattern }) do
        list[i] = core.regex(check.text(what, p, "a pattern"))
    end
    return function(name)
        for _, regex in ipairs(list) do
            if regex:search(name) then
                return true
            end
        end
        return false
    end
end

-- rules -> a function from a tensor's name to its format, or nil and why it is left.
local function chooser(format, rules)
    local o = check.options("report", rules, { "match", "skip", "threads", "progress" }, true)
    local match = o.match and matcher("report", o.match)
    local skip = o.skip and matcher("report", o.skip)
    local own = {}
    for i, rule in ipairs(o) do
        check.table("report", rule, ("rule %d"):format(i))
        if rule[2] ~= "keep" then
            formats.resolve(rule[2])
        end
        own[i] = { matcher("report", rule[1]), rule[2] }
    end
    return function(name)
        if match and not match(name) or skip and skip(name) then
            return nil, "not asked for"
        end
        for _, rule in ipairs(own) do
            if rule[1](name) then
                return rule[2] ~= "keep" and rule[2] or nil, "kept by a rule"
            end
        end
        return format
    end
end

-- ---- one tensor ----------------------------------------------------------------------------------------------------------

local function bytes_of(format, options, count, cols)
    local sizes, block = core.plane_sizes(format, count, cols, options.block)
    local sum = 0
    for _, size in ipairs(sizes) do
        sum = sum + size
    end
    if options.double_quant then -- one byte for every f32, and an f32 for 256 of them
        local groups = math.ceil(count / block)
        sum = sum - 4 * groups + groups + 4 * math.ceil(groups / 256)
    end
    return sum
end

local function stream(item, format, options, pool)
    local half = item.source.dtype
    local group = { round = #item.actions > 0 and (half == "f16" or half == "bf16") and half or "none" }
    local steps, source = write.steps_of(nil, item, group, pool)
    local ok, out = pcall(core.stream, pool, { source = source, round = group.round, steps = steps, errors = true, measure = true,
        sinks = { { format = format, block = options.block, double_quant = options.double_quant,
                    exact_zero = options.exact_zero, offset = options.offset } } })
    write.close_steps(steps)
    if not ok then
        error(out, 0)
    end
    return out.sinks[1].error
end

-- Formats that must see the whole tensor, or that only functions can encode.
local function whole(model, item, format, options)
    local t = model:tensor(item.name)
    local q = t:quantize(format, options)
    local sums, bytes = t:errors(q), q:info().bytes
    q:close()
    t:close()
    return sums, bytes
end

local function measure(model, item, spec, pool)
    local format, options = formats.resolve(spec)
    local source = reading.of(item.source)
    local count = source.rows * source.cols
    local streamed = format ~= "nvfp4" and not (type(format) == "table" and format.quantize)
    local sums, bytes
    if streamed then
        bytes = bytes_of(format, options, count, source.cols)
        sums = stream(item, format, options, pool)
    else
        sums, bytes = whole(model, item, format, options)
    end
    item.source.file:release()
    local row = tensor.figures(sums)
    row.tensor, row.format, row.values = item.name, formats.label(spec), count
    row.bits = count > 0 and 8 * bytes / count or 0
    return row, sums, bytes
end

-- ---- the model ------------------------------------------------------------------------------------------------------------

local COLUMNS = explore.columns { { key = "tensor", title = "tensor", short = explore.short_name }, { key = "format", title = "format" },
                                  { key = "values", title = "values", form = "%.0f", wide = true },
                                  { key = "bits", title = "bits/w", form = "%.3f" } }

local function left_text(left)
    local words = {}
    for why, n in pairs(left) do
        words[#words + 1] = ("%d %s"):format(n, why)
    end
    table.sort(words)
    return #words > 0 and " · left: " .. table.concat(words, ", ") or ""
end

local function why_not(item)
    if not item.source.format then
        return item.source.dtype
    elseif #item.shape < 2 and not item.source.rows then
        return "1-D"
    end
end

local function add_up(total, sums)
    for key, value in pairs(sums) do
        total[key] = key:find "^max" and math.max(total[key] or 0, value) or (total[key] or 0) + value
    end
end

--- The report behind m:report.
---@param model qmoon.Model
---@param format qmoon.FormatSpec
---@param rules? table
---@return qmoon.Result
function model_report.of(model, format, rules)
    formats.resolve(format)
    local choose = chooser(format, rules)
    local step, finish = require("qmoon.progress").new "report"
    local pool = core.pool(rules and rules.threads or core.cpus())
    local rows, left, total, bytes = {}, {}, { n = 0, xx = 0, yy = 0, xy = 0, dd = 0, d = 0, max_d = 0 }, 0
    local _, all = model:size()
    local done = 0
    local ok, e = pcall(function()
        for i, item in ipairs(model.items) do
            if core.interrupted() then
                core.fail("interrupt", "interrupted")
            end
            step { tensor = item.name, index = i, tensors = #model.items, bytes = done, total = all }
            local spec, why = choose(item.name)
            why = why_not(item) or not spec and why
            if not why then
                local measured, row, sums, size = pcall(measure, model, item, spec, pool)
                if measured then
                    rows[#rows + 1] = row
                    add_up(total, sums)
                    bytes = bytes + size
                elseif type(row) == "table" and row.kind == "unsupported" then
                    why = "whose rows do not fit the format"
                else
                    error(row, 0)
                end
            end
            if why then
                left[why] = (left[why] or 0) + 1
            end
            done = done + item.source.size
        end
    end)
    finish()
    pool:close()
    if not ok then
        error(e, 0)
    end
    local f = tensor.figures(total)
    local note = ("%d tensors · %s weights · %.3f bits/w · SQNR %s%s"):format(#rows, text.count(total.n), 8 * bytes / math.max(1, total.n),
        f.sqnr == math.huge and "exact" or ("%.2f dB"):format(f.sqnr), left_text(left))
    local r = result.new(COLUMNS, rows, { key = "sqnr", note = note })
    return r:sort "sqnr"
end

local LISTED = { { key = "tensor", title = "tensor", short = explore.short_name }, { key = "type", title = "type" }, { key = "shape", title = "shape" },
                 { key = "values", title = "values", form = "%.0f" }, { key = "bytes", title = "bytes", form = "%.0f" } }

--- The list behind m:tensors.
---@param model qmoon.Model
---@param pattern? string
---@return qmoon.Result
function model_report.tensors(model, pattern)
    local wanted = pattern and matcher("tensors", pattern)
    local rows, bytes = {}, 0
    for _, item in ipairs(model.items) do
        if not wanted or wanted(item.name) then
            local s = item.source
            rows[#rows + 1] = { tensor = item.name, type = item.type_name or s.quantised or s.dtype,
                                shape = text.shape(item.shape), values = (model.extent(item.shape)), bytes = s.size }
            bytes = bytes + s.size
        end
    end
    return result.new(LISTED, rows, { note = ("%d tensors · %s"):format(#rows, text.bytes(bytes)) })
end

return model_report
