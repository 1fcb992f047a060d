-- GPUs from Lua.

local tests = {}

tests["a tensor goes to the GPU and back"] = function()
    local gpu = qm.cuda(0)
    local t = qm.randn { 64, 300, std = 0.02, seed = 3 }
    local far = t:to(gpu)
    assert(far:device() == gpu and t:device() == qm.cpu and far:to(qm.cpu):device() == qm.cpu)
    assert(far:to(qm.cpu):plane(1) == t:plane(1) and far:plane(1) == t:plane(1))
    assert(tostring(far):find("cuda:0", 1, true), tostring(far))
    assert(not tostring(t):find("cuda", 1, true), tostring(t))
    assert(tostring(gpu):find "^cuda:0 .+GiB", tostring(gpu))
end

tests["what is quantised there is what is quantised here"] = function()
    local gpu = qm.cuda(0)
    local t = qm.randn { 32, 1024, std = 0.02, seed = 4 }
    local far = t:to(gpu)
    for _, f in ipairs { "nf4", "nf4:128:dq", "fp4", "int8", "q8_0", "q4_0", "q4_k", "q6_k", "bf16", "int4", "mxfp4", "nvfp4" } do
        local here, there = t:quantize(f), far:quantize(f)
        for i = 1, 3 do
            assert(here:plane(i) == there:plane(i), f .. ": plane " .. i)
        end
        assert(here:dequantize():plane(1) == there:dequantize():plane(1), f)
        local a, b = qm.error(t, here), qm.error(far, there)
        assert(math.abs(a.rmse - b.rmse) <= 1e-6 * a.rmse, f .. ": rmse " .. a.rmse .. " and " .. b.rmse)
        assert(a.max == b.max, f)
        assert(tostring(there):find("cuda:0", 1, true))
    end
    assert(tostring(qm.compare(far, { "nf4", "q8_0" })):find "nf4")
end

tests["memory is told, and comes back"] = function()
    local gpu = qm.cuda(0)
    local free, total = gpu:memory()
    assert(free > 0 and free <= total)
    local t = qm.randn { 1024, 1024 }:to(gpu)
    assert(gpu:memory() <= free - 4 * 1024 * 1024)
    t:close()
    assert(gpu:memory() >= free - 2 ^ 20)
end

tests["a tensor outlives the variable of its GPU"] = function()
    local t
    do
        local gpu = qm.cuda(0)
        t = qm.uniform { 8, 64 }:to(gpu)
        gpu:close()
    end
    collectgarbage()
    collectgarbage()
    assert(#t:quantize("q8_0"):plane(1) == 8 * 64 / 32 * 34)
end

tests["errors say what to do"] = function()
    local gpu = qm.cuda(0)
    local t = qm.randn { 4, 64 }
    local far = t:to(gpu)
    local function message(f)
        local ok, e = pcall(f)
        assert(not ok, "no error")
        return tostring(e)
    end
    assert(message(function() t:errors(far) end):find("t:to", 1, true))
    assert(message(function() far:transpose() end):find("qm.cpu", 1, true))
    assert(message(function() qm.cuda(99) end):find("cuda:99", 1, true))
    assert(message(function() t:to(3) end):find("device", 1, true))
end

return tests
