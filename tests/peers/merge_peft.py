"""qmoon merge against peft's own merge_and_unload, element by element.

    merge_peft.py --qmoon build/qmoon [--models DIR] [--only TEXT] [--keep DIR]

Every case is a base checkpoint and an adapter, made here by transformers and peft with random weights, or trained
ones: tests/fixtures, and with --models the small models in DIR.  peft loads the base in a type, merges, and every
element of every tensor is compared with what qmoon writes in that type.

Results must be identical in 99.9 % of a case's elements and nowhere further than 1 ulp.  DoRA in f32, and ranks that
the BLAS cuts up, are held to a few rounding errors of the tensor's largest value instead: the order of sums shows.
Where the base would lose by being loaded in the type written (f32 to f16, say), peft merges in f32 and its result is
rounded.  For f16 both ways are shown, the one that counts first.
Exit status 0 when every line says ok.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import peft  # noqa: E402
import safetensors.torch  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

transformers.logging.set_verbosity_error()
warnings.simplefilter("ignore")

ROOT = Path(__file__).resolve().parent.parent.parent
TYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}
# (base, written): peft loses nothing of the base by loading it in the type written.  bf16 in f16 only below 2^-17.
DIRECT = {(t, t) for t in TYPES.values()} | {(torch.bfloat16, torch.float16), (torch.bfloat16, torch.float32),
                                             (torch.float16, torch.float32)}
WORST_F32 = 8 * 2.0**-24  # of the tensor's largest value

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LINEARS = ATTENTION + ["gate_proj", "up_proj", "down_proj"]


@dataclass
class Case:
    name: str
    base: Callable[[Path], None]  # writes the base checkpoint
    adapter: Callable[[Path, Path], None]  # (base, adapter): writes the adapter
    types: tuple = ("f16",)
    untie: bool = False  # peft merges into the shared tensor; it is given an untied copy instead
    vocab: Optional[int] = None  # the adapter was trained after resizing to this
    exact: bool = True  # False: f32 sums in another order than the BLAS


# ---- bases -------------------------------------------------------------------------------------------------------


def qwen2(seed=0, dtype="bf16", tied=False, hidden=64, inner=96, layers=2, heads=4, kv=2, vocab=160, std=0.05):
    def write(folder):
        torch.manual_seed(seed)
        config = transformers.Qwen2Config(
            hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
            num_key_value_heads=kv, vocab_size=vocab, tie_word_embeddings=tied, max_position_embeddings=64,
            initializer_range=std, bos_token_id=1, eos_token_id=1)
        save_rough(transformers.Qwen2ForCausalLM(config), folder, dtype)
    return write


def gpt2(seed=0, dtype="f32", width=48, layers=2, heads=2, vocab=96):
    def write(folder):
        torch.manual_seed(seed)
        config = transformers.GPT2Config(n_embd=width, n_layer=layers, n_head=heads, vocab_size=vocab, n_positions=32,
                                         bos_token_id=1, eos_token_id=1)
        save_rough(transformers.GPT2LMHeadModel(config), folder, dtype)
    return write


def save_rough(model, folder, dtype):
    """transformers starts biases at 0 and norms at 1; trained ones are neither."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(".bias"):
                weight.normal_(0, 0.1)
            elif weight.dim() == 1:
                weight.normal_(1, 0.2)
    model.to(TYPES[dtype]).save_pretrained(folder)


def folder_of(path):
    def write(folder):
        folder.symlink_to(Path(path).resolve())
    return write


# ---- adapters ------------------------------------------------------------------------------------------------------


def lora(seed=1, dtype=None, resize=None, base_dtype="bf16", std=0.05, **options):
    options = {"r": 8, "lora_alpha": 16, "task_type": "CAUSAL_LM", **options}

    def write(base, folder):
        torch.manual_seed(seed)
        model = load(base, TYPES[base_dtype], resize)
        wrapped = peft.get_peft_model(model, peft.LoraConfig(**options))
        train(wrapped, std)
        wrapped.save_pretrained(folder)
        if dtype:
            rewrite(folder, lambda tensors: {k: v.to(TYPES[dtype]) for k, v in tensors.items()})
    return write


def train(wrapped, std):
    """Random values where training would have put some."""
    moved = ("lora_B", "lora_embedding_A", "lora_A", "lora_embedding_B")
    with torch.no_grad():
        seen = set()
        for name, weight in wrapped.named_parameters():
            if weight.data_ptr() in seen:
                continue
            seen.add(weight.data_ptr())
            if "magnitude" in name:
                weight.mul_(1 + 0.2 * torch.randn_like(weight))
            elif any(part in name for part in moved):
                weight.normal_(0, std)
            elif weight.requires_grad:  # modules_to_save, biases, token rows
                weight.add_(torch.randn_like(weight) * std)


