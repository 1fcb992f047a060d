"""What qmoon writes, read by the packages that define the formats: safetensors, gguf, tokenizers.

    light.py QMOON [--base DIR --adapter DIR] [--outputs DIR] [--only TEXT]

Runs `qmoon pipeline` and `qmoon quantize` on the tiny model of tests/fixtures into a temporary folder, or checks
files that are already there (--outputs).  Ends with `N passed, N failed`.
"""

import argparse
import functools
import json
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import safetensors.numpy
import tokenizers
from safetensors import safe_open

import bnb_reference as bnb
from check import (CHECKS, Case, Differ, at_most, check, digest, run_checks, same, same_array, same_bytes, same_names,
                   within)

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
FOLDERS = ["merged-fp16", "model-int8", "model-int4"]
CARRIED = ["tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "vocab.json",
           "merges.txt", "added_tokens.json", "chat_template.jinja", "chat_template.json", "generation_config.json"]

# Hugging Face -> GGUF, Qwen2.
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LAYER = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
         "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
         "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}


# Reading -------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4)
def read_folder(folder):
    """{name: array} of every .safetensors file in a checkpoint folder."""
    tensors = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        tensors.update(safetensors.numpy.load_file(file))
    return tensors


def read_gguf(path):
    """(metadata {key: value}, tensors {name: ReaderTensor}); the reader's own three header fields left out."""
    reader = gguf.GGUFReader(path)
    metadata = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    return metadata, {tensor.name: tensor for tensor in reader.tensors}


def gguf_name(name):
    module, suffix = name.rsplit(".", 1)
    if module in TOP:
        return f"{TOP[module]}.{suffix}"
    _, _, layer, inner = module.split(".", 3)
    return f"blk.{layer}.{LAYER[inner]}.{suffix}"


def merged(case):
    return read_folder(case.out / "merged-fp16")


def linears(case):
    """Names of the weights that become 8 or 4 bit: every linear but the output head."""
    return [name for name in merged(case) if name.endswith("_proj.weight")]


def gguf_type(name, shape, kind, tied):
    """The type llama-quantize gives a tensor when asked for `kind` (a GGMLQuantizationType name)."""
    if len(shape) < 2:
        return "F32"
    if kind in ("F16", "BF16", "Q8_0"):
        return kind
    chosen = "Q6_K" if name == ("token_embd.weight" if tied else "output.weight") else kind
    return "Q8_0" if chosen == "Q6_K" and shape[-1] % 256 else chosen


# Checkpoint folders --------------------------------------------------------------------------------


@check
def the_safetensors_package_opens_every_file_and_finds_format_pt(case):
    count = 0
    for folder in FOLDERS:
        for file in sorted((case.out / folder).glob("*.safetensors")):
            with safe_open(file, "np") as opened:
                same(f"{folder}/{file.name}: metadata", (opened.metadata() or {}).get("format"), "pt")
                for name in opened.keys():
                    opened.get_tensor(name)
                    count += 1
    return f"{count} tensors"


@check
def every_safetensors_file_is_byte_for_byte_what_the_package_writes(case):
    for folder in FOLDERS:
        for file in sorted((case.out / folder).glob("*.safetensors")):
            with safe_open(file, "np") as opened:
                metadata = opened.metadata()
            again = safetensors.numpy.save(safetensors.numpy.load_file(file), metadata)
            same_bytes(f"{folder}/{file.name}", file.read_bytes(), again)


@check
def merged_fp16_has_the_bases_tensors_in_f16(case):
    shapes = {}
    for file in sorted(case.base.glob("*.safetensors")):
        with safe_open(file, "np") as opened:
            shapes.update({name: opened.get_slice(name).get_shape() for name in opened.keys()})
    ours = merged(case)
    same_names("merged-fp16: tensors", ours, shapes)
    for name, tensor in ours.items():
        same(f"{name}: dtype and shape", (str(tensor.dtype), list(tensor.shape)), ("float16", shapes[name]))


@check
def tokenizer_and_template_files_are_the_bases_byte_for_byte(case):
    carried = [name for name in CARRIED if (case.base / name).exists()]
    for folder in FOLDERS:
        for name in carried:
            same_bytes(f"{folder}/{name}", (case.out / folder / name).read_bytes(), (case.base / name).read_bytes())
    return ", ".join(carried)


