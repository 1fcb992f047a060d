-- The n-th write, open, allocation … of a run fails, for n = 1, 2, 3 … until a run makes fewer calls than that
-- (tests/fault/fault.c does the failing).  However it ends: an exit status of the table in README.md, one line that
-- says what failed, nothing under a final name but a whole output, what was there before still there, no .part left.

local core = require "qmoon.core"
local synth = require "qmoon.synth"
local support = dofile "tests/lua/support.lua"

local PROGRAM = arg[-1]
local PRELOAD = PROGRAM:match "^(.*)/" .. "/fault.so"
local OUTPUTS = { "merged-fp16", "model-int8", "model-int4", "model.gguf", "model-q4_0.gguf" }

-- ---- what there should be ----------------------------------------------------------------------------------

local tree = support.tree

-- A small model, and the outputs of a run that nothing disturbs; made once.
local model
local function prepared()
    if not model then
        local dir = support.scratch()
        model = { base = dir .. "/base", adapter = dir .. "/adapter" }
        synth.model(synth.sizes.qwen2.tiny, model.base, { seed = 1 })
        synth.adapter(synth.sizes.qwen2.tiny, model.adapter, { seed = 1, rank = 4 })
        model.command = ("pipeline --base %s --adapter %s"):format(model.base, model.adapter)
        model.out = support.scratch()
        local status, text = support.run(("%s --out %s"):format(model.command, model.out))
        support.equal(status, 0, text)
        model.good = tree(model.out)
        assert(core.stat(PRELOAD), PRELOAD .. " is missing; make test builds it")
    end
    return model
end

-- The outputs as another program might have left them, to be replaced.
local function write_old(out)
    for _, name in ipairs(OUTPUTS) do
        local folder = not name:find "%.gguf$"
        core.mkdir(folder and out .. "/" .. name or out)
        support.write(out .. "/" .. name .. (folder and "/config.json" or ""), "old")
    end
end

