"""What qmoon writes, loaded and recomputed by transformers, peft, bitsandbytes and llama.cpp.

    full.py QMOON --llama-bin BIN [--models DIR] [--outputs DIR] [--random N] [--only TEXT]

Models: the tiny one of tests/fixtures; with --models, DIR/small-qwen2 with its three adapters; and N random ones
with awkward sizes.  Every check of light.py runs on each of them, then those below.  The converter is that of the
source tree BIN was built from (its CMakeCache.txt says where).  Ends with `N passed, N failed`.
"""

import argparse
import copy
import functools
import json
import logging
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import bitsandbytes
import llama_cpp
import numpy as np
import peft
import torch
import transformers
from safetensors.torch import load_file

import bnb_reference as bnb
import random_model
from check import CHECKS, Case, Differ, NotRun, at_most, check, run_checks, same, same_array, same_names
from light import FIXTURES, linears, merged, read_folder, read_gguf

TEXT = ("To be, or not to be, that is the question: whether it is nobler in the mind to suffer the slings and arrows "
        "of fortune, or to take arms against a sea of troubles. The river runs north of the town; in 1887 a bridge "
        "of iron was built there, and the king himself came to open it.")
PROMPTS = ["To be, or not", "The history of the", "KING: My lord,", "In 1887"]
NEW_TOKENS = 24

# Metadata in which model.gguf may differ from the converter's file: key -> why.
CONVERTER_MAY_DIFFER = {
    "general.name": "the converter guesses names from the folder's name and its parents",
    "general.basename": "the same guess", "general.finetune": "the same guess", "general.version": "the same guess",
    "general.organization": "the same guess",
    "tokenizer.ggml.add_bos_token": "false, since 2026, for tokenizers that end in ByteLevel; we write what the "
                                    "converter of November 2025 wrote, the one of the golden files",
    "tokenizer.ggml.add_eos_token": "the same",
}

# Random models: rows not divisible by 256; then not by 64 either; no tied head; more ids than the tokenizer has.
RANDOM = {
    "random-448": dict(hidden_size=448, intermediate_size=1216, num_hidden_layers=2, num_attention_heads=7,
                       num_key_value_heads=1, vocab_size=2049, tie_word_embeddings=False),
    "random-128": dict(hidden_size=128, intermediate_size=320, num_hidden_layers=3, num_attention_heads=4,
                       num_key_value_heads=2, vocab_size=2083, tie_word_embeddings=False),
    "random-96": dict(hidden_size=96, intermediate_size=224, num_hidden_layers=2, num_attention_heads=3,
                      num_key_value_heads=3, vocab_size=2051, tie_word_embeddings=False),
}


# Loading -------------------------------------------------------------------------------------------


