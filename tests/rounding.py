"""A reference of stochastic rounding in NumPy, for the tests."""

import mlx.core as mx
import numpy as np


def mixed(x):
    x = np.asarray(x, np.uint32)
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
        x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def random_bits(key, element):
    with np.errstate(over="ignore"):
        x = (element ^ key) * np.uint32(0x7FEB352D)
        return ((x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)) >> np.uint32(16)


def tensor_key(seed, path):
    """The 64-bit hash FNV-1a of the seed and the path, with both halves combined."""
    hash = 0xCBF29CE484222325
    for byte in seed.to_bytes(8, "little") + path.encode():
        hash = (hash ^ byte) * 0x100000001B3 % 2**64
    return (hash ^ hash >> 32) % 2**32


def rounded_with(x, tensor, step, field):
    """The results in float32 of field `field` (0: the parameter) of a tensor with that key."""
    bits = np.array(x).view(np.uint32).reshape(-1)
    of_step = mixed(np.uint32(tensor) ^ mixed(np.float32(step).view(np.uint32)))
    key = mixed((int(of_step) + field * 0x9E3779B9) % 2**32)
    up = bits + random_bits(key, np.arange(bits.size, dtype=np.uint32))
    infinite = np.uint32(0x7F800000)
    result = np.where(up & infinite == infinite, bits, up) & np.uint32(0xFFFF0000)
    return mx.array(result.view(np.float32).reshape(x.shape)).astype(mx.bfloat16)


def rounded(x, path, step, field, seed=0):
    """The same for the parameter of that path."""
    return rounded_with(x, tensor_key(seed, path), step, field)
