-- perplexity: what a model makes of a text, and how far it is from another.  The measuring is in qmoon.perplexity.

local core = require "qmoon.core"
local cli = require "qmoon.cli"
local json = require "qmoon.json"
local perplexity = require "qmoon.perplexity"
local running = require "qmoon.running"
local text = require "qmoon.text"

local o = cli.parse({
    name = "perplexity",
    doc = "Perplexity of a text in windows, each read with a fresh context; with a reference also the KL divergence of the\n"
        .. "predictions from the reference's, in nats.",
    arguments = { { "MODEL", doc = running.MODEL } },
    options = running.options {
        { "text", kind = "text", value = "FILE", required = true, doc = "UTF-8 text" },
        { "window", kind = "integer", value = "N", default = 512, doc = "tokens predicted in a window" },
        { "tokens", kind = "integer", value = "N", doc = "the first N tokens of the text (default: all)" },
        { "bos", doc = "put the model's BOS before every window" },
        { "rule", kind = "text", value = "RULE", choices = { "windows", "llama.cpp" }, default = "windows",
          doc = "llama.cpp: as llama-perplexity counts, the second half of whole windows" },
        { "reference", kind = "text", value = "MODEL", doc = "compare predictions with this model's" },
        { "by-position", doc = "figures by position in the window" },
        { "by-layer", doc = "with a reference: how far hidden states are apart after every layer" },
        { "json", doc = "one object: ppl, nll, tokens, …" },
    },
    examples = [[
  qmoon perplexity model-int4 --text wiki-test.txt --reference merged-fp16
  qmoon perplexity model-q4_0.gguf --text wiki-test.txt --rule llama.cpp      llama-perplexity's figure]],
}, { ... })
if not o then
    return 0
elseif o.window < 1 then
    core.fail("usage", "perplexity: --window wants at least 1")
elseif o.by_layer and not o.reference then
    core.fail("usage", "perplexity: --by-layer compares with a model; add --reference MODEL")
end

local lm = running.load(o[1], o, { tokens = o.window + 1 })
local llama = o.rule == "llama.cpp"
local ids = running.tokens(lm, o.text, o.tokens, llama and { special = false } or nil)
local bos = lm.tokenizer.bos
if o.bos and not bos then
    core.fail("fail", "%s: its tokenizer has no BOS token; leave --bos off", lm.model.path)
end
local adds = lm.tokenizer:encode ""[1] == bos
local step, finish = running.progress "perplexity"
local ok, results = pcall(perplexity.measure, { lm }, ids, {
    window = o.window, rule = o.rule, bos = (o.bos or llama and adds) and bos or nil, by_position = o.by_position,
    by_layer = o.by_layer, progress = step,
    reference = o.reference and running.load(o.reference,
        { kv = o.kv, context = o.context, exact = o.exact, threads = o.threads, beside = lm }, { tokens = o.window + 1 }) or nil })
finish()
if not ok then
    error(results, 0)
end
local r = results[1]

if o.json then
    r.text_tokens, r.window, r.rule = #ids, o.window, o.rule
    r.ppl_interval, r.ln_ratio_interval = r.ppl_interval and json.array(r.ppl_interval), r.ln_ratio_interval and json.array(r.ln_ratio_interval)
    r.kl_interval = r.kl_interval and json.array(r.kl_interval)
    r.by_position, r.by_layer = r.by_position and json.array(r.by_position), r.by_layer and json.array(r.by_layer)
    print(json.encode(r, { indent = 2 }))
    return 0
end

local function within(pair, form)
    return pair and (" (%s to %s)"):format(form:format(pair[1]), form:format(pair[2])) or ""
end

print((" ppl %.4f%s · %d predictions in %d windows of %d · %.4g tokens/s"):format(r.ppl, within(r.ppl_interval, "%.4g"), r.tokens,
    r.windows, o.window, r.tokens_per_second))
if o.reference then
    print((" reference %.4f · ppl %+.3f %%%s"):format(r.reference_ppl, 100 * (math.exp(r.ln_ratio) - 1),
        r.ln_ratio_interval and (" (%+.3f to %+.3f %%)"):format(100 * (math.exp(r.ln_ratio_interval[1]) - 1),
            100 * (math.exp(r.ln_ratio_interval[2]) - 1)) or ""))
    print((" KL mean %.5g%s  p99 %.4g  max %.4g · same top-1 %.2f %%"):format(r.kl_mean, within(r.kl_interval, "%.4g"), r.kl_p99,
        r.kl_max, 100 * r.top1_agreement))
end
if r.by_position then
    local rows = { { "positions", "predictions", "ppl", o.reference and "KL mean" or "" } }
    for _, b in ipairs(r.by_position) do
        rows[#rows + 1] = { b.from == b.to and ("%d"):format(b.from) or ("%d-%d"):format(b.from, b.to), ("%d"):format(b.tokens),
                            ("%.4g"):format(b.ppl), b.kl_mean and ("%.4g"):format(b.kl_mean) or "" }
    end
    print(text.table(rows))
end
if r.by_layer then
    local rows = { { "after layer", "relative error", "cosine" } }
    for _, l in ipairs(r.by_layer) do
        rows[#rows + 1] = { l.layer == 0 and "embedding" or ("%d"):format(l.layer), ("%.3e"):format(l.relative_error),
                            ("%.6f"):format(l.cosine) }
    end
    print(text.table(rows))
end
print " in brackets: 95 % intervals, windows being the samples"
