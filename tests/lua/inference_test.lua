-- Models that run: logits and greedy text of transformers and bitsandbytes (tests/fixtures/golden/inference.json), caches,
-- adapters, perplexity, multiple choice, and what is refused.

local core = require "qmoon.core"
local qm = require "qmoon"
local evaluate = require "qmoon.evaluate"
local files = require "qmoon.files"
local ops = require "qmoon.ops"
local perplexity = require "qmoon.perplexity"
local synth = require "qmoon.synth"
local support = dofile "tests/lua/support.lua"

local BASE, ADAPTER = "tests/fixtures/tiny-qwen2", "tests/fixtures/tiny-adapter"
local GOLDEN = "tests/fixtures/golden/inference.json"
local golden = core.json_decode(files.read(GOLDEN), GOLDEN)

local function check_prompts(lm, prompts, bound)
    for i, p in ipairs(prompts) do
        local logits = lm:forward(p.ids):values()
        for _, top in ipairs(p.top) do
            local error = math.abs(logits[top[1] + 1] - top[2])
            assert(error <= bound, ("prompt %d: logit of %d is %.4g off"):format(i, top[1], error))
        end
    end
end

local function check_greedy(lm, prompts)
    for i, p in ipairs(prompts) do
        local r = lm:generate { ids = p.ids, tokens = #p.greedy, ignore_eos = true }
        for k, id in ipairs(p.greedy) do
            assert(r.ids[k] == id, ("prompt %d: token %d is %d, not %d"):format(i, k, r.ids[k], id))
        end
    end
end

local function fails(kind, pattern, fn, ...)
    local ok, e = pcall(fn, ...)
    assert(not ok, "it did not fail")
    assert(type(e) == "table" and e.kind == kind, "failed with " .. tostring(e))
    assert(e.message:find(pattern), "the message is: " .. e.message)
    assert(not e.message:find "\n", "the message has several lines")
end

local function largest_difference(a, b)
    return a:errors(b).max_d
end

local function ids_of(n)
    return { unpack(golden.text.ids, 1, n) }
end

local base = qm.load(BASE)
local tests = {}

tests["logits and greedy text are transformers'"] = function()
    check_prompts(base, golden.base, 1e-2)
    check_greedy(base, golden.base)
end

tests["an adapter applied unmerged gives what peft merges"] = function()
    local lm = qm.load(BASE, { adapter = ADAPTER })
    check_prompts(lm, golden.adapter, 1e-2)
    check_greedy(lm, golden.adapter)
    check_prompts(qm.load(qm.open(BASE):merge(ADAPTER)), golden.adapter, 1e-2)
end

tests["a GGUF file runs as the folder it was made from"] = function()
    local lm = qm.load "tests/fixtures/golden/merged-f16.gguf"
    check_prompts(lm, golden.adapter, 1e-2)
    check_greedy(lm, golden.adapter)
end

-- bitsandbytes computed in f16, and took another offset for the scales: codes are equal, logits are near.
tests["double-quantised NF4 runs as bitsandbytes runs it"] = function()
    local out = support.scratch()
    qm.write(qm.open(BASE):merge(ADAPTER), { { out, format = "nf4", double_quant = true } }, { round = "f16" })
    local lm = qm.load(out)
    check_prompts(lm, golden["nf4-dq"], 0.06)
end

tests["folders of every kind of format decode as they are used"] = function()
    local ids = ids_of(20)
    for _, format in ipairs { "int8", "fp4", "nf4", "int4" } do
        local out, plain = support.scratch(), support.scratch()
        qm.write(qm.open(BASE), { { out, format = format, dtype = "f32" } }, {})
        qm.write(qm.open(out), { { plain, format = "f32" } }, {})
        local expected = qm.load(plain):forward(ids)
        local d = largest_difference(expected, qm.load(out, { exact = true }):forward(ids))
        assert(d < 1e-3, ("%s: %.3g"):format(format, d))
        d = largest_difference(expected, qm.load(out):forward(ids))
        assert(d < 5e-2, ("%s, laid out for speed: %.3g"):format(format, d))
    end
end

-- What a GGUF file cannot say is set to what readers of it assume.
local SAID = { gemma2 = { query_pre_attn_scalar = 32 }, gemma3_text = { query_pre_attn_scalar = 32 },
               qwen3_moe = { norm_topk_prob = true } }

tests["every architecture runs, and its GGUF file as its folder"] = function()
    local ran = 0
    for _, sizes in pairs(synth.sizes) do
        local size, folder, gguf = {}, support.scratch(), support.scratch() .. ".gguf"
        for _, fields in ipairs { sizes.tiny, SAID[sizes.tiny.model_type] or {} } do
            for key, value in pairs(fields) do
                size[key] = value
            end
        end
        synth.model(size, folder, { seed = 3 })
        qm.write(qm.open(folder), { { gguf, format = "f32" } })
        local ids = { 7, 300, 21, 5, 5, 431, 90 }
        local logits = qm.load(folder):forward(ids)
        local s = logits:stats()
        assert(s.nan + s.inf == 0 and s.std > 0, size.model_type)
        local d = largest_difference(logits, qm.load(gguf):forward(ids))
        assert(d <= 1e-5 * math.max(s.max, -s.min), ("%s: %.3g"):format(size.model_type, d))
        ran = ran + 1
    end
    assert(ran >= 11, ran)
end

tests["tokens in pieces, and after a truncation, give the logits of all at once"] = function()
    local ids = ids_of(40)
    local cache = base:cache(64)
    local whole = base:forward(ids)
    base:forward({ unpack(ids, 1, 30) }, cache)
    base:forward({ 5, 6, 7 }, cache)
    cache:truncate(30)
    for i = 31, 39 do
        base:forward({ ids[i] }, cache)
    end
    assert(largest_difference(whole, base:forward({ ids[40] }, cache)) < 1e-3)
    assert(cache:length() == 40)
    local all = base:forward(ids, nil, { all = true })
    assert(largest_difference(whole, ops.rows(all, 39, 1)) < 1e-3)
end

tests["prompts longer than a batch are cut without a trace"] = function()
    local ids = ids_of(600)
    local all = base:forward(ids, nil, { all = true })
    assert(largest_difference(base:forward(ids), ops.rows(all, 599, 1)) < 1e-3)
end

tests["a GGUF of a mixture runs as its folder does: a router of one row is a vector there"] = function()
    local dir = support.scratch()
    require("qmoon.synth").model(require("qmoon.synth").sizes.qwen2moe.tiny, dir, { seed = 5 })
    local path = support.scratch() .. ".gguf"
    qm.write(qm.open(dir), { { path, format = "bf16" } })
    local ids = ids_of(9)
    assert(largest_difference(qm.load(dir):forward(ids), qm.load(path):forward(ids)) < 1e-5)
end

tests["caches of fewer bits are near f32 ones, and smaller"] = function()
    local ids = ids_of(40)
    local exact = base:forward(ids)
    for _, kept in ipairs { { "f16", 0.05, 16 }, { "bf16", 0.4, 16 }, { "q8_0", 0.4, 8.5 } } do
        local lm = qm.load(BASE, { kv = kept[1] })
        local d = largest_difference(exact, lm:forward(ids))
        assert(d > 0 and d < kept[2], kept[1] .. ": " .. d)
        assert(lm:cache(8):bytes() == base:cache(8):bytes() * kept[3] / 32)
    end
end

tests["draws depend on seed and number alone"] = function()
    local function draw(seed)
        return table.concat(base:generate({ ids = { 465, 303 }, tokens = 12, temperature = 1, top_p = 0.9, seed = seed,
                                            ignore_eos = true }).ids, " ")
    end
    assert(draw(1) == draw(1))
    assert(draw(1) ~= draw(2))
end

tests["generation ends at the tokens that end it, and tells why"] = function()
    local prompt = golden.base[1]
    local r = base:generate { ids = prompt.ids, tokens = 24, stop_ids = { prompt.greedy[3] }, ignore_eos = true }
    assert(#r.ids == 2 and r.stopped == "end")
    r = base:generate { ids = prompt.ids, tokens = 3, ignore_eos = true }
    assert(#r.ids == 3 and r.stopped == "tokens")
    local small = qm.load(BASE, { context = #prompt.ids + 2 })
    r = small:generate { ids = prompt.ids, tokens = 10, ignore_eos = true }
    assert(#r.ids == 2 and r.stopped == "context")
    assert(#base:generate({ ids = prompt.ids, tokens = 0 }).ids == 0)
end

-- ---- perplexity -------------------------------------------------------------------------------------------

tests["perplexity is transformers' by the rule of windows"] = function()
    local r = perplexity.measure({ base }, golden.text.ids)[1]
    assert(r.tokens == 1099 and r.windows == 3)
    assert(math.abs(r.nll - golden.text.nll) < 1e-4, r.nll)
    assert(math.abs(r.ppl - math.exp(r.nll)) < 1e-9)
    assert(r.ppl_interval[1] < r.ppl and r.ppl < r.ppl_interval[2])
end

tests["a model compared with itself has no divergence"] = function()
    local r = perplexity.measure({ base }, ids_of(300), { reference = qm.load(BASE), by_layer = true, by_position = true,
                                                          window = 128 })[1]
    assert(r.kl_max < 1e-5 and r.top1_agreement == 1 and r.reference_ppl == r.ppl and r.ln_ratio == 0)
    for _, layer in ipairs(r.by_layer) do
        assert(layer.relative_error == 0)
    end
    assert(#r.by_layer == 5 and r.by_position[1].to == 1 and r.by_position[8].from == 65)
    local n = 0
    for _, b in ipairs(r.by_position) do
        n = n + b.tokens
    end
    assert(n == r.tokens and n == 299)
end

tests["other models diverge, and their layers are apart"] = function()
    local lm = qm.load(BASE, { adapter = ADAPTER })
    local r = perplexity.measure({ lm, base }, ids_of(200), { reference = base, by_layer = true })
    assert(r[1].kl_mean > 0.1 and r[1].kl_p99 <= r[1].kl_max and r[1].top1_agreement < 1)
    assert(r[1].by_layer[1].relative_error == 0 and r[1].by_layer[5].relative_error > 0.1)
    assert(r[2].kl_max < 1e-5)
    assert(math.abs(r[1].ln_ratio - math.log(r[1].ppl / r[1].reference_ppl)) < 1e-9)
end

tests["llama.cpp's rule scores the second half of whole windows"] = function()
    local r = perplexity.measure({ base }, golden.text.ids, { rule = "llama.cpp" })[1]
    assert(r.tokens == 2 * 255 and r.windows == 2)
end

tests["a BOS before every window changes what is predicted from, not what is predicted"] = function()
    local plain = perplexity.measure({ base }, ids_of(100), { window = 32 })[1]
    local bos = perplexity.measure({ base }, ids_of(100), { window = 32, bos = 2045 })[1]
    assert(plain.tokens == 99 and bos.tokens == 99 and plain.nll ~= bos.nll)
end

-- ---- multiple choice ------------------------------------------------------------------------------------------

local function characters() -- a tokenizer of one id a byte
    return { encode = function(_, s)
        return { s:byte(1, -1) }
    end, eos_ids = {} }
end

tests["a choice's likelihood is that of its tokens after the prompt"] = function()
    local lm = setmetatable({ tokenizer = characters() }, { __index = base })
    local documents = evaluate.documents('{"prompt": "ab ", "choices": ["cd", "ce", "xyz"], "answer": 1}\n\n', "test")
    local scores, tokens = evaluate.score(lm, documents[1])
    for i, choice in ipairs { "cd", "ce", "xyz" } do
        local ids = { ("ab " .. choice):byte(1, -1) }
        local logits, sum = base:forward(ids, nil, { all = true }), 0
        for k = 3, #ids do
            sum = sum + ops.logprobs(ops.rows(logits, k - 2, 1), { ids[k] }):values()[1]
        end
        assert(math.abs(scores[i] - sum) < 1e-4, scores[i] - sum)
    end
    assert(tokens == 2 + 2 + 2 + 3)
    local r = evaluate.run(lm, documents)
    assert(r.documents == 1 and r.answered == 1 and (r.accuracy == 0 or r.accuracy == 1) and #r.labels == 1)
    assert(evaluate.changes(r, { labels = { r.labels[1] + 1 } }) == 1)
end

tests["documents come in the shapes people have"] = function()
    local d = evaluate.documents('{"question":"q","endings":["a","b"],"label":"b"}\n{"text":"t","options":["a","b"],"gold":"1"}\n'
        .. '{"context":"c","choices":["a","b"]}', "test")
    assert(#d == 3 and d[1].answer == 2 and d[2].answer == 2 and d[3].answer == nil)
    d = evaluate.documents('{"text":"good","n":3,"label":" yes"}', "test", { template = "{text} {n}:", choices = { " no", " yes" } })
    assert(d[1].prompt == "good 3:" and d[1].answer == 2)
    fails("corrupt", "test:2", evaluate.documents, '{"prompt":"q","choices":["a","b"]}\n{"prompt":"q"}', "test")
    fails("corrupt", "none of the choices", evaluate.documents, '{"prompt":"q","choices":["a","b"],"answer":"c"}', "test")
    fails("corrupt", "0 to 1", evaluate.documents, '{"prompt":"q","choices":["a","b"],"answer":2}', "test")
    fails("corrupt", "no documents", evaluate.documents, "\n", "test")
end

-- ---- refusals -----------------------------------------------------------------------------------------------------

tests["what cannot be run is refused in a line"] = function()
    fails("unsupported", "config.json", qm.load, BASE .. "/model.safetensors")
    fails("fail", "context of 1024", base.forward, base, ids_of(1025))
    fails("usage", "one token", base.forward, base, {})
    fails("fail", "beyond", base.forward, base, { 99999 })
    local copy = support.copy(BASE)
    local config = files.read(copy .. "/config.json")
    local function edited(...)
        local changed = config
        for i = 1, select("#", ...), 2 do
            changed = changed:gsub((select(i, ...)), (select(i + 1, ...)))
        end
        support.write(copy .. "/config.json", changed)
        return copy
    end
    fails("unsupported", "no forward pass for models of type 'gpt9'", qm.load, edited('"Qwen2ForCausalLM"', '"Gpt9"', '"qwen2"',
        '"gpt9"'))
    fails("unsupported", "rope scaling 'twist'", qm.load, edited('"rope_type": "default"', '"rope_type": "twist"'))
    fails("unsupported", "activation 'relu9'", qm.load, edited('"silu"', '"relu9"'))
    fails("corrupt", "k_proj.weight' is %[128 x 256%], and the config makes it %[256 x 256%]", qm.load,
        edited('"num_attention_heads": 4', '"num_attention_heads": 4, "head_dim": 128'))
    fails("corrupt", "'model.norm.weight' is %[256%], and the config makes it %[512%]", qm.load, edited('"hidden_size": 256', '"hidden_size": 512, "head_dim": 64'))
    fails("corrupt", "is missing", qm.load, edited('"num_hidden_layers": 4', '"num_hidden_layers": 5'))
end

tests["dynamic scaling goes as far as the model's length, and linear scaling counts"] = function()
    local copy = support.copy(BASE)
    local config = files.read(copy .. "/config.json")
    local function with(rope)
        support.write(copy .. "/config.json", (config:gsub('"rope_parameters": {.-}', '"rope_parameters": ' .. rope)))
        return qm.load(copy, { context = 2048 })
    end
    local dynamic = with '{"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}'
    assert(dynamic.context == 1024)
    assert(largest_difference(dynamic:forward(ids_of(9)), base:forward(ids_of(9))) == 0)
    local linear = with '{"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}'
    assert(linear.context == 2048)
    assert(largest_difference(linear:forward(ids_of(9)), base:forward(ids_of(9))) > 0.01)
end

return tests
