"""Forward passes against transformers on the CPU: hidden states after every layer, logits, greedy text.

    inference.py QMOON [--seeds N] [--only TEXT] [--keep DIR]

Small random models of every architecture are made by transformers from a config: windows shorter than the text, soft
caps, every rope scaling, biases, tied and untied heads, experts. Each runs in float32 here and there; every layer's
output must agree, token by token and once more piece by piece through the cache. The same model then runs from GGUF files and from
quantised folders that qmoon wrote, against transformers on the decoded weights, and with a peft adapter unmerged.
Ends with `N passed, N failed`.
"""

import argparse
import json
import logging
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import peft
import torch
import transformers

from architectures import (EIGHT, FOUR, LLAMA3, NARROW, QWEN_EIGHT, QWEN_FIVE, UNEVEN, WIDE, byte_level, gemma_pieces,
                           llama3_bytes, llama_pieces, plain_pieces)
from check import Differ, attempt

TOKENS = 37
STATES = Path(__file__).resolve().parent / "states.lua"
HALVES = dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5)
LINEAR = dict(rope_type="linear", rope_theta=10000.0, factor=4.0)
YARN = dict(rope_type="yarn", rope_theta=1000000.0, factor=4.0, original_max_position_embeddings=16)
YARN2 = dict(YARN, beta_fast=8.0, beta_slow=2.0, attention_factor=1.3)
LONG = dict(rope_type="longrope", rope_theta=10000.0, long_factor=[1.0 + i / 3 for i in range(24)],
            short_factor=[1.0 + i / 50 for i in range(24)])
GEMMA3_ROPE = dict(full_attention=dict(rope_type="linear", rope_theta=1000000.0, factor=8.0),
                   sliding_attention=dict(rope_type="default", rope_theta=10000.0))


class Model:
    """transformers' configuration class and fields; `gguf` tells whether a GGUF file can say all of it."""

    def __init__(self, name, config, fields, tokenizer=byte_level, gguf=True, dtype=torch.float32):
        self.name, self.config, self.fields, self.tokenizer, self.gguf, self.dtype = name, config, fields, tokenizer, gguf, dtype

    def write(self, folder, seed):
        torch.manual_seed(seed)
        folder.mkdir(parents=True)
        fields = {"vocab_size": self.tokenizer(folder), "max_position_embeddings": 1024, **self.fields}
        config = self.config(dtype=self.dtype, **fields)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                deviation = 0.2 if weight.dim() == 1 else 0.12
                weight.normal_(1 if "norm" in name and "gemma" not in self.name else 0, deviation)
        model.to(self.dtype).save_pretrained(folder)


