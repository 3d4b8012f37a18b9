"""The formula of a rule as the step of one parameter, where no primitive makes it."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from .descriptions import BY_RULE, result_dtypes
from .formulas import FORMULAS

STORAGE = (mx.float32, mx.float16, mx.bfloat16)
"""The dtypes that the primitives read and write."""


def rule_formula(optimizer: Any, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
    """Return the updated parameter; ``state`` is updated in place."""
    values = optimizer._values()
    program, hypers = optimizer._program_of(values)
    form = optimizer._forms.form_of(values)
    slots = [slot for slot in form.slots if not slot.idle]
    names = [slot.name for slot in slots]
    arrays = [parameter, *(state[name] for name in names), gradient]
    dtypes = None
    if all(x.dtype in STORAGE for x in arrays):
        dtypes = result_dtypes(slots, arrays, BY_RULE[program.rule].is_coupled(hypers))
        arrays = [x.astype(mx.float32) for x in arrays]
    new, after = FORMULAS[optimizer._rule](
        mx,
        arrays[0],
        arrays[-1],
        {**state, **dict(zip(names, arrays[1:-1], strict=True))},
        optimizer.step,
        learning_rate=optimizer.learning_rate,
        **{name: _plain(values[name]) for name in optimizer._forms.names},
    )
    results = [new, *(after[name] for name in names)]
    if dtypes is not None:
        results = [x.astype(dtype) for x, dtype in zip(results, dtypes, strict=True)]
    state.update(zip(names, results[1:], strict=True))
    return results[0]


def _plain(value: Any) -> Any:
    """A hyperparameter without scalars of other packages, which MLX does not take."""
    if isinstance(value, (tuple, list)):
        return tuple(map(_plain, value))
    if value is None or isinstance(value, (mx.array, int, float, str)):
        return value
    return float(value)
