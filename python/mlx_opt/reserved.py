"""The entries that mlx_opt adds to an optimizer's state.

They are under one key of the root, so that only one parameter name collides with them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import mlx.core as mx

KEY = "mlx_opt"
GROUPS = "groups"
"""The key of the entries of groups, by their names."""

VALUES = "values"
"""The key of the hyperparameters that are arrays, by their names."""

_FORMERLY_IN_THE_ROOT = ("grad_norm", "skipped")


def entries_of(state: dict) -> dict:
    """mlx_opt's entries of a state; empty if it has none."""
    return state.get(KEY, {})


def refuse_parameters_of_that_name(parameters: Any, scheduled: Iterable[str] = ()) -> None:
    """`scheduled`: the hyperparameters whose values are in the root of the state."""
    for name in (KEY, *scheduled):
        # As in mlx.optimizers, whose state has the learning rate there.
        if name != "learning_rate" and isinstance(parameters, dict) and name in parameters:
            raise ValueError(
                f"{name}: a parameter of this name cannot be trained, because "
                f'state["{name}"] is reserved'
            )


def move_former_entries(state: dict) -> None:
    """Move the arrays that earlier versions kept in the root to their current place."""
    for name in _FORMERLY_IN_THE_ROOT:
        if isinstance(state.get(name), mx.array):
            state.setdefault(KEY, {})[name] = state.pop(name)


def move_former_fallback(state: dict) -> None:
    """Move the state of Muon's fallback, which is recognised by its step, likewise."""
    fallback = state.get("fallback")
    if isinstance(fallback, dict) and isinstance(fallback.get("step"), mx.array):
        state.setdefault(KEY, {})["fallback"] = state.pop("fallback")
