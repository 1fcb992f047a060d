--- Synthetic checkpoints: real shapes, random weights, a made-up vocabulary of the right size, for benchmarks and tests.
-- The same arguments give the same bytes.

local core = require "qmoon.core"
local files = require "qmoon.files"
local json = require "qmoon.json"
local pretokenizers = require "qmoon.pretokenizers"
local safetensors = require "qmoon.output.safetensors"

local synth = {}

-- Shapes of published models (Qwen2.5's config.json files).
synth.sizes = {
    qwen2 = {
        ["tiny"] = { hidden = 64, ffn = 160, layers = 2, heads = 4, kv = 2, vocab = 1024, tied = true },
        ["0.5b"] = { hidden = 896, ffn = 4864, layers = 24, heads = 14, kv = 2, vocab = 151936, tied = true },
        ["1.5b"] = { hidden = 1536, ffn = 8960, layers = 28, heads = 12, kv = 2, vocab = 151936, tied = true },
        ["3b"] = { hidden = 2048, ffn = 11008, layers = 36, heads = 16, kv = 2, vocab = 151936, tied = true },
        ["7b"] = { hidden = 3584, ffn = 18944, layers = 28, heads = 28, kv = 4, vocab = 152064, tied = false },
    },
}

local STD = 0.02

-- ---- tensors ------------------------------------------------------------------------------------------

local function linears(s)
    local head = s.hidden / s.heads
    return {
        { "self_attn.q_proj", s.hidden, s.hidden, true }, { "self_attn.k_proj", s.kv * head, s.hidden, true },
        { "self_attn.v_proj", s.kv * head, s.hidden, true }, { "self_attn.o_proj", s.hidden, s.hidden },
        { "mlp.gate_proj", s.ffn, s.hidden }, { "mlp.up_proj", s.ffn, s.hidden }, { "mlp.down_proj", s.hidden, s.ffn },
    }
end

local function tensors_of(s)
    local list = {}
    local function add(name, ...)
        list[#list + 1] = { name = name, dtype = "bf16", shape = { ... } }
    end
    add("model.embed_tokens.weight", s.vocab, s.hidden)
    for i = 0, s.layers - 1 do
        local layer = ("model.layers.%d."):format(i)
        for _, l in ipairs(linears(s)) do
            add(layer .. l[1] .. ".weight", l[2], l[3])
            if l[4] then
                add(layer .. l[1] .. ".bias", l[2])
            end
        end
        add(layer .. "input_layernorm.weight", s.hidden)
        add(layer .. "post_attention_layernorm.weight", s.hidden)
    end
    add("model.norm.weight", s.hidden)
    if not s.tied then
        add("lm_head.weight", s.vocab, s.hidden)
    end
    return list
end

local function adapter_tensors(s, rank)
    local list = {}
    for i = 0, s.layers - 1 do
        for _, l in ipairs(linears(s)) do
            local module = ("base_model.model.model.layers.%d.%s."):format(i, l[1])
            list[#list + 1] = { name = module .. "lora_A.weight", dtype = "bf16", shape = { rank, l[3] } }
            list[#list + 1] = { name = module .. "lora_B.weight", dtype = "bf16", shape = { l[2], rank } }
        end
    end
    return list
end

--- Writes files of random bf16 tensors; every tensor has a stream of random numbers of its own.
local function write_tensors(pool, dir, list, limit, seed, std)
    local groups, parameters = {}, 0
    for i, t in ipairs(list) do
        t.size = safetensors.size(t.dtype, t.shape)
        t.seed = seed * 65536 + i
        groups[i] = { t }
        parameters = parameters + t.size / 2
    end
    local shards = safetensors.shards(groups, limit)
    for i, tensors in ipairs(shards) do
        local header, size = safetensors.layout(tensors)
        local name = std.name or safetensors.name(i, #shards)
        local file = core.outfile(dir .. "/" .. name, size)
        file:write(0, header)
        for _, t in ipairs(tensors) do
            core.fill_bf16(pool, file, t.at, t.size / 2, t.seed, std[1])
        end
        file:finish()
    end
    if #shards > 1 then
        files.write(dir .. "/model.safetensors.index.json", safetensors.index(shards, parameters))
    end
end

-- ---- tokenizer ------------------------------------------------------------------------------------------

local function utf8_char(code)
    if code < 0x80 then
        return string.char(code)
    end
    return string.char(0xC0 + math.floor(code / 64), 0x80 + code % 64)
end

-- GPT-2's visible stand-in for each byte: printable Latin-1 is itself, the rest follow from U+0100.
local function byte_characters()
    local printable, rest, next_code = {}, {}, 256
    for b = 0, 255 do
        if (b >= 33 and b <= 126) or (b >= 161 and b <= 172) or b >= 174 then
            printable[#printable + 1] = utf8_char(b)
        else
            rest[#rest + 1] = utf8_char(next_code)
            next_code = next_code + 1
        end
    end
    for _, c in ipairs(rest) do
        printable[#printable + 1] = c
    end
    return printable
end

--- Tokens and merges: bytes, then pairs of bytes, then pairs and a byte, as many as are wanted.
local function made_up_vocabulary(count)
    local tokens, merges = byte_characters(), {}
    local function grow(first, last)
        for i = first, last do
            for b = 1, 256 do
                if #tokens >= count then
                    return
                end
                merges[#merges + 1] = tokens[i] .. " " .. tokens[b]
                tokens[#tokens + 1] = tokens[i] .. tokens[b]
            end
        end
    end
    grow(1, 256)
    grow(257, #tokens)
    return tokens, merges
end

local SPECIAL = { "<|endoftext|>", "<|im_start|>", "<|im_end|>" }

local function write_tokenizer(dir, s)
    local count = math.min(s.vocab - #SPECIAL, 151643)
    local tokens, merges = made_up_vocabulary(count)
    local vocab, added = {}, {}
    for i, token in ipairs(tokens) do
        vocab[i] = { token, i - 1 }
    end
    for i, content in ipairs(SPECIAL) do
        added[i] = json.object { { "id", count + i - 1 }, { "content", content }, { "single_word", false }, { "lstrip", false },
                                 { "rstrip", false }, { "normalized", false }, { "special", true } }
    end
    local function byte_level(prefix, trim, regex)
        return json.object { { "type", "ByteLevel" }, { "add_prefix_space", prefix }, { "trim_offsets", trim }, { "use_regex", regex } }
    end
    local split = json.object { { "type", "Split" }, { "pattern", { Regex = pretokenizers.named("qwen2")[2][1] } },
                                { "behavior", "Isolated" }, { "invert", false } }
    files.write(dir .. "/tokenizer.json", json.encode(json.object {
        { "version", "1.0" }, { "truncation", core.null }, { "padding", core.null }, { "added_tokens", added },
        { "normalizer", { type = "NFC" } },
        { "pre_tokenizer", json.object { { "type", "Sequence" }, { "pretokenizers", { split, byte_level(false, true, false) } } } },
        { "post_processor", byte_level(true, false, true) }, { "decoder", byte_level(true, true, true) },
        { "model", json.object {
            { "type", "BPE" }, { "dropout", core.null }, { "unk_token", core.null }, { "continuing_subword_prefix", core.null },
            { "end_of_word_suffix", core.null }, { "fuse_unk", false }, { "byte_fallback", false },
            { "vocab", json.object(vocab) }, { "merges", json.array(merges) } } },
    }))
    files.write(dir .. "/tokenizer_config.json", json.encode({
        add_bos_token = false, eos_token = SPECIAL[1], pad_token = SPECIAL[1], model_max_length = 32768,
        tokenizer_class = "Qwen2Tokenizer" }, { indent = 2 }))
    return count
end

-- ---- folders ----------------------------------------------------------------------------------------------

local function config_text(s, eos)
    return json.encode({
        architectures = { "Qwen2ForCausalLM" }, model_type = "qwen2", torch_dtype = "bfloat16", hidden_act = "silu",
        hidden_size = s.hidden, intermediate_size = s.ffn, num_hidden_layers = s.layers, num_attention_heads = s.heads,
        num_key_value_heads = s.kv, vocab_size = s.vocab, tie_word_embeddings = s.tied, max_position_embeddings = 32768,
        rms_norm_eps = 1e-6, rope_theta = json.float(1e6), initializer_range = STD, attention_dropout = json.float(0),
        use_cache = true, use_sliding_window = false, bos_token_id = eos, eos_token_id = eos,
        transformers_version = "4.43.1",
    }, { indent = 2 }) .. "\n"
end

local function check_new(dir, force)
    if core.stat(dir) and not force then
        core.fail("fail", "%s: is there already; --force writes into it", dir)
    end
    core.mkdir(dir)
end

---@param s table shape of the model, one of synth.sizes
---@param dir string
---@param options {seed:integer, threads:integer?, shard_size:integer?, force:boolean?}
function synth.model(s, dir, options)
    check_new(dir, options.force)
    local pool = core.pool(options.threads or core.cpus())
    local eos = write_tokenizer(dir, s)
    files.write(dir .. "/config.json", config_text(s, eos))
    write_tensors(pool, dir, tensors_of(s), options.shard_size or 5e9, options.seed, { STD })
    pool:close()
end

--- A LoRA adapter on every linear layer.
---@param s table
---@param dir string
---@param options {seed:integer, rank:integer, threads:integer?, force:boolean?}
function synth.adapter(s, dir, options)
    check_new(dir, options.force)
    local pool = core.pool(options.threads or core.cpus())
    local modules = {}
    for i, l in ipairs(linears(s)) do
        modules[i] = l[1]:match "[^.]+$"
    end
    files.write(dir .. "/adapter_config.json", json.encode({
        peft_type = "LORA", task_type = "CAUSAL_LM", r = options.rank, lora_alpha = 2 * options.rank,
        lora_dropout = json.float(0), bias = "none", fan_in_fan_out = false, inference_mode = true, init_lora_weights = true,
        target_modules = modules, base_model_name_or_path = core.null,
    }, { indent = 2 }) .. "\n")
    write_tensors(pool, dir, adapter_tensors(s, options.rank), math.huge, options.seed + 1,
        { STD / 2, name = "adapter_model.safetensors" })
    pool:close()
end

return synth
