--- Text from a model, token by token.

local core = require "qmoon.core"
local ops = require "qmoon.ops"

local generate = {}

local AHEAD = 16 -- tokens of a captured step before anybody looks

---@class qmoon.Generated
---@field prompt_ids integer[]
---@field ids integer[] what was generated, without the token that ended it
---@field text string
---@field programs integer? of a captured step on a GPU: step:programs()
---@field stopped "end"|"tokens"|"context"
---@field prompt_seconds number
---@field seconds number for the tokens after the first
---@field tokens_per_second number
---@field prompt_tokens_per_second number

--- The model's tokenizer; nil for a prompt of ids, when there is none.
local function tokenizer_of(lm, o)
    if not o.ids then
        return lm.tokenizer
    end
    local ok, t = pcall(function()
        return lm.tokenizer
    end)
    return ok and t or nil
end

--- The ids that a prompt becomes; options as for generate.run.
---@param lm qmoon.Runner
---@param o table
---@return integer[]
function generate.prompt_ids(lm, o)
    if o.ids then
        return o.ids
    end
    local t = lm.tokenizer
    if o.chat or o.messages then
        local messages = o.messages or { { role = "user", content = o.prompt } }
        if o.system and not o.messages then
            table.insert(messages, 1, { role = "system", content = o.system })
        end
        return t:encode(t:chat(messages, { add_generation_prompt = true }), { bos = false })
    end
    return t:encode(o.prompt)
end

local function ends_of(t, o)
    local ends = {}
    for _, id in ipairs(t and not o.ignore_eos and t.eos_ids or {}) do
        ends[id] = true
    end
    for _, id in ipairs(o.stop_ids or {}) do
        ends[id] = true
    end
    return ends
end

--- Picks the next token: the likeliest, or one drawn by temperature, top_k and top_p.  Draw n depends on seed and n alone.
local function picker(o)
    if not o.temperature or o.temperature == 0 then
        return function(logits)
            return ops.argmax(logits)[1]
        end
    end
    return function(logits, n)
        return ops.sample(logits, { temperature = o.temperature, top_k = o.top_k, top_p = o.top_p, seed = o.seed or 0,
                                    step = n })
    end
end

--- Logits after one more token; the whole sequence is computed anew where it begins to turn otherwise.
local function advance(lm, cache, prompt, ids)
    local n = cache:length()
    if not lm:turns(n, n + 1) then
        return lm:forward({ ids[#ids] }, cache)
    end
    local all = {}
    for _, list in ipairs { prompt, ids } do
        for _, id in ipairs(list) do
            all[#all + 1] = id
        end
    end
    cache:truncate(0)
    return lm:forward(all, cache)
end

local function check_ids(lm, ids)
    if #ids == 0 then
        core.fail("usage", "generate: the prompt is empty, and this model's tokenizer puts nothing before it; give some text")
    end
    for _, id in ipairs(ids) do
        if id < 0 or id >= lm.vocab_size or id % 1 ~= 0 then
            core.fail("fail", "%s: the tokenizer gives token %s, but the model has %d; are they of the same model?",
                lm.model.path, tostring(id), lm.vocab_size)
        end
    end
end

--- The tokens after `logits`, one by one: from single calls, or, where a GPU computes and picks, from a captured step,
--- AHEAD at a time; and a function that gives their memory back and how many programs (qm.load) such a step was.
local function tokens_after(lm, cache, prompt, ids, logits, most, o)
    local pick, step, ready = picker(o), nil, {}
    local function finish()
        local programs = step and step:programs()
        if step then
            step:close()
        end
        cache:close()
        return programs
    end
    return function()
        if #ids == 0 then
            return pick(logits, 0)
        elseif not lm.options.device or lm:turns(cache:length(), #prompt + most) then
            return pick(advance(lm, cache, prompt, ids), #ids)
        elseif not ready[1] then
            step = step or lm:captured_step(cache, function(y)
                pick(y, #ids)
            end)
            ready = step:run(ids[#ids], math.min(AHEAD, most - #ids))
        end
        return table.remove(ready, 1)
    end, finish
end

--- Generates after a prompt (text, messages for the chat template, or ids).
---
--- options: prompt | messages | ids, chat, system, tokens = 128, temperature (none or 0: greedy), top_k, top_p, seed,
--- stop_ids, ignore_eos, each = function(id, n) called with every token as soon as it is there.
---@param lm qmoon.Runner
---@param o table
---@return qmoon.Generated
function generate.run(lm, o)
    local prompt = generate.prompt_ids(lm, o)
    check_ids(lm, prompt)
    lm:check_length(#prompt)
    local most = math.min(o.tokens or 128, lm.context - #prompt)
    local t = tokenizer_of(lm, o)
    local ends = ends_of(t, o)
    local cache = lm:cache(#prompt + most)
    local started = core.now()
    local logits = most > 0 and lm:forward(prompt, cache) or nil
    local began = core.now()
    local ids, stopped = {}, most < (o.tokens or 128) and "context" or "tokens"
    local next_token, finish = tokens_after(lm, cache, prompt, ids, logits, most, o)
    while #ids < most do
        local id = next_token()
        if ends[id] then
            stopped = "end"
            break
        end
        ids[#ids + 1] = id
        if o.each then
            o.each(id, #ids)
        end
    end
    local seconds = core.now() - began
    local programs = finish()
    return { prompt_ids = prompt, ids = ids, stopped = stopped, prompt_seconds = began - started, seconds = seconds,
             text = t and t:decode(ids), programs = programs,
             prompt_tokens_per_second = #prompt / math.max(began - started, 1e-9),
             tokens_per_second = #ids > 1 and (#ids - 1) / math.max(seconds, 1e-9) or 0 }
end

return generate
