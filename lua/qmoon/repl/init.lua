--- The prompt: reads a chunk, runs it, shows what it gives.
--
-- On a terminal lines are edited; elsewhere, and on a terminal that cannot move its cursor, they are read as they
-- come.  Chunks that are typed are interpreted, not compiled: LuaJIT's compiled loops cannot be interrupted.

local core = require "qmoon.core"
local advice = require "qmoon.repl.advice"
local commands = require "qmoon.repl.commands"
local history = require "qmoon.repl.history"
local show = require "qmoon.repl.show"
local terminal = require "qmoon.terminal"
local layout = require "qmoon.text"

local repl = {}

local KEPT = 20 -- values that _1, _2 … hold on to
local PROMPT, MORE = "qmoon> ", "    >> "

---@class qmoon.Session
---@field input fun(prompt: string): string?, string?   a line, or nil and "end" or "interrupt"
---@field inputs string[]
---@field quiet boolean        no prompt is shown
---@field timing boolean
---@field count integer        values shown so far
---@field log qmoon.Log?
---@field traceback string?    of the last error
---@field ended boolean

-- ---- chunks -------------------------------------------------------------------------------------------------------

--- A chunk to run.  nil: the text is unfinished; nil and a message: it is no Lua.
---@param text string
---@return function? chunk
---@return string? problem
---@return string? expression the text without '=' or 'return', if it is one
function repl.compile(text)
    local name = "=prompt"
    local expression = text:gsub("^%s*=", ""):gsub("^%s*return%f[^%w_]%s*", "")
    local chunk, why = loadstring("return " .. expression, name)
    if chunk then
        return chunk, nil, (expression:gsub(";%s*$", ""))
    end
    local chunk2, why2 = loadstring(text, name)
    if chunk2 then
        return chunk2
    elseif why2:find "'<eof>'$" or why:find "'<eof>'$" and text:find "^%s*=" then
        return nil
    elseif why:find "'<eof>'$" and not why2:find "'='? ?expected near" then
        return nil
    end
    return nil, why2
end

-- ---- errors ---------------------------------------------------------------------------------------------------------

local function is_own(source)
    return source:find "^@lua/qmoon/" ~= nil or source:find "^=%[C%]" ~= nil or source == "=[C]"
end

