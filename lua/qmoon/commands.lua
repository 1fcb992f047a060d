--- The commands that write models, as data: their options, and what the options mean for qmoon.write.  The scripts
-- run them and `qmoon plan` shows them, from the same lines.

local core = require "qmoon.core"
local cli = require "qmoon.cli"
local outputs = require "qmoon.outputs"
local profiles = require "qmoon.gguf_profiles"
local Model = require "qmoon.model"

local commands = {}

local function options_of(o, more)
    local options = { threads = o.threads, device = o.device, force = o.force, keep_nonfinite = o.keep_nonfinite }
    for k, v in pairs(more or {}) do
        options[k] = v
    end
    return options
end

commands.pipeline = {
    name = "pipeline",
    doc = "Merges a LoRA adapter into a base model and writes it in several formats, reading the base once: merged-fp16/,\n"
        .. "model-int8/, model-int4/ (nf4 + double quantisation), model.gguf (F16), model-q4_0.gguf, report.md, report.json.",
    options = cli.writing {
        { "base", kind = "text", value = "DIR", required = true, doc = "model folder: config.json and safetensors" },
        { "adapter", kind = "text", value = "DIR", doc = "peft LoRA adapter; none: the base as it is" },
        { "out", kind = "text", value = "DIR", required = true, doc = "folder for the outputs, made if it is not there" },
        { "outputs", kind = "list", value = "LIST", doc = "some of the outputs above, or name=format of your own" },
        { "zero-blocks", kind = "text", value = "HOW", choices = { "bnb", "exact" }, default = "bnb",
          doc = "nf4: all-zero blocks as bitsandbytes writes them, or so that they decode to zeros" },
        { "rounding", kind = "text", value = "HOW", choices = { "bnb", "nearest" }, default = "bnb",
          doc = "nf4, fp4, int8: codes as bitsandbytes' CUDA kernels round, or the nearest, as its CPU code has most of them" },
        { "pre", kind = "text", value = "NAME", doc = "GGUF: name of the pre-tokenizer, when it is not recognised" },
        { "name", kind = "text", value = "TEXT", doc = "GGUF: general.name" },
        { "allow-requantize", doc = "without an adapter: take a base that is quantised already" },
        { "evaluate", kind = "text", value = "TEXT", doc = "then run every output on this text: perplexity, KL divergence, tokens/s" },
        { "evaluate-tokens", kind = "integer", value = "N", default = 8192, doc = "… on its first N tokens" },
    },
    examples = [[
  qmoon pipeline --base Qwen2.5-1.5B-Instruct --adapter adapters --out quantized
  qmoon pipeline --base B --adapter A --out q --outputs model-int4,small.gguf=q6_k
  qmoon pipeline --base B --adapter A --out q --evaluate wiki-test.txt
  qmoon plan pipeline --base B --adapter A --out q        what it would do, to the byte]],
    prepare = function(o)
        local model = Model.open(o.base)
        if o.adapter then
            model = model:merge(o.adapter)
        end
        local specs = outputs.choose(o.outputs, o.out)
        for _, s in ipairs(specs) do
            s.pre, s.name, s.zero_blocks, s.rounding = o.pre, o.name, o.zero_blocks, o.rounding
            s.allow_requantize = o.allow_requantize
        end
        if o.evaluate then -- what would stop it is better known before the work than after
            require("qmoon.running").tokens({ tokenizer = require("qmoon").tokenizer(model) }, o.evaluate, 1)
        end
        -- every output is encoded from the merged weights as f16 holds them
        return model, specs, options_of(o, { round = "f16" })
    end,
    after = function(report, o)
        if o.evaluate then
            local step, finish = require("qmoon.running").progress "evaluate"
            require("qmoon.evaluation").add(report, o.evaluate, { tokens = o.evaluate_tokens, threads = o.threads, progress = step })
            finish()
        end
    end,
}

