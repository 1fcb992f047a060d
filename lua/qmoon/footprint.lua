--- How much memory a model takes: weights by the planners' own rules, the cache of keys and values by its
--- shape.
--
-- Models are opened ones, or published ones by their shapes ("mixtral 8x7b"), of which nothing is downloaded.

local core = require "qmoon.core"
local gguf_tensors = require "qmoon.gguf_tensors"
local gguf_types = require "qmoon.gguf_types"
local nearest = require "qmoon.nearest"
local synth = require "qmoon.synth"

local footprint = {}

-- GiB for the driver's context, the program and its activations: an estimate, and said to be one.
footprint.WORKSPACE = 0.8

local function known()
    local list = {}
    for family, sizes in pairs(synth.sizes) do
        for name in pairs(sizes) do
            list[#list + 1] = family .. " " .. name
        end
    end
    table.sort(list)
    return list
end

--- A published model by family and size, as in "mixtral 8x7b"; headers only.
---@param name string
---@return qmoon.Model
function footprint.model(name)
    local family, size = name:lower():match "^(%S+)%s+(%S+)$"
    local sizes = family and synth.sizes[family]
    if not sizes or not sizes[size] then
        local guess = nearest(name, known())
        core.fail("usage", "no shapes are known of '%s'%s; there are %s", name,
            guess and (" (did you mean '%s'?)"):format(guess) or "", table.concat(known(), ", "))
    end
    return synth.headers(sizes[size])
end

--- Fails unless a model's shapes say how much memory it takes.
---@param model qmoon.Model
function footprint.check(model)
    if type(model) ~= "table" or not (model.config and model.config.arch) then
        core.fail("unsupported", "%s: memory is computed for model folders whose architecture is known",
            type(model) == "table" and tostring(model.path) or tostring(model))
    end
end

--- A model by its folder, or by family and size; and what to call it.
---@param name string
---@return qmoon.Model
---@return string
function footprint.of(name)
    if core.stat(name) then
        local model = require("qmoon.model").open(name)
        footprint.check(model)
        return model, name:match "([^/]+)/*$"
    end
    return footprint.model(name), name
end

local FOLDER = { f16 = true, bf16 = true, f32 = true, int8 = true, nf4 = true, fp4 = true }

-- Bits of a code, which the name of a type begins with: the rest of a tensor are scales.
local function code_bits(type_name)
    local digits = type_name:match "^%D*(%d+)"
    return digits and tonumber(digits) or 0
end

local function add(sum, bytes, count, bits)
    local codes = bits < 16 and math.min(bytes, count * bits / 8) or 0
    sum.codes, sum.total, sum.count = sum.codes + codes, sum.total + bytes, sum.count + count
    if bits < 16 then
        sum.scales, sum.quantised = sum.scales + bytes - codes, sum.quantised + count
    else
        sum.plain = sum.plain + bytes
    end
end

local function zero()
    return { codes = 0, scales = 0, plain = 0, total = 0, count = 0, quantised = 0 }
end

local function of_folder(model, format, options)
    local out = require("qmoon.output.folder").plan(model, { path = "", format = format,
        double_quant = options.double_quant,
                                                              block = options.block })
    local sum = zero()
    for _, row in ipairs(out.rows) do
        add(sum, row.bytes, row.count, row.why and 16 or code_bits(format))
    end
    return sum
end

local function of_gguf(model, format)
    local fields, a = model.config.fields, model.config.arch
    local tensors = gguf_tensors.of(model, a)
    for _, t in ipairs(tensors) do
        t.type_name = #t.shape < 2 and "F32" or "F16"
    end
    local plan = gguf_types.plan(tensors, format, { n_layer = fields.num_hidden_layers,
        n_head = fields.num_attention_heads,
        n_head_kv = fields.num_key_value_heads, n_expert = fields.num_local_experts or 0, arch = a.name })
    local sum = zero()
    for i, t in ipairs(tensors) do
        local count = 1
        for _, d in ipairs(t.shape) do
            count = count * d
        end
        add(sum, gguf_types.size(t.shape, plan[i].type_name), count, code_bits(plan[i].type_name))
    end
    return sum
end

--- Bytes of the weights in a format: a folder's (f16 int8 nf4 nf4:dq nf4:128 …) or llama-quantize's (q4_0
--- q4_k_m …).
---@param model qmoon.Model
---@param format string
---@return {codes: number, scales: number, plain: number, total: number, count: number, quantised: number}
function footprint.weights(model, format)
    local name, rest = format:match "^([^:]*):?(.*)$"
    if FOLDER[name] then
        return of_folder(model, name, { double_quant = rest:find "dq" ~= nil,
            block = tonumber(rest:match "%d+") })
    end
    return of_gguf(model, format)
end

--- Bytes that one token keeps in the cache of keys and values, in f16 unless bytes of a value are given.
---@param model qmoon.Model
---@param bytes? number
---@return number
function footprint.token(model, bytes)
    local f = model.config.fields
    local head = f.head_dim or f.hidden_size / f.num_attention_heads
    return 2 * f.num_hidden_layers * f.num_key_value_heads * head * (bytes or 2)
end

return footprint
