--- Messages as the text that a model was trained on, by its chat template.

local core = require "qmoon.core"
local files = require "qmoon.files"
local jinja = require "qmoon.tokenize.jinja"
local special_tokens = require "qmoon.special_tokens"
local tokenizer = require "qmoon.tokenizer"

local get = special_tokens.get

local chat = {}

--- Texts of tokens that end a turn, which few files name by id (llama.cpp's list of them).
chat.ends = { "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<turn|>", "<|endoftext|>", "<|eom_id|>",
              "< EOT >", "_< EOT >", "[EOT]", "[EOS]", "<｜end▁of▁sentence｜>", "<end_of_utterance>",
              "<|end_of_text|>" }

--- The template of a folder, or nil; a file of its own comes before the config, as in transformers.
---@param dir string
---@param config table? decoded tokenizer_config.json
---@return string|table|nil
function chat.template_of(dir, config)
    local path = dir .. "/chat_template.jinja"
    if files.exists(path) then
        return files.read(path)
    end
    return tokenizer.chat_template(dir, config)
end

--- The texts of special tokens by the names templates use: bos_token, eos_token, …
---@param config table? decoded tokenizer_config.json
---@return table<string, string>
function chat.tokens_of(config)
    local texts = {}
    for _, kind in ipairs(special_tokens.kinds) do
        texts[kind .. "_token"] = special_tokens.content(get(config, kind .. "_token"))
    end
    return texts
end

local function default_of(template)
    if type(template) ~= "table" then
        return template
    end
    for _, choice in ipairs(template) do
        if choice.name == "default" then
            return choice.template
        end
    end
end

--- The ids of tokens that a template writes and that end a turn.
---@param template string|table|nil
---@param added {id: integer, text: string}[]
---@return integer[]
function chat.end_ids(template, added)
    local text, ids = default_of(template), {}
    for _, ending in ipairs(type(text) == "string" and chat.ends or {}) do
        for _, token in ipairs(text:find(ending, 1, true) and added or {}) do
            if token.text == ending then
                ids[#ids + 1] = token.id
            end
        end
    end
    return ids
end

local function check(messages, what)
    if type(messages) ~= "table" or #messages == 0 then
        core.fail("usage", "%s: a chat is a list of messages: { { role = \"user\", content = \"…\" } }", what)
    end
    for i, message in ipairs(messages) do
        if type(message) ~= "table" or type(message.role) ~= "string" or message.content == nil then
            core.fail("usage", "%s: message %d has no role or no content", what, i)
        end
    end
end

--- The text of messages.
---@param t qmoon.Tokenizer
---@param messages {role: string, content: string}[]
---@param options {add_generation_prompt: boolean?, variables: table?}
---@return string
function chat.render(t, messages, options)
    local text = default_of(t.chat_template)
    if type(text) ~= "string" or text == "" then
        core.fail("unsupported", "%s: the tokenizer has no chat template, and none is guessed; give the prompt as text",
            t.path)
    end
    check(messages, t.path)
    t.template = t.template or jinja.new(text, t.path)
    local variables = { messages = messages, add_generation_prompt = options.add_generation_prompt == true,
                        tools = core.null, documents = core.null }
    for name, value in pairs(t.token_texts or {}) do
        variables[name] = value
    end
    for name, value in pairs(options.variables or {}) do
        variables[name] = value
    end
    return t.template:render(variables)
end

return chat