def load(folder, dtype="auto"):
    """A checkpoint folder in transformers; every tensor of it used, none missing."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, device_map="cpu", output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if info[kind]:
            raise Differ(f"{folder.name}: transformers reports {kind}: {sorted(map(str, info[kind]))[:8]}")
    return model.eval()


@functools.lru_cache(maxsize=2)
def reference(case):
    """merged-fp16 computed in float32, (model, ids of TEXT, logits): what every other logit is compared with."""
    model = load(case.out / "merged-fp16", torch.float32)
    ids = tokenizer(case)(TEXT)["input_ids"]
    return model, ids, logits(model, ids)


def tokenizer(case):
    return transformers.AutoTokenizer.from_pretrained(case.out / "merged-fp16")


def logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float().numpy()


def greedy(model, ids):
    with torch.no_grad():
        out = model.generate(torch.tensor([ids]), max_new_tokens=NEW_TOKENS, do_sample=False,
                             eos_token_id=-1, pad_token_id=0)
    return out[0].tolist()[len(ids):]


def llama(path, **options):
    return llama_cpp.Llama(str(path), n_ctx=512, n_threads=2, verbose=False, **options)


def llama_logits(path, ids):
    model = llama(path, logits_all=True)
    model.eval(ids)
    return np.array(model.scores[:len(ids)])


def divergence(p, q):
    """Kullback-Leibler divergence of every position, nats: of q from p, both given as logits."""
    p, q = log_softmax(p), log_softmax(q)
    return (np.exp(p) * (p - q)).sum(axis=-1)


def log_softmax(x):
    x = x.astype(np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def close(what, ours, theirs, mean):
    """Logits: mean divergence at most `mean`; the figures."""
    kl = divergence(theirs, ours)
    top = float(np.mean(ours.argmax(-1) == theirs.argmax(-1)))
    at_most(f"{what}: mean KL divergence from merged-fp16", float(kl.mean()), mean)
    return f"mean KL {kl.mean():.2e}, largest {kl.max():.2e}, same top token {100 * top:.0f} %"


# peft ----------------------------------------------------------------------------------------------


@check
def merged_fp16_is_what_peft_merges(case):
    return same_merge(case, case.out / "merged-fp16", torch.float16)


@check
def merge_to_bf16_is_what_peft_merges(case):
    return same_merge(case, merged_to(case, "bf16"), torch.bfloat16)


@check
def merge_to_f32_is_what_peft_merges(case):
    return same_merge(case, merged_to(case, "f32"), torch.float32)


def merged_to(case, dtype):
    return case.made("merged-" + dtype, lambda path: case.run(
        "merge", "--base", case.base, "--adapter", case.adapter, "--out", path, "--dtype", dtype))


def same_merge(case, folder, dtype):
    """99.9 % of the elements identical, none further than one step of the dtype (f32: 1e-6 of the operands)."""
    base = transformers.AutoModelForCausalLM.from_pretrained(case.base, dtype=dtype, device_map="cpu")
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    model = peft.PeftModel.from_pretrained(base, case.adapter).merge_and_unload()
    theirs = model.state_dict()
    if model.config.tie_word_embeddings:
        theirs.pop("lm_head.weight")
    ours = {}
    for file in sorted(folder.glob("*.safetensors")):
        ours.update(load_file(file))
    same_names(f"{folder.name}: tensors", ours, theirs)

    total = equal = 0
    for name, weight in theirs.items():
        same(f"{name}: dtype", ours[name].dtype, dtype)
        a, b = ours[name].double(), weight.double()
        size = torch.maximum(torch.maximum(a.abs(), b.abs()), before[name].double().abs())
        step = size * 1e-6 if dtype == torch.float32 else spacing(size, dtype)
        if bool(((a - b).abs() > step).any()):
            at = int(torch.argmax((a - b).abs() - step))
            raise Differ(f"{name}: element {at} is {a.flatten()[at]:.8g}, peft has {b.flatten()[at]:.8g}")
        total, equal = total + a.numel(), equal + int((a == b).sum())
    at_most("share of elements that differ", 1 - equal / total, 1e-3 if dtype != torch.float32 else 1)
    return f"{100 * equal / total:.4f} % identical"


def spacing(size, dtype):
    """The distance between neighbours of the dtype at this magnitude."""
    info = torch.finfo(dtype)
    return torch.exp2(torch.floor(torch.log2(size.clamp(min=info.tiny)))) * info.eps


# transformers and bitsandbytes ---------------------------------------------------------------------


@check
def transformers_loads_merged_fp16_and_generates(case):
    model, _, _ = reference(case)
    return repr(tokenizer(case).decode(greedy(model, tokenizer(case)(PROMPTS[0])["input_ids"])))


@check
def transformers_loads_model_int8_and_generates(case):
    return generates(case, "model-int8")


@check
def transformers_loads_model_int4_and_generates(case):
    whole_blocks(case)
    return generates(case, "model-int4")


def generates(case, folder):
    text = tokenizer(case)
    new = greedy(load(case.out / folder), text(PROMPTS[0])["input_ids"])
    same("tokens", len(new), NEW_TOKENS)
    return repr(text.decode(new))


@check
def every_linear_but_the_skipped_became_an_8_bit_layer(case):
    return same_layers(case, "model-int8", bitsandbytes.nn.Linear8bitLt)


@check
def every_linear_but_the_skipped_became_a_4_bit_layer(case):
    return same_layers(case, "model-int4", bitsandbytes.nn.Linear4bit)


def same_layers(case, folder, kind):
    skip = json.loads((case.out / folder / "config.json").read_text())["quantization_config"]["llm_int8_skip_modules"]
    plain, _, _ = reference(case)
    expected = [name for name, module in plain.named_modules()
                if type(module) is torch.nn.Linear and name not in skip]
    ours = [name for name, module in load(case.out / folder).named_modules() if isinstance(module, kind)]
    same_names(f"{folder}: {kind.__name__} layers", ours, expected)
    return f"{len(ours)} layers, skipped: {', '.join(skip)}"


@check
def bitsandbytes_decodes_model_int8_as_the_format_says(case):
    tensors = read_folder(case.out / "model-int8")
    for name, module in load(case.out / "model-int8").named_modules():
        if isinstance(module, bitsandbytes.nn.Linear8bitLt):
            theirs = bitsandbytes.functional.int8_vectorwise_dequant(module.weight.data, module.weight.SCB)
            ours = bnb.int8_values(tensors[name + ".weight"], tensors[name + ".SCB"])
            same_array(name, ours, theirs.numpy())


@check
def bitsandbytes_decodes_model_int4_as_the_format_says(case):
    same_decoded(case.out / "model-int4")


@check
def bitsandbytes_decodes_quantized_nf4_as_the_format_says(case):
    same_decoded(case.quantized("nf4", folder=True))


@check
def bitsandbytes_decodes_quantized_nf4_block_128_as_the_format_says(case):
    same_decoded(case.quantized("nf4", "--block", "128", folder=True))


@check
def bitsandbytes_decodes_quantized_fp4_as_the_format_says(case):
    same_decoded(case.quantized("fp4", folder=True))


@check
def bitsandbytes_decodes_quantized_fp4_double_quant_as_the_format_says(case):
    same_decoded(case.quantized("fp4", "--double-quant", folder=True))


def whole_blocks(case):
    """bitsandbytes' CPU code computes with 4-bit rows only when they are whole blocks (its CUDA code with all)."""
    for name in linears(case):
        columns = merged(case)[name].shape[1]
        if columns % 64:
            raise NotRun(f"bitsandbytes on the CPU needs whole blocks of 64: {name} has rows of {columns}")


