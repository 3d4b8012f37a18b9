"""Gradients that are added up over several calls, before a step is made with all of them.

What is pending is an entry of the optimizer's state. How many calls it has is the *shape* of an
array there, because mx.compile traces a function anew for other shapes of what it captures, and so
once for each call of a round. The keys never change, because a trace that is run again puts its
results into the captured trees as they are then.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import setitem
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map, tree_map_with_path

from . import _ext, reserved
from .clipping import checked_limit
from .descriptions import BY_RULE, STORAGE
from .foreign import members_of
from .rollback import Rollback
from .state_dtypes import named
from .trees import CONTAINERS

KEY = "accumulated"
_CALLS, _NORMALIZER, _GRADIENTS = "calls", "normalizer", "gradients"


class Total(NamedTuple):
    """The gradients of a step."""

    gradients: Any
    divisor: float | mx.array | None
    """What they are divided by; None if they are as they were given."""


def checked_count(optimizer: str, given: Any) -> int:
    """The argument `accumulate`.

    Raises:
        TypeError, ValueError: It is not an int of 1 or more.
    """
    if isinstance(given, bool) or not isinstance(given, int):
        raise TypeError(f"{optimizer}: accumulate: expected an int, got {type(given).__name__}")
    if given < 1:
        raise ValueError(f"{optimizer}: accumulate: expected 1 or more, got {given}")
    return given


def checked_dtype(optimizer: str, given: Any) -> str | None:
    """The name of the dtype that is the argument `accumulate_dtype`.

    Raises:
        ValueError: It is neither a dtype that gradients are added in, nor None.
    """
    name = named(given)
    if name is None or isinstance(name, str) and name in STORAGE:
        return name
    raise ValueError(
        f"{optimizer}: accumulate_dtype: expected float32, float16, bfloat16 or None, got {given!r}"
    )


def calls_of(state: dict) -> int:
    """The number of calls whose gradients are pending."""
    entry = reserved.entries_of(state).get(KEY)
    return 0 if entry is None else entry[_CALLS].size


def is_used(optimizer: Any, normalizer: Any) -> bool:
    """False if a call is a step with the gradients as they are."""
    return (
        optimizer.accumulate > 1
        or normalizer is not None
        or KEY in reserved.entries_of(optimizer._clip_state())
    )


def add(
    optimizer: Any, gradients: Any, parameters: Any, normalizer: Any, rollback: Rollback
) -> Total | None:
    """Add the gradients of a call to those that are pending.

    Returns the total if the step is to be made now; the pending ones are then dropped.
    """
    optimizer._check_takes_gradients()
    for member in members_of(optimizer):
        if (grouping := getattr(member, "_grouping", None)) is not None:
            rollback.note(grouping.assignment.restore, grouping.assignment.found)
    optimizer.check(gradients, parameters)
    state = optimizer._clip_state()
    calls = calls_of(state) + 1
    frozen = optimizer._frozen(gradients)
    given = {path: g for path, g in _flat(gradients).items() if path not in frozen}
    entry = _entry(state, rollback)
    total = _summed(entry, normalizer, calls)
    held = entry[_GRADIENTS]
    begun = {
        path: _converted(g, optimizer.accumulate_dtype)
        for path, g in given.items()
        if path not in held or held[path].size == 0
    }
    added = {path: g for path, g in given.items() if path not in begun}
    part = _part(added, held)
    if calls < optimizer.accumulate:
        rollback.put(entry, _CALLS, _of_size(calls))
        rollback.put(entry, _NORMALIZER, _of_size(0) if total is None else total)
        for path, g in begun.items():
            rollback.put(held, path, g)
        _ext.update([part], [] if total is None else [total], rollback.notes)
        return None
    _ext.stage([part])
    sums: Any = part.tree()
    totals = {path: x for path, x in held.items() if x.size > 0}
    totals |= given if calls == 1 else {**begun, **sums}
    _drop(state, {**held, **begun}, optimizer.accumulate > 1, rollback)
    divisor: float | mx.array | None = calls if calls > 1 else None
    if total is not None:
        divisor = mx.where(total == 0, 1.0, total)
    like = given
    if optimizer.accumulate_dtype is not None:
        like = {**_flat(parameters), **given}
    if any(x.dtype != like[path].dtype for path, x in totals.items() if path in like):
        totals, divisor = _narrowed(totals, like, divisor), None
    return Total(_placed(totals, gradients, parameters), divisor)


def _narrowed(
    totals: dict[str, mx.array], like: dict[str, mx.array], divisor: float | mx.array | None
) -> dict[str, mx.array]:
    """The means in the dtypes of `like`, which with the parameters' decide those of the results.

    They are divided first, because in float16 a sum may be infinite where its mean is not.
    """
    scale = 1.0 / (1.0 if divisor is None else divisor)
    means = {path: x * scale for path, x in totals.items()}
    return {path: x.astype(like[path].dtype) if path in like else x for path, x in means.items()}


def unchanged(gradients: Any, parameters: Any) -> Any:
    """The parameters, with the structure of the gradients."""
    return tree_map(lambda _, parameter: parameter, gradients, parameters)


def _entry(state: dict, rollback: Rollback) -> dict:
    """The pending gradients by their paths, and what belongs to them."""
    if reserved.KEY not in state:
        rollback.put(state, reserved.KEY, {})
    entries = state[reserved.KEY]
    if KEY not in entries:
        entry = {_CALLS: _of_size(0), _NORMALIZER: _of_size(0), _GRADIENTS: {}}
        rollback.put(entries, KEY, entry)
    entry = entries[KEY]
    held = entry.get(_GRADIENTS, {})  # a file does not have empty dicts
    if not isinstance(held, dict) or any(isinstance(x, CONTAINERS) for x in held.values()):
        held = _flat(held)  # as tree_unflatten makes it
    if entry.get(_GRADIENTS) is not held:
        rollback.put(entry, _GRADIENTS, held)
    return entry


def _drop(state: dict, held: dict, keeps_entry: bool, rollback: Rollback) -> None:
    """Put empty arrays in the place of what was pending."""
    entries = state[reserved.KEY]
    if not keeps_entry:
        rollback.note(setitem, entries, KEY, entries.pop(KEY))
        return
    nothing = {dtype: mx.zeros((0,), dtype) for dtype in {x.dtype for x in held.values()}}
    empty = {path: nothing[x.dtype] for path, x in held.items()}
    entry = {_CALLS: _of_size(0), _NORMALIZER: _of_size(0), _GRADIENTS: empty}
    rollback.put(entries, KEY, entry)


def _of_size(size: int) -> mx.array:
    return mx.zeros((size,), mx.uint8)


def _summed(entry: dict, normalizer: Any, calls: int) -> mx.array | None:
    """The sum of the normalizers, 0-d; None if none is given."""
    before = entry[_NORMALIZER]
    if calls > 1 and (normalizer is None) != (before.ndim > 0):
        raise ValueError(
            "normalizer: it must be given in all calls whose gradients are added, or in none"
        )
    if normalizer is None:
        return None
    number = mx.array(checked_limit("normalizer", normalizer)).astype(mx.float32).reshape(())
    return number if calls == 1 else before + number


def _flat(tree: Any) -> dict[str, Any]:
    leaves: Any = tree_flatten(tree)
    flat = dict(leaves)
    if len(flat) < len(leaves):
        raise ValueError("accumulate: two gradients have the same path")
    return flat


def _converted(gradient: mx.array, dtype: mx.Dtype | None) -> mx.array:
    is_stored = gradient.dtype in STORAGE.values()
    return gradient if dtype is None or not is_stored else gradient.astype(dtype)


def _part(gradients: Mapping[str, mx.array], held: dict[str, mx.array]) -> _ext.Part:
    """What adds gradients to those that are held: SGD with a learning rate of -1."""
    hypers = [hyper.standard for hyper in BY_RULE["SGD"].hypers]
    program = _ext.program("SGD", False, {})  # keeps the dtypes of what is held
    group = hypers, mx.array(-1.0), 1.0, _sum
    return _ext.Part(program, [group], 0, gradients, held, None, initialized=False, assigned=True)


def _sum(gradient: mx.array, held: mx.array, _: Any) -> mx.array:
    if held.dtype not in STORAGE.values():
        return held + gradient
    return (held.astype(mx.float32) + gradient.astype(mx.float32)).astype(held.dtype)


def _placed(totals: dict[str, mx.array], gradients: Any, parameters: Any) -> Any:
    """The totals in a tree: that of the gradients, or of the parameters if that has not all."""
    found: set[str] = set()

    def place(path: str, gradient: Any) -> Any:
        found.add(path)
        return totals.get(path, gradient)  # a frozen one is not added up

    tree = tree_map_with_path(place, gradients)
    return tree if found >= totals.keys() else _selected(totals, parameters, "")


def _selected(totals: dict[str, mx.array], parameters: Any, path: str) -> Any:
    if not isinstance(parameters, CONTAINERS):
        return totals.get(path, {})
    prefix = f"{path}." if path else ""
    if isinstance(parameters, dict):
        below = {key: _selected(totals, x, f"{prefix}{key}") for key, x in parameters.items()}
        return {key: x for key, x in below.items() if not (isinstance(x, CONTAINERS) and not x)}
    return [_selected(totals, x, f"{prefix}{i}") for i, x in enumerate(parameters)]
