"""qmoon's tokenizers against the packages that define them: tokenizers, sentencepiece; transformers if it is there.

    tokenizer_fuzz.py QMOON [--cases N] [--seed S] [--only TEXT] [--models DIR...] [--llama-models DIR]

Trains small tokenizers of every kind on the spot, and compares ids and decoded text on a corpus of random Unicode,
emoji, marks, blanks, code, CJK, control characters, bytes that are no UTF-8, special tokens and very long words.
--llama-models is the folder models/ of llama.cpp's source: vocabularies of real models with the ids that their own
tokenizers give, and the chat templates of models, which are rendered by transformers for comparison.
Ends with `N passed, N failed`.
"""

import argparse
import importlib.util
import json
import random
import subprocess
import sys
import tempfile
import traceback
import unicodedata
from pathlib import Path

import sentencepiece
import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

# Texts -------------------------------------------------------------------------------------------------

ZWJ, VS16 = "\u200d", "\ufe0f"
EMOJI = ["😀", "👍🏽", "👨" + ZWJ + "👩" + ZWJ + "👧", "🇩🇪", "❤" + VS16, "1\ufe0f\u20e3", "🏴\U000e0067\U000e0062"]
BLANKS = [" ", "  ", "\t", "\n", "\r\n", "\n\n", "\u00a0", "\u2003", "\u3000", "\u200b", "\u2028", "\u0085", "\u180e", "\x0b",
          "\x0c", "\x1c", "   \n  ", "\ufeff"]
SCRIPTS = [(0x20, 0x7e), (0xa1, 0x17f), (0x300, 0x36f), (0x370, 0x3ff), (0x400, 0x4ff), (0x5d0, 0x5ea), (0x620, 0x64a),
           (0x900, 0x97f), (0xe01, 0xe3a), (0x1100, 0x11ff), (0x1e00, 0x1eff), (0x2000, 0x206f), (0x20a0, 0x20bf), (0x2150, 0x218b),
           (0x2460, 0x24ff), (0x3041, 0x30ff), (0x3400, 0x4dbf), (0x4e00, 0x9fff), (0xac00, 0xd7a3), (0xf900, 0xfaff),
           (0xfb00, 0xfb4f), (0xff01, 0xffee), (0x1d400, 0x1d7ff), (0x1f300, 0x1f64f), (0x20000, 0x2a6df)]
WORDS = ("the of and to Hello world don't I'LL we've it's THEY'RE o'clock can't x's 'tis naïve café Straße Ångström ﬁne ½ Ⅻ "
         "№ ™ ﷺ 1234567 3.14159 1,000,000 snake_case camelCase HTTPServer foo.bar() a->b == != <= // /* */ {} [] \\n \\u00e9 $100 "
         "user@example.com https://example.org/a?b=c#d --flag -1 +2 * ** __init__ def return lambda 中文 日本語 한국어 русский "
         "Ελληνικά עברית العربية हिन्दी ไทย ſ K Å İ ı ŉ ǆ ß ẞ").split()
SPECIALS = ["<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<pad>", "<mask>", "[INST]", "<0x0A>", "<|end", "|>", "▁", "▁▁",
            "<a>", "<b>", "new york", "TOK", "Tok"]


def assigned(c):
    """Characters that every Unicode version in play knows, so that none of them is asked about news."""
    return unicodedata.category(c) not in ("Cn", "Cs") and unicodedata.ucd_3_2_0.category(c) != "Cn"


def random_character(rng):
    while True:
        low, high = rng.choice(SCRIPTS)
        c = chr(rng.randint(low, high))
        if assigned(c):
            return c


