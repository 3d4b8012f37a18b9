"""The norms of a step's updates and weights, in MLX's operations."""

from __future__ import annotations

import math
from collections.abc import Iterable

import mlx.core as mx


def norms_of(weights: Iterable[tuple[int, mx.array, mx.array]], groups: int) -> mx.array:
    """For each group the norm of the updates and that of the weights after them, in float32.

    `weights`: of each parameter the group, the weight before the step and that after it.
    """
    squares = [[mx.zeros(2)] for _ in range(groups)]
    for group, before, after in weights:
        weight = _wide(after)
        update = weight - _wide(before)
        squares[group].append(mx.stack([_sum_of_squares(update), _sum_of_squares(weight)]))
    return mx.sqrt(mx.stack([mx.stack(each).sum(0) for each in squares]))


def _wide(x: mx.array) -> mx.array:
    return x.astype(mx.result_type(x, mx.float32))


def _sum_of_squares(x: mx.array) -> mx.array:
    return _sum(mx.square(mx.abs(x))).astype(mx.float32)


def _sum(x: mx.array) -> mx.array:
    """The sum of all elements, in rows if that is possible: see graph/weight_norms.cpp."""
    length = math.isqrt(x.size)
    while x.size > 1024 and length > 1 and x.size % length:
        length -= 1
    if x.size <= 1024 or length == 1:
        return x.sum()
    return _sum(x.reshape(-1, length).sum(1))
