"""The norms of updates and parameters, of all parameters and of each group.

A step that takes them puts into the state, for each of its parts, an array with a row for each
group of the part: the norm of the updates and that of the weights after the step. What is read is
put together from these rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.optimizers.optimizers as stock
from mlx.utils import tree_flatten

from . import reserved
from .foreign import members_of
from .grouping import Portion
from .rollback import Rollback
from .weight_norms import norms_of

KEY = "telemetry"
"""The key of the arrays in mlx_opt's entries of a state."""

Labels = list[Sequence[tuple[str, ...]]]
"""For each array of the state, for each of its rows the names of the groups."""


class Norms(NamedTuple):
    """The norms of a group of parameters in the last step, 0-d and lazy."""

    update_norm: mx.array
    """Of the difference between the parameters after the step and before it."""

    parameter_norm: mx.array
    """Of the parameters after the step."""

    @property
    def ratio(self) -> mx.array:
        """The first divided by the second."""
        return self.update_norm / self.parameter_norm


class Telemetry(NamedTuple):
    """The norms of the last step, 0-d and lazy; see :attr:`Optimizer.telemetry`."""

    update_norm: mx.array
    """Of the difference between the parameters after the step and before it."""

    parameter_norm: mx.array
    """Of the parameters after the step."""

    groups: dict[str, Norms]
    """The same of the parameters of each group, by its name or its patterns."""

    @property
    def ratio(self) -> mx.array:
        """The first divided by the second."""
        return self.update_norm / self.parameter_norm


def switch(optimizer: Any, on: Any) -> None:
    """Have the steps of an optimizer and its components take the norms, or end that.

    Raises:
        TypeError: `on` is no bool, or a component is not of this package.
    """
    if not isinstance(on, bool):
        raise TypeError(f"telemetry: expected a bool, got {type(on).__name__}")
    members = members_of(optimizer)
    for member in members:
        if not hasattr(member, "_takes_norms"):
            name = type(member).__name__
            raise TypeError(f"telemetry: {name} is not an optimizer of mlx_opt")
    for member in members:
        # The state keeps the last norms: if the entry went, mx.compile would take a function for
        # the one that it traced before there was an entry, and put its results in wrong places.
        member._takes_norms = on


def ask(
    optimizer: Any, state: dict, portions: list[Portion], parts: list[Any], rollback: Rollback
) -> None:
    """Have the parts of a step take the norms."""
    arrays = [mx.zeros((len(portion.groups), 2)) for portion in portions]  # the step replaces them
    for part, array in zip(parts, arrays, strict=True):
        part.take_norms(array)
    _put(optimizer, state, arrays, [portion.labels for portion in portions], rollback)


def record(optimizer: Any, parameters: Any, updated: Any, rollback: Rollback) -> None:
    """Record the norms of a step that an optimizer has made itself, in MLX's operations.

    Components record their own.
    """
    if len(members_of(optimizer)) > 1:
        return
    before: Any = tree_flatten(parameters, destination={})
    after: Any = tree_flatten(updated)
    weights = [(0, before[path], x) for path, x in after if path in before]
    _put(optimizer, optimizer.state, [norms_of(weights, 1)], [[()]], rollback)


def _put(
    optimizer: Any, state: dict, arrays: list[mx.array], labels: Labels, rollback: Rollback
) -> None:
    if reserved.KEY not in state:
        rollback.put(state, reserved.KEY, {})
    rollback.put(state[reserved.KEY], KEY, arrays)
    rollback.note(setattr, optimizer, "_norm_labels", optimizer._norm_labels)
    optimizer._norm_labels = labels


def of(optimizer: stock.Optimizer) -> Telemetry | None:
    """The norms of the last step; None if it took none."""
    members = [x for x in members_of(optimizer) if not hasattr(x, "optimizers")]
    rows = [(member, _rows_of(member)) for member in members]
    rows = [(member, own) for member, own in rows if own]
    if not rows:
        return None
    groups: dict[str, list[mx.array]] = {}
    names = _names([type(member).__name__ for member, _ in rows])
    for name, (_, own) in zip(names, rows, strict=True):
        if len(members) > 1:
            groups[name] = [row for _, row in own]
        prefix = f"{name}: " if len(members) > 1 else ""
        for labels, row in own:
            for label in labels:
                groups.setdefault(prefix + label, []).append(row)
    total = _together([row for _, own in rows for _, row in own])
    return Telemetry(*total, {name: Norms(*_together(own)) for name, own in groups.items()})


def _rows_of(optimizer: Any) -> list[tuple[tuple[str, ...], mx.array]]:
    """The names of the groups and the norms of each row."""
    arrays, labels = reserved.entries_of(optimizer.state).get(KEY, []), optimizer._norm_labels
    sizes = [len(each) for each in labels]
    if not optimizer._takes_norms or [len(x) for x in arrays if x.ndim == 2] != sizes:
        return []  # nothing, or of an optimizer with other groups
    pairs = zip(labels, arrays, strict=True)
    return [(each, array[i]) for own, array in pairs for i, each in enumerate(own)]


def _names(names: list[str]) -> list[str]:
    """Names that tell components apart."""
    return [f"{x} {i}" if names.count(x) > 1 else x for i, x in enumerate(names)]


def _together(rows: list[mx.array]) -> tuple[mx.array, mx.array]:
    """The norms of the parameters of several rows."""
    norms = rows[0] if len(rows) == 1 else mx.sqrt(mx.square(mx.stack(rows)).sum(0))
    return norms[0], norms[1]
