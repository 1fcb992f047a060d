--- Weights in formats of this program's own, as output/planes.lua writes them: quantization.json says which, and one
--- tensor for each plane holds them.

local core = require "qmoon.core"
local description = require "qmoon.output.description"
local files = require "qmoon.files"
local formats = require "qmoon.formats"

local planes = {}

local NESTED = 256

--- Whether a config.json's quantization_config means weights of this kind.
---@param q table|nil
---@return boolean
function planes.is_config(q)
    return type(q) == "table" and q.quant_method == "qmoon"
end

local function fail(c, fmt, ...)
    core.fail("corrupt", "%s: %s", c.path, fmt:format(...))
end

--- The format that the file names: one of the program's, a codebook of the levels in the file, or functions that a
--- script has given that name; nil when nobody has.
local function format_of(c)
    local d = c.description
    if type(d.levels) == "table" and #d.levels > 0 then
        return core.codebook(d.method, d.levels, d.block)
    elseif d.levels ~= nil then
        fail(c, "has no list of levels")
    end
    local ok, value = pcall(formats.resolve, d.method)
    return ok and value or nil
end

--- quantization.json of a folder whose weights lie in planes, or nil.
---@param dir string
---@param needed boolean? fail when there is none
---@return table? context {path, description, info, format}
function planes.open(dir, needed)
    local path = dir .. "/" .. description.NAME
    if not files.exists(path) then
        return needed and core.fail("fail", "%s: is missing, and without it nobody knows how the weights are quantised", path)
            or nil
    end
    local c = { path = path, description = core.json_decode(files.read(path), path) }
    local d = c.description
    if type(d) ~= "table" or d.schema ~= description.SCHEMA then
        core.fail("unsupported", "%s: has schema '%s'; this program reads %s", path,
            tostring(type(d) == "table" and d.schema), description.SCHEMA)
    elseif d.layout == nil and not needed then
        return nil -- bitsandbytes' tensors say themselves what they are
    elseif d.layout ~= "planes" or type(d.method) ~= "string" or type(d.quantised) ~= "table" then
        fail(c, "names no weights in planes")
    end
    c.format = format_of(c)
    return c
end

local function whole(v, least)
    return type(v) == "number" and v >= least and v == math.floor(v) and v < 2 ^ 53
end

--- Shape and rows of a weight, checked.
local function extent(c, name, entry)
    local n, rows = 1, type(entry) == "table" and entry.rows
    if type(entry) ~= "table" or type(entry.shape) ~= "table" or #entry.shape > 8 then
        fail(c, "weight '%s' has no shape", name)
    end
    for _, d in ipairs(entry.shape) do
        n = whole(d, 0) and n * d or math.huge
    end
    if not whole(n, 0) or not whole(rows, 1) or n % rows ~= 0 or not whole(entry.block, 1) or entry.block >= 2 ^ 32 - 1 then
        fail(c, "weight '%s' has sizes that no weight has", name)
    end
    return n, rows
end

local function take(c, by_name, used, name, dtype, size)
    local t = by_name[name]
    if not t then
        fail(c, "names a weight whose tensor '%s' is missing; is a shard missing?", name)
    elseif t.dtype ~= dtype or t.size ~= size then
        core.fail("corrupt", "%s: tensor '%s' is %s of %.0f bytes; %s says %s of %.0f", t.file:path(), t.name, t.dtype,
            t.size, c.path, dtype, size)
    end
    used[t] = true
    return t
end

--- A number for the whole tensor, which must be finite.
local function number(t)
    local v = core.view(t.file, { name = t.name, format = "f32", dtype = "f32", shape = { 1 }, at = t.at, size = 4 })
        :values()[1]
    if not (math.abs(v) <= 3.4e38) then
        core.fail("corrupt", "%s: tensor '%s' holds no finite number", t.file:path(), t.name)
    end
    return v
end

--- The source of one weight.
local function source_of(c, by_name, used, name, entry, info)
    local d, value = c.description, c.format
    local n, rows = extent(c, name, entry)
    local sizes = core.plane_sizes(type(value) == "table" and value:opaque() or value, n, n / rows, entry.block, name)
    local s = { name = name, shape = entry.shape, block = entry.block, at = {}, files = {}, parts = {}, size = 0,
                rows = rows, cols = n / rows, dtype = "f32", double_quant = d.double_quant or nil,
                quantised = info.name .. (d.double_quant and "+dq" or ""), own = value }
    local function add(t)
        s.parts[#s.parts + 1], s.size = t, s.size + t.size
        return t
    end
    for i, plane in ipairs(info.planes) do
        local nested = d.double_quant and i == 2
        local t = add(take(c, by_name, used, name .. "." .. plane.name, nested and "u8" or plane.dtype,
            nested and sizes[i] / 4 or sizes[i]))
        s.at[i], s.files[i] = t.at, t.file
    end
    if d.double_quant then
        local t = add(take(c, by_name, used, name .. ".nested_absmax", "f32", 4 * math.ceil(sizes[2] / 4 / NESTED)))
        s.nested_at, s.files[#s.files + 1] = t.at, t.file
        s.offset = number(add(take(c, by_name, used, name .. ".nested_offset", "f32", 4)))
    end
    if info.tensor_range > 0 then
        s.factor = number(add(take(c, by_name, used, name .. ".factor", "f32", 4)))
    end
    s.file = s.files[1]
    s.format = type(value) ~= "table" and value or nil -- functions do not decode in a stream
    return s
end

--- Puts together what belongs together, as source/bnb.lua's collect does.
---@param c table from planes.open
---@param tensors table[]
---@param dtype string? of what is not quantised
---@return table[] left, table[] sources
function planes.collect(c, tensors, dtype)
    local by_name, used, names, sources, left = {}, {}, {}, {}, {}
    for _, t in ipairs(tensors) do
        by_name[t.name] = t
    end
    if not c.format then
        core.fail("unsupported", "%s: weights are in format '%s', which only functions of a script can decode; run the script "
            .. "that makes it (qm.format) before: qmoon -l NAME …", c.path, tostring(c.description.method))
    end
    local output = require "qmoon.output.planes"
    local info = output.info(c.format)
    if c.description.double_quant and not info.can_double_quant then
        fail(c, "says that %s is double quantised, which it never is", info.name)
    end
    for name in pairs(c.description.quantised) do
        names[#names + 1] = tostring(name)
    end
    table.sort(names)
    for i, name in ipairs(names) do
        sources[i] = source_of(c, by_name, used, name, c.description.quantised[name], info)
        sources[i].dtype = dtype or "f32"
    end
    for _, t in ipairs(tensors) do
        left[#left + 1] = not used[t] and t or nil
    end
    return left, sources
end

return planes
