"""bitsandbytes' quantisers against ours: every format, block size and type, on values of every kind.

    bnb_quantize.py QMOON

The package's CPU code is asked. By default we write what its CUDA kernels write (their digests are in
tests/unit/bnb_golden.h); where the two differ, docs/numerics.md says, and here every difference must be of a kind named
there. With `nearest` our bytes are the CPU code's, but where that is not the nearest itself. Ends with `N passed, N failed`.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from bitsandbytes.functional import int8_vectorwise_quant, quantize_4bit, quantize_blockwise
from safetensors.torch import save_file

import bnb_reference as bnb
from check import Differ, attempt

BLOCKS_4 = [32, 64, 128, 256, 512, 1024, 2048, 4096]
BLOCKS_8 = [64, 128, 256, 512, 1024, 2048, 4096]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
NF4, FP4 = torch.from_numpy(bnb.NF4), torch.from_numpy(bnb.FP4)


def families():
    """name: f32 values. Lengths are whole blocks but for `tail`, which ends in part of one, on an odd number."""
    g = torch.Generator().manual_seed(7)

    def normal(*shape):
        return torch.randn(*shape, generator=g)

    zeros = normal(4 * 4096) * 0.02
    zeros[: 4096 + 64] = 0
    zeros[2 * 4096: 3 * 4096] = 0
    signs = torch.where(normal(4096) > 0, 1.0, -1.0)
    return {
        "normal": normal(16 * 4096) * 0.02,
        "tail": normal(5 * 4096 + 777) * 0.02,
        "heavy": normal(8 * 4096) * (1 / (normal(8 * 4096).abs() + 0.05)),
        "zeros": zeros,
        "constant": torch.full((4096,), -0.25),
        "signs": signs * 0.125,
        "integers": torch.arange(4096, dtype=torch.float32) % 17 - 8,
        "tiny": normal(4096) * 2.0**-14,  # subnormal as f16
    }


def cases():
    """(name of the tensor, format, block, values)"""
    for family, x in families().items():
        for dtype in DTYPES:
            values = x.to(dtype)
            kind = str(dtype)[6:]
            for block in BLOCKS_4:
                yield f"nf4.{block}.{kind}.{family}", "nf4", block, values
                yield f"fp4.{block}.{kind}.{family}", "fp4", block, values
            for block in BLOCKS_8:
                yield f"dynamic8.{block}.{kind}.{family}", "dynamic8", block, values
            rows = values[: values.numel() // 256 * 256].reshape(-1, 256)
            yield f"int8.256.{kind}.{family}", "int8", 256, rows


def ours(qmoon, everything, folder, how):
    """name -> (codes, absmax) as bytes' tensors."""
    source, out = folder / "in.safetensors", folder / f"out.{how}"
    save_file({name: values.clone(memory_format=torch.contiguous_format) for name, _, _, values in everything}, source)
    script = Path(__file__).parent / "bnb_encode.lua"
    subprocess.run([qmoon, script, source, out, how], check=True)
    data, at, found = torch.frombuffer(bytearray(out.read_bytes()), dtype=torch.uint8), 0, {}
    for name, format, block, values in sorted(everything, key=lambda c: c[0]):
        n = values.numel()
        sizes = [(n + 1) // 2 if format in ("nf4", "fp4") else n, 4 * (-(-n // block))]
        found[name] = data[at: at + sizes[0]], data[at + sizes[0]: at + sum(sizes)].clone().view(torch.float32)
        at += sum(sizes)
    assert at == data.numel()
    return found


def nibbles(packed, n):
    return torch.stack([packed >> 4, packed & 15], 1).reshape(-1)[:n].long()


def theirs(format, block, values):
    """(codes, absmax) of the package's CPU code; an absmax it has clamped away from zero is zero again."""
    if format == "int8":
        codes, scales, _ = int8_vectorwise_quant(values.half())
        return codes.reshape(-1).view(torch.uint8).long(), scales
    if format == "dynamic8":
        codes, state = quantize_blockwise(values, blocksize=block)
        return codes.reshape(-1).long(), state.absmax
    packed, state = quantize_4bit(values, blocksize=block, quant_type=format, compress_statistics=False)
    absmax = torch.where(state.absmax <= 1e-38, 0.0, state.absmax)
    return nibbles(packed.reshape(-1), values.numel()), absmax


# The largest share of codes that may differ, always to a neighbour, in any one case.
LIMIT = {("nf4", torch.float32): 1e-5, "nf4": 0, "fp4": 2e-2, "int8": 1e-3, "dynamic8": 0.1}


def beside(table, a, b):
    """Neighbours among the levels; fp4's two zeros count as two."""
    rank = torch.empty(16, dtype=torch.long)
    rank[table.argsort(stable=True)] = torch.arange(16)
    return (rank[a] - rank[b]).abs() <= 2


def distance(format, a, b):
    """Which codes are as good as each other, and which are next to each other."""
    if format == "fp4":
        return (FP4[a] == FP4[b]), beside(FP4, a, b)
    if format == "nf4":
        return a == b, beside(NF4, a, b)
    if format == "int8":
        signed = [c.to(torch.uint8).view(torch.int8).long() for c in (a, b)]
        return a == b, (signed[0] - signed[1]).abs() <= 1
    return a == b, (a - b).abs() <= 4  # the CPU looks dynamic8 up in a table of 65536


def check(name, format, block, values, got, how):
    """How many codes differ, all of them in ways that are known."""
    n = values.numel()
    codes = nibbles(got[0], n) if format in ("nf4", "fp4") else got[0].long()
    want, absmax = theirs(format, block, values)
    if not torch.equal(got[1], absmax):
        raise Differ(f"{int((got[1] != absmax).sum())} of {absmax.numel()} scales differ")
    scale = absmax.repeat_interleave(block)[:n]
    alike, near = distance(format, codes, want)
    if how == "bnb" or format == "dynamic8":  # a block of zeros: CUDA's code 0; so is the CPU's of dynamic8
        alike |= scale == 0
    bad = ~alike & ~near
    if bad.any():
        i = int(bad.nonzero()[0])
        raise Differ(f"{int(bad.sum())} of {n} codes: value {i}, {values.reshape(-1)[i].item()!r} of "
                     f"{scale[i].item()!r}: {codes[i]}, not {want[i]}")
    differ = int((~alike).sum())
    limit = LIMIT.get((format, values.dtype), LIMIT[format])
    if differ > limit * n:
        raise Differ(f"{differ} of {n} codes differ, more than {limit:g} of them")
    return differ, n


def compare(group, found, how):
    """All cases of one format and type; how many of their codes differ."""
    sums = [0, 0]
    for name, format, block, values in group:
        try:
            differ, n = check(name, format, block, values, found[name], how)
        except Differ as why:
            raise Differ(f"{name}: {why}") from why
        sums = [sums[0] + differ, sums[1] + n]
    return f"{len(group)} cases, {sums[0]} of {sums[1]} codes differ"


def main():
    qmoon = Path(sys.argv[1]).resolve()
    everything, outcome = list(cases()), []
    with tempfile.TemporaryDirectory(prefix="qmoon-bnb-") as scratch:
        for how in ("bnb", "nearest"):
            found = ours(qmoon, everything, Path(scratch), how)
            for format in ("nf4", "fp4", "dynamic8", "int8"):
                for dtype in DTYPES:
                    group = [c for c in everything if c[1] == format and c[3].dtype == dtype]
                    outcome.append(attempt(lambda _, g=group: compare(g, found, how), None, f"{how} {format} {str(dtype)[6:]}"))
    print(f"{outcome.count('ok')} passed, {outcome.count('FAIL')} failed")
    return 0 if "FAIL" not in outcome else 1


if __name__ == "__main__":
    sys.exit(main())
