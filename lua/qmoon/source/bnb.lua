--- bitsandbytes' weights in a checkpoint: several tensors that stand for one (pictured in output/bnb.lua).
--
-- What comes out has the weight's own name, its logical shape, and a source that core.stream decodes to the
-- values that bitsandbytes itself dequantises to: level * absmax in f32, rounded to the type that was
-- quantised (quant_state's "dtype"); of int8, which keeps no such type, code * absmax / 127 in f32.

local core = require "qmoon.core"

local bnb = {}

local NESTED = 256
local DTYPES = { float32 = "f32", float16 = "f16", bfloat16 = "bf16" }
local BLOCKS = { [32] = true, [64] = true, [128] = true, [256] = true, [512] = true, [1024] = true,
                 [2048] = true, [4096] = true }
local STORAGE = { uint8 = "u8", float16 = "f16", bfloat16 = "bf16", float32 = "f32" }

-- The tensors of one checkpoint, and what is known of them while they are taken one by one.
local Checkpoint = {}
Checkpoint.__index = Checkpoint

function Checkpoint:fail(t, fmt, ...)
    core.fail("corrupt", "%s: tensor '%s' %s", t.file:path(), t.name, fmt:format(...))
end

--- The tensor of that name, which must be `dtype` of that many elements; from now on it has its use.
function Checkpoint:take(name, owner, dtype, count)
    local t = self.by_name[name]
    if not t then
        self:fail(owner, "is of bitsandbytes, but '%s' is missing; is a shard missing, or was it converted "
            .. "half-way?", name)
    end
    local n = 1
    for _, d in ipairs(t.shape) do
        n = n * d
    end
    if t.dtype ~= dtype or n ~= count then
        self:fail(t, "is %s with %.0f elements; '%s' needs %s with %.0f", t.dtype, n, owner.name,
            dtype, count)
    end
    self.used[t] = true
    return t
end

local function whole(v, least)
    return type(v) == "number" and v >= least and v == math.floor(v) and v < 2 ^ 53
end

-- ---- four bits --------------------------------------------------------------------------------------------

local KEYS = { quant_type = true, blocksize = true, dtype = true, shape = true }
local NESTED_KEYS = { nested_blocksize = true, nested_dtype = true, nested_offset = true }

--- quant_state's JSON, every member of it checked.
function Checkpoint:state(t)
    if t.dtype ~= "u8" or t.size > 4096 then
        self:fail(t, "is no JSON text in bytes")
    end
    local what = ("%s: tensor '%s'"):format(t.file:path(), t.name)
    local state = core.json_decode(t.file:read(t.at, t.size), what)
    if type(state) ~= "table" or #state > 0 then
        self:fail(t, "holds no JSON object")
    end
    local nested = state.nested_blocksize ~= nil
    for key in pairs(state) do
        if not KEYS[key] and not (nested and NESTED_KEYS[key]) then
            self:fail(t, "has a key '%s' that bitsandbytes does not write", key)
        end
    end
    for key in pairs(KEYS) do
        if state[key] == nil then
            self:fail(t, "has no '%s'", key)
        end
    end
    if state.quant_type ~= t.name:match "__([^_]+)$" then
        self:fail(t, "says quant_type '%s'", tostring(state.quant_type))
    elseif not DTYPES[state.dtype] then
        self:fail(t, "says dtype '%s', which is none of float32, float16, bfloat16", tostring(state.dtype))
    elseif not BLOCKS[state.blocksize] then
        self:fail(t, "has a blocksize of %s; bitsandbytes has powers of two from 32 to 4096",
            tostring(state.blocksize))
    elseif type(state.shape) ~= "table" or #state.shape == 0 or #state.shape > 8 then
        self:fail(t, "has no list 'shape' of at most eight numbers")
    end
    local n = 1
    for _, d in ipairs(state.shape) do
        n = whole(d, 1) and n * d or math.huge
    end
    if not whole(n, 1) then
        self:fail(t, "has a 'shape' that holds something else than sizes")
    end
    if nested then
        local offset = state.nested_offset
        if state.nested_blocksize ~= NESTED then
            self:fail(t, "has a nested_blocksize of %s; bitsandbytes has 256 and no other",
                tostring(state.nested_blocksize))
        elseif state.nested_dtype ~= "float32" then
            self:fail(t, "has a nested_dtype of '%s', not float32", tostring(state.nested_dtype))
        elseif type(offset) ~= "number" or offset ~= offset or math.abs(offset) > 3.4e38 then
            self:fail(t, "has no number 'nested_offset'")
        end
    end
    return state, nested
end

--- The stored table must be the one that decoding will use.
function Checkpoint:check_map(t, format)
    local stored, ours = t.file:read(t.at, t.size), core.levels(format)
    if stored == ours then
        return
    elseif format == "dynamic8" and stored == core.pack("f", -1) .. ours:sub(5) then
        core.fail("unsupported", "%s: tensor '%s' begins with -1: bitsandbytes before 0.50 wrote that on "
            .. "processors without a GPU, and its scales mean something else by it; load it with "
            .. "bitsandbytes and save it again, or quantise the original anew", t.file:path(), t.name)
    end
    self:fail(t, "is another table than %s's; weights of a table of one's own are not read from "
        .. "bitsandbytes files", format)
end

--- The bytes of codes, which may be filed under a wider type (quant_storage).
function Checkpoint:codes(t, state, sizes)
    local storage = self.config and self.config.bnb_4bit_quant_storage or "uint8"
    if t.dtype ~= (STORAGE[storage] or storage) then
        self:fail(t, "is %s, but bnb_4bit_quant_storage in config.json says %s", t.dtype, tostring(storage))
    elseif t.size ~= sizes[1] then
        self:fail(t, "has %.0f bytes of codes; its shape [%s] takes %.0f", t.size,
            table.concat(state.shape, " x "), sizes[1])
    end
    self.used[t] = true
end

function Checkpoint:four_bit(state_tensor)
    local name = state_tensor.name:match "^(.*)%.quant_state%.[^.]+$"
    local t = self.by_name[name]
    if not t then
        self:fail(state_tensor, "belongs to '%s', which is not there; is a shard missing?", name)
    end
    local state, nested = self:state(state_tensor)
    self.used[state_tensor] = true
    local n = 1
    for _, d in ipairs(state.shape) do
        n = n * d
    end
    local cols = state.shape[#state.shape]
    local sizes, block = core.plane_sizes(state.quant_type, n, cols, state.blocksize, name)
    self:codes(t, state, sizes)
    local groups = math.ceil(n / block)
    local absmax = self:take(name .. ".absmax", t, nested and "u8" or "f32", groups)
    local map = self:take(name .. ".quant_map", t, "f32", 16)
    self:check_map(map, state.quant_type)
    local parts = { t, absmax, map, state_tensor }
    local dtype = DTYPES[state.dtype]
    local source = { name = name, shape = state.shape, format = state.quant_type, block = block,
                     dtype = dtype, round = dtype, file = t.file, files = { t.file, absmax.file },
                     at = { t.at, absmax.at } }
    if nested then
        local scales = self:take(name .. ".nested_absmax", t, "f32", math.ceil(groups / NESTED))
        local nested_map = self:take(name .. ".nested_quant_map", t, "f32", 256)
        self:check_map(nested_map, "dynamic8")
        parts[5], parts[6] = scales, nested_map
        source.double_quant, source.offset, source.nested_at = true, state.nested_offset, scales.at
        source.files[3] = scales.file
    end
    return source, parts
end

-- ---- eight bits -------------------------------------------------------------------------------------------

--- Rows are whatever has a scale of its own: the first dimension, or the first few of a reshaped weight.
local function rows_of(shape, scales)
    local rows, n = 1, 1
    for _, d in ipairs(shape) do
        n = n * d
    end
    for _, d in ipairs(shape) do
        rows = rows * d
        if rows == scales then
            return rows, n / rows
        end
    end
end

function Checkpoint:eight_bit(scales)
    local module = scales.name:match "^(.*)%.SCB$"
    local t = self.by_name[module .. ".weight"] or self.by_name[module]
    if not t then
        self:fail(scales, "belongs to '%s.weight', which is not there; is a shard missing?", module)
    elseif t.dtype ~= "i8" then
        self:fail(t, "is %s, but has the scales of an int8 weight ('%s')", t.dtype, scales.name)
    end
    local rows, cols = rows_of(t.shape, scales.size / 4)
    if scales.dtype ~= "f32" or not rows then
        self:fail(scales, "holds no f32 for each row of '%s' [%s]", t.name, table.concat(t.shape, " x "))
    end
    self.used[t], self.used[scales] = true, true
    local parts = { t, scales }
    if self.by_name[module .. ".weight_format"] then
        local layout = self:take(module .. ".weight_format", t, "u8", 1)
        local code = layout.file:read(layout.at, 1):byte()
        if code ~= 0 then
            core.fail("unsupported", "%s: tensor '%s' is %d: the weight lies in tiles of an old GPU, not in "
                .. "rows; save it again with a bitsandbytes of 2024 or later", layout.file:path(), layout.name,
                code)
        end
        parts[3] = layout
    end
    return { name = t.name, shape = t.shape, format = "int8", dtype = self.dtype, rows = rows, cols = cols,
             file = t.file, files = { t.file, scales.file }, at = { t.at, scales.at } }, parts
end

-- ---- the whole checkpoint ---------------------------------------------------------------------------------

local AUXILIARY = { "%.absmax$", "%.quant_map$", "%.nested_absmax$", "%.nested_quant_map$", "%.SCB$",
                    "%.weight_format$", "%.quant_state%." }

--- Nothing of bitsandbytes may be left over, and nothing foreign may lie among a weight's tensors.
function Checkpoint:check_all_used(found)
    for _, t in ipairs(self.tensors) do
        if not self.used[t] then
            for _, pattern in ipairs(AUXILIARY) do
                if t.name:find(pattern) then
                    self:fail(t, "belongs to no quantised weight; is a shard missing?")
                end
            end
            for prefix in t.name:gmatch "()%." do
                if found[t.name:sub(1, prefix - 1)] then
                    self:fail(t, "lies among those of '%s' and is none that bitsandbytes writes",
                        t.name:sub(1, prefix - 1))
                end
            end
        end
    end
end

local function kind_of(source)
    return source.format .. (source.double_quant and "+dq" or "")
end

--- What config.json says of all weights must be what the tensors say of each.
local function check_config(c, path, sources)
    local four, eight = c.load_in_4bit == true, c.load_in_8bit == true
    if c.quant_method ~= nil and c.quant_method ~= "bitsandbytes" then
        core.fail("unsupported", "%s: the model is already quantised (%s); open the 16-bit model it was made "
            .. "from", path, tostring(c.quant_method))
    elseif four == eight then
        core.fail("corrupt", "%s: quantization_config in config.json says neither load_in_4bit nor "
            .. "load_in_8bit, or both", path)
    elseif #sources == 0 then
        core.fail("corrupt", "%s: config.json says that the weights are quantised (%s), but none is; if they "
            .. "are 16-bit, remove quantization_config", path, four and "4 bits" or "8 bits")
    end
    local wanted = "int8"
    if four then
        local kind, nested = c.bnb_4bit_quant_type, c.bnb_4bit_use_double_quant == true
        wanted = (kind == nil and "fp4" or tostring(kind)) .. (nested and "+dq" or "")
    end
    for _, s in ipairs(sources) do
        if kind_of(s) ~= wanted then
            core.fail("corrupt", "%s: quantization_config in config.json says %s, but tensor '%s' is %s",
                path, wanted, s.name, kind_of(s))
        end
    end
end

--- transformers does not load a quantised weight whose module the skip list names.
local function skipped(c, sources)
    local n, first = 0, nil
    for _, entry in ipairs(type(c.llm_int8_skip_modules) == "table" and c.llm_int8_skip_modules or {}) do
        for _, s in ipairs(sources) do
            local module = s.name:gsub("%.weight$", "")
            if module == entry or module:sub(1, #tostring(entry) + 1) == tostring(entry) .. "." then
                n, first = n + 1, first or s.name
            end
        end
    end
    return n > 0 and ("llm_int8_skip_modules in config.json names modules whose weights are quantised (%d, "
        .. "the first is %s); transformers will not load this file"):format(n, first) or nil
end

--- Puts together what belongs together.  Gives the tensors that are left, the sources of quantised weights,
--- each with `parts`, the tensors it is made of, and a notice or nil.
---@param tensors table[] {name, dtype, shape, at, size, file}
---@param path string of the model, for messages
---@param c table? quantization_config; nil when there is no config.json at all
---@param dtype string? "f16": the type of what is not quantised, which int8 weights had
---@return table[] left, table[] sources, string? notice
function bnb.collect(tensors, path, c, dtype)
    local self = { tensors = tensors, by_name = {}, used = {}, config = c, dtype = dtype or "f16" }
    setmetatable(self, Checkpoint)
    for _, t in ipairs(tensors) do
        self.by_name[t.name] = t
    end
    local sources, found = {}, {}
    for _, t in ipairs(tensors) do
        local source, parts
        if t.name:find "%.quant_state%.bitsandbytes__[nf]p?f?4$" then
            source, parts = self:four_bit(t)
        elseif t.name:find "%.SCB$" then
            source, parts = self:eight_bit(t)
        end
        if source then
            if found[source.name] then
                self:fail(t, "is a second description of '%s'", source.name)
            end
            source.parts, source.size = parts, 0
            for _, p in ipairs(parts) do
                source.size = source.size + p.size
            end
            source.quantised = kind_of(source)
            found[source.name] = true
            sources[#sources + 1] = source
        end
    end
    local left = {}
    for _, t in ipairs(tensors) do
        if not self.used[t] then
            left[#left + 1] = t
        end
    end
    if c then
        check_config(c, path, sources)
    end
    if #sources > 0 or c then
        self:check_all_used(found)
    end
    return left, sources, c and skipped(c, sources) or nil
end

return bnb
