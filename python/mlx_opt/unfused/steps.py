"""The functions of a compiled part, in MLX's operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from .. import codes
from ..descriptions import BY_RULE
from ..formulas import KEPT
from ..rule_formula import STORAGE
from ..trees import CONTAINERS
from .part import Notes, Part, Program, checked_step

MOST_THREADS = 1024


def available() -> bool:
    """False: nothing runs the rules but MLX."""
    return False


def gpu_problem() -> str:
    return "this build of mlx_opt has no part for the MLX that is installed"


def num_threads() -> int:
    """1: MLX runs a stream's operations on one thread."""
    return 1


def set_num_threads(threads: int) -> None:
    """Checks the number; a part would use so many threads."""
    if not 1 <= threads <= MOST_THREADS:
        raise ValueError(f"threads: expected 1 to {MOST_THREADS}, got {threads}")


def program(
    rule: str,
    with_options: bool = False,
    formats: dict[str, str] | None = None,
    masters: str | None = None,
    rounding_seed: int | None = None,
) -> Program:
    """A program. `rounding_seed`: not used; the optimizer's formula refuses what is to be rounded
    stochastically."""
    if formats is not None and codes.FORMAT in formats.values():
        raise ValueError("state_dtype: int8 needs a build of mlx_opt for the MLX that is installed")
    return Program(rule, with_options, formats, masters)


def muon_program(rule: str, *options: Any) -> Program:
    """A program, without the options: Muon's formula reads those of the optimizer."""
    return Program(rule, masters=options[-2])


def update(parts: Sequence[Part], counters: Sequence[Any], notes: Notes) -> bool:
    """Put the results of a step into the model and the state; nothing is overwritten."""
    for part in parts:
        part.collect()
    if not all(part.is_assignable() for part in parts):
        return False
    stage(parts)
    for part in parts:
        part.commit(notes)
        part.assign(notes)
    notes.clear()
    return True


def stage(parts: Sequence[Part]) -> None:
    for part in parts:
        part.collect()
    for part in parts:
        part.stage()


def commit(parts: Sequence[Part], notes: Notes) -> None:
    for part in parts:
        part.commit(notes)
    notes.clear()


def evaluate_chains(parts: Sequence[Part], counters: Sequence[Any]) -> None:
    """Nothing: as with mlx.optimizers, the program evaluates the state."""


def next_number(step: Any) -> Any:
    return step + 1


def is_assigned(assignment: Any, tree: Any) -> bool:
    if not isinstance(tree, CONTAINERS):
        return type(assignment) is int
    if type(assignment) is not dict:
        return False
    items = list(tree.items() if isinstance(tree, dict) else enumerate(tree))
    return all(is_assigned(assignment.get(key), child) for key, child in items)


def next_kept(
    program: Program,
    hypers: Sequence[Any],
    learning_rate: Any,
    step: Any,
    sums: Sequence[mx.array] = (),
) -> dict[str, mx.array]:
    """The numbers that a rule keeps from step to step, by name."""
    rule = BY_RULE[program.rule]
    described = rule.hypers
    if not any(hyper.kept for hyper in described):
        return {}
    values = {hyper.name: value for hyper, value in zip(described, hypers, strict=True)}
    number = mx.array(checked_step(step)).astype(mx.float32)
    totals = [dict(zip(("numerator", "denominator"), sums, strict=True))] if rule.sums else []
    kept = KEPT[rule.optimizer](mx, values, learning_rate, number, *totals)
    return {name: mx.array(value).astype(mx.float32) for name, value in kept.items()}


def global_norm(tree: Any) -> mx.array | None:
    """The norm in float32; None if a leaf is not of a storage dtype."""
    leaves: list[Any] = []
    _collect(tree, leaves)
    if any(not isinstance(x, mx.array) or x.dtype not in STORAGE for x in leaves):
        return None
    squares = [mx.square(x.astype(mx.float32)).sum() for x in leaves]
    return mx.sqrt(sum(squares, mx.array(0.0)))


def _collect(tree: Any, leaves: list[Any]) -> None:
    if isinstance(tree, Part):
        leaves += tree.gradients()
    elif isinstance(tree, CONTAINERS):
        for child in list(tree.values() if isinstance(tree, dict) else tree):
            _collect(child, leaves)
    else:
        leaves.append(tree)


def gradient_scale(norm: mx.array, max_norm: Any, skip_nonfinite: bool = False) -> mx.array:
    """min(max_norm / (norm + 1e-6), 1); NaN if the norm is not finite and the step is skipped."""
    limit = float("inf") if max_norm is None else max_norm
    limit = limit if isinstance(limit, mx.array) else mx.array(limit, norm.dtype)
    scale = mx.minimum(limit / (norm + 1e-6), 1.0)
    if not skip_nonfinite:
        return scale
    return mx.where(mx.isfinite(norm), scale, mx.array(float("nan"), scale.dtype))


def begin_scale(scale: mx.array) -> None:
    """Nothing: the scale is a part of the step's graph."""


def orthogonalized(
    matrices: Sequence[mx.array],
    scales: Sequence[float],
    coefficients: Sequence[Sequence[float]],
    steps: int,
    dtype: mx.Dtype | None,
    stack: int,
) -> list[mx.array]:
    """An approximation of U V^T for each matrix U S V^T, times its scale."""
    results = []
    for matrix, scale in zip(matrices, scales, strict=True):
        inner = dtype or (mx.bfloat16 if matrix.dtype == mx.bfloat16 else mx.float32)
        transposed = matrix.shape[0] > matrix.shape[1]
        x = (matrix.T if transposed else matrix).astype(mx.float32)
        x = (x / (mx.linalg.norm(x) + 1e-7)).astype(inner)
        x = _iterated(x, scale, coefficients, steps).astype(matrix.dtype)
        results.append(x.T if transposed else x)
    return results


def _iterated(
    x: mx.array, scale: float, coefficients: Sequence[Sequence[float]], steps: int
) -> mx.array:
    """Newton-Schulz iterations in a part's products, which round once where a sum is within."""
    if steps == 0:
        return scale * x
    for step in range(steps):
        a, b, c = coefficients[min(step, len(coefficients) - 1)]
        last = scale if step == steps - 1 else 1.0
        gram = x @ x.T
        if mx.default_device() == mx.cpu:
            factor = b * gram + c * (gram @ gram)
        else:
            factor = mx.addmm(gram, gram, gram.T, alpha=c, beta=b)
        x = mx.addmm(x, factor, x, alpha=last, beta=a * last)
    return x
