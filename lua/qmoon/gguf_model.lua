--- A GGUF file as a model folder: config.json, tokenizer files, and the checkpoint's names for its tensors.
--
-- GGUF keeps less than a folder does. What it does not say is as transformers has it (the architecture's
-- defaults), and control tokens all become special ones. Files are in transformers 4's style, which all
-- versions read.

local core = require "qmoon.core"
local arch = require "qmoon.arch"
local gguf = require "qmoon.gguf"
local json = require "qmoon.json"
local pretokenizers = require "qmoon.pretokenizers"

local gguf_model = {}

local CONTROL, USER_DEFINED, BYTE = 3, 4, 6 -- llama.cpp's token types

-- ---- tensors --------------------------------------------------------------------------------------

--- Tensors with the names they have in a checkpoint; every one the architecture needs must be there.
local function tensors_of(a, g, fields, what)
    local list, have = {}, {}
    for i, t in ipairs(g.tensors) do
        local hf, module = arch.to_hf(a, t.name)
        if not hf then
            core.fail("unsupported", "%s: tensor '%s' has no place in a model folder of %s", what, t.name,
                a.name)
        end
        list[i] = setmetatable({ hf = hf, role = module.role }, { __index = t })
        have[hf] = true
    end
    for _, hf in ipairs(arch.required(a, fields)) do
        if not have[hf] then
            core.fail("corrupt", "%s: tensor '%s' is missing", what, (arch.to_gguf(a, hf)))
        end
    end
    return list
end

-- ---- config.json ----------------------------------------------------------------------------------

local TORCH = { F32 = "float32", BF16 = "bfloat16" }

--- The type that most of the weights have, or that is right for what they were made from.
local function dtype_of(g)
    local values = {}
    for _, t in ipairs(g.tensors) do
        if #t.shape > 1 then
            local dtype = TORCH[t.type_name] or "float16"
            values[dtype] = (values[dtype] or 0) + t.size
        end
    end
    local best = "float16"
    for dtype, size in pairs(values) do
        if size > (values[best] or 0) then
            best = dtype
        end
    end
    return best
end

local function special_id(meta, name)
    return gguf.get(meta, ("tokenizer.ggml.%s_token_id"):format(name))
end

--- Config fields from the architecture's metadata rows read backwards; f32 values are marked as floats.
local function fields_of(a, g, what)
    local fields = {}
    for key, value in pairs(a.defaults) do
        fields[key] = value
    end
    for _, row in ipairs(a.metadata) do
        local value = gguf.get(g.meta, a.name .. "." .. row[1])
        if row[2] == "f32" then
            local number = value and json.widen(value) or a.defaults[row[3]]
            value = number and json.float(number)
        end
        local outer, inner = row[3]:match "^(.-)%.(.*)$"
        if outer and value ~= nil then
            fields[outer] = fields[outer] or {}
            fields[outer][inner] = value
        elseif value ~= nil and not outer then
            fields[row[3]] = value
        end
    end
    if fields.rope_scaling then
        fields.rope_scaling.type = fields.rope_scaling.rope_type -- the name it had at first
    end
    local embedding
    for _, t in ipairs(g.tensors) do
        embedding = t.name == "token_embd.weight" and t or embedding
    end
    if not embedding then
        core.fail("corrupt", "%s: tensor 'token_embd.weight' is missing", what)
    end
    fields.vocab_size = embedding.shape[1]
    return fields
end

local function has_tensor(g, name)
    for _, t in ipairs(g.tensors) do
        if t.name == name then
            return true
        end
    end
    return false
end

local function config_text(a, g, fields, dtype)
    fields.architectures = { a.architectures[1] }
    fields.model_type = a.model_type
    fields.torch_dtype = dtype
    for field, name in pairs { bos_token_id = "bos", eos_token_id = "eos", pad_token_id = "padding" } do
        fields[field] = special_id(g.meta, name)
    end
    return json.encode(fields, { indent = 2 }) .. "\n"
end

local function generation_text(g)
    local settings = {}
    for field, name in pairs { bos_token_id = "bos", eos_token_id = "eos", pad_token_id = "padding" } do
        settings[field] = special_id(g.meta, name)
    end
    for _, s in ipairs(gguf.sampling) do
        local value = gguf.get(g.meta, "general.sampling." .. s[2])
        if value ~= nil then
            settings[s[1]] = s[3] == "f32" and json.float(json.widen(value)) or value
        end
    end
    return json.encode(next(settings) and settings or json.object {}, { indent = 2 }) .. "\n"
end

