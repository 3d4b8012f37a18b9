"""The sums over all tensors that a rule needs before its step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from . import _ext, master_weights
from .clipping import ClippedStep, scaled
from .forms import Form
from .formulas import SUMS
from .grouping import Portion
from .rule_formula import STORAGE

Totals = dict[str | None, list[mx.array]]
"""The sums by the keys of the numbers that the rule keeps; see KeptNumbers."""


def totals_of(
    optimizer: Any,
    portions: Sequence[Portion],
    parts: Sequence[_ext.Part],
    clipped: ClippedStep | None,
) -> Totals:
    """The sums over the leaves of a step's parts. The portions have the numbers that the rule keeps
    as before the step."""
    totals: Totals = {}

    def add(key: str | None, sums: Sequence[mx.array]) -> None:
        before = totals.get(key)
        totals[key] = [a + b for a, b in zip(before, sums, strict=True)] if before else [*sums]

    form = optimizer._forms.forms[0]
    for portion, part in zip(portions, parts, strict=True):
        for key, sums in zip(portion.keys, part.sums(), strict=False):
            add(key, sums)
        for group, gradient, parameter, state in part.unserved():
            hypers, rate, scale, _ = portion.groups[group]
            if scale != 1.0:
                rate = rate * scale
            arrays = _arrays(form, gradient, parameter, state, clipped)
            options = {"learning_rate": rate, **_options(form, hypers)}
            named = SUMS[form.optimizer](mx, *arrays, optimizer.step, **options)
            add(portion.keys[group], [x.astype(mx.float32) for x in named.values()])
    return totals


def totals_by_formula(optimizer: Any, gradients: Any, parameters: Any) -> list[mx.array] | None:
    """The sums of an optimizer whose `apply_single` is overridden; None if there are no leaves."""
    values = optimizer._values()
    program, hypers = optimizer._program_of(values)
    groups = [(hypers, optimizer._rate(values), 1.0, optimizer.apply_single)]
    part = _ext.Part(
        program, groups, optimizer.step, gradients, parameters, optimizer.state, fused=False
    )
    return totals_of(optimizer, [Portion(program, groups, None, [])], [part], None).get(None)


def _arrays(
    form: Form, gradient: mx.array, parameter: mx.array, state: Any, clipped: ClippedStep | None
) -> tuple[mx.array, mx.array, dict[str, mx.array]]:
    """A leaf as the formula takes it, in float32 if the primitives could store all arrays."""
    masters = [key for key in master_weights.KEYS if key in state]
    if masters:
        parameter = master_weights.weight_of(parameter, state[masters[0]])
    slots = {slot.name: state[slot.name] for slot in form.slots}
    slots = {name: x if isinstance(x, mx.array) else mx.array(x) for name, x in slots.items()}
    arrays = [parameter, gradient, *slots.values()]
    if all(x.dtype in STORAGE for x in arrays):
        parameter, gradient, *own = (x.astype(mx.float32) for x in arrays)
        slots = dict(zip(slots, own, strict=True))
    if clipped is not None:
        gradient = scaled(gradient, clipped.scale, clipped.max_value)
    return parameter, gradient, slots


def _options(form: Form, hypers: Sequence[Any]) -> dict[str, Any]:
    """The options of a formula from the hyperparameters in the rule's order."""
    options: dict[str, Any] = {}
    for (name, index), value in zip(form.hypers, hypers, strict=False):
        options[name] = value if index is None else (*options.get(name, ()), value)
    return {**options, **dict(zip(form.kept, hypers[len(form.hypers) :], strict=True))}