commands.merge = {
    name = "merge",
    doc = "Merges a LoRA adapter into a base model with peft's arithmetic: B.A in f32, scaled, added, rounded once.",
    options = cli.writing {
        { "base", kind = "text", value = "DIR", required = true, doc = "model folder: config.json and safetensors" },
        { "adapter", kind = "list", value = "DIR", required = true, doc = "peft adapter folder, or several separated by commas" },
        { "out", kind = "text", value = "DIR", required = true, doc = "folder for the merged checkpoint" },
        { "dtype", kind = "text", value = "TYPE", choices = { "f16", "bf16", "f32", "keep" }, default = "keep",
          doc = "element type to write; keep: as in the base, which may be quantised (merged weights are quantised again)" },
        { "shard-size", kind = "size", value = "SIZE", default = "5GB", doc = "largest weight file" },
    },
    examples = "  qmoon merge --base Qwen2.5-1.5B --adapter adapters --out merged --dtype f16",
    prepare = function(o)
        local model = Model.open(o.base)
        for _, adapter in ipairs(o.adapter) do
            model = model:merge(adapter)
        end
        local format = o.dtype == "keep" and model.quantised and "same" or o.dtype
        return model, { { path = o.out, format = format, shard_size = o.shard_size } }, options_of(o)
    end,
}

