--- Synthetic checkpoints: real shapes, random weights, a made-up vocabulary of the right size, for benchmarks and tests.
-- The same arguments give the same bytes. Which tensors there are is what lua/qmoon/arch says.

local core = require "qmoon.core"
local arch = require "qmoon.arch"
local config = require "qmoon.config"
local files = require "qmoon.files"
local json = require "qmoon.json"
local safetensors = require "qmoon.output.safetensors"
local vocabulary = require "qmoon.synth_vocabulary"

local synth = {}

synth.sizes = require "qmoon.synth_sizes"

local STD = 0.02

-- The table of lua/qmoon/arch that a family of sizes goes with.
for name, family in pairs(synth.sizes) do
    local a = require("qmoon.arch." .. name)
    for _, size in pairs(family) do
        size.architectures, size.model_type = { a.architectures[1] }, a.model_type
    end
end

-- ---- tensors ------------------------------------------------------------------------------------------

--- Rows and columns of a module by the last part of its name; norms have none.
local function shape_of(module, f)
    local hidden, ffn = f.hidden_size, f.intermediate_size
    local head = f.head_dim or hidden / f.num_attention_heads
    local q, kv = f.num_attention_heads * head, f.num_key_value_heads * head
    if module:find "%.experts%." then
        ffn = f.moe_intermediate_size or ffn
    elseif module:find "%.shared_expert%." then
        ffn = f.shared_expert_intermediate_size
    end
    local shapes = {
        embed_tokens = { f.vocab_size, hidden }, lm_head = { f.vocab_size, hidden },
        q_proj = { q, hidden }, k_proj = { kv, hidden }, v_proj = { kv, hidden }, o_proj = { hidden, q },
        qkv_proj = { q + 2 * kv, hidden }, gate_up_proj = { 2 * ffn, hidden },
        gate_proj = { ffn, hidden }, up_proj = { ffn, hidden }, down_proj = { hidden, ffn },
        w1 = { ffn, hidden }, w3 = { ffn, hidden }, w2 = { hidden, ffn },
        gate = { f.num_local_experts, hidden }, shared_expert_gate = { 1, hidden },
        q_norm = { head }, k_norm = { head },
    }
    return shapes[module:match "[^.]+$"] or { hidden }
end

local function tensors_of(c)
    local list = {}
    for i, name in ipairs(arch.required(c.arch, c.fields)) do
        local module, suffix = name:match "^(.*)%.(%a+)$"
        local shape = shape_of(module, c.fields)
        list[i] = { name = name, dtype = "bf16", shape = suffix == "bias" and { shape[1] } or shape }
    end
    return list
end