def models():
    t = transformers
    wide, narrow, uneven = dict(WIDE), dict(NARROW), dict(UNEVEN)
    yield Model("qwen2 plain", t.Qwen2Config, wide)
    yield Model("qwen2 tied yarn", t.Qwen2Config, dict(narrow, tie_word_embeddings=True, rope_parameters=YARN))
    yield Model("qwen2 window", t.Qwen2Config, dict(narrow, use_sliding_window=True, sliding_window=9, max_window_layers=1), gguf=False)
    yield Model("qwen3 plain", t.Qwen3Config, dict(wide, head_dim=32))
    yield Model("qwen3 biases yarn", t.Qwen3Config, dict(narrow, head_dim=24, attention_bias=True, rope_parameters=YARN2))
    yield Model("llama plain", t.LlamaConfig, wide, llama_pieces)
    yield Model("llama linear", t.LlamaConfig, dict(narrow, rope_parameters=LINEAR, tie_word_embeddings=True), plain_pieces)
    yield Model("llama3 biases", t.LlamaConfig, dict(narrow, attention_bias=True, mlp_bias=True, head_dim=32,
                                                     rope_parameters=LLAMA3), llama3_bytes)
    yield Model("llama yarn", t.LlamaConfig, dict(uneven, rope_parameters=dict(YARN, truncate=False)), llama_pieces, gguf=False)
    yield Model("llama dynamic", t.LlamaConfig, dict(uneven, rope_parameters=dict(rope_type="dynamic", rope_theta=10000.0,
                                                                                  factor=2.0)), llama_pieces, gguf=False)
    yield Model("mistral plain", t.MistralConfig, dict(wide, head_dim=32, sliding_window=None), plain_pieces)
    yield Model("mistral window", t.MistralConfig, dict(uneven, sliding_window=7), llama_pieces, gguf=False)
    yield Model("mixtral plain", t.MixtralConfig, dict(wide, **EIGHT), plain_pieces)
    yield Model("mixtral window", t.MixtralConfig, dict(narrow, sliding_window=11, **FOUR), llama_pieces, gguf=False)
    yield Model("gemma plain", t.GemmaConfig, dict(wide, head_dim=64), gemma_pieces)
    yield Model("gemma legacy", t.GemmaConfig, dict(uneven, head_dim=24, hidden_act="gelu"), gemma_pieces)
    yield Model("gemma2 plain", t.Gemma2Config, dict(wide, head_dim=32, query_pre_attn_scalar=32, sliding_window=10,
                                                     num_hidden_layers=4), gemma_pieces)
    yield Model("gemma2 caps", t.Gemma2Config, dict(uneven, head_dim=20, query_pre_attn_scalar=50, final_logit_softcapping=2.0,
                                                    attn_logit_softcapping=1.0, sliding_window=64), gemma_pieces, gguf=False)
    yield Model("gemma3 plain", t.Gemma3TextConfig, dict(wide, head_dim=32, query_pre_attn_scalar=32, sliding_window=12,
                                                         num_hidden_layers=7), gemma_pieces)
    yield Model("gemma3 linear", t.Gemma3TextConfig, dict(narrow, head_dim=16, query_pre_attn_scalar=16, sliding_window=8,
                                                          rope_parameters=GEMMA3_ROPE, num_hidden_layers=6), gemma_pieces)
    yield Model("phi3 plain", t.Phi3Config, dict(wide, pad_token_id=0), llama_pieces)
    yield Model("phi3 window partial", t.Phi3Config, dict(uneven, pad_token_id=0, sliding_window=13, rope_parameters=HALVES),
                llama_pieces, gguf=False)
    yield Model("phi3 short", t.Phi3Config, dict(narrow, num_attention_heads=2, pad_token_id=0, rope_parameters=LONG,
                                                 original_max_position_embeddings=256), llama_pieces)
    yield Model("phi3 long", t.Phi3Config, dict(narrow, num_attention_heads=2, pad_token_id=0, rope_parameters=LONG,
                                                original_max_position_embeddings=24), llama_pieces)
    yield Model("qwen2moe plain", t.Qwen2MoeConfig, dict(wide, shared_expert_intermediate_size=128, **QWEN_EIGHT))
    yield Model("qwen2moe normalised", t.Qwen2MoeConfig, dict(uneven, shared_expert_intermediate_size=100, norm_topk_prob=True,
                                                              **QWEN_FIVE), gguf=False)
    yield Model("qwen3moe normalised", t.Qwen3MoeConfig, dict(wide, head_dim=32, norm_topk_prob=True, **QWEN_EIGHT))
    yield Model("qwen3moe plain", t.Qwen3MoeConfig, dict(narrow, head_dim=16, norm_topk_prob=False, **QWEN_FIVE), gguf=False)


# Running -----------------------------------------------------------------------------------------------


def ids_of(model, seed, count=TOKENS):
    return torch.randint(0, model.config.vocab_size, (1, count), generator=torch.Generator().manual_seed(seed))


def reference(model, ids):
    """Inputs of the first layer, outputs of all, and logits: float32 arrays."""
    states = []
    layers = model.get_decoder().layers
    hooks = [layers[0].register_forward_pre_hook(lambda m, args, kwargs: states.append(args[0] if args else kwargs["hidden_states"]),
                                                 with_kwargs=True)]
    for layer in layers:
        hooks.append(layer.register_forward_hook(lambda m, args, out: states.append(out[0] if isinstance(out, tuple) else out)))
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    return [s[0].float().numpy() for s in states], logits[0].float().numpy()


