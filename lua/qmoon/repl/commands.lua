--- What begins with ':' at the prompt.  A command may be shortened as long as only one begins so.

local core = require "qmoon.core"
local files = require "qmoon.files"
local history = require "qmoon.repl.history"
local log = require "qmoon.repl.log"
local nearest = require "qmoon.nearest"
local show = require "qmoon.repl.show"
local terminal = require "qmoon.terminal"
local text = require "qmoon.text"

local commands = {}

local MOST_SAVED = 64 * 2 ^ 20

local function whole(word, what, least)
    local n = tonumber(word)
    if not n or n < least or n ~= math.floor(n) then
        core.fail("usage", ":%s wants a whole number from %d on, or nothing, not '%s'", what, least, word)
    end
    return n
end

-- ---- keeping tensors ------------------------------------------------------------------------------------------------

local function saved_path(name)
    local folder = history.folder()
    if not folder then
        core.fail("fail", "there is no HOME to keep tensors in; t:save \"FILE.npy\" writes one anywhere")
    end
    core.mkdir(folder .. "/saved")
    return ("%s/saved/%s.safetensors"):format(folder, name)
end

local function check_name(name, what)
    if not name:find "^[%a_][%w_]*$" then
        core.fail("usage", ":%s wants the name of a variable, not '%s'", what, name)
    end
end

local function save(session, name)
    check_name(name, "save")
    local t = rawget(_G, name)
    local meta = type(t) == "userdata" and debug.getmetatable(t)
    if not meta or meta.__name ~= "qmoon.tensor" then
        core.fail("fail", ":save keeps tensors; '%s' is a %s", name, type(t))
    end
    local info = t:info()
    if 4 * info.count > MOST_SAVED then
        core.fail("fail", ":save keeps tensors up to %s, and %s has %s; t:save \"FILE.npy\" writes it where you want it",
            text.memory(MOST_SAVED), name, text.memory(4 * info.count))
    end
    local path = saved_path(name)
    files.write(path, require("qmoon.tensor").safetensors(name, t))
    return ("%s is kept%s; :load %s brings it back"):format(name, info.format ~= "f32" and " as f32" or "", name)
end

local function load_saved(session, name)
    if name == "" then
        local names = {}
        local folder = history.folder()
        local ok, list = pcall(core.list, (folder or "") .. "/saved")
        for _, file in ipairs(ok and list or {}) do
            names[#names + 1] = file:match "^(.*)%.safetensors$"
        end
        return #names > 0 and "kept: " .. table.concat(names, " ") or "nothing is kept yet; :save NAME keeps a tensor"
    end
    check_name(name, "load")
    local path = saved_path(name)
    if not core.stat(path) then
        core.fail("fail", "nothing is kept under '%s'; :load lists what is", name)
    end
    rawset(_G, name, require("qmoon.model").open(path):tensor(name))
    return tostring(rawget(_G, name))
end

-- ---- the commands -----------------------------------------------------------------------------------------------------

local function on_off(word, what)
    if word ~= "on" and word ~= "off" then
        core.fail("usage", ":%s wants on or off, not '%s'", what, word)
    end
    return word == "on"
end

local function mode(_, word)
    if word == "" then
        return "mode is " .. show.mode .. "; there are " .. table.concat(show.modes, " ")
    end
    for _, m in ipairs(show.modes) do
        if m == word then
            show.mode = word
            return nil
        end
    end
    local guess = nearest(word, show.modes)
    core.fail("usage", "no mode '%s'%s; there are %s", word, guess and (" (did you mean '%s'?)"):format(guess) or "",
        table.concat(show.modes, " "))
end

local function start_log(session, path)
    if path == "" then
        return session.log and "logging to " .. session.log.path .. "; :log off ends it" or ":log FILE begins one"
    elseif session.log then
        session.log:close()
        session.log = nil
    end
    if path ~= "off" then
        session.log = log.open(path)
        return ("logging to %s, which qmoon can run"):format(path)
    end
end

local function list_history(session, word)
    local n = word == "" and 20 or whole(word, "history", 1)
    local lines = {}
    for i = math.max(1, #session.inputs - n + 1), #session.inputs do
        lines[#lines + 1] = ("%4d  %s"):format(i, (session.inputs[i]:gsub("\n", "\n      ")))
    end
    return table.concat(lines, "\n")
end

local function time(session, word)
    if word == "on" or word == "off" then
        session.timing = on_off(word, "time")
        return nil
    elseif word == "" then
        return "timing is " .. (session.timing and "on" or "off") .. "; :time EXPRESSION times one, :time on all"
    end
    session.run(word, { time = true })
end

local list = {
    { "time", "EXPRESSION | on | off", "how long something takes, or everything", time },
    { "mode", "plain | box | csv | json | …", "how tables and pictures are shown", mode },
    { "width", "N", "columns to print in; nothing: as the terminal has", function(_, word)
        terminal.set_columns(word ~= "" and whole(word, "width", 20) or nil)
    end },
    { "digits", "N", "digits of numbers; nothing: all that count", function(_, word)
        show.digits = word ~= "" and whole(word, "digits", 1) or nil
    end },
    { "history", "N", "what was typed last", list_history },
    { "log", "FILE | off", "writes the session as a script that does it again", start_log },
    { "save", "NAME", "keeps a tensor for later sessions", save },
    { "load", "NAME", "brings it back; nothing: lists them", load_saved },
    { "tb", "", "where the last error happened, all of it", function(session)
        return session.traceback or "no error yet"
    end },
    { "help", "", "as ?", function()
        return require("qmoon.help").overview()
    end },
    { "quit", "", "leaves, as ^D does", function(session)
        session.ended = true
    end },
}

--- Names of the commands.
---@return string[]
function commands.names()
    local names = {}
    for i, c in ipairs(list) do
        names[i] = c[1]
    end
    return names
end

--- A line for each.
---@return string
function commands.help()
    local rows = { { "", "" } }
    for _, c in ipairs(list) do
        rows[#rows + 1] = { ":" .. c[1] .. " " .. c[2], c[3] }
    end
    return (text.table(rows, "  "):gsub("^[^\n]*\n", ""))
end

--- Runs a line such as ":mode csv"; returns what is to be shown.
---@param session table
---@param line string
---@return string?
function commands.run(session, line)
    local word, rest = line:match "^:%s*(%S*)%s*(.-)%s*$"
    local found = {}
    for _, c in ipairs(list) do
        if c[1] == word then
            found = { c }
            break
        elseif word ~= "" and c[1]:sub(1, #word) == word then
            found[#found + 1] = c
        end
    end
    if #found == 1 then
        return found[1][4](session, rest)
    end
    local names = {}
    for i, c in ipairs(#found > 1 and found or list) do
        names[i] = ":" .. c[1]
    end
    local guess = #found == 0 and nearest(word, commands.names())
    core.fail("usage", "%s ':%s'%s; there are %s", #found > 1 and "more than one command begins with" or "no command", word,
        guess and (" (did you mean ':%s'?)"):format(guess) or "", table.concat(names, " "))
end

return commands