def random_text(rng, specials=True):
    parts = []
    for _ in range(rng.randint(1, 12)):
        kind = rng.randrange(13)
        if kind < 4:
            parts.append(rng.choice(WORDS))
        elif kind == 4:
            parts.append(rng.choice(BLANKS) * rng.choice([1, 1, 1, 2, 3, 7]))
        elif kind == 5:
            parts.append(rng.choice(EMOJI))
        elif kind == 6:
            parts.append("".join(random_character(rng) for _ in range(rng.randint(1, 8))))
        elif kind == 7:
            parts.append(chr(rng.choice([0, 1, 7, 8, 27, 31, 127, 0x80, 0x9f, 0xad, 0xfffd, 0xffff, 0x10ffff])))
        elif kind == 8 and specials:
            parts.append(rng.choice(SPECIALS))
        elif kind == 9:
            parts.append("e" + "".join(chr(rng.randint(0x300, 0x34e)) for _ in range(rng.randint(1, 6))))
        elif kind == 10:
            parts.append("".join(rng.choice("abcdeAB ") for _ in range(rng.randint(1, 30))))
        elif kind == 11:
            parts.append(rng.choice(["a", "ab", "é", "中", "=", " ", "the", "1", "\n"]) * rng.randint(2, 60))
        else:
            parts.append(rng.choice([" ", " ", " ", "\n", ""]) + rng.choice(WORDS))
    return "".join(parts)


def corpus(seed, n, specials=True):
    rng = random.Random(seed)
    fixed = ["", " ", "  ", "\n", " a", "a ", "  a  b  ", "\t\ta", "é", "e\u0301", "<s>", " <s> a", "<s>a</s>", "a" * 3000,
             "ab " * 500, " " * 500, "=" * 777, "1" * 1000, "é" * 500, "\u0301" * 50, "日本" * 300, "\n" * 99 + "x"]
    return fixed + [random_text(rng, specials) for _ in range(n)]


def training_text():
    """Prose and code of this project, and words of other scripts."""
    lines = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "lua/qmoon").glob("*.lua"))]:
        lines += path.read_text(encoding="utf-8").splitlines()
    rng = random.Random(1)
    lines += [" ".join(rng.choice(WORDS) for _ in range(12)) for _ in range(400)]
    return lines


# Asking qmoon -------------------------------------------------------------------------------------------


class Differ(Exception):
    pass


def ask(qmoon, folder, questions, work):
    path = work / "questions.json"
    path.write_text(json.dumps(questions))
    done = subprocess.run([qmoon, str(HERE / "encode.lua"), str(folder), str(path)], capture_output=True, text=True)
    if done.returncode != 0 or not done.stdout.strip():
        raise Differ(f"qmoon ended with {done.returncode}: {done.stderr[-500:]}")
    answers = json.loads(done.stdout)
    if isinstance(answers, dict) and "error" in answers:
        raise Differ(f"qmoon refuses it: {answers['error']}")
    return answers


