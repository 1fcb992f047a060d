-- run.lua [--unit PROGRAM] [--only TEXT] [files]: runs the C unit tests, then every tests/lua/*_test.lua.
-- A test file returns a table: what is shown -> function.  Ends with "N passed, N failed".

local core = require "qmoon.core"

local unit, only, files = nil, nil, {}
do
    local i = 1
    while arg[i] do
        if arg[i] == "--unit" then
            unit, i = arg[i + 1], i + 1
        elseif arg[i] == "--only" then
            only, i = arg[i + 1], i + 1
        else
            files[#files + 1] = arg[i]
        end
        i = i + 1
    end
end
if #files == 0 then
    for _, name in ipairs(core.list "tests/lua") do
        if name:find "_test%.lua$" then
            files[#files + 1] = "tests/lua/" .. name
        end
    end
end

local passed, failed = 0, 0

local function run_unit(program)
    local pipe = assert(io.popen(program .. " 2>&1"))
    local p, f
    for line in pipe:lines() do
        p, f = line:match "^(%d+) passed, (%d+) failed$"
        if not p then
            print(line)
        end
    end
    pipe:close()
    if not p then
        print("FAIL " .. program .. " did not finish")
        p, f = 0, 1
    end
    print(("  %-28s %4d passed %4d failed"):format("unit (C)", p, f))
    passed, failed = passed + p, failed + f
end

local function names_of(tests)
    local names = {}
    for name in pairs(tests) do
        if not only or name:find(only, 1, true) then
            names[#names + 1] = name
        end
    end
    table.sort(names)
    return names
end

local function explain(e)
    return type(e) == "table" and e.message or debug.traceback(tostring(e), 2)
end

local function run_file(path)
    local p, f = 0, 0
    local tests = assert(loadfile(path))()
    for _, name in ipairs(names_of(tests)) do
        local ok, e = xpcall(tests[name], explain)
        if ok then
            p = p + 1
        else
            f = f + 1
            print(("FAIL %s: %s\n  %s"):format(path, name, e))
        end
    end
    print(("  %-28s %4d passed %4d failed"):format(path:match "([^/]+)_test%.lua$" or path, p, f))
    passed, failed = passed + p, failed + f
end

if unit then
    run_unit(unit)
end
for _, path in ipairs(files) do
    run_file(path)
end
print(("%d passed, %d failed"):format(passed, failed))
return failed == 0 and 0 or 1