def decode(weight):
    """bitsandbytes' values of a loaded 4-bit weight.

    Blocks run over row ends; 0.50's CPU kernel counts them anew in every row, unlike its CUDA kernel and its generic
    code, which only shows when a row is not whole blocks.  Given as one row, the weight is decoded as it is stored.
    """
    state = copy.copy(weight.quant_state)
    state.shape = torch.Size([1, weight.quant_state.shape.numel()])
    return bitsandbytes.functional.dequantize_4bit(weight.data, state).reshape(weight.quant_state.shape)


def same_decoded(folder):
    """The weights transformers and bitsandbytes have in memory after loading, decoded by bitsandbytes."""
    tensors, count = read_folder(folder), 0
    for name, module in load(folder).named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            theirs = decode(module.weight)
            ours = bnb.FourBit(tensors, name + ".weight").values()
            same_array(name, ours + np.float16(0), theirs.numpy() + np.float16(0))  # -0 and +0 are one weight
            count += 1
    if not count:
        raise Differ(f"{folder.name}: no 4-bit layer after loading")


@check
def bitsandbytes_itself_writes_our_nf4_codes_and_scales(case):
    """But in blocks of zeros: its CUDA kernel writes code 0 there, as we do, its CPU code 7; both decode to 0."""
    tensors = read_folder(case.quantized("nf4", folder=True))
    for name in linears(case):
        packed, state = bitsandbytes.functional.quantize_4bit(
            torch.from_numpy(merged(case)[name]), blocksize=64, quant_type="nf4", compress_statistics=False)
        ours = bnb.FourBit(tensors, name)
        live = np.repeat(ours.absmax > 0, ours.block // 2)[:ours.packed.size]
        same_array(name, ours.packed.ravel()[live], packed.numpy().ravel()[live])
        same_array(name + ".absmax", ours.absmax, state.absmax.numpy())


@check
def bitsandbytes_itself_writes_nearly_our_fp4_and_int8_codes(case):
    """Nearly: on the CPU it divides exactly and puts ties elsewhere; we write what its CUDA kernels write.

    FP4 has two zeros, which the two kernels choose differently; they count as one code here.
    """
    fp4, int8 = read_folder(case.quantized("fp4", folder=True)), read_folder(case.out / "model-int8")
    off4 = off8 = total = 0
    for name in linears(case):
        weight = torch.from_numpy(merged(case)[name])
        packed, _ = bitsandbytes.functional.quantize_4bit(
            weight, blocksize=64, quant_type="fp4", compress_statistics=False)
        codes, scb, _ = bitsandbytes.functional.int8_vectorwise_quant(weight)
        ours = bnb.FourBit(fp4, name)
        theirs = np.stack([packed.numpy().ravel() >> 4, packed.numpy().ravel() & 15], axis=1).ravel()
        off4 += np.count_nonzero(bnb.FP4[ours.codes()] != bnb.FP4[theirs[:ours.size]])
        same_array(name + ".SCB", int8[name.removesuffix("weight") + "SCB"], scb.float().numpy())
        apart = np.abs(codes.numpy().astype(np.int16) - int8[name])
        at_most(name + ": int8 codes apart", int(apart.max()), 1)
        off8, total = off8 + np.count_nonzero(apart), total + weight.numel()
    at_most("share of FP4 codes that differ", off4 / total, 1e-3)
    at_most("share of int8 codes that differ", off8 / total, 1e-3)
    return f"of {total} codes {off4} FP4 and {off8} int8 differ"


@check
def logits_of_model_int8_are_close_to_merged_fp16(case):
    _, ids, expected = reference(case)
    return close("model-int8", logits(load(case.out / "model-int8"), ids), expected, mean=0.01)


@check
def logits_of_model_int4_are_close_to_merged_fp16(case):
    whole_blocks(case)
    _, ids, expected = reference(case)
    return close("model-int4", logits(load(case.out / "model-int4"), ids), expected, mean=0.15)


@check
def logits_of_model_int4_are_as_close_as_bitsandbytes_own(case):
    """bitsandbytes quantising merged-fp16 itself: the same codes, another offset under the scales."""
    whole_blocks(case)
    _, ids, expected = reference(case)
    config = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
                                             bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float16)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        case.out / "merged-fp16", dtype=torch.float16, device_map="cpu", quantization_config=config)
    ours = divergence(expected, logits(load(case.out / "model-int4"), ids)).mean()
    own = divergence(expected, logits(theirs, ids)).mean()
    at_most("mean KL divergence, ours", float(ours), 1.1 * float(own) + 1e-5)
    return f"mean KL {ours:.2e}, bitsandbytes {own:.2e}"