def hexed(text):
    return (text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")).hex()


def compare(qmoon, folder, work, texts, encode, decode=None, options=None):
    """encode(text) -> ids, decode(ids, skip) -> text of the reference."""
    expected = [encode(text) for text in texts]
    questions = [{"text": hexed(text), **(options or {})} for text in texts]
    answers = ask(qmoon, folder, questions, work)
    wrong = [i for i, (ours, theirs) in enumerate(zip(answers, expected)) if ours != theirs]
    if wrong:
        i = min(wrong, key=lambda k: len(texts[k]))
        raise Differ(f"{len(wrong)} of {len(texts)} texts differ; {texts[i]!r}:\nours     {answers[i]}\nexpected {expected[i]}")
    if decode:
        rng = random.Random(7)
        lists = [ids for ids in expected if ids]
        most = max((max(ids) for ids in lists), default=1)
        lists += [[rng.randint(0, most) for _ in range(rng.randint(1, 12))] for _ in range(len(lists) // 2)]
        for skip in (False, True):
            texts_back = [decode(ids, skip) for ids in lists]
            answers = ask(qmoon, folder, [{"ids": ids, "skip": skip} for ids in lists], work)
            for ids, ours, theirs in zip(lists, answers, texts_back):
                if ours != hexed(theirs):
                    raise Differ(f"decode({ids}, skip={skip}):\nours     {bytes.fromhex(ours)!r}\n"
                                 f"expected {theirs.encode()!r}")
        whole = [decode(ids, False) for ids in lists]
        answers = ask(qmoon, folder, [{"stream": ids} for ids in lists], work)
        for ids, ours, theirs in zip(lists, answers, whole):
            if ours != hexed(theirs):
                raise Differ(f"stream({ids}):\nours     {bytes.fromhex(ours)!r}\nexpected {theirs.encode()!r}")
    return f"{len(texts)} texts"


# tokenizers -----------------------------------------------------------------------------------------------

QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
GPT4O = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
         r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
         r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
KIMI = (r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
BAILING = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+")
DEEPSEEK = [r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
            r"\s*[\r\n]+|\s+(?!\S)|\s+"]


def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(pattern), behavior=behavior, invert=invert)


def bytes_only(prefix=False):
    return pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False)


def sequence(*steps):
    return pre_tokenizers.Sequence(list(steps))


def bpe(lines, pre=None, normalizer=None, decoder=None, added=(), post=None, alphabet=True, size=600, **options):
    trained = Tokenizer(models.BPE(**{k: v for k, v in options.items() if k not in ("byte_fallback", "ignore_merges", "fuse_unk")}))
    if normalizer:
        trained.normalizer = normalizer
    if pre:
        trained.pre_tokenizer = pre
    special = ["<unk>", "<s>", "</s>"] + ([f"<0x{b:02X}>" for b in range(256)] if options.get("byte_fallback") else [])
    trained.train_from_iterator(lines, trainers.BpeTrainer(
        vocab_size=size + len(special), special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if alphabet else [],
        **({"continuing_subword_prefix": options["continuing_subword_prefix"]} if "continuing_subword_prefix" in options else {}),
        **({"end_of_word_suffix": options["end_of_word_suffix"]} if "end_of_word_suffix" in options else {})))
    spec = json.loads(trained.to_str())
    for key in ("byte_fallback", "ignore_merges", "fuse_unk"):
        if key in options:
            spec["model"][key] = options[key]
    if options.get("byte_fallback"):
        spec["added_tokens"] = spec["added_tokens"][:3]
    made = Tokenizer.from_str(json.dumps(spec))
    made.decoder = decoder or decoders.ByteLevel()
    if post:
        made.post_processor = post
    if added:
        made.add_tokens(list(added))
    made.add_special_tokens(["<|im_start|>", AddedToken("<|im_end|>", special=True, normalized=False)])
    return made


def unigram(lines, pre, normalizer=None, byte_fallback=False, decoder=None, size=700):
    made = Tokenizer(models.Unigram())
    if normalizer:
        made.normalizer = normalizer
    made.pre_tokenizer = pre
    special = ["<unk>", "<s>", "</s>"] + ([f"<0x{b:02X}>" for b in range(256)] if byte_fallback else [])
    made.train_from_iterator(lines, trainers.UnigramTrainer(vocab_size=size + len(special), special_tokens=special,
                                                            unk_token="<unk>", show_progress=False))
    spec = json.loads(made.to_str())
    spec["model"]["byte_fallback"] = byte_fallback
    if byte_fallback:
        spec["added_tokens"] = spec["added_tokens"][:3]
    made = Tokenizer.from_str(json.dumps(spec))
    made.decoder = decoder or decoders.Metaspace()
    made.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return made


LLAMA_DECODER = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                   decoders.Strip(" ", 1, 0)])
FLAGS = [AddedToken("<a>", lstrip=True), AddedToken("<b>", rstrip=True), AddedToken("TOK", single_word=True),
         AddedToken("new york", normalized=True), AddedToken("é", normalized=True), AddedToken("<mask>", lstrip=True, rstrip=True),
         AddedToken("<a>b"), AddedToken("\n\n\n")]


