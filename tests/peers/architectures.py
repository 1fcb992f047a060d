"""GGUF files of every architecture, against llama.cpp's converter and quantiser: whole files, key by key, byte by byte.

    architectures.py QMOON --llama-bin BIN [--models DIR] [--seeds N] [--only TEXT] [--keep DIR]

transformers makes small random models from a config: several shapes for each architecture, rows that 256, 64 and 32
do not divide, one and several weight files, bf16, f16 and f32, tied and untied heads, configs in both styles. The
converter of the source tree that BIN was built from writes each as f32, f16, bf16 and q8_0, llama-quantize goes on
from there, and qmoon has to write the same files from the folder, and from the GGUF file, in one step each. Ends
with `N passed, N failed`.
"""

import argparse
import contextlib
import copy
import hashlib
import io
import json
import logging
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import sentencepiece
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file

from check import Differ, at_most, attempt, same, same_array, same_names

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
PROFILE = "llama.cpp-0c1e570"
CONVERTED = ["f32", "f16", "bf16", "q8_0"]
QUANTIZED = ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s",
             "q5_k_m", "q6_k", "iq4_nl", "iq4_xs", "mxfp4_moe"]
WEIGHTED = ["q4_0", "q4_k_m", "q6_k", "iq4_xs"]
FEW = ["q4_0", "q4_k_m", "q6_k", "iq4_xs"]

# GGUF files of these become folders again.
BACK = ["qwen2", "qwen3", "llama2", "llama3", "mistral", "mixtral", "gemma", "gemma2", "gemma3", "phi3", "phi4", "qwen2moe",
        "qwen3moe"]

# Guessed from names of folders and their parents by the converter, of the folder alone by us.
GUESSED = {"general.basename", "general.finetune", "general.version", "general.organization", "general.size_label"}


# Tokenizers ----------------------------------------------------------------------------------------


def corpus():
    root = FIXTURES.parent.parent
    text = "".join(path.read_text() for path in sorted([root / "README.md", *root.glob("docs/*.md")]))
    return [line for line in text.splitlines() if line.strip()]


