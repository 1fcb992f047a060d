--- What quantisation did to a model's predictions: every output of a pipeline on the same text, beside the 16-bit weights
-- they were encoded from.
--
-- The reference is the first output without loss, or else the source, its adapters applied unmerged.

local ops = require "qmoon.ops"
local perplexity = require "qmoon.perplexity"
local qm = require "qmoon"
local running = require "qmoon.running"

local evaluation = {}

local PROMPT, ANSWER = 32, 32 -- tokens of the run that decoding is timed with

local function reference_of(report)
    for _, o in ipairs(report.outputs) do
        if o.error.sqnr == math.huge then
            return qm.load(o.path), o.path
        end
    end
    return qm.load(report.model), report.model.path
end

local function decoding_speed(lm, ids)
    local prompt = {}
    for i = 1, math.min(PROMPT, #ids) do
        prompt[i] = ids[i]
    end
    return lm:generate({ ids = prompt, tokens = ANSWER, ignore_eos = true }).tokens_per_second
end

--- Adds to a report what every output makes of a text's first tokens: outputs[i].evaluation, and report.evaluation.
---@param report table of qm.write
---@param path string text file
---@param o {tokens: integer, window: integer?, threads: integer?, progress: fun(done: integer, of: integer)?}
function evaluation.add(report, path, o)
    if o.threads then
        ops.threads(o.threads)
    end
    local reference, name = reference_of(report)
    local ids = running.tokens(reference, path, o.tokens)
    local runners = {}
    for i, output in ipairs(report.outputs) do
        runners[i] = qm.load(output.path)
    end
    local results = perplexity.measure(runners, ids, { reference = reference, window = o.window, progress = o.progress })
    for i, output in ipairs(report.outputs) do
        local r = results[i]
        r.prompt_tokens_per_second = r.tokens_per_second
        r.tokens_per_second = decoding_speed(runners[i], ids)
        output.evaluation = r
    end
    report.evaluation = { text = path:match "[^/]*$", reference = name, tokens = results[1].tokens, window = o.window or 512,
                          reference_ppl = results[1].reference_ppl, threads = ops.threads() }
end

--- Cells for a table, as report.lua prints them.
---@param report table
---@return string[][]
function evaluation.rows(report)
    local rows = { { "output", "ppl", "change", "KL mean", "KL p99", "same top-1", "prompt tok/s", "tok/s" } }
    for _, o in ipairs(report.outputs) do
        local e = o.evaluation
        rows[#rows + 1] = { o.path:match "[^/]+$" .. (o.folder and "/" or ""), ("%.4f"):format(e.ppl),
                            ("%+.2f %%"):format(100 * (math.exp(e.ln_ratio) - 1)), ("%.3g"):format(e.kl_mean),
                            ("%.3g"):format(e.kl_p99), ("%.2f %%"):format(100 * e.top1_agreement),
                            ("%.4g"):format(e.prompt_tokens_per_second), ("%.4g"):format(e.tokens_per_second) }
    end
    return rows
end

--- One line that says what the table is of.
---@param report table
---@return string
function evaluation.caption(report)
    local e = report.evaluation
    return ("%d predictions of %s in windows of %d; reference %s, ppl %.4f; %d threads"):format(e.tokens, e.text, e.window,
        e.reference:match "[^/]+/?$", e.reference_ppl, e.threads)
end

return evaluation
