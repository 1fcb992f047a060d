--- What was typed, kept between sessions: one line per entry, added as it is entered, so that sessions side by side
-- never lose each other's lines.  An entry of several lines is one line in the file: "\n" stands for a line end.

local core = require "qmoon.core"
local files = require "qmoon.files"

local history = {}

local MOST, RESCUED = 5000, 200

--- Folder of what the program keeps about its user's sessions; nil when there is no home.
---@return string?
function history.folder()
    local state, home = os.getenv "XDG_STATE_HOME", os.getenv "HOME"
    if state and state ~= "" then
        return state .. "/qmoon"
    end
    return home and home ~= "" and home .. "/.local/state/qmoon" or nil
end

local function encode(entry)
    return (entry:gsub("\\", "\\\\"):gsub("\n", "\\n"))
end

local function decode(line)
    return (line:gsub("\\(.)", function(c)
        return c == "n" and "\n" or c
    end))
end

--- Whether an entry is kept: not what begins with a blank, and no line with a Hugging Face token in it.
---@param entry string
---@return boolean
function history.is_kept(entry)
    return entry:find "^%S" ~= nil and not entry:find "hf_%w%w%w%w%w%w%w%w"
end

local function lines_of(path)
    local list = {}
    local ok, bytes = pcall(files.read, path)
    for line in (ok and bytes or ""):gmatch "[^\n]+" do
        list[#list + 1] = line
    end
    return list
end

-- A file twice as long as it should be is cut to its newest entries.
local function trim(path, lines)
    if #lines <= 2 * MOST then
        return
    end
    local keep = table.concat(lines, "\n", #lines - MOST + 1) .. "\n"
    local new = ("%s.%d"):format(path, core.process())
    if core.append_private(new, keep) then
        pcall(core.rename, new, path)
    end
end

--- Entries of earlier sessions, the oldest first, and a function that adds one.
---@return string[] entries
---@return fun(entry: string) add
function history.open()
    local folder = history.folder()
    local path = folder and folder .. "/history"
    if not path or not pcall(core.mkdir, folder) then
        return {}, function() end
    end
    local lines, entries = lines_of(path), {}
    trim(path, lines)
    for i = math.max(1, #lines - MOST + 1), #lines do
        entries[#entries + 1] = decode(lines[i])
    end
    return entries, function(entry)
        if history.is_kept(entry) then
            core.append_private(path, encode(entry) .. "\n")
        end
    end
end

-- ---- after a crash ------------------------------------------------------------------------------------------------

-- Inputs of a session that is not alive any more become qmoon-rescue.lua.
local function collect(folder)
    local found
    for _, name in ipairs(core.list(folder)) do
        local number = tonumber(name:match "^session%-(%d+)$")
        if number and not core.process(number) then
            local lines = lines_of(folder .. "/" .. name)
            local inputs = {}
            for i = math.max(1, #lines - RESCUED + 1), #lines do
                inputs[#inputs + 1] = decode(lines[i])
            end
            os.remove(folder .. "/" .. name)
            if #inputs > 0 then
                found = folder .. "/qmoon-rescue.lua"
                pcall(files.write, found, "-- the last inputs of a session that ended without saying so\n"
                    .. table.concat(inputs, "\n") .. "\n")
            end
        end
    end
    return found
end

--- Keeps this session's inputs until it ends well.
---@return string? rescued file with the inputs of an earlier session that did not
---@return fun(input: string) note
---@return fun() finish
function history.guard()
    local folder = history.folder()
    if not folder or not pcall(core.mkdir, folder) then
        return nil, function() end, function() end
    end
    local ok, rescued = pcall(collect, folder)
    local path = ("%s/session-%d"):format(folder, core.process())
    os.remove(path)
    return ok and rescued or nil, function(input)
        if history.is_kept(input) then
            core.append_private(path, encode(input) .. "\n")
        end
    end, function()
        os.remove(path)
    end
end

return history
