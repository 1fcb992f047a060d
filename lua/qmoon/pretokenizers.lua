--- The names llama.cpp gives to ways of cutting text before byte-pair encoding (tokenizer.ggml.pre), and
--- what each looks like in a tokenizer.json.
--
-- llama.cpp's converter finds the name by hashing the ids of a test text, so that every new vocabulary is
-- unknown to it. Here the cutting itself is compared: regular expressions, in order, and the normaliser.
-- Several names mean the same cutting in llama.cpp; the table has the one that brings no other setting along.
-- Sources: llama.cpp, src/llama-vocab.cpp; the tokenizer.json files of the models named.

local pretokenizers = {}

local CONTRACTION = [[(?i:'s|'t|'re|'ve|'m|'ll|'d)]]
local SYMBOLS = [[ ?[^\s\p{L}\p{N}]+[\r\n]*]]
local SYMBOLS_SLASH = [[ ?[^\s\p{L}\p{N}]+[\r\n/]*]]
local SPACE = [[\s*[\r\n]+|\s+(?!\S)|\s+]]

local UPPER = "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
local LOWER = "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
local BEFORE = [[[^\r\n\p{L}\p{N}]?]]

local function words(ending)
    return BEFORE .. UPPER .. "*" .. LOWER .. "+" .. ending .. "|"
        .. BEFORE .. UPPER .. "+" .. LOWER .. "*" .. ending
end

local function alternatives(...)
    return table.concat({ ... }, "|")
end

-- Steps: a string is a regular expression to split at; "digits" isolates every digit; "gpt-2" is ByteLevel's
-- own regular expression. ByteLevel ends every list.
local QWEN2 = { alternatives(CONTRACTION, [[[^\r\n\p{L}\p{N}]?\p{L}+]], [[\p{N}]], SYMBOLS, SPACE) }
local LLAMA3 = { alternatives(CONTRACTION, [[[^\r\n\p{L}\p{N}]?\p{L}+]], [[\p{N}{1,3}]], SYMBOLS, SPACE) }

-- name; steps; normaliser that such a tokenizer.json has; ignore_merges where it tells two names apart; what else
-- llama.cpp makes of the name: whole_words = ignore_merges, bos = a beginning of text where a file does not say
local ROWS = {
    { "qwen2", QWEN2, normalizer = "NFC", class = "Qwen2Tokenizer" }, -- Qwen/Qwen2.5-1.5B
    { "llama-bpe", LLAMA3, ignore_merges = true, bos = true }, -- meta-llama/Llama-3.2-1B-Instruct
    { "smaug-bpe", LLAMA3, ignore_merges = false }, -- the same cutting without ignore_merges
    { "gpt-2", { "gpt-2" }, class = "GPT2Tokenizer" }, -- openai-community/gpt2, microsoft/phi-2
    { "smollm", { "digits", "gpt-2" } }, -- HuggingFaceTB/SmolLM2-135M-Instruct; also starcoder, command-r
    { "qwen35", { alternatives(CONTRACTION, [[[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+]], [[\p{N}]],
        [[ ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*]], SPACE) }, normalizer = "NFC" }, -- Qwen/Qwen3.5-9B
    { "gpt-4o", { alternatives(words(CONTRACTION .. "?"), [[\p{N}{1,3}]], SYMBOLS_SLASH, SPACE) } },
    { "tekken", { alternatives(words "", [[\p{N}]], SYMBOLS_SLASH, SPACE) }, -- Mistral-Nemo-Base-2407
      whole_words = true, bos = true },
    { "deepseek-v3", { [[\p{N}{1,3}]], "[一-龥぀-ゟ゠-ヿ]+", alternatives(
        [=[[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+]=], "[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+",
        " ?[\\p{P}\\p{S}]+[\r\n]*", "\\s*[\r\n]+|\\s+(?!\\S)|\\s+") } }, -- deepseek-ai/DeepSeek-V3
    { "deepseek-coder", { "[\r\n]", [[\s?\p{L}+]], [[\s?\p{P}+]], "[一-龥ࠀ-一가-퟿]+", "digits" } },
    { "bailingmoe", { alternatives([['(?i:[sdmt]|ll|ve|re)]], [[[^\r\n\p{L}\p{N}]?+\p{L}+]], [[\p{N}]],
        [[ ?[^\s\p{L}\p{N}]++[\r\n]*]], [[\s*[\r\n]|\s+(?!\S)|\s+]]) } }, -- inclusionAI/Ling-lite
    { "seed-coder", { alternatives(CONTRACTION, "[^\r\n\\p{L}\\p{N}]?\\p{L}+", [[\p{N}{1}]],
        " ?[^\\s\\p{L}\\p{N}\r\n]+", "\\s*[\r\n]+|\\s+(?!\\S)|\\s+") } }, -- ByteDance-Seed/Seed-Coder-8B-Base
}

-- ---- from a tokenizer.json --------------------------------------------------------------------

--- One step as the table writes it. nil: nothing the table has.
local function step_of(node)
    if node.type == "Split" and type(node.pattern) == "table" then
        -- "Removed" and inverted keeps the matches and drops what is between: the same, as nothing is between
        local isolated = node.behavior == "Isolated" and not node.invert
        local inverted = node.behavior == "Removed" and node.invert
        local regex = type(node.pattern.Regex) == "string" and node.pattern.Regex or nil
        return (isolated or inverted) and regex or nil
    elseif node.type == "Digits" then
        return node.individual_digits and "digits" or nil
    elseif node.type == "ByteLevel" and not node.add_prefix_space then
        return node.use_regex ~= false and "gpt-2" or "bytes"
    end
end

local function steps_of(node, steps)
    if node.type == "Sequence" then
        for _, inner in ipairs(type(node.pretokenizers) == "table" and node.pretokenizers or {}) do
            steps_of(inner, steps)
        end
    else
        steps[#steps + 1] = step_of(node) or "unknown"
    end
    return steps
end

--- The steps as one string: comparable, and the final "bytes" that splits nothing is dropped.
local function signature(steps)
    local text = table.concat(steps, "\n")
    return (text:gsub("\nbytes$", ""))
end

--- Normalisers that llama.cpp's byte-pair encoding does without: none, and NFC.
local function is_plain(normalizer)
    if type(normalizer) ~= "table" or normalizer.type == "NFC" then
        return true
    end
    return normalizer.type == "Sequence" and #(normalizer.normalizers or {}) == 0
end

--- The name of a tokenizer.json's cutting, or nil.
---@param tokenizer table a decoded tokenizer.json
---@return string?
function pretokenizers.recognise(tokenizer)
    if type(tokenizer.pre_tokenizer) ~= "table" or not is_plain(tokenizer.normalizer) then
        return nil
    end
    local steps = signature(steps_of(tokenizer.pre_tokenizer, {}))
    local ignore_merges = tokenizer.model.ignore_merges == true
    for _, row in ipairs(ROWS) do
        local fits = row.ignore_merges == nil or row.ignore_merges == ignore_merges
        if fits and signature(row[2]) == steps then
            return row[1]
        end
    end
end

--- The name that goes with a tokenizer class whose files do not say how they cut, or nil.
---@param class string? tokenizer_class of tokenizer_config.json
---@return string?
function pretokenizers.of_class(class)
    for _, row in ipairs(ROWS) do
        if class and row.class and (class == row.class or class == row.class .. "Fast") then
            return row[1]
        end
    end
end

-- ---- to a tokenizer.json ----------------------------------------------------------------------

-- other names that llama.cpp cuts alike
local SAME = {
    ["deepseek-r1-qwen"] = "qwen2", ["llama3"] = "llama-bpe", ["llama-v3"] = "llama-bpe", ["phi-2"] = "gpt-2",
    starcoder = "smollm", refact = "smollm", ["command-r"] = "smollm", dbrx = "smaug-bpe", llama4 = "gpt-4o",
}

--- How text is cut under that name: {name, steps, normalizer=, ignore_merges=, class=}, or nil.
---@param name string
---@return table?
function pretokenizers.named(name)
    name = SAME[name] or name
    for _, row in ipairs(ROWS) do
        if row[1] == name then
            return row
        end
    end
end

return pretokenizers