-- Frames of the user's own functions between the error and the prompt: "in function f (file:line)".
local function user_frames(level)
    local frames = {}
    for i = level, level + 40 do
        local f = debug.getinfo(i, "Snlf")
        if not f or f.func == repl.evaluate then
            break
        elseif not is_own(f.source) and f.what ~= "main" and f.name and f.name ~= "chunk" and f.currentline > 0 then
            frames[#frames + 1] = ("  in function '%s' (%s:%d)"):format(f.name, f.short_src, f.currentline)
        end
    end
    return frames
end

-- Where in the chunk is only worth saying when there are several lines of it.
local function plain_message(message, text)
    message = message:gsub("^lua/qmoon/repl/init%.lua:%d+: ", "") -- what error() adds to a call that is all of a chunk
    local line, rest = message:match "^prompt:(%d+): (.*)$"
    if not line then
        return message
    end
    return text:find "\n" and ("line %s: %s"):format(line, advice.of(rest)) or advice.of(rest)
end

local function handler(text)
    return function(e)
        local is_object = type(e) == "table" and e.message ~= nil
        local message = is_object and e.message or plain_message(type(e) == "string" and e or tostring(e), text)
        return { kind = is_object and e.kind or "fail", message = message, code = is_object and e.code or 1,
                 traceback = message .. "\n" .. debug.traceback("", 2):gsub("^\n", ""), frames = user_frames(3) }
    end
end

-- Variables that a chunk set before it was stopped.
local function kept(before)
    local names = {}
    for k, v in next, _G do
        if type(k) == "string" and before[k] ~= v then
            names[#names + 1] = k
        end
    end
    table.sort(names)
    return #names == 0 and "nothing was changed" or "kept: " .. table.concat(names, ", ", 1, math.min(#names, 6))
end

local function variables()
    local copy = {}
    for k, v in next, _G do
        copy[k] = v
    end
    return copy
end

local function print_error(session, e, before)
    io.stdout:flush()
    session.traceback = e.traceback
    if e.kind == "interrupt" then
        local line = ("^C interrupted (%s)\n"):format(kept(before))
        -- the terminal has written "^C" where the cursor is
        io.stderr:write(core.terminal(2) and terminal.cursor() and "\r\27[K" or core.terminal(2) and "\n" or "", line)
        return
    end
    io.stderr:write(terminal.paint("error:", "red", 2), " ", terminal.text(e.message), "\n")
    for i, frame in ipairs(e.frames or {}) do
        if i <= 5 then
            io.stderr:write(terminal.text(frame), "\n")
        end
    end
end

-- ---- values -----------------------------------------------------------------------------------------------------------

-- Keeps values under _1, _2 … and the first of them under _; shows them unless told not to.
local function take_values(session, values, silent)
    local names, shown = {}, {}
    for i = 1, values.n do
        local value = values[i]
        if value ~= nil then
            session.count = session.count + 1
            names[#names + 1] = "_" .. session.count
            rawset(_G, "_" .. session.count, value)
            rawset(_G, "_" .. (session.count - KEPT), nil)
            if not silent then
                shown[#shown + 1] = show.text(value)
            end
        end
    end
    if names[1] then
        rawset(_G, "_", rawget(_G, names[1]))
    end
    return names, table.concat(shown, "\n")
end

local function pack(...)
    return { n = select("#", ...), ... }
end

local function log(session, text, entry)
    if session.log then
        local ok, why = pcall(session.log.add, session.log, text, entry)
        if not ok then
            session.log = nil
            io.stderr:write("warning: the log ended: ", tostring(why), "\n")
        end
    end
end

--- Runs a chunk and shows its values; returns false when it failed.
---@param session qmoon.Session
---@param text string
---@param options? {time: boolean?}
---@return boolean
function repl.evaluate(session, text, options)
    local chunk, problem, expression = repl.compile(text)
    if not chunk then
        local message = problem and plain_message(problem, text) or "the chunk is not finished"
        print_error(session, { kind = "fail", message = message, traceback = message })
        log(session, text, { lua = true, failed = "error: " .. message })
        return false
    end
    jit.off(chunk, true)
    local silent = text:find ";%s*$" ~= nil
    local before, started = variables(), core.now()
    core.uninterrupt()
    local names, shown
    local ok, e = xpcall(function()
        local values = pack(chunk())
        names, shown = take_values(session, values, silent)
        if shown ~= "" then
            print(shown)
        end
        if expression and values.n == 1 and values[1] == nil and not silent and expression:find "^%s*[%a_][%w_]*%s*$"
            and expression:match "%S+" ~= "nil" then
            print(terminal.text(" " .. advice.of_nil(expression:match "%S+")))
        end
    end, handler(text))
    core.uninterrupt()
    if not ok then
        print_error(session, e, before)
        log(session, text, { lua = true, failed = "error: " .. e.message })
        return false
    end
    if session.timing or options and options.time then
        print((" %.3f s"):format(core.now() - started))
    end
    log(session, expression or text, { lua = true, names = expression and names, shown = shown })
    return true
end

-- ---- lines for the prompt itself ----------------------------------------------------------------------------------

-- Reads a name such as "t.quantize" without running anything of the user's.
local function value_named(name)
    local value = _G
    for piece in name:gmatch "[^%.:]+" do
        local meta = value ~= _G and debug.getmetatable(value)
        local index = meta and rawget(meta, "__index")
        local found = type(value) == "table" and rawget(value, piece) or nil
        if found == nil and type(index) == "table" then
            found = rawget(index, piece)
        end
        if found == nil then
            return nil
        end
        value = found
    end
    return value
end

local function explain(line)
    local help = require "qmoon.help"
    local marks, name = line:match "^(%?*)%s*(.-)%s*$"
    name = name:gsub("%?+$", function(tail)
        marks = marks .. tail
        return ""
    end)
    local value = value_named(name)
    if #marks > 1 then
        return help.source(name, value)
    end
    return help.text(name, value)
end

local function shell(line)
    os.execute(line:sub(2))
end

--- Lines that are not Lua: ?help, :commands and !shell commands.  Returns nil for others.
local function special(line)
    if line:find "^%?" or (line:find "^[%w_%.:]+%?%??$") then
        return explain
    elseif line:find "^:" then
        return commands.run
    elseif line:find "^!" then
        return shell
    end
end

local function run_special(session, run, line)
    local ok, e = xpcall(function()
        local shown = run == commands.run and run(session, line) or run ~= commands.run and run(line) or nil
        if shown and shown ~= "" then
            local columns = terminal.columns()
            print(terminal.text(columns and layout.fold(shown, columns) or shown))
        end
    end, handler(line))
    if not ok then
        print_error(session, e, variables())
    end
    log(session, line, { lua = false })
    return ok
end

-- ---- reading ------------------------------------------------------------------------------------------------------------

-- A line, and more lines while the chunk is unfinished.  nil and "end" when there are no more; "" after Ctrl-C.
local function read_chunk(session)
    local text
    while true do
        local line, why = session.input(text and MORE or PROMPT)
        if not line then
            if why == "interrupt" then
                return ""
            end
            return text, text and nil or "end"
        elseif not text and special(line) then
            return line
        elseif text and line:find "^%s*%.%s*$" then -- a lone '.' abandons the chunk
            return ""
        end
        text = text and text .. "\n" .. line or line
        local chunk, problem = repl.compile(text)
        if chunk or problem or not text:find "%S" then
            return text
        end
    end
end

-- Prompts in colour: escapes lie between \1s, so that the editor does not count them; it keeps those only that a
-- character follows, here the blank.
local function edited_input(add, entries)
    local editor = core.editor(require("qmoon.repl.complete").line)
    for _, entry in ipairs(entries) do
        editor:remember(entry)
    end
    local colour = terminal.colour(1)
    local function input(prompt)
        io.stdout:flush()
        return editor:read(colour and ("\1\27[1;34m\1%s\1\27[0m\1 "):format(prompt:gsub(" $", "")) or prompt)
    end
    return input, function(entry)
        editor:remember(entry)
        add(entry)
    end
end

local function plain_input(quiet)
    return function(prompt)
        if not quiet then
            io.write(prompt)
        end
        io.flush()
        core.uninterrupt()
        local line = io.read "*l"
        if not line and core.interrupted() then
            core.uninterrupt()
            io.write "\n"
            return nil, "interrupt"
        end
        return line, line and nil or "end"
    end
end

-- Loops in files that are run from the prompt must be stoppable, too.
local function interpret_loaded()
    for _, name in ipairs { "loadstring", "load", "loadfile" } do
        local plain = _G[name]
        rawset(_G, name, function(...)
            local chunk, why = plain(...)
            if chunk then
                jit.off(chunk, true)
            end
            return chunk, why
        end)
    end
    rawset(_G, "dofile", function(path)
        return assert(loadfile(path))()
    end)
end

-- os.exit typed at the prompt ends the session well: nothing is left behind that a crash would leave.
local function end_on_exit(finish)
    local exit = os.exit
    rawset(os, "exit", function(status)
        finish()
        exit(status, true)
    end)
end

-- ---- running ------------------------------------------------------------------------------------------------------------

local function banner()
    local gpus = core.cuda_count()
    local simd = ({ avx512 = " AVX-512", avx2 = " AVX2" })[core.simd()] or ""
    print(terminal.text(("qmoon %s  %s · %d thread%s%s · %s"):format(core.version:match "^%d+%.%d+", jit.version:match "^LuaJIT %d+%.%d+",
        core.cpus(), core.cpus() == 1 and "" or "s", simd,
        gpus == 0 and "no CUDA device" or ("%d CUDA device%s"):format(gpus, gpus == 1 and "" or "s"))))
    print "?  help   ?tour  two-minute tour   ^C stop   ^D quit"
end

local function run_init(session, path)
    local chunk, why = loadfile(path)
    local ok, e = true, nil
    if chunk then
        ok, e = xpcall(chunk, handler "")
    end
    if not chunk or not ok then
        io.stderr:write("warning: ", chunk and e.message or why, "\n")
    end
end

--- The file that runs before the first prompt, if there is one.
local function init_file()
    local named = os.getenv "QMOON_INIT"
    if named and named ~= "" then
        return named
    end
    local config, home = os.getenv "XDG_CONFIG_HOME", os.getenv "HOME"
    local folder = config and config ~= "" and config or home and home .. "/.config"
    local path = folder and folder .. "/qmoon/init.lua"
    return path and core.stat(path) and path or nil
end

local function loop(session, note)
    while not session.ended do
        local text, why = read_chunk(session)
        if why == "end" then
            break
        end
        local line = text:find "%S" and text
        if line then
            session.inputs[#session.inputs + 1] = line
            session.remember(line)
            local run = special(line)
            if run then
                run_special(session, run, line)
            else
                note(line)
                repl.evaluate(session, line)
            end
        end
    end
end

--- Reads and runs until the end of the input.
---@param options {log: string?, no_init: boolean?}
function repl.run(options)
    local interactive = core.terminal(0) ~= nil
    local edited = interactive and core.terminal(1) and terminal.cursor()
    local entries, add = {}, function() end
    local rescued, note, finish = nil, add, add
    if interactive then
        entries, add = history.open()
        rescued, note, finish = history.guard()
    end
    local session = { inputs = {}, timing = false, count = 0, quiet = not interactive }
    function session.run(text, more)
        return repl.evaluate(session, text, more)
    end
    if edited then
        session.input, session.remember = edited_input(add, entries)
    else
        session.input, session.remember = plain_input(session.quiet), add
    end
    if options.log then
        session.log = require("qmoon.repl.log").open(options.log)
    end
    if interactive then
        banner()
        if rescued then
            print(terminal.text((" a session ended without saying so; its inputs are in %s"):format(rescued)))
        end
    end
    interpret_loaded()
    end_on_exit(finish)
    local init = not options.no_init and interactive and init_file()
    if init then
        run_init(session, init)
    end
    loop(session, note)
    if interactive and not session.ended and not edited then
        io.write "\n"
    end
    finish()
    if session.log then
        session.log:close()
    end
end

return repl