def byte_level(folder, pre="qwen2"):
    """The small byte-level BPE of tests/fixtures, cut as Llama 3 does when asked to; 2048 tokens."""
    for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]:
        shutil.copyfile(FIXTURES / "tiny-qwen2" / name, folder / name)
    if pre == "llama-bpe":
        path = folder / "tokenizer.json"
        data = json.loads(path.read_text())
        split = data["pre_tokenizer"]["pretokenizers"][0]
        split["pattern"]["Regex"] = split["pattern"]["Regex"].replace(r"\p{N}|", r"\p{N}{1,3}|")
        data["model"]["ignore_merges"], data["normalizer"] = True, None
        bos = data["added_tokens"][0]
        special = {"id": bos["content"], "ids": [bos["id"]], "tokens": [bos["content"]]}
        data["post_processor"] = {"type": "Sequence", "processors": [
            {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
            {"type": "TemplateProcessing",
             "single": [{"SpecialToken": {"id": bos["content"], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
             "pair": [{"SpecialToken": {"id": bos["content"], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                      {"SpecialToken": {"id": bos["content"], "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}],
             "special_tokens": {bos["content"]: special}}]}
        path.write_text(json.dumps(data))
        (folder / "tokenizer_config.json").write_text(json.dumps(
            {"bos_token": bos["content"], "eos_token": bos["content"], "tokenizer_class": "PreTrainedTokenizerFast"}))
    return 2048


def sentence_pieces(folder, ids, config, size=500, symbols=("<tool>", "<2mass>", "<unused0>"), **more):
    """A SentencePiece model trained on this repository's pages, with every type of piece there is."""
    model = io.BytesIO()
    with contextlib.redirect_stderr(io.StringIO()):
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus()), model_writer=model, vocab_size=size, model_type="bpe", byte_fallback=True,
            character_coverage=0.98, user_defined_symbols=list(symbols), control_symbols=["<ctl>"],
            normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2, **ids, **more)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    return size


LLAMA_IDS = dict(unk_id=0, bos_id=1, eos_id=2, pad_id=-1)
GEMMA_IDS = dict(pad_id=0, eos_id=1, bos_id=2, unk_id=3, bos_piece="<bos>", eos_piece="<eos>")


def added(text, special):
    return {"content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
            "special": special}


def llama_pieces(folder):
    """Llama 2's: special tokens named again in tokenizer_config.json, a chat template."""
    size = sentence_pieces(folder, LLAMA_IDS, {
        "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
        "tokenizer_class": "LlamaTokenizer", "add_prefix_space": True, "legacy": False,
        "chat_template": "{{ messages }}",
        "added_tokens_decoder": {"0": added("<unk>", True), "1": added("<s>", True), "2": added("</s>", True),
                                 "501": added("▁two words", False)}})
    return size + 4


def plain_pieces(folder):
    """Mistral's first: nothing but tokenizer.model, and a token too many in added_tokens.json."""
    size = sentence_pieces(folder, LLAMA_IDS, {"bos_token": "<s>", "eos_token": {"__type": "AddedToken", "content": "</s>"},
                                               "unk_token": "<unk>", "tokenizer_class": "LlamaTokenizer"})
    (folder / "added_tokens.json").write_text(json.dumps({"<pad>": 498, "<beyond>": 5000}))
    return size


def gemma_pieces(folder):
    return sentence_pieces(folder, GEMMA_IDS, {
        "add_bos_token": True, "add_eos_token": False, "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>",
        "unk_token": "<unk>", "tokenizer_class": "GemmaTokenizer",
        "added_tokens_decoder": {"0": added("<pad>", True), "1": added("<eos>", True), "2": added("<bos>", True),
                                 "5": added("<tool>", False), "6": added("<2mass>", False),
                                 "7": added("<unused0>", False), "8": added("▁▁", False)}},
        symbols=("<tool>", "<2mass>", "<unused0>", "▁▁"), add_dummy_prefix=False)


def phi_pieces(folder):
    """Phi-3's: more tokens in tokenizer.json than in tokenizer.model, and more ids than both."""
    size = sentence_pieces(folder, LLAMA_IDS, {
        "add_bos_token": False, "add_eos_token": False, "bos_token": "<s>", "eos_token": "<|end|>",
        "pad_token": "<|end|>", "unk_token": "<unk>", "tokenizer_class": "LlamaTokenizer",
        "added_tokens_decoder": {"0": added("<unk>", True), "1": added("<s>", True), "2": added("</s>", False),
                                 "500": added("<|end|>", True)}})
    more = [{"id": i, **added(text, special)} for i, text, special in
            [(0, "<unk>", True), (1, "<s>", True), (2, "</s>", False), (500, "<|end|>", True), (501, "<|user|>", True),
             (502, "▁plain", False)]]
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": more, "model": {"type": "BPE"}}))
    return size + 12


def fast_pieces(folder):
    """Llama 2's tokenizer.json alone: BPE over characters, bytes for the rest."""
    bpe = tokenizers.models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    fast = tokenizers.Tokenizer(bpe)
    normalizers, decoders = tokenizers.normalizers, tokenizers.decoders
    fast.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    fast.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                      decoders.Strip(" ", 1, 0)])
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600, show_progress=False,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))])
    fast.train_from_iterator(corpus(), trainer)
    data = json.loads(fast.to_str())
    data["added_tokens"] = data["added_tokens"][:3]
    size = len(data["model"]["vocab"])
    data["added_tokens"].append({"id": size, **added("<tool>", False)})
    (folder / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False))
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": "LlamaTokenizer",
         "add_bos_token": True}))
    return size + 1


# Models --------------------------------------------------------------------------------------------

