"""bitsandbytes' checkpoints as sources, against bitsandbytes itself.

    bnb_sources.py QMOON [--golden DIR]

Every format, block size, type and awkward shape is quantised by the package, read by qmoon and compared element by element
with what the package decodes; checkpoints that qmoon wrote (merged, requantised, of convolutions) are loaded by
transformers and the package.  --golden: a checkpoint folder that CUDA wrote.  Ends with `N passed, N failed`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import bitsandbytes
import torch
import transformers
from bitsandbytes.functional import QuantState, dequantize_4bit, dequantize_blockwise, int8_vectorwise_dequant, int8_vectorwise_quant, quantize_4bit
from safetensors.torch import load_file, save_file

warnings.filterwarnings("ignore")
FIXTURES = Path(__file__).parent.parent / "fixtures"
SHAPES = [(64, 64), (16, 256), (33, 96), (7, 129), (1, 1), (3, 5), (300, 1024), (50, 32), (2, 40000)]
failures = []


def qmoon(*words):
    done = subprocess.run([arguments.qmoon, *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"qmoon {' '.join(map(str, words))}: {done.stderr or done.stdout}")
    return done.stdout


def by_definition(data, state):
    """level * absmax over the flat tensor, as bitsandbytes' CUDA kernel has it.  Its CPU kernel (0.50.2) gives elements
    another block's scale where blocks run over row ends; everywhere else the two must agree."""
    absmax = state.absmax
    if state.nested:
        absmax = dequantize_blockwise(state.absmax, state.state2) + state.offset
    n = torch.Size(state.shape).numel()
    codes = torch.stack([data.reshape(-1) >> 4, data.reshape(-1) & 15], 1).reshape(-1)[:n].long()
    value = (state.code[codes] * absmax[torch.arange(n) // state.blocksize]).to(state.dtype).reshape(state.shape)
    if state.shape[-1] % state.blocksize == 0:
        assert torch.equal(value, dequantize_4bit(data, state))
    return value


def state_of(tensors, name):
    return QuantState.from_dict({k[len(name) + 1:]: v for k, v in tensors.items() if k.startswith(name + ".")}, device="cpu")


def same(what, found, wanted):
    if found.dtype != wanted.dtype or found.shape != wanted.shape:
        failures.append(f"{what}: {found.dtype} {tuple(found.shape)}, not {wanted.dtype} {tuple(wanted.shape)}")
    elif not torch.equal(found, wanted):  # +0 and -0 are equal: CUDA's fp4 has a -0, the CPU's not
        failures.append(f"{what}: {(found != wanted).sum().item()} of {wanted.numel()} elements differ")
    return 1


def every_kind(work):
    """All formats, blocks and shapes in one file without a config."""
    tensors, wanted = {}, {}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for shape in SHAPES:
            weight = torch.randn(*shape).to(dtype)
            weight[0, : shape[1] // 2] = 0
            for kind in ("nf4", "fp4"):
                for block in (32, 64, 128, 256, 512, 1024, 2048, 4096):
                    for nested in (False, True):
                        name = f"{kind}.{block}.{nested}.{str(dtype)[6:]}.{shape[0]}x{shape[1]}.weight"
                        data, state = quantize_4bit(weight, blocksize=block, quant_type=kind, compress_statistics=nested)
                        tensors[name], wanted[name] = data, by_definition(data, state)
                        for key, value in state.as_dict(packed=True).items():
                            tensors[f"{name}.{key}"] = value.clone()
    for shape in SHAPES:
        name = f"int8.{shape[0]}x{shape[1]}"
        codes, scales, _ = int8_vectorwise_quant(torch.randn(*shape).half())
        tensors |= {f"{name}.weight": codes, f"{name}.SCB": scales, f"{name}.weight_format": torch.tensor(0, dtype=torch.uint8)}
        wanted[f"{name}.weight"] = int8_vectorwise_dequant(codes, scales)
    save_file(tensors, work / "all.safetensors")
    qmoon("quantize", work / "all.safetensors", work / "all", "--type", "keep")
    qmoon("quantize", work / "all.safetensors", work / "wide", "--type", "f32")
    found, wide = load_file(work / "all/model.safetensors"), load_file(work / "wide/model.safetensors")
    return sum(same(name, wide[name] if name.startswith("int8") else found[name], value) for name, value in wanted.items())


def checkpoint(folder, work):
    tensors = load_file(folder / "model.safetensors")
    qmoon("quantize", folder, work, "--type", "keep")
    found = load_file(work / "model.safetensors")
    names = [k for k in tensors if f"{k}.absmax" in tensors]
    return sum(same(f"{folder.name} {k}", found[k], by_definition(tensors[k], state_of(tensors, k))) for k in names)


def merged_again(work):
    """Requantised after a merge: transformers loads it, and its weights are those of qmoon's own 16-bit form of it."""
    checks = 0
    for name in ("nf4-dq", "fp4", "int8"):
        out = work / f"merged-{name}"
        qmoon("merge", "--base", FIXTURES / "bnb" / name, "--adapter", FIXTURES / "bnb/adapter", "--out", out)
        qmoon("quantize", out, work / f"{name}-f32", "--type", "f32")
        wanted = load_file(work / f"{name}-f32/model.safetensors")
        model = transformers.AutoModelForCausalLM.from_pretrained(out, device_map="cpu", dtype="auto")
        for path, module in model.named_modules():
            weight = getattr(module, "weight", None)
            if isinstance(module, bitsandbytes.nn.Linear4bit):
                value = by_definition(weight.data, weight.quant_state).float()
            elif isinstance(module, bitsandbytes.nn.Linear8bitLt):
                value = int8_vectorwise_dequant(weight.data, weight.SCB)
            elif isinstance(module, torch.nn.Embedding):
                value = weight.data.float()
            else:
                continue
            checks += same(f"{out.name} {path}", wanted[f"{path}.weight"], value)
    return checks


def convolutions(work):
    """A lone state dict, quantised: the package decodes it to what qmoon decodes it to."""
    checks = 0
    for kind in ("nf4", "fp4"):
        out = work / f"cnn-{kind}"
        qmoon("quantize", FIXTURES / "torch/cnn.pt", out, "--type", kind, "--double-quant")
        qmoon("quantize", out, work / f"cnn-{kind}-back", "--type", "keep")
        tensors, found = load_file(out / "model.safetensors"), load_file(work / f"cnn-{kind}-back/model.safetensors")
        for name in json.loads((out / "quantization.json").read_text())["quantised"]:
            checks += same(f"{out.name} {name}", found[name], by_definition(tensors[name], state_of(tensors, name)))
    return checks


parser = argparse.ArgumentParser()
parser.add_argument("qmoon")
parser.add_argument("--golden", type=Path)
arguments = parser.parse_args()
torch.manual_seed(1)
with tempfile.TemporaryDirectory() as folder:
    work = Path(folder)
    done = every_kind(work) + merged_again(work) + convolutions(work)
    done += checkpoint(FIXTURES / "bnb/nf4-dq", work / "fixture")
    if arguments.golden:
        done += checkpoint(arguments.golden, work / "golden")
for failure in failures:
    print("FAIL", failure)
print(f"{done - len(failures)} passed, {len(failures)} failed")
sys.exit(1 if failures else 0)
