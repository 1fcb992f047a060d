-- host: the command line of the program itself.  Everything else is a script or a command.

local core = require "qmoon.core"
local nearest = require "qmoon.nearest"

local USAGE = [[
usage: qmoon [options] [script | command] [arguments]

  qmoon COMMAND args      run a command: %s
  qmoon FILE.lua args     run a script (a name with '/' or ending in .lua); arg[1] … are its arguments
  qmoon -                 run the script on standard input
  qmoon                   a prompt

  -e CODE    run this code            -l NAME   require this module
  -i         a prompt afterwards      -v        version
  --         end of options           --help    this text; also after any COMMAND
  --color=auto|always|never           --no-init the prompt runs no init.lua first
  --log=FILE the prompt's session as a script that does it again
]]

local function commands()
    local names = {}
    for _, m in ipairs(core.modules "command:") do
        names[#names + 1] = m:sub(#"command:" + 1)
    end
    return names
end

-- Scripts run strict: reading a global that was never set is an error that guesses what was meant.
local function strict_globals()
    setmetatable(_G, {
        __index = function(_, name)
            local names = {}
            for k in pairs(_G) do
                names[#names + 1] = tostring(k)
            end
            local guess = nearest(tostring(name), names)
            error(("global '%s' was never set%s"):format(tostring(name),
                guess and ("; did you mean '%s'?"):format(guess) or ""), 2)
        end,
    })
end

-- An error as one line for people; the traceback is for errors of the program or the script's own code.
local function handler(e)
    if type(e) == "table" and e.message then
        return e
    end
    return { kind = "fail", code = 1, message = tostring(e), traceback = debug.traceback("", 2) }
end

local function report(e)
    if type(e) ~= "table" then -- out of memory: there was none to call the handler
        e = { code = 1, message = tostring(e) }
    end
    io.stdout:flush()
    io.stderr:write("error: ", e.message, "\n")
    if e.traceback and os.getenv "QMOON_TRACEBACK" then
        io.stderr:write(e.traceback, "\n")
    end
    return e.code
end

local function run(chunk, ...)
    local args = { n = select("#", ...), ... }
    local ok, e = xpcall(function()
        return chunk(unpack(args, 1, args.n))
    end, handler)
    if ok then
        return type(e) == "number" and e or 0
    end
    return report(e)
end

local function set_arg(argv, first)
    local arg = {}
    for i = 0, #argv do
        arg[i - first] = argv[i]
    end
    rawset(_G, "arg", arg)
    return unpack(argv, first + 1)
end

local function load_file(path)
    local chunk, why
    if path == "-" then
        local text = io.read "*a"
        chunk, why = loadstring((text:gsub("^#[^\n]*", "")), "=stdin")
    else
        local s = core.stat(path)
        if not s or s.type ~= "file" then
            core.fail("usage", "%s: no such script; a command is named without '/' and '.lua' (qmoon --help lists them)", path)
        end
        chunk, why = loadfile(path)
    end
    if not chunk then
        core.fail("fail", "%s", why)
    end
    return chunk
end

local function load_command(name)
    local text, path = core.source("command:" .. name)
    if not text then
        local guess = nearest(name, commands())
        core.fail("usage", "no command '%s'%s; qmoon --help lists them", name,
            guess and (" (did you mean '%s'?)"):format(guess) or "")
    end
    return assert(loadstring(text, "@" .. path))
end

local WHEN = { auto = true, always = true, never = true }

-- Long options with a value: --log=FILE or --log FILE.
local function take_long(o, name, value)
    if name == "log" then
        o.log = value
    elseif not WHEN[value] then
        core.fail("usage", "--color wants auto, always or never, not '%s'", value)
    else
        require("qmoon.terminal").set_colour(value)
    end
end

-- Options before the script's name; returns what was asked for.
local function parse(argv)
    local o, i = { run = {} }, 1
    local function value(letter)
        local rest = argv[i]:sub(3)
        if rest ~= "" then
            return rest
        end
        i = i + 1
        return argv[i] or core.fail("usage", "option -%s needs a value", letter)
    end
    while i <= #argv do
        local a = argv[i]
        if a == "-" or a:sub(1, 1) ~= "-" then
            break
        elseif a == "--" then
            i = i + 1
            break
        elseif a == "--help" or a == "-h" then
            o.help = true
        elseif a == "--version" or a == "-v" then
            o.version = true
        elseif a == "-i" then
            o.interactive = true
        elseif a == "--no-init" then
            o.no_init = true
        elseif a:find "^%-%-color%f[=%z]" or a:find "^%-%-log%f[=%z]" then
            local name, given = a:match "^%-%-(%a+)=(.*)$"
            if not given then
                name, i = a:sub(3), i + 1
                given = argv[i] or core.fail("usage", "option %s needs a value", a)
            end
            take_long(o, name, given)
        elseif a:sub(1, 2) == "-e" then
            o.run[#o.run + 1] = { code = value "e" }
        elseif a:sub(1, 2) == "-l" then
            o.run[#o.run + 1] = { module = value "l" }
        else
            core.fail("usage", "unknown option %s; qmoon --help lists them", a)
        end
        i = i + 1
    end
    o.script = i <= #argv and i or nil
    return o
end

local function version()
    return ("qmoon %s  %s  %d threads %s"):format(core.version, jit.version, core.cpus(), core.simd())
end

local function start(argv)
    local o = parse(argv)
    if o.help then
        io.write(USAGE:format(table.concat(commands(), " ")))
        return 0
    end
    if o.version then
        print(version())
        if not (o.interactive or o.script or o.run[1]) then
            return 0
        end
    end
    rawset(_G, "qm", require "qmoon")
    set_arg(argv, o.script or #argv + 1)
    for _, r in ipairs(o.run) do
        local chunk
        if r.module then
            chunk = function()
                rawset(_G, r.module, require(r.module))
            end
        else
            local why
            chunk, why = loadstring(r.code, "=-e")
            if not chunk then
                core.fail("fail", "%s", why)
            end
        end
        local status = run(chunk)
        if status ~= 0 then
            return status
        end
    end
    local status = 0
    if o.script then
        local name = argv[o.script]
        local is_file = name == "-" or name:find("/", 1, true) or name:find "%.lua$"
        local chunk = is_file and load_file(name) or load_command(name)
        if is_file then
            strict_globals()
        end
        status = run(chunk, set_arg(argv, o.script))
    end
    if o.interactive or not (o.script or o.run[1] or o.version) then
        if core.terminal(0) or o.interactive then
            require("qmoon.repl").run(o)
            return 0
        end
        strict_globals()
        return run(load_file "-")
    end
    return status
end

---@param argv string[] as C has it, [0] being the program
---@return integer exit status
return function(argv)
    local ok, status = xpcall(start, handler, argv)
    return ok and status or report(status)
end
