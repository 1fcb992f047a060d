--- config.json: read in both styles, edited in place.
--
-- transformers 4 wrote torch_dtype, rope_theta, rope_scaling; transformers 5 writes dtype and
-- rope_parameters. `fields` has one set of names for both: dtype, rope_theta, rope_scaling.

local core = require "qmoon.core"
local arch = require "qmoon.arch"
local files = require "qmoon.files"
local json = require "qmoon.json"

local config = {}

local function without_nulls(t)
    for key, value in pairs(t) do
        if value == core.null then
            t[key] = nil
        end
    end
end

local function fail_field(what, key, value, wanted)
    core.fail("corrupt", "%s: %s is %s, and must be %s", what, key, type(value) == "table" and "a list or object"
        or tostring(value), wanted)
end

--- Numbers, but for the name of the kind, and lists of numbers.
local function check_rope(scaling, what)
    for key, value in pairs(scaling) do
        local name = key == "rope_type" or key == "type"
        if name and type(value) ~= "string" then
            fail_field(what, key, value, "a name")
        elseif not name and type(value) == "string" then
            fail_field(what, key, value, "a number")
        end
        for _, v in ipairs(type(value) == "table" and value or {}) do
            if type(v) ~= "number" then
                fail_field(what, key, v, "a list of numbers")
            end
        end
    end
    for _, key in ipairs { "factor", "rope_theta", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
                           "attention_factor", "partial_rotary_factor" } do
        if scaling[key] ~= nil and (type(scaling[key]) ~= "number" or scaling[key] <= 0) then
            fail_field(what, key, scaling[key], "a number above 0")
        end
    end
    for _, key in ipairs { "long_factor", "short_factor" } do
        if scaling[key] ~= nil and type(scaling[key]) ~= "table" then
            fail_field(what, key, scaling[key], "a list of numbers")
        end
    end
end

-- Numbers that not every architecture has a default for.
local NUMBERS = { "head_dim", "num_key_value_heads", "partial_rotary_factor", "original_max_position_embeddings",
                  "max_position_embeddings", "rope_theta", "rope_local_base_freq", "sliding_window", "rms_norm_eps",
                  "attn_logit_softcapping", "final_logit_softcapping", "num_local_experts", "num_experts_per_tok" }

