"""What a program can see at one time, and whether two of these are equal."""

from typing import NamedTuple

import mlx.core as mx
import numpy as np

NUMBER = "number"


class Seen(NamedTuple):
    """An array of a tree, or a number, which is as good as an array of no dimension."""

    dtype: str
    shape: tuple
    values: np.ndarray

    def matches(self, other, tolerance):
        if not isinstance(other, Seen):
            return False
        if NUMBER in (self.dtype, other.dtype):  # a number and an array full of it are as good
            mine, others = np.broadcast_arrays(self.values, other.values)
            return Seen("", mine.shape, mine).matches(Seen("", mine.shape, others), tolerance)
        if self[:2] != other[:2]:
            return False
        if not self.values.size:
            return True
        finite = np.isfinite(other.values)
        if not np.array_equal(np.isfinite(self.values), finite):
            return False
        if not np.array_equal(self.values[~finite], other.values[~finite], equal_nan=True):
            return False
        greatest = np.abs(other.values[finite]).max(initial=0.0)
        error = np.abs(self.values - other.values)[finite].max(initial=0.0)
        return bool(error <= tolerance * greatest)


def seen(x):
    """One leaf: an array's values, of anything else its type and its text."""
    if isinstance(x, mx.array):
        try:
            values = np.array(x.astype(mx.float32) if x.dtype == mx.bfloat16 else x)
            wide = np.complex128 if x.dtype == mx.complex64 else np.float64
            return Seen(str(x.dtype), tuple(x.shape), values.astype(wide))
        except Exception as error:  # it is not initialised, or a tracer that outlived its trace
            return f"array that cannot be read: {type(error).__name__}"
    if isinstance(x, (int, float, np.number)):
        return Seen(NUMBER, (), np.array(float(x)))
    if isinstance(x, np.ndarray):  # as good as an array of MLX, too
        return Seen(f"mlx.core.{x.dtype}", x.shape, x.astype(np.float64))
    return f"{type(x).__name__} {x}"


def flat(tree, path=()):
    """The leaves of a tree by path, by no method of its own; an empty branch is one too."""
    if isinstance(tree, dict):
        items = list(dict.items(tree))
    elif isinstance(tree, (list, tuple)):
        items = list(enumerate(list.__iter__(tree) if isinstance(tree, list) else tree))
    else:
        return {path: tree}
    leaves = {} if items else {path: type(tree).__name__}
    for key, child in items:
        leaves |= flat(child, (*path, str(key)))
    return leaves


def photo(trees):
    """Named trees of arrays as one dict of what is seen."""
    return {path: seen(leaf) for path, leaf in flat(trees).items()}


def differences(got, expected, tolerance):
    """The paths at which two photos differ, with both values."""
    wrong = []
    for path in {**expected, **got}:
        mine, other = got.get(path, "nothing"), expected.get(path, "nothing")
        if not matches(mine, other, tolerance):
            wrong.append(f"{'.'.join(path)}: {brief(mine)}, expected {brief(other)}")
    return wrong


def matches(mine, other, tolerance):
    return mine.matches(other, tolerance) if isinstance(mine, Seen) else mine == other


def has_form_of(x, other):
    numbers = NUMBER in (x.dtype, other.dtype)
    return x.shape == other.shape and (numbers or x.dtype == other.dtype)


def is_near(got, before, ends, factor=2.0):
    """True if a leaf has the form of one of its values in some runs, and is about as far from its
    value before as these are."""
    if not isinstance(got, Seen):
        return got in ends
    ends = [end for end in ends if isinstance(end, Seen) and has_form_of(got, end)]
    same = isinstance(before, Seen) and before.shape == got.shape
    start = before.values if same else np.zeros(got.shape)
    if not ends or not np.array_equal(np.isfinite(got.values), np.isfinite(ends[0].values)):
        return False

    def distance(x):
        return np.abs(np.nan_to_num(x.values - start)).max(initial=0.0)

    return distance(got) <= factor * max(distance(end) for end in ends) + 1e-6


def without_dtype(x):
    return x._replace(dtype="") if isinstance(x, Seen) else x


def brief(x):
    if not isinstance(x, Seen):
        return x
    values = ", ".join(f"{v:.7g}" for v in x.values.reshape(-1)[:3])
    return f"{x.dtype}{list(x.shape)} {values}{'...' if x.values.size > 3 else ''}"
