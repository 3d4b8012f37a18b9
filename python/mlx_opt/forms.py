"""Chooses the rule for an optimizer and its options, from the rules' descriptions.

A hyperparameter is a number, a schedule or an array, but a flag that chooses a form is a bool.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import mlx.core as mx

from . import _ext
from .descriptions import Description, Slot, of_optimizer
from .formulas import KEPT
from .hyperparameters import Attribute
from .rounding import seed_of
from .state_dtypes import NAME as STATE_DTYPE
from .state_dtypes import Formats, formats_of, with_formats


def _is_decoupled(values: dict[str, Any], kind: str) -> bool:
    if values[kind] == "decoupled":
        return True
    decay = values["weight_decay"]
    return not isinstance(decay, mx.array) and decay == 0


# An array may become positive from one step to the next.
_HOLDS: dict[str, Callable[[dict[str, Any], str], bool]] = {
    "positive": lambda values, name: isinstance(values[name], mx.array) or values[name] > 0,
    "off": lambda values, name: not values[name],
    "on": lambda values, name: bool(values[name]),
    "decoupled": _is_decoupled,
}


def check_decay(values: dict[str, Any]) -> None:
    """Raise ValueError if the hyperparameters of weight decay do not go together."""
    kind = values.get("weight_decay_kind", "decoupled")
    if kind == "decoupled":
        return
    decay = values["weight_decay"]
    if not isinstance(decay, mx.array) and decay == 0:
        return
    if kind == "coupled" and values["cautious_weight_decay"]:
        raise ValueError('cautious_weight_decay needs a weight_decay_kind other than "coupled"')
    if kind == "corrected":
        greatest = values["max_learning_rate"]
        if not isinstance(greatest, mx.array) and greatest == 0:
            raise ValueError('a weight_decay_kind of "corrected" needs max_learning_rate')


def check_cautious(values: dict[str, Any]) -> None:
    """Raise ValueError if the other options do not go with `cautious`."""
    if not values.get("cautious"):
        return
    if values.get("amsgrad"):
        raise ValueError("cautious does not go with amsgrad")
    decay = values["weight_decay"]
    has_decay = isinstance(decay, mx.array) or decay != 0
    if values["weight_decay_kind"] == "coupled" and has_decay:
        raise ValueError('cautious needs a weight_decay_kind other than "coupled"')


class Form(NamedTuple):
    """A rule, and the conditions under which it serves its optimizer."""

    optimizer: str
    rule: str
    hypers: tuple[tuple[str, int | None], ...]
    """For each the attribute and, if that is a sequence, the index in it."""

    standards: dict[str, Any]
    """The defaults of the hyperparameters, by their names in the rule's description."""

    kept: dict[str, float]
    """The numbers that the state keeps, with those that they begin as; behind the `hypers`."""

    slots: tuple[Slot, ...]
    conditions: tuple[tuple[str, str], ...]
    option: str | None
    """The attribute that enables the optional slots if it is not None."""

    elementwise: bool
    """True if the update of an element depends only on that element's gradient and state."""

    average: tuple[str, str] | None
    """For a parameter that is between a slot and its average: the slot, and the hyperparameter that
    is the average's part."""

    sums: int
    """The number of sums over all tensors on which the kept numbers depend."""

    def holds(self, values: dict[str, Any]) -> bool:
        return all(_HOLDS[setting](values, option) for option, setting in self.conditions)

    def settle(self, values: dict[str, Any]) -> tuple[_ext.Program, list[Any]]:
        hypers = [
            values[name] if index is None else values[name][index] for name, index in self.hypers
        ]
        hypers += [values[name] for name in self.kept]
        stored = self.formats(values), values.get("master_weights"), seed_of(values)
        if self.option is None:
            return _program(self.rule, False, *stored), hypers
        with_options = values[self.option] is not None
        hypers = [0.0 if x is None else x for x in hypers]
        return _program(self.rule, with_options, *stored), hypers

    def formats(self, values: dict[str, Any]) -> Formats | None:
        """The formats of slots that the program chooses; None if it chooses none."""
        return formats_of(self.optimizer, self.optimizer, values.get(STATE_DTYPE))

    def slots_as_stored(self, values: dict[str, Any]) -> tuple[Slot, ...]:
        """The slots with the formats that the program chooses."""
        return with_formats(self.slots, self.formats(values))


