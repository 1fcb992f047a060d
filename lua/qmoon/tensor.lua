--- Tensors from Lua: making them, and the methods that need no C.
--
-- A tensor is never changed; every method gives a new one.  tostring(t) is one line.

local core = require "qmoon.core"
local formats = require "qmoon.formats"
local plain = require "qmoon.function_format".plain
local text = require "qmoon.text"

local tensor = {}

---@class qmoon.Tensor
---@field info fun(self): table     {name, shape, format, count, block, bytes, bits, double_quant, offset}
---@field stats fun(self): table    {min, max, mean, std, nan, inf}
---@field dequantize fun(self): qmoon.Tensor  f32
---@field transpose fun(self): qmoon.Tensor
---@field to fun(self, device: qmoon.Device|"cpu"): qmoon.Tensor  a copy there: t:to(qm.cuda(0)), t:to(qm.cpu)
---@field device fun(self): qmoon.Device|"cpu"  where its bytes are
local methods = core.tensor_methods

-- Only functions can decode a tensor that functions encoded; the methods in C are given its values.
for _, name in ipairs { "dequantize", "transpose", "values", "stats", "errors" } do
    local method = methods[name]
    methods[name] = function(self, other, ...)
        return method(plain(self), name == "errors" and plain(other) or other, ...)
    end
end

local quantize = methods.quantize

--- A quantised copy.  format: a name of qm.formats(), with a block size (or "row") and double quantisation as in
--- "nf4:128:dq", or as options; or what qm.codebook, qm.kmeans, qm.quantile_codebook and qm.format return.
---@param format qmoon.FormatSpec
---@param options? {block: integer|"row"|nil, double_quant: boolean?, exact_zero: boolean?, offset: number?}
---@return qmoon.Tensor
function methods:quantize(format, options)
    local resolved, merged = formats.resolve(format, options)
    if type(resolved) == "table" then
        return resolved:quantize(self, merged)
    end
    return quantize(plain(self), resolved, merged)
end

--- The bytes of the codes of a quantised tensor (of the blocks, where codes and scales lie together).
---@return string
function methods:codes()
    return self:plane(1)
end

--- The bytes of the scales of a quantised tensor; "" where they lie in the blocks.
---@return string
function methods:scales()
    return self:plane(2)
end

function methods:text()
    local i = self:info()
    local head = ("%s %s%s"):format(i.format, text.shape(i.shape), i.name and " " .. i.name or "")
    local plain = i.format == "f32" or i.format == "f16" or i.format == "bf16"
    local device = self:device()
    if device ~= "cpu" then
        head = head .. " on " .. tostring(device):match "^%S+"
    end
    if plain and device ~= "cpu" then
        return ("%s %s"):format(head, text.memory(i.bytes))
    elseif plain then
        local s = self:stats()
        return ("%s %s  min %.4g max %.4g  mean %.2g std %.4g%s"):format(head, text.memory(i.bytes), s.min, s.max, s.mean,
            s.std, s.nan + s.inf > 0 and ("  NaN %d Inf %d"):format(s.nan, s.inf) or "")
    end
    return ("%s block %d%s · %s · %.3f bits/weight · %.2fx smaller than f32"):format(head, i.block,
        i.double_quant and " double quantised" or "", text.memory(i.bytes), i.bits, 32 / i.bits)
end

-- ---- making ------------------------------------------------------------------------------------------------

local function shape_of(spec)
    local shape = {}
    for i, d in ipairs(spec) do
        shape[i] = d
    end
    return shape
end

--- Normal values: qm.randn{1024, 1024, std=0.02, mean=0, seed=1}.
---@param spec table
---@return qmoon.Tensor
function tensor.randn(spec)
    return core.random("normal", shape_of(spec), spec.seed or 0, spec.mean or 0, spec.std or 1)
end

--- Uniform values: qm.uniform{1024, 1024, low=-1, high=1, seed=1}.
---@param spec table
---@return qmoon.Tensor
function tensor.uniform(spec)
    return core.random("uniform", shape_of(spec), spec.seed or 0, spec.low or -1, spec.high or 1)
end

--- Student's t: qm.student_t{1024, 1024, freedom=5, scale=0.02, seed=1}.
---@param spec table
---@return qmoon.Tensor
function tensor.student_t(spec)
    return core.random("student", shape_of(spec), spec.seed or 0, spec.freedom or 5, spec.scale or 1)
end

--- A tensor of numbers given in Lua, as a list or a list of equally long lists.
---@param list number[]|number[][]
---@return qmoon.Tensor
function tensor.tensor(list)
    if type(list[1]) ~= "table" then
        return core.tensor({ #list }, list)
    end
    local flat, cols = {}, #list[1]
    for i, row in ipairs(list) do
        if #row ~= cols then
            error(("tensor: row %d has %d numbers, the first has %d"):format(i, #row, cols), 2)
        end
        for _, v in ipairs(row) do
            flat[#flat + 1] = v
        end
    end
    return core.tensor({ #list, cols }, flat)
end

-- ---- error ---------------------------------------------------------------------------------------------------

--- Figures people compare, from the sums of core: rmse, mse, max, sqnr (dB), cosine, bias.
---@param s table
---@return table
function tensor.figures(s)
    local n = math.max(s.n, 1)
    return {
        rmse = math.sqrt(math.max(s.dd, 0) / n),
        mse = math.max(s.dd, 0) / n,
        max = s.max_d,
        sqnr = s.dd > 0 and 10 * math.log10(s.xx / s.dd) or math.huge,
        cosine = s.dd == 0 and 1 or s.xx > 0 and s.yy > 0 and s.xy / math.sqrt(s.xx * s.yy) or 0,
        bias = s.d / n,
    }
end

--- Error of b against a: {rmse, mse, max, sqnr in dB, cosine, bias}.
---@param a qmoon.Tensor
---@param b qmoon.Tensor
---@return table
function tensor.error(a, b)
    return tensor.figures(a:errors(b))
end

--- One row of figures per format; tostring gives a table.
---@param t qmoon.Tensor
---@param list qmoon.FormatSpec[]
---@return table
function tensor.compare(t, list)
    local rows = {}
    for i, format in ipairs(list) do
        local q = t:quantize(format)
        local info, e = q:info(), tensor.error(t, q)
        e.format, e.block, e.bits = formats.label(format), info.block, info.bits
        rows[i] = e
    end
    return setmetatable(rows, { __tostring = function()
        local cells = { { "format", "block", "bits/w", "rmse", "max|e|", "SQNR dB", "cosine" } }
        for _, r in ipairs(rows) do
            cells[#cells + 1] = { r.format, tostring(r.block), ("%.3f"):format(r.bits), ("%.2e"):format(r.rmse),
                                  ("%.4g"):format(r.max), ("%.2f"):format(r.sqnr), ("%.5f"):format(r.cosine) }
        end
        return text.table(cells)
    end })
end

return tensor
