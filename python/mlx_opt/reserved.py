"""What mlx_opt keeps in an optimizer's state besides the entries of mlx.optimizers.

All of it stands under one key of the root, so that no parameter's name collides with it.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

KEY = "mlx_opt"

_FORMERLY_IN_THE_ROOT = ("grad_norm", "skipped")


def entries_of(state: dict) -> dict:
    """Our entries of a state, which may have none."""
    return state.get(KEY, {})


def refuse_parameters_of_that_name(parameters: Any) -> None:
    if isinstance(parameters, dict) and KEY in parameters:
        raise ValueError(
            f'{KEY}: a parameter of this name cannot be trained, because state["{KEY}"] is reserved'
        )


def move_former_entries(state: dict) -> None:
    """Put what earlier versions kept in the root, as arrays, where it belongs now."""
    for name in _FORMERLY_IN_THE_ROOT:
        if isinstance(state.get(name), mx.array):
            state.setdefault(KEY, {})[name] = state.pop(name)


def move_former_fallback(state: dict) -> None:
    """The same of the state of Muon's fallback, which is a state of its own with a step."""
    fallback = state.get("fallback")
    if isinstance(fallback, dict) and isinstance(fallback.get("step"), mx.array):
        state.setdefault(KEY, {})["fallback"] = state.pop("fallback")
