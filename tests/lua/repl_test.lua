-- The prompt, on a terminal of its own: what is typed key by key, and what the screen shows then.

local core = require "qmoon.core"
local support = dofile "tests/lua/support.lua"
local equal = support.equal

local PROGRAM = core.realpath(arg[-1])
local PTY = PROGRAM:match "^(.*)/" .. "/pty"
local MODEL = core.realpath "tests/fixtures/tiny-qwen2"

-- A folder that is HOME and the current one, with the model in it.
local function home()
    local dir = support.scratch()
    core.mkdir(dir)
    os.execute(("ln -s %s %s/model"):format(MODEL, dir))
    return dir
end

local function quote(s)
    return "'" .. s:gsub("'", "'\\''") .. "'"
end

-- Runs the program on a terminal; steps are those of tests/pty/pty.c.  Returns what that prints.
local function play(steps, o)
    o = o or {}
    local dir = o.home or home()
    local env = { "PATH=" .. os.getenv "PATH", "HOME=" .. (o.HOME or dir), "TERM=" .. (o.term or "xterm"), o.env or "LANG=C.UTF-8" }
    local script = os.tmpname()
    support.write(script, table.concat(steps, "\n") .. "\n")
    local pipe = io.popen(("cd %s && env -i %s %s %d %d %s %s <%s 2>&1"):format(dir, table.concat(env, " "), PTY, o.columns or 80,
        o.rows or 100, PROGRAM, o.args or "", script))
    local out = pipe:read "*a"
    pipe:close()
    os.remove(script)
    return out, dir
end