class Forms(NamedTuple):
    """The forms of an optimizer, in the order in which their conditions are to be checked."""

    forms: tuple[Form, ...]
    attributes: dict[str, Attribute]
    """The hyperparameters that the optimizer's constructor takes, by name."""

    kept: tuple[str, ...]
    """The numbers that the rule keeps from step to step."""

    names: tuple[str, ...]
    """The attributes of the optimizer that the forms read: hyperparameters and kept numbers."""

    kept_inputs: frozenset[str]
    """The attributes on which the kept numbers depend."""

    sums: int
    """The number of sums over all tensors on which they depend."""

    def settle(self, values: dict[str, Any]) -> tuple[_ext.Program, list[Any]]:
        """The program that these attributes select, and its hyperparameters."""
        return self.form_of(values).settle(values)

    def form_of(self, values: dict[str, Any]) -> Form:
        """The form that these attributes select."""
        for form in self.forms:
            if not form.conditions or form.holds(values):
                return form
        raise ValueError("no rule serves these hyperparameters")


@cache
def _program(
    rule: str,
    with_options: bool,
    formats: Formats | None,
    masters: str | None,
    rounding_seed: int | None,
) -> _ext.Program:
    own = None if formats is None else dict(formats)
    return _ext.program(rule, with_options, own, masters, rounding_seed)


@cache
def forms_of(optimizer: str) -> Forms:
    described = of_optimizer(optimizer)
    forms = tuple(map(_form, described))
    standards: dict[str, dict[str, Any]] = {}  # of each attribute
    for form in forms:
        for (name, _), part in zip(form.hypers, form.standards, strict=True):
            standards.setdefault(name, {})[part] = form.standards[part]
    for form in forms:
        for option, _ in form.conditions:
            standards.setdefault(option, {option: False})
    options = {form.option for form in forms}
    attributes = {
        name: Attribute(optimizer, name, parts, name in options)
        for name, parts in standards.items()
    }
    kept = tuple({name: None for form in forms for name in form.kept})
    inputs = (_hyper(name)[0] for each in described for name in _kept_inputs(each))
    return Forms(forms, attributes, kept, (*attributes, *kept), frozenset(inputs), forms[0].sums)


class _Floats:
    """What a formula of kept numbers needs of an array module, for floats.

    Nothing may be evaluated while mlx_opt is imported: MLX would start a thread, and a process with
    threads cannot fork.
    """

    maximum = staticmethod(max)
    minimum = staticmethod(min)

    @staticmethod
    def where(condition: bool, a: float, b: float) -> float:
        return a if condition else b


def _kept_inputs(description: Description) -> list[str]:
    """The hyperparameters on which the numbers that a rule keeps depend."""
    if not any(hyper.kept for hyper in description.hypers):
        return []
    usual = {hyper.name: 3.0 for hyper in description.hypers}

    sums = [{"numerator": 70.0, "denominator": 7.0}] if description.sums else []

    def following(**changed: float) -> dict[str, float]:
        return KEPT[description.optimizer](_Floats, {**usual, **changed}, 8.0, 2.0, *sums)

    def matters(name: str) -> bool:
        return any(following(**{name: value}) != following() for value in (5.0, 0.25))

    return [hyper.name for hyper in description.hypers if not hyper.kept and matters(hyper.name)]


def _form(description: Description) -> Form:
    options = [slot.option for slot in description.slots if slot.option is not None]
    standards = {
        hyper.name: bool(hyper.standard) if hyper.range == "flag" else hyper.standard
        for hyper in description.hypers
        if not hyper.kept
    }
    return Form(
        description.optimizer,
        description.rule,
        tuple(map(_hyper, standards)),
        standards,
        {hyper.name: hyper.standard for hyper in description.hypers if hyper.kept},
        description.slots,
        description.conditions,
        options[0] if options else None,
        description.elementwise,
        description.average,
        description.sums,
    )


def _hyper(name: str) -> tuple[str, int | None]:
    element = re.fullmatch(r"(\w+)\[(\d+)\]", name)
    return (name, None) if element is None else (element[1], int(element[2]))