-- Fields without which there is no model: null is no way to leave them out.
local NEEDED = { "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "max_position_embeddings" }

--- What is there must be of the kind that the architecture's defaults are of; ids of tokens may be lists.
local function check_kinds(merged, a, what)
    for key, default in pairs(a and a.defaults or {}) do
        local value = merged[key]
        if value ~= nil and type(value) ~= type(default) and not key:find "_token_id$" then
            fail_field(what, key, value, "a " .. type(default))
        end
    end
    for _, key in ipairs(a and NUMBERS or {}) do
        if merged[key] ~= nil and type(merged[key]) ~= "number" then
            fail_field(what, key, merged[key], "a number")
        end
    end
    for _, key in ipairs(a and a.defaults.hidden_size and NEEDED or {}) do
        if merged[key] == nil and a.defaults[key] then
            core.fail("corrupt", "%s: %s is null", what, key)
        end
    end
end

--- transformers' own spelling of rope scaling: rope_type (once: type), nothing when it is "default".
local function rope_of(raw, what)
    local parameters = raw.rope_parameters or raw.rope_scaling
    if type(parameters) ~= "table" then
        return raw.rope_theta, nil
    end
    local full = parameters.full_attention -- one set for each kind of layer
    parameters = type(full) == "table" and full or parameters
    local scaling = {}
    for key, value in pairs(parameters) do
        scaling[key] = value
    end
    without_nulls(scaling)
    check_rope(scaling, what)
    local theta = scaling.rope_theta or raw.rope_theta
    scaling.rope_type = scaling.rope_type or scaling.type
    scaling.attention_factor = scaling.attention_factor or scaling.attn_factor
    scaling.rope_theta, scaling.type, scaling.attn_factor = nil, nil, nil
    if scaling.rope_type == nil or scaling.rope_type == "default" then
        return theta, nil
    end
    if scaling.rope_type == "yarn" then
        scaling.original_max_position_embeddings = scaling.original_max_position_embeddings
            or raw.original_max_position_embeddings or raw.max_position_embeddings
    end
    return theta, scaling
end

--- Where layers with a sliding window turn at another pace than the rest (Gemma 3).
local function local_theta_of(raw)
    local sliding = type(raw.rope_parameters) == "table" and raw.rope_parameters.sliding_attention
    return type(sliding) == "table" and sliding.rope_theta or raw.rope_local_base_freq
end

local function dtype_of(raw)
    local dtype = raw.dtype or raw.torch_dtype
    return type(dtype) == "string" and dtype:gsub("^torch%.", "") or nil
end

--- What the fields are, whichever style wrote them; what is left out is as transformers has it.
local function fields_of(raw, a, what)
    local merged = {}
    for key, value in pairs(a and a.defaults or { tie_word_embeddings = true }) do
        merged[key] = value
    end
    for _, level in ipairs { raw, type(raw.text_config) == "table" and raw.text_config or {} } do
        for key, value in pairs(level) do
            merged[key] = value
        end
    end
    without_nulls(merged) -- only now: an explicit null overrides a default
    local parameters = merged.rope_parameters
    local partial = type(parameters) == "table" and parameters.partial_rotary_factor
    merged.partial_rotary_factor = partial ~= core.null and partial or merged.partial_rotary_factor
    merged.rope_local_base_freq = local_theta_of(merged)
    merged.rope_theta, merged.rope_scaling = rope_of(merged, what)
    check_kinds(merged, a, what)
    merged.dtype = dtype_of(merged)
    merged.torch_dtype, merged.rope_parameters = nil, nil
    merged.num_key_value_heads = merged.num_key_value_heads or merged.num_attention_heads
    if a and a.complete then
        a.complete(merged)
    end
    return merged
end

-- Sizes that other things are counted by; {field, least}.
local SIZES = {
    { "hidden_size", 1 }, { "num_attention_heads", 1 }, { "num_key_value_heads", 1 }, { "num_hidden_layers", 0 },
    { "vocab_size", 1 }, { "num_local_experts", 1 }, { "num_experts", 1 }, { "head_dim", 1 },
}
local MOST = 2 ^ 24

--- Sizes must be whole numbers that a model can have: names are made from them, and memory is taken.
local function check_sizes(raw, what)
    for _, level in ipairs { raw, type(raw.text_config) == "table" and raw.text_config or {} } do
        for _, size in ipairs(SIZES) do
            local value = level[size[1]]
            local fits = type(value) == "number" and value % 1 == 0 and value >= size[2] and value <= MOST
            if value ~= nil and value ~= core.null and not fits then
                core.fail("corrupt", "%s: %s is %s, which no model has", what, size[1],
                    type(value) == "table" and "a list" or tostring(value))
            end
        end
    end
end

--- Normalised fields of a config.json text.
---@param text string
---@param what string names the text in messages
---@return table config {text, raw, arch = table or nil, fields}
function config.parse(text, what)
    local raw = core.json_decode(text, what)
    if type(raw) ~= "table" or #raw > 0 then
        core.fail("corrupt", "%s: holds no JSON object", what)
    end
    check_sizes(raw, what)
    local a = arch.of(raw)
    return { text = text, raw = raw, arch = a, fields = fields_of(raw, a, what) }
end

--- Reads a model folder's config.json.
---@param dir string
---@return table config as config.parse, and dir
function config.read(dir)
    local path = dir .. "/config.json"
    if not files.exists(path) then
        core.fail("fail", "%s: there is no config.json; is this a model folder?", dir)
    end
    local c = config.parse(files.read(path), path)
    c.dir = dir
    return c
end

-- ---- editing ----------------------------------------------------------------------------------
-- A config.json is somebody's file: 1e-06 and 10000.0 and the order of keys are kept by changing the
-- text, not by writing it anew.

--- The position after the JSON string whose opening quote is at `at`.
local function skip_string(text, at)
    repeat
        at = text:find('["\\]', at + 1)
        local escape = text:byte(at) == 92
        if escape then
            at = at + 1
        end
    until not escape
    return at + 1
end

--- The position after the JSON value that begins at `at`.
local function skip_value(text, at)
    local depth = 0
    repeat
        local c = text:sub(at, at)
        if c == '"' then
            at = skip_string(text, at)
        elseif c == "{" or c == "[" then
            depth, at = depth + 1, at + 1
        elseif c == "}" or c == "]" then
            depth, at = depth - 1, at + 1
        elseif c:find "[%s,:]" then
            at = at + 1
        else
            at = text:find("[%s,:%]}]", at)
        end
    until depth == 0
    return at
end

local function opening(text)
    return (text:find("{", 1, true))
end

--- The members of the top-level object: key, and where key (from), value and what follows (to) begin.
local function members_of(text)
    local members = {}
    local at = text:find("[^%s{]", opening(text))
    while text:sub(at, at) == '"' do
        local key_end = skip_string(text, at)
        local value = text:find("[^%s:]", key_end)
        local to = skip_value(text, value)
        local key = core.json_decode(text:sub(at, key_end - 1))
        members[#members + 1] = { key = key, from = at, value = value, to = to }
        at = text:find("[^%s,]", to)
    end
    return members, at -- the closing bracket
end

local function remove(text, members, i)
    local m, before, after = members[i], members[i - 1], members[i + 1]
    if before then
        return text:sub(1, before.to - 1) .. text:sub(m.to)
    elseif after then
        return text:sub(1, m.from - 1) .. text:sub(after.from)
    end
    return text:sub(1, opening(text)) .. text:match("}.*", m.to)
end

local function append(text, members, closing, key, value)
    local member = json.encode(key) .. ": "
    local last = members[#members]
    if not last then
        member = member .. value:gsub("\n", "\n  ")
        return text:sub(1, opening(text)) .. "\n  " .. member .. "\n" .. text:sub(closing)
    end
    local blanks = text:match("^%s*", opening(text) + 1)
    value = value:gsub("\n", blanks:match("\n[^\n]*$") or "\n")
    return text:sub(1, last.to - 1) .. "," .. blanks .. member .. value .. text:sub(last.to)
end

local function set(text, key, value)
    local members, closing = members_of(text)
    for i, m in ipairs(members) do
        if m.key == key then
            if not value then
                return remove(text, members, i)
            end
            local indent = text:sub(1, m.from - 1):match("\n[ \t]*$") or "\n"
            return text:sub(1, m.value - 1) .. value:gsub("\n", indent) .. text:sub(m.to)
        end
    end
    return value and append(text, members, closing, key, value) or text
end

--- Sets or removes top-level keys of a JSON object's text and leaves every other byte alone. New keys go
--- to the end, indented as the first one is.
---@param text string
---@param edits table[] list of {key, text of a JSON value, or nil to remove}
---@return string
function config.edit(text, edits)
    core.json_decode(text, "config.json") -- from here on the text is known to be valid
    for _, edit in ipairs(edits) do
        text = set(text, edit[1], edit[2])
    end
    return text
end

--- The text of one top-level member's value, or nil.
---@param text string
---@param key string
---@return string?
function config.member(text, key)
    for _, m in ipairs((members_of(text))) do
        if m.key == key then
            return text:sub(m.value, m.to - 1)
        end
    end
end

return config
