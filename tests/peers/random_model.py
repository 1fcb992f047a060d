"""A Qwen2 checkpoint with random weights and a LoRA adapter for it, written by transformers and peft themselves.

The weights mean nothing; shapes, file layout and number formats are those of real checkpoints, which is what
speed and byte equality depend on.  The tokenizer is a small real one, copied; a vocabulary larger than it is
padded by every converter in the same way.
"""

import shutil
from pathlib import Path

import peft
import torch
import transformers

# Qwen2.5's published shapes.
SIZES = {
    "0.5b": dict(hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
                 num_key_value_heads=2, vocab_size=151936, tie_word_embeddings=True),
    "1.5b": dict(hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12,
                 num_key_value_heads=2, vocab_size=151936, tie_word_embeddings=True),
    "7b": dict(hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
               num_key_value_heads=4, vocab_size=152064, tie_word_embeddings=False),
}

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PRUNED = slice(1, 4)  # rows of down_proj that are zero, after the merge too
TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "vocab.json", "merges.txt"]


def write(base, adapter, shape, tokenizer, seed=1, rank=16):
    """Write a bf16 checkpoint to `base` and an fp32 adapter on all linears to `adapter`."""
    torch.manual_seed(seed)
    config = transformers.Qwen2Config(
        max_position_embeddings=1024, rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        bos_token_id=2045, eos_token_id=2045, dtype="bfloat16", **shape)
    model = transformers.Qwen2ForCausalLM(config).to(torch.bfloat16)
    _roughen(model)
    model.save_pretrained(base)
    for name in TOKENIZER_FILES:
        if (Path(tokenizer) / name).exists():
            shutil.copyfile(Path(tokenizer) / name, Path(base) / name)

    lora = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LINEARS, task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(model, lora)
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name:  # peft starts B at zero, which would make the merge a copy
                weight.normal_(0, 0.02)
            if "down_proj.lora_B" in name:
                weight[PRUNED] = 0
    wrapped.save_pretrained(adapter)


def _roughen(model):
    """transformers starts biases at 0 and norms at 1; trained ones are neither.  Some rows are pruned: blocks of
    nothing but zeros are where formats have their special cases."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(".bias"):
                weight.normal_(0, 0.1)
            elif "norm" in name:
                weight.normal_(1, 0.2)
            elif "down_proj" in name:
                weight[PRUNED] = 0
