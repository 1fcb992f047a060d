-- quantize: a model in another format.

local qm = require "qmoon"
local cli = require "qmoon.cli"

local o = cli.parse({
    name = "quantize",
    doc = "Writes a model in another format. OUT ending in .gguf: llama-quantize's types by its rules; otherwise a folder that\n"
        .. "transformers and bitsandbytes load.",
    arguments = { { "SRC", doc = "model folder, or .gguf file" }, { "OUT", doc = "folder, or .gguf file" } },
    options = cli.writing {
        { "type", kind = "text", value = "T", required = true,
          doc = "for .gguf: f32 f16 bf16 q8_0 q4_0 q6_k; for a folder: int8 nf4 fp4 f16 bf16 f32" },
        { "double-quant", doc = "nf4 and fp4: quantise the scales again" },
        { "block", kind = "integer", value = "N", doc = "nf4 and fp4: values per scale, 32 to 4096 (default: 64)" },
        { "dtype", kind = "text", value = "TYPE", choices = { "f16", "bf16", "f32" },
          doc = "nf4, fp4, int8: compute type, and what stays unquantised (default: f16)" },
        { "zero-blocks", kind = "text", value = "HOW", choices = { "bnb", "exact" }, default = "bnb",
          doc = "nf4: all-zero blocks as bitsandbytes writes them, or so that they decode to zeros" },
        { "pure", doc = "GGUF: one type for every quantised tensor" },
        { "allow-requantize", doc = "GGUF: take tensors that are quantised already" },
        { "pre", kind = "text", value = "NAME", doc = "GGUF: name of the pre-tokenizer, when it is not recognised" },
        { "name", kind = "text", value = "TEXT", doc = "GGUF: general.name" },
        { "shard-size", kind = "size", value = "SIZE", default = "5GB", doc = "largest weight file of a folder" },
    },
    examples = [[
  qmoon quantize Qwen2.5-1.5B model-q4_0.gguf --type q4_0
  qmoon quantize model.gguf model-q6_k.gguf --type q6_k
  qmoon quantize Qwen2.5-1.5B model-nf4 --type nf4 --double-quant]],
}, { ... })
if not o then
    return 0
end

local step, finish = require("qmoon.progress").new "quantize"
local report = qm.write(qm.open(o[1]), {
    { o[2], format = o.type, double_quant = o.double_quant, block = o.block, dtype = o.dtype, zero_blocks = o.zero_blocks,
      pure = o.pure, allow_requantize = o.allow_requantize, pre = o.pre, name = o.name,
      shard_size = o.shard_size },
}, { threads = o.threads, force = o.force, keep_nonfinite = o.keep_nonfinite, progress = step })
finish()
print(report)
