--- Importance matrices: for every column of a weight, the mean square of the inputs it was multiplied with.
--
-- llama.cpp's two files.  As GGUF: tensors NAME.in_sum2 [matrices x columns] with sums of squares and NAME.counts
-- [matrices x 1] with how many there were, and metadata imatrix.datasets, .chunk_count, .chunk_size.  Before
-- that, as .dat:
--
--   | i32 entries | per entry: i32 n, n bytes of name, i32 calls, i32 values, f32 x values |
--   | i32 chunks, i32 n, n bytes of data set |                                              may be missing
--
-- where values are divided by the number of calls.  A matrix that was never used (an expert nobody asked) weighs
-- all columns alike.  Source: llama.cpp, common/imatrix-loader.cpp and tools/quantize.

local ffi = require "ffi"
local core = require "qmoon.core"
local gguf = require "qmoon.gguf"

---@class qmoon.Imatrix
---@field path string
---@field entries table<string, table> {at, count = values, matrices, divisors}
---@field count integer entries
---@field dataset string?
---@field chunks integer
local Imatrix = {}
Imatrix.__index = Imatrix

local imatrix = {}

local function corrupt(path, form, ...)
    core.fail("corrupt", "%s: " .. form, path, ...)
end

--- Adds an entry whose values lie in the file, all of them finite.
local function add(m, name, entry)
    local view = core.view(m.file, { name = name, dtype = "f32", shape = { entry.count }, at = entry.at,
                                     size = 4 * entry.count })
    local s = view:stats()
    view:close()
    if s.nan + s.inf > 0 then
        corrupt(m.path, "entry '%s' has %d values that are not finite: the run that measured it went wrong; make "
            .. "it again", name, s.nan + s.inf)
    elseif m.entries[name] then
        corrupt(m.path, "there are two entries '%s'", name)
    end
    m.entries[name], m.count = entry, m.count + 1
end

-- ---- GGUF form ----------------------------------------------------------------------------------------

local function elements(shape)
    local n = 1
    for _, d in ipairs(shape) do
        n = n * d
    end
    return n
end

--- Counts are stored as f32 and mean whole numbers.
local function divisors_of(m, name, t)
    local view = core.view(m.file, { name = name, dtype = "f32", shape = t.shape, at = t.at, size = t.size })
    local list = view:values()
    view:close()
    for i, v in ipairs(list) do
        if not (v >= 0 and v < 2 ^ 53) then
            corrupt(m.path, "'%s.counts' holds %s, which is no count", name, tostring(v))
        end
        list[i] = math.floor(v + 0.5)
    end
    return list
end

