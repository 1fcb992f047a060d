"""The Python stack making the pipeline's five outputs, timed stage by stage.

    baseline.py --make 1.5b DIR                      DIR/base and DIR/adapter with random weights, to measure on
    baseline.py --base B --adapter A --out OUT --llama-bin BIN --llama-src TREE [--threads 2] [--json FILE]

Every stage is a process of its own, so that its peak memory is its own.  Starting Python and importing torch,
transformers, peft and bitsandbytes is timed apart ("import"): a script that does the first three stages in one
process pays it once, and the total counts it once.  Input is read once before the clock starts, so the first stage
does not pay for a cold disk; writes are those of the page cache, as the tools leave them (no fsync).
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def load(folder, **options):
    import transformers
    return transformers.AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", **options)


def merge(args):
    import peft
    import torch
    model = load(args.base, dtype=torch.float16)
    model = peft.PeftModel.from_pretrained(model, args.adapter).merge_and_unload()
    model.save_pretrained(args.out / "merged-fp16")
    copy_tokenizer(args, "merged-fp16")


def int8(args):
    import torch
    import transformers
    config = transformers.BitsAndBytesConfig(load_in_8bit=True)
    model = load(args.out / "merged-fp16", dtype=torch.float16, quantization_config=config)
    model.save_pretrained(args.out / "model-int8")
    copy_tokenizer(args, "model-int8")


def int4(args):
    import torch
    import transformers
    config = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
                                             bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float16)
    model = load(args.out / "merged-fp16", dtype=torch.float16, quantization_config=config)
    model.save_pretrained(args.out / "model-int4")
    copy_tokenizer(args, "model-int4")


def copy_tokenizer(args, output):
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "vocab.json", "merges.txt"):
        if (args.base / name).exists():
            (args.out / output / name).write_bytes((args.base / name).read_bytes())


def stage(args):
    """Inside the child: import first, then the work; the two times go to the parent as one line."""
    start = time.perf_counter()
    import bitsandbytes, peft, torch, transformers  # noqa: E401, F401
    torch.set_num_threads(args.threads)
    imported = time.perf_counter()
    {"merge": merge, "int8": int8, "int4": int4}[args.stage](args)
    print(json.dumps({"import": imported - start, "work": time.perf_counter() - imported}))


def timed(name, command, log):
    """Run one stage to its end.  {stage, seconds, import, work, cpu, rss}; rss: peak memory, bytes."""
    start = time.perf_counter()
    with open(log, "wb") as text:
        child = subprocess.Popen(command, stdout=text, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    if child.returncode != 0:
        sys.exit(f"{name}: {' '.join(map(str, command))} ended with {child.returncode}; the end of {log}:\n"
                 + "\n".join(Path(log).read_text(errors="replace").splitlines()[-15:]))
    row = {"stage": name, "seconds": seconds, "import": 0.0, "work": seconds,
           "cpu": usage.ru_utime + usage.ru_stime, "rss": usage.ru_maxrss * 1024}
    last = Path(log).read_text(errors="replace").splitlines()[-1:]
    if last and last[0].startswith('{"import"'):
        row.update(json.loads(last[0]))
    return row


def measure(args):
    args.out.mkdir(parents=True, exist_ok=True)
    for file in sorted(args.base.glob("*.safetensors")):
        subprocess.run(["cat", str(file)], stdout=subprocess.DEVNULL, check=True)

    python = [sys.executable, str(HERE / "baseline.py"), "--base", str(args.base), "--adapter", str(args.adapter),
              "--out", str(args.out), "--threads", str(args.threads), "--stage"]
    f16, q4_0 = args.out / "model.gguf", args.out / "model-q4_0.gguf"
    stages = {
        "merge": python + ["merge"],
        "int8": python + ["int8"],
        "int4": python + ["int4"],
        "gguf": [sys.executable, str(HERE / "convert.py"), str(args.llama_src), str(args.out / "merged-fp16"),
                 str(f16), "--outtype", "f16"],
        "q4_0": [str(args.llama_bin / "llama-quantize"), str(f16), str(q4_0), "Q4_0", str(args.threads)],
    }
    rows = []
    for name, command in stages.items():
        rows.append(timed(name, command, args.out / f"{name}.log"))
        show(rows[-1])
    total = sum(row["work"] for row in rows) + max(row["import"] for row in rows)
    peak = max(row["rss"] for row in rows)
    print(f" {'total':<8} {total:>9.1f} s  with imports counted once, peak {peak / 2**20:.0f} MiB")
    result = {"stages": rows, "total": total, "rss": peak, "threads": args.threads, "versions": versions()}
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


def show(row):
    print(f" {row['stage']:<8} {row['seconds']:>9.1f} s   import {row['import']:>6.1f} s   work {row['work']:>8.1f} s"
          f"   cpu {row['cpu']:>6.1f} s   peak {row['rss'] / 2**20:>8.0f} MiB", flush=True)


def versions():
    from importlib.metadata import version
    return {name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes", "safetensors")}


def make(size, folder, tokenizer):
    import random_model
    random_model.write(folder / "base", folder / "adapter", random_model.SIZES[size], tokenizer)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--make", nargs=2, metavar=("SIZE", "DIR"))
    parser.add_argument("--tokenizer", type=Path, default=HERE.parent / "fixtures" / "tiny-qwen2")
    for name in ("--base", "--adapter", "--out", "--llama-bin", "--llama-src", "--json"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        make(args.make[0], Path(args.make[1]), args.tokenizer)
    elif args.stage:
        stage(args)
    elif all((args.base, args.adapter, args.out, args.llama_bin, args.llama_src)):
        measure(args)
    else:
        parser.error("--base, --adapter, --out, --llama-bin and --llama-src are needed")


if __name__ == "__main__":
    main()
