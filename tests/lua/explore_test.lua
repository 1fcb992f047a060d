-- Looking at tensors and computing with them: against plain arithmetic in Lua, and against each other.

local core = require "qmoon.core"
local qm = require "qmoon"
local support = dofile "tests/lua/support.lua"
local equal = support.equal

local MODEL = "tests/fixtures/tiny-qwen2"

local function near(a, b, relative, what)
    if math.abs(a - b) > relative * math.max(math.abs(a), math.abs(b), 1e-30) then
        error(("%s: %.9g is not %.9g"):format(what or "value", a, b), 2)
    end
end

local function fails(text, f, ...)
    local ok, e = pcall(f, ...)
    assert(not ok, "no error was raised")
    local message = type(e) == "table" and e.message or tostring(e)
    assert(message:find(text, 1, true), ("'%s' is not in: %s"):format(text, message))
end

local T = {}

T["statistics are those of the values"] = function()
    local list = { 3, -1, 0, 0.5, 1e-3, -7, 0, 2 }
    local t = qm.tensor(list)
    local s = t:stats()
    local sum, square = 0, 0
    for _, v in ipairs(list) do
        sum = sum + v
    end
    local mean = sum / #list
    for _, v in ipairs(t:values()) do
        square = square + (v - mean) ^ 2
    end
    near(s.mean, mean, 1e-7)
    near(s.std, math.sqrt(square / #list), 1e-7)
    equal(s.min, -7) equal(s.max, 3) equal(s.absmax, 7) equal(s.zeros, 2) equal(s.count, 8) equal(s.nan, 0)
    near(qm.randn({ 400000, seed = 5 }):stats().kurtosis, 3, 0.02, "kurtosis of a normal distribution")
    near(qm.uniform({ 400000, seed = 5 }):stats().kurtosis, 1.8, 0.02, "kurtosis of a uniform one")
    local odd = qm.tensor { 0 / 0, 1 / 0, 2, -1 / 0, 4 }:stats()
    equal(odd.nan, 1) equal(odd.inf, 2) equal(odd.min, 2) equal(odd.mean, 3)
end

T["quantiles lie between the two nearest values"] = function()
    local t = qm.tensor { 4, 1, 3, 2 }
    equal(t:quantiles(0), 1) equal(t:quantiles(1), 4) equal(t:quantiles(0.5), 2.5)
    equal(table.concat(t:quantiles { 0.25, 0.75 }, " "), "1.75 3.25")
    fails("from 0 to 1", t.quantiles, t, 1.5)
    fails("no values", qm.tensor({ 0 / 0 }).quantiles, qm.tensor { 0 / 0 }, 0.5)
end

T["a histogram counts every value once"] = function()
    local t = qm.tensor { -2, -1, -0.5, 0, 0.25, 0.999, 1, 3, 0 / 0 }
    local h = t:histogram { bins = 4, low = -1, high = 1 }
    equal(table.concat(h:column "count", " "), "1 1 2 2")
    assert(h.note:find("1 values lie below, 1 above", 1, true), h.note)
    local all, sum = qm.randn { 1000, seed = 2 }:histogram(), 0
    for _, row in ipairs(all) do
        sum = sum + row.count
    end
    equal(sum, 1000)
end

T["a slice of a quantised tensor is the slice of its values, in every format"] = function()
    local t = qm.randn { 12, 512, std = 0.02, seed = 3 }
    local specs = { "nf4:dq", "nf4:4096:dq", "int4:row" }
    for _, f in ipairs(core.formats()) do
        specs[#specs + 1] = f.name
    end
    for _, spec in ipairs(specs) do
        local q = t:quantize(spec)
        local whole = q:dequantize()
        for _, place in ipairs { { 1, 12 }, { 5, 5 }, { 3, 11, 1, 512 }, { 2, 4, 100, 301 }, { 12, 12, 512, 512 } } do
            local a, b = q:slice(unpack(place)), whole:slice(unpack(place))
            equal(a:plane(1) == b:plane(1), true, spec)
        end
        equal(table.concat(q:values(700, 703), " "), table.concat(whole:values(700, 703), " "), spec)
    end
    equal(table.concat(t:slice(-1, -1, -2, -1):values(), " "), table.concat(t:values(12 * 512 - 1, 12 * 512), " "))
    fails("last_row", t.slice, t, 1, 13)
    fails("are none", t.slice, t, 3, 2)
end

T["one value, another shape, the numbers as text"] = function()
    local t = qm.tensor { { 1, 2, 3 }, { 4, 5, 6 } }
    equal(t:at(2, 3), 6) equal(t:at(4), 4)
    equal(t:reshape({ 3, 2 }):at(2, 1), 3)
    fails("6 values, the new shape 4", t.reshape, t, { 4 })
    assert(t:show():find("4.0000  5.0000  6.0000", 1, true), t:show())
    local wide = qm.randn({ 100, 100, std = 1e-5, seed = 1 }):show()
    assert(wide:find("all x 1e-6", 1, true) and select(2, wide:gsub("\n", "")) == 14, wide)
end

T["errors by row, column and block add up to the whole"] = function()
    local t = qm.randn { 37, 200, std = 0.02, seed = 3 }
    local q = t:quantize "nf4"
    local whole, count = t:errors(q), { row = 37, column = 200, channel = 37, block = math.ceil(37 * 200 / 64) }
    for part, n in pairs(count) do
        local r = qm.error_by(t, q, part)
        equal(#r, n, part)
        local most = 0
        for _, row in ipairs(r) do
            most = math.max(most, row.max)
        end
        equal(most, whole.max_d, part)
        local mean = 0
        if part ~= "block" then
            for _, row in ipairs(r) do
                mean = mean + row.mse / n
            end
            near(mean, whole.dd / whole.n, 1e-5, part)
        end
    end
    local row = qm.error(t:slice(5, 5), q:slice(5, 5))
    near(qm.error_by(t, q, "row")[5].sqnr, row.sqnr, 1e-6)
    local column = qm.error(t:slice(1, -1, 7, 7), q:slice(1, -1, 7, 7))
    near(qm.error_by(t, q, "column")[7].sqnr, column.sqnr, 1e-6)
    fails("differ", qm.error_by, t, t:transpose(), "row")
end

T["codes and scales give the values back"] = function()
    local t = qm.randn { 4, 96, std = 0.02, seed = 8 }
    local levels = qm.quantile_codebook("normal"):levels()
    for _, spec in ipairs { "nf4", "nf4:dq" } do
        local q = t:quantize(spec)
        local codes, scales, y = q:codes(1, 384), q:scales("tensor"):values(), q:values()
        equal(#scales, 6)
        for i, code in ipairs(codes) do
            near(levels[code + 1] * scales[math.ceil(i / 64)], y[i], 1e-6, spec)
        end
        equal(table.concat(q:codes(190, 192), " "), table.concat(codes, " ", 190, 192))
    end
    local i8 = t:quantize "int8"
    near(i8:codes(1, 1)[1] * i8:scales("tensor"):at(1) / 127, i8:values(1, 1)[1], 1e-6)
    fails("no codes and scales of their own", t.codes, t:quantize "q4_0", 1, 2)
end

T["products, sums and norms are those of plain arithmetic"] = function()
    local a, b = qm.tensor { { 1, 2 }, { 3, 4 }, { 5, 6 } }, qm.tensor { { 1, 0, -1 }, { 2, 3, 0.5 } }
    equal(table.concat(a:matmul(b):values(), " "), "5 6 0 11 12 -1 17 18 -2")
    equal(table.concat(a:add(a):values(), " "), "2 4 6 8 10 12")
    equal(table.concat(a:sub(1):values(), " "), "0 1 2 3 4 5")
    equal(table.concat(a:mul(qm.tensor { 10, 100 }):values(), " "), "10 200 30 400 50 600")
    equal(table.concat(a:mul(qm.tensor { { 1 }, { 2 }, { 0 } }):values(), " "), "1 2 6 8 0 0")
    equal(table.concat(a:div(2):values(), " "), "0.5 1 1.5 2 2.5 3")
    equal(table.concat(a:scale(-1):values(), " "), "-1 -2 -3 -4 -5 -6")
    near(a:norm(), math.sqrt(91), 1e-12) equal(a:norm "max", 6)
    near(a:norms("column"):at(1, 2), math.sqrt(56), 1e-7) near(a:norms("row"):at(2, 1), 5, 1e-7)
    fails("cannot be multiplied", a.matmul, a, a)
    fails("do not go together", a.add, a, b)
end

T["singular values and vectors make the matrix again"] = function()
    local t = qm.randn { 30, 20, seed = 4 }
    for _, a in ipairs { t, t:transpose() } do
        local ok, u, s, v = pcall(a.svd, a)
        if not ok then -- no LAPACK on this machine: the message says what to install
            assert(u.message:find("liblapack3", 1, true), u.message)
            return
        end
        local back = u:mul(s:reshape { 1, 20 }):matmul(v)
        assert(qm.error(a, back).sqnr > 120, tostring(qm.error(a, back)))
        local values = s:values()
        for i = 2, #values do
            assert(values[i] <= values[i - 1])
        end
        near(a:norm "spectral", values[1], 1e-6)
        assert(qm.error(qm.tensor(u:transpose():matmul(u):values(1, 1)), qm.tensor { 1 }).rmse < 1e-6)
    end
    fails("NaN", t.svd, qm.tensor { { 0 / 0 } })
    fails("t:slice", t.svd, qm.tensor { 1, 2 })
end

T["without LAPACK the error names the package"] = function()
    local status, text = support.run [[-e 'qm.randn{2, 2}:svd()' 2>&1]]
    assert(status == 0 or text:find("liblapack3", 1, true), text)
    local program = arg[-1]
    local pipe = io.popen(("QMOON_LAPACK=/nonexistent %s -e 'qm.randn{2, 2}:svd()' 2>&1"):format(program))
    local printed = pipe:read "*a"
    pipe:close()
    assert(printed:find("apt-get install liblapack3", 1, true), printed)
end

T["NumPy's files are read and written"] = function()
    local dir = support.scratch()
    core.mkdir(dir)
    local t = qm.randn { 3, 5, seed = 1 }
    t:save(dir .. "/t.npy")
    local bytes = support.read(dir .. "/t.npy")
    equal(bytes:sub(1, 8), "\147NUMPY\1\0")
    equal((8 + 2 + bytes:byte(9) + 256 * bytes:byte(10)) % 64, 0, "values begin at")
    equal(qm.read(dir .. "/t.npy"):plane(1) == t:plane(1), true)
    local function header(text)
        support.write(dir .. "/x.npy", "\147NUMPY\1\0" .. core.pack("H", #text) .. text .. core.pack("dddddd", 1, 2, 3, 4, 5, 6))
        return dir .. "/x.npy"
    end
    local f64 = qm.read(header "{'descr': '<f8', 'fortran_order': True, 'shape': (2, 3), }\n")
    equal(table.concat(f64:values(), " "), "1 3 5 2 4 6", "columns first")
    fails("NumPy type", qm.read, header "{'descr': '>f8', 'fortran_order': False, 'shape': (2, 3), }\n")
    fails("but the file ends", qm.read, header "{'descr': '<f8', 'fortran_order': False, 'shape': (2, 4), }\n")
    fails("header", qm.read, header "{'descr': ")
    local raw = qm.read(dir .. "/t.npy", { dtype = "f32", shape = { 15 }, at = #bytes - 60 })
    equal(raw:plane(1) == t:plane(1), true)
    fails("must be told", qm.read, MODEL .. "/config.json")
    t:save(dir .. "/t.safetensors")
    equal(qm.open(dir .. "/t.safetensors"):tensor("tensor"):dequantize():plane(1) == t:plane(1), true)
end

T["a comparison has a row for each format, and goes to CSV, JSON and Markdown"] = function()
    local t = qm.randn { 64, 256, std = 0.02, seed = 1 }
    local r = qm.compare(t, { "nf4", "q4_0", "f32" })
    near(r[1].sqnr, qm.error(t, t:quantize "nf4").sqnr, 1e-12)
    equal(r[3].sqnr, math.huge) equal(r.rows, r) equal(#r:columns(), 8)
    local decoded = core.json_decode(r:json(), "json")
    equal(decoded[2].format, "q4_0") near(decoded[1].rmse, r[1].rmse, 1e-12) equal(decoded[3].sqnr, core.null)
    equal(r:csv():match "[^\n]*", "format,block,scale,bits,rmse,max,sqnr,cosine")
    equal(select(2, r:csv():gsub("\n", "")), 4)
    equal(select(2, r:markdown():gsub("\n", "")), 4)
    assert(tostring(r):find "exact", tostring(r))
    equal(r:worst(1)[1].format, "nf4") equal(r:best(1)[1].format, "f32")
    equal(r:sort("bits", "descending")[1].format, "f32")
    equal(#r:where(function(row) return row.bits < 5 end), 2)
    fails("did you mean 'sqnr'", r.column, r, "sqn")
end

T["a value that decodes to no number is the worst, in every figure and order"] = function()
    local v = {}
    for i = 1, 512 do
        v[i] = i / 100
    end
    v[300] = -1e30 -- beyond what an f16 scale can be
    local t = qm.tensor(v, { 2, 256 })
    local e = qm.error(t, t:quantize "q8_0")
    equal(e.sqnr, -math.huge)
    for _, key in ipairs { "rmse", "mse", "max", "cosine", "bias" } do
        assert(e[key] ~= e[key], key)
    end
    local r = qm.compare(t, { "nf4", "q8_0", "f32" })
    for _, key in ipairs { "sqnr", "rmse", "max", "cosine" } do
        equal(r:worst(1, key)[1].sqnr, -math.huge, key)
        assert(r:best(1, key)[1].format ~= "q8_0", key)
    end
    equal(core.json_decode(r:json(), "json")[2].sqnr, core.null)
end

T["a sweep goes over every combination that there is"] = function()
    local t = qm.randn { 64, 256, std = 0.02, seed = 1 }
    local r = qm.sweep(t, { format = { "nf4", "fp4" }, block = { 32, 64, 128 }, double_quant = { false, true } })
    equal(#r, 12)
    local bits = qm.sweep(t, { bits = { 2, 3, 4, 5, 6, 7, 8 }, block = 64 })
    for i = 2, #bits do
        assert(bits[i].sqnr > bits[i - 1].sqnr + 5, tostring(bits))
    end
    local own = qm.sweep(t, { codebook = { qm.kmeans(t) }, format = "nf4" })
    assert(own[2].sqnr > own[1].sqnr)
    local left = qm.sweep(t, { format = { "nf4", "q4_0" }, block = 128 })
    assert(#left == 1 and left.note:find "left out: 1", tostring(left))
    fails("name formats or bits", qm.sweep, t, {})
end

T["a long result prints a screenful, and all of it on request"] = function()
    local t = qm.randn { 500, 64, seed = 1 }
    local r = qm.error_by(t, t:quantize "nf4", "row")
    local _, lines = tostring(r):gsub("\n", "")
    assert(lines < 20 and tostring(r):find("485 more rows", 1, true), tostring(r))
    equal(select(2, r:text({ all = true }):gsub("\n", "")), 500)
    equal(select(2, r:csv():gsub("\n", "")), 501)
end

T["a report over a model measures what writing it would"] = function()
    local m = qm.open(MODEL)
    local dir = support.scratch()
    local written = qm.write(m, { { dir, format = "nf4", double_quant = true, dtype = "f16" } }, { round = "bf16" })
    local worst = {}
    for _, row in ipairs(written.outputs[1].tensors) do
        worst[row.name] = row.sqnr
    end
    local r = m:report("nf4:dq", { match = "proj" })
    equal(#r, 28)
    for _, row in ipairs(r) do
        near(row.sqnr, worst[row.tensor], 1e-6, row.tensor)
    end
    for i = 2, #r do
        assert(r[i].sqnr >= r[i - 1].sqnr, "worst first")
    end
    near(r[1].bits, 4 + 8 / 64 + 32 / 64 / 256, 1e-9, "bits")
    local one = m:tensor(r[1].tensor)
    near(r[1].sqnr, qm.error(one, one:quantize "nf4:dq").sqnr, 1e-3)
end

T["rules of a report: patterns, formats of their own, codebooks, formats that see the whole tensor"] = function()
    local m = qm.open(MODEL)
    local r = m:report("nf4", { match = "down_proj", { "layers%.0%." , "q8_0" } })
    equal(#r, 4)
    r = m:report("nf4", { match = { "down_proj", "up_proj" }, skip = "layers\\.[12]\\.", { "layers\\.0\\.", "q8_0" }, { "layers\\.3\\.mlp\\.up", "keep" } })
    equal(#r, 3)
    equal(#r:where(function(row) return row.format == "q8_0" end), 2)
    equal(#m:report(qm.codebook { -1, 0, 1 }, { match = "down_proj" }), 4)
    equal(#m:report("nvfp4", { match = "down_proj" }), 4)
    local sign = qm.format { name = "half", block = 64, bits = 1, encode = function(x)
        local codes = {}
        for i = 1, #x do
            codes[i] = x[i] < 0 and 0 or 1
        end
        return codes, 0.02
    end, decode = function(codes, s)
        local y = {}
        for i = 1, #codes do
            y[i] = codes[i] == 0 and -s or s
        end
        return y
    end }
    equal(#m:report(sign, { match = "layers\\.0.*k_proj" }), 1)
    fails("unknown format", m.report, m, "nf5")
    fails("(did you mean 'match'?)", m.report, m, "nf4", { mach = "x" })
    equal(#m:report("nf4", { match = "nothing" }), 0)
end

T["a report of a model with an adapter is of the merged weights"] = function()
    local m = qm.open(MODEL):merge "tests/fixtures/tiny-adapter"
    local dir = support.scratch()
    local written = qm.write(m, { { dir, format = "nf4", dtype = "bf16" } })
    local worst = {}
    for _, row in ipairs(written.outputs[1].tensors) do
        worst[row.name] = row.sqnr
    end
    for _, row in ipairs(m:report("nf4", { match = "q_proj|v_proj" })) do
        near(row.sqnr, worst[row.tensor], 1e-6, row.tensor)
    end
end

T["the list of a model's tensors"] = function()
    local r = qm.open(MODEL):tensors "layers\\.0\\..*norm"
    equal(#r, 2)
    equal(r[1].type, "bf16")
end

return T
