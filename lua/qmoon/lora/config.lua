--- adapter_config.json: what it says, and what is refused by name.
--
-- peft's file carries every option of the method, most of them without effect on a merge.  An option that
-- changes the algebra is either done exactly or refused; an unknown option with a value might change it too.
local core = require "qmoon.core"

local M = {}

--- Options that change which weights come out, in other ways than those merged here.
local REFUSED = {
    target_parameters = "LoRA on stacked expert parameters",
    layer_replication = "layers repeated before training",
    use_qalora = "QA-LoRA, which peft itself does not merge",
    alora_invocation_tokens = "aLoRA, which acts on part of the tokens only",
    arrow_config = "Arrow routing, which picks adapters token by token",
    use_bdlora = "BD-LoRA, block-diagonal factors",
    velora_config = "VeLoRA",
    monteclora_config = "MonteCLoRA, sampled factors",
    kasa_config = "KaSA, which drops singular components of the base",
}

--- Options with no effect on a merge (peft 0.21 and earlier), or read elsewhere in this folder.
local KNOWN = {}
for name in ([[
    peft_type base_model_name_or_path revision task_type auto_mapping inference_mode peft_version
    r lora_alpha lora_dropout use_rslora use_dora fan_in_fan_out bias lora_bias rank_pattern alpha_pattern
    target_modules exclude_modules layers_to_transform layers_pattern modules_to_save
    trainable_token_indices ensure_weight_tying init_lora_weights
    loftq_config eva_config corda_config lora_ga_config megatron_config megatron_core qalora_group_size
    runtime_config
]]):gmatch "%S+" do
    KNOWN[name] = true
end

--- Initialisers that leave the base as it was, so that the adapter is an update of the original weights.
local PLAIN_INIT = {
    ["true"] = true, ["false"] = true, gaussian = true, eva = true, orthogonal = true, mica = true,
}

--- null, false, empty and zero-length values switch nothing on.
local function has_value(v)
    if v == nil or v == core.null or v == false or v == "" then
        return false
    end
    return type(v) ~= "table" or next(v) ~= nil
end

local function as_table(v, what, name)
    if not has_value(v) then
        return {}
    elseif type(v) ~= "table" then
        core.fail("corrupt", "%s: '%s' must be a list or an object", what, name)
    end
    return v
end

local function as_names(v, what, name)
    local list = as_table(v, what, name)
    for _, entry in pairs(list) do
        if type(entry) ~= "string" then
            core.fail("corrupt", "%s: '%s' must be a list of names", what, name)
        end
    end
    return list
end

local function as_number(v, default, what, name)
    if v == nil or v == core.null then
        return default
    elseif type(v) ~= "number" then
        core.fail("corrupt", "%s: '%s' must be a number", what, name)
    end
    return v
end

local function rank(v, what, name)
    if type(v) ~= "number" or v < 1 or v % 1 ~= 0 then
        core.fail("corrupt", "%s: %s must be a whole number of at least 1, not %s", what, name, tostring(v))
    end
    return v
end

local function refuse_other_methods(raw, what)
    local kind = raw.peft_type
    if not has_value(kind) then
        core.fail("corrupt", "%s: no 'peft_type'; this is not a peft adapter's configuration", what)
    elseif kind ~= "LORA" then
        core.fail("unsupported", "%s: peft_type %s has another algebra than LoRA and cannot be merged here; "
            .. "merge it with peft (merge_and_unload) first", what, tostring(kind))
    end
end

local function refuse_variants(raw, what)
    for name, meaning in pairs(REFUSED) do
        if has_value(raw[name]) then
            core.fail("unsupported", "%s: '%s' (%s) is not supported; merge this adapter with peft first",
                what, name, meaning)
        end
    end
    for name, value in pairs(raw) do
        if not KNOWN[name] and not REFUSED[name] and has_value(value) then
            core.fail("unsupported", "%s: option '%s' is unknown here and has a value; it may change the "
                .. "weights: merge this adapter with peft first", what, name)
        end
    end
end