WIDE = dict(hidden_size=256, intermediate_size=384, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
NARROW = dict(hidden_size=96, intermediate_size=160, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=1)
UNEVEN = dict(hidden_size=72, intermediate_size=100, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2)
EIGHT = dict(num_local_experts=8, num_experts_per_tok=2)
FOUR = dict(num_local_experts=4, num_experts_per_tok=2)
QWEN_EIGHT = dict(num_experts=8, num_experts_per_tok=2, moe_intermediate_size=64)
QWEN_FIVE = dict(num_experts=5, num_experts_per_tok=2, moe_intermediate_size=96)
LLAMA3 = dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=256)
LONGROPE = dict(rope_type="longrope", rope_theta=10000.0, long_factor=[1.0 + i / 7 for i in range(24)],
                short_factor=[1.0 + i / 100 for i in range(24)])


class Shape:
    """One model: transformers' configuration class, its fields, and how it is stored."""

    def __init__(self, name, config, fields, tokenizer, dtype=torch.bfloat16, shard="5GB", style=5, edit=None):
        self.name, self.config, self.fields, self.tokenizer = name, config, fields, tokenizer
        self.dtype, self.shard, self.style, self.edit = dtype, shard, style, edit

    def write(self, folder, seed):
        torch.manual_seed(seed)
        folder.mkdir(parents=True)
        fields = dict(max_position_embeddings=1024, **self.fields)
        fields = {"vocab_size": self.tokenizer(folder), **fields}
        config = self.config(dtype=self.dtype, **fields)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.normal_(0.1 if "norm" in name else 0, 0.2 if weight.dim() == 1 else 0.03)
                if name.endswith(("down_proj.weight", "w2.weight")):
                    weight[1:4] = 0  # pruned: formats have their special cases there
        model.to(self.dtype).save_pretrained(folder, max_shard_size=self.shard)
        (folder / "generation_config.json").unlink(missing_ok=True)
        path = folder / "config.json"
        config = json.loads(path.read_text())
        if self.style == 4:
            older(config)
        if self.edit:
            self.edit(folder, config)
        path.write_text(json.dumps(config, indent=2))


def older(config):
    """config.json as transformers 4 wrote it."""
    rope = config.pop("rope_parameters")
    config["torch_dtype"] = config.pop("dtype")
    if "full_attention" in rope:
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    config["rope_theta"] = rope.pop("rope_theta")
    config.pop("layer_types", None)
    if rope.pop("rope_type", "default") != "default":
        raise ValueError("write rope scaling in transformers 5's style")


def unnamed_head(folder, config):
    """Gemma with an lm_head.weight in the file, as AWQ's tools leave it."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, path, metadata={"format": "pt"})


def extra_rows(folder, config):
    """Gemma 3 with more rows in the embedding than the vocabulary has tokens."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    rows = tensors["model.embed_tokens.weight"]
    tensors["model.embed_tokens.weight"] = torch.cat([rows, rows[:24]])
    save_file(tensors, path, metadata={"format": "pt"})


def inside(folder, config):
    """Gemma 3 inside the model that sees: other names, and an image encoder that is left out."""
    path = folder / "model.safetensors"
    tensors = {name.replace("model.", "language_model.model.", 1): tensor for name, tensor in load_file(path).items()}
    tensors["vision_tower.vision_model.embeddings.position_embedding.weight"] = torch.ones(4, 8)
    tensors["multi_modal_projector.mm_soft_emb_norm.weight"] = torch.ones(8)
    save_file(tensors, path, metadata={"format": "pt"})
    text = copy.deepcopy(config)
    config.clear()
    config.update(architectures=["Gemma3ForConditionalGeneration"], model_type="gemma3", text_config=text,
                  vision_config=dict(model_type="siglip_vision_model", hidden_size=8, num_hidden_layers=1,
                                     num_attention_heads=1, intermediate_size=8, image_size=16, patch_size=8))


