--- Speed of inference: the ops of one decoder, of a published model's shapes, with random weights.
--
-- A token's cost is reading every weight once, so decoding is set against the rate at which this machine reads memory,
-- measured beside it; a prompt's cost is arithmetic. llama.cpp's llama-bench, where it is given, runs a file of the same
-- shapes on as many threads, in turns with ours.

local core = require "qmoon.core"
local ops = require "qmoon.ops"
local tensor = require "qmoon.tensor"

local bench = {}

-- ---- the model ------------------------------------------------------------------------------------------------

-- Random values of one layer, and the same for all layers; each layer has its own memory.
local function matrix(rows, cols, seed, format)
    local plain = tensor.uniform { rows, cols, seed = seed, low = -0.05, high = 0.05 }
    local quantised = plain:quantize(format)
    plain:close()
    return quantised
end

--- Weights of every linear layer in a format.
---@param f table fields of config.json
---@param format string
---@return table model {layers, head, norm, bytes, values, f}
function bench.model(f, format)
    local head = f.head_dim or f.hidden_size / f.num_attention_heads
    local q, kv = f.num_attention_heads * head, f.num_key_value_heads * head
    local shapes = { q = { q, f.hidden_size }, k = { kv, f.hidden_size }, v = { kv, f.hidden_size },
                     o = { f.hidden_size, q }, gate = { f.intermediate_size, f.hidden_size },
                     up = { f.intermediate_size, f.hidden_size }, down = { f.hidden_size, f.intermediate_size } }
    local model = { layers = {}, bytes = 0, values = 0, f = f, head_dim = head,
                    norm = tensor.uniform { f.hidden_size, seed = 1, low = 0.5, high = 1.5 } }
    for layer = 1, f.num_hidden_layers do
        model.layers[layer] = {}
    end
    local function prepare(w)
        local info, prepared = w:info(), ops.prepare(w)
        model.bytes, model.values = model.bytes + info.bytes, model.values + info.count
        return prepared
    end
    local seed = 0
    for name, shape in pairs(shapes) do
        seed = seed + 1
        local w = matrix(shape[1], shape[2], seed, format)
        for _, layer in ipairs(model.layers) do
            layer[name] = prepare(w)
        end
        w:close()
    end
    local w = matrix(f.vocab_size, f.hidden_size, 99, format)
    model.head = prepare(w)
    w:close()
    return model
end

function bench.close(model)
    for _, layer in ipairs(model.layers) do
        for _, w in pairs(layer) do
            w:close()
        end
    end
    model.head:close()
    collectgarbage()
end

-- ---- a forward pass ----------------------------------------------------------------------------------------------

--- Logits of the last of the tokens whose embeddings are x.
local function forward(model, x, cache)
    local f, first = model.f, cache:length()
    local rope = { head_dim = model.head_dim, base = f.rope_theta or 10000 }
    local shape = { heads = f.num_attention_heads, kv_heads = f.num_key_value_heads }
    for i, w in ipairs(model.layers) do
        local h = ops.rmsnorm(x, model.norm, 1e-6)
        local q, k = ops.rope(ops.linear(h, w.q), first, rope), ops.rope(ops.linear(h, w.k), first, rope)
        local y = ops.attention(q, k, ops.linear(h, w.v), cache, i - 1, shape)
        x = ops.add(x, ops.linear(y, w.o))
        h = ops.rmsnorm(x, model.norm, 1e-6)
        x = ops.add(x, ops.linear(ops.swiglu(ops.linear(h, w.gate), ops.linear(h, w.up)), w.down))
    end
    local rows = x:info().shape[1]
    return ops.linear(ops.rmsnorm(ops.embedding(x, { rows - 1 }), model.norm, 1e-6), model.head)
end

local function new_cache(model, context)
    return core.kv_cache { layers = model.f.num_hidden_layers, kv_heads = model.f.num_key_value_heads,
                           head_dim = model.head_dim, context = context, dtype = "f16" }
end

--- Median seconds of `tokens` one after another.
function bench.decode(model, tokens)
    local cache, x = new_cache(model, tokens + 1), tensor.uniform { 1, model.f.hidden_size, seed = 7 }
    forward(model, x, cache)
    local seconds = {}
    for i = 1, tokens do
        local started = core.now()
        forward(model, x, cache)
        seconds[i] = core.now() - started
    end
    cache:close()
    table.sort(seconds)
    return seconds[math.ceil(tokens / 2)]
end

--- Seconds for a prompt.
function bench.prompt(model, tokens)
    local cache, x = new_cache(model, tokens), tensor.uniform { tokens, model.f.hidden_size, seed = 7 }
    local started = core.now()
    forward(model, x, cache)
    local seconds = core.now() - started
    cache:close()
    return seconds
end

-- ---- the peer ----------------------------------------------------------------------------------------------------

--- Tokens a second of llama-bench for a prompt and for decoding.
---@return number prompt, number decode
function bench.peer(program, file, threads, prompt, tokens)
    local pipe = io.popen(("'%s' -m '%s' -t %d -p %d -n %d -r 2 -o json 2>/dev/null"):format(program, file, threads, prompt, tokens))
    local text = pipe:read "*a"
    pipe:close()
    local speed = {}
    for _, row in ipairs(core.json_decode(text, program)) do
        speed[row.n_prompt > 0 and "prompt" or "decode"] = row.avg_ts
    end
    return speed.prompt, speed.decode
end

local function median(list)
    table.sort(list)
    return list[math.ceil(#list / 2)]
end

--- One row of figures for a format: medians of runs, ours and the peer's in turns.
---@param f table fields of config.json
---@param format string
---@param options {runs: integer, tokens: integer, prompt: integer, program: string?, file: string?}
---@return table
function bench.row(f, format, options)
    local model = bench.model(f, format)
    local roofs, decodes, prompts, peer_decodes, peer_prompts = {}, {}, {}, {}, {}
    for i = 1, options.runs do
        roofs[i] = core.read_speed(768 * 2 ^ 20)
        decodes[i] = bench.decode(model, options.tokens)
        prompts[i] = bench.prompt(model, options.prompt)
        if options.file then
            peer_prompts[i], peer_decodes[i] = bench.peer(options.program, options.file, ops.threads(), options.prompt,
                options.tokens)
        end
    end
    local row = { name = "inference " .. format, format = format, bytes = model.bytes, runs = options.runs,
                  threads = ops.threads(), prompt_tokens = options.prompt, roof = median(roofs),
                  decode = 1 / median(decodes), prompt = options.prompt / median(prompts),
                  peer_decode = median(peer_decodes), peer_prompt = median(peer_prompts) }
    row.speed = row.bytes * row.decode
    row.of_roof = row.speed / row.roof
    if row.peer_decode then
        row.ratio, row.prompt_ratio = row.decode / row.peer_decode, row.prompt / row.peer_prompt
    end
    bench.close(model)
    return row
end

return bench