--- The initialiser matters only where it changed the base that the adapter was trained on.
local function initialiser(raw, what)
    local init = raw.init_lora_weights
    if init == nil or init == core.null then
        init = true
    end
    local name = tostring(init)
    if not PLAIN_INIT[name] then
        core.fail("unsupported", "%s: init_lora_weights '%s' changes the base weights before training, so "
            .. "this adapter does not belong on the original base; save it as plain LoRA with peft's "
            .. "path_initial_model_for_weight_conversion", what, name)
    end
    return name
end

local function bias_mode(raw, what)
    local mode = has_value(raw.bias) and raw.bias or "none"
    if mode ~= "none" and mode ~= "all" and mode ~= "lora_only" then
        core.fail("unsupported", "%s: bias '%s' is none of none, all, lora_only", what, tostring(mode))
    end
    return mode
end

--- peft tries the patterns in the order of the file and takes the first that matches.
local function patterns(text, raw, name, what)
    local list = {}
    for pattern, value in pairs(as_table(raw[name], what, name)) do
        local label = ("'%s' of pattern '%s'"):format(name, tostring(pattern))
        if type(pattern) ~= "string" or type(value) ~= "number" then
            core.fail("corrupt", "%s: %s must be a number", what, label)
        end
        if name == "rank_pattern" then
            rank(value, what, label)
        end
        local ok, regex = pcall(core.regex, "(.*\\.)?(" .. pattern .. ")$")
        if not ok then
            core.fail("corrupt", "%s: '%s': %s", what, name, tostring(regex))
        end
        list[#list + 1] = { pattern = pattern, value = value, regex = regex }
    end
    if #list > 1 then
        local place = {}
        for i, key in ipairs(core.json_keys(text, what, name)) do
            place[key] = i
        end
        table.sort(list, function(a, b) return place[a.pattern] < place[b.pattern] end)
    end
    return list
end

local function first_match(list, module, default)
    for _, p in ipairs(list) do
        if p.regex:match(module) then
            return p.value
        end
    end
    return default
end

--- Rank, alpha and the factor that the product of the two matrices is multiplied by.
---@param config table
---@param module string the module's full name as the adapter spells it
---@return {rank:integer, alpha:number, scale:number}
function M.scaling(config, module)
    local r = first_match(config.rank_pattern, module, config.r)
    local alpha = first_match(config.alpha_pattern, module, config.alpha)
    return { rank = r, alpha = alpha, scale = alpha / (config.rslora and math.sqrt(r) or r) }
end

--- Reads the text of adapter_config.json.
---@param text string
---@param what string the file's name, for messages
---@return table config the options that a merge depends on
function M.read(text, what)
    local raw = core.json_decode(text, what)
    if type(raw) ~= "table" then
        core.fail("corrupt", "%s: is not an object", what)
    end
    refuse_other_methods(raw, what)
    refuse_variants(raw, what)
    local config = {
        base = has_value(raw.base_model_name_or_path) and tostring(raw.base_model_name_or_path) or nil,
        r = rank(as_number(raw.r, 8, what, "r"), what, "'r'"),
        alpha = as_number(raw.lora_alpha, 8, what, "lora_alpha"),
        rslora = raw.use_rslora == true,
        dora = raw.use_dora == true,
        lora_bias = raw.lora_bias == true,
        fan_in_fan_out = raw.fan_in_fan_out == true,
        bias = bias_mode(raw, what),
        init = initialiser(raw, what),
        rank_pattern = patterns(text, raw, "rank_pattern", what),
        alpha_pattern = patterns(text, raw, "alpha_pattern", what),
        modules_to_save = as_names(raw.modules_to_save, what, "modules_to_save"),
        token_rows = as_table(raw.trainable_token_indices, what, "trainable_token_indices"),
        -- a regular expression or "all-linear" is not looked into
        targets = as_names(type(raw.target_modules) == "table" and raw.target_modules, what, "target_modules"),
        some_layers_only = has_value(raw.layers_to_transform) or has_value(raw.exclude_modules),
    }
    -- peft refuses these pairs when the adapter is made
    if config.dora and config.lora_bias then
        core.fail("unsupported", "%s: use_dora and lora_bias exclude each other", what)
    elseif config.dora and config.init == "mica" then
        core.fail("unsupported", "%s: use_dora and init_lora_weights 'mica' exclude each other", what)
    end
    return config
end

return M
