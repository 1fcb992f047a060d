-- Products with 4-bit matrices on a GPU: every shape and number of tokens beside sums in double, every way of multiplying
-- beside the others, the same bits twice; other scales and groups, unkind tables and activations.

local core = require "qmoon.core"
local ffi = require "ffi"
local ops = qm.ops

local gpu = qm.cuda(0)
local tests = {}

local NS, KS = { 1, 15, 16, 17, 63, 1000, 4096, 14336 }, { 64, 128, 192, 1536, 3584, 8960, 18944 }
local MS = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 200, 300, 512 }
local LIMIT = 4e-4
local SMALL = os.getenv "QMOON_GPU_TEST" == "small" -- for compute-sanitizer
if SMALL then
    NS, KS, MS = { 17, 200 }, { 192, 1536 }, { 1, 5, 9, 17, 33, 65, 130, 300 }
end

-- ---- random bytes and values ---------------------------------------------------------------------------------

local state = 1
local function rnd()
    state = state * 16807 % 2147483647 -- Park and Miller's
    return state / 2147483647
end

--- n floats, f(i) each.
local function floats(n, f)
    local a = ffi.new("float[?]", n)
    for i = 0, n - 1 do
        a[i] = f(i)
    end
    return a
end

local function tensor(a, rows, cols)
    return core.tensor_of_planes("f32", { rows, cols }, nil, { ffi.string(a, rows * cols * 4) })
end

local function bytes(n)
    local b = ffi.new("uint8_t[?]", n)
    for i = 0, n - 1 do
        b[i] = rnd() * 256
    end
    return ffi.string(b, n)
end