def hugging_face(lines):
    """name -> a function that makes a Tokenizer."""
    byte_level = pre_tokenizers.ByteLevel
    made = {
        "gpt-2": lambda: bpe(lines, byte_level(add_prefix_space=False)),
        "gpt-2 with a blank in front": lambda: bpe(lines, byte_level(add_prefix_space=True)),
        "qwen2": lambda: bpe(lines, sequence(split(QWEN2), bytes_only()), normalizers.NFC()),
        "llama 3": lambda: bpe(lines, sequence(split(LLAMA3), bytes_only()), ignore_merges=True,
                               post=processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])),
        "gpt-4o": lambda: bpe(lines, sequence(split(GPT4O), bytes_only())),
        "intersection of classes": lambda: bpe(lines, sequence(split(KIMI), bytes_only())),
        "possessive": lambda: bpe(lines, sequence(split(BAILING), bytes_only())),
        "deepseek": lambda: bpe(lines, sequence(*map(split, DEEPSEEK), bytes_only())),
        "removed and inverted": lambda: bpe(lines, sequence(split(QWEN2, "removed", True), bytes_only())),
        "digits": lambda: bpe(lines, sequence(pre_tokenizers.Digits(individual_digits=True), byte_level(add_prefix_space=False))),
        "digits together": lambda: bpe(lines, sequence(pre_tokenizers.Digits(individual_digits=False), bytes_only())),
        "punctuation": lambda: bpe(lines, sequence(pre_tokenizers.Punctuation(behavior="contiguous"), bytes_only())),
        "whitespace": lambda: bpe(lines, pre_tokenizers.Whitespace(), alphabet=False, decoder=decoders.Fuse()),
        "whitespace split": lambda: bpe(lines, sequence(pre_tokenizers.WhitespaceSplit(), bytes_only())),
        "bert": lambda: bpe(lines, sequence(pre_tokenizers.BertPreTokenizer(), bytes_only(True))),
        "delimiter": lambda: bpe(lines, sequence(pre_tokenizers.CharDelimiterSplit("="), bytes_only())),
        "added tokens": lambda: bpe(lines, sequence(split(QWEN2), bytes_only()), normalizers.NFC(), added=FLAGS),
        "added tokens, lower case": lambda: bpe(lines, sequence(split(QWEN2), bytes_only()),
                                                normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]), added=FLAGS),
        "marks stripped": lambda: bpe(lines, byte_level(add_prefix_space=False), normalizers.Sequence(
            [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Replace(Regex(" {2,}"), " ")])),
        "nfd": lambda: bpe(lines, byte_level(), normalizers.NFD(), added=FLAGS),
        "strip": lambda: bpe(lines, byte_level(add_prefix_space=False), normalizers.Strip()),
        "llama 2": lambda: bpe(lines, None, normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
                               LLAMA_DECODER, alphabet=False, size=900, unk_token="<unk>", fuse_unk=True, byte_fallback=True,
                               added=FLAGS),
        "mistral": lambda: bpe(lines, pre_tokenizers.Metaspace(prepend_scheme="first", split=False), None, LLAMA_DECODER,
                               alphabet=False, size=900, unk_token="<unk>", fuse_unk=True, byte_fallback=True),
        "gemma": lambda: bpe(lines, pre_tokenizers.Split(" ", "merged_with_previous"), normalizers.Replace(" ", "▁"),
                             decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
                             alphabet=False, size=900, unk_token="<unk>", fuse_unk=True, byte_fallback=True),
        "unknown, one each": lambda: bpe(lines[:200], pre_tokenizers.Whitespace(), alphabet=False, unk_token="<unk>",
                                         decoder=decoders.Fuse()),
        "unknown, fused": lambda: bpe(lines[:200], pre_tokenizers.Whitespace(), alphabet=False, unk_token="<unk>", fuse_unk=True,
                                      decoder=decoders.Fuse()),
        "suffix": lambda: bpe(lines, pre_tokenizers.Whitespace(), normalizers.Lowercase(), decoders.BPEDecoder("</w>"),
                              alphabet=False, unk_token="<unk>", end_of_word_suffix="</w>"),
        "prefix": lambda: bpe(lines, pre_tokenizers.Whitespace(), alphabet=False, unk_token="<unk>",
                              continuing_subword_prefix="##", decoder=decoders.Fuse()),
        "no decoder": lambda: without_decoder(bpe(lines, byte_level(add_prefix_space=False))),
        "unigram": lambda: unigram(lines, pre_tokenizers.Metaspace()),
        "unigram, bytes": lambda: unigram(lines, pre_tokenizers.Metaspace(prepend_scheme="first"), byte_fallback=True,
                                          decoder=LLAMA_DECODER),
        "unigram, never": lambda: unigram(lines, pre_tokenizers.Metaspace(prepend_scheme="never", split=False), normalizers.NFKC()),
        "unigram in words": lambda: unigram(lines, sequence(pre_tokenizers.WhitespaceSplit(),
                                                            pre_tokenizers.Metaspace(prepend_scheme="first"))),
    }
    for behavior in ("removed", "isolated", "contiguous", "merged_with_previous", "merged_with_next"):
        for invert in (False, True):
            for name, pattern in (("blanks", Regex(r"\s")), ("a", "a"), ("maybe empty", Regex(r"[0-9]*"))):
                made[f"split at {name}, {behavior}{', inverted' if invert else ''}"] = lambda p=pattern, b=behavior, i=invert: bpe(
                    lines, sequence(pre_tokenizers.Split(p, b, invert=i), bytes_only()), size=300)
    return made


