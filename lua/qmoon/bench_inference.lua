--- Speed of inference: the ops of one decoder, of a published model's shapes, with random weights.
--
-- A token's cost is reading every weight once, so decoding is set against the rate at which this machine reads memory,
-- measured beside it; a prompt's cost is arithmetic. llama.cpp's llama-bench, where it is given, runs a file of the same
-- shapes on as many threads, in turns with ours.
--
-- Or of a whole checkpoint that is quantised while it is loaded, with the seconds and the memory that takes.

local core = require "qmoon.core"
local ops = require "qmoon.ops"
local tensor = require "qmoon.tensor"
local text = require "qmoon.text"

local bench = {}

-- ---- a forward pass ----------------------------------------------------------------------------------------------

--- Logits of the last of the tokens whose embeddings are x.
local function forward(model, x, cache)
    local f, first = model.f, cache:length()
    local rope = { head_dim = model.head_dim, base = f.rope_theta or 10000 }
    local shape = { heads = f.num_attention_heads, kv_heads = f.num_key_value_heads }
    for i, w in ipairs(model.layers) do
        local h = ops.rmsnorm(x, model.norm, 1e-6)
        local q, k, v = ops.at_once("linear", { h, w.q }, { h, w.k }, { h, w.v })
        local y = ops.attention(ops.rope(q, first, rope), ops.rope(k, first, rope), v, cache, i - 1, shape)
        x = ops.add(x, ops.linear(y, w.o))
        h = ops.rmsnorm(x, model.norm, 1e-6)
        x = ops.add(x, ops.feed_forward(h, w.gate, w.up, w.down, "silu"))
    end
    local rows = x:info().shape[1]
    return ops.linear(ops.rmsnorm(ops.embedding(x, { rows - 1 }), model.norm, 1e-6), model.head)
end

-- ---- the model ------------------------------------------------------------------------------------------------

-- Random values of one layer, and the same for all layers; each layer has its own memory.
local function matrix(rows, cols, seed, format)
    local plain = tensor.uniform { rows, cols, seed = seed, low = -0.05, high = 0.05 }
    local quantised = plain:quantize(format)
    plain:close()
    return quantised
end

--- Weights of every linear layer in a format. What is measured has input(tokens), cache(context) and
--- run(input, cache), which makes the logits of the last token.
---@param f table fields of config.json
---@param format string
---@return table model {layers, head, norm, bytes, values, f, input, cache, run}
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
    function model.input(tokens)
        return tensor.uniform { tokens, f.hidden_size, seed = 7 }
    end
    function model.cache(context)
        return core.kv_cache { layers = f.num_hidden_layers, kv_heads = f.num_key_value_heads, head_dim = head,
                               context = context, dtype = "f16" }
    end
    function model.run(x, cache)
        return forward(model, x, cache)
    end
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

-- ---- measuring ------------------------------------------------------------------------------------------------