def rewrite(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = change(safetensors.torch.load_file(path))
    safetensors.torch.save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata={"format": "pt"})


def with_adapter_names(write):
    """Keys as peft wrote them once: lora_A.default.weight."""
    def rename(key):
        return key.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default.")

    def renamed(base, folder):
        write(base, folder)
        rewrite(folder, lambda tensors: {rename(k): v for k, v in tensors.items()})
    return renamed


def fixed(path):
    def write(base, folder):
        folder_of(path)(folder)
    return write


# ---- the cases --------------------------------------------------------------------------------------------------


def cases(models):
    fixtures = ROOT / "tests" / "fixtures"
    tiny = folder_of(fixtures / "tiny-qwen2")
    yield Case("tiny, trained", tiny, fixed(fixtures / "tiny-adapter"), ("f16", "bf16", "f32"))
    if models:
        small = folder_of(models / "small-qwen2")
        for name in ("small-adapter", "small-adapter-rslora", "small-adapter-dora"):
            yield Case(f"{name}, trained", small, fixed(models / name), ("f16", "bf16", "f32"),
                       exact="dora" not in name)
        yield Case("small, random DoRA r=64", small, lora(r=64, use_dora=True, target_modules=LINEARS))

    shapes = [(64, 96, 1), (64, 200, 3), (128, 72, 16), (96, 130, 64), (96, 130, 192)]
    for seed, (hidden, inner, rank) in enumerate(shapes):
        for dtype in TYPES:
            yield Case(f"linears r={rank} {hidden}/{inner} base {dtype}",
                       qwen2(seed, dtype, hidden=hidden, inner=inner),
                       lora(seed + 10, r=rank, lora_alpha=2 * rank + 1, target_modules=LINEARS), ("keep", "f16"))
    yield Case("rank 256, which the BLAS cuts up", qwen2(4, hidden=96), lora(r=256, target_modules=LINEARS),
               ("f16", "bf16", "f32"), exact=False)
    yield Case("f16 base written as bf16", qwen2(4, "f16"), lora(target_modules=LINEARS + ["embed_tokens"]),
               ("bf16",))
    yield Case("rsLoRA with rank and alpha patterns", qwen2(5), lora(
        use_rslora=True, target_modules=LINEARS,
        rank_pattern={"down_proj": 4, r"layers\.0\.self_attn\.[qk]_proj": 12},
        alpha_pattern={"layers.1.mlp.up_proj": 5, "up_proj": 7, "^model.layers.0.mlp.gate_proj": 9}),
        ("f16", "bf16", "f32"))
    yield Case("adapter stored as bf16", qwen2(6), lora(dtype="bf16", target_modules=LINEARS), ("f16", "bf16"))
    yield Case("adapter stored as f16", qwen2(7), lora(dtype="f16", target_modules=LINEARS), ("f16", "bf16"))
    yield Case("adapter names in keys", qwen2(8), with_adapter_names(lora(target_modules=LINEARS)))
    for dtype in TYPES:
        yield Case(f"DoRA base {dtype}", qwen2(9, dtype), lora(use_dora=True, target_modules=LINEARS),
                   ("keep", "f16"), exact=False)
    yield Case("DoRA rsLoRA patterns, stored as f16", qwen2(10), lora(
        use_dora=True, use_rslora=True, dtype="f16", rank_pattern={"q_proj": 2}, target_modules=LINEARS))
    yield Case("lora_bias", qwen2(11), lora(lora_bias=True, target_modules=["q_proj", "v_proj"]),
               ("f16", "bf16", "f32"))
    yield Case("bias all", qwen2(12), lora(bias="all", target_modules=["q_proj"]), ("f16", "bf16"))
    yield Case("bias lora_only", qwen2(13), lora(bias="lora_only", target_modules=["q_proj"]), ("bf16",))
    yield Case("MiCA", qwen2(14), lora(init_lora_weights="mica", target_modules=LINEARS), ("f16", "bf16", "f32"))
    for init in ("gaussian", "orthogonal", False):
        yield Case(f"init {init}", qwen2(15), lora(init_lora_weights=init, target_modules=["q_proj"]))

    for tied in (False, True):
        kind, untie = ("tied", True) if tied else ("untied", False)
        base = qwen2(16, tied=tied)
        both = ("f16", "bf16", "f32")
        yield Case(f"{kind}: LoRA on embed_tokens", base, lora(target_modules=["embed_tokens", "q_proj"]), both,
                   untie)
        yield Case(f"{kind}: LoRA on lm_head", base, lora(target_modules=["lm_head", "q_proj"]), both, untie)
        yield Case(f"{kind}: LoRA on both", base, lora(target_modules=["lm_head", "embed_tokens"]), both, untie)
        yield Case(f"{kind}: DoRA on embed_tokens", base, lora(use_dora=True, target_modules=["embed_tokens"]), both,
                   untie, exact=False)
        yield Case(f"{kind}: DoRA on both", base, lora(use_dora=True, target_modules=["embed_tokens", "lm_head"]),
                   ("f16",), untie)
        yield Case(f"{kind}: modules_to_save lm_head, norm", base,
                   lora(target_modules=["q_proj"], modules_to_save=["lm_head", "norm"]), both)
        yield Case(f"{kind}: modules_to_save embed_tokens", base,
                   lora(target_modules=["q_proj"], modules_to_save=["embed_tokens"]), both)
        yield Case(f"{kind}: modules_to_save both", base,
                   lora(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]))
        yield Case(f"{kind}: modules_to_save both, resized", base,
                   lora(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"], resize=176),
                   vocab=176)
        yield Case(f"{kind}: resized", base, lora(target_modules=["q_proj"], resize=176), vocab=176)
        yield Case(f"{kind}: resized, LoRA on embed_tokens", base,
                   lora(target_modules=["embed_tokens", "lm_head"], resize=176), both, untie, vocab=176)
        yield Case(f"{kind}: trained tokens", base,
                   lora(target_modules=["q_proj"], trainable_token_indices=[7, 3, 150]), both)
        yield Case(f"{kind}: trained tokens of both", base,
                   lora(target_modules=["q_proj"],
                        trainable_token_indices={"embed_tokens": [3, 1], "lm_head": [9, 3, 2]}), both, untie)
    yield Case("tied: modules_to_save, tied on purpose", qwen2(17, tied=True),
               lora(target_modules=["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True))
    yield Case("f32 base: LoRA on embed_tokens", qwen2(17, "f32"), lora(target_modules=["embed_tokens"]),
               ("keep", "f16"))

    for dtype in TYPES:
        base = gpt2(18, dtype)
        names = ["c_attn", "c_proj", "c_fc"]
        yield Case(f"GPT-2 base {dtype}", base, lora(target_modules=names, fan_in_fan_out=True), ("keep", "f16"))
        yield Case(f"GPT-2 DoRA base {dtype}", base, lora(target_modules=names, use_dora=True), ("keep", "f16"),
                   exact=False)
    yield Case("GPT-2 lora_bias", gpt2(19), lora(target_modules=["c_attn"], lora_bias=True), ("f16",))
    yield Case("GPT-2 LoRA on wte", gpt2(20), lora(target_modules=["wte", "c_attn"]), ("f16",), untie=True)


# ---- peft's side ---------------------------------------------------------------------------------------------------


def load(base, dtype, vocab=None):
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    if vocab:
        model.resize_token_embeddings(vocab, mean_resizing=False)
    return model


def peft_merge(case, base, adapter, dtype):
    model = load(base, dtype, case.vocab)
    if case.untie:
        head = model.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
        model.config.tie_word_embeddings = False
    merged = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    tensors = dict(merged.state_dict())
    if merged.config.tie_word_embeddings:
        assert merged.get_output_embeddings().weight.data_ptr() == merged.get_input_embeddings().weight.data_ptr()
        del tensors["lm_head.weight"]
    return tensors, merged.config


# ---- ours ----------------------------------------------------------------------------------------------------------


def qmoon_merge(qmoon, base, adapter, out, dtype):
    command = [*qmoon, "merge", "--base", base, "--adapter", adapter, "--out", out, "--dtype", dtype]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip() or done.stdout.strip())
    tensors = {}
    for shard in sorted(out.glob("*.safetensors")):
        tensors.update(safetensors.torch.load_file(shard))
    return tensors, json.loads((out / "config.json").read_text())


# ---- comparing -----------------------------------------------------------------------------------------------------


def ordered(t):
    """Integers in the order of the values: the difference of two is their distance in ulps."""
    if t.dtype == torch.float32:
        bits, sign = t.view(torch.int32).long(), 1 << 31
    else:
        bits, sign = t.view(torch.int16).long(), 1 << 15
    return torch.where(bits < 0, -(bits + sign), bits)


@dataclass
class Result:
    elements: int = 0
    same: int = 0
    ulps: int = 0
    relative: float = 0.0  # largest difference over the tensor's largest value
    worst: str = ""

    def add(self, name, ours, theirs):
        distance = (ordered(ours) - ordered(theirs)).abs()
        self.elements += distance.numel()
        self.same += int((distance == 0).sum())
        if int(distance.max()) > self.ulps:
            self.ulps, self.worst = int(distance.max()), name
        largest = float(theirs.float().abs().max()) or 1.0
        self.relative = max(self.relative, float((ours.float() - theirs.float()).abs().max()) / largest)

    def ok(self, exact):
        if not exact and self.relative <= WORST_F32:
            return True
        return self.same >= 0.999 * self.elements and self.ulps <= 1


def compare(ours, theirs):
    if ours.keys() != theirs.keys():
        raise RuntimeError(f"only in ours: {sorted(ours.keys() - theirs.keys())}, "
                           f"only in peft's: {sorted(theirs.keys() - ours.keys())}")
    result = Result()
    for name in sorted(ours):
        a, b = ours[name], theirs[name]
        if a.shape != b.shape or a.dtype != b.dtype:
            raise RuntimeError(f"{name}: ours {a.dtype} {tuple(a.shape)}, peft's {b.dtype} {tuple(b.shape)}")
        result.add(name, a, b)
    return result


def compare_config(ours, theirs):
    for key in ("tie_word_embeddings", "vocab_size"):
        if key in ours and ours[key] != getattr(theirs, key):
            raise RuntimeError(f"config.json: {key} is {ours[key]}, peft's is {getattr(theirs, key)}")


def type_of(base):
    tensors = safetensors.torch.load_file(sorted(Path(base).glob("*.safetensors"))[0])
    return next(iter(tensors.values())).dtype


def line(name, dtype, result, good):
    share = 100 * result.same / result.elements
    print(f"{name:42} {dtype:9} {result.elements:9} {share:9.4f} % {result.ulps:7} {result.relative:9.1e}  "
          f"{'' if good is None else 'ok' if good else 'FAILED  worst in ' + result.worst}", flush=True)


def run(case, qmoon, folder):
    base, adapter = folder / "base", folder / "adapter"
    case.base(base)
    case.adapter(base, adapter)
    good = True
    for dtype in case.types:
        base_type = type_of(base)
        out_type = base_type if dtype == "keep" else TYPES[dtype]
        ours, config = qmoon_merge(qmoon, base, adapter, folder / f"out-{dtype}", dtype)
        counts = out_type if (base_type, out_type) in DIRECT else torch.float32
        shown = [torch.float32, out_type] if dtype == "f16" else []
        for merged_in in dict.fromkeys([counts] + shown):
            theirs, their_config = peft_merge(case, base, adapter, merged_in)
            compare_config(config, their_config)
            result = compare(ours, {k: v.to(out_type) for k, v in theirs.items()})
            how = dtype if merged_in == out_type else f"f32->{dtype}"
            if merged_in == counts:
                ok = result.ok(case.exact or out_type != torch.float32)
                line(case.name, how, result, ok)
                good &= ok
            else:
                line("", how, result, None)
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qmoon", default=str(ROOT / "build" / "qmoon"))
    parser.add_argument("--models", type=Path, help="folder with small-qwen2 and its adapters")
    parser.add_argument("--only", default="", help="cases whose name has this text")
    parser.add_argument("--keep", type=Path, help="make the checkpoints here and leave them")
    args = parser.parse_args()

    torch.set_num_threads(2)
    failed = []
    print(f"peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")
    print(f"{'case':42} {'type':9} {'elements':>9} {'identical':>11} {'max ulp':>7} {'max rel':>9}")
    with tempfile.TemporaryDirectory() as scratch:
        for number, case in enumerate(cases(args.models)):
            if args.only not in case.name:
                continue
            folder = (args.keep or Path(scratch)) / f"{number:02}"
            folder.mkdir(parents=True)
            try:
                good = run(case, [args.qmoon], folder)
            except RuntimeError as e:
                print(f"{case.name:42} FAILED  {e}", flush=True)
                good = False
            if not good:
                failed.append(case.name)
    print(f"{len(failed)} failed" + "".join(f"\n  {name}" for name in failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