# llama.cpp -----------------------------------------------------------------------------------------


@check
def llama_cpp_tokenizes_with_model_gguf_as_transformers_does(case):
    model, text = llama(case.out / "model.gguf", vocab_only=True), tokenizer(case)
    for prompt in [TEXT, *PROMPTS, "  two  spaces\n\n\ttab 12345 naïve café 日本語 <|im_start|>x"]:
        same(repr(prompt), model.tokenize(prompt.encode(), add_bos=False, special=True), text(prompt)["input_ids"])


@check
def llama_cpp_computes_the_logits_of_transformers_from_model_gguf(case):
    _, ids, expected = reference(case)
    return close("model.gguf", llama_logits(case.out / "model.gguf", ids), expected, mean=1e-4)


@check
def llama_cpp_computes_close_logits_from_model_q4_0_gguf(case):
    _, ids, expected = reference(case)
    return close("model-q4_0.gguf", llama_logits(case.out / "model-q4_0.gguf", ids), expected, mean=0.15)


@check
def llama_cpps_program_generates_from_model_gguf_what_transformers_generates(case):
    """Greedy text equal, up to the first place where the two best tokens are within 0.05 of each other."""
    model, _, _ = reference(case)
    text, equal = tokenizer(case), 0
    for prompt in PROMPTS:
        ids = text(prompt)["input_ids"]
        theirs = greedy(model, ids)
        ours = simple(case, "model.gguf", prompt)
        if ours.rstrip("\n") == text.decode(ids + theirs, clean_up_tokenization_spaces=False).rstrip("\n"):
            equal += 1
        else:
            near_tie(prompt, model, text, ids, theirs, ours)
    return f"{equal} of {len(PROMPTS)} equal to the last token, the others up to a near-tie"


@check
def llama_cpps_program_generates_from_model_q4_0_gguf(case):
    return repr(simple(case, "model-q4_0.gguf", PROMPTS[0]))


def simple(case, file, prompt):
    done = subprocess.run([case.llama / "llama-simple", "-m", case.out / file, "-n", str(NEW_TOKENS), prompt],
                          capture_output=True)
    if done.returncode != 0:
        raise Differ(f"llama-simple -m {file} ended with {done.returncode}: {done.stderr[-1000:].decode()}")
    return done.stdout.decode(errors="replace")


def near_tie(prompt, model, text, ids, new, ours):
    """The texts part at some token: fine when transformers itself had two tokens almost level there."""
    row = logits(model, ids + new)
    for k in range(len(new)):
        best = np.sort(row[len(ids) + k - 1])
        if not ours.startswith(text.decode(ids + new[:k + 1], clean_up_tokenization_spaces=False)):
            at_most(f"{prompt!r}: ours {ours!r}, transformers {text.decode(ids + new)!r}; lead of the best token "
                    f"over the second at new token {k}", float(best[-1] - best[-2]), 0.05)
            return


@check
def llama_quantize_writes_our_q4_0_from_model_gguf(case):
    return same_as_llama_quantize(case, "q4_0", case.out / "model-q4_0.gguf")


@check
def llama_quantize_writes_our_q8_0_from_model_gguf(case):
    return same_as_llama_quantize(case, "q8_0", case.quantized("q8_0", source="model.gguf"))


