-- Research formats from Lua: integers, 8-bit floats, codebooks, fitted levels, formats given as functions.

local core = require "qmoon.core"
local ffi = require "ffi"
local qm = require "qmoon"
local support = dofile "tests/lua/support.lua"

local equal, raises = support.equal, support.raises

local T = {}

local NF4 = { -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
              -0.18477343022823334, -0.09105003625154495, 0, 0.07958029955625534, 0.16093020141124725,
              0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
              0.7229568362236023, 1 }

local function near(a, b, most, what)
    assert(math.abs(a - b) <= most, ("%s: %.6g is not within %g of %.6g"):format(what, a, most, b))
end

local function sqnr(t, format)
    return qm.error(t, t:quantize(format)).sqnr
end

-- ---- the table of SQNR figures that the demos are drawn from ----------------------------------------------

-- Gaussian, Student's t with 5 degrees of freedom, uniform; 1.6 M values each; dB.
local FIGURES = {
    { "nf4", 20.72, 19.60, 20.78 },
    { "q4_0", 21.32, 19.35, 23.74 },
    { "nf4_table:32", 21.18, 20.64, 20.98 },
    { "int4", 19.36, 16.72, 23.13 },
    { "e2m1", 19.52, 18.99, 19.35 },
    { "fp4", 18.27, 16.25, 19.08 },
    { "e3m0", 14.52, 15.07, 14.67 },
    { "q4_1", 22.14, 20.93, 24.33 },
    { "int8g", 44.53, 41.87, 48.29 },
    { "nf4:4096", 19.15, nil, 20.58 }, -- one scale per 4096: too few blocks to settle the heavy tail
}

T["SQNR of formats on three distributions is what was measured elsewhere"] = function()
    qm.codebook { name = "nf4_table", levels = NF4 }
    qm.codebook { name = "e2m1", 0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -1, -1.5, -2, -3, -4, -6 }
    local powers = {}
    for k = 0, 7 do
        powers[2 * k + 1], powers[2 * k + 2] = 2 ^ -k, -2 ^ -k
    end
    qm.codebook { name = "e3m0", levels = powers }
    local data = { qm.randn { 256, 6400, std = 0.02, seed = 1 },
                   qm.student_t { 256, 6400, freedom = 5, scale = 0.02, seed = 2 },
                   qm.uniform { 256, 6400, seed = 3 } }
    for _, row in ipairs(FIGURES) do
        for i, t in ipairs(data) do
            if row[i + 1] then
                near(sqnr(t, row[1]), row[i + 1], 0.05, row[1] .. ", distribution " .. i)
            end
        end
    end
end

-- ---- fixed formats ----------------------------------------------------------------------------------------

T["integer formats take any group, and bits per weight count everything"] = function()
    local t = qm.randn { 8, 300, seed = 4 }
    local bits = { int2 = 2.5, int3 = 3.5, int4 = 4.5, int7 = 7.5, int8g = 8.5, uint4 = 4.625, uint8 = 8.625 }
    for name, want in pairs(bits) do
        near(t:quantize(name):info().bits, want, 0.03, name) -- 2400 values are 37.5 groups
    end
    equal(t:quantize("int4:100"):info().bits, 4.32)
    equal(t:quantize("int4:row"):info().block, 300)
    equal(t:quantize("uint3", { block = "row" }):info().block, 300)
    equal(t:quantize("fp8_e4m3"):info().block, 300)
    equal(t:quantize("fp8_e4m3:2400"):info().planes[2], 4)
    local last = math.huge
    for _, block in ipairs { 1, 7, 64, 300, 2400 } do
        local now = sqnr(t, "int6:" .. block)
        assert(now <= last + 0.5, "larger groups do not get better")
        last = now
    end
    raises("usage", "takes blocks of 1 to", t.quantize, t, "int4", { block = 2 ^ 31 })
    raises("usage", "neither a block size nor row nor dq", t.quantize, t, "int4:rows")
    raises("unsupported", "rows of a multiple of 16", t.quantize, t, "nvfp4")
end

T["asymmetric integers keep zero and follow a shifted range"] = function()
    local t = qm.tensor { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 }
    equal(qm.error(t, t:quantize "uint4:16").max, 0)
    local shifted = qm.uniform { 64, 64, low = 0.2, high = 1, seed = 5 }
    assert(sqnr(shifted, "uint4") > sqnr(shifted, "int4") + 5)
    local q = qm.tensor({ -3, 0, 12, 0 }):quantize "uint4:4"
    equal(q:plane(3):byte(), 3, "zero point")
    equal(q:dequantize():values()[2], 0)
