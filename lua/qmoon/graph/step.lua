--- One pass of some tokens through a model: what the architectures' forward passes are written with.
--
-- A step knows the layer it is in.  Its methods take and give activations, f32 tensors [tokens, width], and name weights as
-- qmoon.graph.weights does; everything is computed by qmoon.ops.

local core = require "qmoon.core"
local ops = require "qmoon.ops"

---@class qmoon.Step
---@field fields table of the config
---@field modules table<string, qmoon.Module> of the layer
---@field layer integer from 0
---@field cache userdata
---@field position integer of the first token
---@field heads integer
---@field kv_heads integer
---@field head_dim integer
---@field rope table options of ops.rope for this layer
---@field attend table options of ops.attention for this layer
---@field glu {of:fun(gate, up), kind:string?} act(gate) * up; kind: what ops.feed_forward calls it, if it does
local Step = {}
Step.__index = Step

Step.add = ops.add

--- x / rms(x) * w, over rows or, where the weight is shorter than they are, over each head of a row.
function Step:norm(x, name)
    local m = self.modules[name]
    return ops.rmsnorm(x, m.weight, self.fields.rms_norm_eps, m.add or 0)
end

--- What adapters add to a module's result.
local function adapted(m, x, y)
    for _, l in ipairs(m.lora or {}) do
        y = ops.lora(y, x, l.A, l.B, l.scale)
    end
    return y
end

--- x W^T + b, and what adapters add to it.
function Step:linear(x, name)
    local m = self.modules[name]
    return adapted(m, x, (m.llm_int8 and ops.linear_int8 or ops.linear)(x, m.weight, m.bias))
end

--- The same for several weights, computed at once.
---@return qmoon.Tensor ...
function Step:linears(x, ...)
    local names, calls = { ... }, {}
    for _, name in ipairs(names) do
        local m = self.modules[name]
        calls[#calls + 1] = not m.llm_int8 and { x, m.weight, m.bias } or nil
    end
    local y = #calls == #names and { ops.at_once("linear", unpack(calls)) } or {}
    for i, name in ipairs(names) do
        y[i] = y[i] and adapted(self.modules[name], x, y[i]) or self:linear(x, name)
    end
    return unpack(y)
end

local function queries_keys_values(s, x)
    if not s.modules.attn_qkv then
        return s:linears(x, "attn_q", "attn_k", "attn_v")
    end
    local qkv, q, kv = s:linear(x, "attn_qkv"), s.heads * s.head_dim, s.kv_heads * s.head_dim
    return ops.columns(qkv, 0, q), ops.columns(qkv, q, kv), ops.columns(qkv, q + kv, kv)
end

--- Attention of a normalised x to itself and to all that is in the cache, through the output projection.
function Step:attention(x)
    local q, k, v = queries_keys_values(self, x)
    if self.modules.attn_q_norm then
        q, k = self:norm(q, "attn_q_norm"), self:norm(k, "attn_k_norm")
    end
    q, k = ops.rope(q, self.position, self.rope), ops.rope(k, self.position, self.rope)
    return self:linear(ops.attention(q, k, v, self.cache, self.layer, self.attend), "attn_output")
end

local function is_linear(m)
    return not (m.lora or m.llm_int8)
end

--- The feed-forward network: down(act(gate(x)) * up(x)), one op where nothing comes between.  `suffix` names another than
-- the usual one.
function Step:feed(x, suffix)
    suffix = suffix or ""
    local up, down = "ffn_up" .. suffix, "ffn_down" .. suffix
    local g, u, d = self.modules["ffn_gate" .. suffix], self.modules[up], self.modules[down]
    if not g then
        local both, n = self:linear(x, up), self.fields.intermediate_size
        return self:linear(self.glu.of(ops.columns(both, 0, n), ops.columns(both, n, n)), down)
    elseif self.glu.kind and is_linear(g) and is_linear(u) and is_linear(d) then
        return ops.feed_forward(x, g.weight, u.weight, d.weight, self.glu.kind, g.bias, u.bias, d.bias)
    end
    return self:linear(self.glu.of(self:linears(x, "ffn_gate" .. suffix, up)), down)
end

--- A mixture of experts: every token goes through the few that its router prefers.
---@param normalise boolean whether the weights of those few are made to sum to one
function Step:experts(x, normalise)
    local m = self.modules
    return ops.moe(x, self:linear(x, "ffn_gate_inp"), self.fields.num_experts_per_tok, { normalise = normalise },
        m.ffn_gate_exps.experts, m.ffn_up_exps.experts, m.ffn_down_exps.experts)
end

local function plain(act)
    return function(gate, up)
        return ops.mul(ops.activation(gate, act), up)
    end
end

local SILU, GELU_TANH = { of = ops.swiglu, kind = "silu" }, { of = ops.geglu, kind = "gelu_tanh" }
local GLU = { silu = SILU, swish = SILU, gelu_pytorch_tanh = GELU_TANH, gelu_new = GELU_TANH, gelu = { of = plain "gelu" } }

--- The product act(gate) * up of a config's activation.
---@param name string
---@param what string names the model in messages
function Step.activation(name, what)
    return GLU[name] or core.fail("unsupported", "%s: activation '%s' is none that this program computes", what,
        tostring(name))
end

return Step
