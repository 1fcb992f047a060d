--- Codebooks: formats whose levels are data, and levels fitted to values.
--
-- A weight takes the code of the level nearest to weight / absmax of its block; what comes back is level *
-- absmax.  Codes have as many bits as tell the levels apart; the absmax is one f32 a block.

local core = require "qmoon.core"
local ffi = require "ffi"
local formats = require "qmoon.formats"
local nearest = require "qmoon.nearest"
local plain = require "qmoon.function_format".plain

local codebook = {}

---@class qmoon.Codebook
local methods = core.format_methods
local raw = { info = methods.info, levels = methods.levels }

local function check_self(self, name)
    local meta = type(self) == "userdata" and debug.getmetatable(self)
    if type(meta) ~= "table" or rawget(meta, "__name") ~= "qmoon.format" then
        core.fail("fail", "%s: called on something that is no codebook; it is a method: codebook:%s()", name, name)
    end
end

--- What it is, as an entry of qm.formats(): {name, doc, block, planes, bound, …}.
---
---     codebook:info().block
---
---@return table
function methods:info()
    check_self(self, "info")
    return raw.info(self)
end

--- The levels in the order of their codes, as multiples of a block's largest magnitude.
---
---     codebook:levels()
---
---@return number[]
function methods:levels()
    check_self(self, "levels")
    return raw.levels(self)
end