--- {regex, type} of words "REGEX=TYPE".  Patterns are in lower case, as tensor names are; \D and the like keep theirs.
local function tensor_types(words)
    local list = {}
    for i, word in ipairs(words or {}) do
        local regex, name = word:match "^([^=]+)=(.+)$"
        if not regex then
            core.fail("usage", "quantize: --tensor-type wants REGEX=TYPE, such as attn_v=q6_k, not '%s'", word)
        end
        list[i] = { regex:gsub("\\?.", function(c) return #c == 1 and c:lower() or c end), name }
    end
    return list[1] and list
end

local VALUES = { int = "u32", float = "f32", bool = "bool", str = "string" }

--- Rows of metadata of words "KEY=TYPE:VALUE", llama-quantize's way: whole numbers become u32, without their sign.
local function override_rows(words)
    local rows = {}
    for i, word in ipairs(words or {}) do
        local key, kind, value = word:match "^([^=]+)=(%a+):(.*)$"
        if not VALUES[kind] then
            core.fail("usage", "quantize: --override-kv wants KEY=TYPE:VALUE with TYPE int, float, bool or str, not '%s'", word)
        end
        rows[i] = require("qmoon.gguf_edit").row(key, VALUES[kind], kind == "int" and value:gsub("^%-", "") or value)
    end
    return rows[1] and rows
end

local function block_of(word)
    if word and word ~= "row" and not word:find "^%d+$" then
        core.fail("usage", "quantize: --block wants a whole number or row, not '%s'", word)
    end
    return tonumber(word) or word
end

local function profile_names()
    local names = {}
    for i, p in ipairs(profiles.list) do
        names[i] = p.name .. (i == 1 and " (default)" or "")
    end
    return table.concat(names, ", ")
end

commands.quantize = {
    name = "quantize",
    doc = "Writes a model in another format. OUT ending in .gguf: llama-quantize's types by its rules; otherwise a folder that\n"
        .. "transformers and bitsandbytes load.",
    arguments = { { "SRC", doc = "model folder (16-bit, or of bitsandbytes), .gguf, or one .safetensors, .bin or .pt file" },
                  { "OUT", doc = "folder, or .gguf file" } },
    options = cli.writing {
        { "type", kind = "text", value = "T", required = true,
          doc = "for .gguf: llama-quantize's, such as f16 q8_0 q4_0 q4_k_m iq4_xs; for a folder: int8 nf4 fp4 f16 bf16 f32 keep, or\n"
              .. "any other of qmoon formats, int4:128 and uint3:row among them (read by this program alone)" },
        { "double-quant", doc = "formats with an absmax, such as nf4: quantise the scales again" },
        { "block", kind = "text", value = "N", doc = "folders: values per scale, or row; of nf4 and fp4 32 to 4096 (default: 64)" },
        { "dtype", kind = "text", value = "TYPE", choices = { "f16", "bf16", "f32" },
          doc = "nf4, fp4, int8: compute type, and what stays unquantised (default: f16; of a lone file: as it is)" },
        { "zero-blocks", kind = "text", value = "HOW", choices = { "bnb", "exact" }, default = "bnb",
          doc = "nf4: all-zero blocks as bitsandbytes writes them, or so that they decode to zeros" },
        { "rounding", kind = "text", value = "HOW", choices = { "bnb", "nearest" }, default = "bnb",
          doc = "nf4, fp4, int8: codes as bitsandbytes' CUDA kernels round, or the nearest, as its CPU code has most of them" },
        { "pure", doc = "GGUF: one type for every quantised tensor" },
        { "imatrix", kind = "text", value = "FILE", doc = "GGUF: importance of every column, measured by llama-imatrix" },
        { "tensor-type", kind = "text", value = "REGEX=T", many = true, doc = "GGUF: type T for tensors whose names match" },
        { "output-tensor-type", kind = "text", value = "T", doc = "GGUF: type of output.weight" },
        { "token-embedding-type", kind = "text", value = "T", doc = "GGUF: type of token_embd.weight" },
        { "leave-output-tensor", doc = "GGUF: output.weight stays as it is" },
        { "override-kv", kind = "text", value = "KEY=TYPE:VALUE", many = true,
          doc = "GGUF: metadata to set; TYPE is int, float, bool or str" },
        { "keep-split", doc = "GGUF in parts: in as many parts, OUT-00001-of-0000N.gguf" },
        { "no-fallback", doc = "GGUF: fail when a type does not divide the rows of a tensor, instead of taking another" },
        { "profile", kind = "text", value = "NAME", doc = "GGUF: as the llama-quantize of that name; " .. profile_names() },
        { "allow-requantize", doc = "take tensors that are quantised already" },
        { "pre", kind = "text", value = "NAME", doc = "GGUF: name of the pre-tokenizer, when it is not recognised" },
        { "name", kind = "text", value = "TEXT", doc = "GGUF: general.name" },
        { "shard-size", kind = "size", value = "SIZE", default = "5GB", doc = "largest weight file of a folder" },
    },
    examples = [[
  qmoon quantize Qwen2.5-1.5B model-q4_0.gguf --type q4_0
  qmoon quantize model.gguf model-q6_k.gguf --type q6_k
  qmoon quantize Qwen2.5-1.5B model-nf4 --type nf4 --double-quant
  qmoon quantize Qwen2.5-1.5B model-int3 --type int3:128
  qmoon -l mine quantize Qwen2.5-1.5B model-mine --type mine    a format that ./mine.lua makes (qm.codebook, qm.format)
  qmoon quantize model-nf4 model-f16 --type f16           what bitsandbytes decodes it to
  qmoon quantize resnet50.pt resnet50-int8 --type int8]],
    prepare = function(o)
        return Model.open(o[1]), {
            { path = o[2], format = o.type, double_quant = o.double_quant, block = block_of(o.block), dtype = o.dtype,
              zero_blocks = o.zero_blocks, rounding = o.rounding, pure = o.pure, allow_requantize = o.allow_requantize, pre = o.pre, name = o.name,
              shard_size = o.shard_size, imatrix = o.imatrix, tensor_types = tensor_types(o.tensor_type),
              output_tensor_type = o.output_tensor_type, token_embedding_type = o.token_embedding_type,
              override_kv = override_rows(o.override_kv), keep_split = o.keep_split, leave_output_tensor = o.leave_output_tensor, no_fallback = o.no_fallback, profile = o.profile },
        }, options_of(o)
    end,
}

return commands
