-- Importance matrices: both file forms, what is wrong with them, and what they do to a quantised file.

local core = require "qmoon.core"
local gguf = require "qmoon.gguf"
local imatrix = require "qmoon.imatrix"
local qm = require "qmoon"
local support = dofile "tests/lua/support.lua"

local F16 = "tests/fixtures/golden/merged-f16.gguf"

-- ---- files by hand ------------------------------------------------------------------------------------

--- .dat of entries {name, calls, values}, with chunks and data set when they are given.
local function dat(entries, chunks, dataset)
    local parts = { core.pack("i", #entries) }
    for _, e in ipairs(entries) do
        parts[#parts + 1] = core.pack("i", #e[1]) .. e[1] .. core.pack("ii", e[2], #e[3]) .. core.pack_array("f", e[3])
    end
    if chunks then
        parts[#parts + 1] = core.pack("ii", chunks, #dataset) .. dataset
    end
    return table.concat(parts)
end

local META = {
    { key = "general.type", type = "string", value = "imatrix" },
    { key = "imatrix.datasets", type = "array", elem = "string", value = { "wiki.txt", "more.txt" } },
    { key = "imatrix.chunk_count", type = "u32", value = 12 }, { key = "imatrix.chunk_size", type = "u32", value = 512 },
}

--- GGUF of tensors {name, shape, values}.
local function file(tensors, meta)
    local list, data = {}, {}
    for i, t in ipairs(tensors) do
        list[i] = { name = t[1], shape = t[2], type = 0, size = 4 * #t[3] }
    end
    local header, at, size = gguf.header(meta or META, list)
    local bytes = header .. ("\0"):rep(size - #header)
    for i, t in ipairs(tensors) do
        data = core.pack_array("f", t[3])
        bytes = bytes:sub(1, at[i]) .. data .. bytes:sub(at[i] + #data + 1)
    end
    return bytes
end

local function saved(bytes)
    local dir = support.scratch()
    core.mkdir(dir)
    support.write(dir .. "/imatrix", bytes)
    return dir .. "/imatrix"
end

local function values(m, name, shape, index)
    return table.concat(m:values(m:entry(name, shape), index):values(), " ")
end

local T = {}

T["the GGUF form: sums over counts, an unused expert weighs all alike"] = function()
    local m = imatrix.read(saved(file {
        { "blk.0.a.weight.in_sum2", { 1, 3 }, { 2, 8, 0 } }, { "blk.0.a.weight.counts", { 1, 1 }, { 4 } },
        { "blk.0.e.weight.counts", { 3, 1 }, { 2, 0, 8 } }, { "blk.0.e.weight.in_sum2", { 3, 2 }, { 1, 2, 9, 9, 4, 1 } },
        { "something.else", { 2 }, { 1, 2 } },
    }))
    support.equal(m.count .. m.dataset .. m.chunks, "2wiki.txt12", "what it says of itself")
    support.equal(values(m, "blk.0.a.weight", { 7, 3 }), "0.5 2 0", "one matrix")
    support.equal(values(m, "blk.0.e.weight", { 3, 5, 2 }), "0.5 1 1 1 0.5 0.125", "three experts")
    support.equal(values(m, "blk.0.e.weight", { 3, 5, 2 }, 2), "0.5 0.125", "the last of them")
    support.equal(select(2, m:entry("blk.1.a.weight", { 7, 3 })), "missing", "nothing")
end

T["the form before: values over calls, with and without what comes last"] = function()
    local entries = { { "a.weight", 4, { 2, 8 } }, { "b.weight", 0, { 3, 5 } } }
    local m = imatrix.read(saved(dat(entries, 9, "calib.txt")))
    support.equal(m.count .. m.dataset .. m.chunks, "2calib.txt9", "what it says of itself")
    support.equal(values(m, "a.weight", { 7, 2 }), "0.5 2", "four calls")
    support.equal(values(m, "b.weight", { 7, 2 }), "3 5", "no calls")
    m = imatrix.read(saved(dat(entries)))
    support.equal(m.count .. tostring(m.dataset) .. m.chunks, "2nil0", "an old file")
end

T["quotients are rounded to f32 once"] = function()
    local m = imatrix.read(saved(file { { "a.in_sum2", { 3 }, { 1, 2, 5 } }, { "a.counts", { 1 }, { 3 } } }))
    support.equal(m:values(m:entry("a", { 1, 3 })):plane(1), core.pack("fff", 1 / 3, 2 / 3, 5 / 3), "thirds")
end

T["files that are broken are said to be, wherever they end"] = function()
    local whole = dat({ { "a.weight", 4, { 2, 8 } }, { "b.weight", 1, { 3, 5 } } }, 9, "calib.txt")
    local bare = #dat { { "a.weight", 4, { 2, 8 } }, { "b.weight", 1, { 3, 5 } } }
    for n = 0, #whole - 1 do
        local ok, e = pcall(imatrix.read, saved(whole:sub(1, n)))
        assert(ok == (n == bare or n == bare + 4), ("%d bytes of it"):format(n))
        assert(ok or e.kind == "corrupt" and e.message:find "imatrix: ", ok or e.message)
    end
    local function broken(text, bytes, kind)
        support.raises(kind or "corrupt", text, imatrix.read, saved(bytes))
    end
    broken("0 entries", core.pack("i", 0))
    broken("-5 entries", core.pack("i", -5))
    broken("-1 bytes", core.pack("ii", 1, -1))
    broken("cut short", core.pack("ii", 1, 2 ^ 31 - 1))
    broken("0 values", dat { { "a", 1, {} } })
    broken("-2 values", core.pack("ii", 1, 1) .. "a" .. core.pack("ii", 1, -2))
    broken("cut short", core.pack("ii", 1, 1) .. "a" .. core.pack("ii", 1, 2 ^ 31 - 1) .. ("x"):rep(100))
    broken({ "'b'", "finite" }, dat { { "a", 1, { 1 } }, { "b", 1, { 1, 0 / 0, 1 / 0 } } })
    broken("two entries 'a'", dat { { "a", 1, { 1 } }, { "a", 1, { 1 } } })
    broken("'a' has no counts", file { { "a.in_sum2", { 1 }, { 1 } } })
    broken("'a' has no in_sum2", file { { "a.counts", { 1 }, { 1 } } })
    broken("3 values for 2 matrices", file { { "a.in_sum2", { 3 }, { 1, 1, 1 } }, { "a.counts", { 2, 1 }, { 1, 1 } } })
    broken("no count", file { { "a.in_sum2", { 1 }, { 1 } }, { "a.counts", { 1 }, { -1 } } })
    broken("no count", file { { "a.in_sum2", { 1 }, { 1 } }, { "a.counts", { 1 }, { 0 / 0 } } })
    broken("finite", file { { "a.in_sum2", { 1 }, { 1 / 0 } }, { "a.counts", { 1 }, { 1 } } })
    broken("no importance matrix", support.read(F16), "unsupported")
end

-- ---- what it does to a file ---------------------------------------------------------------------------

--- Whole numbers that every language makes alike: the "minimal standard" generator of Park and Miller.
local function generator(seed)
    return function(most)
        seed = seed * 16807 % 2147483647
        return seed % most + 1
    end
end

--- An importance matrix of the tiny model, with an entry missing and columns that count for nothing.
local function tiny_imatrix()
    local tensors, random = {}, generator(7)
    for _, t in ipairs(core.gguf(F16).tensors) do
        if #t.shape == 2 and t.name:find "^blk" and t.name ~= "blk.2.attn_k.weight" then
            local sums = {}
            for i = 1, t.shape[2] do
                sums[i] = random(9) == 1 and 0 or random(4096) ^ 2 / 1024
            end
            tensors[#tensors + 1] = { t.name .. ".in_sum2", { 1, t.shape[2] }, sums }
            tensors[#tensors + 1] = { t.name .. ".counts", { 1, 1 }, { random(1000) } }
        end
    end
    return saved(file(tensors))
end

T["metadata says which matrix was used, and what goes without is said"] = function()
    local path = tiny_imatrix()
    local out = path .. ".gguf"
    local report = qm.write(qm.open(F16), { { out, format = "q4_0", imatrix = path } })
    local meta = core.gguf(out).meta
    local last = {}
    for i = #meta - 4, #meta do
        last[#last + 1] = ("%s %s %s"):format(meta[i].key, meta[i].type, tostring(meta[i].value))
    end
    support.equal(table.concat(last, "\n"), table.concat({ "general.file_type u32 2",
        "quantize.imatrix.file string " .. path:sub(1, 127), "quantize.imatrix.dataset string wiki.txt",
        "quantize.imatrix.entries_count u32 27", "quantize.imatrix.chunks_count u32 12" }, "\n"), "metadata")
    local said = report:markdown()
    assert(said:find("2 tensors are not in", 1, true) and said:find("blk.2.attn_k.weight", 1, true), said)
    -- once more with the same matrix: its keys make way for the new ones
    qm.plan(qm.open(out), { { out .. ".gguf", format = "q5_0", imatrix = path, allow_requantize = true } })
end

-- Type and SHA-256 (16 digits of it) of what llama-quantize --imatrix (llama.cpp 0c1e570) wrote, by file type and
-- tensor.
local golden = core.json_decode(support.read "tests/fixtures/golden/imatrix-digests.json")

for format, want in pairs(golden) do
    T["every tensor of " .. format .. " with an importance matrix is llama-quantize's, byte for byte"] = function()
        local path = tiny_imatrix()
        for _, threads in ipairs { 1, 3 } do
            qm.write(qm.open(F16), { { path .. ".gguf", format = format, imatrix = path } },
                { force = true, threads = threads })
            local h, n = core.gguf(path .. ".gguf"), 0
            for _, t in ipairs(h.tensors) do
                if want[t.name] then
                    local digest = core.sha256(h.file:read(t.at, t.size)):sub(1, 16)
                    support.equal(t.format .. " " .. digest, want[t.name], t.name)
                    n = n + 1
                end
            end
            support.equal(n, 29, "tensors compared")
        end
    end
end

T["stacked matrices have importances of their own"] = function()
    local path = saved(file { { "x", { 3, 4, 64 }, qm.randn { 3, 4, 64, seed = 1 }:values() } })
    local pool, source = core.pool(2), core.gguf(path)
    local t = source.tensors[1]
    local function encode(first, rows, importance)
        local size = core.plane_sizes("q4_0", rows * 64, 64, 0, "x")[1]
        local to = path .. "-" .. first .. "-" .. rows
        local out = core.outfile(to, size)
        core.stream(pool, { source = { file = source.file, format = "f32", rows = rows, cols = 64,
                                       at = { t.at + 256 * first } },
                            sinks = { { format = "q4_0", file = out, at = { 0 }, importance = importance } } })
        out:finish()
        return support.read(to)
    end
    local all = qm.uniform { 3 * 64, min = 0, max = 9, seed = 2 }:values()
    local each = {}
    for matrix = 0, 2 do
        local list = { unpack(all, 64 * matrix + 1, 64 * matrix + 64) }
        each[matrix + 1] = encode(4 * matrix, 4, core.tensor({ 64 }, list))
    end
    local stacked = encode(0, 12, core.tensor({ 3, 64 }, all))
    assert(stacked == table.concat(each), "not what the matrices give one by one")
    assert(stacked ~= encode(0, 12, core.tensor({ 64 }, { unpack(all, 1, 64) })), "all took the first one's")
    assert(not pcall(encode, 0, 12, core.tensor({ 5 }, { 1, 2, 3, 4, 5 })), "five importances for rows of 64")
    pool:close()
end

local function refused(kind, text, bytes, format)
    local path = saved(bytes)
    support.raises(kind, text, qm.plan, qm.open(F16), { { path .. ".gguf", format = format, imatrix = path } })
end

T["a matrix of another model is refused by name; token embeddings are spared"] = function()
    refused("fail", { "blk.0.attn_q.weight", "2 values", "256" }, dat { { "blk.0.attn_q.weight", 1, { 1, 2 } } }, "q4_0")
    local path = saved(dat { { "token_embd.weight", 1, { 1, 2 } } })
    local plan = qm.plan(qm.open(F16), { { path .. ".gguf", format = "q4_0", imatrix = path } })
    assert(plan.outputs[1].notices[1]:find("29 tensors", 1, true), plan.outputs[1].notices[1])
    refused("unsupported", { "blk.0.attn_k.weight", "Q2_K" }, dat { { "blk.1.attn_k.weight", 1, { 1 } } }, "q2_k_s")
    support.raises("unsupported", "--imatrix", qm.plan, qm.open(F16), { { path .. ".gguf", format = "q2_k_s" } })
    support.raises("usage", "imatrix", qm.plan, qm.open(F16), { { path .. ".f", format = "f16", imatrix = path } })
end

return T