--- What it is, in one line.
---
---     print(codebook:text())
---
---@return string
function methods:text()
    check_self(self, "text")
    local info, levels, few = self:info(), self:levels(), {}
    if not levels then
        return ("format %s: %s"):format(info.name, info.doc)
    end
    for i, v in ipairs(levels) do
        if #levels <= 8 or i <= 4 or i > #levels - 4 then
            few[#few + 1] = ("%.4g"):format(v)
        elseif i == 5 then
            few[#few + 1] = "…"
        end
    end
    return ("codebook %s: %d levels, %d bits, block %s · %s"):format(info.name, #levels, info.planes[1].bits,
        info.block > 0 and info.block or "row", table.concat(few, " "))
end

-- A misspelt option would be a default without a word.
local function check_options(what, options, known)
    for k in pairs(options) do
        if type(k) ~= "number" and not known[k] then
            local names = {}
            for name in pairs(known) do
                names[#names + 1] = name
            end
            table.sort(names)
            local guess = nearest(tostring(k), names)
            core.fail("fail", "%s has no option '%s'%s; there are %s", what, tostring(k),
                guess and (" (did you mean '%s'?)"):format(guess) or "", table.concat(names, ", "))
        end
    end
end

-- A codebook with a name of its own is known by it everywhere; one without goes by what it is.
local function make(levels, options, kind)
    local format = core.codebook(options.name or ("%s%d"):format(kind, #levels), levels, options.block)
    if options.name then
        formats.register(options.name, format)
    end
    return format
end

---@class qmoon.CodebookSpec
---@field [integer] number        the levels
---@field levels number[]?        the same as a list, instead of in the table itself
---@field name string?            by which it is known from then on, until another takes the name
---@field block integer|"row"|nil values with one scale: any number, or a row; 64 unless given
local CODEBOOK = { name = true, block = true, levels = true }

--- A format of 2 to 256 levels, usable wherever a format's name is, by value or by the name it is given.
---
--- Levels are multiples of a block's largest magnitude, from -1 to 1, in any order: the first is code 0.  If
--- one lies beyond, all are divided by the largest magnitude among them, so that integers and the values of
--- small floats can be written as they are.  A weight halfway between two levels takes the lower.  Encoding
--- and decoding are as fast as nf4's, and NF4's table gives NF4's codes for 16-bit weights (all-zero blocks
--- get the code of the level nearest to 0).
---
---     mine = qm.codebook{name = "mine", block = 64, -1, -0.5, -0.2, 0, 0.15, 0.4, 1}    -- 7 levels: 3 bits
---     qm.compare(t, {"nf4", mine, "mine:128"})
---
--- Raises: fewer than 2 or more than 256 levels; one that is not a finite number; a name that a format of the
--- program has, or with other characters than letters, digits, '_', '.' and '-'.
---@param spec qmoon.CodebookSpec
---@return qmoon.Codebook
function codebook.codebook(spec)
    check_options("codebook", spec, CODEBOOK)
    return make(spec.levels or spec, spec, "codebook")
end

-- ---- fitting ----------------------------------------------------------------------------------------------

---@class qmoon.FitOptions
---@field levels integer?         how many: 2 to 256, 16 unless given
---@field block integer|"row"|nil as the codebook's; 64 unless given
---@field name string?            of the codebook
---@field weights qmoon.Tensor|"absmax"|nil  how much the squared error of a value counts: one number per
---                               value or per column; "absmax" is the square of the block's scale, which gives
---                               the least error of the tensor itself; all count the same unless given
local FIT = { name = true, block = true, levels = true, weights = true }

local function fitted(what, t, options, kind)
    options = options or {}
    check_options(what, options, FIT)
    local by_size = options.weights == "absmax"
    local levels = core.fit(plain(t), {
        kind = kind,
        levels = options.levels,
        block = options.block,
        weights = not by_size and plain(options.weights) or nil,
        by_size = by_size,
    })
    return make(levels, options, kind)
end

--- The codebook with the least sum of squared errors on a tensor's values (the quantiser of Lloyd and Max).
---
--- What is fitted are the values as the encoder sees them, each divided by the largest magnitude of its
--- block. Levels are found outright, not by iteration, from a histogram of 16384 bins: to a bin's width there
--- are no better ones.  The same on every machine.  Where the tensor has fewer distinct values than levels,
--- the highest level is repeated.
---
---     best = qm.kmeans(t, {levels = 16, block = 64})
---     qm.compare(t, {"nf4", best})
---     qm.kmeans(w, {levels = 8, weights = importance, name = "w3"})     -- one weight per column
---
--- Raises: NaN or infinity in the tensor; nothing but zeros; weights of another length, negative or not
--- finite.
---@param t qmoon.Tensor any shape; blocks run over row ends as when quantising
---@param options? qmoon.FitOptions
---@return qmoon.Codebook
function codebook.kmeans(t, options)
    return fitted("kmeans", t, options, "kmeans")
end

local function f32(x)
    return tonumber(ffi.cast("float", x))
end

-- Probability i of n + 1 in even steps from `most` to one half, in f32, counted from the nearer end.
local function probability(most, i, n)
    local step = f32((0.5 - most) / n)
    return i < math.floor((n + 1) / 2) and f32(most + f32(step * i)) or f32(0.5 - f32(step * (n - i)))
end

-- As NF4's levels were found (QLoRA, arXiv 2305.14314, appendix E): quantiles at even steps of probability on
-- either side of zero, one more above than below, divided by the largest.  The outermost probability is
-- midway between those that even steps of n - 1 and of n halves would give, to seven decimals.  In that
-- precision, and with f32 in between as above, the normal distribution gives NF4's very bits.
local function of_distribution(quantile, n)
    local most = 1 - (1 / (2 * (n - 1)) + 1 / (2 * n)) / 2
    most = f32(math.floor(most * 1e7 + 0.5) / 1e7)
    local above, below = n / 2, n / 2 - 1
    local levels, list = ffi.new("float[?]", n), {}
    local function at(p)
        local x = quantile(p)
        if type(x) ~= "number" then
            core.fail("fail", "quantile_codebook: the function gave a %s for p = %g", type(x), p)
        end
        return x
    end
    for i = 0, below - 1 do
        levels[i] = at(1 - probability(most, i, below))
    end
    for i = 0, above - 1 do
        levels[n - 1 - i] = at(probability(most, i, above))
    end
    local largest = math.max(-levels[0], levels[n - 1])
    for i = 0, n - 1 do
        list[i + 1] = levels[i] / largest
    end
    return list
end

local DISTRIBUTIONS = {
    normal = core.normal_quantile,
    uniform = function(p)
        return 2 * p - 1
    end,
    laplace = function(p)
        return p < 0.5 and math.log(2 * p) or -math.log(2 - 2 * p)
    end,
}

--- A codebook of quantiles.
---
--- Of a tensor: its values, each divided by the largest magnitude of its block, are cut in as many equal
--- parts as there are levels, and each level is the middle value of its part.  All codes are used about
--- equally often, which costs accuracy for the few large values (compare qm.kmeans).
---
--- Of a distribution: the construction of NF4 for any even number of levels; 0 is one of them, and -1 or 1
--- the outermost.  qm.quantile_codebook "normal" is NF4.
---
---     equal = qm.quantile_codebook(t, {levels = 16})
---     nf3 = qm.quantile_codebook("normal", {levels = 8, name = "nf3"})
---     qm.quantile_codebook(function(p) return math.log(p / (1 - p)) end)                 -- logistic
---
--- Raises: what qm.kmeans does; an unknown distribution; an odd number of levels, or fewer than 4, for one.
---@param source qmoon.Tensor|"normal"|"uniform"|"laplace"|fun(p: number): number the function is a
--- distribution's quantile function: p in (0, 1) -> x with P(X <= x) = p, negative below its median 0
---@param options? qmoon.FitOptions weights for a tensor only
---@return qmoon.Codebook
function codebook.quantile_codebook(source, options)
    if type(source) == "userdata" then
        return fitted("quantile_codebook", source, options, "quantiles")
    end
    options = options or {}
    check_options("quantile_codebook", options, { name = true, block = true, levels = true })
    local quantile = type(source) == "function" and source or DISTRIBUTIONS[source]
    if not quantile then
        local given = type(source) == "string" and ("'%s'"):format(source) or type(source)
        core.fail("fail", "quantile_codebook: of a tensor, a function, 'normal', 'uniform' or 'laplace', not %s", given)
    end
    local n = options.levels or 16
    if type(n) ~= "number" or n % 2 ~= 0 or n < 4 or n > 256 then
        core.fail("fail", "quantile_codebook: a distribution gives an even number of levels, 4 to 256, not %s",
            tostring(n))
    end
    return make(of_distribution(quantile, n), options, "quantiles")
end

return codebook