end

T["nvfp4 has one factor a tensor and is not streamed"] = function()
    local t = qm.randn { 64, 64, seed = 6 }
    near(sqnr(t, "nvfp4"), 20.4, 0.3, "nvfp4")
    local small = qm.randn { 64, 64, std = 1e-6, seed = 6 } -- scales alone would be subnormal
    near(sqnr(small, "nvfp4"), sqnr(t, "nvfp4"), 0.3, "scaled by 1e-6")
    local file = core.infile "tests/fixtures/tiny-qwen2/model.safetensors"
    local job = { source = { file = file, format = "bf16", rows = 16, cols = 16, at = { 0 } },
                  sinks = { { format = "nvfp4" } } }
    raises("unsupported", "depends on the whole tensor", core.stream_memory, job, 1)
end

-- ---- codebooks --------------------------------------------------------------------------------------------

T["a codebook is used by value and by name, with block sizes and double quantisation"] = function()
    local t = qm.randn { 64, 96, std = 0.02, seed = 1 }
    local mine = qm.codebook { name = "mine", block = 32, levels = NF4 }
    equal(mine:info().name, "mine")
    equal(#mine:levels(), 16)
    equal(t:quantize(mine):info().block, 32)
    equal(t:quantize("mine"):codes(), t:quantize(mine):codes())
    equal(t:quantize("mine:128"):info().bits, 4.25)
    equal(t:quantize("mine:row"):info().block, 96)
    equal(t:quantize(mine, { block = 100 }):info().block, 100)
    local dq = t:quantize "mine:64:dq"
    assert(dq:info().double_quant and dq:info().bits < 4.2)
    local rows = qm.compare(t, { "nf4:32", mine, "mine:128" })
    equal(rows[1].rmse, rows[2].rmse)
    assert(tostring(rows):find("mine:128", 1, true))
    local found
    for _, f in ipairs(qm.formats()) do
        found = found or f.name == "mine"
    end
    assert(found, "qm.formats() lists it")
    raises("unsupported", "did you mean 'mine'", t.quantize, t, "mime")
    raises("fail", "a format is its name", t.quantize, t, {})
    raises("fail", "a format is its name", t.quantize, t, 4)
    assert(not pcall(t.quantize, t, t))
end

T["NF4's table gives NF4's codes for 16-bit weights"] = function()
    local nf4 = qm.codebook { levels = NF4 }
    for _, half in ipairs { "f16", "bf16" } do
        local t = qm.student_t({ 300, 100, freedom = 4, scale = 0.01, seed = 9 }):quantize(half)
        for _, block in ipairs { 32, 64, 4096 } do
            local a, b = t:quantize("nf4", { block = block }), t:quantize(nf4, { block = block })
            equal(a:codes() == b:codes(), true, half)
            equal(a:scales() == b:scales(), true, half)
            equal(qm.error(a, b).max, 0)
        end
    end
end

T["levels may come in any order and any number"] = function()
    local t = qm.randn { 40, 100, seed = 2 }
    local up = qm.codebook { -1, -0.4, -0.1, 0.1, 0.4, 1 }
    local down = qm.codebook { 1, 0.4, 0.1, -0.1, -0.4, -1 }
    equal(t:quantize(up):info().bits, 3.504)
    equal(qm.error(t:quantize(up), t:quantize(down)).max, 0)
    equal(t:quantize(qm.codebook { -1, 1 }):info().planes[1], 500)
    local many = {}
    for i = 0, 255 do
        many[i + 1] = i / 127.5 - 1
    end
    assert(sqnr(t, qm.codebook { levels = many }) > 40)
    local e2m1 = qm.codebook { 0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6 } -- divided by 6
    equal(e2m1:levels()[8], 1)
end

T["a name can be given anew, and tensors keep what they were made with"] = function()
    local t = qm.randn { 32, 64, seed = 3 }
    qm.codebook { name = "again", levels = NF4 }
    local q = t:quantize "again"
    local before = q:dequantize():plane(1)
    qm.codebook { name = "again", -1, 1 }
    equal(t:quantize("again"):info().bits, 1.5)
    collectgarbage()
    collectgarbage()
    equal(q:dequantize():plane(1) == before, true)
    for i = 1, 2000 do
        q = t:quantize(qm.codebook { -1, i / 2000, 1 })
    end
    collectgarbage()
    equal(#q:dequantize():values(), 2048)
end

T["wrong codebooks are refused"] = function()
    raises("fail", { "2 to 256 levels", "not 1" }, qm.codebook, { 1 })
    raises("fail", "level 2 is not a number", qm.codebook, { 0, 0 / 0 })
    raises("fail", "taken by a format of the program", qm.codebook, { name = "nf4", -1, 1 })
    raises("fail", "letters, digits", qm.codebook, { name = "a b", -1, 1 })
    raises("fail", { "no option 'blok'", "did you mean 'block'" }, qm.codebook, { blok = 32, -1, 1 })
    assert(not pcall(qm.codebook, { -1, "high" }))
    assert(not pcall(qm.codebook, { block = -1, -1, 1 }))
    assert(not pcall(qm.codebook, { block = "rows", -1, 1 }))
end

-- ---- fitting ----------------------------------------------------------------------------------------------

T["k-means is better than NF4, and the same every time"] = function()
    for i, t in ipairs { qm.randn { 256, 400, seed = 1 }, qm.student_t { 256, 400, freedom = 5, seed = 2 },
                         qm.uniform { 256, 400, seed = 3 } } do
        local best = qm.kmeans(t)
        assert(sqnr(t, best) > sqnr(t, "nf4") + 0.2, "distribution " .. i)
        assert(sqnr(t, qm.kmeans(t, { weights = "absmax" })) >= sqnr(t, best) - 1e-4, "distribution " .. i)
        assert(sqnr(t, qm.kmeans(t, { levels = 8 })) > sqnr(t, qm.codebook { levels = NF4, block = 64 }) - 7)
        for k, v in ipairs(qm.kmeans(t):levels()) do
            equal(v, best:levels()[k])
        end
    end
end

-- A quantiser is a fixed point of Lloyd's algorithm when each level is the mean of the values it stands for.
T["every level that k-means finds is the mean of its values"] = function()
    local t = qm.student_t { 100, 640, freedom = 5, seed = 8 }
    local best = qm.kmeans(t, { levels = 32, block = 64 })
    local q = t:quantize(best)
    local x, y, scales = t:values(), q:dequantize():values(), q:scales()
    local scale = ffi.cast("const float *", scales)
    local sum, count = {}, {}
    for i = 1, #x do
        local s = scale[math.floor((i - 1) / 64)]
        local level = ("%.5f"):format(y[i] / s)
        sum[level], count[level] = (sum[level] or 0) + x[i] / s, (count[level] or 0) + 1
    end
    equal(#scales, 1000 * 4)
    for level, s in pairs(sum) do
        near(s / count[level], tonumber(level), 2e-4, "level")
    end
end

T["weights say which errors count"] = function()
    local t = qm.randn { 128, 256, seed = 4 }
    local w = {}
    for i = 1, 256 do
        w[i] = i <= 128 and 1 or 0
    end
    -- weights per column: as if the other columns were not there
    local left = {}
    for r, row in ipairs { 1, 2, 3, 4 } do
        left[r] = t:values((row - 1) * 256 + 1, (row - 1) * 256 + 128)
    end
    local four = {}
    for r = 1, 4 do
        four[r] = t:values((r - 1) * 256 + 1, r * 256)
    end
    local a = qm.kmeans(qm.tensor(four), { weights = qm.tensor(w), levels = 6 }):levels()
    local b = qm.kmeans(qm.tensor(left), { levels = 6 }):levels()
    for i = 1, 6 do
        equal(a[i], b[i])
    end
    assert(not pcall(qm.kmeans, t, { weights = qm.tensor { 1, 2, 3 } }))
    raises("fail", "negative weight", qm.kmeans, qm.tensor { 1, 2 }, { weights = qm.tensor { 1, -1 } })
    raises("fail", "no value other than 0", qm.kmeans, qm.tensor { 0, 0 })
    raises("fail", "value number 2", qm.kmeans, qm.tensor { 1, 0 / 0 })
    raises("fail", "did you mean 'levels'", qm.kmeans, t, { level = 8 })
    assert(not pcall(qm.kmeans, t, { levels = 1 }))
end

T["quantile codebooks use all codes equally; the normal one is NF4"] = function()
    local t = qm.randn { 256, 512, seed = 5 }
    local used = {}
    for b in t:quantize(qm.quantile_codebook(t)):codes():gmatch "." do
        local v = b:byte()
        used[math.floor(v / 16)] = (used[math.floor(v / 16)] or 0) + 1
        used[v % 16] = (used[v % 16] or 0) + 1
    end
    for code = 1, 14 do -- the outermost also take what lies far out
        near(used[code] / 8192, 1, 0.12, "code " .. code)
    end
    for i, v in ipairs(qm.quantile_codebook("normal"):levels()) do
        equal(v, NF4[i])
    end
    local levels = qm.quantile_codebook("uniform", { levels = 8, name = "steps" }):levels()
    equal(#levels, 8)
    equal(levels[4], 0)
    near(levels[6], 0.5, 1e-6, "level")
    equal(#qm.quantile_codebook(function(p) return math.log(p / (1 - p)) end):levels(), 16)
    raises("fail", "'gauss'", qm.quantile_codebook, "gauss")
    raises("fail", "even number", qm.quantile_codebook, "normal", { levels = 7 })
    raises("fail", "gave a nil", qm.quantile_codebook, function() end)
end

-- ---- formats as functions ---------------------------------------------------------------------------------

-- intN again, in Lua.
local function integers(name, bits)
    local most = 2 ^ (bits - 1) - 1
    local function f32(x)
        return tonumber(ffi.cast("float", x))
    end
    local function nearest(v)
        local low = math.floor(v)
        local odd = low % 2 == 1
        return (v - low > 0.5 or (v - low == 0.5 and odd)) and low + 1 or low
    end
    return qm.format {
        name = name,
        bits = bits,
        encode = function(x)
            local absmax, codes = 0, {}
            for i = 1, #x do
                absmax = math.max(absmax, math.abs(x[i]))
            end
            local scale = f32(absmax / most)
            for i = 1, #x do
                codes[i] = nearest(f32(x[i] / scale)) + most + 1
            end
            return codes, scale
        end,
        decode = function(codes, scale)
            local y = {}
            for i = 1, #codes do
                y[i] = (codes[i] - most - 1) * scale
            end
            return y
        end,
    }
end

T["a format of two functions writes the bytes of the same format in C"] = function()
    local t = qm.randn { 7, 333, seed = 6 }
    for bits = 2, 8 do
        local name = bits == 8 and "int8g" or "int" .. bits
        local mine = integers("mine" .. bits, bits)
        for _, block in ipairs { 64, 13, "row" } do
            local a, b = t:quantize(name, { block = block }), t:quantize(mine, { block = block })
            equal(a:codes() == b:codes(), true, name)
            equal(a:scales() == b:scales(), true, name)
            equal(qm.error(a, b).max, 0, name)
            equal(a:info().bits, b:info().bits, name)
        end
    end
end

T["a format of two functions goes where a format's name goes"] = function()
    local t = qm.randn { 10, 100, seed = 7 }
    local mine = integers("mine5", 5)
    local rows = qm.compare(t, { "int5", mine, "mine5:128" })
    equal(rows[1].rmse, rows[2].rmse)
    equal(rows[2].format, "mine5")
    equal(rows[3].block, 128)
    local q = t:quantize "mine5"
    equal(q:info().format, "mine5")
    assert(tostring(q):find("mine5 [10 x 100] block 64", 1, true), tostring(q))
    equal(#q:values(), 1000)
    equal(q:transpose():info().shape[1], 100)
    near(q:stats().std, 1, 0.1, "std")
    equal(q:quantize("nf4"):info().format, "nf4") -- of its values
    equal(qm.error(q, q:dequantize()).max, 0)
    equal(#qm.kmeans(q):levels(), 16)
    local other = integers("mine6", 6)
    raises("fail", "did not make this tensor", other.dequantize, other, q)
    local opaque = core.opaque("odd", 4, 1)
    raises("unsupported", "only the functions", t.quantize, t, opaque)
    raises("unsupported", "only the functions", core.stream_memory,
        { source = { file = core.infile "README.md", format = opaque, cols = 4, at = { 0, 0 } } }, 1)
end

T["scales are as many as are declared"] = function()
    local affine = qm.format {
        name = "affine", bits = 4, scales = 2, block = 32,
        encode = function(x)
            local low, high, codes = math.huge, -math.huge, {}
            for i = 1, #x do
                low, high = math.min(low, x[i]), math.max(high, x[i])
            end
            for i = 1, #x do
                codes[i] = math.floor((x[i] - low) / (high - low) * 15 + 0.5)
            end
            return codes, low, (high - low) / 15
        end,
        decode = function(codes, low, step)
            local y = {}
            for i = 1, #codes do
                y[i] = low + codes[i] * step
            end
            return y
        end,
    }
    local t = qm.uniform { 64, 64, low = 3, high = 4, seed = 1 }
    equal(t:quantize(affine):info().bits, 6)
    near(sqnr(t, affine), 46.0, 1, "affine")
    local none = qm.format { name = "none", bits = 1, scales = 0,
        encode = function(x)
            local codes = {}
            for i = 1, #x do codes[i] = x[i] > 3.5 and 1 or 0 end
            return codes
        end,
        decode = function(codes)
            for i = 1, #codes do codes[i] = codes[i] == 1 and 3.75 or 3.25 end
            return codes
        end }
    equal(t:quantize(none):info().bits, 1)
    near(qm.error(t, t:quantize(none)).max, 0.25, 0.01, "none")
end

T["what a function does wrong is said with its block"] = function()
    local t = qm.randn { 4, 100, seed = 8 }
    local zeros = {}
    for i = 1, 64 do
        zeros[i] = 0
    end
    local calls
    local function with(encode, decode)
        calls = 0
        decode = decode or function() return zeros end
        return qm.format { name = "odd", bits = 3, encode = encode, decode = decode }
    end
    local function third(value)
        return function(x)
            calls = calls + 1
            local codes = {}
            for i = 1, #x do codes[i] = 7 end
            if calls == 3 then return value(codes) end
            return codes, 1
        end
    end
    local function fails(what, encode)
        return raises("fail", what, t.quantize, t, with(encode))
    end
    fails({ "format 'odd'", "encode, block 3", "boom" }, third(function() error("boom") end))
    fails({ "encode, block 3", "gave a nil instead of a list" }, third(function() end))
    fails({ "encode, block 3", "gave 63 codes for a block of 64" },
        third(function(c) c[64] = nil return c, 1 end))
    fails({ "encode, block 3", "gave 65 codes" }, third(function(c) c[65] = 1 return c, 1 end))
    fails({ "encode, block 3", "code 8 for value 5", "0 to 7" }, third(function(c) c[5] = 8 return c, 1 end))
    fails("code -1", third(function(c) c[5] = -1 return c, 1 end))
    fails("code 1.5", third(function(c) c[5] = 1.5 return c, 1 end))
    fails("code nan", third(function(c) c[5] = math.abs(0 / 0) return c, 1 end))
    fails("code nil", third(function(c) c[5] = nil return c, 1 end))
    fails("gave nil as scale 1", third(function(c) return c end))
    fails("more than the codes and 1 scales", third(function(c) return c, 1, 2 end))
    local fine = third(function(c) return c, 1 end)
    local function decoding(what, decode)
        local q = t:quantize(with(fine, decode))
        raises("fail", what, q.dequantize, q)
        raises("fail", what, qm.error, t, q)
    end
    decoding({ "decode, block 1", "gave 1 values for a block of 64" }, function() return { 1 } end)
    decoding({ "decode, block 7", "gave 64 values for a block of 16" }, function() return zeros end)
    decoding("gave a string as value 1", function(codes) codes[1] = "x" return codes end)
    decoding("gave a boolean instead of a list of values", function() return false end)
    decoding("no more", function() error "no more" end)
end

T["wrong formats of functions are refused"] = function()
    local function f() end
    raises("fail", "field 'decode' is missing", qm.format, { name = "x", encode = f })
    raises("fail", "field 'name' is missing", qm.format, { decode = f, encode = f })
    raises("fail", "must be a function, not a string", qm.format, { name = "x", encode = "f", decode = f })
    raises("fail", "no 'bit'", qm.format, { name = "x", encode = f, decode = f, bit = 3 })
    raises("fail", "1 to 8 bits", qm.format, { name = "x", encode = f, decode = f, bits = 9 })
    raises("fail", "up to 4 scales", qm.format, { name = "x", encode = f, decode = f, scales = 5 })
    raises("fail", "taken by a format of the program", qm.format, { name = "q4_0", encode = f, decode = f })
end

return T
