--- GGUF files in parts: their names, reading them as one model, and where a file is cut.
--
--   model-00001-of-00003.gguf   the model's metadata, split.no = 0, split.count = 3, split.tensors.count
--   model-00002-of-00003.gguf   split.no = 1, split.count = 3, split.tensors.count
--   …                           each with its own tensors
--
-- Source: llama.cpp, tools/gguf-split and the loader (llama_split_path, split.* keys).

local core = require "qmoon.core"
local copy = require "qmoon.gguf_copy"
local files = require "qmoon.files"
local gguf = require "qmoon.gguf"
local text = require "qmoon.text"

local split = {}

local NO, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"
local MOST = 65535 -- split.count is a u16

--- Name of part `i` (from 1) of `n`.
---@param stem string
---@param i integer
---@param n integer
---@return string
function split.name(stem, i, n)
    return ("%s-%05d-of-%05d.gguf"):format(stem, i, n)
end

--- What comes before "-00001-of-0000N.gguf" in the name of part `i` of `n`; nil when it is named otherwise.
---@param path string
---@param i integer
---@param n integer
---@return string?
function split.stem(path, i, n)
    local tail = split.name("", i, n)
    return #path > #tail and path:sub(-#tail) == tail and path:sub(1, -#tail - 1) or nil
end

--- How many parts the file belongs to: 1 for a whole file, also for a merged one, whose split.count is 0.
local function parts_of(h, path)
    local count, no = gguf.get(h.meta, COUNT) or 1, gguf.get(h.meta, NO) or 0
    if type(count) ~= "number" or type(no) ~= "number" or count > MOST or count > 1 and no >= count then
        core.fail("corrupt", "%s: %s and %s make no sense: part %s of %s", path, NO, COUNT, tostring(no),
            tostring(count))
    end
    if count <= 1 then
        return 1
    end
    local stem = split.stem(path, no + 1, count)
    if not stem then
        core.fail("usage", "%s: is part %d of %d, so its name must end in %s: that is how the others are found",
            path, no + 1, count, split.name("", no + 1, count))
    elseif no > 0 then
        core.fail("usage", "%s: is part %d of %d; name the first, %s", path, no + 1, count,
            split.name(stem, 1, count))
    end
    return count, stem
end

local function read_part(first, path, i, count)
    if not core.stat(path) then
        core.fail("fail", "%s: part %d of %d is missing; fetch it into the same folder", path, i, count)
    end
    local h = core.gguf(path)
    local no, same = gguf.get(h.meta, NO), gguf.get(h.meta, COUNT)
    if no ~= i - 1 or same ~= count then
        core.fail("corrupt", "%s: says that it is part %s of %s, not %d of %d", path, no and no + 1 or "?",
            tostring(same), i, count)
    end
    if gguf.get(h.meta, TENSORS) ~= gguf.get(first.meta, TENSORS) then
        core.fail("corrupt", "%s: belongs to a model of %s tensors, and %s to one of %s", path,
            tostring(gguf.get(h.meta, TENSORS)), first.file:path(), tostring(gguf.get(first.meta, TENSORS)))
    end
    return h
end

