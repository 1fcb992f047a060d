--- The mixture of types in a quantised GGUF file: which tensors get more bits than the rest.
--
-- llama-quantize's rules, one function a category of tensors. They count ("the third attn_v from the
-- front"), so a file's tensors must be asked for in llama-quantize's order, with one state. The state `s`
-- holds what the rules look at:
--
--   ftype, default, block   the file type, the type most tensors get, its block
--   n_layer, gqa, experts   of the model; gqa = heads for one head of k and v
--   n_v, tied               number of attn_v tensors; whether there is no output.weight
--   imatrix, falcon, is_70b booleans
--   output_type, embedding_type   what the user asked for, or nil
--   profile                 see gguf_profiles.lua
--   count, i                how many of each category have been asked for; place of the present one
--
-- Source: llama.cpp, src/llama-quant.cpp, llama_tensor_get_type.

local core = require "qmoon.core"

local mixture = {}

local CATEGORIES = {
    { "attn_qkv.weight", "qkv" }, { "attn_kv_b.weight", "kv_b" }, { "attn_v.weight", "v" },
    { "attn_k.weight", "k" }, { "attn_q.weight", "q" }, { "attn_output.weight", "attn_output" },
    { "ffn_up", "up" }, { "ffn_gate", "gate" }, { "ffn_down", "down" },
}

---@param name string
---@return string? category nil for tensors without rules
function mixture.category(name)
    if name == "output.weight" then
        return "output"
    elseif name == "token_embd.weight" or name == "per_layer_token_embd.weight" then
        return "embedding"
    end
    for _, row in ipairs(CATEGORIES) do
        if name:find(row[1], 1, true) then
            return row[2]
        end
    end
end

local function set(names)
    local t = {}
    for name in names:gmatch "%S+" do
        t[name] = true
    end
    return t
end

local TINY = set "IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ2_M"
local OUTPUT_Q5 = set "IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ2_M IQ3_XXS"
local OUTPUT_8_EXPERTS_Q5 = set "Q2_K IQ3_XS IQ3_XXS Q3_K_S Q3_K_M IQ4_NL Q4_K_S Q4_K_M IQ3_S IQ3_M IQ4_XS"

local function eighth(n, of)
    return math.floor(n / (of or 8))
end

--- The first and last eighth of the layers and every third between get more bits.
local function more_bits(i, n)
    return i < eighth(n) or i >= math.floor(7 * n / 8) or (i - eighth(n)) % 3 == 2
end

-- One function a category. s is the state: ftype, default, n_layer, gqa, experts, imatrix, falcon, … and
-- i, the number of this tensor among its kind. Each returns a type, or nil for the default.
local rule = {}

