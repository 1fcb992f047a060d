--- What a model takes of memory, told from its headers before it is loaded.
--
-- Nothing is added up here: the model is assembled, its cache is made and a forward pass is run on a device
-- that only counts (core.plan_device), by the functions that do it on the real one.
--
--   mapped      weights that stay in their files, in the page cache
--   weights     in memory: on the GPU, or here what is quantised or laid out
--   loading     beside them while they are read
--   kv          keys and values of `tokens` tokens
--   workspace   beside both while a prompt is read and tokens are made, and a second prompt after that
--   peak        the most at any time
--   libraries   what the driver and cuBLAS take for their code besides: measured (LIBRARIES), not foretold

local core = require "qmoon.core"
local text = require "qmoon.text"

local forecast = {}

local BATCH, TOKENS = 512, 4096

-- Kernels are loaded when they are first used, ours and cuBLAS's: 68 to 70 MB on an H200 with CUDA 13.
local LIBRARIES = 70e6

--- What the caller is going to do with a model: {tokens, decode}.
local function expected(lm)
    local e = lm.options.expect
    e = type(e) == "function" and e(lm) or e or {}
    local tokens = math.min(e.tokens or lm.options.context or TOKENS, lm.context)
    return { tokens = math.max(1, tokens), decode = e.decode }
end

local function zeros(n)
    local ids = {}
    for i = 1, n do
        ids[i] = 0
    end
    return ids
end

--- A runner that can be changed while `lm` stays as it is.
local function copy_of(lm)
    local other = setmetatable({}, getmetatable(lm))
    for k, v in pairs(lm) do
        rawset(other, k, v)
    end
    return other
end

--- The figures for a model that was read, but not assembled.
---@param lm qmoon.Runner
---@param w qmoon.Weights
---@param list table[] from qmoon.loading
---@return table
function forecast.of(lm, w, list)
    local loading = require "qmoon.loading"
    local device, f = lm.options.device, expected(lm)
    local plan = core.plan_device(device)
    local shadow = copy_of(lm)
    shadow:assemble(w, list, plan)
    local mapped = 0
    for _, e in ipairs(device and {} or list) do
        mapped = mapped + (e.mapped and not e.format and e.bytes or 0)
    end
    local weights, most = core.plan_memory(plan)
    local threads = loading.threads(list, lm.options)
    local job = { device = plan }
    for i, e in ipairs(list) do
        job[i] = { tensor = e.tensor, format = e.format, block = e.block }
    end
    f.mapped, f.weights = mapped, weights - mapped
    f.loading = most - weights + core.load_memory(job, nil, threads)
    local cache = shadow:cache_on(plan, f.tokens)
    f.kv = core.plan_memory(plan) - weights
    shadow:forward(zeros(math.min(BATCH, f.tokens)), cache):close()
    local now, peak, kept = core.plan_memory(plan)
    f.workspace = peak - now + (device and kept + core.kept_memory(device, f.decode) or 0)
    f.peak = f.weights + math.max(f.loading, f.kv + f.workspace)
    f.libraries = device and LIBRARIES or 0
    cache:close()
    return f
end

--- "weights 5.85 GB · keys and values 117 MB (512 tokens) · workspace 0.35 GB · libraries 70 MB: 6.37 GB".
---@param f table
---@return string
function forecast.text(f)
    return ("weights %s%s · keys and values %s (%d tokens) · workspace %s%s: %s"):format(text.bytes(f.weights),
        f.mapped > 0 and (" and %s in mapped files"):format(text.bytes(f.mapped)) or "", text.bytes(f.kv), f.tokens,
        text.bytes(f.workspace), f.libraries > 0 and " · libraries " .. text.bytes(f.libraries) or "",
        text.bytes(f.peak + f.libraries))
end

-- Types that might fit instead, the mildest first.
local SMALLER = { "int8", "nf4", "nf4:dq" }

--- The forecast with another type.
local function with_load(lm, w, word)
    local other = copy_of(lm)
    local options = setmetatable({ load = word, expect = lm.forecast }, { __index = lm.options })
    rawset(other, "options", options)
    return forecast.of(other, w, require("qmoon.loading").list(w, options))
end

--- What would fit into `free` bytes.
local function instead(lm, w, free)
    local f, found = lm.forecast, {}
    local left = free - f.libraries - f.weights - f.workspace
    local tokens = math.floor(left / (f.kv / f.tokens) / 256) * 256
    if tokens >= 256 and tokens < f.tokens then
        found[1] = ("--context %d"):format(tokens)
        if tokens * 2 >= f.tokens and lm.options.kv == "f32" then
            table.insert(found, 1, "--kv f16")
        end
    end
    for _, word in ipairs(lm.options.load and {} or SMALLER) do
        local other = with_load(lm, w, word)
        if other.peak + other.libraries <= free and #found < 3 then
            found[#found + 1] = ("--load %s (%s)"):format(word, text.bytes(other.peak))
        end
    end
    return #found > 0 and "these would: " .. table.concat(found, ", ")
        or "a smaller model, --device cpu or a larger GPU would do"
end

--- Raises "nofit" when a model does not fit the GPU that it is for, and says what would.
---@param lm qmoon.Runner
---@param w qmoon.Weights
function forecast.check(lm, w)
    local device = lm.options.device
    if not device then
        return
    end
    local free = device:memory()
    if lm.forecast.peak + lm.forecast.libraries > free then
        core.fail("nofit", "%s: does not fit %s: %s, and %s are free; %s", lm.model.path, tostring(device),
            forecast.text(lm.forecast), text.bytes(free), instead(lm, w, free))
    end
end

return forecast
