"""Golden vectors for the GGUF block formats, made by ggml itself: prints tests/unit/ggml_vectors.h.

    python tests/peers/ggml_vectors.py libggml-base.so "what the library is" > tests/unit/ggml_vectors.h

The library must be a plain x86-64 build (gcc -O3 without -march=native): where the compiler may fuse a
multiplication with an addition, up to a third of all blocks come out differently.  Any llama.cpp or
llama-cpp-python build has the library; it is asked through ggml_quantize_chunk, which is what
llama-quantize calls, and through dequantize_row_*.

The values are made by whole-number arithmetic and products with powers of two, so that
tests/unit/ggml_test.c can make the very same ones.
"""

import ctypes
import hashlib
import sys

import numpy as np

ROWS, COLS = 8, 1024
COUNT = ROWS * COLS

# name: (ggml type, values in a block, bytes in a block)
FORMATS = {
    "q4_0": (2, 32, 18), "q4_1": (3, 32, 20), "q5_0": (6, 32, 22), "q5_1": (7, 32, 24), "q8_0": (8, 32, 34),
    "q2_k": (10, 256, 84), "q3_k": (11, 256, 110), "q4_k": (12, 256, 144), "q5_k": (13, 256, 176),
    "q6_k": (14, 256, 210), "iq4_nl": (20, 32, 18), "iq4_xs": (23, 256, 136), "mxfp4": (39, 32, 17),
}


class Numbers:
    """A linear congruential generator and what is drawn from it."""

    def __init__(self, seed):
        self.state = seed

    def next(self):
        self.state = (self.state * 1664525 + 1013904223) & 0xFFFFFFFF
        return self.state

    def normal(self):
        """About normal, sigma 2^-6: the sum of four uniform numbers."""
        return (sum(self.next() >> 10 for _ in range(4)) - (1 << 23)) * 2.0**-28

    def below(self, n):
        return (self.next() >> 8) % n


def trailing_zeros(x):
    return (x & -x).bit_length() - 1 if x else 32


def heavy(g, _i):
    power = min(trailing_zeros(g.next() >> 8), 12)
    return g.normal() * 2.0**power


class Runs:
    """The same value, or the same factor, for a while."""

    def __init__(self, length, draw, use):
        self.length, self.draw, self.use, self.held = length, draw, use, 0.0

    def __call__(self, g, i):
        if i % self.length == 0:
            self.held = self.draw(g)
        return self.use(g, self.held)


FAMILIES = {
    "normal": lambda g, i: g.normal(),
    "bf16": lambda g, i: g.normal(),  # rounded below
    "heavy": heavy,
    "zeros": lambda g, i: -0.0 if i % 3 == 0 else 0.0,
    "constant": Runs(32, lambda g: g.normal(), lambda g, v: v),
    "tiny": lambda g, i: g.normal() * 2.0**-44,  # about where ggml takes a block for zero
    "subnormal": lambda g, i: g.normal() * 2.0**-122,
    "huge": lambda g, i: g.normal() * 2.0**40,
    "positive": lambda g, i: abs(g.normal()),
    "negative": lambda g, i: -abs(g.normal()) - 2.0**-4,
    "sparse": lambda g, i: g.normal() if g.below(20) == 0 else 0.0,
    "integers": lambda g, i: float(g.below(17) - 8),
    "ternary": lambda g, i: float(g.below(3) - 1),
    "wild": Runs(16, lambda g: 2.0 ** (g.below(64) - 40), lambda g, f: g.normal() * f),
}


def to_bf16(x):
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)


def values(family):
    g = Numbers(12345)
    x = np.array([FAMILIES[family](g, i) for i in range(COUNT)], np.float64).astype(np.float32)
    return to_bf16(x) if family == "bf16" else x


def importance():
    """Of each column; one in seven was never used."""
    g = Numbers(54321)
    return np.array([0 if i % 7 == 0 else ((g.next() >> 20) + 1) ** 2 * 2.0**-24 for i in range(COLS)], np.float32)


def digest(data):
    return hashlib.sha256(data).hexdigest()[:16]


class Ggml:
    def __init__(self, path):
        self.lib = ctypes.CDLL(path)
        self.lib.ggml_quantize_chunk.restype = ctypes.c_size_t

    def encode(self, name, x, weights=None):
        kind, block, size = FORMATS[name]
        out = ctypes.create_string_buffer(COUNT // block * size)
        written = self.lib.ggml_quantize_chunk(
            ctypes.c_int(kind), x.ctypes.data_as(ctypes.c_void_p), out, ctypes.c_int64(0), ctypes.c_int64(ROWS),
            ctypes.c_int64(COLS), weights.ctypes.data_as(ctypes.c_void_p) if weights is not None else None)
        assert written == len(out), (name, written, len(out))
        return out.raw

    def decode(self, name, blocks):
        y = np.empty(COUNT, np.float32)
        upper = name.replace("_k", "_K")
        getattr(self.lib, "dequantize_row_" + upper)(blocks, y.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(COUNT))
        y.view(np.uint32)[np.isnan(y)] = 0x7FC00000
        return y.tobytes()


def main():
    lib, what = Ggml(sys.argv[1]), sys.argv[2]
    weights = importance()
    print("/* ggml_vectors.h: written by tests/peers/ggml_vectors.py; not by hand.\n *")
    print(f" * Library: {what}.\n * First 16 digits of SHA-256: of the values; then of the blocks, of the values")
    print(" * decoded from them, and of the blocks where columns differ in importance. */")
    print("#ifndef QM_TEST_GGML_VECTORS_H\n#define QM_TEST_GGML_VECTORS_H\n\n/* clang-format off */\n")
    print(f'#define GGML_IMPORTANCE "{digest(weights.tobytes())}"\n')
    print("static const struct { const char *family, *digest; } ggml_values[] = {")
    made = {family: values(family) for family in FAMILIES}
    for family, x in made.items():
        print(f'    {{"{family}", "{digest(x.tobytes())}"}},')
    print("};\n")
    print("static const struct { const char *format, *family, *blocks, *decoded, *important; } ggml_vectors[] = {")
    for name in FORMATS:
        for family, x in made.items():
            blocks = lib.encode(name, x)
            row = (name, family, digest(blocks), digest(lib.decode(name, blocks)), digest(lib.encode(name, x, weights)))
            print("    {" + ", ".join(f'"{cell}"' for cell in row) + "},")
    print("};\n\n#endif")


if __name__ == "__main__":
    main()
