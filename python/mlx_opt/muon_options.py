"""The options of Muon that choose the program of a step, and what its formula does with them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import mlx.core as mx

from . import _ext, newton_schulz
from .formulas import factors
from .rule_formula import STORAGE
from .state_dtypes import Formats

PROGRAM = ("ns_steps", "ns_dtype", "ns_coefficients", "adjust_lr", "equalize", "normalize")
ADJUSTMENTS = ("original", "match_rms_adamw")
# In the order of the C++ enumerations.
EQUALIZE = (None, "rows", "columns", "both", "sign")
NORMALIZE = (None, "rows", "columns", "rows_columns", "columns_rows", "frobenius")


def program_of(rule: str, values: dict[str, Any], formats: Formats | None) -> _ext.Program:
    """The program of a rule with these options. `formats`: of its slots.

    Raises:
        TypeError, ValueError: An option has a wrong value; the message names it.
    """
    for name, allowed in (
        ("adjust_lr", ADJUSTMENTS),
        ("equalize", EQUALIZE),
        ("normalize", NORMALIZE),
    ):
        if values[name] not in allowed:
            shown = ", ".join(map(str, allowed))
            raise ValueError(f"{name}: expected one of {shown}, got {values[name]!r}")
    steps, dtype = values["ns_steps"], values["ns_dtype"]
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"ns_steps: expected an int, got {type(steps).__name__}")
    if steps < 0:
        raise ValueError(f"ns_steps: expected 0 or more, got {steps}")
    if not (dtype is None or dtype in STORAGE):
        raise ValueError(f"ns_dtype: expected float32, float16, bfloat16 or None, got {dtype}")
    triples = tuple(map(tuple, newton_schulz.coefficients_of(values["ns_coefficients"])))
    return _cached(
        rule,
        steps,
        dtype,
        triples,
        values["adjust_lr"],
        EQUALIZE.index(values["equalize"]),
        NORMALIZE.index(values["normalize"]),
        newton_schulz.STACK,
        formats=formats,
        masters=values.get("master_weights"),
    )


@cache
def _cached(*options: Any, formats: Formats | None, masters: str | None) -> _ext.Program:
    """One object for the same options, so that their leaves are updated together."""
    arguments = [*options, None if formats is None else dict(formats), masters]
    return _ext.muon_program(*arguments)


def orthogonalized(
    x: mx.array,
    second: mx.array | None,
    iterate: Callable[[mx.array, float], mx.array],
    split: tuple[int, ...],
    values: dict[str, Any],
) -> tuple[mx.array, mx.array | None]:
    """The update of a matrix from its direction, and the successor of its second moment, if any.

    Args:
        x: The direction.
        second: The moment before the step.
        iterate: Gives the orthogonal factor of a matrix times a number.
        split: The rows of its blocks; see :mod:`mlx_opt.splits`.
        values: Muon's attributes.
    """
    dtype = mx.float32 if x.dtype in STORAGE else x.dtype
    seconds = None if second is None else factors.blocks_of(second.astype(dtype), split)
    updates = []
    for i, block in enumerate(factors.blocks_of(x, split)):
        scale = factors.rate_factor(values["adjust_lr"], block.shape, bool(split))
        matrix = factors.matrix_of(block, bool(split)).astype(dtype)
        matrix = factors.equalized(mx, matrix, values["equalize"])
        if values["normalize"] is None and seconds is None:
            matrix = iterate(matrix, scale)
        else:
            matrix = factors.normalized(mx, iterate(matrix, 1.0), values["normalize"])
            if seconds is not None:
                matrix, seconds[i] = factors.divided(
                    mx, matrix, seconds[i], values["beta2"], values["normuon"]
                )
            matrix = scale * matrix
        updates.append(matrix.astype(x.dtype).reshape(block.shape))
    update = mx.concatenate(updates)
    return update, None if seconds is None else mx.concatenate(seconds)