-- ---- tokenizer --------------------------------------------------------------------------------------

--- The vocabulary and the tokens that are matched whole. The latter stay out of the vocabulary when their ids
--- just follow it, as in the hub's files; otherwise they must be in it, or the ids would change.
local function split_vocabulary(tokens, kinds, what)
    local vocab, added, last, follows = {}, {}, -1, true
    for i, text in ipairs(tokens) do
        local kind, id = kinds[i], i - 1
        if kind == BYTE then
            core.fail("unsupported", "%s: token %d is a byte: this is no byte-level BPE", what, id)
        elseif kind == CONTROL or kind == USER_DEFINED or kind == 2 then
            added[#added + 1] = { id = id, text = text, special = kind ~= USER_DEFINED }
            follows, last = follows and id == last + 1, id
        elseif kind == 1 then
            vocab[#vocab + 1] = { text, id }
            follows, last = follows and id == last + 1 and #added == 0, id
        end
    end
    if not follows then
        for _, token in ipairs(added) do
            vocab[#vocab + 1] = { token.text, token.id }
        end
        table.sort(vocab, function(a, b) return a[2] < b[2] end)
    end
    return json.object(vocab), added
end

local function added_fields(token)
    return { { "content", token.text }, { "lstrip", false }, { "normalized", false }, { "rstrip", false },
             { "single_word", false }, { "special", token.special } }
end

local function byte_level(prefix, regex)
    return json.object { { "type", "ByteLevel" }, { "add_prefix_space", prefix }, { "trim_offsets", true },
                         { "use_regex", regex } }
end

local function pre_tokenizer(pre)
    local steps, last = {}, byte_level(false, false)
    for _, step in ipairs(pre[2]) do
        if step == "digits" then
            steps[#steps + 1] = json.object { { "type", "Digits" }, { "individual_digits", true } }
        elseif step == "gpt-2" then
            last = byte_level(false, true)
        else
            steps[#steps + 1] = json.object { { "type", "Split" }, { "pattern", { Regex = step } },
                                              { "behavior", "Isolated" }, { "invert", false } }
        end
    end
    steps[#steps + 1] = last
    return #steps > 1 and json.object { { "type", "Sequence" }, { "pretokenizers", steps } } or last
end

--- What is put around a text: <bos> A <eos>, as far as the file asks for it.
local function post_processor(t)
    local single, pair, used = {}, {}, {}
    local function special(list, name, type_id)
        local text = t.special[name]
        list[#list + 1] = { SpecialToken = json.object { { "id", text }, { "type_id", type_id } } }
        used[text] = json.object { { "id", text }, { "ids", { t.id[name] } }, { "tokens", { text } } }
    end
    for i, sequence in ipairs { "A", "B" } do
        for _, list in ipairs(i == 1 and { single, pair } or { pair }) do
            if t.add_bos then
                special(list, "bos", i - 1)
            end
            list[#list + 1] = { Sequence = json.object { { "id", sequence }, { "type_id", i - 1 } } }
            if t.add_eos then
                special(list, "eos", i - 1)
            end
        end
    end
    if next(used) == nil then
        return byte_level(false, false)
    end
    return json.object { { "type", "TemplateProcessing" }, { "single", single }, { "pair", pair },
                         { "special_tokens", used } }
end

local function tokenizer_json(t)
    local added = {}
    for i, token in ipairs(t.added) do
        added[i] = json.object(added_fields(token))
        table.insert(added[i], 1, { "id", token.id })
    end
    local null = core.null
    return json.encode(json.object {
        { "version", "1.0" }, { "truncation", null }, { "padding", null },
        { "added_tokens", json.array(added) },
        { "normalizer", t.pre.normalizer and { type = t.pre.normalizer } or null },
        { "pre_tokenizer", pre_tokenizer(t.pre) },
        { "post_processor", post_processor(t) },
        { "decoder", byte_level(true, true) },
        { "model", json.object {
            { "type", "BPE" }, { "dropout", null }, { "unk_token", null },
            { "continuing_subword_prefix", null }, { "end_of_word_suffix", null },
            { "fuse_unk", false }, { "byte_fallback", false },
            { "ignore_merges", t.pre.ignore_merges == true },
            { "vocab", t.vocab }, { "merges", json.array(t.merges) } } },
    }, { indent = 2 }) .. "\n"
end

--- One template, or the list of all when there are more.
local function chat_template(meta)
    local default, list = gguf.get(meta, "tokenizer.chat_template"), {}
    for _, name in ipairs(gguf.get(meta, "tokenizer.chat_templates") or {}) do
        local text = gguf.get(meta, "tokenizer.chat_template." .. name)
        list[#list + 1] = json.object { { "name", name }, { "template", text } }
    end
    if #list == 0 then
        return default
    end
    if default then
        table.insert(list, 1, json.object { { "name", "default" }, { "template", default } })
    end
    return list
end

local function tokenizer_config(t, meta, context)
    local decoder = {}
    for i, token in ipairs(t.added) do
        decoder[i] = { tostring(token.id), json.object(added_fields(token)) }
    end
    local fields = {
        add_prefix_space = false, clean_up_tokenization_spaces = false, errors = "replace",
        added_tokens_decoder = json.object(decoder), chat_template = chat_template(meta),
        model_max_length = context, split_special_tokens = false,
        tokenizer_class = t.pre.class or "PreTrainedTokenizerFast",
        add_bos_token = t.add_bos, add_eos_token = t.add_eos, unk_token = t.special.unk or core.null,
        bos_token = t.special.bos or core.null, eos_token = t.special.eos or core.null,
        pad_token = t.special.pad,
    }
    return json.encode(fields, { indent = 2 }) .. "\n"
end

local function read_tokenizer(meta, options, what)
    local model = gguf.get(meta, "tokenizer.ggml.model")
    local name = options.pre or gguf.get(meta, "tokenizer.ggml.pre")
    local tokens, kinds = gguf.get(meta, "tokenizer.ggml.tokens"), gguf.get(meta, "tokenizer.ggml.token_type")
    local merges = gguf.get(meta, "tokenizer.ggml.merges")
    if model ~= "gpt2" or not tokens or not kinds or not merges or #kinds ~= #tokens then
        core.fail("unsupported", "%s: of tokenizer '%s' no files can be made yet, only of a whole gpt2 one",
            what, tostring(model))
    end
    local pre = pretokenizers.named(tostring(name))
    if not pre then
        core.fail("unsupported", "%s: pre-tokenizer '%s' is unknown; give one that cuts alike with --pre NAME",
            what, tostring(name))
    end
    local t = { pre = pre, merges = merges, special = {}, id = {},
                add_bos = gguf.get(meta, "tokenizer.ggml.add_bos_token"),
                add_eos = gguf.get(meta, "tokenizer.ggml.add_eos_token") }
    t.vocab, t.added = split_vocabulary(tokens, kinds, what)
    for short, long in pairs { bos = "bos", eos = "eos", pad = "padding", unk = "unknown" } do
        local id = special_id(meta, long)
        t.id[short], t.special[short] = id, id and tokens[id + 1]
    end
    if t.add_bos and not t.special.bos or t.add_eos and not t.special.eos then
        core.fail("corrupt", "%s: a token is to be added to every text, but there is none of that kind", what)
    end
    return t
end

local function tokenizer_files(t, meta, context)
    return {
        { name = "tokenizer.json", text = tokenizer_json(t) },
        { name = "tokenizer_config.json", text = tokenizer_config(t, meta, context) },
        { name = "vocab.json", text = json.encode(t.vocab) .. "\n" },
        { name = "merges.txt", text = "#version: 0.2\n" .. table.concat(t.merges, "\n") .. "\n" },
    }
end

-- ---- all of it --------------------------------------------------------------------------------------

--- What a model folder made of a GGUF file holds.
---
--- options: dtype = torch's name for config.json instead of the file's own, pre = name of the pre-tokenizer.
---@param g table from core.gguf
---@param what string names the file in messages
---@param options? table
---@return table model {arch, fields, config = text, files = {{name, text}, …} with config.json, tensors =
---    those of g with hf and role}
function gguf_model.read(g, what, options)
    options = options or {}
    local name = gguf.get(g.meta, "general.architecture")
    local a = name and arch.named(name)
    if not a then
        core.fail("unsupported", "%s: architecture '%s' is not one this program can make a model folder of",
            what, tostring(name))
    end
    local fields = fields_of(a, g, what)
    fields.tie_word_embeddings = not has_tensor(g, "output.weight")
    local tensors = tensors_of(a, g, fields, what)
    local context = fields.max_position_embeddings
    local config = config_text(a, g, fields, options.dtype or dtype_of(g))
    local files = tokenizer_files(read_tokenizer(g.meta, options, what), g.meta, context)
    table.insert(files, 1, { name = "config.json", text = config })
    table.insert(files, 2, { name = "generation_config.json", text = generation_text(g) })
    return { arch = a, fields = fields, config = config, files = files, tensors = tensors }
end

return gguf_model