--- Linear layers that an adapter is made for: all but experts.
local function linears(c)
    local list = {}
    for _, t in ipairs(tensors_of(c)) do
        local row = arch.row(c.arch, t.name)
        if row.role == "linear" and not row.stacked then
            list[#list + 1] = { module = t.name:match "^(.*)%.weight$", shape = t.shape }
        end
    end
    return list
end

local function adapter_tensors(c, rank)
    local list = {}
    for _, l in ipairs(linears(c)) do
        local module = "base_model.model." .. l.module
        list[#list + 1] = { name = module .. ".lora_A.weight", dtype = "bf16", shape = { rank, l.shape[2] } }
        list[#list + 1] = { name = module .. ".lora_B.weight", dtype = "bf16", shape = { l.shape[1], rank } }
    end
    return list
end

--- Writes files of random bf16 tensors; every tensor has a stream of random numbers of its own.
local function write_tensors(pool, dir, list, limit, seed, std)
    local groups, parameters = {}, 0
    for i, t in ipairs(list) do
        t.size = safetensors.size(t.dtype, t.shape)
        t.seed = seed * 65536 + i
        groups[i] = { t }
        parameters = parameters + t.size / 2
    end
    local shards = safetensors.shards(groups, limit)
    for i, tensors in ipairs(shards) do
        local header, size = safetensors.layout(tensors)
        local name = std.name or safetensors.name(i, #shards)
        local file = core.outfile(dir .. "/" .. name, size)
        file:write(0, header)
        for _, t in ipairs(tensors) do
            core.fill_bf16(pool, file, t.at, t.size / 2, t.seed, std[1])
        end
        file:finish()
    end
    if #shards > 1 then
        files.write(dir .. "/model.safetensors.index.json", safetensors.index(shards, parameters))
    end
end

-- ---- folders ----------------------------------------------------------------------------------------------

-- Whole numbers that are floats in a config.json.
local FLOATS = { rope_theta = true, rms_norm_eps = true, factor = true, low_freq_factor = true, high_freq_factor = true }

local function as_floats(fields)
    local copy = {}
    for key, value in pairs(fields) do
        local inner = key == "rope_scaling" and as_floats(value) or value
        copy[key] = FLOATS[key] and json.float(value) or inner
    end
    return copy
end

local function config_text(size, ids)
    local fields = as_floats(size)
    fields.pre = nil
    fields.torch_dtype, fields.initializer_range, fields.use_cache = "bfloat16", STD, true
    fields.bos_token_id, fields.eos_token_id = fields.bos_token_id or ids.bos, fields.eos_token_id or ids.eos
    fields.transformers_version = "4.43.1"
    return json.encode(fields, { indent = 2 }) .. "\n"
end

local function check_new(dir, force)
    if core.stat(dir) and not force then
        core.fail("fail", "%s: is there already; --force writes into it", dir)
    end
    core.mkdir(dir)
end

local function parsed(size)
    return config.parse(config_text(size, {}), "config.json")
end

--- A model that has headers only: a config and tensors with their shapes, for plans of models that are not here.
---@param size table one of synth.sizes
---@return qmoon.Model
function synth.headers(size)
    local c, items = parsed(size), {}
    for i, t in ipairs(tensors_of(c)) do
        local source = { name = t.name, dtype = t.dtype, format = t.dtype, shape = t.shape, size = safetensors.size(t.dtype, t.shape) }
        items[i] = { name = t.name, shape = t.shape, source = source, actions = {} }
    end
    return { kind = "folder", config = c, items = items, notices = {}, adapters = {} }
end

---@param size table one of synth.sizes
---@param dir string
---@param options {seed:integer, threads:integer?, shard_size:integer?, force:boolean?}
function synth.model(size, dir, options)
    check_new(dir, options.force)
    local pool = core.pool(options.threads or core.cpus())
    local ids = vocabulary.write(dir, size.vocab_size, size.pre)
    files.write(dir .. "/config.json", config_text(size, ids))
    write_tensors(pool, dir, tensors_of(parsed(size)), options.shard_size or 5e9, options.seed, { STD })
    pool:close()
end

--- A LoRA adapter on every linear layer that is no expert.
---@param size table
---@param dir string
---@param options {seed:integer, rank:integer, threads:integer?, force:boolean?}
function synth.adapter(size, dir, options)
    check_new(dir, options.force)
    local pool = core.pool(options.threads or core.cpus())
    local c, modules, seen = parsed(size), {}, {}
    for _, l in ipairs(linears(c)) do
        local name = l.module:match "[^.]+$"
        modules[#modules + 1] = not seen[name] and name or nil
        seen[name] = true
    end
    files.write(dir .. "/adapter_config.json", json.encode({
        peft_type = "LORA", task_type = "CAUSAL_LM", r = options.rank, lora_alpha = 2 * options.rank,
        lora_dropout = json.float(0), bias = "none", fan_in_fan_out = false, inference_mode = true, init_lora_weights = true,
        target_modules = modules, base_model_name_or_path = core.null,
    }, { indent = 2 }) .. "\n")
    write_tensors(pool, dir, adapter_tensors(c, options.rank), math.huge, options.seed + 1,
        { STD / 2, name = "adapter_model.safetensors" })
    pool:close()
end

return synth