@check
def llama_quantize_writes_our_q6_k_from_model_gguf(case):
    return same_as_llama_quantize(case, "q6_k", case.quantized("q6_k", source="model.gguf"))


@check
def llama_quantize_writes_our_bf16_from_model_gguf(case):
    return same_as_llama_quantize(case, "bf16", case.quantized("bf16", source="model.gguf"))


def same_as_llama_quantize(case, kind, ours):
    theirs = case.made(f"llama-{kind}.gguf", lambda path: program(
        case.llama / "llama-quantize", case.out / "model.gguf", path, kind.upper(), "2"))
    same_gguf_tensors(ours, theirs)
    differing = metadata_differences(ours, theirs)
    if differing:
        raise Differ(f"{ours.name}: metadata differs:\n" + "\n".join(differing))
    if ours.read_bytes() == theirs.read_bytes():
        return "the whole file"
    return "every tensor and key; " + order(ours, theirs)


@check
def the_converter_writes_our_model_gguf_from_merged_fp16(case):
    theirs = case.made("converted.gguf", lambda path: program(
        sys.executable, Path(__file__).with_name("convert.py"), llama_source(case), case.out / "merged-fp16", path,
        "--outtype", "f16"))
    ours = case.out / "model.gguf"
    same_gguf_tensors(ours, theirs)
    differing = metadata_differences(ours, theirs, allowed=CONVERTER_MAY_DIFFER)
    if differing:
        raise Differ("model.gguf: metadata differs:\n" + "\n".join(differing))
    return order(ours, theirs)


def program(*command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        raise Differ(f"{' '.join(map(str, command))}\nended with {done.returncode}: "
                     + (done.stdout + done.stderr).strip()[-1500:])


def llama_source(case):
    cache = (case.llama.parent / "CMakeCache.txt").read_text()
    return re.search(r"^CMAKE_HOME_DIRECTORY:INTERNAL=(.*)$", cache, re.M).group(1)


def same_gguf_tensors(ours, theirs):
    (_, a), (_, b) = read_gguf(ours), read_gguf(theirs)
    same_names(f"{ours.name}: tensors", a, b)
    for name, tensor in b.items():
        same(f"{ours.name}: {name}: type", a[name].tensor_type.name, tensor.tensor_type.name)
        same(f"{ours.name}: {name}: shape", a[name].shape.tolist(), tensor.shape.tolist())
        same_array(f"{ours.name}: {name}", np.frombuffer(a[name].data.tobytes(), "u1"),
                   np.frombuffer(tensor.data.tobytes(), "u1"))


def metadata_differences(ours, theirs, allowed=()):
    (a, _), (b, _) = read_gguf(ours), read_gguf(theirs)
    lines = []
    for key in sorted(set(a) | set(b)):
        if key not in allowed and a.get(key) != b.get(key):
            lines.append(f"{key}: ours {repr(a.get(key, '(absent)'))[:100]}, "
                         f"theirs {repr(b.get(key, '(absent)'))[:100]}")
    return lines


def order(ours, theirs):
    (a, s), (b, t) = read_gguf(ours), read_gguf(theirs)
    shared = [key for key in a if key in b]
    return (f"keys in {'the same' if shared == [k for k in b if k in a] else 'another'} order, "
            f"tensors in {'the same' if list(s) == list(t) else 'another'} order")


# The models ----------------------------------------------------------------------------------------


def cases(args, work):
    qmoon, llama_bin = args.qmoon.resolve(), args.llama_bin.resolve()
    yield Case("tiny", qmoon, FIXTURES / "tiny-qwen2", FIXTURES / "tiny-adapter", work, args.outputs, llama_bin)
    if args.models:
        for adapter in ("small-adapter", "small-adapter-rslora", "small-adapter-dora"):
            yield Case(adapter, qmoon, args.models / "small-qwen2", args.models / adapter, work, None, llama_bin)
    for seed, (name, shape) in enumerate(list(RANDOM.items())[:args.random]):
        base, adapter = Path(work) / f"{name}-base", Path(work) / f"{name}-adapter"
        random_model.write(base, adapter, shape, FIXTURES / "tiny-qwen2", seed=seed, rank=4)
        yield Case(name, qmoon, base, adapter, work, None, llama_bin)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("qmoon", type=Path)
    parser.add_argument("--llama-bin", type=Path, required=True)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--outputs", type=Path)
    parser.add_argument("--random", type=int, default=len(RANDOM))
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="qmoon-peers-") as work:
        return 0 if run_checks(CHECKS, cases(args, work), args.only) else 1


if __name__ == "__main__":
    sys.exit(main())
