"""Steps of optimizers that are not fused: subclasses with hooks, wrappers, other packages."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.optimizers.optimizers as stock
from mlx.utils import tree_map

from .clipping import ClippedStep
from .rollback import Rollback
from .trees import CONTAINERS

Apply = Callable[[Any, Any], Any]
"""What returns the updated parameters for gradients and parameters."""


def run_foreign(
    optimizer: stock.Optimizer,
    apply: Apply,
    gradients: Any,
    parameters: Any,
    clipped: ClippedStep | None,
    rollback: Rollback,
) -> Any:
    """Run an optimizer's own step, of clipped gradients, and return the updated parameters."""
    keep(optimizer, rollback)
    if clipped is None:
        return apply(gradients, parameters)
    scaled = tree_map(clipped.scaled, gradients)
    if clipped.finite is None:
        return apply(scaled, parameters)
    if not _initialize(optimizer, gradients):
        # Its state is out of sight, so a step that has been done could not be taken back.
        if _is_finite(clipped, optimizer, "keeps its state elsewhere"):
            return apply(scaled, parameters)
        return tree_map(lambda _, parameter: parameter, gradients, parameters)
    return _run_unless_skipped(optimizer, apply, scaled, parameters, clipped)


def members_of(optimizer: stock.Optimizer) -> list[Any]:
    """The optimizer and those that it is made of."""
    members = [optimizer]
    fallback = getattr(optimizer, "fallback", None)
    for member in [*getattr(optimizer, "optimizers", ()), *([fallback] if fallback else ())]:
        members += members_of(member)
    return members


def keep(optimizer: stock.Optimizer, rollback: Rollback) -> None:
    """Let the rollback restore an optimizer's state, whatever changes it."""
    for member in members_of(optimizer):
        rollback.note(partial(setattr, member, "_initialized", member._initialized))
        rollback.keep_tree(member.state)


def _initialize(optimizer: stock.Optimizer, gradients: Any) -> bool:
    """Make the state before the step, as the step would; False if it is not this optimizer's."""
    # One that is made of others has no state of its own to initialize.
    if all(m._initialized for m in members_of(optimizer) if not hasattr(m, "optimizers")):
        return True
    cls = type(optimizer)
    if cls.init_single is stock.Optimizer.init_single and not hasattr(optimizer, "optimizers"):
        return False
    optimizer.init(gradients)
    return True


def _run_unless_skipped(
    optimizer: stock.Optimizer,
    apply: Apply,
    gradients: Any,
    parameters: Any,
    clipped: ClippedStep,
) -> Any:
    taken_back = Rollback()
    keep(optimizer, taken_back)
    before = _copied(optimizer.state)
    updated = apply(gradients, parameters)
    changes: list[Callable[[], None]] = []
    path = _collect_choices(optimizer.state, before, clipped, changes, "")
    if path is None:
        for change in changes:
            change()
        return tree_map(clipped.chosen, updated, parameters)
    # What is not an array of the same shape before and after cannot be chosen lazily.
    if _is_finite(clipped, optimizer, f'changes the form of its state "{path}"'):
        return updated
    taken_back.undo()
    return tree_map(lambda _, parameter: parameter, updated, parameters)


def _is_finite(clipped: ClippedStep, optimizer: stock.Optimizer, reason: str) -> bool:
    finite: Any = clipped.finite
    try:
        return bool(finite.item())
    except ValueError as error:
        raise ValueError(
            f"skip_nonfinite: {type(optimizer).__name__} {reason}, so its step cannot be skipped "
            "inside a transformation"
        ) from error


def _copied(tree: Any) -> Any:
    """A copy of all containers of a tree."""
    if isinstance(tree, dict):
        return {key: _copied(value) for key, value in tree.items()}
    return [_copied(value) for value in tree] if isinstance(tree, (list, tuple)) else tree


def _collect_choices(
    new: Any, old: Any, clipped: ClippedStep, changes: list[Callable[[], None]], path: str
) -> str | None:
    """Collect what makes each array of `new` that of `old` if the step is skipped.

    Returns the path of an entry for which that cannot be, or None.
    """
    keys = new.keys() if isinstance(new, dict) else range(len(new))
    if len(new) != len(old):
        return path
    for key in keys:
        here = f"{path}.{key}" if path else str(key)
        if isinstance(old, dict) and key not in old:
            return here
        value, before = new[key], old[key]
        if isinstance(value, CONTAINERS) and isinstance(before, CONTAINERS):
            problem = _collect_choices(value, before, clipped, changes, here)
            if problem is not None:
                return problem
        elif isinstance(value, mx.array) and isinstance(before, mx.array):
            if value.shape != before.shape or value.dtype != before.dtype:
                return here
            if isinstance(new, tuple):
                return here
            changes.append(_chooser(new, key, value, before, clipped))
        elif value is not before and value != before:
            return here
    return None


def _chooser(
    tree: Any, key: Any, value: mx.array, before: mx.array, clipped: ClippedStep
) -> Callable[[], None]:
    def choose() -> None:
        tree[key] = clipped.chosen(value, before)

    return choose