--- A pool of a prime number of pieces, over and over: no two rows are alike.
local function spread(pool, n)
    return pool:rep(math.ceil(n / #pool)):sub(1, n)
end

local CODES = bytes(100003)
local SCALES = ffi.string(floats(10007, function()
    return (0.02 + 0.03 * rnd()) * 2 ^ -math.floor(rnd() * 4)
end), 10007 * 4)

--- A matrix of random planes, and planes of some of its rows: rows are whole groups.
local function matrix(format, rows, cols, block)
    block = block or 64
    local codes, scales = spread(CODES, rows * cols / 2), spread(SCALES, rows * cols / block * 4)
    local function planes(list)
        local a, b = {}, {}
        for i, r in ipairs(list) do
            a[i], b[i] = codes:sub(r * cols / 2 + 1, (r + 1) * cols / 2), scales:sub(r * cols / block * 4 + 1, (r + 1) * cols / block * 4)
        end
        return core.tensor_of_planes(format, { #list, cols }, block, { table.concat(a), table.concat(b) })
    end
    return core.tensor_of_planes(format, { rows, cols }, block, { codes, scales }), planes
end

local function some(n, most)
    local list, have = {}, {}
    for i = 1, math.min(n, most) do
        local r = n <= most and i - 1 or i == 1 and 0 or i == 2 and n - 1 or math.floor(rnd() * n)
        if not have[r] then
            list[#list + 1], have[r] = r, true
        end
    end
    return list
end

-- ---- comparing ---------------------------------------------------------------------------------------------

--- y[token][rows] on the CPU; exact: values of the rows in `list`; x: floats.  The error beside what the terms come to.
local function error_of(y, rows, list, exact, x, cols, tokens)
    local sum, terms, n = 0, 0, 0
    for _, token in ipairs(some(tokens, 24)) do
        for i, row in ipairs(list) do
            local at, w, dot, size = token * cols, (i - 1) * cols, 0, 0
            for k = 0, cols - 1 do
                local term = x[at + k] * exact[w + k]
                dot, size = dot + term, size + term * term
            end
            local d = y[token * rows + row] - dot
            sum, terms, n = sum + d * d, terms + size, n + 1
        end
    end
    assert(sum == sum, "NaN")
    return math.sqrt(sum / math.max(terms, 1e-300)), n
end

local function near(e, n, what)
    local limit = LIMIT * (1 + 3 / math.sqrt(n)) -- of few sums the error is one of few draws
    assert(e <= limit, ("%s: relative error %.3g of %d sums, allowed %.3g"):format(what, e, n, limit))
end

local function product(x, w)
    local s = ops.linear(x, w):to(qm.cpu):plane(1)
    return ffi.cast("const float *", s), s
end

local function exact_values(t)
    local list, n = t:dequantize():plane(1), 1
    for _, d in ipairs(t:info().shape) do
        n = n * d
    end
    return ffi.cast("const float *", list), list, n
end

--- Every number of tokens in `counts`, twice, against sums in double, and against the most tokens.
local function check(name, w, list, exact, x, rows, cols, counts)
    local most = counts[#counts]
    local there = core.prepare(w:to(gpu))
    local all, kept = product(tensor(x, most, cols):to(gpu), there)
    local size = 0
    for i = 0, most * rows - 1 do
        size = size + all[i] * all[i]
    end
    for _, tokens in ipairs(counts) do
        local what = ("%s, %d tokens"):format(name, tokens)
        local X = tensor(x, tokens, cols):to(gpu)
        local y, s = product(X, there)
        local _, again = product(X, there)
        assert(s == again, what .. ": other bits the second time")
        local e, n = error_of(y, rows, list, exact, x, cols, tokens)
        near(e, n, what)
        local d = 0
        for i = 0, tokens * rows - 1 do
            d = d + (y[i] - all[i]) ^ 2
        end
        near(math.sqrt(d / math.max(size * tokens / most, 1e-300)), tokens * rows, what .. " beside " .. most)
    end
    return kept
end

-- ---- the tests -----------------------------------------------------------------------------------------------

tests["all shapes, all numbers of tokens"] = function()
    for _, cols in ipairs(KS) do
        local x = floats(512 * cols, function()
            return 2 * rnd() - 1
        end)
        for _, rows in ipairs(NS) do
            local w, planes = matrix("nf4", rows, cols)
            local list = some(rows, 12)
            local exact, kept = exact_values(planes(list))
            check(("%d x %d"):format(rows, cols), w, list, exact, x, rows, cols, MS)
            assert(kept)
        end
        collectgarbage()
    end
end

tests["all kinds of scales and groups"] = function()
    for _, f in ipairs { "int4:16", "nf4:32", "nf4:128", "nf4:256", "fp4", "int4", "q4_0", "iq4_nl", "mxfp4", "nf4:dq", "nf4:32:dq", "nf4:128:dq",
                         "fp4:dq" } do
        for _, shape in ipairs { { 17, 256 }, { 300, 1280 }, { 1000, 2304 } } do
            local rows, cols = shape[1], shape[2]
            local x = floats(130 * cols, function()
                return 2 * rnd() - 1
            end)
            local w = qm.randn({ rows, cols, std = 0.02, seed = cols }):quantize(f)
            local exact, kept = exact_values(w)
            local list, every = {}, some(rows, 12)
            local picked = ffi.new("float[?]", #every * cols)
            for i, r in ipairs(every) do
                ffi.copy(picked + (i - 1) * cols, exact + r * cols, cols * 4)
                list[i] = r
            end
            check(("%s %d x %d"):format(f, rows, cols), w, list, picked, x, rows, cols, { 1, 2, 5, 8, 9, 16, 20, 33, 65, 130 })
            assert(kept)
        end
    end
end

tests["columns that no group divides"] = function()
    for _, shape in ipairs { { 64, 100 }, { 33, 1000 }, { 5, 16 }, { 40, 1111 } } do
        local rows, cols = shape[1], shape[2]
        local w = qm.randn({ rows, cols, std = 0.02, seed = cols }):quantize "nf4"
        local exact, kept = exact_values(w)
        local x = floats(70 * cols, function()
            return 2 * rnd() - 1
        end)
        check(("%d x %d"):format(rows, cols), w, some(rows, rows), exact, x, rows, cols, { 1, 3, 8, 9, 17, 33, 70 })
        assert(kept)
    end
end

--- y is z, relative to the root of the mean square.
local function beside(y, z, limit, what)
    local a, b = y:to(qm.cpu):values(), z:to(qm.cpu):values()
    local off, size = 0, 0
    for i = 1, #b do
        off, size = off + (a[i] - b[i]) ^ 2, size + b[i] ^ 2
    end
    local e = math.sqrt(off / math.max(size, 1e-300))
    assert(#a == #b and e <= limit, ("%s: relative difference %.3g, allowed %.3g"):format(what, e, limit))
end

-- Many tokens' gate is taken before sums are f32, and their f16 may have other powers of two; in turn it is the same bits.
tests["a feed-forward beside its products and their gate"] = function()
    local GATES = { silu = ops.swiglu, gelu_tanh = ops.geglu }
    local function bits(t)
        return t:to(qm.cpu):plane(1)
    end
    local cases = { { "nf4", 1000, 512 }, { "nf4", 16, 64 }, { "nf4", 208, 3584 }, { "nf4:dq", 4096, 1536 }, { "q4_0", 64, 256 },
                    { "mxfp4", 352, 2048 }, { "int4:16", 144, 192 }, { "nf4:128", 768, 1024 }, { "nf4", 592, 256, down = "nf4:32" } }
    for i, case in ipairs(SMALL and { cases[1], { "nf4:dq", 304, 512 }, cases[9] } or cases) do
        local f, inner, cols = unpack(case)
        local function weight(n, k, seed, format)
            return core.prepare(qm.randn { n, k, std = 0.05, seed = seed }:quantize(format or f):to(gpu))
        end
        local gate, up, down = weight(inner, cols, i), weight(inner, cols, 100 + i), weight(100, inner, 200 + i, case.down)
        local b, c, d = qm.randn { inner, seed = 7 }:to(gpu), qm.randn { inner, seed = 8 }:to(gpu), qm.randn { 100, seed = 9 }:to(gpu)
        for k, tokens in ipairs(SMALL and { 1, 9, 65, 300 } or { 1, 5, 8, 9, 64, 65, 130, 200, 300, 513 }) do
            local what, kind = ("%s, %d x %d, %d tokens"):format(f, inner, cols, tokens), k % 2 == 0 and "silu" or "gelu_tanh"
            local gb, ub, db = k % 3 == 0 and b or nil, k % 3 > 0 and c or nil, k % 4 == 1 and d or nil
            -- the last: gates that are closed, and powers of two that nothing foretells
            for _, large in ipairs { 1, 1e-6, tokens > 64 and 300 or nil } do
                local x = ops.scale(qm.randn { tokens, cols, seed = k }:to(gpu), large)
                local one = ops.feed_forward(x, gate, up, down, kind, gb, ub, db)
                local parts = ops.linear(GATES[kind](ops.linear(x, gate, gb), ops.linear(x, up, ub)), down, db)
                if tokens < 65 or inner % 16 > 0 then
                    assert(bits(one) == bits(parts), what .. ": other bits than its parts")
                end
                beside(one, parts, 5e-4, what)
                assert(bits(one) == bits(ops.feed_forward(x, gate, up, down, kind, gb, ub, db)), what .. ": other bits the second time")
                local sum = ops.add(parts, ops.feed_forward(x, gate, up, down, kind, gb, ub, db))
                assert(bits(sum) == bits(ops.add(parts, one)), what .. ": and an addition")
            end
        end
        collectgarbage()
    end
end

local TABLES = {
    equal = function() return 0.7 end,
    huge = function(i) return (i - 7) * 1e30 end,
    tiny = function(i) return (i - 7.5) * 1e-30 end,
    unsorted = function(i) return ((i * 7) % 16 - 6) / 5 end,
    duplicates = function(i) return math.floor(i / 4) - 1.25 end,
    denormal = function(i) return i < 3 and 1e-41 * i or i / 15 end,
    wide = function(i) return (i % 2 * 2 - 1) * 2 ^ -i end,
    zero = function() return 0 end,
}

tests["unkind tables"] = function()
    local rows, cols = 100, 1536
    for name, f in pairs(TABLES) do
        local levels = {}
        for i = 1, 16 do
            levels[i] = f(i - 1)
        end
        local w, planes = matrix(qm.codebook { name = "unkind_" .. name, levels = levels }, rows, cols)
        local list = some(rows, 12)
        local exact, kept = exact_values(planes(list))
        local x = floats(130 * cols, function()
            return 2 * rnd() - 1
        end)
        check(name, w, list, exact, x, rows, cols, { 1, 2, 4, 8, 9, 17, 40, 130 })
        assert(kept)
    end
end

tests["unkind scales: far apart, large, and small"] = function()
    local rows, cols = 64, 1024
    for name, range in pairs { apart = { -18, 2 }, large = { 10, 30 }, small = { -60, -40 } } do
        local scales = ffi.string(floats(rows * cols / 64, function()
            return 2 ^ (range[1] + (range[2] - range[1]) * rnd())
        end), rows * cols / 64 * 4)
        local w = core.tensor_of_planes("nf4", { rows, cols }, 64, { spread(CODES, rows * cols / 2), scales })
        local exact, kept = exact_values(w)
        local x = floats(70 * cols, function()
            return 2 * rnd() - 1
        end)
        check(name, w, some(rows, rows), exact, x, rows, cols, { 1, 8, 9, 33, 70 })
        assert(kept)
    end
end

tests["unkind activations"] = function()
    local rows, cols = 100, 3584
    local w, planes = matrix("nf4", rows, cols)
    local list = some(rows, 12)
    local exact, kept = exact_values(planes(list))
    local kinds = {
        outliers = function(_, k) return k % 700 == 3 and 1e4 * (rnd() - 0.5) or 2 * rnd() - 1 end,
        tails = function(_, k) return (k % 900 == 5 and 1e4 or 1e-7) * (2 * rnd() - 1) end,
        tokens = function(token) return (2 * rnd() - 1) * 10 ^ (token % 40 - 20) end,
        zeros = function(token) return token % 2 * (2 * rnd() - 1) end,
    }
    for name, f in pairs(kinds) do
        local x = floats(70 * cols, function(i)
            return f(math.floor(i / cols), i % cols)
        end)
        local there = core.prepare(w:to(gpu))
        for _, tokens in ipairs { 1, 2, 8, 9, 17, 33, 70 } do
            local y, bytes = product(tensor(x, tokens, cols):to(gpu), there)
            for token = 0, tokens - 1 do -- each by itself: tokens are far apart
                local e, n = error_of(y + token * rows, rows, list, exact, x + token * cols, cols, 1)
                near(e, n, ("%s, token %d of %d"):format(name, token, tokens))
            end
            assert(bytes) -- y lies in it
        end
    end
    assert(kept)
end

return tests
