--- Looking at tensors: statistics, parts, histograms, and the error of one against another.

local core = require "qmoon.core"
local check = require "qmoon.check"
local formats = require "qmoon.formats"
local result = require "qmoon.result"
local tensor = require "qmoon.tensor"
local terminal = require "qmoon.terminal"
local text = require "qmoon.text"
local plain = require "qmoon.function_format".plain

local explore = {}

local methods = core.tensor_methods

-- ---- statistics -----------------------------------------------------------------------------------------------------

local known_stats = setmetatable({}, { __mode = "k" }) -- tensors do not change

--- Range, mean and deviation of the finite values, and how many are zero, NaN or infinite.  kurtosis is 3 for a normal
--- distribution, more for heavier tails.
---
---     t:stats().absmax
---
---@return {min:number, max:number, mean:number, std:number, absmax:number, kurtosis:number, count:integer, zeros:integer, nan:integer, inf:integer}
function methods:stats()
    check.self("stats", self)
    if not known_stats[self] then
        known_stats[self] = core.stats(plain(self))
    end
    local copy = {}
    for k, v in pairs(known_stats[self]) do
        copy[k] = v
    end
    return copy
end

--- What the given shares of the values are not above: 0.5 is the median.
---
---     t:quantiles(0.5)
---     t:quantiles{0.01, 0.5, 0.99}
---
---@param share number|number[] from 0 to 1
---@return number|number[]
function methods:quantiles(share)
    check.self("quantiles", self)
    if type(share) == "table" then
        return core.quantiles(plain(self), share)
    end
    check.number("quantiles", share, "share")
    return core.quantiles(plain(self), { share })[1]
end

local BARS = { "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█" }

