--- A model that runs: tokens in, logits and text out.
--
--   local lm = qm.load "Qwen2.5-1.5B-Instruct"
--   print(lm:generate{ prompt = "Once upon a time", tokens = 40 }.text)
--   local cache = lm:cache(512)
--   local logits = lm:forward({ 1, 2, 3 }, cache)              -- [1, vocabulary], of the last token
--   logits = lm:forward({ 4, 5 }, cache, { all = true })       -- [2, vocabulary]
--
-- The forward pass is a script over qmoon.ops (qmoon.graph); activations are f32.  Weights are not copied, unless they are
-- quantised while they are loaded, go to a GPU, or an op wants a matrix packed otherwise; lm:memory() says how much that is.

local core = require "qmoon.core"
local Model = require "qmoon.model"
local Step = require "qmoon.graph.step"
local arch = require "qmoon.arch"
local config = require "qmoon.config"
local gguf = require "qmoon.gguf"
local gguf_model = require "qmoon.gguf_model"
local ops = require "qmoon.ops"
local forecast = require "qmoon.forecast"
local loading = require "qmoon.loading"
local rope = require "qmoon.graph.rope"
local weights = require "qmoon.graph.weights"
local slice = require("qmoon.list").slice

---@class qmoon.Runner
---@field model qmoon.Model
---@field fields table config fields
---@field vocab_size integer
---@field context integer the most tokens it takes
---@field layers integer
local Runner = {}

-- Tokens of a prompt that go through the layers at once: enough to keep the processor busy.
local BATCH = 512

-- ---- loading --------------------------------------------------------------------------------------------

