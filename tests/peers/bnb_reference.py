"""What the bytes of a bitsandbytes checkpoint mean, in numpy: written from the format, not from bitsandbytes.

One 4-bit weight of n = N*K values, block 64, doubly quantised:

    weight                 u8 [n/2, 1]     two codes a byte, the earlier value in the high nibble
    weight.absmax          u8 [n/64]       code of (absmax - offset) / nested absmax in the 8-bit map
    weight.nested_absmax   f32 [n/64/256]  one for 256 blocks
    weight.nested_quant_map f32 [256], weight.quant_map f32 [16], quant_state: JSON text

Blocks run over row ends.  value = table[code] * absmax in f32, rounded once to the dtype the JSON names.
"""

import json

import numpy as np

NF4 = np.array([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0], np.float32)

# One sign bit over eight magnitudes, in twelfths.
FP4 = np.array([0, 0.0625, 8, 12, 4, 6, 2, 3, 0, -0.0625, -8, -12, -4, -6, -2, -3], np.float32) / np.float32(12)

TABLES = {"nf4": NF4, "fp4": FP4}
DTYPES = {"float16": np.float16, "float32": np.float32}

# sha256 of the 256-entry signed dynamic map, little-endian f32; first 16 digits.
DYNAMIC_MAP_DIGEST = "e732639a65f497b4"

STATE_KEYS = ["quant_type", "blocksize", "dtype", "shape"]
NESTED_KEYS = STATE_KEYS + ["nested_blocksize", "nested_dtype", "nested_offset"]


class FourBit:
    """One 4-bit weight of an open checkpoint {name: array}."""

    def __init__(self, tensors, name):
        prefix = name + ".quant_state.bitsandbytes__"
        self.keys = [k for k in tensors if k.startswith(name + ".")]
        self.state_keys = [k for k in self.keys if k.startswith(prefix)]
        self.state_text = tensors[self.state_keys[0]].tobytes()
        self.state = json.loads(self.state_text)
        self.type = self.state_keys[0][len(prefix):]
        self.shape, self.block = tuple(self.state["shape"]), self.state["blocksize"]
        self.size = int(np.prod(self.shape))
        self.packed = tensors[name]
        self.quant_map = tensors[name + ".quant_map"]
        self.absmax = tensors[name + ".absmax"]
        self.nested = "nested_offset" in self.state
        if self.nested:
            self.nested_map = tensors[name + ".nested_quant_map"]
            self.nested_absmax = tensors[name + ".nested_absmax"]
            self.offset = np.float32(self.state["nested_offset"])

    def codes(self):
        packed = self.packed.ravel()
        return np.stack([packed >> 4, packed & 15], axis=1).ravel()[:self.size]

    def scales(self):
        """The f32 scale of every block, as a reader reconstructs it."""
        if not self.nested:
            return self.absmax
        second = np.repeat(self.nested_absmax, 256)[:self.absmax.size]
        return self.nested_map[self.absmax] * second + self.offset

    def values(self):
        """The decoded weight, in the dtype that the state names."""
        scale = np.repeat(self.scales(), self.block)[:self.size]
        return (TABLES[self.type][self.codes()] * scale).astype(DTYPES[self.state["dtype"]]).reshape(self.shape)


def block_absmax(weight, block):
    """The largest |w| of every block of the flattened weight, f32; the last block may be short."""
    flat = np.abs(weight.astype(np.float32).ravel())
    padded = np.pad(flat, (0, -flat.size % block))
    return padded.reshape(-1, block).max(axis=1)


def spread(per_block, block, shape):
    """One value a block -> one a weight."""
    return np.repeat(per_block, block)[:int(np.prod(shape))].reshape(shape)


def half_gap(table):
    """The largest distance from a value in [-1, 1] to the nearest entry of the table."""
    ordered = np.sort(table.astype(np.float64))
    return float(max(np.diff(ordered).max() / 2, abs(ordered[0] + 1), abs(ordered[-1] - 1)))


def int8_values(codes, scb):
    """LLM.int8: (q * SCB) * 1/127 in f32, in that order."""
    return (codes.astype(np.float32) * scb[:, None]) * np.float32(7.874015718698502e-3)