@check
def the_tokenizers_package_encodes_with_the_carried_file(case):
    text = "To be, or not to be: that is the question.\n  12 345 naïve 日本 <|im_end|>"
    ours = tokenizers.Tokenizer.from_file(str(case.out / "merged-fp16" / "tokenizer.json")).encode(text)
    theirs = tokenizers.Tokenizer.from_file(str(case.base / "tokenizer.json")).encode(text)
    same("ids", ours.ids, theirs.ids)


@check
def config_json_keeps_the_bases_keys_and_says_float16(case):
    base = case.config()
    for folder in FOLDERS:
        config = json.loads((case.out / folder / "config.json").read_text())
        dtype = config.get("dtype", config.get("torch_dtype"))
        same(f"{folder}/config.json: dtype", dtype, "float16")
        for key in base.keys() - {"dtype", "torch_dtype"}:
            same(f"{folder}/config.json: {key}", config.get(key, "(absent)"), base[key])


@check
def quantization_config_has_every_key_with_the_type_transformers_asks_for(case):
    same_quantization_config(case.out / "model-int8", bits=8)
    same_quantization_config(case.out / "model-int4", bits=4, quant_type="nf4", double=True)


def same_quantization_config(folder, bits, quant_type="fp4", double=False):
    """The thirteen keys.  A whole number where a float belongs, or 1 for true, does not load."""
    config = json.loads((folder / "config.json").read_text()).get("quantization_config")
    if config is None:
        raise Differ(f"{folder.name}/config.json has no quantization_config")
    compute = config.get("bnb_4bit_compute_dtype")
    expected = {
        "_load_in_4bit": bits == 4, "_load_in_8bit": bits == 8, "load_in_4bit": bits == 4,
        "load_in_8bit": bits == 8, "bnb_4bit_compute_dtype": "float16" if bits == 4 else compute,
        "bnb_4bit_quant_storage": "uint8", "bnb_4bit_quant_type": quant_type,
        "bnb_4bit_use_double_quant": double, "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False, "llm_int8_skip_modules": config.get("llm_int8_skip_modules"),
        "llm_int8_threshold": 6.0, "quant_method": "bitsandbytes"}
    same_names(f"{folder.name}: quantization_config", config, expected)
    for key, value in expected.items():
        same(f"{folder.name}: {key}", (config[key], type(config[key])), (value, type(value)))
    skip = config["llm_int8_skip_modules"]
    if not isinstance(skip, list) or "lm_head" not in skip:
        raise Differ(f"{folder.name}: llm_int8_skip_modules is {skip!r}, expected a list with lm_head")


# 8 and 4 bit ---------------------------------------------------------------------------------------


@check
def model_int8_holds_the_nearest_codes_under_each_rows_largest_weight(case):
    return same_int8(case, case.out / "model-int8")


@check
def quantize_int8_writes_the_tensors_of_the_pipeline(case):
    same_tensors(case.quantized("int8", folder=True), case.out / "model-int8")


def same_int8(case, folder):
    """Codes, scales, keys; and everything that is not a linear is the merged tensor itself."""
    tensors, source, off = read_folder(folder), merged(case), 0
    expected = set(source)
    for name in linears(case):
        module, weight = name.removesuffix(".weight"), source[name].astype(np.float32)
        expected |= {module + ".SCB", module + ".weight_format"}
        codes, scb = tensors[name], tensors[module + ".SCB"]
        same_array(module + ".SCB", scb, np.abs(weight).max(axis=1))
        same_array(module + ".weight_format", tensors[module + ".weight_format"], np.array(0, np.uint8))
        same(name + ": dtype and shape", (str(codes.dtype), codes.shape), ("int8", weight.shape))
        # bitsandbytes multiplies by 127 times an approximate reciprocal: an exact tie may fall either way.
        exact = weight.astype(np.float64) * 127 / np.where(scb > 0, scb, 1)[:, None].astype(np.float64)
        within(name + ": codes", codes - exact, 0.5 + 1e-4)
        off += np.count_nonzero(codes != np.rint(exact))
        within(name + ": values", bnb.int8_values(codes, scb) - weight, scb[:, None] / 254 * 1.0005)
    same_names(f"{folder.name}: tensors", tensors, expected)
    for name in set(source) - set(linears(case)):
        same_array(f"{folder.name}: {name}", tensors[name], source[name])
    return f"{off} codes on the other side of a tie"