--- Sorts the list; of an even number, the lower of the two in the middle.
function bench.median(list)
    table.sort(list)
    return list[math.ceil(#list / 2)]
end

--- Median seconds of `tokens` one after another.
function bench.decode(model, tokens)
    local cache, x = model.cache(tokens + 1), model.input(1)
    model.run(x, cache)
    local seconds = {}
    for i = 1, tokens do
        local started = core.now()
        model.run(x, cache)
        seconds[i] = core.now() - started
    end
    cache:close()
    return bench.median(seconds)
end

--- Seconds for a prompt.
function bench.prompt(model, tokens)
    local cache, x = model.cache(tokens), model.input(tokens)
    local started = core.now()
    model.run(x, cache)
    local seconds = core.now() - started
    cache:close()
    return seconds
end

-- ---- a checkpoint, loaded ----------------------------------------------------------------------------------------

local function collect()
    collectgarbage()
    collectgarbage() -- what finalizers kept for the first
end

local function load(path, word, options)
    local started = core.now()
    local lm = require("qmoon").load(path, { load = word, kv = "f16", threads = ops.threads(),
                                             expect = { tokens = math.max(options.prompt, options.tokens + 1),
                                                        decode = true } })
    local model = { seconds = core.now() - started, lm = lm }
    function model.input(tokens)
        local ids = {}
        for i = 1, tokens do
            ids[i] = (i * 7) % lm.vocab_size
        end
        return ids
    end
    function model.cache(context)
        return lm:cache(context)
    end
    function model.run(ids, cache)
        return lm:forward(ids, cache)
    end
    return model
end

--- One row of figures for a checkpoint that is quantised to a type while it is loaded: medians of runs, and
--- the memory of its weights, which is what lm:memory() tells.
---@param path string
---@param word string nf4, nf4:dq, q4_0 …
---@param options {runs: integer, tokens: integer, prompt: integer}
---@return table
function bench.loaded(path, word, options)
    local row = { name = "inference --load " .. word, load = word, runs = options.runs,
                  threads = ops.threads(), prompt_tokens = options.prompt }
    local seconds, decodes, prompts = {}, {}, {}
    for i = 1, options.runs do
        local model = load(path, word, options)
        row.source = select(2, model.lm.model:size())
        row.mapped, row.weights = model.lm:memory()
        seconds[i], decodes[i], prompts[i] = model.seconds, bench.decode(model, options.tokens),
            bench.prompt(model, options.prompt)
        model = nil
        collect()
    end
    row.seconds = bench.median(seconds)
    row.decode, row.prompt = 1 / bench.median(decodes), options.prompt / bench.median(prompts)
    return row
end

--- The row as a line.
---@param row table
---@return string
function bench.loaded_text(row)
    local mapped = row.mapped > 0 and (" and %s in mapped files"):format(text.bytes(row.mapped)) or ""
    return (" %-6s loaded in %.2f s (%s/s)  weights %s%s  decode %.2f tokens/s  prompt %.1f tokens/s"):format(
        row.load, row.seconds, text.bytes(row.source / row.seconds), text.bytes(row.weights), mapped,
        row.decode, row.prompt)
end

-- ---- the peer ----------------------------------------------------------------------------------------------------

--- Tokens a second of llama-bench for a prompt and for decoding.
---@return number prompt, number decode
function bench.peer(program, file, threads, prompt, tokens)
    local pipe = io.popen(("'%s' -m '%s' -t %d -p %d -n %d -r 2 -o json 2>/dev/null"):format(program, file, threads, prompt, tokens))
    local printed = pipe:read "*a"
    pipe:close()
    local speed = {}
    for _, row in ipairs(core.json_decode(printed, program)) do
        speed[row.n_prompt > 0 and "prompt" or "decode"] = row.avg_ts
    end
    return speed.prompt, speed.decode
end

--- One row of figures for a format: medians of runs, ours and the peer's in turns.
---@param f table fields of config.json
---@param format string
---@param options {runs: integer, tokens: integer, prompt: integer}
---@param peer? {program: string, file: string}
---@return table
function bench.row(f, format, options, peer)
    local model = bench.model(f, format)
    local roofs, decodes, prompts, peer_decodes, peer_prompts = {}, {}, {}, {}, {}
    for i = 1, options.runs do
        roofs[i] = core.read_speed(768 * 2 ^ 20)
        decodes[i] = bench.decode(model, options.tokens)
        prompts[i] = bench.prompt(model, options.prompt)
        if peer then
            peer_prompts[i], peer_decodes[i] = bench.peer(peer.program, peer.file, ops.threads(), options.prompt,
                options.tokens)
        end
    end
    local row = { name = "inference " .. format, format = format, bytes = model.bytes, runs = options.runs,
                  threads = ops.threads(), prompt_tokens = options.prompt, roof = bench.median(roofs),
                  decode = 1 / bench.median(decodes), prompt = options.prompt / bench.median(prompts),
                  peer_decode = bench.median(peer_decodes), peer_prompt = bench.median(peer_prompts) }
    row.speed = row.bytes * row.decode
    row.of_roof = row.speed / row.roof
    if row.peer_decode then
        row.ratio, row.prompt_ratio = row.decode / row.peer_decode, row.prompt / row.peer_prompt
    end
    bench.close(model)
    return row
end

return bench
