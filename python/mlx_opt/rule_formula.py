"""The formula of a rule as the step of one parameter, where no primitive makes it."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from .formulas import FORMULAS

STORAGE = (mx.float32, mx.float16, mx.bfloat16)
"""The dtypes that the primitives read and write."""


def rule_formula(optimizer: Any, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
    """Return the updated parameter; ``state`` is updated in place."""
    values = optimizer._values()
    form = optimizer._forms.form_of(values)
    new, after = FORMULAS[optimizer._rule](
        mx,
        parameter,
        gradient,
        state,
        optimizer.step,
        learning_rate=optimizer.learning_rate,
        **{name: _plain(values[name]) for name in optimizer._forms.names},
    )
    state.update({slot.name: after[slot.name] for slot in form.slots if not slot.idle})
    return new


def _plain(value: Any) -> Any:
    """A hyperparameter without scalars of other packages, which MLX does not take."""
    if isinstance(value, (tuple, list)):
        return tuple(map(_plain, value))
    if value is None or isinstance(value, (mx.array, int, float, str)):
        return value
    return float(value)
