"""The orthogonal factors of many matrices at once, by Newton-Schulz iterations."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from . import _ext

Coefficients = Sequence[Sequence[float]]

SETS: dict[str, Coefficients] = dict(_ext.coefficients())
"""By name, (a, b, c) of each iteration, of which the last stays."""

STACK = _ext.STACK_ELEMENTS
"""Elements of a stack: what is made on the way takes a few times its memory."""


def orthogonalized(
    matrices: Sequence[mx.array],
    scales: Sequence[float],
    coefficients: Coefficients,
    steps: int,
    dtype: mx.Dtype | None,
) -> list[mx.array]:
    """U V^T of each matrix U S V^T, roughly, times its scale: see `_ext.orthogonalized`."""
    return _ext.orthogonalized(matrices, scales, coefficients, steps, dtype, STACK)
