"""The codes of 8 bits of rules/codes.h, as NumPy code of their own."""

import numpy as np

BLOCK = 64
LEVELS = {np.dtype(np.int8): (127, 1), np.dtype(np.uint8): (255, 2)}
ONE = np.float32(1).view(np.int32)


def blocks_of(x):
    """The numbers in rows of a block, the last filled with zeros."""
    flat = np.zeros(-(-x.size // BLOCK) * BLOCK, x.dtype)
    flat[: x.size] = x.reshape(-1)
    return flat.reshape(-1, BLOCK)


def encode(x, dtype):
    """The codes and scales of float32 numbers. `dtype`: int8, or uint8 for those from 0 on."""
    levels, shift = LEVELS[np.dtype(dtype)]
    blocks = blocks_of(np.asarray(x, np.float32))
    with np.errstate(all="ignore"):
        largest = np.abs(blocks).max(axis=1, keepdims=True)
        scales = np.where(largest < np.float32(2.0**-126), np.float32(0), largest)
        scales = np.where(scales < np.float32(2.0**126), scales, np.float32(np.nan))
        reciprocals = np.where(scales > 0, np.float32(1) / scales, np.float32(0))
        bits = np.abs(blocks * reciprocals).view(np.int32)
    roots = ((np.minimum(bits, ONE) >> shift) + (ONE - (ONE >> shift))).view(np.float32)
    codes = np.floor(roots * np.float32(levels) + np.float32(0.5)).astype(np.int32)
    if dtype == np.uint8:
        codes = np.where((codes == 0) & (blocks != 0), 1, codes)
    else:
        codes = np.where(blocks < 0, -codes, codes)
    return codes.astype(dtype).reshape(-1)[: x.size].reshape(x.shape), scales.reshape(-1)


def decode(codes, scales):
    """The float32 numbers of codes."""
    levels, shift = LEVELS[codes.dtype]
    wide = blocks_of(codes).astype(np.int32)
    roots = np.abs(wide).astype(np.float32) * np.float32(1 / levels)
    bits = np.maximum(roots.view(np.int32) - (ONE - (ONE >> shift)), 0) << shift
    parts = np.copysign(bits.view(np.float32), wide.astype(np.float32))
    with np.errstate(all="ignore"):
        numbers = parts * scales[:, None]
    return numbers.reshape(-1)[: codes.size].reshape(codes.shape)


def between(parts, degree, distance):
    """How far apart the powers of a root and of one at a distance are."""
    roots = parts ** (1 / degree)
    return (roots + distance) ** degree - roots**degree


def error(x, dtype):
    """How far the number of a code may be from float32 numbers, in float64."""
    shift = LEVELS[np.dtype(dtype)][1]
    blocks = blocks_of(np.asarray(x, np.float64))
    scales = np.abs(blocks).max(axis=1, keepdims=True)
    parts = np.abs(blocks) / np.where(scales > 0, scales, 1)
    if shift == 1:
        bound = 1.42 * between(parts, 2, 1 / 254)
    else:
        bound = 1.66 * between(parts, 4, 1 / 510) + 2.4e-10
    return (scales * bound).reshape(-1)[: x.size].reshape(x.shape)