local function read_gguf(m)
    local h = core.gguf(m.path)
    local datasets = gguf.get(h.meta, "imatrix.datasets")
    m.chunks = gguf.get(h.meta, "imatrix.chunk_count")
    if not datasets or not m.chunks or not gguf.get(h.meta, "imatrix.chunk_size") then
        core.fail("unsupported", "%s: a GGUF file, but no importance matrix: imatrix.datasets, .chunk_count or "
            .. ".chunk_size is not there", m.path)
    end
    m.dataset = type(datasets) == "table" and datasets[1] or nil
    local parts, names = { in_sum2 = {}, counts = {} }, {}
    for _, t in ipairs(h.tensors) do
        local name, what = t.name:match "^(.+)%.([%w_]+)$"
        if parts[what] then
            if t.type_name ~= "F32" then
                corrupt(m.path, "tensor '%s' is %s, not F32", t.name, t.type_name)
            elseif not parts.in_sum2[name] and not parts.counts[name] then
                names[#names + 1] = name
            end
            parts[what][name] = t
        end
    end
    for _, name in ipairs(names) do
        local s, c = parts.in_sum2[name], parts.counts[name]
        if not s or not c then
            corrupt(m.path, "entry '%s' has no %s", name, s and "counts" or "in_sum2")
        end
        local n, matrices = elements(s.shape), elements(c.shape)
        if n == 0 or matrices == 0 or n % matrices ~= 0 then
            corrupt(m.path, "entry '%s' has %d values for %d matrices", name, n, matrices)
        end
        add(m, name, { at = s.at, count = n, matrices = matrices, divisors = divisors_of(m, name, c),
                       unused = 1 })
    end
end

-- ---- the form before ----------------------------------------------------------------------------------

local function read_dat(m)
    local at, size = 0, m.file:size()
    local function take(n, what)
        if n > size - at then
            corrupt(m.path, "ends at byte %.0f, in the middle of %s: it is cut short, or no importance matrix",
                size, what)
        end
        at = at + n
        return m.file:read(at - n, n)
    end
    local function i32(what)
        local a, b, c, d = take(4, what):byte(1, 4)
        local n = a + 2 ^ 8 * b + 2 ^ 16 * c + 2 ^ 24 * d
        return n < 2 ^ 31 and n or n - 2 ^ 32
    end
    local function text(what)
        local n = i32(what)
        if n < 0 then
            corrupt(m.path, "says that %s has %d bytes", what, n)
        end
        return take(n, what)
    end
    local entries = i32 "the number of entries"
    if entries < 1 then
        corrupt(m.path, "says that it has %d entries", entries)
    end
    for i = 1, entries do
        local where = "entry " .. i
        local name, calls, count = text(where), i32(where), i32(where)
        if count < 1 then
            corrupt(m.path, "entry %d, '%s', has %d values", i, name, count)
        elseif 4 * count > size - at then
            take(4 * count, where)
        end
        add(m, name, { at = at, count = count, matrices = 1, divisors = { calls } })
        at = at + 4 * count
    end
    m.chunks = 0
    if at < size then
        m.chunks = i32 "the number of chunks"
        local dataset = at < size and text "the name of the data set"
        m.dataset = dataset and dataset ~= "" and dataset or nil
    end
end

-- ---- both ---------------------------------------------------------------------------------------------

--- Reads either form.  Values stay in the file until they are asked for, but all of them have been looked at.
---@param path string
---@return qmoon.Imatrix
function imatrix.read(path)
    local m = setmetatable({ path = path, file = core.infile(path), entries = {}, count = 0 }, Imatrix)
    if m.file:size() >= 4 and m.file:read(0, 4) == "GGUF" then
        read_gguf(m)
    else
        read_dat(m)
    end
    m.file:release()
    return m
end

--- The entry for a tensor of this shape, or nil: there is none, or it is of another size, which is only borne with
--- the token embeddings.
---@param name string
---@param shape integer[] torch order
---@return table? entry
---@return string? why there is none
function Imatrix:entry(name, shape)
    local e = self.entries[name]
    if not e then
        return nil, "missing"
    end
    local want = shape[#shape] * (shape[#shape - 2] or 1)
    if e.count == want then
        return e
    elseif name == "token_embd.weight" then
        return nil, "size"
    end
    core.fail("fail", "%s: entry '%s' has %d values, and the tensor %d: it was measured with another model",
        self.path, name, e.count, want)
end

--- The importances of an entry: one for each column, of matrix `index` (from 0) or of all of them in order.
---@param entry table
---@param index integer?
---@return userdata f32 tensor
function Imatrix:values(entry, index)
    local each = entry.count / entry.matrices
    local first, n = 0, entry.count
    if index and entry.matrices > 1 then
        first, n = index * each, each
    end
    local values, divisor = ffi.new("float[?]", n), ffi.new "float[1]"
    ffi.copy(values, self.file:read(entry.at + 4 * first, 4 * n), 4 * n)
    for i = 0, n - 1 do
        divisor[0] = entry.divisors[math.floor((first + i) / each) + 1]
        if divisor[0] > 0 then
            values[i] = values[i] / divisor[0]
        elseif entry.unused then
            values[i] = entry.unused
        end
    end
    return core.tensor({ n }, ffi.string(values, 4 * n))
end

--- What gguf.quantized_metadata says of it.
---@return table
function Imatrix:metadata()
    return { file = self.path, dataset = self.dataset, entries = self.count, chunks = self.chunks }
end

return imatrix
