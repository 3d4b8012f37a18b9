"""Steps of optimizers that are not fused: subclasses with hooks, wrappers, other packages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.optimizers.optimizers as stock
from mlx.utils import tree_map

from .clipping import ClippedStep
from .rollback import Rollback
from .trees import CONTAINERS

Apply = Callable[[Any, Any], Any]
"""Returns the updated parameters for gradients and parameters."""


def run_foreign(
    optimizer: stock.Optimizer,
    apply: Apply,
    gradients: Any,
    parameters: Any,
    clipped: ClippedStep | None,
    rollback: Rollback,
) -> Any:
    """Run an optimizer's own step on clipped gradients and return the updated parameters."""
    note_state(optimizer, rollback)
    if clipped is None:
        return apply(gradients, parameters)
    scaled = tree_map(clipped.scaled, gradients)
    if clipped.finite is None:
        return apply(scaled, parameters)
    # A snapshot from before the step, even if something replaces the entries meanwhile.
    kept = _copied(parameters)
    if not _initialize(optimizer, gradients):
        # Its state cannot be seen, so a step that was made could not be undone.
        if _is_finite(clipped, optimizer, "keeps its state elsewhere"):
            return apply(scaled, parameters)
        return tree_map(_second, gradients, kept)
    return _run_unless_skipped(optimizer, apply, scaled, parameters, kept, clipped)


def members_of(optimizer: stock.Optimizer) -> list[Any]:
    """The optimizer and all its components."""
    members = [optimizer]
    fallback = getattr(optimizer, "fallback", None)
    for member in [*getattr(optimizer, "optimizers", ()), *([fallback] if fallback else ())]:
        members += members_of(member)
    return members


def holder_of(optimizer: Any) -> Any:
    """The optimizer whose state holds what is of all components: the first with an own state.

    The state of a `MultiOptimizer` is a new dict each time that it is asked for.
    """
    while components := getattr(optimizer, "optimizers", ()):
        optimizer = components[0]
    return optimizer


def note_state(optimizer: stock.Optimizer, rollback: Rollback) -> None:
    """Make the rollback restore an optimizer's whole state."""
    for member in members_of(optimizer):
        own = vars(member)
        kept = {name: own[name] for name in ("_initialized", "_state") if name in own}
        rollback.note(own.update, kept)
        rollback.keep_tree(member.state)


def _initialize(optimizer: stock.Optimizer, gradients: Any) -> bool:
    """Initialize the state, as the step would; False if the optimizer has its state elsewhere."""
    # A composite has no state of its own to initialize.
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
    kept: Any,
    clipped: ClippedStep,
) -> Any:
    taken_back = Rollback()
    note_state(optimizer, taken_back)
    before = _copied(optimizer.state)
    updated = apply(gradients, parameters)
    changes: list[Callable[[], None]] = []
    path = _collect_choices(optimizer.state, before, clipped, changes, set(), "")
    if path is None:
        for change in changes:
            change()
        return tree_map(clipped.chosen, updated, kept)
    # Only an array of the same shape before and after can be chosen lazily.
    if _is_finite(clipped, optimizer, f'changes the form of its state "{path}"'):
        return updated
    taken_back.undo()
    return tree_map(_second, updated, kept)


def _second(_: Any, kept: Any) -> Any:
    return kept


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
    new: Any,
    old: Any,
    clipped: ClippedStep,
    changes: list[Callable[[], None]],
    seen: set[int],
    path: str,
) -> str | None:
    """Collect functions that replace each array of `new` by that of `old` if the step is skipped.

    Returns the path of an entry for which that is impossible, or None. A container that is at two
    places is impossible too: it may have had two values before.
    """
    keys = new.keys() if isinstance(new, dict) else range(len(new))
    if len(new) != len(old) or id(new) in seen:
        return path
    seen.add(id(new))
    for key in keys:
        here = f"{path}.{key}" if path else str(key)
        if isinstance(old, dict) and key not in old:
            return here
        value, before = new[key], old[key]
        if isinstance(value, CONTAINERS) and isinstance(before, CONTAINERS):
            problem = _collect_choices(value, before, clipped, changes, seen, here)
            if problem is not None:
                return problem
        elif isinstance(value, mx.array) and isinstance(before, mx.array):
            if value.shape != before.shape or value.dtype != before.dtype:
                return here
            if isinstance(new, tuple):
                return here
            changes.append(_chooser(new, key, value, before, clipped))
        elif not _is_equal(value, before):
            return here
    return None


def _is_equal(value: Any, before: Any) -> bool:
    """True if an entry that is not an MLX array is unchanged."""
    if value is before:
        return True
    if isinstance(value, mx.array) or isinstance(before, mx.array):
        return False
    try:
        return bool(value == before)
    except (TypeError, ValueError):  # an array of NumPy
        return False


def _chooser(
    tree: Any, key: Any, value: mx.array, before: mx.array, clipped: ClippedStep
) -> Callable[[], None]:
    def choose() -> None:
        tree[key] = clipped.chosen(value, before)

    return choose