def without_decoder(made):
    spec = json.loads(made.to_str())
    spec["decoder"] = None
    return Tokenizer.from_str(json.dumps(spec))


def check_hugging_face(qmoon, make, folder, work, texts):
    tokenizer = make()
    tokenizer.save(str(folder / "tokenizer.json"))
    return compare(qmoon, folder, work, texts, lambda text: tokenizer.encode(text).ids,
                   lambda ids, skip: tokenizer.decode(ids, skip_special_tokens=skip))


def check_special_as_text(qmoon, make, folder, work, texts):
    tokenizer = make()
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    return compare(qmoon, folder, work, texts, lambda text: tokenizer.encode(text).ids, None, {"special": False})


# sentencepiece ----------------------------------------------------------------------------------------------


def piece_models():
    """name -> options of the trainer."""
    base = {"vocab_size": 900, "hard_vocab_limit": False, "character_coverage": 0.99, "minloglevel": 2}
    bytes_too = {**base, "byte_fallback": True, "vocab_size": 1100}
    llama = {**bytes_too, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    return {
        "bpe, as llama": {**llama, "model_type": "bpe", "allow_whitespace_only_pieces": True, "split_digits": True},
        "bpe": {**base, "model_type": "bpe"},
        "bpe, no prefix": {**llama, "model_type": "bpe", "add_dummy_prefix": False},
        "bpe, user defined": {**llama, "model_type": "bpe", "user_defined_symbols": ["<a>", "new york", "TOK", "  ", "é"]},
        "bpe, across words": {**base, "model_type": "bpe", "split_by_whitespace": False, "max_sentencepiece_length": 24},
        "bpe, suffix": {**base, "model_type": "bpe", "treat_whitespace_as_suffix": True},
        "unigram": {**base, "model_type": "unigram"},
        "unigram, bytes": {**bytes_too, "model_type": "unigram", "normalization_rule_name": "identity"},
        "unigram, as t5": {**base, "model_type": "unigram", "normalization_rule_name": "nmt_nfkc", "pad_id": 0, "eos_id": 1,
                           "unk_id": 2, "bos_id": -1},
        "unigram, folded": {**base, "model_type": "unigram", "normalization_rule_name": "nfkc_cf"},
        "unigram, user defined": {**base, "model_type": "unigram", "user_defined_symbols": ["<a>", "new york", "TOK", "é"]},
        "unigram, blanks kept": {**bytes_too, "model_type": "unigram", "remove_extra_whitespaces": False,
                                 "allow_whitespace_only_pieces": True},
        "unigram, suffix": {**base, "model_type": "unigram", "treat_whitespace_as_suffix": True},
    }


def check_pieces(qmoon, options, folder, work, texts, lines):
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_prefix=str(folder / "tokenizer"), **options)
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return compare(qmoon, folder, work, texts, lambda text: model.encode(text), None, {"special": False, "bos": False})