-- The files of one output out of all: {} when it is not there.
local function part_of(files, name)
    local part = {}
    for path, bytes in pairs(files) do
        if path == name or path:sub(1, #name + 1) == name .. "/" then
            part[path] = bytes
        end
    end
    return part
end

local function same(a, b)
    for path, bytes in pairs(a) do
        if b[path] ~= bytes then
            return false
        end
    end
    for path in pairs(b) do
        if a[path] == nil then
            return false
        end
    end
    return true
end

-- ---- runs -----------------------------------------------------------------------------------------------------

---@class Run
---@field fault string "pwrite 12 ENOSPC", as fault.c reads it
---@field old boolean  outputs are there already and are to be replaced
---@field before string? options of the program before the command

local function shell_of(run)
    local m = prepared()
    core.remove_tree(run.out)
    core.remove_tree(run.out .. ".fired")
    if run.old then
        write_old(run.out)
    end
    local words = {
        "timeout 60 env",
        "ASAN_OPTIONS=verify_asan_link_order=0", -- its library would rather be the first
        ("FAULT='%s' FAULT_FIRED=%s.fired LD_PRELOAD=%s"):format(run.fault, run.out, PRELOAD),
        PROGRAM, run.before or "", m.command, "--out", run.out, run.old and "--force" or "",
        (">%s.log 2>&1 </dev/null; echo $? >%s.status"):format(run.out, run.out),
    }
    return table.concat(words, " ")
end

-- Several at once: they mostly wait for files.
local function run_all(runs)
    local lines = {}
    for i, r in ipairs(runs) do
        lines[i] = "(" .. shell_of(r) .. ") &"
    end
    os.execute(table.concat(lines, "\n") .. "\nwait")
    for _, r in ipairs(runs) do
        r.status = tonumber(support.read(r.out .. ".status"))
        r.text = support.read(r.out .. ".log")
        r.fired = core.stat(r.out .. ".fired") ~= nil
        r.files = core.stat(r.out) and tree(r.out) or {}
    end
end

local ALLOWED = { [0] = true, [1] = true, [4] = true, [5] = true, [6] = true }

local function error_line(r)
    local lines = {}
    for line in r.text:gmatch "[^\n]+" do
        if line:sub(1, 1) ~= " " then -- the report's lines begin with a blank
            lines[#lines + 1] = line
        end
    end
    assert(#lines == 1, "not one line of error: " .. r.text)
    local e = lines[1]:match "^error: (.+)"
    assert(e, "not one line of error: " .. r.text)
    assert(e:find "[/.]%w" or e:find "memory" or e:find "thread", "it does not say what failed: " .. e)
end

local function check_outputs(r)
    local good, known = prepared().good, {}
    for _, name in ipairs(OUTPUTS) do
        local part = part_of(r.files, name)
        local whole = same(part, part_of(good, name))
        local before = r.old and { [name:find "%.gguf$" and name or name .. "/config.json"] = "old" } or {}
        assert(whole or (r.status ~= 0 and same(part, before)), name .. " is neither whole nor what it was")
        for path in pairs(part) do
            known[path] = true
        end
    end
    for path in pairs(r.files) do
        assert(known[path] or path == "report.json" or path == "report.md", path .. " was left behind")
    end
end

local function check(r)
    assert(ALLOWED[r.status], "exit status " .. tostring(r.status) .. ": " .. r.text)
    if r.status ~= 0 then
        error_line(r)
    end
    check_outputs(r)
end

local function forget_parts(r)
    for path in pairs(r.files) do
        if path:find "%.part" then
            r.files[path] = nil
        end
    end
end

local QUICK = core.writable "/dev/shm" and "/dev/shm" or "/tmp" -- a disk in memory, where there is one
local LANES = 2
local lanes

-- n = 1, 2, … 6, then 1.5 times as many each time, until a run did not get that far.
local function sweep(form, verify, before)
    lanes = lanes or { support.scratch(QUICK), support.scratch(QUICK) }
    local n, failed = 1, 0
    repeat
        local runs = {}
        for i = 1, LANES do
            runs[i] = { fault = form:format(n), out = lanes[i], old = n % 2 == 1, before = before }
            n = n < 6 and n + 1 or math.ceil(n * 1.5)
        end
        run_all(runs)
        local ended = false
        for _, r in ipairs(runs) do
            local ok, e = pcall(verify or check, r)
            assert(ok, ("%s%s: %s"):format(r.fault, r.old and " over what was there" or "", tostring(e)))
            ended = ended or not r.fired
            failed = failed + (r.status ~= 0 and 1 or 0)
        end
    until ended
    return failed
end

-- ---- tests ------------------------------------------------------------------------------------------------------

local T = {}

-- what the core and the binding call, and how it can fail; at least one run of each must have failed
for _, f in ipairs {
    { "pwrite", "ENOSPC" }, { "pread", "EIO" }, { "fsync", "EIO" }, { "fallocate", "ENOSPC" }, { "rename", "EACCES" },
    { "open", "EMFILE" }, { "mmap", "ENOMEM" }, { "mkdir", "EACCES" }, { "stat", "EACCES" }, { "fstat", "EIO" },
    { "lstat", "EIO" }, { "statvfs", "EIO" }, { "scandir", "EACCES" }, { "realpath", "EACCES" }, { "malloc", "ENOMEM" },
    { "cjson", "ENOMEM" }, { "pthread_create", "EAGAIN" },
} do
    T["the n-th " .. f[1] .. " fails"] = function()
        assert(sweep(f[1] .. " %d " .. f[2]) > 0, "no run failed")
    end
end

T["memory runs out and stays out"] = function()
    local failed = sweep("malloc %d+ ENOMEM", function(r)
        forget_parts(r) -- listing a folder to clear it away takes memory
        check(r)
    end)
    assert(failed > 0, "no run failed")
    -- without compiled code: this LuaJIT crashes when it leaves some and memory has run out
    assert(sweep("mmap64 %d+ ENOMEM", check, "-e 'jit.off()'") > 0, "no run failed")
end

T["the disk fills up and stays full"] = function()
    assert(sweep "pwrite %d+ ENOSPC" > 0, "no run failed")
end

T["short and interrupted reads and writes are taken up again"] = function()
    for _, fault in ipairs { "pwrite %d short", "pwrite %d EINTR", "pread %d short", "pread %d EINTR", "fallocate %d EINTR" } do
        support.equal(sweep(fault), 0, "runs that failed with " .. fault)
    end
end

T["what cannot be reserved is written all the same"] = function()
    support.equal(sweep "fallocate %d EOPNOTSUPP", 0, "runs that failed")
    support.equal(sweep "unlink %d EIO", 0, "runs that failed")
end

-- SIGKILL at that very call: the .part stays, and the next run takes its place.
T["killed at the n-th write, flush or rename"] = function()
    for _, name in ipairs { "pwrite", "fsync", "rename", "unlink" } do
        sweep(name .. " %d kill", function(r)
            assert(r.status == 0 or r.status == 137, "exit status " .. r.status .. ": " .. r.text)
            forget_parts(r)
            check_outputs(r)
            local status, text = support.run(("%s --out %s --force"):format(prepared().command, r.out))
            support.equal(status, 0, text)
            r.status, r.files = 0, tree(r.out)
            check_outputs(r)
        end)
    end
end

-- ---- no preload: real limits ---------------------------------------------------------------------------------------

T["a limit on the size of files (ulimit -f) is named"] = function()
    local m, out = prepared(), support.scratch()
    local log = support.scratch()
    local status = os.execute(("sh -c 'ulimit -f 100; exec %s %s --out %s' >%s 2>&1"):format(PROGRAM, m.command, out, log))
    support.equal(status > 255 and status / 256 or status, 4, support.read(log))
    assert(support.read(log):find "^error: .*ulimit %-f", support.read(log))
    assert(next(tree(out)) == nil, "something was left behind")
end

-- A small disk of its own, a little too small at first; needs the right to mount.
T["a disk that is really full"] = function()
    local m, disk = prepared(), support.scratch()
    core.mkdir(disk)
    local need = 0
    for _, bytes in pairs(m.good) do
        need = need + #bytes
    end
    local refused = 0
    for extra = -64, 256, 40 do -- KiB: too small by the plan's own sums, then by what a file system needs besides
        if os.execute(("mount -t tmpfs -o size=%dk tmpfs %s 2>/dev/null"):format(need / 1024 + extra, disk)) ~= 0 then
            return -- not as this user
        end
        local ok, e = pcall(function()
            local status, text = support.run(("%s --out %s/out"):format(m.command, disk))
            local r = { status = status, text = text, files = core.stat(disk .. "/out") and tree(disk .. "/out") or {} }
            check(r)
            refused = refused + (status ~= 0 and 1 or 0)
        end)
        os.execute("umount " .. disk)
        assert(ok, e)
    end
    assert(refused >= 2, "it was never full")
end

return T