function rule.output(s, tensor)
    if s.ftype == "MXFP4_MOE" or s.falcon or tensor.shape[#tensor.shape] % s.block ~= 0 then
        return "Q8_0"
    elseif OUTPUT_Q5[s.ftype] then
        return "Q5_K"
    end
    return s.default ~= "Q8_0" and "Q6_K" or nil
end

function rule.embedding(s)
    local f = s.ftype
    if f == "IQ2_XXS" or f == "IQ2_XS" or f == "IQ1_S" or f == "IQ1_M" then
        return "Q2_K"
    elseif f == "IQ2_S" or f == "IQ2_M" or f == "IQ3_XXS" then
        return "IQ3_S"
    elseif f == "TQ1_0" or f == "TQ2_0" then
        return "Q4_K"
    end
end

--- The ftypes around two bits and less have a mixture of their own.
local function tiny_rule(s, kind)
    local bigger = (s.ftype == "IQ2_S" or s.ftype == "IQ2_M") and "IQ3_S"
    if kind == "v" then
        return (s.gqa >= 4 or s.experts >= 4) and "Q4_K" or bigger or "Q2_K"
    elseif kind == "k" then
        return s.experts == 8 and "Q4_K" or nil
    elseif kind == "down" then
        return s.i < eighth(s.n_layer) and (bigger or "Q2_K") or nil
    elseif kind == "attn_output" then
        if s.experts == 8 then
            return "Q5_K"
        end
        return bigger or (s.ftype == "IQ1_S" or s.ftype == "IQ1_M") and "IQ2_XXS" or nil
    end
end

local function v_of_ftype(s)
    local f, wide = s.ftype, s.gqa >= 4
    if f == "Q2_K" then
        return wide and "Q4_K" or "Q3_K"
    elseif f == "IQ3_XXS" then
        return wide and "Q4_K" or not s.imatrix and "IQ3_S" or nil
    elseif (f == "Q2_K_S" or f == "IQ3_XS" or f == "IQ3_S") and wide or f == "IQ3_M" then
        return "Q4_K"
    elseif f == "Q3_K_M" then
        return s.i < 2 and "Q5_K" or "Q4_K"
    elseif f == "Q3_K_L" or (f == "IQ4_NL" or f == "IQ4_XS") and wide then
        return "Q5_K"
    elseif (f == "Q4_K_M" or f == "Q5_K_M") and more_bits(s.i, s.n_v) then
        return "Q6_K"
    elseif f == "Q4_K_S" and s.i < 4 then
        return "Q5_K"
    end
end

function rule.v(s)
    local chosen = v_of_ftype(s)
    if s.experts == 8 then
        return "Q8_0"
    end
    local now = chosen or s.default
    return s.is_70b and (now == "Q3_K" or now == "Q4_K") and "Q5_K" or chosen
end

function rule.k(s)
    return s.experts == 8 and "Q8_0" or rule.q(s)
end

function rule.q(s)
    return s.ftype == "IQ3_XS" and "IQ3_XXS" or s.ftype == "IQ3_XXS" and "IQ2_S" or nil
end

function rule.down(s)
    local f, i, n = s.ftype, s.i, s.n_layer
    local first = i < eighth(n)
    if f == "Q2_K" then
        return "Q3_K"
    elseif f == "Q2_K_S" then
        return first and "Q4_K" or nil
    elseif f == "IQ3_XXS" and not s.imatrix then
        return first and "Q4_K" or "Q3_K"
    elseif f == "Q3_K_M" then
        if i < eighth(n, 16) then
            return "Q5_K"
        end
        return (not s.falcon or more_bits(i, n)) and "Q4_K" or "Q3_K"
    elseif f == "IQ3_M" then
        return (first or s.experts == 8 and more_bits(i, n)) and "Q4_K" or nil
    elseif f == "Q3_K_L" then
        return s.falcon and "Q4_K" or "Q5_K"
    elseif f == "Q4_K_M" and s.falcon then
        return i < eighth(n, 16) and "Q6_K" or more_bits(i, n) and "Q5_K" or "Q4_K"
    elseif f == "Q4_K_M" or f == "Q5_K_M" then
        return more_bits(i, n) and "Q6_K" or nil
    elseif (f == "IQ4_NL" or f == "IQ4_XS") and first and not s.imatrix then
        return "Q5_K"
    elseif f == "Q4_K_S" and first and not s.falcon then
        return "Q5_K"
    elseif (f == "Q4_0" or f == "Q5_0") and first and s.imatrix then
        return f == "Q4_0" and "Q4_1" or "Q5_1"
    end
end

function rule.attn_output(s)
    local f = s.ftype
    if s.falcon then
        return f == "Q3_K_L" and "Q4_K" or nil
    elseif s.experts == 8 then
        return OUTPUT_8_EXPERTS_Q5[f] and "Q5_K" or nil
    end
    return ({ Q2_K = "Q3_K", IQ3_XXS = "IQ3_S", Q3_K_M = "Q4_K", Q3_K_L = "Q5_K", IQ3_M = "Q4_K" })[f]
end

function rule.qkv(s)
    return ({ Q3_K_M = "Q4_K", Q3_K_L = "Q4_K", IQ3_M = "Q4_K", Q4_K_M = "Q5_K", Q5_K_M = "Q6_K" })[s.ftype]
end

function rule.gate(s)
    local middle = s.i >= eighth(s.n_layer) and s.i < math.floor(7 * s.n_layer / 8)
    return s.ftype == "IQ3_XS" and middle and "IQ3_XXS" or nil
end

rule.up = rule.gate

--- The number that the rules of this kind look at: how many came before, or the layer itself in a model
--- with experts, whose tensors do not come layer by layer.
local function place(s, kind, tensor)
    local i = s.count[kind] or 0
    s.count[kind] = i + 1
    if s.experts > 1 and not TINY[s.ftype] and (kind == "down" or kind == "gate" or kind == "up") then
        i = tonumber(tensor.name:match "^blk%.(%d+)%.")
        if not i or i >= s.n_layer then
            core.fail("corrupt", "tensor '%s' is in none of the model's %d layers", tensor.name, s.n_layer)
        end
    end
    return i
end

--- The type the mixture gives to a tensor that is quantised; nil: the default.
---@param s table
---@param tensor table {name, shape}
---@return string?
function mixture.type(s, tensor)
    local kind = mixture.category(tensor.name)
    if kind == "output" or kind == "embedding" and s.tied then
        return s.output_type or rule.output(s, tensor)
    elseif s.ftype == "MXFP4_MOE" then
        local experts = #tensor.shape >= 3 and tensor.shape[#tensor.shape - 2] > 1
        return experts and "MXFP4" or "Q8_0"
    elseif kind == "embedding" then
        return s.embedding_type or rule.embedding(s)
    elseif not kind then
        return nil
    end
    if s.profile.wide_v and (kind == "qkv" or kind == "kv_b") then
        kind = "v"
    end
    s.i = place(s, kind, tensor)
    if TINY[s.ftype] then
        return tiny_rule(s, kind)
    end
    return rule[kind] and rule[kind](s)
end

return mixture