--- Adds the tensors of a part to those there are.
local function take_tensors(h, whole, where)
    for _, t in ipairs(h.tensors) do
        if where[t.name] then
            core.fail("corrupt", "%s: tensor '%s' is in %s too", h.file:path(), t.name, where[t.name])
        end
        where[t.name], t.file = h.file:path(), h.file
        whole[#whole + 1] = t
    end
end

--- As core.gguf, of all parts when there are several: the metadata of the first, the tensors of all of them in
--- order, each with `file`; and parts = {path, …}.
---@param path string the file, or the first of its parts
---@return table
function split.read(path)
    local first = core.gguf(path)
    local count, stem = parts_of(first, path)
    local whole, where, parts = {}, {}, { path }
    take_tensors(first, whole, where)
    for i = 2, count do
        parts[i] = split.name(stem, i, count)
        take_tensors(read_part(first, parts[i], i, count), whole, where)
    end
    local total = gguf.get(first.meta, TENSORS)
    if count > 1 and total and total ~= #whole then
        core.fail("corrupt", "%s: the model has %s tensors, its %d parts have %d", path, tostring(total), count,
            #whole)
    end
    first.tensors, first.parts = whole, parts
    return first
end

-- ---- cutting ------------------------------------------------------------------------------------------

local ALIGNMENT = 32 -- what sizes are rounded to when they are added up, whatever the file's own is

--- The tensors in groups, one for each part.  A part is begun when the next tensor would take it past max_size
--- (the header does not count), or has a number that max_tensors divides.
---@param tensors table[] {name, size}
---@param options {max_size: number?, max_tensors: integer?, no_tensor_first_split: boolean?}
---@return table[][]
function split.cut(tensors, options)
    local parts, size = { {} }, 0
    if options.no_tensor_first_split then
        parts[2] = {}
    end
    for i, t in ipairs(tensors) do
        local bytes = math.ceil(t.size / ALIGNMENT) * ALIGNMENT
        local full = options.max_size and size + bytes > options.max_size
            or options.max_tensors and i > 1 and (i - 1) % options.max_tensors == 0
        if full then
            if #parts[#parts] == 0 then
                core.fail("usage", "tensor '%s' alone takes %.0f bytes; a part of at most %.0f would be empty: "
                    .. "choose a larger --max-size", t.name, bytes, options.max_size)
            end
            parts[#parts + 1], size = {}, 0
        end
        table.insert(parts[#parts], t)
        size = size + bytes
    end
    if #parts > MOST then
        core.fail("usage", "%d parts; GGUF counts to %d: choose a larger --max-size or --max-tensors", #parts,
            MOST)
    end
    return parts
end

local SPLIT_KEYS = { [NO] = true, [COUNT] = true, [TENSORS] = true }

local function without(rows, keys)
    local kept = {}
    for _, r in ipairs(rows) do
        if not keys[r.key] then
            kept[#kept + 1] = r
        end
    end
    return kept
end

-- Part `i` of `n`; in the order that llama-gguf-split leaves the keys in.
local function part_keys(rows, i, n, tensors)
    rows[#rows + 1] = { key = NO, type = "u16", value = i - 1 }
    rows[#rows + 1] = { key = TENSORS, type = "i32", value = tensors }
    rows[#rows + 1] = { key = COUNT, type = "u16", value = n }
    return rows
end

--- The metadata of part `i` of `n`, in the order that llama-quantize has.
---@param rows table[]
---@param i integer from 1
---@param n integer
---@param tensors integer of all parts
---@return table[]
function split.part_keys(rows, i, n, tensors)
    local list = part_keys({ unpack(rows) }, i, n, tensors)
    list[#list], list[#list - 1] = list[#list - 1], list[#list]
    return list
end

-- ---- writing ------------------------------------------------------------------------------------------

--- Refuses to write over what is read, and over anything else without force.
local function check_outputs(h, paths, force)
    for _, path in ipairs(paths) do
        for _, part in ipairs(core.stat(path) and h.parts or {}) do
            if core.realpath(part) == core.realpath(path) then
                core.fail("usage", "%s: this is where the model is read from; choose another name", path)
            end
        end
        if core.stat(path) and not force then
            core.fail("fail", "%s: is there already; --force replaces it", path)
        end
    end
end

local function check_space(path, h)
    local need = 0
    for _, t in ipairs(h.tensors) do
        need = need + t.size
    end
    local free = core.disk_free((files.split(path)))
    if need > free then
        core.fail("nofit", "%s: %s are to be written and %s are free", path, text.bytes(need),
            text.bytes(free))
    end
end

--- All files of a list, or none of them.
local function write_all(list)
    local open = {}
    local ok, e = pcall(function()
        for i, f in ipairs(list) do
            open[i], f.size = copy.prepare(f.path, f.rows, f.tensors, { ggml_dims = true })
            open[i]:sync()
        end
        for _, out in ipairs(open) do
            out:finish()
        end
    end)
    if not ok then
        for _, out in ipairs(open) do
            out:drop()
        end
        error(e, 0)
    end
end

--- Cuts a model into parts named after `stem`.
---@param path string GGUF file, or the first of its parts
---@param stem string
---@param options table as split.cut takes, and force, dry_run
---@return {path: string, tensors: table[], size: integer}[] parts
function split.write(path, stem, options)
    local h = split.read(path)
    local parts, paths = {}, {}
    local groups = split.cut(h.tensors, options)
    for i, tensors in ipairs(groups) do
        local rows = part_keys(i == 1 and without(gguf.exact(h), SPLIT_KEYS) or {}, i, #groups, #h.tensors)
        local _, _, size = gguf.header(rows, tensors, { ggml_dims = true })
        paths[i] = split.name(stem, i, #groups)
        parts[i] = { path = paths[i], rows = rows, tensors = tensors, size = size }
    end
    if not options.dry_run then
        check_outputs(h, paths, options.force)
        check_space(paths[1], h)
        write_all(parts)
    end
    return parts
end

--- Makes one file of the parts of a model.  As llama-gguf-split leaves it: with the split.* keys of the first part
--- and a count of 0; with options.clean they go, and what was split before is again as it was.
---@param first string the first part
---@param out string
---@param options? {force: boolean?, clean: boolean?}
---@return integer parts, integer size
function split.merge(first, out, options)
    options = options or {}
    local h = split.read(first)
    local count = gguf.get(h.meta, COUNT)
    if not count or count < 1 then
        core.fail("usage", "%s: is a whole model, not the first part of one", first)
    end
    check_outputs(h, { out }, options.force)
    check_space(out, h)
    local rows = without(gguf.exact(h), options.clean and SPLIT_KEYS or { [COUNT] = true })
    if not options.clean then
        rows[#rows + 1] = { key = COUNT, type = "u16", value = 0 }
    end
    local file = { path = out, rows = rows, tensors = h.tensors }
    write_all { file }
    return #h.parts, file.size
end

return split
