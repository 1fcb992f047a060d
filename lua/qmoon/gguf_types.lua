--- Which type each tensor of a GGUF file gets: llama-quantize's rules, and the converter's.
--
-- Everything here is a pure function of names, shapes and options; nothing is read or written. Which
-- tensors get more bits is in gguf_mixture.lua, what changed between versions in gguf_profiles.lua.
-- Source: llama.cpp, src/llama-quant.cpp and convert_hf_to_gguf.py.

local core = require "qmoon.core"
local mixture = require "qmoon.gguf_mixture"
local profiles = require "qmoon.gguf_profiles"

local types = {}

-- ---- the types and file types -----------------------------------------------------------------

-- file type = {general.file_type, type that most tensors get}
local FTYPES = {
    F32 = { 0, "F32" }, F16 = { 1, "F16" }, BF16 = { 32, "BF16" },
    Q4_0 = { 2, "Q4_0" }, Q4_1 = { 3, "Q4_1" }, Q5_0 = { 8, "Q5_0" }, Q5_1 = { 9, "Q5_1" },
    Q8_0 = { 7, "Q8_0" },
    Q2_K = { 10, "Q2_K" }, Q2_K_S = { 21, "Q2_K" },
    Q3_K_S = { 11, "Q3_K" }, Q3_K_M = { 12, "Q3_K" }, Q3_K_L = { 13, "Q3_K" },
    Q4_K_S = { 14, "Q4_K" }, Q4_K_M = { 15, "Q4_K" }, Q5_K_S = { 16, "Q5_K" }, Q5_K_M = { 17, "Q5_K" },
    Q6_K = { 18, "Q6_K" },
    IQ1_S = { 24, "IQ1_S" }, IQ1_M = { 31, "IQ1_M" },
    IQ2_XXS = { 19, "IQ2_XXS" }, IQ2_XS = { 20, "IQ2_XS" }, IQ2_S = { 28, "IQ2_XS" }, IQ2_M = { 29, "IQ2_S" },
    IQ3_XXS = { 23, "IQ3_XXS" }, IQ3_XS = { 22, "IQ3_S" }, IQ3_S = { 26, "IQ3_S" }, IQ3_M = { 27, "IQ3_S" },
    IQ4_NL = { 25, "IQ4_NL" }, IQ4_XS = { 30, "IQ4_XS" },
    TQ1_0 = { 36, "TQ1_0" }, TQ2_0 = { 37, "TQ2_0" }, MXFP4_MOE = { 38, "MXFP4" },
}

local ALIASES = { Q3_K = "Q3_K_M", Q4_K = "Q4_K_M", Q5_K = "Q5_K_M" }