--- How the values are distributed, in nine characters from the least to the largest.
---
---     print(t:sparkline())
---
---@return string? nil when all values are the same
function methods:sparkline()
    check.self("sparkline", self)
    local info = self:info()
    local s = info.count > 0 and self:device() == "cpu" and self:stats()
    if not s or s.min >= s.max then
        return nil
    end
    local counts = core.histogram(plain(self), s.min, s.max, 9)
    local most = math.max(unpack(counts))
    for i, n in ipairs(counts) do
        counts[i] = BARS[n == 0 and 1 or math.max(1, math.ceil(#BARS * n / most))]
    end
    return table.concat(counts)
end

local BAR = 30

--- How many values lie where: a result with a row for each bin.
---
---     t:histogram()
---     t:histogram{bins = 16, low = -0.1, high = 0.1}
---
---@param options? {bins: integer?, low: number?, high: number?} 16 bins from the least to the largest value unless given
---@return qmoon.Result
function methods:histogram(options)
    check.self("histogram", self)
    local o = check.options("histogram", options, { "bins", "low", "high" })
    local s = self:stats()
    local bins = check.whole("histogram", o.bins or 16, "bins", 1, 65536)
    local low = check.number("histogram", o.low or s.min, "low")
    local high = check.number("histogram", o.high or (s.max > low and s.max or low + 1), "high")
    if low >= high then
        core.fail("fail", "histogram: low must be less than high, not %g and %g", low, high)
    end
    local counts, below, above = core.histogram(plain(self), low, high, bins)
    local rows, most = {}, math.max(1, unpack(counts, 1, math.min(bins, 4000)))
    for i, n in ipairs(counts) do
        rows[i] = { low = low + (i - 1) * (high - low) / bins, high = low + i * (high - low) / bins, count = n,
                    share = n / math.max(1, s.count), bar = ("█"):rep(math.ceil(BAR * n / most)) }
    end
    return result.new({ { key = "low", title = "from", form = "%.4g" }, { key = "high", title = "to", form = "%.4g" },
                        { key = "count", title = "values" }, { key = "share", title = "share", form = "%.4f" },
                        { key = "bar", title = "" } }, rows,
        { note = below + above > 0 and ("%d values lie below, %d above"):format(below, above) or nil })
end

-- ---- parts ------------------------------------------------------------------------------------------------------------

local function extent(t)
    local shape = t:info().shape
    local cols = shape[#shape] or 1
    local n = 1
    for _, d in ipairs(shape) do
        n = n * d
    end
    return cols > 0 and n / cols or 0, cols
end

--- Some rows and columns of a tensor, as f32; negative numbers count from the end.
---
---     t:slice(1, 4)
---     t:slice(1, 4, 1, 8)
---
---@param first_row integer from 1 on
---@param last_row? integer the last one unless given
---@param first_column? integer
---@param last_column? integer
---@return qmoon.Tensor
function methods:slice(first_row, last_row, first_column, last_column)
    check.self("slice", self)
    local rows, cols = extent(self)
    local function place(value, name, absent, most)
        value = check.number("slice", value or absent, name)
        value = value < 0 and most + 1 + value or value
        return check.whole("slice", value, name, 1, most)
    end
    check.number("slice", first_row, "first_row")
    local r1, r2 = place(first_row, "first_row", 1, rows), place(last_row, "last_row", rows, rows)
    local c1, c2 = place(first_column, "first_column", 1, cols), place(last_column, "last_column", cols, cols)
    if r2 < r1 or c2 < c1 then
        core.fail("fail", "slice: rows %d to %d and columns %d to %d are none", r1, r2, c1, c2)
    end
    return core.slice(plain(self), r1 - 1, r2 - r1 + 1, c1 - 1, c2 - c1 + 1)
end

--- The same values in another shape, as f32.
---
---     t:reshape{t:info().count}
---
---@param shape integer[]
---@return qmoon.Tensor
function methods:reshape(shape)
    check.self("reshape", self)
    check.table("reshape", shape, "shape")
    for i, d in ipairs(shape) do
        check.whole("reshape", d, ("dimension %d"):format(i), 0)
    end
    return core.reshape(plain(self), shape)
end

--- One value.
---
---     t:at(1, 2)
---
---@param row integer from 1 on
---@param column? integer without it, row counts through the whole tensor
---@return number
function methods:at(row, column)
    check.self("at", self)
    local rows, cols = extent(self)
    check.whole("at", row, "row", 1, column and rows or rows * cols)
    local place = row
    if column then
        place = (row - 1) * cols + check.whole("at", column, "column", 1, cols)
    end
    return self:values(place, place)[1]
end

-- Numbers of up to `many` places out of n: the first ones and the last.
local function chosen(n, many)
    if n <= many then
        return n, 0
    end
    local tail = math.floor(many / 3)
    return many - tail, tail
end

local function exponent_of(t)
    local s = t:stats()
    return s.absmax > 0 and (s.absmax >= 1000 or s.absmax < 0.01) and 3 * math.floor(math.log10(s.absmax) / 3) or 0
end

--- The numbers, as text: the first and last rows and columns of a large tensor, a common power of ten taken out.
---
---     print(t:show())
---     print(t:show{rows = 4, columns = 6})
---
---@param options? {rows: integer?, columns: integer?}
---@return string
function methods:show(options)
    check.self("show", self)
    local o = check.options("show", options, { "rows", "columns", "cols" })
    local rows, cols = extent(self)
    if rows * cols == 0 then
        return self:text() .. "\n no values"
    end
    local many = math.floor(((terminal.columns() or 80) - 8) / 10)
    local r1, r2 = chosen(rows, check.whole("show", o.rows or 12, "rows", 1))
    local c1, c2 = chosen(cols, check.whole("show", o.columns or o.cols or many, "columns", 1))
    local power = exponent_of(self)
    local scale = 10 ^ -power
    local cells = { { "" } }
    local function add_columns(line, get)
        for c = 1, c1 do
            line[#line + 1] = get(c)
        end
        if c2 > 0 then
            line[#line + 1] = "…"
        end
        for c = cols - c2 + 1, cols do
            line[#line + 1] = get(c)
        end
        return line
    end
    add_columns(cells[1], function(c) return ("%d"):format(c) end)
    local function add_row(r)
        local values = self:slice(r, r):values()
        cells[#cells + 1] = add_columns({ ("%d"):format(r) }, function(c) return ("%.4f"):format(values[c] * scale) end)
    end
    for r = 1, r1 do
        add_row(r)
    end
    if r2 > 0 then
        cells[#cells + 1] = { "…" }
    end
    for r = rows - r2 + 1, rows do
        add_row(r)
    end
    return ("%s%s\n%s"):format(self:text(), power ~= 0 and (" · all x 1e%d"):format(power) or "", text.table(cells))
end

-- ---- error ------------------------------------------------------------------------------------------------------------

local FIGURES = {
    { key = "rmse", title = "rmse", form = "%.2e", worse = "high" },
    { key = "max", title = "max|e|", form = "%.4g", worse = "high" },
    { key = "sqnr", title = "SQNR dB", form = "%.2f", worse = "low", exact = "exact" },
    { key = "cosine", title = "cosine", form = "%.5f", worse = "low" },
}

--- A tensor's name as narrow tables show it: without what nearly all of them have in common.
---@param name string
---@return string
function explore.short_name(name)
    return (name:gsub("^model%.", ""):gsub("%.weight$", ""))
end

--- Columns of results that have figures of errors: the given ones, then rmse, max, sqnr and cosine.
---@param columns qmoon.Column[]
---@return qmoon.Column[]
function explore.columns(columns)
    local all = { unpack(columns) }
    for _, c in ipairs(FIGURES) do
        all[#all + 1] = c
    end
    return all
end

-- Figures print as one line.
local Figures = { __tostring = function(f)
    if f.sqnr == math.huge then
        return "exact: no value differs"
    end
    return ("rmse %.3e · max|e| %.4g · SQNR %.2f dB · cosine %.6f · bias %.2g"):format(f.rmse, f.max, f.sqnr, f.cosine, f.bias)
end }

--- How far b is from a: rmse, mse, max (the largest single error), sqnr in dB, cosine, and bias (the mean of b - a).
---
---     qm.error(t, q).sqnr
---
---@param a qmoon.Tensor
---@param b qmoon.Tensor as many values
---@return {rmse:number, mse:number, max:number, sqnr:number, cosine:number, bias:number}
function explore.error(a, b)
    check.tensor("error", a, "a")
    check.tensor("error", b, "b")
    return setmetatable(tensor.figures(a:errors(b)), Figures)
end

--- The error of b against a for every row, column, channel or block: a result to sort and to take the worst of.
---
---     qm.error_by(t, q, "row"):worst(3)
---     qm.error_by(t, q, "block", 64):worst(3, "max")
---
---@param a qmoon.Tensor
---@param b qmoon.Tensor of the same shape
---@param part "row"|"column"|"channel"|"block" a channel of a weight is a row
---@param block? integer values in a block: as b is quantised, unless given
---@return qmoon.Result with number, and the figures of qm.error
function explore.error_by(a, b, part, block)
    check.tensor("error_by", a, "a")
    check.tensor("error_by", b, "b")
    check.choice("error_by", part, "part", { "row", "column", "channel", "block" })
    local kind = part == "channel" and "row" or part
    if kind == "block" then
        local own = b:info().block
        block = check.whole("error_by", block or own > 1 and own or 64, "block", 1)
    end
    local rows = core.errors_by(plain(a), plain(b), kind, block)
    for i, sums in ipairs(rows) do
        rows[i] = tensor.figures(sums)
        rows[i].number, rows[i].absmax = i, sums.max_x
    end
    return result.new(explore.columns { { key = "number", title = part, form = "%.0f" },
                                        { key = "absmax", title = "absmax", form = "%.4g" } }, rows, { key = "sqnr" })
end

-- ---- formats beside each other -----------------------------------------------------------------------------------------

-- What the scales of formats are whose blocks hold codes and scales together (their layouts: core/formats).
local SCALES = { q4_0 = "f16", q4_1 = "f16", q5_0 = "f16", q5_1 = "f16", q8_0 = "f16", iq4_nl = "f16", q2_k = "4b+f16",
                 q3_k = "6b+f16", q4_k = "6b+f16", q5_k = "6b+f16", q6_k = "8b+f16", iq4_xs = "6b+f16", mxfp4 = "2^n" }

local function scale_of(info, descriptor)
    if info.double_quant then
        return "u8"
    end
    local plane = descriptor and descriptor.planes[2]
    return plane and plane.dtype or SCALES[info.format] or ""
end

local function descriptors()
    local by_name = {}
    for _, f in ipairs(formats.list()) do
        by_name[f.name] = f
    end
    return by_name
end

-- A row of figures: t in one format.
local function measured(t, format, options, by_name)
    local q = t:quantize(format, options)
    local info, row = q:info(), explore.error(t, q)
    local descriptor = type(format) == "string" and by_name[info.format] or type(format) ~= "string" and format:info()
    row.format, row.bits = formats.label(format), info.bits
    row.block = descriptor and descriptor.block == 0 and (not options or not options.block or options.block == "row")
        and "row" or info.block
    row.scale = scale_of(info, descriptor)
    q:close()
    return row
end

local COMPARED = explore.columns { { key = "format", title = "format" }, { key = "block", title = "block" },
                                   { key = "scale", title = "scale" }, { key = "bits", title = "bits/w", form = "%.3f" } }

--- A tensor in several formats: bits per weight with scales, and the error of each.
---
---     qm.compare(t, {"int8", "q4_0", "nf4", "nf4:dq", "int4", "fp4"})
---     qm.compare(t, {"nf4", "q4_0"}):csv()
---
---@param t qmoon.Tensor
---@param list qmoon.FormatSpec[] what t:quantize takes
---@return qmoon.Result with format, block, scale, bits, and the figures of qm.error
function explore.compare(t, list)
    check.tensor("compare", t, "t")
    check.table("compare", list, "list")
    if #list == 0 then
        core.fail("fail", "compare: list must have formats in it, such as {\"nf4\", \"q4_0\"}")
    end
    local rows, by_name = {}, descriptors()
    for i, format in ipairs(list) do
        rows[i] = measured(t, format, nil, by_name)
    end
    return result.new(COMPARED, rows, { key = "sqnr" })
end

local function list_of(value)
    if value == nil then
        return {}
    end
    return type(value) == "table" and #value > 0 and value or { value }
end

-- What a sweep goes over: every format with every block size, and with its scales as they are or quantised again.
local function combinations(o)
    local list = {}
    local names = list_of(o.format)
    for _, value in ipairs(list_of(o.codebook)) do
        names[#names + 1] = value
    end
    names = { unpack(names) }
    for _, bits in ipairs(list_of(o.bits)) do
        check.whole("sweep", bits, "bits", 2, 8)
        names[#names + 1] = bits == 8 and "int8g" or ("int%d"):format(bits)
    end
    if #names == 0 then
        core.fail("fail", "sweep: name formats or bits: qm.sweep(t, {format = {\"nf4\"}, bits = {2, 3, 4}, block = {32, 64}})")
    end
    local blocks = list_of(o.block)
    local doubles = o.double_quant == nil and { false } or list_of(o.double_quant)
    for _, name in ipairs(names) do
        for _, block in ipairs(#blocks > 0 and blocks or { false }) do
            for _, double in ipairs(doubles) do
                list[#list + 1] = { name, { block = block or nil, double_quant = double or nil } }
            end
        end
    end
    return list
end

--- Every combination of formats, bits, block sizes and double quantisation on one tensor.  bits = 4 is int4, whole
--- numbers in even steps.  What a format cannot do is left out and counted in the note.
---
---     qm.sweep(t, {format = {"nf4", "fp4"}, block = {32, 64, 128, 256}})
---     qm.sweep(t, {bits = {2, 3, 4, 5, 6, 8}, block = {32, 128}}):sort "bits"
---     qm.sweep(t, {codebook = {qm.kmeans(t)}, format = "nf4", double_quant = {false, true}})
---
---@param t qmoon.Tensor
---@param over {format: qmoon.FormatSpec|qmoon.FormatSpec[]|nil, codebook: any, bits: integer|integer[]|nil, block: any, double_quant: boolean|boolean[]|nil}
---@return qmoon.Result as of qm.compare
function explore.sweep(t, over)
    check.tensor("sweep", t, "t")
    check.table("sweep", over, "over")
    check.options("sweep", over, { "format", "codebook", "bits", "block", "double_quant" })
    local rows, by_name, left_out, why = {}, descriptors(), 0, nil
    for _, c in ipairs(combinations(over)) do
        if core.interrupted() then
            core.fail("interrupt", "interrupted")
        end
        local ok, row = pcall(measured, t, c[1], c[2], by_name)
        if ok then
            row.format = formats.label(c[1]) .. (c[2].double_quant and ":dq" or "")
            rows[#rows + 1] = row
        elseif type(row) ~= "table" or row.kind == "interrupt" or row.kind == "nofit" then
            error(row, 0)
        else
            left_out, why = left_out + 1, why or row.message
        end
    end
    if #rows == 0 then
        core.fail("fail", "sweep: %s", why)
    end
    return result.new(COMPARED, rows, { key = "sqnr",
                                        note = left_out > 0 and ("left out: %d, such as: %s"):format(left_out, why) or nil })
end

return explore
