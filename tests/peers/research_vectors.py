"""Prints the digests of tests/unit/research_test.c: what torch and compressed-tensors make of the golden values.

    python research_vectors.py        needs torch, numpy and compressed-tensors 0.20
"""

import hashlib

import numpy
import torch
from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize
from compressed_tensors.quantization.utils.helpers import calculate_qparams, generate_gparam

COUNT, EVEN = 65573, 65536
FLOATS = {"e4m3": (torch.float8_e4m3fn, 448.0), "e5m2": (torch.float8_e5m2, 57344.0)}


def golden_values():
    """As golden_values() of tests/unit/golden.h."""
    state, values = 12345, numpy.empty(COUNT, dtype=numpy.float32)
    for i in range(COUNT):
        total = 0
        for _ in range(4):
            state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
            total += state >> 10
        values[i] = (total - (1 << 23)) * 2.0**-28
    values[192:256] = 0
    return values[:EVEN]


def digest(array):
    return hashlib.sha256(numpy.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def packed(codes, bits):
    each = numpy.unpackbits(codes.numpy().astype(numpy.uint8).reshape(-1, 1), axis=1)[:, 8 - bits :]
    return numpy.packbits(each.reshape(-1))


def show(name, planes, decoded):
    print(name, *[digest(p) for p in planes], "decoded", digest((decoded.float() + 0.0).numpy()))


def symmetric(x, bits):
    groups, most = x.reshape(-1, 64), 2 ** (bits - 1) - 1
    scale = groups.abs().amax(1, keepdim=True) / most
    code = torch.clamp(torch.nan_to_num(torch.round(groups / scale)), -most, most)
    show("int8g" if bits == 8 else f"int{bits}", [packed(code + most + 1, bits), scale.numpy()], code * scale)


def asymmetric(x, bits):
    groups, most = x.reshape(-1, 64), 2**bits - 1
    low, high = groups.amin(1, keepdim=True).clamp(max=0), groups.amax(1, keepdim=True).clamp(min=0)
    scale = (high - low) / most
    zero = torch.nan_to_num(torch.clamp(torch.round(-low / scale), 0, most))
    code = torch.clamp(torch.nan_to_num(torch.round(groups / scale)) + zero, 0, most)
    planes = [packed(code, bits), scale.numpy(), zero.numpy().astype(numpy.uint8)]
    show(f"uint{bits}", planes, (code - zero) * scale)


def scaled_f8(x, name):
    dtype, most = FLOATS[name]
    rows = x.reshape(-1, 256)
    scale = rows.abs().amax(1, keepdim=True) / most
    code = (rows / scale).clamp(-most, most).to(dtype)
    show(f"fp8_{name}", [code.view(torch.uint8).numpy(), scale.numpy()], code.float() * scale)


def casts(name):
    dtype, most = FLOATS[name]
    every = numpy.arange(65536)
    f16 = torch.from_numpy(every.astype(numpy.uint16).view(numpy.float16).astype(numpy.float32))
    bf16 = torch.from_numpy((every.astype(numpy.uint32) << 16).view(numpy.float32))
    codes = [v.clamp(-most, most).to(dtype).view(torch.uint8).numpy() for v in (f16, bf16)]
    values = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    decoded = torch.where(values.isnan(), 12345.0, values).numpy()
    print(f"f8_{name} of f16, of bf16", *[digest(c) for c in codes], "decoded", digest(decoded))


def nvfp4(x):
    x = x.clone()
    x[192:256] = 2.0**-8  # for zeros it stores a scale other than 0
    x = x.reshape(256, 256)
    args = QuantizationArgs(num_bits=4, type="float", strategy="tensor_group", group_size=16, symmetric=True,
                            scale_dtype=torch.float8_e4m3fn, zp_dtype=torch.float8_e4m3fn)
    factor = generate_gparam(x.min(), x.max())
    groups = x.reshape(256, 16, 16)
    scale, _ = calculate_qparams(groups.amin(-1), groups.amax(-1), args, global_scale=factor)
    code = quantize(x, scale, None, args, global_scale=factor)
    decoded = dequantize(code, scale, None, args, global_scale=factor)
    scales = scale.to(torch.float8_e4m3fn).view(torch.uint8)
    show("nvfp4", [pack_fp4_to_uint8(code.float()).numpy(), scales.numpy()], decoded)
    print("  factor", float(factor))


def main():
    x = torch.from_numpy(golden_values().copy())
    for bits in range(2, 9):
        symmetric(x, bits)
    for bits in range(2, 9):
        asymmetric(x, bits)
    for name in FLOATS:
        scaled_f8(x, name)
        casts(name)
    nvfp4(x)


if __name__ == "__main__":
    main()