@check
def model_int4_holds_nf4_doubly_quantised(case):
    return same_four_bit(case, case.out / "model-int4", "nf4", 64, nested=True)


@check
def quantize_nf4_with_double_quant_writes_the_tensors_of_the_pipeline(case):
    same_tensors(case.quantized("nf4", "--double-quant", folder=True), case.out / "model-int4")


@check
def quantize_nf4_holds_nf4(case):
    return same_four_bit(case, case.quantized("nf4", folder=True), "nf4", 64, nested=False)


@check
def quantize_nf4_block_128_holds_nf4_in_blocks_of_128(case):
    return same_four_bit(case, case.quantized("nf4", "--block", "128", folder=True), "nf4", 128, nested=False)


@check
def quantize_nf4_double_quant_block_128_holds_both(case):
    folder = case.quantized("nf4", "--double-quant", "--block", "128", folder=True)
    return same_four_bit(case, folder, "nf4", 128, nested=True)


@check
def quantize_nf4_with_exact_zero_blocks_keeps_zeros_zero(case):
    """Under double quantisation bitsandbytes itself decodes blocks of nothing but zeros to a small constant."""
    folder = case.quantized("nf4", "--double-quant", "--zero-blocks", "exact", folder=True)
    note, tensors, zeros = same_four_bit(case, folder, "nf4", 64, nested=True), read_folder(folder), 0
    for name in linears(case):
        weight, source = bnb.FourBit(tensors, name), merged(case)[name]
        zero = bnb.spread(bnb.block_absmax(source, 64), 64, source.shape) == 0
        same_array(name + ": all-zero blocks", weight.values()[zero], np.zeros(zero.sum(), np.float16))
        zeros += int(zero.sum())
    return f"{note}, {zeros} weights in such blocks"


@check
def quantize_fp4_holds_fp4(case):
    folder = case.quantized("fp4", folder=True)
    same_quantization_config(folder, bits=4, quant_type="fp4")
    return same_four_bit(case, folder, "fp4", 64, nested=False)


@check
def quantize_fp4_double_quant_holds_fp4_doubly_quantised(case):
    folder = case.quantized("fp4", "--double-quant", folder=True)
    same_quantization_config(folder, bits=4, quant_type="fp4", double=True)
    return same_four_bit(case, folder, "fp4", 64, nested=True)


def same_four_bit(case, folder, quant_type, block, nested):
    tensors, source, used, states = read_folder(folder), merged(case), 0.0, set()
    expected = set(source)
    for name in linears(case):
        weight = bnb.FourBit(tensors, name)
        expected |= set(weight.keys)
        same_layout(name, weight, source[name], quant_type, block, nested)
        states.add(len(weight.state_text))
        used = max(used, same_codes(name, weight, source[name]))
    same_names(f"{folder.name}: tensors", tensors, expected)
    for name in set(source) - set(linears(case)):
        same_array(f"{folder.name}: {name}", tensors[name], source[name])
    return f"at most {used:.3f} of the error bound, states of {sorted(states)} bytes"


