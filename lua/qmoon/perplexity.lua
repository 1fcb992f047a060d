--- Perplexity, and how far a model's predictions are from a reference's.
--
-- The text's tokens are cut into windows, each read with a fresh context: window i reads tokens w*i … w*i + w-1 and predicts
-- w*i + 1 … w*i + w, so that every token but the first is predicted once.  Perplexity is exp of the mean of -ln p over all
-- predictions.  A BOS, where asked for, stands before every window and is not predicted.
--
-- llama.cpp's rule (llama-perplexity) is another: only whole windows count, their first token is replaced by BOS where the
-- tokenizer puts one, and only the second half of a window is scored, so that every prediction has half a window before it.
--
-- Sources: docs/numerics.md; llama.cpp's tools/perplexity.

local core = require "qmoon.core"
local ops = require "qmoon.ops"
local slice = require("qmoon.list").slice

local perplexity = {}

-- Logits of so many values at a time: rows of a large vocabulary are scored in small batches.
local LOGITS = 2 ^ 22

-- ---- windows ------------------------------------------------------------------------------------------------

--- Windows as lists of {ids, targets, first = first position that is scored}.
local function windows(ids, size, bos)
    local list = {}
    for from = 1, #ids - 1, size do
        local w = { ids = {}, targets = {}, first = 1 }
        if bos then
            w.ids[1], w.targets[1], w.first = bos, ids[from], 2
        end
        for i = from, math.min(from + size - 1, #ids - 1) do
            w.ids[#w.ids + 1], w.targets[#w.targets + 1] = ids[i], ids[i + 1]
        end
        list[#list + 1] = w
    end
    return list
end

local function llama_windows(ids, size, bos)
    local list = {}
    for from = 1, #ids - size + 1, size do
        local w = { ids = {}, targets = {}, first = math.floor(size / 2) + 1 }
        for i = from, from + size - 2 do
            w.ids[#w.ids + 1], w.targets[#w.targets + 1] = ids[i], ids[i + 1]
        end
        w.ids[1] = bos or w.ids[1]
        list[#list + 1] = w
    end
    return list
end

-- ---- one window -----------------------------------------------------------------------------------------------

local function timed(lm, fn, ...)
    local started = core.now()
    local value, more = fn(...)
    lm.seconds = lm.seconds + core.now() - started
    return value, more
end

local function walk(lm, w)
    lm.cache:truncate(0)
    lm.tokens = lm.tokens + #w.ids
    return lm.runner:walk(w.ids, lm.cache)
end

local function hidden(lm, w)
    local last
    for _, x in walk(lm, w) do
        last = x
    end
    return last
end

local function add_errors(lm, layer, theirs, mine)
    local s = theirs:errors(mine)
    local sum = lm.by_layer[layer] or { xx = 0, dd = 0, xy = 0, yy = 0 }
    for k, v in pairs(sum) do
        sum[k] = v + s[k]
    end
    lm.by_layer[layer] = sum
end

--- Hidden states of all models, layer by layer, each compared with the first model's.
local function hidden_in_step(list, w)
    local walks, x = {}, {}
    for i, lm in ipairs(list) do
        walks[i] = walk(lm, w)
    end
    for layer = 0, list[1].runner.layers do
        for i, lm in ipairs(list) do
            local _, state = timed(lm, walks[i])
            x[i] = state
            if i > 1 then
                add_errors(lm, layer, x[1], state)
            end
        end
    end
    return x
end

--- Scores rows from … to of a window: -ln p of the targets, and against a reference's rows their divergence and whether
--- the likeliest token is the same.
local function score(lm, x, w, from, to, theirs)
    local logits = lm.runner:logits(ops.rows(x, from - 1, to - from + 1))
    local best = (theirs or lm.is_reference) and ops.argmax(logits)
    for _, p in ipairs(ops.logprobs(logits, slice(w.targets, from, to)):values()) do
        lm.nll[#lm.nll + 1] = -p
    end
    for i, kl in ipairs(theirs and ops.kl(theirs.logits, logits):values() or {}) do
        lm.kl[#lm.kl + 1] = math.max(kl, 0)
        lm.same[#lm.same + 1] = best[i] == theirs.best[i]
    end
    return { logits = logits, best = best }
end

--- All models on one window, a few rows of logits at a time.
local function run_window(list, w, in_step)
    local x = in_step and hidden_in_step(list, w) or {}
    for i, lm in ipairs(in_step and {} or list) do
        x[i] = timed(lm, hidden, lm, w)
    end
    local step = math.max(1, math.floor(LOGITS / list[1].runner.vocab_size))
    for from = w.first, #w.ids, step do
        local to, theirs = math.min(from + step - 1, #w.ids), nil
        for i, lm in ipairs(list) do
            local s = timed(lm, score, lm, x[i], w, from, to, theirs)
            theirs = theirs or lm.is_reference and s or nil
        end
    end
end

-- ---- statistics -------------------------------------------------------------------------------------------------

local function mean_of(list)
    local sum = 0
    for _, v in ipairs(list) do
        sum = sum + v
    end
    return sum / math.max(#list, 1)
end

--- Standard error of the mean.  Predictions of one window hang together, so windows are the samples where there are
--- enough of them (ratio estimate over clusters), and single predictions otherwise.
local function standard_error(list, counts)
    local mean = mean_of(list)
    local groups, at = {}, 1
    for i, n in ipairs(#counts >= 8 and counts or {}) do
        local sum = 0
        for k = at, at + n - 1 do
            sum = sum + list[k] - mean
        end
        groups[i], at = sum, at + n
    end
    if not groups[1] then
        for i, v in ipairs(list) do
            groups[i] = v - mean
        end
    end
    local squares, n = 0, #groups
    for _, d in ipairs(groups) do
        squares = squares + d * d
    end
    return n > 1 and math.sqrt(squares * n / (n - 1)) / #list or nil
end

--- The value that a share of the list does not exceed.
local function quantile(list, share)
    local sorted = {}
    for i, v in ipairs(list) do
        sorted[i] = v
    end
    table.sort(sorted)
    return sorted[math.max(1, math.ceil(share * #sorted))], sorted[#sorted]
end

local NORMAL_95 = 1.959964

local function interval(mean, error)
    return error and { mean - NORMAL_95 * error, mean + NORMAL_95 * error } or nil
end

local function exp_pair(pair)
    return pair and { math.exp(pair[1]), math.exp(pair[2]) }
end

--- Means over windows' positions 1, 2, 3-4, 5-8, …: how much context helps, and where a quantised model loses.
local function by_position(lm, list)
    local buckets, at = {}, 0
    for _, w in ipairs(list) do
        for position = w.first, #w.ids do
            at = at + 1
            local k = math.ceil(math.log(math.max(position, 1)) / math.log(2) - 1e-9) + 1
            local b = buckets[k] or { from = k == 1 and 1 or 2 ^ (k - 2) + 1, to = 2 ^ (k - 1), tokens = 0, nll = 0, kl = 0 }
            buckets[k] = b
            b.tokens, b.nll, b.kl = b.tokens + 1, b.nll + lm.nll[at], b.kl + (lm.kl[at] or 0)
        end
    end
    local rows = {}
    for k = 1, 64 do
        local b = buckets[k]
        if b then
            rows[#rows + 1] = { from = b.from, to = b.to, tokens = b.tokens, ppl = math.exp(b.nll / b.tokens),
                                kl_mean = lm.kl[1] and b.kl / b.tokens or nil }
        end
    end
    return rows
end

local function layers_of(lm)
    local rows = {}
    for layer = 0, lm.runner.layers do
        local s = lm.by_layer[layer]
        rows[#rows + 1] = { layer = layer, relative_error = math.sqrt(s.dd / math.max(s.xx, 1e-300)),
                            cosine = s.xy / math.max(math.sqrt(s.xx * s.yy), 1e-300) }
    end
    return rows
end

local function summary(lm, reference, list, o)
    local counts = {}
    for i, w in ipairs(list) do
        counts[i] = #w.ids - w.first + 1
    end
    local nll = mean_of(lm.nll)
    local error = standard_error(lm.nll, counts)
    local r = { ppl = math.exp(nll), nll = nll, tokens = #lm.nll, windows = #list, nll_error = error,
                ppl_interval = exp_pair(interval(nll, error)), seconds = lm.seconds,
                tokens_per_second = lm.tokens / math.max(lm.seconds, 1e-9) }
    if reference then
        local difference = {}
        for i, v in ipairs(lm.nll) do
            difference[i] = v - reference.nll[i]
        end
        local ratio, same = mean_of(difference), 0
        for _, s in ipairs(lm.same) do
            same = same + (s and 1 or 0)
        end
        r.reference_ppl = math.exp(mean_of(reference.nll))
        r.ln_ratio, r.ln_ratio_interval = ratio, interval(ratio, standard_error(difference, counts))
        r.kl_mean, r.kl_interval = mean_of(lm.kl), interval(mean_of(lm.kl), standard_error(lm.kl, counts))
        r.kl_p99, r.kl_max = quantile(lm.kl, 0.99)
        r.top1_agreement = same / #lm.same
        r.by_layer = o.by_layer and layers_of(lm) or nil
    end
    r.by_position = o.by_position and by_position(lm, list) or nil
    return r
end

-- ---- measuring ----------------------------------------------------------------------------------------------------

local function check_pair(lm, reference, by_layer)
    if lm.vocab_size ~= reference.vocab_size then
        core.fail("fail", "%s has %d tokens and %s has %d: their predictions cannot be compared", lm.model.path, lm.vocab_size,
            reference.model.path, reference.vocab_size)
    elseif by_layer and (lm.layers ~= reference.layers or lm.fields.hidden_size ~= reference.fields.hidden_size) then
        core.fail("fail", "%s and %s are of different shapes: their layers cannot be compared", lm.model.path,
            reference.model.path)
    end
end

local function check_ids(lm, ids)
    for i, id in ipairs(ids) do
        if id >= lm.vocab_size then
            core.fail("fail", "%s: the text's token %d is %d, but the model has %d; is the tokenizer another model's?",
                lm.model.path, i, id, lm.vocab_size)
        end
    end
end

local function start(runner, size, is_reference)
    if size > runner.context then
        core.fail("fail", "%s: windows of %d tokens do not fit the model's context of %d; choose a smaller --window, or a larger "
            .. "--context where the model bears it", runner.model.path, size, runner.context)
    end
    return { runner = runner, is_reference = is_reference, cache = runner:cache(size), nll = {}, kl = {}, same = {},
             by_layer = {}, seconds = 0, tokens = 0 }
end

--- Measures models on the same tokens.
---
--- options: window = 512, bos = id to put before every window, rule = "windows" or "llama.cpp", reference = runner,
--- by_position, by_layer, progress = function(windows done, of).
---@param runners qmoon.Runner[]
---@param ids integer[]
---@param o? table
---@return table[] results one for each, as `qmoon perplexity --json` has them
function perplexity.measure(runners, ids, o)
    o = o or {}
    local size = o.window or 512
    local cut = o.rule == "llama.cpp" and llama_windows or windows
    local list = cut(ids, size, o.bos)
    if #list == 0 then
        core.fail("fail", "the text is too short (tokens: %d); %s", #ids, o.rule == "llama.cpp"
            and ("llama.cpp's rule needs a whole window of %d"):format(size) or "there is nothing to predict")
    end
    local longest = size + (o.bos and 1 or 0)
    local reference = o.reference and start(o.reference, longest, true) or nil
    local all = { reference }
    for _, runner in ipairs(runners) do
        if reference then
            check_pair(runner, reference.runner, o.by_layer)
        end
        check_ids(runner, ids)
        all[#all + 1] = start(runner, longest, false)
    end
    for i, w in ipairs(list) do
        run_window(all, w, reference and o.by_layer)
        if o.progress then
            o.progress(i, #list)
        end
    end
    local results = {}
    for _, lm in ipairs(all) do
        if lm ~= reference then
            results[#results + 1] = summary(lm, reference, list, o)
        end
    end
    return results
end

return perplexity
