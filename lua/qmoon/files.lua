--- Small files, read and copied whole.

local core = require "qmoon.core"

local files = {}

---@param path string
---@return string
function files.read(path)
    local f = core.infile(path)
    return f:read(0, f:size())
end

--- Writes a small file so that it is there whole or not at all.
---@param path string
---@param bytes string
function files.write(path, bytes)
    local f = core.outfile(path, #bytes)
    f:write(0, bytes)
    f:finish()
end

---@param path string
---@return string folder, string name
function files.split(path)
    local folder, name = path:match "^(.*)/([^/]*)$"
    return folder == "" and "/" or folder or ".", name or path
end

---@param path string
function files.exists(path)
    return core.stat(path) ~= nil
end

return files