def same_layout(name, weight, source, quant_type, block, nested):
    """Keys, shapes and dtypes, and the JSON of the state."""
    blocks = -(-source.size // block)
    suffixes = ["absmax", "quant_map", "quant_state.bitsandbytes__" + quant_type]
    suffixes += ["nested_absmax", "nested_quant_map"] if nested else []
    same_names(name + ": keys", weight.keys, [f"{name}.{suffix}" for suffix in suffixes])
    same(name + ": state keys", list(weight.state), bnb.NESTED_KEYS if nested else bnb.STATE_KEYS)
    state = {"quant_type": quant_type, "blocksize": block, "dtype": "float16", "shape": list(source.shape)}
    if nested:
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": weight.state["nested_offset"]}
        same(name + ": type of nested_offset", type(weight.state["nested_offset"]), float)
        same(name + ": sha256 of the nested map", digest(weight.nested_map.tobytes()), bnb.DYNAMIC_MAP_DIGEST)
        same(name + ": nested_absmax", weight.nested_absmax.shape, (-(-blocks // 256),))
    same(name + ": state", weight.state, state)
    same(name + ": packed", (str(weight.packed.dtype), weight.packed.shape), ("uint8", ((source.size + 1) // 2, 1)))
    same(name + ": absmax", (str(weight.absmax.dtype), weight.absmax.shape),
         ("uint8" if nested else "float32", (blocks,)))
    same_array(name + ": quant_map", np.abs(weight.quant_map), np.abs(bnb.TABLES[quant_type]))


def same_codes(name, weight, source):
    """Codes are the nearest table entries; scales are the blocks' largest weights, as near as the map has them."""
    table, flat = bnb.TABLES[weight.type], source.astype(np.float32).ravel()
    absmax = bnb.block_absmax(source, weight.block)
    scale = bnb.spread(absmax, weight.block, flat.shape)
    normal = flat / np.where(scale > 0, scale, 1)
    chosen = np.abs(table[weight.codes()] - normal)
    nearest = np.abs(table[None, :] - normal[:, None]).min(axis=1)
    # FP4's published thresholds are a few ulp off the midpoints, and the reciprocal is approximate.
    within(name + ": distance to the chosen entry", chosen - nearest, np.where(scale > 0, 1e-6, 2))

    if not weight.nested:
        same_array(name + ".absmax", weight.absmax, absmax)
        slack = np.zeros_like(absmax)
    else:
        second = np.repeat(weight.nested_absmax, 256)[:absmax.size]
        same_array(name + ".nested_absmax", weight.nested_absmax, bnb.block_absmax(absmax - weight.offset, 256))
        target = (absmax - weight.offset) / np.where(second > 0, second, 1)
        chosen = np.abs(weight.nested_map[weight.absmax] - target)
        nearest = np.abs(weight.nested_map[None, :] - target[:, None]).min(axis=1)
        within(name + ": distance of the scales to the chosen entry", chosen - nearest, 1e-6)
        slack = np.abs(weight.scales() - absmax)
    bound = (bnb.half_gap(table) * scale + bnb.spread(slack, weight.block, flat.shape)) * (1 + 2.0 ** -11)
    bound = bound + 2.0 ** -11 * np.abs(flat) + 2.0 ** -24  # the decoded value is rounded to f16
    return within(name + ": values", weight.values().astype(np.float32).ravel() - flat, bound)


def same_tensors(ours, theirs):
    ours, theirs = read_folder(ours), read_folder(theirs)
    same_names("tensors", ours, theirs)
    for name, tensor in theirs.items():
        same_array(name, ours[name], tensor)


# GGUF ----------------------------------------------------------------------------------------------


@check
def gguf_reader_reads_model_gguf(case):
    return same_gguf(case, case.out / "model.gguf", "F16")


@check
def gguf_reader_reads_model_q4_0_gguf(case):
    return same_gguf(case, case.out / "model-q4_0.gguf", "Q4_0")


@check
def quantize_f16_writes_the_tensors_of_model_gguf(case):
    same_gguf(case, case.quantized("f16"), "F16")


@check
def quantize_bf16_writes_what_gguf_py_encodes(case):
    return same_gguf(case, case.quantized("bf16"), "BF16")


@check
def quantize_q8_0_writes_what_gguf_py_encodes(case):
    return same_gguf(case, case.quantized("q8_0"), "Q8_0")


@check
def quantize_q4_0_writes_what_gguf_py_encodes(case):
    return same_gguf(case, case.quantized("q4_0"), "Q4_0")


@check
def quantize_q6_k_decodes_with_gguf_py_close_to_the_merged_weights(case):
    return same_gguf(case, case.quantized("q6_k"), "Q6_K")


@check
def quantize_of_the_gguf_file_writes_the_tensors_of_the_folder(case):
    _, ours = read_gguf(case.quantized("q4_0", source="model.gguf"))
    _, theirs = read_gguf(case.out / "model-q4_0.gguf")
    same_names("tensors", ours, theirs)
    for name in theirs:
        same_array(name, ours[name].data, theirs[name].data)


def same_gguf(case, path, kind):
    """Names, shapes, types and bytes of every tensor, against gguf-py's own encoding of the merged weights.

    gguf-py has no Q6_K encoder; its decoder is asked how far from the merged weights our blocks are.
    """
    _, tensors = read_gguf(path)
    source = {gguf_name(name): tensor for name, tensor in merged(case).items()}
    same_names(f"{path.name}: tensors", tensors, source)
    tied, worst = "output.weight" not in source, 0.0
    for name, weight in source.items():
        tensor, expected = tensors[name], gguf_type(name, weight.shape, kind, tied)
        same(f"{path.name}: {name}: type", tensor.tensor_type.name, expected)
        same(f"{path.name}: {name}: shape", [int(n) for n in tensor.shape], list(weight.shape[::-1]))
        if expected == "Q6_K":
            worst = max(worst, q6_k_error(f"{path.name}: {name}", tensor, weight))
        else:
            encoded = gguf.quants.quantize(weight.astype(np.float32), gguf.GGMLQuantizationType[expected])
            same_array(f"{path.name}: {name}", np.frombuffer(tensor.data.tobytes(), "u1"),
                       np.frombuffer(encoded.tobytes(), "u1"))
    return f"{len(source)} tensors" + (f"; Q6_K: rmse/rms at most {worst:.5f}" if worst else "")


def q6_k_error(what, tensor, weight):
    """Six bits: a uniform code of step s has rmse s/sqrt(12), and s is about max/32: about 1 % of a normal rms."""
    weight = weight.astype(np.float32)
    decoded = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(weight.shape)
    rms = float(np.sqrt(np.mean(np.square(weight))))
    at_most(what + ": largest error / rms", float(np.abs(decoded - weight).max()) / rms, 0.5)
    return at_most(what + ": rmse / rms", float(np.sqrt(np.mean(np.square(decoded - weight)))) / rms, 0.03)


@check
def gguf_metadata_says_what_config_json_says(case):
    config = case.config()
    rope = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    expected = {
        "general.architecture": "qwen2", "general.quantization_version": 2,
        "qwen2.block_count": config["num_hidden_layers"],
        "qwen2.context_length": config["max_position_embeddings"],
        "qwen2.embedding_length": config["hidden_size"],
        "qwen2.feed_forward_length": config["intermediate_size"],
        "qwen2.attention.head_count": config["num_attention_heads"],
        "qwen2.attention.head_count_kv": config["num_key_value_heads"],
        "qwen2.rope.freq_base": float(np.float32(rope)),
        "qwen2.attention.layer_norm_rms_epsilon": float(np.float32(config["rms_norm_eps"])),
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2"}
    for path, file_type in (("model.gguf", 1), ("model-q4_0.gguf", 2)):
        metadata, _ = read_gguf(case.out / path)
        for key, value in (expected | {"general.file_type": file_type}).items():
            same(f"{path}: {key}", metadata.get(key, "(absent)"), value)


@check
def gguf_tokens_merges_and_template_are_those_of_the_tokenizer_files(case):
    text = json.loads((case.base / "tokenizer.json").read_text(encoding="utf-8"))
    special = {token["id"]: token["special"] for token in text["added_tokens"]}
    tokens = dict((i, t) for t, i in text["model"]["vocab"].items())
    tokens.update({token["id"]: token["content"] for token in text["added_tokens"]})
    size = case.config()["vocab_size"]
    expected = [tokens.get(i, f"[PAD{i}]") for i in range(size)]
    types = [{True: 3, False: 4}[special[i]] if i in special else 1 if i in tokens else 5 for i in range(size)]
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in text["model"]["merges"]]
    for path in ("model.gguf", "model-q4_0.gguf"):
        metadata, _ = read_gguf(case.out / path)
        same(f"{path}: tokens", metadata["tokenizer.ggml.tokens"], expected)
        same(f"{path}: token types", metadata["tokenizer.ggml.token_type"], types)
        same(f"{path}: merges", metadata["tokenizer.ggml.merges"], merges)
        same(f"{path}: chat template", metadata.get("tokenizer.chat_template"), chat_template(case))
        for kind in ("bos", "eos"):
            same(f"{path}: {kind}", metadata.get(f"tokenizer.ggml.{kind}_token_id"),
                 case.config()[f"{kind}_token_id"])
    return f"{size} tokens, {len(merges)} merges"


def chat_template(case):
    file = case.base / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    return json.loads((case.base / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("qmoon", type=Path)
    parser.add_argument("--base", type=Path, default=FIXTURES / "tiny-qwen2")
    parser.add_argument("--adapter", type=Path, default=FIXTURES / "tiny-adapter")
    parser.add_argument("--outputs", type=Path)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qmoon-peers-") as work:
        case = Case(args.base.name, args.qmoon.resolve(), args.base, args.adapter, work, args.outputs)
        return 0 if run_checks(CHECKS, [case], args.only) else 1


if __name__ == "__main__":
    sys.exit(main())
