"""Optimizers that mlx.optimizers does not have, derived from their descriptions and formulas."""

from __future__ import annotations

import inspect
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map

from . import docstrings
from .averaging import Averaging
from .constructors import COMMON, bound
from .descriptions import initial_state
from .forms import Form, forms_of
from .formulas import FORMULAS
from .fused import FusedOptimizer
from .hyperparameters import Attribute
from .rule_formula import rule_formula
from .sums import totals_by_formula


class DerivedOptimizer(FusedOptimizer):
    """An optimizer of one rule. Its class is made by :func:`optimizer_class`."""

    _form: Form
    _checks_values = True

    def init_single(self, parameter: mx.array, state: dict) -> None:
        """Initialize optimizer state"""
        slots = [slot for slot in self._form.slots if slot.is_of(parameter.ndim)]
        state.update(initial_state(slots, parameter))

    def _apply_leaves(self, gradients: Any, parameters: Any) -> Any:
        if not self._form.kept:
            return super()._apply_leaves(gradients, parameters)
        # As in mlx.optimizers, but updates the kept numbers, which `apply_single` reads.
        if not self._initialized:
            self.init(gradients)
        for name, schedule in self._schedulers.items():
            self.state[name] = schedule(self.step)
        self.state["step"] = self.step + 1
        sums = totals_by_formula(self, gradients, parameters) if self._forms.sums else None
        self.state.update(self._next_kept(self._values(), self.step, sums))
        return tree_map(self.apply_single, gradients, parameters, self.state)

    def _formula(self, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
        return rule_formula(self, gradient, parameter, state)


def optimizer_class(name: str, module: str) -> type[DerivedOptimizer]:
    """Make the class of an optimizer of one rule; `module` must have it under its name."""
    forms = forms_of(name)
    (form,), attributes = forms.forms, tuple(forms.attributes.values())
    signature = _signature(form, attributes)

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        arguments = bound(signature, name, self, *args, **kwargs)
        arguments.apply_defaults()
        DerivedOptimizer.__init__(self)
        self._maybe_schedule("learning_rate", arguments.arguments["learning_rate"])
        for attribute in attributes:
            setattr(self, attribute.name, arguments.arguments[attribute.name])
        for kept, first in form.kept.items():
            self.state[kept] = mx.array(first)
        self._set_common(arguments.arguments)

    __init__.__signature__ = signature  # type: ignore[attr-defined]
    members: dict[str, Any] = {
        "__doc__": _docstring(name, attributes),
        "__init__": __init__,
        "__module__": module,
        "_form": form,
        "_rule": name,
    }
    members |= {kept: _kept_number(kept) for kept in form.kept}
    bases = (DerivedOptimizer,) if form.average is None else (Averaging, DerivedOptimizer)
    return type(name, bases, members)


def _kept_number(name: str) -> property:
    def number(self: Any) -> mx.array:
        if name not in self.state:
            raise KeyError(f'the optimizer state has no "{name}"')
        return self.state[name]

    return property(number, doc="The value in the last step, from the state; a 0-d array.")


def _signature(form: Form, attributes: tuple[Attribute, ...]) -> inspect.Signature:
    def parameter(name: str, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
        return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default)

    return inspect.Signature(
        [
            parameter("self"),
            # A rule of sums over all tensors finds its own.
            parameter("learning_rate", *([1.0] if form.sums else [])),
            *(parameter(each.name, each.standard) for each in attributes),
            *(
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
                for name, default in COMMON.items()
            ),
        ]
    )


def _docstring(name: str, attributes: tuple[Attribute, ...]) -> str:
    lines = [
        inspect.cleandoc(FORMULAS[name].__doc__ or name),
        "",
        "Args:",
        "    learning_rate: A number, or a schedule: a callable from the number of steps done.",
    ]
    for each in attributes:
        kind = "A bool"
        if each.is_sequence:
            kind = "Numbers, schedules or arrays"
        elif each.may_be_scheduled:
            kind = "A number, a schedule or an array"
        lines.append(f"    {each.name}: {kind}. Default: ``{each.standard}``.")
    lines.append(
        '    master_weights: ``"float32"``, ``"remainder"`` or None: keep the weights in float32.'
    )
    lines += [
        "    ema_decay: Keep an exponential moving average of the weights with this decay: a",
        "        number, a schedule or an array; see :meth:`ema_parameters`. Default: ``None``.",
        '    ema_warmup: ``"ratio"``: the decay is at most (1 + s) / (10 + s) after s steps; a',
        "        power p: at most 1 - (1 + s)^-p. Default: ``None``.",
        "    ema_update_after: The number of steps that are not averaged. Default: ``0``.",
    ]
    lines.append(
        "    groups: Groups of parameters with values of their own: :class:`Group`, or dicts."
    )
    lines += [
        "    state_dtype: The dtype of the state, ``mx.float32``, ``mx.float16``, ``mx.bfloat16``",
        '        or its name, ``"int8"`` for codes of 8 bits, or a dict of these by the names of',
        "        slots. If it is given, parameters keep their dtypes. See docs/guides/memory.md.",
        "        Default: ``None``.",
        "    stochastic_rounding: A bool: round results in bfloat16 up or down at random, right on",
        "        average. See docs/stochastic-rounding.md. Default: ``False``.",
        "    rounding_seed: An int, the seed of the random bits. Default: ``0``.",
        "    accumulate: The number of calls of ``update`` whose gradients make a step; see",
        "        :attr:`accumulate`. Default: ``1``.",
        "    accumulate_dtype: The dtype in which they are added up, or that of the first.",
        "        Default: ``None``.",
    ]
    lines += ["", "Raises:", "    TypeError: An argument is not what it must be.", ""]
    lines.insert(-1, "    ValueError: A hyperparameter is out of its range.")
    lines.append(docstrings.section(name))
    return "\n".join(lines)
