-- Everything public: each function has help, an example that runs, and says what is wrong with wrong arguments.
-- The list is the program's own (qmoon.doc); a new function without any of the three fails here.

local core = require "qmoon.core"
local doc = require "qmoon.doc"
local qm = require "qmoon"
local support = dofile "tests/lua/support.lua"

-- What examples may use: tensors t and q (t as nf4), a model m, a result r; files "model" and "adapter" beside them.
local function world()
    local dir = support.scratch()
    core.mkdir(dir)
    for name, fixture in pairs { model = "tiny-qwen2", adapter = "tiny-adapter" } do
        os.execute(("ln -s %s %s/%s"):format(core.realpath("tests/fixtures/" .. fixture), dir, name))
    end
    support.write(dir .. "/numbers.bin", ("\0\0\128\63"):rep(32))
    return dir
end

local SETUP = [[
t = qm.randn{32, 256, std = 0.02, seed = 1}
w, importance = t, qm.uniform{256, low = 0, high = 1, seed = 2}
q = t:quantize "nf4"
m = qm.open "model"
r = qm.compare(t, {"nf4", "q4_0"})
codebook = qm.codebook{-1, 0, 1, name = "three"}
]]

-- A line of an example that is an expression is shown at the prompt; here it is computed.
local function runnable(example)
    local out = {}
    local pending = ""
    for line in (example .. "\n"):gmatch "(.-)\n" do
        pending = pending .. line .. "\n"
        if loadstring("return " .. pending) and pending:find "%S" then
            out[#out + 1], pending = "do local _ = " .. pending .. " end\n", ""
        elseif loadstring("do " .. pending .. "\nend") then
            out[#out + 1], pending = pending, ""
        end
    end
    return table.concat(out) .. pending
end

local function needs_gpu(example)
    return example:find("GPU", 1, true) ~= nil
end

local T = {}

T["every public function has help: what it does, its parameters, an example"] = function()
    local lacking = {}
    for _, entry in ipairs(doc.registry()) do
        local d = doc.of(entry.run)
        local what = not d and "no --- comment before it" or d.summary == "" and "no summary" or not d.example
            and "no example (lines indented by four blanks after ---)"
        if not what then
            local named = {}
            for _, p in ipairs(d.params) do
                named[p.name:gsub("%?$", "")] = true
            end
            for name in d.signature:match "%((.*)%)":gmatch "[%w_]+" do
                if not named[name] and name ~= "self" then
                    what = "no ---@param for " .. name
                end
            end
        end
        if what then
            lacking[#lacking + 1] = entry.name .. ": " .. what
        end
    end
    assert(#lacking == 0, "\n  " .. table.concat(lacking, "\n  "))
end

T["every example runs"] = function()
    local dir = world()
    local script = { "local failed = {}" }
    for _, entry in ipairs(doc.registry()) do
        local d = doc.of(entry.run)
        if d and d.example and not (needs_gpu(d.example) and core.cuda_count() == 0) then
            script[#script + 1] = SETUP .. ("do local ok, why = pcall(function()\n%s\nend) if not ok then failed[#failed + 1] = %q .. tostring(why) end end"):format(
                runnable(d.example), entry.name .. ": ")
        end
    end
    script[#script + 1] = "io.stderr:write(table.concat(failed, '\\n'), '\\n') os.exit(#failed > 0 and 1 or 0, true)"
    support.write(dir .. "/examples.lua", "qm = require 'qmoon'\n" .. table.concat(script, "\n") .. "\n")
    local program = core.realpath(arg[-1])
    local pipe = io.popen(("cd %s && %s -e 'dofile \"examples.lua\"' 2>&1 >/dev/null; echo \"status $?\""):format(dir, program))
    local out = pipe:read "*a"
    pipe:close()
    assert(out:find "status 0", "\n" .. out)
end

-- Calls with something that fits no parameter, one place after the other.
local function wrong_calls(entry)
    local odd = setmetatable({}, { __tostring = function() return "odd" end })
    local is_method = entry.name:find(":", 1, true)
    local object = ({ t = qm.randn { 4, 64 }, m = qm.open "tests/fixtures/tiny-qwen2",
                      r = qm.compare(qm.randn { 4, 64 }, { "nf4" }), codebook = qm.codebook { -1, 0, 1 } })[entry.name:match "^%w+"]
    local calls = {}
    if is_method then
        calls[1] = { what = "without an object", pcall(entry.run) }
    end
    local d = doc.of(entry.run)
    for i = 1, d and #d.params or 0 do
        if not d.params[i].type:find "^any" then
            local arguments, n = {}, i + (is_method and 1 or 0)
            arguments[n] = i % 2 == 0 and newproxy(true) or io.stdout
            if is_method then
                arguments[1] = object
            end
            calls[#calls + 1] = { what = "with a " .. type(arguments[n]) .. " as " .. d.params[i].name,
                                  pcall(entry.run, unpack(arguments, 1, n)) }
        end
    end
    assert(odd)
    return calls
end

T["every wrong argument is an error in one line that is about the argument"] = function()
    local failed = {}
    for _, entry in ipairs(doc.registry()) do
        for _, call in ipairs(wrong_calls(entry)) do
            local e = call[2]
            local message = type(e) == "table" and e.message or tostring(e)
            local what
            if call[1] then
                what = "is no error"
            elseif message:find "\n" then
                what = "is more than one line"
            elseif message:find "attempt to" then
                what = "fails inside: " .. message
            end
            if what then
                failed[#failed + 1] = ("%s %s %s"):format(entry.name, call.what, what)
            end
        end
    end
    assert(#failed == 0, "\n  " .. table.concat(failed, "\n  "))
end

T["topics name functions that there are"] = function()
    local names = {}
    for _, entry in ipairs(doc.registry()) do
        names[entry.name] = true
    end
    local topics = require "qmoon.help_topics"
    support.equal(#topics, 12)
    for _, t in ipairs(topics) do
        for _, name in ipairs(t.see) do
            assert(names[name], t.name .. ": " .. name)
        end
    end
end

T["help on every name there is"] = function()
    local help = require "qmoon.help"
    for _, name in ipairs(help.names()) do
        local text = help.text(name)
        assert(#text > 20, name .. ": " .. text)
    end
end

return T