--- The file types by name, in lower case, sorted.
---@return string[]
function types.ftypes()
    local names = {}
    for name in pairs(FTYPES) do
        names[#names + 1] = name:lower()
    end
    table.sort(names)
    return names
end

--- A file type by name in either case: its upper-case name, general.file_type, default type.
---@param name string
---@return string name, integer id, string default
function types.ftype(name)
    local upper = name:upper()
    upper = ALIASES[upper] or upper
    local ftype = FTYPES[upper]
    if not ftype then
        core.fail("usage", "unknown GGUF type '%s'; there are %s", name, table.concat(types.ftypes(), " "))
    end
    return upper, ftype[1], ftype[2]
end

local by_name

--- A tensor type {id, name, block, bytes} by its upper-case name, or nil.
---@param name string
---@return table?
function types.type(name)
    if not by_name then
        by_name = {}
        for _, t in ipairs(core.gguf_types()) do
            by_name[t.name] = t
        end
    end
    return by_name[name]
end

local FLOAT = { F32 = true, F16 = true, BF16 = true, F64 = true }

local function row_length(tensor)
    return tensor.shape[#tensor.shape] or 1
end

--- Dimensions as ggml counts them: leading ones (trailing, in its order) do not count.
local function dims(tensor)
    local first = 1
    while first < #tensor.shape and tensor.shape[first] == 1 do
        first = first + 1
    end
    return #tensor.shape - first + 1
end

--- Bytes of a tensor of this shape in type `name`.
---@param shape integer[] torch order
---@param name string
---@return integer
function types.size(shape, name)
    local t, values = types.type(name), 1
    for _, n in ipairs(shape) do
        values = values * n
    end
    return values / t.block * t.bytes
end

-- ---- order ----------------------------------------------------------------------------------

--- llama-quantize's order: tensors without a layer first, then by layer number, then by name.
---@param a string
---@param b string
---@return boolean
function types.before(a, b)
    local la, lb = tonumber(a:match "^blk%.(%d+)%.") or -1, tonumber(b:match "^blk%.(%d+)%.") or -1
    if la ~= lb then
        return la < lb
    end
    return a < b
end

--- The tensors in llama-quantize's order, in a new list.
---@param tensors table[] {name=}
---@return table[]
function types.sorted(tensors)
    local list = {}
    for i, t in ipairs(tensors) do
        list[i] = t
    end
    table.sort(list, function(a, b) return types.before(a.name, b.name) end)
    return list
end

-- ---- which tensors are quantised at all -------------------------------------------------------

-- Plain substrings. Norms, routers and everything tiny stay as they are.
local NEVER = {
    "_norm.weight", "ffn_gate_inp.weight", "altup", "laurel", "per_layer_model_proj", "ssm_conv1d.weight",
    "shortconv.conv.weight", "time_mix_first.weight", "time_mix_w0.weight", "time_mix_w1.weight",
    "time_mix_w2.weight", "time_mix_v0.weight", "time_mix_v1.weight", "time_mix_v2.weight",
    "time_mix_a0.weight", "time_mix_a1.weight", "time_mix_a2.weight", "time_mix_g1.weight",
    "time_mix_g2.weight", "time_mix_decay_w1.weight", "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight", "attn_rel_b.weight", ".position_embd.",
}

local ALSO_NEVER = { ["position_embd.weight"] = true, ["token_types.weight"] = true }

--- Why a tensor is left as it is, or nil when it is to be quantised.
local function kept(tensor, options)
    local name = tensor.name
    if dims(tensor) < 2 then
        return "kept: 1-D"
    elseif not name:find "weight$" then
        return "kept: not a weight"
    elseif name == "output.weight" and options.leave_output_tensor then
        return "kept: --leave-output-tensor"
    elseif ALSO_NEVER[name] then
        return "kept: position or type embedding"
    end
    for _, part in ipairs(NEVER) do
        if name:find(part, 1, true) then
            return "kept: " .. part:gsub("^[._]", ""):gsub("%.weight$", "")
        end
    end
end

-- ---- choosing ----------------------------------------------------------------------------------

--- A type whose blocks fit the rows, and what to say when it is not the one wanted.
local function fitting(s, tensor, wanted, strict)
    local columns, block = row_length(tensor), types.type(wanted).block
    if columns % block == 0 then
        return wanted
    end
    local why = ("rows of %d are no multiple of %d, which %s needs"):format(columns, block, wanted)
    local instead = not strict and s.profile.fallback[wanted]
    if not instead and s.profile.override == "last" then
        core.fail("unsupported", "tensor '%s': %s", tensor.name, why)
    end
    if not instead or columns % types.type(instead).block ~= 0 then
        instead = "F16"
    end
    return instead, "fallback: " .. why
end

--- The type that --tensor-type gives to this name, or nil.
local function override(s, name)
    local chosen
    for _, row in ipairs(s.overrides) do
        if row.regex:search(name) then
            chosen = row.type
            if s.profile.override == "first" then
                break
            end
        end
    end
    return chosen
end

local function choose_quantized(s, tensor, pure)
    local forced = override(s, tensor.name)
    if s.profile.override == "first" then
        local wanted = forced or not pure and mixture.type(s, tensor) or s.default
        local chosen, reason = fitting(s, tensor, wanted)
        return chosen, reason or forced and "chosen: --tensor-type" or nil
    elseif pure then
        return fitting(s, tensor, s.default, true)
    end
    local chosen, reason = fitting(s, tensor, mixture.type(s, tensor) or s.default)
    if forced and not reason then
        return forced, "chosen: --tensor-type"
    end
    return chosen, reason
end

local function choose(s, tensor, options)
    if s.embedding_type and tensor.name == "token_embd.weight" then
        return s.embedding_type, "chosen: --token-embedding-type"
    elseif s.output_type and tensor.name == "output.weight" then
        return s.output_type, "chosen: --output-tensor-type"
    elseif FLOAT[s.default] then
        return s.default
    end
    return choose_quantized(s, tensor, options.pure)
end

local function upper(name)
    if name ~= nil and not types.type(name:upper()) then
        core.fail("usage", "unknown tensor type '%s'", name)
    end
    return name and name:upper()
end

local function set(names)
    local t = {}
    for name in names:gmatch "%S+" do
        t[name] = true
    end
    return t
end

-- 80 layers are what llama.cpp calls the 70B size in these architectures.
local SEVENTY = set "llama qwen2 deci olmo"

local function state(tensors, ftype, default, options)
    local s = {
        ftype = ftype, default = default, block = types.type(default).block, count = {}, n_v = 0, tied = true,
        profile = profiles.named(options.profile),
        n_layer = options.n_layer, experts = options.n_expert or 0, imatrix = options.imatrix or false,
        gqa = options.n_head_kv > 0 and math.floor(options.n_head / options.n_head_kv) or 0,
        falcon = options.arch == "falcon",
        output_type = upper(options.output_tensor_type),
        embedding_type = upper(options.token_embedding_type),
        overrides = {},
    }
    s.is_70b = options.n_layer == 80 and SEVENTY[options.arch] and
        not (options.arch == "llama" and options.n_head == options.n_head_kv) or false
    for i, row in ipairs(options.tensor_types or {}) do
        s.overrides[i] = { regex = core.regex(row[1]), type = upper(row[2]) }
    end
    for _, t in ipairs(tensors) do
        local kind = mixture.category(t.name)
        s.n_v = s.n_v + ((kind == "v" or kind == "qkv" or kind == "kv_b") and 1 or 0)
        s.tied = s.tied and kind ~= "output"
    end
    return s
end

--- Whether a type gives garbage without an importance matrix; embeddings and output are spared.
local function needs_imatrix(s, tensor, type_name)
    local kind = mixture.category(tensor.name)
    if kind == "output" or kind == "embedding" then
        return false
    end
    return s.profile.needs_imatrix[type_name] or type_name == "Q2_K" and s.ftype == "Q2_K_S"
end

local function available(formats)
    local names = {}
    for _, f in ipairs(formats) do
        if f.gguf_name then
            names[f.gguf_name] = true
        end
    end
    return names
end

--- Refuses a plan that needs a type this program cannot encode, naming the type.
local function require_formats(list, tensors, ftype)
    local have = available(core.formats())
    for i, row in ipairs(list) do
        if row.type_name ~= tensors[i].type_name and not have[row.type_name] then
            core.fail("unsupported", "type %s needs %s for tensor '%s', which this program cannot write yet",
                ftype:lower(), row.type_name:lower(), tensors[i].name)
        end
    end
end

--- The type of every tensor of a file that llama-quantize would write.
---
--- options: n_layer, n_head, n_head_kv (of layer 0), n_expert, arch; imatrix = whether there is one; pure,
--- leave_output_tensor, output_tensor_type, token_embedding_type, tensor_types = {{regex, type}, …},
--- allow_requantize; profile; in_file_order = tensors are counted as they come; any_format = plan also what cannot be encoded yet.
---@param tensors table[] {name=, shape=torch order, type_name=}
---@param ftype_name string
---@param options table
---@return {type_name: string, reason: string?, needs_imatrix: boolean?}[] plan in the order of `tensors`
---@return integer file_type
function types.plan(tensors, ftype_name, options)
    local ftype, id, default = types.ftype(ftype_name)
    local s = state(tensors, ftype, default, options)
    local chosen = {}
    for _, t in ipairs(options.in_file_order and tensors or types.sorted(tensors)) do
        local reason = kept(t, options)
        local name = t.type_name
        if not reason then
            name, reason = choose(s, t, options)
        end
        if name ~= t.type_name and not FLOAT[t.type_name] and not options.allow_requantize then
            core.fail("usage", "tensor '%s' is %s already; quantising it again costs quality: start from the "
                .. "original, or allow it with --allow-requantize", t.name, t.type_name)
        end
        local needs = name ~= t.type_name and needs_imatrix(s, t, name) or nil
        if needs and not options.imatrix then
            core.fail("unsupported", "type %s needs an importance matrix for tensor '%s'; give one with --imatrix", ftype:lower(),
                t.name)
        end
        chosen[t.name] = { type_name = name, reason = reason, needs_imatrix = needs }
    end
    local list = {}
    for i, t in ipairs(tensors) do
        list[i] = chosen[t.name]
    end
    if not options.any_format then
        require_formats(list, tensors, ftype)
    end
    return list, id
end

-- ---- the converter ------------------------------------------------------------------------------

local OUTTYPES = set "F32 F16 BF16 Q8_0"

--- The type of every tensor of a file that convert_hf_to_gguf.py would write: norms, biases and routers in
--- F32, the rest in the type asked for.
---@param tensors table[] {name = GGUF name, shape = torch order}
---@param outtype string f32, f16, bf16 or q8_0
---@param profile? string
---@return {type_name: string, reason: string?}[] plan
---@return integer file_type
function types.convert(tensors, outtype, profile)
    local wanted, id = types.ftype(outtype)
    if not OUTTYPES[wanted] then
        core.fail("usage", "%s is no type to convert to; there are f32 f16 bf16 q8_0", outtype)
    end
    local list, block = {}, types.type(wanted).block
    local router = profiles.named(profile).shared_router and "ffn_gate_inp[_shexp]*%.weight$"
        or "ffn_gate_inp%.weight$"
    for i, t in ipairs(tensors) do
        local name, columns = t.name, row_length(t)
        local small = name:find "_norm%.weight$" or name:find(router)
            or not name:find "%.weight$"
        if #t.shape <= 1 then
            list[i] = { type_name = "F32", reason = "kept: 1-D" }
        elseif small then
            list[i] = { type_name = "F32", reason = "kept: norm, router or no weight" }
        elseif columns % block ~= 0 then
            local reason = ("fallback: rows of %d are no multiple of %d"):format(columns, block)
            list[i] = { type_name = "F16", reason = reason }
        else
            list[i] = { type_name = wanted }
        end
    end
    return list, id
end

return types
