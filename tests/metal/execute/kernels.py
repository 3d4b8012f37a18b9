"""Runs the kernels of a folder of compiled programs (METAL_KERNELS), a library a rule."""

import ctypes
import mmap
import os
from collections.abc import Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import numpy as np

FOLDER = Path(os.environ["METAL_KERNELS"])
CHUNK, THREADS, TILE, VECTOR_WIDTH, SLOTS = 4096, 256, 32, 4, 31
NORM_CHUNK = 16384
OPERANDS_SLOT = 2
PREPARE_CAPACITIES = 4, 8, SLOTS - OPERANDS_SLOT

SHORT = {mx.float32: "f32", mx.float16: "f16", mx.bfloat16: "bf16"}
LONG = {name: dtype for dtype, name in SHORT.items()} | {
    "b16": mx.uint16,
    "i8": mx.int8,
    "u8": mx.uint8,
}

# As in tables.h.
TENSOR = np.dtype(
    [
        ("size", "u8"),
        ("first_chunk", "u4"),
        ("group", "u2"),
        ("vectors", "u2"),
        ("rounding_key", "u4"),
        ("", "u4"),
    ]
)
MATRIX_COUNTS = ["columns", "group", "vectors", "gradient_vectors", "rounding_key"]
MATRIX = np.dtype([("rows", "u8"), *((name, "u4") for name in MATRIX_COUNTS), ("", "u4")])
SOURCE = np.dtype([("value", "f4"), ("one_minus", "f4"), ("log", "f4"), ("given", "i4")])
SUM = np.dtype([("high", "f4"), ("low", "f4"), ("exponent", "i4")])
CLIP = np.dtype([("max_norm", "f4"), ("traced", "u4"), ("skip_nonfinite", "u4")])


def layout(operands):
    return [("dims", "i4"), ("", "u4"), ("shape", "i8", 16), ("strides", "i8", (operands, 16))]


def strided(operands):
    return np.dtype([("size", "u8"), ("group", "u4"), ("rounding_key", "u4"), *layout(operands)])


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
    """Treat denormal operands and results as zero on the CPU, as Metal may."""
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


class Group(NamedTuple):
    """The scalars of a group; `traced`: all hyperparameters are read when the step runs."""

    hypers: Sequence[float]
    learning_rate: float
    traced: bool = False
    rate_scale: float = 1.0


class Scalars:
    """The scalars of a dispatch of `prepare`, and the table that refers to them."""

    def __init__(self, groups, step, scale, max_value):
        self.given, table = [np.array([step], np.uint64)], []
        for hypers, learning_rate, traced, rate_scale in groups:
            table += [(0, 0, 0, 0), self.read(learning_rate, rate_scale)]
            table += [self.read(x) if traced else (*derived(x), -1) for x in hypers]
            table.append((1, 0, 0, -1) if scale is None else self.read(scale))
            table.append((np.inf, 0, 0, -1) if max_value is None else self.read(max_value))
        self.table = np.array(table, SOURCE)

    def read(self, x, value=0.0):
        self.given.append(np.array([x], np.float32))
        return value, 0, 0, len(self.given) - 1

    def run(self, rule, groups, group_uniforms, stage=""):
        capacity = min(n for n in PREPARE_CAPACITIES if n >= len(self.given))
        buffers = {0: group_uniforms, 1: self.table}
        for k in range(capacity):
            buffers[OPERANDS_SLOT + k] = self.given[min(k, len(self.given) - 1)]
        run(rule, f"{stage}prepare{capacity}", buffers, groups, threads=1)


UNTOUCHED = 0x7FDEADBE


@cache
def uniforms_floats(rule, hypers, stage=""):
    """The number of floats that `prepare` writes for a group of a rule. `stage`: what its name
    begins with."""
    group_uniforms = np.full(1000, UNTOUCHED, np.uint32)
    Scalars([Group([1.0] * hypers, 1.0)], 1, None, None).run(rule, 1, group_uniforms, stage)
    return int(np.argmax(group_uniforms == UNTOUCHED))


def prepare_groups(rule, groups, step, scale=None, max_value=None, stage=""):
    """The uniforms of all groups of a step."""
    floats = uniforms_floats(rule, len(groups[0].hypers), stage)
    group_uniforms = np.full(len(groups) * floats, np.nan, np.float32)
    Scalars(groups, step, scale, max_value).run(rule, len(groups), group_uniforms, stage)
    return group_uniforms


def prepare(rule, hypers, learning_rate, step, traced=False, scale=None, max_value=None):
    """The uniforms of a step of one group."""
    groups = [Group(hypers, learning_rate, traced)]
    return prepare_groups(rule, groups, step, scale, max_value)