# Bytes that are no UTF-8 ---------------------------------------------------------------------------------------


def check_broken_bytes(qmoon, make, folder, work, seed):
    tokenizer = make()
    tokenizer.save(str(folder / "tokenizer.json"))
    rng = random.Random(seed)
    texts = []
    for _ in range(400):
        text = bytearray(random_text(rng).encode())
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(len(text) + 1)
            if rng.random() < 0.5:
                text[at:at] = bytes(rng.randrange(128, 256) for _ in range(rng.randint(1, 4)))
            else:
                del text[at:at + rng.randint(1, 3)]
        texts.append(bytes(text))
    return compare(qmoon, folder, work, texts, lambda text: tokenizer.encode(text.decode("utf-8", "replace")).ids)


# transformers ------------------------------------------------------------------------------------------------


def check_model(qmoon, model, work, texts):
    """A model's folder through AutoTokenizer."""
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(model)
    return compare(qmoon, model, work, texts, lambda text: tokenizer(text).input_ids,
                   lambda ids, skip: tokenizer.decode(ids, skip_special_tokens=skip))


# llama.cpp's collections ----------------------------------------------------------------------------------------

# Kinds of vocabulary and names of pre-tokenizers that qmoon refuses by name.
REFUSED = {"bert-bge", "nomic-bert-moe", "gemma-4", "deepseek-llm", "falcon", "mpt"}
# Of decomposed characters, its file has the ids that llama.cpp gives, which does not compose them.
NOT_COMPOSED = {"qwen35"}


