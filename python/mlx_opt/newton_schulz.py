"""The orthogonal factors of many matrices at once, by Newton-Schulz iterations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from . import _ext
from .descriptions import COEFFICIENTS as SETS
from .descriptions import STACK_ELEMENTS

Coefficients = Sequence[Sequence[float]]

STACK = STACK_ELEMENTS
"""Maximum number of elements of a stack; temporaries take a few times its memory."""


def orthogonalized(
    matrices: Sequence[mx.array],
    scales: Sequence[float],
    coefficients: Coefficients,
    steps: int,
    dtype: mx.Dtype | None,
) -> list[mx.array]:
    """An approximation of U V^T for each matrix U S V^T, times its scale; see `_ext`."""
    return _ext.orthogonalized(matrices, scales, coefficients, steps, dtype, STACK)


def coefficients_of(given: Any) -> Coefficients:
    """A set by name, or triples.

    Raises:
        ValueError: There is no set of that name, or not at least one triple of numbers.
    """
    if isinstance(given, str) and given in SETS:
        return SETS[given]
    try:
        triples = [] if isinstance(given, str) else [[float(x) for x in triple] for triple in given]
    except (TypeError, ValueError):
        triples = []
    if not triples or any(len(triple) != 3 for triple in triples):
        raise ValueError(
            f"ns_coefficients: expected triples or one of {', '.join(SETS)}, got {given!r}"
        )
    return triples
