--- bitsandbytes' tensors and config keys in a checkpoint.
--
--   int8   X.weight I8 [N,K]   X.SCB F32 [N]   X.weight_format U8 [] = 0
--   4-bit  X.weight U8 [(n+1)/2, 1]   X.weight.absmax F32 [B]   X.weight.quant_map F32 [16]
--          X.weight.quant_state.bitsandbytes__nf4 U8: JSON text
--   double X.weight.absmax U8 [B]   X.weight.nested_absmax F32 [B/256]   X.weight.nested_quant_map F32 [256]
--
-- The nested offset is known only when the whole tensor has been seen, and the header before; so the JSON
-- text is padded with blanks to the longest number, which every JSON reader skips.

local core = require "qmoon.core"
local json = require "qmoon.json"
local safetensors = require "qmoon.output.safetensors"
local Model = require "qmoon.model"

local bnb = {}

local NESTED = 256
local LONGEST_NUMBER = 24

local TORCH = { f16 = "float16", bf16 = "bfloat16", f32 = "float32" }

--- Python's json.dumps of the quant_state, in bitsandbytes' key order.
local function quant_state(spec, dtype, shape, block, offset)
    local members = { { "quant_type", spec.format }, { "blocksize", block }, { "dtype", TORCH[dtype] },
                      { "shape", json.array(shape) } }
    if spec.double_quant then
        members[5] = { "nested_blocksize", NESTED }
        members[6] = { "nested_dtype", "float32" }
        members[7] = { "nested_offset", json.float(offset) }
    end
    return json.encode(json.object(members))
end

local function four_bit(item, spec)
    local n, _, cols = Model.extent(item.shape)
    local sizes, block = core.plane_sizes(spec.format, n, cols, spec.block or 0, item.name)
    local groups = math.ceil(n / block)
    local dtype = spec.dtype == "keep" and item.source.dtype or spec.dtype
    local text = quant_state(spec, dtype, item.shape, block, 0)
    local state_size = spec.double_quant and #text - #"0.0" + LONGEST_NUMBER or #text
    local name = item.name
    local parts = {
        { name = name, dtype = "u8", shape = { sizes[1], 1 } },
        { name = name .. ".absmax", dtype = spec.double_quant and "u8" or "f32", shape = { groups } },
        { name = name .. ".quant_map", dtype = "f32", shape = { 16 }, bytes = core.levels(spec.format) },
        { name = name .. ".quant_state.bitsandbytes__" .. spec.format, dtype = "u8", shape = { state_size } },
    }
    local state = parts[4]
    local sink = { format = spec.format, block = block, exact_zero = spec.zero_blocks == "exact",
                   nearest = spec.rounding == "nearest" }
    if spec.double_quant then
        parts[5] = { name = name .. ".nested_absmax", dtype = "f32", shape = { math.ceil(groups / NESTED) } }
        parts[6] = { name = name .. ".nested_quant_map", dtype = "f32", shape = { 256 }, bytes = core.levels "dynamic8" }
        sink.double_quant = true
        sink.title = spec.format .. "+dq"
        function sink.late(result)
            local bytes = quant_state(spec, dtype, item.shape, block, result.offset)
            return { { state.at, bytes .. (" "):rep(state_size - #bytes) } }
        end
    else
        state.bytes = text
    end
    return parts, sink
end

local function eight_bit(item, spec)
    local module = item.name:gsub("%.weight$", "")
    return {
        { name = item.name, dtype = "i8", shape = item.shape },
        { name = module .. ".SCB", dtype = "f32", shape = { item.source.rows or item.shape[1] } },
        { name = module .. ".weight_format", dtype = "u8", shape = {}, bytes = "\0" },
    }, { format = "int8", nearest = spec.rounding == "nearest" }
end

--- The tensors that hold a quantised weight, first the planes in order, and the sink that fills them.
function bnb.parts(item, spec)
    local parts, sink = (spec.format == "int8" and eight_bit or four_bit)(item, spec)
    for _, p in ipairs(parts) do
        p.size = safetensors.size(p.dtype, p.shape)
    end
    return parts, sink
end

--- Once the parts have their place in a file, the sink learns it.
function bnb.place(sink, parts)
    sink.file, sink.at = parts[1].file, { parts[1].at, parts[2] and parts[2].at }
    if sink.double_quant then
        sink.nested_at = parts[5].at
    end
end

--- quantization_config with every key that transformers writes.  The skip list is explicit, although
--- transformers writes null: with null each release works out its own.
---@param spec table
---@param dtype string torch name of what stays 16-bit; also the compute dtype
---@param skip string[] module names
---@return string JSON text
function bnb.config(spec, dtype, skip)
    local four = spec.format ~= "int8"
    return json.encode(json.object {
        { "_load_in_4bit", four },
        { "_load_in_8bit", not four },
        { "bnb_4bit_compute_dtype", four and dtype or "float32" },
        { "bnb_4bit_quant_storage", "uint8" },
        { "bnb_4bit_quant_type", four and spec.format or "fp4" },
        { "bnb_4bit_use_double_quant", four and spec.double_quant or false },
        { "llm_int8_enable_fp32_cpu_offload", false },
        { "llm_int8_has_fp16_weight", false },
        { "llm_int8_skip_modules", json.array(skip) },
        { "llm_int8_threshold", json.float(6) },
        { "load_in_4bit", four },
        { "load_in_8bit", not four },
        { "quant_method", "bitsandbytes" },
    }, { indent = 2 })
end

return bnb