def check_vocabulary(qmoon, path, work):
    """Every text of NAME.inp against the ids of NAME.out, which the model's own tokenizer gave."""
    texts = Path(f"{path}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    expected = [[int(n) for n in line.split()] for line in Path(f"{path}.out").read_text().split("\n")][:len(texts)]
    answers = ask(qmoon, path, [{"text": hexed(text), "bos": False, "special": False} for text in texts], work)
    compared = 0
    for text, ours, theirs in zip(texts, answers, expected):
        if name_of(path) in NOT_COMPOSED and unicodedata.normalize("NFC", text) != text:
            continue
        compared += 1
        if ours != theirs:
            raise Differ(f"{text!r}:\nours     {ours}\nexpected {theirs}")
    return f"{compared} texts"


def name_of(path):
    return path.name.removeprefix("ggml-vocab-").removesuffix(".gguf")


def conversations():
    def say(*turns):
        return [{"role": {"u": "user", "a": "assistant", "s": "system"}[role], "content": text} for role, text in turns]
    return [say(("u", "Hi")), say(("u", "Hi"), ("a", "Hello!")), say(("s", "Be kind."), ("u", "Hi")),
            say(("s", " Be kind.\n"), ("u", " Hi \n"), ("a", " Hello\n"), ("u", "<b>'x' & \"y\"</b>")),
            say(("u", "a"), ("a", "<think>\nhm\n</think>\n\nb"), ("u", "c"), ("a", "d")), say(("u", "a"), ("u", "b")),
            say(("a", "x"), ("u", "y")), say(("s", "only")), say(("u", "日本語 😀")),
            say(("s", "s"), ("u", "a"), ("a", "b"), ("u", "c"), ("a", "<think>t</think>e"), ("u", "f"))]


def check_template(qmoon, path, folder, work):
    """A chat template rendered for ten conversations; both may refuse one."""
    from transformers.utils.chat_template_utils import _compile_jinja_template
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer.json").write_bytes((ROOT / "tests/fixtures/tiny-qwen2/tokenizer.json").read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens))
    (folder / "chat_template.jinja").write_text(path.read_text())
    template = _compile_jinja_template(path.read_text())
    questions, expected = [], []
    for messages in conversations():
        for prompt in (False, True):
            questions.append({"messages": messages, "prompt": prompt})
            try:
                expected.append(hexed(template.render(messages=messages, tools=None, documents=None,
                                                      add_generation_prompt=prompt, **tokens)))
            except Exception:
                expected.append("refused")
    for question, ours, theirs in zip(questions, ask(qmoon, folder, questions, work), expected):
        if ours != theirs and not (ours.startswith("refused") and theirs == "refused"):
            raise Differ(f"{question}:\nours     {ours if ours[:7] == 'refused' else bytes.fromhex(ours)!r}\n"
                         f"expected {theirs if theirs == 'refused' else bytes.fromhex(theirs)!r}")
    return f"{len(questions)} chats"


# ---------------------------------------------------------------------------------------------------------------


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("qmoon")
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--models", nargs="*", default=[ROOT / "tests/fixtures/tiny-qwen2"])
    parser.add_argument("--llama-models", type=Path)
    args = parser.parse_args()
    lines = training_text()
    texts, plain = corpus(args.seed, args.cases), corpus(args.seed + 1, args.cases, specials=False)
    checks = {}
    known = hugging_face(lines)
    for name, make in known.items():
        checks[f"tokenizers: {name}"] = lambda f, w, m=make: check_hugging_face(args.qmoon, m, f, w, texts)
    for name in ("added tokens", "llama 2"):
        checks[f"tokenizers: {name}, special as text"] = lambda f, w, m=known[name]: check_special_as_text(args.qmoon, m, f, w, texts)
    checks["tokenizers: broken bytes"] = lambda f, w: check_broken_bytes(args.qmoon, known["qwen2"], f, w, args.seed)
    for name, options in piece_models().items():
        checks[f"sentencepiece: {name}"] = lambda f, w, o=options: check_pieces(args.qmoon, o, f, w, plain, lines)
    if importlib.util.find_spec("transformers"):
        for model in args.models:
            checks[f"transformers: {Path(model).name}"] = lambda f, w, m=model: check_model(args.qmoon, m, w, texts)
    for path in sorted(args.llama_models.glob("ggml-vocab-*.gguf")) if args.llama_models else []:
        if name_of(path) not in REFUSED and Path(f"{path}.inp").exists():
            checks[f"vocabulary: {name_of(path)}"] = lambda f, w, p=path: check_vocabulary(args.qmoon, p, w)
    if args.llama_models and importlib.util.find_spec("transformers"):
        for path in sorted((args.llama_models / "templates").glob("*.jinja")):
            checks[f"template: {path.stem}"] = lambda f, w, p=path: check_template(args.qmoon, p, f, w)
    passed = failed = 0
    print(f"tokenizers {tokenizers.__version__}, sentencepiece {sentencepiece.__version__}")
    for name, run in checks.items():
        if args.only not in name:
            continue
        with tempfile.TemporaryDirectory() as work:
            folder = Path(work) / "model"
            folder.mkdir()
            try:
                note = run(folder, Path(work))
                print(f"ok    {name}  ({note})", flush=True)
                passed += 1
            except Exception as e:
                text = str(e) if isinstance(e, Differ) else traceback.format_exc(limit=-3)
                print(f"FAIL  {name}\n      " + text.strip()[:1500].replace("\n", "\n      "), flush=True)
                failed += 1
    print(f"{passed} passed, {failed} failed")
    return 0 if failed == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
