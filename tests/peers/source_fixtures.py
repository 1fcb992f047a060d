"""Makes tests/fixtures/torch and tests/fixtures/bnb: files as torch, peft, transformers and bitsandbytes write them, and
expected.json beside them with what these packages read back.

    source_fixtures.py tests/fixtures
"""

import collections
import hashlib
import json
import sys
import warnings
from pathlib import Path

import bitsandbytes
import peft
import safetensors.torch
import torch
import transformers

warnings.filterwarnings("ignore")
OUT = Path(sys.argv[1])

SHAPE = dict(hidden_size=32, intermediate_size=50, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
             vocab_size=60, tie_word_embeddings=True, max_position_embeddings=64)
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def raw(t):
    return t.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def digest(t):
    return {"dtype": str(t.dtype).removeprefix("torch."), "shape": list(t.shape), "sha256": hashlib.sha256(raw(t)).hexdigest()}


def flat(value, prefix=""):
    """The tensors of nested dictionaries and lists, under names with dots."""
    if isinstance(value, torch.Tensor):
        return {prefix: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    found = {}
    for key, inner in items:
        found |= flat(inner, f"{prefix}.{key}" if prefix else str(key))
    return found


# ---- torch -----------------------------------------------------------------------------------------------

def cnn():
    model = torch.nn.Sequential(collections.OrderedDict(
        stem=torch.nn.Conv2d(3, 8, 3), norm=torch.nn.BatchNorm2d(8), depthwise=torch.nn.Conv2d(8, 8, 5, groups=8),
        body=torch.nn.Conv2d(8, 16, 3, bias=False), line=torch.nn.Conv1d(16, 12, 7), head=torch.nn.Linear(12, 10)))
    return model.to(memory_format=torch.channels_last)


def training(model):
    """What a training loop saves: weights, optimizer, numbers, words."""
    optimizer = torch.optim.AdamW([model.head.weight], lr=1e-3)
    model.head(torch.randn(2, 12)).sum().backward()
    optimizer.step()
    return {"epoch": 3, "loss": 0.25, "arch": "cnn", "best": None, "state_dict": model.state_dict(),
            "optimizer": optimizer.state_dict()}


def rnn():
    model = torch.nn.ModuleDict({"embed": torch.nn.Embedding(20, 8), "lstm": torch.nn.LSTM(8, 6, 2, bidirectional=True),
                                 "out": torch.nn.Linear(12, 20)})
    return {"model": model.state_dict(), "step": 7}


def vit():
    """3-D parameters, shared storages, views: an offset, a transposition, one row repeated, one column."""
    fused, tied = torch.randn(3, 16, 16).bfloat16(), torch.randn(16, 16)
    return {"cls_token": torch.nn.Parameter(torch.randn(1, 1, 16)), "pos_embed": torch.randn(1, 5, 16),
            "patch_embed.proj.weight": torch.randn(16, 3, 4, 4), "blocks.0.attn.q": fused[0], "blocks.0.attn.k": fused[1],
            "blocks.0.attn.v": fused[2].t(), "blocks.0.experts.up": torch.randn(4, 6, 16), "head.weight": tied,
            "embed.weight": tied, "blocks.0.row": torch.randn(16).expand(3, 16), "blocks.0.column": tied[:, 3],
            "norm.weight": torch.randn(16).half(), "empty": torch.zeros(0, 4), "strip": tied[2:5, 1:4]}


def types():
    numbers = torch.arange(-3, 9).reshape(3, 4)
    found = {str(t).removeprefix("torch."): numbers.to(t) for t in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
        torch.uint8, torch.bool, torch.complex64, torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn,
        torch.float8_e5m2)}
    found["scalar"] = torch.tensor(7)
    return found


