--- Tensors from Lua: making them, quantising them, and what they are in one line.
--
-- A tensor is never changed; every method gives a new one.  tostring(t) is one line.  qmoon.explore has the methods
-- that look at values, qmoon.arithmetic those that compute.

local core = require "qmoon.core"
local check = require "qmoon.check"
local files = require "qmoon.files"
local formats = require "qmoon.formats"
local json = require "qmoon.json"
local nearest = require "qmoon.nearest"
local plain = require "qmoon.function_format".plain
local text = require "qmoon.text"

local tensor = {}

---@class qmoon.Tensor
local methods = core.tensor_methods

-- The methods in C, under the checked and documented ones.
local raw = {}
for name, method in pairs(methods) do
    raw[name] = method
end
tensor.raw = raw

setmetatable(methods, { __index = function(_, name)
    local names = {}
    for k in pairs(methods) do
        names[#names + 1] = k
    end
    table.sort(names)
    local guess = nearest(tostring(name), names)
    core.fail("fail", "tensor has no method '%s'%s", tostring(name), guess and ("; did you mean '%s'?"):format(guess) or "")
end })

-- ---- methods ----------------------------------------------------------------------------------------------------------

--- What a tensor is: name, shape, format, values, values per block, bytes and bits per weight, scales included.
---
---     t:quantize("nf4"):info().bits
---
---@return {name:string?, shape:integer[], format:string, count:integer, block:integer, bytes:integer, bits:number, double_quant:boolean, offset:number?, planes:integer[]}
function methods:info()
    check.self("info", self)
    return raw.info(self)
end

--- A quantised copy.
---
---     q = t:quantize "nf4"
---     q = t:quantize("nf4", {block = 128, double_quant = true})        -- or "nf4:128:dq"
---
---@param format qmoon.FormatSpec a name of qm.formats(), with a block size (or "row") and double quantisation as in "nf4:128:dq", or as options; or what qm.codebook, qm.kmeans, qm.quantile_codebook and qm.format return
---@param options? {block: integer|"row"|nil, double_quant: boolean?, exact_zero: boolean?, nearest: boolean?, offset: number?}
---@return qmoon.Tensor
function methods:quantize(format, options)
    check.self("quantize", self)
    check.options("quantize", options, { "block", "double_quant", "exact_zero", "nearest", "offset" })
    local resolved, merged = formats.resolve(format, options)
    if type(resolved) == "table" then
        return resolved:quantize(self, merged)
    end
    return raw.quantize(plain(self), resolved, merged)
end

--- The values as f32: decoded, when the tensor is quantised.
---
---     y = t:quantize("q4_0"):dequantize()
---
---@return qmoon.Tensor
function methods:dequantize()
    check.self("dequantize", self)
    return raw.dequantize(plain(self))
end

--- Rows and columns exchanged, as f32.
---
---     t:transpose()
---
---@return qmoon.Tensor
function methods:transpose()
    check.self("transpose", self)
    return raw.transpose(plain(self))
end

--- Values as a list of numbers, of all or of a range of the flat tensor.
---
---     t:values(1, 8)
---
---@param first? integer from 1 on
---@param last? integer
---@return number[]
function methods:values(first, last)
    check.self("values", self)
    if first ~= nil then
        check.number("values", first, "first")
    end
    if last ~= nil then
        check.number("values", last, "last")
    end
    return raw.values(plain(self), first, last)
end

--- The codes of a quantised tensor.  Without arguments: its bytes, packed as in files (of the blocks, where codes and
--- scales lie together).  With a range of values: their codes as a list of whole numbers.
---
---     q:codes(1, 8)
---     #q:codes()
---
---@param first? integer from 1 on
---@param last? integer
---@return string|integer[]
function methods:codes(first, last)
    check.self("codes", self)
    if first == nil and last == nil then
        return raw.plane(self, 1)
    end
    local n = raw.info(self).count
    check.whole("codes", first, "first", 1, n)
    check.whole("codes", last or n, "last", first, n)
    return core.codes(self, first, last or n)
end

--- The scales of a quantised tensor.  Without arguments: their bytes as in files, "" where they lie in the blocks.
--- With "tensor": their values, one per block, as an f32 tensor, the second level of double quantisation decoded.
---
---     q:scales "tensor"
---     #q:scales()
---
---@param how? "tensor"
---@return string|qmoon.Tensor
function methods:scales(how)
    check.self("scales", self)
    if how == nil then
        return raw.plane(self, 2)
    end
    check.choice("scales", how, "how", { "tensor" })
    return core.scale_values(self)
end

--- The bytes of one plane: 1 codes or blocks, 2 scales, 3 second-level scales.
---
---     #q:plane(2)
---
---@param number integer
---@return string
function methods:plane(number)
    check.self("plane", self)
    check.whole("plane", number, "number", 1, 4)
    return raw.plane(self, number)
end

--- Sums that errors are computed from: {n, xx, yy, xy, dd, d, max_d, max_x}.
---
---     t:errors(q).dd
---
---@param other qmoon.Tensor as many values
---@return table<string, number>
function methods:errors(other)
    check.self("errors", self)
    check.tensor("errors", other, "other")
    return raw.errors(plain(self), plain(other))
end

--- A copy on a device.
---
---     t:to(qm.cpu)
---
---@param device qmoon.Device|"cpu" as in t:to(qm.cuda(0)), t:to(qm.cpu)
---@return qmoon.Tensor
function methods:to(device)
    check.self("to", self)
    if device ~= "cpu" and type(device) ~= "userdata" then
        core.fail("fail", "to: device must be qm.cpu or what qm.cuda gives, not a %s", type(device))
    end
    return raw.to(self, device)
end

--- Where its bytes are: a device, or "cpu".
---
---     t:device()
---
---@return qmoon.Device|"cpu"
function methods:device()
    check.self("device", self)
    return raw.device(self)
end

--- Gives the memory back at once; the tensor cannot be used afterwards.
---
---     copy = t:dequantize()
---     copy:close()
---
function methods:close()
    check.self("close", self)
    return raw.close(self)
end

-- ---- in one line ------------------------------------------------------------------------------------------------------

local PLAIN = { f32 = true, f16 = true, bf16 = true, f64 = true }

-- "codes 512 KiB + scales 64 KiB", or the whole when it lies in one piece.
local function parts_text(info)
    local names, parts = { "codes", "scales", "second-level scales" }, {}
    for i, size in ipairs(info.planes) do
        if size > 0 and names[i] then
            parts[#parts + 1] = names[i] .. " " .. text.amount(size)
        end
    end
    return #parts > 1 and table.concat(parts, " + ") or text.amount(info.bytes)
end

--- The one line that tostring gives.
---
---     print(t:text())
---
---@return string
function methods:text()
    check.self("text", self)
    local i = raw.info(self)
    local head = ("%s %s%s"):format(i.format, text.shape(i.shape), i.name and " " .. i.name or "")
    local device = raw.device(self)
    local where = device == "cpu" and "cpu" or tostring(device):match "^%S+"
    if PLAIN[i.format] and device ~= "cpu" then
        return ("%s %s %s"):format(head, text.amount(i.bytes), where)
    elseif PLAIN[i.format] then
        local s = self:stats()
        return ("%s %s %s  min %.3g max %.3g  mean %.2g std %.4g%s"):format(head, text.amount(i.bytes), where, s.min, s.max,
            s.mean, s.std, s.nan + s.inf > 0 and ("  NaN %d Inf %d"):format(s.nan, s.inf) or "")
    elseif i.format:find "^[iu]%d+$" or i.format == "bool" then
        return ("%s %s %s"):format(head, text.amount(i.bytes), where)
    end
    return ("%s block %d%s%s · %s · %.3f bits/weight · %.2fx smaller than f32"):format(head, i.block,
        i.double_quant and " double quantised" or "", device ~= "cpu" and " on " .. where or "", parts_text(i), i.bits,
        32 / i.bits)
end

-- ---- making ------------------------------------------------------------------------------------------------------------

local function shape_of(what, spec, known)
    check.table(what, spec, "its argument")
    check.options(what, spec, known, true)
    local shape = {}
    for i, d in ipairs(spec) do
        shape[i] = check.whole(what, d, ("dimension %d"):format(i), 0)
    end
    for _, key in ipairs(known) do
        if spec[key] ~= nil then
            check.number(what, spec[key], key)
        end
    end
    return shape
end

--- Normal values, the same on every machine.
---
---     t = qm.randn{1024, 1024, std=0.02, mean=0, seed=1}
---
---@param spec {[integer]: integer, std: number?, mean: number?, seed: integer?} the shape, and 1, 0 and 0 unless given
---@return qmoon.Tensor
function tensor.randn(spec)
    local shape = shape_of("randn", spec, { "std", "mean", "seed" })
    return core.random("normal", shape, spec.seed or 0, spec.mean or 0, spec.std or 1)
end

--- Uniform values from low to high.
---
---     qm.uniform{1024, 1024, low=-1, high=1, seed=1}
---
---@param spec {[integer]: integer, low: number?, high: number?, seed: integer?} the shape, and -1, 1 and 0 unless given
---@return qmoon.Tensor
function tensor.uniform(spec)
    local shape = shape_of("uniform", spec, { "low", "high", "min", "max", "seed" })
    return core.random("uniform", shape, spec.seed or 0, spec.low or spec.min or -1, spec.high or spec.max or 1)
end

--- Student's t: heavier tails than normal, as many weights have; times a scale.
---
---     qm.student_t{1024, 1024, freedom=5, scale=0.02, seed=1}
---
---@param spec {[integer]: integer, freedom: integer?, scale: number?, seed: integer?} the shape, and 5, 1 and 0 unless given
---@return qmoon.Tensor
function tensor.student_t(spec)
    local shape = shape_of("student_t", spec, { "freedom", "scale", "seed" })
    return core.random("student", shape, spec.seed or 0, spec.freedom or 5, spec.scale or 1)
end

--- A tensor of numbers given in Lua, as a list or a list of equally long lists.
---
---     qm.tensor{1.2, -0.5, -4.3}
---     qm.tensor{{1, 2, 3}, {4, 5, 6}}
---
---@param list number[]|number[][]
---@return qmoon.Tensor
function tensor.tensor(list)
    check.table("tensor", list, "its argument")
    if type(list[1]) ~= "table" then
        return core.tensor({ #list }, list)
    end
    local flat, cols = {}, #list[1]
    for i, row in ipairs(list) do
        if type(row) ~= "table" or #row ~= cols then
            core.fail("fail", "tensor: row %d has %s numbers, the first has %d", i, type(row) == "table" and #row or "no", cols)
        end
        for _, v in ipairs(row) do
            flat[#flat + 1] = v
        end
    end
    return core.tensor({ #list, cols }, flat)
end

-- ---- error ---------------------------------------------------------------------------------------------------------------

--- Figures people compare, from the sums of core: rmse, mse, max, sqnr (dB), cosine, bias.  Where a value became infinite or
--- NaN, sqnr is -infinity, and the others are what comes of it.
---@param s table
---@return table
function tensor.figures(s)
    local n, dd = math.max(s.n, 1), s.dd < 0 and 0 or s.dd
    return {
        rmse = math.sqrt(dd / n),
        mse = dd / n,
        max = s.max_d,
        sqnr = dd == 0 and math.huge or dd < math.huge and 10 * math.log10(s.xx / dd) or -math.huge,
        cosine = dd == 0 and 1 or (s.xx == 0 or s.yy == 0) and 0 or s.xy / math.sqrt(s.xx * s.yy),
        bias = s.d / n,
    }
end

-- ---- files -------------------------------------------------------------------------------------------------------------

local NPY = { ["<f4"] = "f32", ["<f2"] = "f16", ["<f8"] = "f64", ["|i1"] = "i8", ["|u1"] = "u8", ["|b1"] = "bool", ["<i2"] = "i16",
              ["<u2"] = "u16", ["<i4"] = "i32", ["<u4"] = "u32", ["<i8"] = "i64", ["<u8"] = "u64" }

-- Source: numpy.lib.format.  \x93NUMPY, version, length of the header, a Python dict, then the values.
local function npy_header(file, path)
    local wide = file:read(6, 1):byte() > 1
    local a, b, c, d = file:read(8, wide and 4 or 2):byte(1, 4)
    local length, at = a + 256 * b, wide and 12 or 10
    if wide then
        length = length + 65536 * c + 16777216 * d
    end
    local header = length + at <= file:size() and file:read(at, length) or ""
    local descr, order = header:match "'descr': *'([^']*)'", header:match "'fortran_order': *(%a+)"
    local dims, shape = header:match "'shape': *%(([^%)]*)%)", {}
    for d1 in (dims or ""):gmatch "%d+" do
        shape[#shape + 1] = tonumber(d1)
    end
    if not dims or not order then
        core.fail("corrupt", "%s: its NumPy header cannot be read", path)
    elseif not NPY[descr] then
        core.fail("unsupported", "%s: NumPy type %s; save it as float32: a.astype('<f4')", path, tostring(descr))
    end
    return { dtype = NPY[descr], shape = shape, at = at + length, turned = order == "True" }
end

local function dtype_bits(name)
    local names = {}
    for _, d in ipairs(core.dtypes()) do
        if d.name == name then
            return d.bits
        end
        names[#names + 1] = d.name
    end
    check.choice("read", name, "dtype", names)
end

--- A tensor of a file's values: of a NumPy .npy file, or of bytes whose type and shape are told.
---
---     t:save "t.npy"
---     u = qm.read "t.npy"
---     qm.read("numbers.bin", {dtype = "f32", shape = {4, 8}, at = 0})
---
---@param path string
---@param options? {dtype: string?, shape: integer[]?, at: integer?} for raw bytes: element type, shape, and the byte at which they begin
---@return qmoon.Tensor
function tensor.read(path, options)
    check.text("read", path, "path")
    local o = check.options("read", options, { "dtype", "shape", "at" })
    local file = core.infile(path)
    local is_npy = file:size() >= 10 and file:read(0, 6) == "\147NUMPY"
    local spec
    if is_npy and not o.dtype then
        spec = npy_header(file, path)
    elseif not o.dtype or not o.shape then
        core.fail("fail", "read: %s is no .npy file, so its type and shape must be told: "
            .. "qm.read(path, {dtype = \"f32\", shape = {rows, columns}}); models are opened by qm.open", path)
    else
        spec = { dtype = o.dtype, shape = check.table("read", o.shape, "shape"), at = o.at or 0 }
    end
    local count, bits = 1, dtype_bits(spec.dtype)
    for i, d in ipairs(spec.shape) do
        count = count * check.whole("read", d, ("dimension %d"):format(i), 0)
    end
    if spec.turned and #spec.shape > 1 then
        if #spec.shape > 2 then
            core.fail("unsupported", "%s: NumPy's Fortran order of more than two dimensions; save it with "
                .. "numpy.ascontiguousarray", path)
        end
        spec.shape = { spec.shape[2], spec.shape[1] }
    end
    local size = count * bits / 8
    if spec.at + size > file:size() then
        core.fail("corrupt", "%s: %s of %s take %.0f bytes from byte %.0f on, but the file ends at %.0f", path,
            text.shape(spec.shape), spec.dtype, size, spec.at, file:size())
    end
    local t = core.view(file, { name = path:match "[^/]*$", at = spec.at, size = size, shape = spec.shape, dtype = spec.dtype })
    return spec.turned and #spec.shape == 2 and t:transpose() or t
end

--- The bytes of a safetensors file with one f32 tensor.
---@param name string
---@param t qmoon.Tensor
---@return string
function tensor.safetensors(name, t)
    local info = t:info()
    local header = json.encode(json.object { { name, json.object { { "dtype", "F32" }, { "shape", json.array(info.shape) },
        { "data_offsets", { 0, 4 * info.count } } } } })
    header = header .. (" "):rep(-#header % 8)
    return core.pack("l", #header) .. header .. t:dequantize():plane(1)
end

local function npy(t)
    local shape = t:info().shape
    local header = ("{'descr': '<f4', 'fortran_order': False, 'shape': (%s%s), }"):format(table.concat(shape, ", "),
        #shape == 1 and "," or "")
    header = header .. (" "):rep(-(#header + 11) % 64) .. "\n"
    return "\147NUMPY\1\0" .. core.pack("H", #header) .. header .. t:dequantize():plane(1)
end

--- Writes the values as f32 to a file: .npy for NumPy, or .safetensors, in which it is called "tensor".
---
---     t:save "t.npy"
---     t:save "t.safetensors"
---
---@param path string
---@return qmoon.Tensor itself
function methods:save(path)
    check.self("save", self)
    check.text("save", path, "path")
    if path:find "%.npy$" then
        files.write(path, npy(self))
    elseif path:find "%.safetensors$" then
        files.write(path, tensor.safetensors("tensor", self))
    else
        core.fail("fail", "save: a tensor is written to a file ending in .npy or .safetensors, not '%s'", path)
    end
    return self
end

return tensor
