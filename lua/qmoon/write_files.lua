--- Outputs on disk: whole or not there.  A file is NAME.part until it is finished, a folder NAME.part/ until all of its
--- files are there.

local core = require "qmoon.core"
local files = require "qmoon.files"

local write_files = {}

local function part_of(out)
    return out.path .. ".part"
end

--- Creates an output's files at their full size, with their headers in them.
function write_files.open(out)
    core.mkdir((files.split(out.path)))
    out.open = {}
    if out.folder then
        core.remove_tree(part_of(out)) -- of a run that was killed
        core.mkdir(part_of(out))
    end
    for i, f in ipairs(out.files) do
        out.open[i] = core.outfile(out.folder and part_of(out) .. "/" .. f.name or f.path or out.path, f.size)
        for _, w in ipairs(f.writes) do
            out.open[i]:write(w[1], w[2])
        end
        f.writes = nil
    end
end

local function write_side(out)
    for _, s in ipairs(out.side) do
        local path = part_of(out) .. "/" .. s.name
        core.mkdir((files.split(path)))
        files.write(path, s.bytes or s.late and s.late() or files.read(s.from))
    end
end

--- Everything but the names: bytes on disk, small files beside them.
function write_files.complete(out)
    for _, f in ipairs(out.open) do
        if out.folder then
            f:finish()
        else
            f:sync()
        end
    end
    if out.folder then
        write_side(out)
    end
end

-- Where the file system cannot exchange two names, what was there before steps aside for a moment.
local function step_aside(out)
    local old = out.path .. ".old"
    core.remove_tree(old)
    core.rename(out.path, old)
    local ok, e = pcall(core.rename, part_of(out), out.path)
    if not ok then
        core.rename(old, out.path)
        error(e, 0)
    end
    core.rename(old, part_of(out))
end

--- Gives a finished output its name; what had it before is removed last.
function write_files.name(out)
    if not out.folder then
        for _, f in ipairs(out.open) do
            f:finish()
        end
    elseif not core.stat(out.path) then
        core.rename(part_of(out), out.path)
    else
        if not core.exchange(part_of(out), out.path) then
            step_aside(out)
        end
        core.remove_tree(part_of(out))
    end
    out.open = nil
end

--- Removes what was begun; an output that has its name stays.
function write_files.drop(out)
    for _, f in ipairs(out.open or {}) do
        f:drop()
    end
    if out.folder and out.open then
        pcall(core.remove_tree, part_of(out))
    end
    out.open = nil
end

return write_files