def shapes():
    t = transformers
    rope = dict(rope_type="default", rope_theta=1000000.0)
    linear = dict(rope_type="linear", rope_theta=10000.0, factor=4.0)
    yarn = dict(rope_type="yarn", rope_theta=1000000.0, factor=4.0, original_max_position_embeddings=256)
    yield Shape("qwen2 wide", t.Qwen2Config, dict(WIDE, rope_parameters=rope), byte_level)
    yield Shape("qwen2 uneven", t.Qwen2Config, dict(UNEVEN, rope_parameters=yarn), byte_level, torch.float16)
    yield Shape("qwen3 wide", t.Qwen3Config, dict(WIDE, head_dim=32, tie_word_embeddings=True), byte_level)
    yield Shape("qwen3 narrow", t.Qwen3Config, dict(NARROW, head_dim=24, rope_parameters=yarn), byte_level, torch.float32)
    yield Shape("qwen3 uneven", t.Qwen3Config, dict(UNEVEN, head_dim=20, attention_bias=True, vocab_size=2060), byte_level,
                torch.float16, shard="100KB")
    yield Shape("llama2 wide", t.LlamaConfig, dict(WIDE), llama_pieces, style=4)
    yield Shape("llama2 narrow", t.LlamaConfig, dict(NARROW, rope_parameters=linear, tie_word_embeddings=True),
                plain_pieces, torch.float16)
    yield Shape("llama2 fast", t.LlamaConfig, dict(UNEVEN), fast_pieces)
    yield Shape("llama2 code", t.LlamaConfig, dict(UNEVEN, vocab_size=32016), code_pieces)
    yield Shape("llama3 wide", t.LlamaConfig, dict(WIDE, rope_parameters=LLAMA3), llama3_bytes)
    yield Shape("llama3 narrow", t.LlamaConfig, dict(NARROW, attention_bias=True, mlp_bias=True, head_dim=32,
                                                     rope_parameters=LLAMA3), llama3_bytes, shard="100KB")
    yield Shape("llama3 uneven", t.LlamaConfig, dict(UNEVEN, rope_parameters=dict(LLAMA3, factor=32.0)), llama3_bytes,
                torch.float32)
    yield Shape("mistral wide", t.MistralConfig, dict(WIDE, head_dim=32, sliding_window=None), plain_pieces)
    yield Shape("mistral uneven", t.MistralConfig, dict(UNEVEN, rope_parameters=rope), llama_pieces, torch.float16, style=4)
    yield Shape("mixtral wide", t.MixtralConfig, dict(WIDE, **EIGHT), plain_pieces, shard="300KB")
    yield Shape("mixtral narrow", t.MixtralConfig, dict(NARROW, **FOUR), llama_pieces, style=4)
    yield Shape("mixtral uneven", t.MixtralConfig, dict(UNEVEN, **FOUR), llama3_bytes, torch.float16)
    yield Shape("gemma wide", t.GemmaConfig, dict(WIDE, head_dim=64), gemma_pieces)
    yield Shape("gemma uneven", t.GemmaConfig, dict(UNEVEN, head_dim=24), gemma_pieces, torch.float16, style=4,
                edit=unnamed_head)
    yield Shape("gemma2 wide", t.Gemma2Config, dict(WIDE, head_dim=32, query_pre_attn_scalar=32), gemma_pieces,
                shard="300KB")
    yield Shape("gemma2 uneven", t.Gemma2Config, dict(UNEVEN, head_dim=20, query_pre_attn_scalar=20, sliding_window=128),
                gemma_pieces, torch.float32)
    yield Shape("gemma3 wide", t.Gemma3TextConfig, dict(WIDE, head_dim=32, query_pre_attn_scalar=32, sliding_window=512),
                gemma_pieces)
    yield Shape("gemma3 narrow", t.Gemma3TextConfig, dict(NARROW, head_dim=16, query_pre_attn_scalar=16), gemma_pieces, torch.float16, style=4,
                edit=extra_rows)
    yield Shape("gemma3 inside", t.Gemma3TextConfig, dict(UNEVEN, head_dim=36, query_pre_attn_scalar=36), gemma_pieces, edit=inside)
    yield Shape("phi3 wide", t.Phi3Config, dict(WIDE, pad_token_id=0), phi_pieces)
    yield Shape("phi3 long", t.Phi3Config, dict(NARROW, num_attention_heads=2, pad_token_id=0, rope_parameters=LONGROPE,
                                                original_max_position_embeddings=256), phi_pieces, torch.float16)
    yield Shape("phi4 partial", t.Phi3Config, dict(UNEVEN, pad_token_id=0, sliding_window=300, tie_word_embeddings=True,
                                                   rope_parameters=dict(rope_type="default", rope_theta=10000.0,
                                                                        partial_rotary_factor=0.5)), phi4_bytes)
    yield Shape("qwen2moe wide", t.Qwen2MoeConfig, dict(WIDE, shared_expert_intermediate_size=128, **QWEN_EIGHT), byte_level)
    yield Shape("qwen2moe uneven", t.Qwen2MoeConfig, dict(UNEVEN, shared_expert_intermediate_size=100, **QWEN_FIVE),
                byte_level, torch.float16, shard="200KB")
    yield Shape("qwen3moe wide", t.Qwen3MoeConfig, dict(WIDE, head_dim=32, norm_topk_prob=True, **QWEN_EIGHT), byte_level,
                shard="300KB")
    yield Shape("qwen3moe narrow", t.Qwen3MoeConfig, dict(NARROW, head_dim=16, norm_topk_prob=True, **QWEN_FIVE), byte_level,
                torch.float32)


