--- Multiple choice by log-likelihood: which of a document's answers the model finds likeliest, how often that is the right
-- one, and what a document costs.
--
-- A document is a JSON object on a line of its own:
--
--   {"prompt": "The sky is", "choices": [" blue", " green"], "answer": 0}
--
-- prompt may be called question, text or context; choices endings or options; answer label or gold: a number from 0, or the
-- choice's text.  Without an answer the document counts for labels and cost, not for accuracy.  Where choices are left out
-- they are the command's (--choices), and the prompt is put into its template.
--
-- The likelihood of a choice is that of its tokens after the prompt's, prompt and choice being tokenized as one text; blanks
-- at the prompt's end count as the choice's, which is how tokenizers cut words.

local core = require "qmoon.core"
local ops = require "qmoon.ops"
local slice = require("qmoon.list").slice

local evaluate = {}

-- ---- documents ------------------------------------------------------------------------------------------------

local function first(object, names)
    for _, name in ipairs(names) do
        if object[name] ~= nil and object[name] ~= core.null then
            return object[name]
        end
    end
end

local function index_of(list, value)
    for i, v in ipairs(list) do
        if v == value then
            return i
        end
    end
end

--- Answer as a number from 1, or nil.
local function answer_of(object, choices, what)
    local answer = first(object, { "answer", "label", "gold" })
    if answer == nil then
        return nil
    elseif type(answer) == "string" and not tonumber(answer) then
        return index_of(choices, answer) or index_of(choices, " " .. answer)
            or core.fail("corrupt", "%s: the answer '%s' is none of the choices", what, answer)
    end
    answer = tonumber(answer)
    if not answer or answer % 1 ~= 0 or answer < 0 or answer >= #choices then
        core.fail("corrupt", "%s: the answer is %s, and choices are counted from 0 to %d", what, tostring(answer), #choices - 1)
    end
    return answer + 1
end

local function filled(template, object, what)
    return (template:gsub("{([%w_]+)}", function(name)
        local value = object[name]
        return type(value) == "string" and value or type(value) == "number" and ("%.14g"):format(value)
            or core.fail("corrupt", "%s: the template wants '%s', which is no text there", what, name)
    end))
end

local function document_of(line, what, o)
    local object = core.json_decode(line, what)
    if type(object) ~= "table" then
        core.fail("corrupt", "%s: is no JSON object", what)
    end
    local choices = o.choices or first(object, { "choices", "endings", "options" })
    local prompt = o.template and filled(o.template, object, what) or first(object, { "prompt", "question", "text", "context" })
    if type(prompt) ~= "string" then
        core.fail("corrupt", "%s: has no text 'prompt' (or question, text, context)", what)
    elseif type(choices) ~= "table" or #choices < 2 then
        core.fail("corrupt", "%s: has no list 'choices' of two or more (or give --choices)", what)
    end
    for i, c in ipairs(choices) do
        if type(c) ~= "string" or c == "" then
            core.fail("corrupt", "%s: choice %d is no text", what, i - 1)
        end
    end
    return { prompt = prompt, choices = choices, answer = answer_of(object, choices, what), what = what }
end

--- The documents of a JSONL text.
---@param lines string
---@param path string for messages
---@param o? {choices: string[]?, template: string?, most: integer?}
---@return table[] documents {prompt, choices, answer from 1 or nil}
function evaluate.documents(lines, path, o)
    local documents, number = {}, 0
    for line in (lines .. "\n"):gmatch "(.-)\r?\n" do
        number = number + 1
        if line:find "%S" and #documents < (o and o.most or math.huge) then
            documents[#documents + 1] = document_of(line, ("%s:%d"):format(path, number), o or {})
        end
    end
    if #documents == 0 then
        core.fail("corrupt", "%s: holds no documents; it should have a JSON object on every line", path)
    end
    return documents
end

-- ---- likelihood -------------------------------------------------------------------------------------------------

local function common_prefix(lists, most)
    for i = 1, most do
        for k = 2, #lists do
            if lists[k][i] ~= lists[1][i] then
                return i - 1
            end
        end
    end
    return most
end

--- ln p of tokens after what the cache holds, whose next token has these logits.
local function likelihood(lm, cache, logits, ids)
    local sum = ops.logprobs(logits, { ids[1] }):values()[1]
    if #ids > 1 then
        local all = lm:forward(slice(ids, 1, #ids - 1), cache, { all = true })
        for _, p in ipairs(ops.logprobs(all, slice(ids, 2, #ids)):values()) do
            sum = sum + p
        end
    end
    return sum
end

--- Token ids of the prompt with each choice, and how many of them are the prompt's.
local function encoded(lm, d)
    local t = lm.tokenizer
    local blanks = d.prompt:match "%s*$"
    local head = d.prompt:sub(1, #d.prompt - #blanks)
    local prompt, lists = t:encode(head), {}
    for i, choice in ipairs(d.choices) do
        lists[i] = t:encode(head .. blanks .. choice)
    end
    return prompt, lists
end

--- Scores a document: ln p of each choice, and how many tokens went through the model.
---@param lm qmoon.Runner
---@param d table document
---@return number[] likelihoods, integer tokens
function evaluate.score(lm, d)
    local prompt, lists = encoded(lm, d)
    local shortest, longest = math.huge, 0
    for _, ids in ipairs(lists) do
        shortest, longest = math.min(shortest, #ids), math.max(longest, #ids)
    end
    local shared = common_prefix(lists, math.min(shortest - 1, #prompt))
    if shared == 0 then
        core.fail("fail", "%s: the prompt is empty, and the tokenizer puts nothing before it; a likelihood needs a token to "
            .. "follow", d.what)
    end
    local cache = lm:cache(longest)
    local logits, tokens = lm:forward(slice(lists[1], 1, shared), cache), shared
    local scores = {}
    for i, ids in ipairs(lists) do
        cache:truncate(shared)
        scores[i] = likelihood(lm, cache, logits, slice(ids, shared + 1, #ids))
        tokens = tokens + #ids - shared - 1
    end
    return scores, tokens
end

-- ---- results --------------------------------------------------------------------------------------------------

local function best_of(scores)
    local best = 1
    for i, s in ipairs(scores) do
        best = s > scores[best] and i or best
    end
    return best
end

local function per_byte(scores, choices)
    local list = {}
    for i, s in ipairs(scores) do
        list[i] = s / #choices[i]
    end
    return list
end

--- Wilson's interval of a share, 95 %.
local function wilson(hits, n)
    local z = 1.959964
    local p, d = hits / n, 1 + z * z / n
    local centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return { (centre - half) / d, (centre + half) / d }
end

--- Evaluates a model on documents.
---
--- options: progress = function(done, of).
---@param lm qmoon.Runner
---@param documents table[]
---@param o? table
---@return table result {documents, answered, accuracy, accuracy_interval, accuracy_normalised (by bytes), labels from 0,
---  seconds_per_document, tokens_per_document, scores}
function evaluate.run(lm, documents, o)
    local r = { documents = #documents, answered = 0, labels = {}, scores = {} }
    local hits, hits_normalised, tokens, started = 0, 0, 0, core.now()
    for i, d in ipairs(documents) do
        local scores, n = evaluate.score(lm, d)
        local label = best_of(scores)
        r.labels[i], r.scores[i], tokens = label - 1, scores, tokens + n
        if d.answer then
            r.answered = r.answered + 1
            hits = hits + (label == d.answer and 1 or 0)
            hits_normalised = hits_normalised + (best_of(per_byte(scores, d.choices)) == d.answer and 1 or 0)
        end
        if o and o.progress then
            o.progress(i, #documents)
        end
    end
    local seconds = core.now() - started
    r.seconds_per_document, r.tokens_per_document = seconds / #documents, tokens / #documents
    if r.answered > 0 then
        r.accuracy, r.accuracy_normalised = hits / r.answered, hits_normalised / r.answered
        r.accuracy_interval = wilson(hits, r.answered)
    end
    return r
end

--- How many documents get another label from the one than from the other.
---@param a table result
---@param b table result
---@return integer
function evaluate.changes(a, b)
    local n = 0
    for i, label in ipairs(a.labels) do
        n = n + (label ~= b.labels[i] and 1 or 0)
    end
    return n
end

return evaluate
