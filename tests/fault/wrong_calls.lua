-- wrong_calls.lua [SEED]: calls everything that Lua can reach with arguments that make no sense, then runs the
-- pipeline.  Every call must return or raise; a crash, a hang or gigabytes are the defects looked for.  The same calls
-- in every run.  tests/lua/wrong_calls_test.lua starts it in an empty folder: some of the calls write files.

local core = require "qmoon.core"
local qm = require "qmoon"
local outputs = require "qmoon.outputs"
local synth = require "qmoon.synth"

local BASE, ADAPTER = "model", "adapter"
math.randomseed(tonumber(arg[1]) or 1)
local draw = math.random

local function pick(list)
    return list[draw(#list)]
end

local calls, raised = 0, 0

local function try(f, ...)
    calls = calls + 1
    local ok = pcall(f, ...)
    raised = raised + (ok and 0 or 1)
    return ok
end

-- The last line on the screen is where to look.
local function section(name, n, f)
    io.write(name, "\n")
    io.flush()
    for i = 1, n do
        f(i)
    end
    assert(core.stat "numbers", "a path with a zero byte in it was cut at that byte")
    collectgarbage()
end

-- ---- what to call with -----------------------------------------------------------------------------------

local function write_bytes(name, bytes)
    local f = assert(io.open(name, "wb"))
    f:write(bytes)
    f:close()
end

local ROWS, COLS = 12, 64

synth.model(synth.sizes.qwen2.tiny, BASE, { seed = 1 })
synth.adapter(synth.sizes.qwen2.tiny, ADAPTER, { seed = 1, rank = 4 })
write_bytes("numbers", ("\0\0\128\63"):rep(ROWS * COLS))
write_bytes("many", ("\0\0\128\63"):rep(4096 * COLS * 4))

-- Files are slow to make, so they are used until a call has finished or dropped them.
local open_files = {}
local function outfile(name, size)
    local o = open_files[name]
    if not o or not pcall(o.write, o, 0, "") then
        o = core.outfile(name, size)
        open_files[name] = o
    end
    return o
end

local good = {} -- one maker for each class
function good.infile() return core.infile "numbers" end
function good.outfile() return outfile("new", 4096) end
function good.tensor() return core.random("normal", { 4, 64 }, 1, 0, 1) end
function good.pool() return core.pool(2) end
function good.regex() return core.regex "a+" end

local function closed(object, how)
    object[how](object)
    return function()
        return object
    end
end

local function numbers()
    return pick { 0, 1, -1, 2, 3, 7, 64, 100, 0.5, -0.5, 1e300, -1e300, 0 / 0, 1 / 0, -1 / 0, 2 ^ 53, 2 ^ 53 + 2, -2 ^ 53, 2 ^ 63,
                  -2 ^ 31, 2 ^ 64 }
end

local function words()
    return pick { "", "x", "victim", "new", "nf4", "f32", "q4_0", "int8", "normal", "a\0b", "numbers\0x", ("y"):rep(70000), "%s%d%n",
                  "\255\254", "[1, 2, {\"a\": null}]", "(", "bBhHiIlLfds", "x.gguf", "none", "0x10" }
end

local function cycle()
    local t = { 1 }
    t[2], t.self, t.source, t.path = t, t, t, t
    return setmetatable(t, { __index = t })
end

local function raising()
    local function no()
        error "not for you"
    end
    return setmetatable({}, { __index = no, __newindex = no, __len = no, __tostring = no, __call = no, __eq = no, __lt = no,
                              __concat = no, __unm = no })
end

-- Never the same twice.
local changing
local any
local function values_of_any()
    return any()
end
function changing()
    return setmetatable({}, { __index = values_of_any, __tostring = values_of_any })
end

local function tables()
    return pick {
        {}, { 1 }, { 2, 3 }, { 2 ^ 31, 2 ^ 31 }, { 2 ^ 53, 2 ^ 53 }, { 2 ^ 31, 2 ^ 31, 4 }, { 2 ^ 62 }, { 0 }, { 0, 2 ^ 53 }, { -1 }, { 0 / 0 },
        { 0.5 }, { "x" }, { "nf4", "q4_0" }, { {} }, { { 1, 2 }, { 3 } }, { 1, 1, 1, 1, 1, 1, 1, 1, 1 }, { [3] = 1 }, { name = 1 },
        { format = "nf4" }, { "x.gguf", format = "q4_0" }, { { "x", format = "nf4" } }, cycle(), raising(), changing(),
    }
end

local function others()
    return pick { true, false, type, error, core.null, io.stdout, newproxy(true), coroutine.create(type), changing }
end

local objects = {
    good.infile, good.outfile, good.tensor, good.pool, good.regex, closed(core.outfile("dropped", 10), "drop"),
    closed(core.outfile("finished", 10), "finish"), closed(good.tensor(), "close"), closed(good.pool(), "close"),
    function() return good.tensor():quantize(pick { "nf4", "nf4:dq", "q4_0", "int8", "bf16" }) end,
    function() return good.tensor():dequantize() end,
}

function any()
    local kind = draw(12)
    if kind <= 4 then
        return numbers()
    elseif kind <= 6 then
        return words()
    elseif kind <= 8 then
        return tables()
    elseif kind <= 10 then
        return pick(objects)()
    elseif kind == 11 then
        return others()
    end
    return nil
end

local function arguments()
    local list, n = {}, draw(0, 6)
    for i = 1, n do
        list[i] = any()
    end
    return unpack(list, 1, n)
end

local function sorted_keys(t, keep)
    local keys = {}
    for k, v in pairs(t) do
        if keep(k, v) then
            keys[#keys + 1] = k
        end
    end
    table.sort(keys)
    return keys
end

local function functions_of(t)
    return sorted_keys(t, function(k, v)
        return type(k) == "string" and type(v) == "function"
    end)
end

-- ---- functions and methods of the core -------------------------------------------------------------------------

local function call_core()
    for _, name in ipairs(functions_of(core)) do
        section("core." .. name, 300, function()
            try(core[name], arguments())
        end)
    end
    core.simd "avx512"
end

local function call_methods()
    for _, class in ipairs(sorted_keys(good, function() return true end)) do
        local methods = debug.getmetatable(good[class]()).__index
        for _, name in ipairs(functions_of(methods)) do
            section(class .. ":" .. name, 200, function(i)
                if i % 3 == 0 then
                    try(methods[name], arguments())
                else
                    try(methods[name], good[class](), arguments())
                end
            end)
        end
        section(class .. " as what it is not", 100, function(i)
            local object, x = good[class](), any()
            try(function() return object[x] end)
            try(function() object[x] = x end)
            try(function() return object .. x end)
            try(function() return object < x, object == x end)
            try(function() return object(x) end)
            try(tostring, object)
        end)
    end
end

-- Gives what a call needs nearly right: one or two fields of a good argument are something else.
local function spoil(t)
    local keys = sorted_keys(t, function(k) return type(k) == "string" end)
    for i in ipairs(t) do
        keys[#keys + 1] = i
    end
    local key = pick(keys)
    if type(t[key]) == "table" and #keys > 0 and draw(3) > 1 and next(t[key]) ~= nil then
        return spoil(t[key])
    end
    t[key] = any()
    if draw(4) == 1 then
        t[pick { "block", "rows", "cols", "rank", "offset", "steps", "sinks", "shape", "at" }] = any()
    end
end

-- ---- core.stream -------------------------------------------------------------------------------------------------

local function normal(...)
    return core.random("normal", { ... }, 3, 0, 1)
end

local function job()
    local formats = { "f32", "f16", "bf16", "int8", "nf4", "fp4", "q4_0", "q8_0" }
    local sinks = {}
    for i = 1, draw(3) do
        sinks[i] = { format = pick(formats), file = outfile("sink" .. i, 65536), at = { 0, 16384, 32768 }, nested_at = 40000 }
        sinks[i].double_quant = sinks[i].format == "nf4" or nil
    end
    return {
        source = { file = core.infile "numbers", name = "t", format = "f32", rows = ROWS, cols = COLS, at = { 0 } },
        steps = {
            { kind = "low_rank", left = normal(ROWS, 4), right = normal(4, COLS), rank = 4, scale = 0.5, round_delta = "f16" },
            { kind = "dora", magnitude = normal(ROWS) },
            { kind = "dora", magnitude = normal(COLS), norm = normal(COLS), by_column = true },
            { kind = "rows", row = { 0, 11 }, values = normal(2, COLS), round_after = "bf16" },
            { kind = "add", values = normal(ROWS, COLS), scale = 2 },
        },
        sinks = sinks, round = "f16", errors = true, keep_nonfinite = true,
    }
end

-- What random choices would seldom hit: each must be refused; then what is odd, but no mistake.
local directed = {
    function(j) j.source.rows, j.source.cols, j.steps = 2 ^ 32, 2 ^ 32, {} end,
    function(j) j.source.rows, j.source.cols, j.steps = 2 ^ 53, 2 ^ 53, {} end,
    function(j) j.source.rows, j.source.cols, j.steps = 1, 2 ^ 33, {} end,
    function(j) j.source.rows, j.source.cols, j.steps = 2 ^ 33, 1, {} end,
    function(j) j.source.rows, j.source.cols, j.steps = 2 ^ 31, 8, {} end,
    function(j) j.source.at[1] = 2 ^ 53 end,
    function(j) j.source.at[1] = 100 end,
    function(j) j.source.format = "nf4" end,
    function(j) j.source.format, j.source.at, j.source.double_quant, j.source.nested_at = "nf4", { 0, 0 }, true, 2 ^ 53 end,
    function(j) j.source.block = 2 ^ 32 + 64 end,
    function(j) j.steps[1].rank = 2 ^ 53 end,
    function(j) j.steps[1].rank = 2 ^ 62 end,
    function(j) j.steps[4].row = { 5, 2 ^ 53 } end,
    function(j) j.steps[4].row = { 0, 1, 2 } end,
    function(j) j.steps[4].row = setmetatable({}, { __index = j }) end,
    function(j) j.steps[2].magnitude:close() end,
    function(j) j.sinks[1].file:finish() end,
    function(j) j.sinks[1].file:drop() end,
    function(j) j.sinks[1].file = outfile("small", 10) end,
    function(j) j.sinks[1].at = { 65536, 65536, 65536 } end,
    function(j) j.sinks[1].at = { 2 ^ 53, 2 ^ 53, 2 ^ 53 } end,
    function(j) j.sinks[1] = { format = "nf4", block = 2 ^ 31, file = j.sinks[1].file, at = { 0, 0 } } end,
    function(j) j.sinks[1] = { format = "nf4", block = 2 ^ 32 + 64, file = j.sinks[1].file, at = { 0, 0 } } end,
    function(j) j.sinks[1] = { format = "nf4", block = 3, file = j.sinks[1].file, at = { 0, 0 } } end,
    function(j) j.sinks[1] = { format = "int8", block = 64, file = j.sinks[1].file, at = { 0, 0 } } end,
    function(j) j.sinks[1] = { format = "f32", interleave_heads = 2 ^ 53, file = j.sinks[1].file, at = { 0 } } end,
    function(j) j.sinks[1] = { format = "f32", interleave_heads = 2 ^ 62, file = j.sinks[1].file, at = { 0 } } end,
    function(j) for i = 1, 17 do j.sinks[i] = j.sinks[1] end end,
    function(j) for i = 1, 65 do j.steps[i] = j.steps[1] end end,
    function(j) j.keep_nonfinite = false j.steps[1].scale = 1 / 0 end,
    function(j) j.keep_nonfinite = false j.steps[5].scale = 0 / 0 end,
}

local odd = {
    function(j) j.source.rows, j.source.cols, j.steps = 2 ^ 53, 0, {} end,
    function(j) j.source.rows, j.source.cols, j.steps = 0, 2 ^ 53, {} end,
    function(j) j.source.format, j.source.at = "nf4", { 0, 0 } end,
    function(j) j.source.format, j.source.at, j.source.double_quant = "nf4", { 0, 0 }, true end,
    function(j) j.steps = { { kind = "low_rank", left = normal(0), right = normal(0), rank = 0 } } end,
    function(j) j.sinks[1] = { format = "f32", interleave_heads = 2, file = j.sinks[1].file, at = { 0 } } end,
    function(j) for i = 1, 64 do j.steps[i] = j.steps[1] end end,
}

-- A progress function that pulls the carpet away, and work for it: several chunks.
local carpets = {
    function(j, pool) pool:close() end,
    function(j) j.sinks[1].file:drop() end,
    function(j) j.sinks[1].file:finish() end,
    function(j) j.steps[1].left:close() j.steps[1].right:close() end,
    function(j) for k in pairs(j) do j[k] = nil end collectgarbage() collectgarbage() end,
    function(j) for _, s in ipairs(j.steps) do for k in pairs(s) do s[k] = nil end end collectgarbage() collectgarbage() end,
    function(j) j.source.file, j.source.name = nil, nil collectgarbage() collectgarbage() end,
    function(j, pool) core.stream(pool, j) end,
    function(j, pool) core.column_norms(pool, j, 0) end,
    function(j, pool) core.fill_bf16(pool, outfile("inner", 4096), 0, 1024, 1, 1) end,
    function(j) core.stream(core.pool(2), job()) end,
    function() error "enough" end,
    function() error { "enough" } end,
    function() error() end,
    function() coroutine.yield() end,
    function() collectgarbage() end,
    function() return changing() end,
    function() local function down() return 1 + down() end down() end,
}

local function long_job()
    local j = job()
    local rows = 4096
    j.source = { file = core.infile "many", name = "t" .. draw(9), format = "f32", rows = rows, cols = COLS * 4, at = { 0 } }
    j.steps = { { kind = "low_rank", left = normal(rows, 2), right = normal(2, COLS * 4), rank = 2 },
                { kind = "rows", row = { 1, 4000 }, values = normal(2, COLS * 4) } }
    j.sinks = { { format = "bf16", file = outfile("sink", rows * COLS * 8), at = { 0 } } }
    return j
end

local function call_stream()
    local pool = core.pool(2)
    assert(core.stream(pool, job()), "the good job fails")
    section("core.stream, spoilt", 3000, function()
        local j = job()
        spoil(j)
        try(core.stream, pool, j)
        try(core.stream_memory, j, pick { 1, 2, 0, -1, 0 / 0, 1e300, "x" })
        if draw(8) == 1 then
            try(core.column_norms, pool, j, pick { 0, 1, 3, -1, 99, 0 / 0 })
        end
    end)
    section("core.stream, directed", #directed, function(i)
        local j = job()
        directed[i](j)
        try(core.stream_memory, j, 2)
        try(core.column_norms, pool, j, 1)
        assert(not try(core.stream, pool, j), "mistake " .. i .. " is not refused")
    end)
    section("core.stream, odd", #odd, function(i)
        local j = job()
        j.sinks = { { format = "f32", file = j.sinks[1].file, at = { 0 } } }
        odd[i](j)
        try(core.column_norms, pool, j, 1)
        assert(try(core.stream, pool, j), "oddity " .. i .. " is refused")
    end)
    section("core.stream, carpets pulled away", 2 * #carpets, function(i)
        local p, j = core.pool(i % 2 + 1), long_job()
        local carpet, times = carpets[i % #carpets + 1], 0
        function j.progress()
            times = times + 1
            return carpet(j, p)
        end
        if i % 4 == 0 then
            try(coroutine.wrap(function() core.stream(p, j) end))
        else
            try(core.stream, p, j)
        end
        assert(i % 2 == 1 or times > 0, "progress was never told") -- the other of two threads may have done it all
    end)
    section("core.fill_bf16", 1, function()
        local o = outfile("filled", 4096)
        for _, n in ipairs { -1, 0, 1, 2048, 2049, 2 ^ 31, 2 ^ 52, 2 ^ 53, 0 / 0 } do
            try(core.fill_bf16, pool, o, 0, n, 1, 1)
            try(core.fill_bf16, pool, o, n, 10, 1, 0 / 0)
        end
    end)
end

local function call_tensors()
    local file = core.infile "numbers"
    section("core.view, spoilt", 1000, function()
        local spec = { name = "t", at = 0, size = 3072, shape = { 12, 64 }, dtype = pick { "f32", "i32" } }
        spoil(spec)
        local ok, t = pcall(core.view, file, spec)
        if ok then
            try(t.stats, t)
            try(t.values, t)
            try(t.quantize, t, "nf4")
            try(tostring, t)
        end
    end)
    section("tensors too large to be", 1, function()
        for _, shape in ipairs { { 2 ^ 31, 2 ^ 31 }, { 2 ^ 53, 512 }, { 2 ^ 50 }, { 2 ^ 31, 2 ^ 30, 2 }, { 2 ^ 53, 2 ^ 9, 2 }, { 2 ^ 53, 0 } } do
            try(core.random, "normal", shape, 1, 0, 1)
            try(core.tensor, shape, {})
            try(core.tensor, shape, "")
            try(core.view, file, { at = 0, size = 0, shape = shape, dtype = "f32" })
        end
    end)
    section("blocks", 1, function()
        local t = good.tensor()
        for _, f in ipairs(core.formats()) do
            for _, block in ipairs { 0, 1, 3, 32, 64, 4096, 8192, 2 ^ 31, 2 ^ 32 + 64, 2 ^ 53, -1, 0.5, 0 / 0 } do
                try(t.quantize, t, f.name, { block = block, double_quant = block == 64 })
                try(core.plane_sizes, f.name, 2 ^ 53, 2 ^ 53, block)
                try(core.plane_sizes, f.name, 100, 3, block)
            end
        end
    end)
end

-- ---- the library --------------------------------------------------------------------------------------------------

local function call_library()
    for _, name in ipairs(functions_of(qm)) do
        section("qm." .. name, 200, function()
            try(qm[name], arguments())
        end)
    end
    local model = qm.open(BASE)
    for _, name in ipairs(functions_of(getmetatable(model))) do
        section("model:" .. name, 200, function(i)
            local f = getmetatable(model)[name]
            if i % 3 == 0 then
                try(f, arguments())
            else
                try(f, qm.open(BASE), arguments())
            end
        end)
    end
    section("qm.write, spoilt", 150, function()
        local specs = { { "out-x", format = "nf4", double_quant = true }, { "out-x.gguf", format = "q4_0" } }
        local options = { threads = 2, force = true, round = "f16" }
        spoil(pick { specs, options })
        try(qm.write, qm.open(BASE), specs, options)
        try(qm.plan, pick { qm.open(BASE), any() }, specs, options)
    end)
    section("a model's own tensors, spoilt", 150, function()
        local m = qm.open(BASE)
        if draw(2) == 1 then
            m = m:merge(ADAPTER)
        end
        local item = pick(m.items)
        spoil(pick { item, item.source })
        try(qm.write, m, { { "out-y", format = "nf4" } }, { force = true, threads = 2 })
    end)
end

-- ---- all of it ------------------------------------------------------------------------------------------------------

call_core()
call_methods()
call_stream()
call_tensors()
call_library()

section("the pipeline", 1, function()
    qm.write(qm.open(BASE):merge(ADAPTER), outputs.choose(nil, "done"), { round = "f16", force = true })
end)
print(("%d calls, %d raised, peak %d MiB"):format(calls, raised, core.memory().peak / 2 ^ 20))
