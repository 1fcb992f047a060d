--- How a text is cut into words, as steps for core.splitter: from a tokenizer.json's pre_tokenizer, or from a row
--- of qmoon.pretokenizers.
--
-- Every way there is comes down to four kinds of steps; most to cutting at a pattern.
-- Source: huggingface/tokenizers, src/pre_tokenizers.

local core = require "qmoon.core"
local patterns = require "qmoon.tokenize.patterns"
local special_tokens = require "qmoon.special_tokens"

local get = special_tokens.get

local splitting = {}

-- openai/gpt-2, encoder.py: what ByteLevel cuts at
local GPT2 = [['s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+]]

-- \w as Rust's regular expressions have it: letters, marks, decimal digits, connectors, joiners
local WORD = [[\p{L}\p{Nl}\p{M}\p{Nd}\p{Pc}\x{200c}\x{200d}\x{24b6}-\x{24e9}\x{1f130}-\x{1f149}\x{1f150}-\x{1f169}]]
    .. [[\x{1f170}-\x{1f189}]]
local PUNCTUATION = [=[[!-\/:-@\[-`{-~\p{P}]]=]

local BEHAVIOURS = { Removed = "removed", Isolated = "isolated", Contiguous = "contiguous",
                     MergedWithPrevious = "with_before", MergedWithNext = "with_after" }

local function at(pattern, behaviour, invert)
    return { kind = "regex", pattern = patterns.to_pcre(pattern), behaviour = behaviour, invert = invert or false }
end

local function behaviour_of(node, what)
    local behaviour = BEHAVIOURS[get(node, "behavior") or "Isolated"]
    if not behaviour then
        core.fail("unsupported", "%s: pre-tokenizer %s: unknown behavior '%s'", what, tostring(node.type),
            tostring(node.behavior))
    end
    return behaviour
end

local kinds = {}

function kinds.Split(node, steps, what)
    local pattern = get(node, "pattern")
    local regex, text = get(pattern, "Regex"), get(pattern, "String")
    if type(pattern) == "string" then
        text = pattern
    end
    if not regex and not text then
        core.fail("corrupt", "%s: pre-tokenizer Split has no pattern", what)
    end
    steps[#steps + 1] = at(regex or patterns.literal(text), behaviour_of(node, what), get(node, "invert"))
end

function kinds.ByteLevel(node, steps)
    if get(node, "add_prefix_space") ~= false then
        steps[#steps + 1] = { kind = "prefix" }
    end
    if get(node, "use_regex") ~= false then
        steps[#steps + 1] = at(GPT2, "isolated")
    end
    steps[#steps + 1] = { kind = "bytes" }
end

function kinds.Metaspace(node, steps)
    local scheme = get(node, "prepend_scheme")
    if not scheme then -- before 2024 it was a switch
        scheme = get(node, "add_prefix_space") == false and "never" or "always"
    end
    steps[#steps + 1] = { kind = "spaces", blank = get(node, "replacement") or "▁", prepend = scheme:lower(),
                          cut = get(node, "split") ~= false }
end

function kinds.Digits(node, steps)
    steps[#steps + 1] = at([[\p{N}]], get(node, "individual_digits") and "isolated" or "contiguous")
end

function kinds.Whitespace(_, steps)
    steps[#steps + 1] = at("[" .. WORD .. "]+|[^\\s" .. WORD .. "]+", "removed", true)
end

function kinds.WhitespaceSplit(_, steps)
    steps[#steps + 1] = at([[\s]], "removed")
end

function kinds.Punctuation(node, steps, what)
    steps[#steps + 1] = at(PUNCTUATION, behaviour_of(node, what))
end

function kinds.BertPreTokenizer(_, steps)
    steps[#steps + 1] = at([[\s]], "removed")
    steps[#steps + 1] = at(PUNCTUATION, "isolated")
end

function kinds.CharDelimiterSplit(node, steps)
    steps[#steps + 1] = at(patterns.literal(tostring(get(node, "delimiter"))), "removed")
end

function kinds.FixedLength(node, steps)
    steps[#steps + 1] = at(("(?s:.){1,%d}"):format(get(node, "length") or 5), "isolated")
end

function kinds.Sequence(node, steps, what)
    for _, inner in ipairs(get(node, "pretokenizers") or {}) do
        splitting.add(inner, steps, what)
    end
end

--- Appends the steps of one pre-tokenizer of a tokenizer.json.
function splitting.add(node, steps, what)
    local kind = kinds[get(node, "type")]
    if not kind then
        core.fail("unsupported", "%s: pre-tokenizer '%s' is not known here", what, tostring(get(node, "type")))
    end
    kind(node, steps, what)
end

--- Steps of a tokenizer.json's pre_tokenizer, which may be none.
---@param node table?
---@param what string names the file in messages
---@return table[]
function splitting.of_json(node, what)
    local steps = {}
    if type(node) == "table" then
        splitting.add(node, steps, what)
    end
    return steps
end

--- Steps of a row of qmoon.pretokenizers.
---@param row table
---@return table[]
function splitting.of_row(row)
    local steps = {}
    for i, step in ipairs(row[2]) do
        steps[i] = at(step == "digits" and [[\p{N}]] or step == "gpt-2" and GPT2 or step, "isolated")
    end
    steps[#steps + 1] = { kind = "bytes" }
    return steps
end

return splitting
