"""Runs the kernels of a folder of compiled programs (METAL_KERNELS), a library a rule."""

import ctypes
import mmap
import os
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import mlx.core as mx
import numpy as np

FOLDER = Path(os.environ["METAL_KERNELS"])
CHUNK, THREADS, TILE, LANES, SLOTS = 4096, 256, 32, 4, 31
NORM_CHUNK = 16384
OPERANDS_SLOT, STEP_SLOT, LEARNING_RATE_SLOT, SCALE_SLOT, TRACED_SLOT = 2, 2, 3, 4, 5
FRAME_FLOATS = 3 * 9 + 8 + 1

SHORT = {mx.float32: "f32", mx.float16: "f16", mx.bfloat16: "bf16"}
LONG = {name: dtype for dtype, name in SHORT.items()}

# As tables.h has them.
TENSOR = np.dtype([("size", "u8"), ("first_chunk", "u4"), ("vectors", "u4")])
MATRIX = np.dtype(
    [("rows", "u8"), ("columns", "u4"), ("vectors", "u4"), ("gradient_vectors", "u4"), ("", "u4")]
)
STRIDED = np.dtype(
    [("size", "u8"), ("dims", "i4"), ("", "u4"), ("shape", "i8", 16), ("strides", "i8", (4, 16))]
)
SUM = np.dtype([("high", "f4"), ("low", "f4"), ("exponent", "i4")])
CLIP = np.dtype([("most", "f4"), ("traced", "u4"), ("skips", "u4")])
CONSTANTS = np.dtype([("hypers", "f4", (9, 3)), ("traced", "u4"), ("scaled", "u4")])


@cache
def library(rule):
    return ctypes.CDLL(str(FOLDER / f"{rule}.so"))


def names(rule):
    """The names of a rule's kernels, without what they all begin with."""
    programs = (FOLDER / "programs").glob(f"*_{rule}_*.metal")
    return sorted(path.stem.partition(f"_{rule}_")[2] for path in programs)


def run(rule, name, buffers, groups, threads=THREADS, first=0):
    """Dispatch threadgroups [first, groups) of a kernel with NumPy arrays by slot."""
    (program,) = (FOLDER / "programs").glob(f"*_{rule}_{name}.metal")
    function = getattr(library(rule), f"run_{program.stem}")
    pointers = (ctypes.c_void_p * SLOTS)()
    for slot, buffer in buffers.items():
        pointers[slot] = buffer.ctypes.data
    errors = function(pointers, first, groups, threads)
    assert errors == 0, f"{errors} barriers are not reached by all threads"


@contextmanager
def denormals_as_zero():
    """What Metal may do, done by the CPU: denormal operands and results are zero."""
    maths, before = ctypes.CDLL("libm.so.6"), (ctypes.c_uint32 * 8)()
    maths.fegetenv(before)
    inside = (ctypes.c_uint32 * 8)(*before)
    inside[7] |= 0x8040  # of the vector unit's control register: flush to zero, denormals are zeros
    maths.fesetenv(inside)
    try:
        yield
    finally:
        maths.fesetenv(before)


def stored(x, lead=0):
    """The bits of an array in a buffer of exactly its size, behind `lead` elements of anything."""
    bits = x if x.dtype == mx.float32 else x.view(mx.uint16)
    flat = np.array(bits).reshape(-1)
    buffer = np.empty(lead + flat.size, flat.dtype)
    buffer[lead:] = flat
    return buffer[lead:]


def empty(size, dtype):
    return np.empty(size, np.float32 if dtype == mx.float32 else np.uint16)


class Sparse:
    """A buffer of bfloat16 too large to fill, of which a few pages are used."""

    def __init__(self, size):
        self.map = mmap.mmap(-1, 2 * size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
        self.bits = np.frombuffer(self.map, np.uint16)


def loaded(bits, dtype):
    """The array that a buffer of bits holds."""
    return mx.array(bits) if dtype == mx.float32 else mx.array(bits).view(dtype)


def derived(x):
    """A hyperparameter as the kernels take it."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.float32(x), np.float32(1 - np.float64(x)), np.float32(np.log(np.float64(x)))


def prepare(rule, hypers, learning_rate, step, traced=False, scale=None):
    """The frame of a step; `traced`: all hyperparameters are read when it runs."""
    constants = np.zeros(1, CONSTANTS)
    frame = np.full(FRAME_FLOATS, np.nan, np.float32)
    rate = np.array([learning_rate], np.float32)
    buffers = {0: frame, 1: constants, STEP_SLOT: np.array([step], np.uint64)}
    buffers[LEARNING_RATE_SLOT] = buffers[SCALE_SLOT] = rate
    if scale is not None:
        constants["scaled"] = True
        buffers[SCALE_SLOT] = np.array([scale], np.float32)
    for k, x in enumerate(hypers):
        if traced:
            constants["traced"] |= 1 << k
            buffers[TRACED_SLOT + k] = np.array([x], np.float32)
        else:
            constants["hypers"][0, k] = derived(x)
            buffers[TRACED_SLOT + k] = rate
    run(rule, "prepare", buffers, groups=1, threads=1)
    return frame
