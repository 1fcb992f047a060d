--- Tensors computed with: enough to follow a paper.  Everything is decoded to f32 first and gives f32.

local core = require "qmoon.core"
local check = require "qmoon.check"
local plain = require "qmoon.function_format".plain
local tensor = require "qmoon.tensor"

local methods = core.tensor_methods

--- The matrix product [m x k] times [k x n], summed in double.
---
---     x = qm.randn{4, 256, seed = 2}
---     y = x:matmul(t:slice(1, 8):transpose())
---
---@param other qmoon.Tensor
---@return qmoon.Tensor
function methods:matmul(other)
    check.self("matmul", self)
    check.tensor("matmul", other, "other")
    return core.matmul(plain(self), plain(other))
end

local function elementwise(op, t, other)
    check.self(op, t)
    if type(other) ~= "number" then
        check.tensor(op, other, "other")
        other = plain(other)
    end
    return core.elementwise(op, plain(t), other)
end

--- The sum, value by value.
---
---     t:add(t)
---     t:add(1)
---
---@param other qmoon.Tensor|number a tensor of the same shape, of one row that every row meets, or of one column
---@return qmoon.Tensor
function methods:add(other)
    return elementwise("add", self, other)
end

--- The difference, value by value: what quantising took away is t:sub(q).
---
---     t:sub(q):stats().absmax
---
---@param other qmoon.Tensor|number as of t:add
---@return qmoon.Tensor
function methods:sub(other)
    return elementwise("sub", self, other)
end

--- The product, value by value.
---
---     t:mul(t:norms "column")
---
---@param other qmoon.Tensor|number as of t:add: a row scales the columns, a column the rows
---@return qmoon.Tensor
function methods:mul(other)
    return elementwise("mul", self, other)
end

--- The quotient, value by value.
---
---     t:div(t:norms "row")
---
---@param other qmoon.Tensor|number as of t:add
---@return qmoon.Tensor
function methods:div(other)
    return elementwise("div", self, other)
end

--- Every value times a number.
---
---     t:scale(0.5)
---
---@param factor number
---@return qmoon.Tensor
function methods:scale(factor)
    check.self("scale", self)
    check.number("scale", factor, "factor")
    return core.elementwise("mul", plain(self), factor)
end

--- The length of the tensor as one long vector; or the largest magnitude; or, of a matrix, the largest singular value.
---
---     t:sub(q):norm() / t:norm()
---     t:norm "max"
---
---@param kind? "fro"|"max"|"spectral" "fro" unless given
---@return number
function methods:norm(kind)
    check.self("norm", self)
    check.choice("norm", kind or "fro", "kind", { "fro", "max", "spectral" })
    if kind == "max" then
        return self:stats().absmax
    elseif kind == "spectral" then
        local _, s = self:svd()
        return s:at(1)
    end
    return math.sqrt(self:errors(self).xx)
end

--- The length of every row, as a column; or of every column, as a row.
---
---     t:norms "row"
---
---@param of "row"|"column"
---@return qmoon.Tensor [rows x 1] or [1 x columns]
function methods:norms(of)
    check.self("norms", self)
    check.choice("norms", of, "of", { "row", "column" })
    local this = plain(self)
    local list = core.errors_by(this, this, of)
    for i, sums in ipairs(list) do
        list[i] = math.sqrt(sums.xx)
    end
    return core.tensor(of == "row" and { #list, 1 } or { 1, #list }, list)
end

--- Singular values and vectors: t = u diag(s) v, s from the largest down.  LAPACK does it, if it is on this machine (in
--- Debian: apt-get install liblapack3); QMOON_LAPACK names another library.
---
---     u, s, v = t:slice(1, 16):svd()
---     s:values(1, 3)
---
---@return qmoon.Tensor u [m x k]
---@return qmoon.Tensor s [k]
---@return qmoon.Tensor v [k x n]
function methods:svd()
    check.self("svd", self)
    return core.svd(plain(self))
end

return tensor