def code_pieces(folder):
    llama_pieces(folder)
    return 32016


def llama3_bytes(folder):
    return byte_level(folder, "llama-bpe")


def phi4_bytes(folder):
    size = byte_level(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["tokenizer_class"] = "GPT2Tokenizer"
    path.write_text(json.dumps(config))
    return size


# Comparing -----------------------------------------------------------------------------------------


def read_gguf(path):
    """(metadata {key: value}, tensors {name: ReaderTensor}); the reader's own three header fields left out."""
    import gguf
    reader = gguf.GGUFReader(path)
    metadata = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    return metadata, {tensor.name: tensor for tensor in reader.tensors}


def importance(model, path, seed):
    """An importance matrix for every matrix of a GGUF file, as llama-imatrix would have measured it."""
    import gguf
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["none"])
    writer.add_uint32("imatrix.chunk_count", 3)
    writer.add_uint32("imatrix.chunk_size", 512)
    for tensor in sorted(read_gguf(model)[1].values(), key=lambda t: t.name):
        shape = dims(tensor)
        if len(shape) > 1:
            matrices = shape[2] if len(shape) > 2 else 1
            sums = random.chisquare(3, (matrices, shape[0])).astype(np.float32)
            writer.add_tensor(tensor.name + ".in_sum2", sums)
            writer.add_tensor(tensor.name + ".counts", random.integers(0, 900, (matrices, 1)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def dims(tensor):
    shape = tensor.shape.tolist()
    while len(shape) > 1 and shape[-1] == 1:
        shape.pop()
    return shape


def stack_experts(folder, out):
    """Names and shapes as the modules of transformers 5 have them: [experts, rows, columns], gate and up in one."""
    out.mkdir()
    tensors = {}
    for file in sorted(folder.iterdir()):
        if file.suffix == ".safetensors":
            tensors.update(load_file(file))
        elif file.name != "model.safetensors.index.json":
            shutil.copyfile(file, out / file.name)
    parts = {}
    for name in sorted(tensors):
        found = re.match(r"(.*)\.(?:block_sparse_moe|mlp)\.experts\.(\d+)\.(\w+)\.weight$", name)
        if found:
            layer, expert, what = found.groups()
            parts.setdefault((layer, {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}.get(what, what)), {})[
                int(expert)] = tensors.pop(name)
    stacks = {key: torch.stack([experts[i] for i in sorted(experts)]) for key, experts in parts.items()}
    for layer in {layer for layer, _ in stacks}:
        tensors[layer + ".mlp.experts.gate_up_proj"] = torch.cat(
            [stacks[layer, "gate_proj"], stacks[layer, "up_proj"]], dim=1)
        tensors[layer + ".mlp.experts.down_proj"] = stacks[layer, "down_proj"]
    tensors = {name.replace("block_sparse_moe", "mlp"): tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


TEXT = "To be, or not to be: 1234 words, naïve café, 日本語\n\n  two  spaces"


def same_model(ours, theirs, bound):
    """Two folders that transformers computes the same from, and cuts text the same with."""
    ids = torch.arange(3, 40).reshape(1, -1)
    logits = [transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits
              for folder in (ours, theirs)]
    at_most("logits apart", float((logits[0] - logits[1]).abs().max()), bound)
    if (theirs / "tokenizer.model").exists():
        pieces = [sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model")) for folder in (ours, theirs)]
        same("pieces", pieces[0].encode(TEXT), pieces[1].encode(TEXT))
    elif (ours / "tokenizer.json").exists():
        tokens = [transformers.AutoTokenizer.from_pretrained(folder)(TEXT)["input_ids"] for folder in (ours, theirs)]
        same("tokens", tokens[0], tokens[1])


class Case:
    def __init__(self, shape, seed, args, converter, work):
        self.shape, self.args, self.converter, self.seed = shape, args, converter, seed
        self.name = f"{shape.name}, seed {seed}"
        self.work = work / f"{shape.name.replace(' ', '-')}-{seed}"
        self.folder = self.work / "model"

    def between(self):
        return {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32"}[self.shape.dtype]

    def run(self, *command):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, errors="replace")
        if done.returncode != 0:
            raise Differ(f"{' '.join(map(str, command))}\nended with {done.returncode}: "
                         f"{(done.stderr or done.stdout).strip()[-1500:]}")

    def quantize(self, source, out, kind, *flags):
        self.run(self.args.qmoon.resolve(), "quantize", source, out, "--type", kind, "--profile", PROFILE, "--name", "x",
                 "--force", *flags)

    def same(self, ours, theirs):
        """A note on how alike the files are.  The quantiser drops ones at the end of a shape, the converter keeps them;
        q8_0 is for both to write, and we write what the quantiser does."""
        (a, s), (b, t) = read_gguf(ours), read_gguf(theirs)
        same_names(f"{ours.name}: keys", set(a) - GUESSED, set(b) - GUESSED)
        for key in b:
            if key not in GUESSED:
                same(f"{ours.name}: {key}", a[key], b[key])
        same_names(f"{ours.name}: tensors", s, t)
        for name, tensor in t.items():
            same(f"{ours.name}: {name}: type", s[name].tensor_type.name, tensor.tensor_type.name)
            same(f"{ours.name}: {name}: shape", dims(s[name]), dims(tensor))
            same_array(f"{ours.name}: {name}", np.frombuffer(s[name].data.tobytes(), "u1"),
                       np.frombuffer(tensor.data.tobytes(), "u1"))
        shared = [key for key in a if key in b]
        order = shared == [key for key in b if key in a], list(s) == list(t)
        if ours.read_bytes() == theirs.read_bytes():
            return "whole file"
        moved = [what for what, kept in zip(("keys", "tensors"), order) if not kept]
        return " and ".join(moved) + " in another order" if moved else "equal"


def checks(case, few):
    """(title, function) of everything that is compared."""
    def convert(kind):
        theirs, ours = case.work / f"theirs-{kind}.gguf", case.work / f"ours-{kind}.gguf"
        case.converter(case.folder, theirs, kind)
        case.quantize(case.folder, ours, kind)
        return case.same(ours, theirs)

    def requantize(kind, *flags):
        """llama-quantize's file, from the GGUF file and from the folder at once."""
        source, theirs = case.work / f"theirs-{case.between()}.gguf", case.work / "theirs.gguf"
        case.run(case.args.llama_bin.resolve() / "llama-quantize", *flags, source, theirs, kind.upper(), "2")
        notes = []
        for origin in (source, case.folder):
            ours = case.work / f"ours-from-{origin.name.split('.')[0]}.gguf"
            case.quantize(origin, ours, kind, *flags)
            notes.append(case.same(ours, theirs))
        return ", ".join(notes)

    def decoded(kind):
        """Every tensor of our file as F32 has the values that the gguf package decodes it to."""
        import gguf
        ours, plain = case.work / "ours-decoded.gguf", case.work / "plain.gguf"
        case.quantize(case.folder, ours, kind)
        case.quantize(ours, plain, "f32", "--allow-requantize")
        tensors, n = read_gguf(plain)[1], 0
        for name, tensor in read_gguf(ours)[1].items():
            if tensors[name].tensor_type.name != "F32":
                continue
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(-1)
            same_array(f"{kind}: {name}", tensors[name].data.reshape(-1).view("u4"), values.view("u4"))
            n += tensor.tensor_type.name != "F32"
        return f"{n} tensors"

    def parts(kind):
        """llama-quantize --keep-split, part by part."""
        source, stem = case.work / f"theirs-{case.between()}.gguf", case.work / "part"
        largest = max(tensor.n_bytes for tensor in read_gguf(source)[1].values())
        case.run(case.args.qmoon.resolve(), "gguf", "split", source, "--max-size", str(2 * largest), "--out", stem, "--force")
        first = min(case.work.glob("part-00001-of-*.gguf"))
        case.run(case.args.llama_bin.resolve() / "llama-quantize", "--keep-split", first, case.work / "theirs.gguf", kind.upper(), "2")
        case.quantize(first, case.work / "ours.gguf", kind, "--keep-split")
        theirs, ours = (sorted(case.work.glob(f"{who}-0*.gguf")) for who in ("theirs", "ours"))
        same("parts", [path.name[4:] for path in ours], [path.name[6:] for path in theirs])
        for a, b in zip(ours, theirs):
            if a.read_bytes() != b.read_bytes():
                raise Differ(f"{a.name} differs")
        return f"{len(ours)} parts"

    def weighted(kind):
        """The same with an importance matrix that has its own weights for every expert."""
        path = case.work / "imatrix.gguf"
        if not path.exists():
            importance(case.work / "theirs-f32.gguf", path, case.seed)
        return requantize(kind, "--imatrix", path)

    def back(_):
        """GGUF -> folder -> GGUF is the file it came from, and transformers computes the same from that folder."""
        ours, folder, again = (case.work / n for n in ("ours-f32.gguf", "back", "again.gguf"))
        case.run(case.args.qmoon.resolve(), "quantize", ours, folder, "--type", "f32", "--force")
        case.quantize(folder, again, "f32")
        rounded = case.shape.name.startswith("gemma") and case.shape.dtype == torch.float16  # f16 norms plus one
        if case.shape.edit not in (extra_rows, inside):  # transformers cannot load those, or has another class for them
            same_model(folder, case.folder, 1e-3 if rounded else 1e-5)
        return case.same(again, ours)

    def fused(_):
        """The same model with its experts in stacks, as transformers 5 may save it, gives the same file."""
        stacks, ours = case.work / "stacks", case.work / "ours-stacks.gguf"
        stack_experts(case.folder, stacks)
        case.quantize(stacks, ours, "f32")
        return case.same(ours, case.work / "ours-f32.gguf")

    for kind in CONVERTED:
        yield f"convert {kind}", lambda c, k=kind: convert(k)
    if case.shape.name.startswith(("mixtral", "qwen2moe", "qwen3moe")):
        yield "the same file from stacks of experts", fused
    if case.shape.name.split()[0] in BACK:
        yield "back to a folder, and the same file from that", back
    for kind in FEW if few else QUANTIZED:
        yield f"llama-quantize {kind}", lambda c, k=kind: requantize(k)
    for kind in ["q4_0"] if few else QUANTIZED:
        yield f"gguf decodes {kind}", lambda c, k=kind: decoded(k)
    yield "llama-quantize --keep-split q4_k_m", lambda c: parts("q4_k_m")
    for kind in [] if few else WEIGHTED:
        yield f"llama-quantize --imatrix {kind}", lambda c, k=kind: weighted(k)


# The golden files -----------------------------------------------------------------------------------


def golden(args, work):
    """(title, function): small-mixtral as the tools of November 2025 wrote it, every type."""
    want = json.loads((FIXTURES / "golden" / "mixtral-gguf.json").read_text())

    def check(kind):
        out = work / f"golden-{kind}.gguf"
        subprocess.run([args.qmoon.resolve(), "quantize", args.models / "small-mixtral", out, "--type", kind.lower(),
                        "--force"], check=True, capture_output=True)
        metadata, tensors = read_gguf(out)
        same_names("tensors", tensors, want["tensors"][kind])
        for name, (type_name, shape, digest) in want["tensors"][kind].items():
            same(name, [tensors[name].tensor_type.name, tensors[name].shape.tolist(),
                        hashlib.sha256(tensors[name].data.tobytes()).hexdigest()], [type_name, shape, digest])
        if want["file_type"][kind] is not None:
            same("general.file_type", metadata["general.file_type"], want["file_type"][kind])
        if kind == "bf16":
            same("order", list(tensors), want["order"])
            for key, value in want["metadata"].items():
                if key != "general.name":  # made from a temporary folder's name
                    same(key, summary(metadata[key], value), value["value"])
        out.unlink()

    for kind in want["tensors"]:
        yield f"golden mixtral {kind}", lambda _, k=kind: check(k)


def summary(value, like):
    if not isinstance(like["value"], dict):
        return value
    text = json.dumps(value, ensure_ascii=False)
    return {"n": len(value), "sha256_of_json": hashlib.sha256(text.encode()).hexdigest(), "first": value[:4]}


# The converter -------------------------------------------------------------------------------------


def converter_of(tree):
    """convert_hf_to_gguf.py of a source tree, as a function; the pre-tokenizer is given by hand, as in convert.py.

    The tree has a gguf package of its own, which must be the one that is imported.
    """
    sys.path[:0] = [str(tree), str(tree / "gguf-py")]
    import convert_hf_to_gguf
    from conversion import base

    def convert(folder, out, kind):
        text = (folder / "tokenizer.json").read_text() if (folder / "tokenizer.json").exists() else ""
        pre = "llama-bpe" if "{1,3}" in text else "qwen2"
        base.TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
        arguments, sys.argv = sys.argv, ["convert_hf_to_gguf.py", str(folder), "--outfile", str(out), "--outtype", kind,
                                         "--model-name", "x"]
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                convert_hf_to_gguf.main()
        except SystemExit as ended:
            raise Differ(f"the converter gave up on {folder}") from ended
        finally:
            sys.argv = arguments

    return convert


def tree_of(llama_bin):
    cache = (llama_bin.parent / "CMakeCache.txt").read_text()
    return Path(re.search(r"^CMAKE_HOME_DIRECTORY:INTERNAL=(.*)$", cache, re.M).group(1))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("qmoon", type=Path)
    parser.add_argument("--llama-bin", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--models", type=Path, help="a folder with small-mixtral, compared with tests/fixtures/golden")
    parser.add_argument("--keep", type=Path, help="keep the files in this folder")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    torch.set_num_threads(2)
    convert = converter_of(tree_of(args.llama_bin.resolve()))

    outcome = []
    with tempfile.TemporaryDirectory(prefix="qmoon-arch-") as scratch:
        for title, function in golden(args, Path(scratch)) if args.models and (args.models / "small-mixtral").exists() else ():
            if args.only in title:
                outcome.append(attempt(function, None, title))
        for seed in range(1, args.seeds + 1):
            for shape in shapes():
                case = Case(shape, seed, args, convert, args.keep or Path(scratch))
                if args.only not in case.name:
                    continue
                shutil.rmtree(case.work, ignore_errors=True)
                made = attempt(lambda c: c.shape.write(c.folder, c.seed), case, f"{case.name}: made")
                outcome.append(made)
                for title, function in checks(case, "wide" not in shape.name) if made == "ok" else ():
                    outcome.append(attempt(function, case, f"{case.name}: {title}"))
                if not args.keep:
                    shutil.rmtree(case.work, ignore_errors=True)
    print(f"{outcome.count('ok')} passed, {outcome.count('FAIL')} failed")
    return 0 if "FAIL" not in outcome else 1


if __name__ == "__main__":
    sys.exit(main())