def write_torch(out):
    out.mkdir(parents=True, exist_ok=True)
    expected = {}

    def save(name, value, **options):
        torch.save(value, out / name, **options)
        expected[name] = {k: digest(v) for k, v in flat(value).items()}

    save("cnn.pt", training(cnn()))
    save("cnn-legacy.pth", cnn().state_dict(), _use_new_zipfile_serialization=False)
    save("rnn.pth", rnn())
    save("rnn-legacy.pth", rnn(), _use_new_zipfile_serialization=False)
    save("vit.bin", vit())
    save("vit-legacy.bin", vit(), _use_new_zipfile_serialization=False)
    save("types.pt", types())
    save("lone.pt", torch.randn(3, 5))
    save("big-keys.pt", {"blocks": [{"w": torch.randn(2)}, {3: torch.randn(2)}], "n": 2**40, "neg": -2**40, "f": 0.5})

    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2)), out / "module.pt")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), out / "script.pt")
    torch.save({"a": torch.randn(2)}, out / "protocol4.pt", pickle_protocol=4)

    write_model(out / "model", out / "adapter")
    (out / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


# ---- transformers ---------------------------------------------------------------------------------------

def tiny(dtype, **shape):
    torch.manual_seed(11)
    config = transformers.Qwen2Config(bos_token_id=1, eos_token_id=2, dtype=str(dtype).removeprefix("torch."), **SHAPE | shape)
    model = transformers.Qwen2ForCausalLM(config).to(dtype)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(".bias"):
                weight.normal_(0, 0.1)
    return model


def write_model(out, adapter):
    """The same model and adapter twice: as .bin (two shards, the head in it as torch's state dict has it), as safetensors."""
    model = tiny(torch.float16)
    model.save_pretrained(f"{out}-safetensors")
    out.mkdir(exist_ok=True)
    (out / "config.json").write_text(Path(f"{out}-safetensors/config.json").read_text())
    state = model.state_dict()
    names = list(state)
    shards = {"pytorch_model-00001-of-00002.bin": names[:6] + ["lm_head.weight"], "pytorch_model-00002-of-00002.bin": names[6:-1]}
    for name, members in shards.items():
        torch.save({k: state[k] for k in members}, out / name)
    index = {"metadata": {"total_size": sum(v.nbytes for v in state.values())},
             "weight_map": {k: name for name, members in shards.items() for k in members}}
    (out / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=2) + "\n")

    Path(f"{out}-safetensors/generation_config.json").unlink()
    write_adapter(model, adapter)
    wrapped = Path(f"{adapter}-bin")
    wrapped.mkdir()
    (wrapped / "adapter_config.json").write_text((adapter / "adapter_config.json").read_text())
    torch.save(safetensors.torch.load_file(adapter / "adapter_model.safetensors"), wrapped / "adapter_model.bin")


def write_adapter(model, out):
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, target_modules=LINEARS[:5], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.05)
    wrapped.save_pretrained(out)
    (out / "README.md").unlink()


# ---- bitsandbytes ---------------------------------------------------------------------------------------

QUANTISED = {
    "nf4-dq": (torch.bfloat16, dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                    bnb_4bit_compute_dtype="bfloat16")),
    "fp4": (torch.float16, dict(load_in_4bit=True, bnb_4bit_quant_type="fp4")),
    "int8": (torch.float16, dict(load_in_8bit=True)),
}


def by_definition(data, state):
    """level * absmax, block after block of the flat tensor, as bitsandbytes' CUDA kernel has it."""
    absmax = state.absmax
    if state.nested:
        absmax = bitsandbytes.functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    n = state.shape.numel()
    codes = torch.stack([data.reshape(-1) >> 4, data.reshape(-1) & 15], 1).reshape(-1)[:n].long()
    code = state.code.clone()
    if state.quant_type == "fp4":
        code[8] = -0.0  # the stored table has +0, but CUDA multiplies a magnitude by a sign
    return (code[codes] * absmax[torch.arange(n) // state.blocksize]).to(state.dtype).reshape(state.shape)


def dequantised(module):
    weight = module.weight
    if not isinstance(weight, bitsandbytes.nn.Params4bit):
        return bitsandbytes.functional.int8_vectorwise_dequant(weight.data, weight.SCB)
    state = weight.quant_state
    value = by_definition(weight.data, state)
    if state.shape[-1] % state.blocksize == 0:
        # elsewhere 0.50.2 on a CPU is at odds with itself: blocks that run over row ends get another block's scale
        assert torch.equal(value, bitsandbytes.functional.dequantize_4bit(weight.data, state))
    return value


def write_bnb(out):
    expected, shape = {}, dict(hidden_size=64, intermediate_size=90)
    write_adapter(tiny(torch.float16, **shape), out / "adapter")
    for name, (dtype, options) in QUANTISED.items():
        tiny(dtype, **shape).save_pretrained(out / "source")
        model = transformers.AutoModelForCausalLM.from_pretrained(
            out / "source", dtype=dtype, device_map="cpu", quantization_config=transformers.BitsAndBytesConfig(**options))
        model.save_pretrained(out / name)
        (out / name / "generation_config.json").unlink()
        expected[name] = {f"{path}.weight": digest(dequantised(module)) for path, module in model.named_modules()
                          if isinstance(module, (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt))}
    for file in (out / "source").iterdir():
        file.unlink()
    (out / "source").rmdir()
    (out / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


torch.manual_seed(5)
write_torch(OUT / "torch")
write_bnb(OUT / "bnb")