def ours(case, folder, ids, states, logits, adapter, exact):
    """The same of qmoon, with logits computed in one piece and, where the model allows it, again in several."""
    out = case.work / "states.f32"
    out.unlink(missing_ok=True)
    command = [case.qmoon, str(STATES), str(folder), ",".join(map(str, ids[0].tolist())), str(out)]
    command += [str(adapter or ""), "exact" if exact else "fast"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise Differ(f"{' '.join(command)}\nended with {done.returncode}: {done.stderr.strip()}")
    values, hidden = np.fromfile(out, np.float32), len(states) * states[0].size
    return values[:hidden].reshape(len(states), *states[0].shape), values[hidden:].reshape(-1, *logits.shape)


def compare(what, mine, theirs, bound):
    scale = np.abs(theirs).max()
    error = np.abs(mine - theirs).max() / scale
    if not error <= bound:
        raise Differ(f"{what}: furthest value {error:.2e} of the largest away, allowed {bound:.0e}")
    return error


def agree(case, folder, model, bound, adapter=None, exact=True):
    ids = ids_of(model, case.seed)
    states, logits = reference(model, ids)
    mine, rest = ours(case, folder, ids, states, logits, adapter, exact)
    worst = 0
    for layer, state in enumerate(states):
        worst = max(worst, compare(f"after layer {layer}", mine[layer], state, bound))
    for i, r in enumerate(rest):
        worst = max(worst, compare("logits" if i == 0 else "logits, in pieces", r, logits, bound))
    return f"{worst:.1e}"


def load(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


class Case:
    def __init__(self, model, seed, args, root):
        self.model, self.seed, self.qmoon = model, seed, str(args.qmoon)
        self.name = f"{model.name} {seed}" if args.seeds > 1 else model.name
        self.work = root / self.name.replace(" ", "-")
        self.folder = self.work / "model"

    def run(self, *arguments):
        done = subprocess.run([self.qmoon, *map(str, arguments)], capture_output=True, text=True)
        if done.returncode != 0:
            raise Differ(f"qmoon {' '.join(map(str, arguments))}\nended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout


EXACT, FAST = 2e-5, 2e-3  # of the largest value


def folder_agrees(case):
    return agree(case, case.folder, load(case.folder), EXACT)


def gguf_agrees(case):
    """f32: the same weights under other names, rows and metadata."""
    path = case.work / "model.gguf"
    case.run("quantize", case.folder, path, "--type", "f32")
    return agree(case, path, load(case.folder), EXACT)


def quantised_folder_agrees(kind):
    """Weights decoded as they are used, against the same decoded beforehand."""
    def function(case):
        quantised, plain = case.work / kind, case.work / f"{kind}-f32"
        case.run("quantize", case.folder, quantised, "--type", kind.split("+")[0], "--dtype", "f32",
                 *(["--double-quant"] if "+dq" in kind else []))
        case.run("quantize", quantised, plain, "--type", "f32")
        model = load(plain)
        return agree(case, quantised, model, EXACT) + " exact, " + agree(case, quantised, model, FAST, exact=False) + " fast"
    return function


def adapter_agrees(case):
    model = load(case.folder)
    torch.manual_seed(case.seed)
    names = {name.split(".")[-1] for name, module in model.named_modules()
             if isinstance(module, torch.nn.Linear) and "lm_head" not in name and not name.endswith("gate")}
    lora = peft.LoraConfig(r=4, lora_alpha=12, target_modules=sorted(names), task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(model, lora)
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.1)
    wrapped.save_pretrained(case.work / "adapter")
    return agree(case, case.folder, wrapped.eval().merge_and_unload(), 5e-5, case.work / "adapter")


def greedy_agrees(case):
    """24 tokens after a short text, but for near-ties."""
    model = load(case.folder)
    answer = json.loads(case.run("generate", case.folder, "--prompt", "The quick brown", "--tokens", 24, "--greedy", "--ignore-eos",
                                 "--json"))
    ids = torch.tensor([answer["prompt_ids"] + answer["ids"]])
    start = len(answer["prompt_ids"])
    for i, token in enumerate(answer["ids"]):
        with torch.no_grad():  # each from its own beginning: Phi-3's long models turn all of a text otherwise once it is long
            row = model(ids[:, :start + i], use_cache=False).logits[0, -1]
        if row.max() - row[token] > 1e-4 * row.abs().max():
            raise Differ(f"token {i} is {token} with a logit of {row[token]:.5f}; {int(row.argmax())} has {row.max():.5f}")
    return f"{len(answer['ids'])} tokens"


def checks(case):
    yield "transformers' layers and logits", folder_agrees
    yield "greedy text", greedy_agrees
    if case.model.gguf:
        yield "GGUF", gguf_agrees
    if case.model.name.endswith("plain"):
        yield "nf4", quantised_folder_agrees("nf4")
        yield "int8", quantised_folder_agrees("int8")
    if case.model.name == "qwen2 plain":
        yield "nf4 double", quantised_folder_agrees("nf4+dq")
        yield "fp4", quantised_folder_agrees("fp4")
    if case.model.name in ("qwen2 plain", "llama plain", "phi3 plain", "gemma2 plain", "qwen3 plain"):
        yield "peft adapter, unmerged", adapter_agrees


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("qmoon", type=Path)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--keep", type=Path, help="keep the files in this folder")
    args = parser.parse_args()
    args.qmoon = args.qmoon.resolve()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    torch.set_num_threads(2)
    outcome = []
    with tempfile.TemporaryDirectory(prefix="qmoon-inference-") as scratch:
        for seed in range(1, args.seeds + 1):
            for model in models():
                case = Case(model, seed, args, args.keep or Path(scratch))
                if args.only not in case.name:
                    continue
                shutil.rmtree(case.work, ignore_errors=True)
                made = attempt(lambda c: c.model.write(c.folder, c.seed), case, f"{case.name}: made")
                outcome.append(made)
                for title, function in checks(case) if made == "ok" else ():
                    outcome.append(attempt(function, case, f"{case.name}: {title}"))
                if not args.keep:
                    shutil.rmtree(case.work, ignore_errors=True)
    print(f"{outcome.count('ok')} passed, {outcome.count('FAIL')} failed")
    return 0 if "FAIL" not in outcome else 1


if __name__ == "__main__":
    sys.exit(main())
