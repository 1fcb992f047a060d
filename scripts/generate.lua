-- generate: text from a model, as it comes.  By hand: print(qm.load(MODEL):generate{ prompt = "Once upon a time" }.text)

local core = require "qmoon.core"
local qm = require "qmoon"
local cli = require "qmoon.cli"
local generate = require "qmoon.generate"
local json = require "qmoon.json"
local running = require "qmoon.running"

local o = cli.parse({
    name = "generate",
    doc = "Writes what a model answers to a prompt, as it comes, and how fast. Greedy, unless a temperature is given.",
    arguments = { { "MODEL", doc = running.MODEL } },
    options = running.options {
        { "prompt", kind = "text", value = "TEXT", required = true, doc = "what comes first; - reads it from standard input" },
        { "tokens", kind = "integer", value = "N", default = 128, doc = "the most to generate" },
        { "greedy", doc = "always the likeliest token" },
        { "temp", kind = "number", value = "T", doc = "draw tokens, at this temperature" },
        { "top-p", kind = "number", value = "P", doc = "… among the likeliest that together have this probability" },
        { "top-k", kind = "integer", value = "K", doc = "… among so many" },
        { "seed", kind = "integer", value = "N", default = 0, doc = "of the draws: the same seed, the same text" },
        { "chat", doc = "the prompt is a user's message: it is put into the model's chat template" },
        { "system", kind = "text", value = "TEXT", doc = "with --chat: a system message before it" },
        { "ignore-eos", doc = "go on where the model ends its text" },
        { "launches", doc = "on a GPU: launch every op of a token, where one kernel could walk through them (from Hopper on)" },
        { "json", doc = "one object: prompt_ids, ids, text, tokens_per_second, …" },
    },
    examples = [[
  qmoon generate Qwen2.5-1.5B-Instruct --chat --prompt "Why is the sky blue?"
  qmoon generate model-q4_0.gguf --prompt "Once upon a time" --temp 0.8 --top-p 0.95 --seed 7 --tokens 200
  qmoon generate base --adapter my-lora --prompt "ROMEO:"          the adapter unmerged]],
}, { ... })
if not o then
    return 0
end
if o.greedy and (o.temp or o.top_p or o.top_k) then
    core.fail("usage", "generate: --greedy draws nothing, so it goes with none of --temp, --top-p, --top-k")
elseif (o.top_p or o.top_k) and not o.temp then
    o.temp = 1
end

local options = { prompt = o.prompt == "-" and io.read "*a" or o.prompt, tokens = o.tokens, temperature = o.temp,
                  top_p = o.top_p, top_k = o.top_k, seed = o.seed, chat = o.chat, system = o.system,
                  ignore_eos = o.ignore_eos }
local lm = running.load(o[1], o, function(lm)
    return { tokens = #generate.prompt_ids(lm, options) + o.tokens, decode = true }
end)
local stream, show
if not o.json then
    stream = lm.tokenizer:stream()
    show = function(id)
        io.write(stream:push(id))
        io.flush()
    end
end
options.each = show
local r = lm:generate(options)
if stream then
    io.write(stream:finish())
end
if o.json then
    print(json.encode({ prompt_ids = json.array(r.prompt_ids), ids = json.array(r.ids), text = r.text,
                        stopped = r.stopped, tokens_per_second = r.tokens_per_second,
                        prompt_tokens_per_second = r.prompt_tokens_per_second }, { indent = 2 }))
    return 0
end
io.write "\n"
io.flush()
local way = r.programs and (r.programs > 0 and " · %d program%s a token" or " · ops launched one by one") or ""
io.stderr:write((" %d tokens of prompt at %.4g tokens/s · %d generated at %.4g tokens/s%s%s\n"):format(#r.prompt_ids,
    r.prompt_tokens_per_second, #r.ids, r.tokens_per_second, way:format(r.programs, r.programs == 1 and "" or "s"),
    r.stopped == "context" and " · the context is full" or ""))