-- Types lines, each after the one before it has been answered; the screen without the banner.  "@STEP" is a step of
-- pty's, after which it waits until nothing more comes; after "@@STEP" until a line is read again.
local function session(lines, o)
    local steps = { "wait qmoon>" }
    for _, line in ipairs(lines) do
        steps[#steps + 1] = line:find "^@" and line:gsub("^@+", "") or "type " .. line:gsub("\\", "\\\\") .. "\\r"
        steps[#steps + 1] = (line:find "^@%w" or o and o.term == "dumb") and "quiet" or "answer"
    end
    steps[#steps + 1] = o and o.raw and "raw" or "screen"
    local out, dir = play(steps, o)
    return (out:gsub("^qmoon [^\n]*\n%?  help[^\n]*\n", ""):gsub("%-%-\n$", "")), dir
end

local function has(text, ...)
    for _, part in ipairs { ... } do
        if not text:find(part, 1, true) then
            error(("'%s' is not in:\n%s"):format(part, text), 2)
        end
    end
end

local function lacks(text, ...)
    for _, part in ipairs { ... } do
        if text:find(part, 1, true) then
            error(("'%s' is in:\n%s"):format(part, text), 2)
        end
    end
end

local T = {}

local STORY = {
    "t = qm.randn{1024, 1024, std=0.02, seed=1}",
    "t",
    'q = t:quantize "nf4"',
    "q",
    'qm.compare(t, {"int8", "q4_0", "nf4", "nf4:dq", "int4", "fp4"})',
    'mine = qm.codebook{name="mine", -1, -0.7, -0.5, -0.3, 0, 0.3, 0.5, 1, block=64}',
    'qm.compare(t, {"nf4", mine})',
    'm = qm.open "model"',
    "m",
    'm:report("nf4", {match="down_proj"}):worst(3)',
    't:quantise "nf4"',
}

local SCREEN = [[
qmoon> t = qm.randn{1024, 1024, std=0.02, seed=1}
qmoon> t
f32 [1024 x 1024] 4.00 MiB cpu  min -0.0977 max 0.0965
  mean -4.4e-05 std 0.02002  ▁▁▁▅█▅▂▁▁
qmoon> q = t:quantize "nf4"
qmoon> q
nf4 [1024 x 1024] block 64 · codes 512 KiB + scales 64 KiB · 4.500 bits/weight
  7.11x smaller than f32  ▁▁▁▅█▅▁▁▁
qmoon> qm.compare(t, {"int8", "q4_0", "nf4", "nf4:dq", "int4", "fp4"})
 format  block  scale  bits/w      rmse     max|e|  SQNR dB   cosine
 int8      row  f32     8.031  1.57e-04  0.0003937    42.10  0.99997
 q4_0       32  f16     4.500  1.72e-03   0.009033    21.32  0.99631
 nf4        64  f32     4.500  1.84e-03    0.01126    20.74  0.99578
 nf4:dq     64  u8      4.127  1.84e-03    0.01112    20.73  0.99578
 int4       64  f32     4.500  2.15e-03   0.006785    19.37  0.99427
 fp4        64  f32     4.500  2.44e-03    0.01255    18.28  0.99258
]]

T["the storyboard's session, line by line"] = function()
    local screen = session(STORY)
    equal(screen:sub(1, #SCREEN), SCREEN, "the screen begins with")
    has(screen, "error: tensor has no method 'quantise'; did you mean 'quantize'?\n", "qwen2 · 2.888 M parameters")
    has(screen, "layers.0.mlp.down_proj  nf4", "mine       64  f32     3.500")
    for line in screen:gmatch "[^\n]+" do
        assert(require("qmoon.text").width(line) <= 80, line)
    end
end

T["the same in ASCII, and in colour"] = function()
    local utf8 = session(STORY)
    local ascii = session(STORY, { env = "LC_ALL=C" })
    lacks(ascii, "·", "▁", "█")
    has(ascii, "4.500 bits/weight", " | codes 512 KiB + scales 64 KiB | ")
    equal(ascii:find "[\128-\255]", nil)
    local raw = session({ "1+1", "nosuch.x" }, { raw = true, env = "FORCE_COLOR=1" })
    has(raw, "\\e[1;34mqmoon>\\e[0m ", "\\e[31merror:\\e[0m")
    equal(session({ "1+1", "x=5", "x" }, { env = "FORCE_COLOR=1" }), session { "1+1", "x=5", "x" })
    local plain = session({ "1+1", "nosuch.x" }, { raw = true, env = "NO_COLOR=1" })
    lacks(plain, "\\e[1;34m", "\\e[31m")
    has(session({ "1+1", "nosuch.x" }, { raw = true, env = "NO_COLOR=" }), "\\e[31m")
    assert(#utf8 > 0)
end

T["values are shown, kept in _, _1, _2, and silenced by ';'"] = function()
    local screen = session { "1+1", "x=5", "=x", "return x, 6", "_", "_1", "_3 + 1", "x = 7; x;", "x + 1;", "_", "nil", "false", "'a\\nb'" }
    equal(screen, [[
qmoon> 1+1
2
qmoon> x=5
qmoon> =x
5
qmoon> return x, 6
5
6
qmoon> _
5
qmoon> _1
2
qmoon> _3 + 1
6
qmoon> x = 7; x;
error: '=' expected near ';'
qmoon> x + 1;
qmoon> _
6
qmoon> nil
qmoon> false
false
qmoon> 'a\nb'
a
b
qmoon>
]])
end

T["an unfinished chunk asks for more, and is one entry of the history"] = function()
    local screen = session { "for i = 1, 2 do", "print(i * 100)", "end", "@type \\e[A", "@type \\r", "f = function(", "." , "1 +",
                             "@type \\x03", "2 + 2" }
    equal(screen, [[
qmoon> for i = 1, 2 do
    >> print(i * 100)
    >> end
100
200
qmoon> for i = 1, 2 do
print(i * 100)
end
100
200
qmoon> f = function(
    >> .
qmoon> 1 +
    >> ^C
qmoon> 2 + 2
4
qmoon>
]])
end

T["a pasted block runs once, as one chunk"] = function()
    local screen = session { "@type \\e[200~for i = 1, 2 do\\n  x = i * 7\\nend\\nprint('x is', x)\\e[201~", "@type \\r", "x",
                             "@type \\e[200~print 'one'\\rprint 'two'\\r\\e[201~", "@type \\e[200~3 * \\e[201~4\\r" }
    equal(screen, [[
qmoon> for i = 1, 2 do
  x = i * 7
end
print('x is', x)
x is    14
qmoon> x
14
qmoon> print 'one'
print 'two'
one
two
qmoon> 3 * 4
12
qmoon>
]])
end

T["UTF-8 can be typed and edited without any locale"] = function()
    for _, env in ipairs { "A=1", "LC_ALL=C" } do
        local screen = session({ "s = 'héllo·x'", "#s", "@type s = 'äö\\x7f'\\r", "#s" }, { env = env })
        has(screen, "qmoon> #s\n9\n", "qmoon> #s\n2\n")
    end
end

T["Tab completes fields, methods, formats, tensors, paths and commands"] = function()
    local screen = session { "t = qm.randn{4, 64}", 'm = qm.open "model"', "@type qm.rand\\t{4}:info().count\\r", "@type t:quan\\t\\t", "@type \\x03",
                             '@type t:quantize "nf\\t\\r', '@type m:tensor "model.layers.2.mlp.d\\t\\r',
                             '@type qm.open "mod\\tconf\\t\\r', "@type :his\\t\\r", "@type str\\t.form\\t('%d', 3)\\r",
                             "@type mode = {modus = 4}\\r", "@type mode.mo\\t\\r", "@type ?codeb\\t", "@type \\x03", "@type qm.plot.rul\\t{'nf4'}\\r",
                             '@type m:tensor "s.3.mlp.up\\t\\r' }
    has(screen, "qmoon> qm.randn{4}:info().count\n4\n", "qmoon> t:quantize \"nf4\"\nnf4 [4 x 64]",
        'm:tensor "model.layers.3.mlp.up_proj.weight"\nbf16 [512 x 256]',
        'm:tensor "model.layers.2.mlp.down_proj.weight"\nbf16 [256 x 512]', 'qm.open "model/config.json"', "qmoon> :history",
        "string.format('%d', 3)\n3\n", "mode.modus\n4", "quantile", "?codebook", "qm.plot.rulers{'nf4'}\n Levels")
end

T["completion lists a choice, a dozen lines at most, and calls nothing of the user's"] = function()
    local screen = session {
        "bait = setmetatable({}, {__index = function() print 'called' return {} end})", "@type bait.x.\\t\\t", "@type \\x03",
        "for i = 1, 200 do _G['name_of_some_length_' .. i] = i end", "@type name_\\t\\t", "@type \\x03",
    }
    lacks(screen, "\ncalled")
    has(screen, "name_of_some_length_1 ", "more")
    local _, lines = screen:gsub("\n", "")
    assert(lines < 30, screen)
end

T["history goes from session to session, but not what begins with a blank, nor tokens"] = function()
    local dir = home()
    session({ "first = 1", " hidden = 2", "token = 'hf_abcdefghijklmnop'", "two = {", "2 }", "@type \\x04" }, { home = dir })
    local path = dir .. "/.local/state/qmoon/history"
    equal(support.read(path), "first = 1\ntwo = {\\n2 }\n")
    local pipe = io.popen("stat -c %a " .. path)
    equal(pipe:read "*l", "600")
    pipe:close()
    has(session({ "@type fi\\e[A\\r", "first" }, { home = dir }), "qmoon> first = 1\n", "qmoon> first\n1\n")
    has(session({ "@type \\x12two\\r", "#two" }, { home = dir }), "qmoon> #two\n1")
end

T["Ctrl-C stops loops in Lua and work in C, and says what was kept"] = function()
    local screen = session {
        "@type while true do end\\r", "@@type \\x03", "@type x = 1 while true do x = x + 1 end\\r", "@@type \\x03",
        "f = function() for i = 1, 1e12 do end end", "@type f()\\r", "@@type \\x03",
        "a = qm.randn{3000, 3000}", "'ready'", "@wait \\nready", "@type b = a:matmul(a)\\r", "@@type \\x03", "b", "1 + 1",
        "@type while true do pcall(error) end\\r", "@@type \\x03", "'still here'",
    }
    has(screen, "qmoon> while true do end\n^C interrupted (nothing was changed)\nqmoon> x = 1",
        "^C interrupted (kept: x)\n", "qmoon> f()\n^C interrupted (nothing was changed)\n",
        "b = a:matmul(a)\n^C interrupted (nothing was changed)\nqmoon> b\n b is nil\n", "qmoon> 1 + 1\n2\n", "still here")
end

T["errors are one line, with the user's frames; :tb has all"] = function()
    local screen = session { "prnt(1)", "t = qm.randn{2}", "t:quantize 'nf5'", "qm.randm{2}", "foo", "error 'own words'", "error{1}",
                             "function f(x) local y = x.z + 1 return y end", "function g() local v = f{} return v end", "g()", "m = qm.open 'nosuch'",
                             "x = = 2", "nosuch" }
    has(screen, "error: 'prnt' is nil: it was never set; did you mean 'print'?\n", "did you mean 'nf4'?",
        "error: there is no function 'randm'; did you mean 'randn'?\n", " foo is nil\n", "error: own words\n", "  in function 'f' (prompt:1)\n",
        "error: nosuch: there is no such file or folder\n", "error: unexpected symbol near '='\n")
    has(session { "local x = nil", "x.y.z = 1", ":tb" }, "stack traceback:")
end

T["prints are bounded, and say how much is left"] = function()
    local screen = session({ "t = {} for i = 1, 5000 do t[i] = i end", "t", "('x\\n'):rep(500)", "('y'):rep(20000)",
                             "{a={b={c={d={e={f={}}}}}}}", "('\\0\\1'):rep(40)" }, { rows = 200 })
    has(screen, "… +4970 more", "more lines; print(_) shows all", "16000 more characters", "e = {…}", "80 bytes: 00 01")
    local _, lines = screen:gsub("\n", "")
    assert(lines < 130, lines)
end

T["? explains topics, functions, methods and formats; ?? shows the source"] = function()
    local screen = session({ "?", "?nf4", "t = qm.randn{2}", "?t.quantize", "qm.randn?", "??qm.randn", "?nosuchthing", "?quantiz", "?tour" },
        { rows = 300 })
    has(screen, "?tensors ", "nf4: 4-bit normal float", "t:quantize(format, options)\nA quantised copy.", "qm.randn(spec)\nNormal values",
        "-- lua/qmoon/tensor.lua:", "error: no help on 'nosuchthing'", "did you mean ?quantize", "qm.sweep(t, {format=")
end

T["the tour runs"] = function()
    local lines = {}
    for i, step in ipairs(require("qmoon.help").tour) do
        lines[i] = step[1]
    end
    local screen = session(lines)
    lacks(screen, "error:")
    has(screen, "kmeans16", "f32 [512 x 512]")
end

T["commands: :mode, :digits, :width, :time, :history, :quit"] = function()
    local screen = session { "t = qm.randn{4, 64, seed=1}", ":mode csv", 'qm.compare(t, {"nf4"})', ":mode markdown", 'qm.compare(t, {"nf4"})',
                             ":mode box", 'qm.compare(t, {"nf4"})', ":mode plain", ":digits 3", "math.pi", ":digits", ":time 1 + 1",
                             ":time on", "2", ":ti off", ":mode cvs", ":nosuch", ":history 2" }
    has(screen, "format,block,scale,bits,rmse,max,sqnr,cosine\nnf4,64,f32,4.5,", "| format | block |", "┌", "3.14\n", "qmoon> :time 1 + 1\n2\n 0.0",
        "did you mean 'csv'?", "error: no command ':nosuch'", "'cvs'")
    equal((play { "wait qmoon>", "type :quit\\r", "end" }):match "status %d+", "status 0")
end

T[":save and :load keep tensors between sessions"] = function()
    local dir = home()
    session({ "keep = qm.randn{8, 8, seed=3}", ":save keep", ":save nothing" }, { home = dir })
    has(session({ ":load", ":load keep", "qm.error(keep, qm.randn{8, 8, seed=3})" }, { home = dir }), "kept: keep", "f32 [8 x 8]", "exact")
end

T["a session's log is a script that does the same again"] = function()
    local dir = home()
    session({ "x = 20", "x + 1", "local hidden = 3", "for i = 1, 2 do", "x = x + i", "end", "x, _", "nosuch.y", "?nf4", "!true", "_ * 2" },
        { home = dir, args = "--log=s.lua" })
    local pipe = io.popen(("cd %s && %s s.lua 2>&1"):format(dir, PROGRAM))
    equal(pipe:read "*a", "21\n23\t21\n46\n")
    pipe:close()
    has(support.read(dir .. "/s.lua"), "-- error: ", "-- qmoon> ?nf4", "-- 21")
    has(session({ ":log t.lua", "1 + 1", ":log off", "2 + 2" }, { home = dir }), "logging to t.lua")
    lacks(support.read(dir .. "/t.lua"), "2 + 2")
end

T["init.lua runs first, from the user's folder only, and may fail"] = function()
    local dir = home()
    core.mkdir(dir .. "/.config/qmoon")
    support.write(dir .. "/.config/qmoon/init.lua", "mine = 'from init'")
    support.write(dir .. "/init.lua", "evil = 1")
    has(session({ "mine", "evil" }, { home = dir }), "from init", "evil is nil")
    has(session({ "mine" }, { home = dir, args = "--no-init" }), "mine is nil")
    support.write(dir .. "/other.lua", "mine = 'other' error 'half way'")
    local out = play({ "wait qmoon>", "type mine\\r", "quiet", "screen" }, { home = dir, env = "QMOON_INIT=" .. dir .. "/other.lua" })
    has(out, "warning:", "half way", "other")
end

T["a terminal that cannot move its cursor gets plain lines"] = function()
    local raw = session({ "1+1", "nosuch.x", "'é'" }, { term = "dumb", raw = true })
    lacks(raw, "\\e")
    has(raw, "qmoon> ", "2", "error:")
    equal((play({ "wait qmoon>", "type \\x04", "end" }, { term = "dumb" })):match "status %d+", "status 0")
end

T["a home that cannot be written is no obstacle"] = function()
    has(session({ "1 + 1" }, { HOME = "/dev/null" }), "2\n")
    has(session({ "1 + 1" }, { HOME = "/nonexistent/place" }), "2\n")
end

T["input that is no terminal is a script: no banner, no prompt, the first error ends it"] = function()
    local status, text = support.run("", "print(1 + 1)\nnosuch()\nprint 'not here'\n")
    equal(status, 1)
    has(text, "2\n", "error: ")
    lacks(text, "not here", "qmoon>", "help")
    status, text = support.run("-i", "1 + 1\nnosuch()\n'still here'\n")
    equal(status, 0)
    lacks(text, "qmoon>", "help   ")
    has(text, "2\n", "still here")
end

T["the terminal is as it was after every way out"] = function()
    local out = play({ "wait qmoon>", "signal 15", "end", "raw" })
    has(out, "status 143", "\\e[?2004l")
    for _, way in ipairs { "type \\x04", "type os.exit(3)\\r" } do
        local dir
        out, dir = play({ "wait qmoon>", "type 1\\r", "answer", way, "end", "raw" })
        has(out, way:find "exit" and "status 3" or "status 0", "\\e[?2004l")
        equal(#core.list(dir .. "/.local/state/qmoon"), 1, "files left: history")
    end
end

T["inputs of a session that was killed are not lost"] = function()
    local dir = home()
    play({ "wait qmoon>", "type x = 1\\r", "quiet", "type y = {\\r", "quiet", "type 2}\\r", "quiet", "signal 9", "end" }, { home = dir })
    has(session({ "1", "@type \\x04" }, { home = dir, columns = 160 }), "its inputs are in ")
    has(support.read(dir .. "/.local/state/qmoon/qmoon-rescue.lua"), "x = 1\ny = {\n2}\n")
    equal(#core.list(dir .. "/.local/state/qmoon"), 2, "files left: history and qmoon-rescue.lua")
end

T["a resized terminal is used to its new width"] = function()
    local out = play({ "wait qmoon>", "resize 40 30", "quiet", "type qm.compare(qm.randn{64}, {'nf4'})\\r", "quiet", "screen" })
    for line in out:match("cosine.*$"):gmatch "[^\n]+" do
        assert(require("qmoon.text").width(line) <= 80)
    end
    has(out, "nf4")
end

-- Processor time, which other programs on the machine do not lengthen: of the prompt from start to end, and of the
-- terminal that it runs on.
T["the prompt is there in less than 50 ms"] = function()
    local dir, best = home(), math.huge
    local steps = os.tmpname()
    support.write(steps, "wait qmoon>\ntype \\x04\nend\n")
    for _ = 1, 5 do
        local pipe = io.popen(("cd %s && TIMEFORMAT='%%U %%S' HOME=%s TERM=xterm bash -c \"time %s 80 24 %s <%s >/dev/null\" 2>&1"):format(
            dir, dir, PTY, PROGRAM, steps))
        local user, system = pipe:read "*a":match "([%d.]+) ([%d.]+)"
        pipe:close()
        best = math.min(best, tonumber(user) + tonumber(system))
    end
    os.remove(steps)
    assert(best < (PROGRAM:find "san" and 1 or 0.05), ("%.3f s"):format(best))
end

return T