local function graph_names()
    local names = {}
    for _, a in ipairs(arch.list()) do
        names[#names + 1] = core.source("qmoon.graph." .. a.model_type) and a.model_type or nil
    end
    return table.concat(names, ", ")
end

--- The forward pass of an architecture: its own (arch.add), or the file of its name.
local function graph_of(a, what, name)
    local graph = a and (a.graph or core.source("qmoon.graph." .. a.model_type) and require("qmoon.graph." .. a.model_type))
    return graph or core.fail("unsupported", "%s: there is no forward pass for models of type '%s'; there are those of %s", what,
        tostring(name), graph_names())
end

local function gguf_fields(model)
    local meta = model.gguf.meta
    local a = arch.of_gguf(meta)
    if not a then
        return nil, gguf.get(meta, "general.architecture")
    end
    local fields = config.parse(gguf_model.config(a, model.gguf, model.path), model.path).fields
    fields.rope_dim = gguf.get(meta, a.name .. ".rope.dimension_count") or fields.rope_dim
    fields.rope_attention_factor = gguf.get(meta, a.name .. ".rope.scaling.attn_factor")
    return a, a.model_type, fields
end

--- Architecture, type and config fields of an opened model.
local function facts_of(model)
    if model.kind == "gguf" then
        return gguf_fields(model)
    elseif not model.config then
        core.fail("unsupported", "%s: weights alone cannot be run; name the model's folder, with its config.json", model.path)
    end
    local c = model.config
    return c.arch, c.fields.model_type or (c.raw.architectures or {})[1], c.fields
end

--- Sizes that everything else is counted by.
local function check_fields(f, what)
    for _, name in ipairs { "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size" } do
        if type(f[name]) ~= "number" then
            core.fail("corrupt", "%s: config.json says no %s", what, name)
        end
    end
    if f.num_attention_heads % f.num_key_value_heads ~= 0 then
        core.fail("corrupt", "%s: %d attention heads cannot share %d key/value heads", what, f.num_attention_heads,
            f.num_key_value_heads)
    elseif f.use_bidirectional_attention then
        core.fail("unsupported", "%s: attention to both sides (use_bidirectional_attention) is for embedding text, and not computed",
            what)
    end
end

--- How many dimensions of a head turn; only Phi-3's table says that it may be a part of them.
local function turning(f, head_dim, what)
    local dim, share = f.rope_dim or head_dim, f.partial_rotary_factor
    if dim > head_dim or dim % 2 ~= 0 or share and share ~= 1 and dim ~= math.floor(share * head_dim) then
        core.fail("unsupported", "%s: a rope over %s of the %d dimensions of a head is not what this model type computes", what,
            share and ("%.4g"):format(share * head_dim) or ("%d"):format(dim), head_dim)
    end
    return dim
end

--- What every layer's step has in common.
local function base_of(self)
    local f, graph = self.fields, self.graph
    local act = graph.act and graph.act(f) or f.hidden_act or f.hidden_activation or "silu"
    return { fields = f, heads = f.num_attention_heads, kv_heads = f.num_key_value_heads, head_dim = self.head_dim,
             glu = Step.activation(act, self.model.path), there = self.there }
end

local function rope_options(base, r, factors, dim, kind)
    factors = base.there(factors)
    return { head_dim = base.head_dim, rotary_dim = dim, base = r.base, kind = kind, factors = factors, scale = r.scale }
end

--- One step for each layer, ready but for cache and position.
local function build_steps(self, w, layers)
    local f, graph = self.fields, self.graph
    local base = base_of(self)
    local dim = turning(f, base.head_dim, self.model.path)
    local kind = w.interleaved and "norm" or "neox"
    local r = rope.of(f, dim, w.top, self.model.path)
    local near = rope_options(base, r, r.factors, dim, kind)
    local far = r.long and rope_options(base, r, r.long, dim, kind)
    local own = graph.local_rope and rope_options(base, { base = f.rope_local_base_freq, scale = 1 }, nil, dim, kind)
    local scale = graph.scale and graph.scale(f, base.head_dim) or 1 / math.sqrt(base.head_dim)
    self.turns_at, self.steps = r.original, {}
    for i = 0, f.num_hidden_layers - 1 do
        local window = graph.window and graph.window(f, i)
        local step = setmetatable({}, Step)
        for k, v in pairs(base) do
            step[k] = v
        end
        step.layer, step.modules = i, layers[i]
        step.near, step.far = window and own or near, far or window and own or near
        step.attend = { heads = base.heads, kv_heads = base.kv_heads, scale = scale, window = window,
                        softcap = f.attn_logit_softcapping }
        self.steps[i + 1] = step
    end
end

local NONE = {} -- as a key: no tensor

--- A module with what became of its tensors.
local function brought(m, loaded, llm_int8)
    local out = { name = m.name, add = m.add, weight = loaded[m.weight or NONE], bias = loaded[m.bias or NONE],
                  llm_int8 = llm_int8[m.weight or NONE] }
    for _, l in ipairs(m.lora or {}) do
        out.lora = out.lora or {}
        table.insert(out.lora, { A = loaded[l.A], B = loaded[l.B], scale = l.scale })
    end
    for e, t in ipairs(m.experts or {}) do
        out.experts = out.experts or {}
        out.experts[e] = loaded[t]
    end
    return out
end

--- Makes all that the forward pass needs of weights that were read, brought to options.device by qmoon.loading; or only
--- their sizes, to a plan.
---@param w qmoon.Weights
---@param list table[] from loading.list
---@param plan userdata?
function Runner:assemble(w, list, plan)
    local device = plan or self.options.device
    self.there = function(t)
        return device and t and t:device() == "cpu" and t:to(device) or t
    end
    local loaded = loading.bring(list, self.options, plan)
    local llm_int8 = {}
    for _, e in ipairs(list) do
        llm_int8[e.tensor] = e.llm_int8 or nil
    end
    local layers = {}
    for layer, modules in pairs(w.layers) do
        layers[layer] = {}
        for name, m in pairs(modules) do
            layers[layer][name] = brought(m, loaded, llm_int8)
        end
    end
    build_steps(self, w, layers)
    self.embedding, self.norm = loaded[w.top.token_embd.weight], loaded[w.top.output_norm.weight]
    self.norm_add = w.top.output_norm.add or 0
    local head = w.top.output
    self.head = head and loaded[head.weight] or self.options.exact and self.embedding or ops.prepare(self.embedding)
    self.head_bias = head and loaded[head.bias or NONE]
end

--- The length that a model was made for, or what the caller asks for instead.
local function context_of(f, asked)
    local s = f.rope_scaling
    if s and s.rope_type == "dynamic" then
        return math.min(f.max_position_embeddings, asked or math.huge)
    end
    return asked or f.max_position_embeddings or 2048
end

--- Makes a model ready to run.
---@param source string|qmoon.Model
---@param options? {adapter: string|string[]|nil, context: integer?, kv: "f32"|"f16"|"bf16"|"q8_0"|nil, llm_int8: boolean?, exact: boolean?,
---  device: qmoon.Device?, program: boolean?, load: qmoon.FormatSpec?, expect: table|function|nil, progress: boolean?, threads: integer?}
---  load: quantise linear weights to this format while they are read;
---  expect: {tokens = the most in a cache, decode = whether tokens are made one by one}, or a function of the model that
---  gives that, for the forecast of memory that a GPU must have (default: the context, if given, or 4096 tokens);
---  progress: show it even where stderr is no terminal; threads: that read;
---  exact: compute with weights as they are decoded, instead of laid out for speed (where activations are rounded, too);
---  device: what computes, from qm.cuda (default: this machine's processors);
---  program = false: on a GPU, launch every op of a token by itself. From Hopper on one kernel walks through those it knows, and
---  logits differ in their last bits from single calls'
---@return qmoon.Runner
function Runner.load(source, options)
    options = options or {}
    local model = type(source) == "string" and Model.open(source) or source
    for _, adapter in ipairs(type(options.adapter) == "table" and options.adapter or { options.adapter }) do
        model = model:merge(adapter)
    end
    local a, name, fields = facts_of(model)
    local self = setmetatable({ model = model, options = options, arch = a, graph = graph_of(a, model.path, name) }, Runner)
    check_fields(fields, model.path)
    self.fields, self.layers, self.context = fields, fields.num_hidden_layers, context_of(fields, options.context)
    self.head_dim = fields.head_dim or math.floor(fields.hidden_size / fields.num_attention_heads)
    local w = weights.read(model, a, fields, self.head_dim)
    self.vocab_size = (w.top.output or w.top.token_embd).weight:info().shape[1]
    self.embed_scale = self.graph.embed and self.graph.embed(fields)
    local list = loading.list(w, options)
    self.forecast = forecast.of(self, w, list)
    forecast.check(self, w)
    self:assemble(w, list)
    return self
end

-- The tokenizer is read when it is first asked for: logits need none.
function Runner:__index(key)
    if key == "tokenizer" then
        local t = require("qmoon").tokenizer(self.model)
        rawset(self, key, t)
        return t
    end
    return Runner[key]
end

-- ---- the forward pass ---------------------------------------------------------------------------------------

--- A cache for keys and values of `tokens` tokens (the model's context, when not given).
---@param tokens? integer
---@param dtype? "f32"|"f16"|"bf16"|"q8_0"
---@return userdata
function Runner:cache(tokens, dtype)
    return self:cache_on(self.options.device, tokens, dtype)
end

function Runner:cache_on(device, tokens, dtype)
    return core.kv_cache { layers = self.layers, kv_heads = self.fields.num_key_value_heads, head_dim = self.head_dim,
                          context = tokens or self.context, device = device,
                          dtype = dtype or self.options.kv or (self.options.device and "f16" or "f32") }
end

function Runner:check_length(tokens)
    if tokens > self.context then
        core.fail("fail", "%s: %d tokens do not fit the model's context of %d; give less text, or a larger --context where the "
            .. "model bears it", self.model.path, tokens, self.context)
    end
end

--- Whether a sequence that grows from one length to another must be computed anew: Phi-3's long models turn all of it
--- differently once it is longer than `original`.
function Runner:turns(from, to)
    return self.turns_at ~= nil and from > 0 and from <= self.turns_at and to > self.turns_at
end

--- The hidden states after the embedding (0) and after every layer, one by one: for layer, x in lm:walk(ids, cache).
---@param ids integer[]
---@param cache userdata
---@return fun(): integer?, qmoon.Tensor?
function Runner:walk(ids, cache)
    local position = cache:length()
    self:check_length(position + #ids)
    if self:turns(position, position + #ids) then
        core.fail("fail", "%s: a sequence longer than %d tokens turns otherwise from its start; compute it anew, in one piece",
            self.model.path, self.turns_at)
    end
    local far = self.turns_at and position + #ids > self.turns_at
    local i, x = -1, nil
    return function()
        i = i + 1
        if i == 0 then
            x = ops.embedding(self.embedding, ids)
            x = self.embed_scale and core.tidy(ops.scale, x, self.embed_scale) or x
        elseif i <= self.layers then
            local s = self.steps[i]
            s.cache, s.position, s.rope = cache, position, far and s.far or s.near
            x = core.tidy(self.graph.layer, s, x) -- what the layer made besides is given back
        else
            return nil
        end
        return i, x
    end
end

--- The hidden states after the last layer, [#ids, hidden_size], before the last norm.
---@param ids integer[]
---@param cache userdata
---@return qmoon.Tensor
function Runner:hidden(ids, cache)
    local last
    for _, x in self:walk(ids, cache) do
        if last and last ~= x then
            last:close()
        end
        last = x
    end
    return last
end

local function logits(self, x)
    local cap = self.fields.final_logit_softcapping
    x = ops.rmsnorm(x, self.norm, self.fields.rms_norm_eps, self.norm_add)
    local y = ops.linear(x, self.head, self.head_bias)
    return cap and ops.softcap(y, cap) or y
end

--- Logits of hidden states: the last norm, the head, and a soft cap where the model has one.
---@param x qmoon.Tensor
---@return qmoon.Tensor
function Runner:logits(x)
    return core.tidy(logits, self, x)
end

local function last_logits(self, x)
    local rows = x:info().shape[1]
    local y = self:logits(rows > 1 and ops.rows(x, rows - 1, 1) or x)
    x:close()
    return y
end

--- Logits of the next token after ids, [1, vocabulary]; with all = true of every token, [#ids, vocabulary].
--- Tokens that the cache has seen come before them, and it remembers these.
---@param ids integer[]
---@param cache? userdata from lm:cache
---@param options? {all: boolean?}
---@return qmoon.Tensor
function Runner:forward(ids, cache, options)
    if #ids == 0 then
        core.fail("usage", "forward: there must be one token at least")
    end
    self:check_length(#ids + (cache and cache:length() or 0))
    cache = cache or self:cache(#ids)
    if options and options.all then
        return self:logits(self:hidden(ids, cache))
    end
    local size = self.turns_at and #ids or BATCH -- what turns differently when it is long is given in one piece
    local x
    for from = 1, #ids, size do
        if x then
            x:close()
        end
        x = self:hidden(slice(ids, from, math.min(from + size - 1, #ids)), cache)
    end
    return core.tidy(last_logits, self, x)
end

--- On a GPU: the step from one token to the next, captured once.  step:run(id, n) gives n tokens; the cache goes on with
--- them, and draws of ops.sample with their number.  nil on the CPU, where nothing is gained by it.
---@param cache userdata from lm:cache, after one token at least
---@param pick fun(logits: qmoon.Tensor) what chooses: it calls ops.argmax or ops.sample
---@return userdata?
function Runner:captured_step(cache, pick)
    local device = self.options.device
    return device and core.cuda_step(device, cache, function()
        pick(self:forward({ 0 }, cache))
    end, self.options.program)
end

--- Bytes of weights in the mapped files, and of those in memory: quantised while they were loaded, on a GPU, or laid out for
--- speed.
---@return integer mapped, integer copied
function Runner:memory()
    return self.forecast.mapped, self.forecast.weights
end

function Runner:__tostring()
    local copied = self.forecast.weights
    return ("runs %s%s · %d layers · context %d"):format(tostring(self.model), copied > 0 and (" · %s %s"):format(
        require("qmoon.text").bytes(copied), self.options.device and ("on %s"):format(tostring(self.options.device))
        or "packed for computing") or "", self.layers, self.context)
end

--- Text from a prompt; see qmoon.generate.
---@param options table
---@return table
function Runner:generate(options)
    return require("qmoon.generate").run(self, options)
end

return Runner
