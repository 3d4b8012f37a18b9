"""Chooses the rule for an optimizer and its options, from the rules' descriptions.

A hyperparameter is a number, a schedule or an array, but a flag that chooses a form is a bool.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any, NamedTuple

import mlx.core as mx

from . import _ext
from .descriptions import Description, Slot, of_optimizer
from .hyperparameters import Attribute

# An array may become positive from one step to the next.
_HOLDS = {
    "positive": lambda value: isinstance(value, mx.array) or value > 0,
    "off": lambda value: not value,
    "on": lambda value: bool(value),
}


class Form(NamedTuple):
    """A rule, and the conditions under which it serves its optimizer."""

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

    def holds(self, values: dict[str, Any]) -> bool:
        return all(_HOLDS[setting](values[option]) for option, setting in self.conditions)

    def settle(self, values: dict[str, Any]) -> tuple[_ext.Program, list[Any]]:
        hypers = [
            values[name] if index is None else values[name][index] for name, index in self.hypers
        ]
        hypers += [values[name] for name in self.kept]
        if self.option is None:
            return _program(self.rule), hypers
        with_options = values[self.option] is not None
        return _program(self.rule, with_options), [0.0 if x is None else x for x in hypers]


class Forms(NamedTuple):
    """The forms of an optimizer, in the order in which their conditions are to be checked."""

    forms: tuple[Form, ...]
    attributes: dict[str, Attribute]
    """The hyperparameters that the optimizer's constructor takes, by name."""

    keeps: bool
    """True if the rule keeps numbers from step to step."""

    names: tuple[str, ...]
    """The attributes of the optimizer that the forms read: hyperparameters and kept numbers."""

    def settle(self, values: dict[str, Any]) -> tuple[_ext.Program, list[Any]]:
        """The program that these attributes select, and its hyperparameters."""
        for form in self.forms:
            if not form.conditions or form.holds(values):
                return form.settle(values)
        raise ValueError("no rule serves these hyperparameters")


_program = cache(_ext.program)


@cache
def forms_of(optimizer: str) -> Forms:
    forms = tuple(_form(description) for description in of_optimizer(optimizer))
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
    kept = {name: None for form in forms for name in form.kept}
    return Forms(forms, attributes, bool(kept), (*attributes, *kept))


def _form(description: Description) -> Form:
    options = [slot.option for slot in description.slots if slot.option is not None]
    standards = {
        hyper.name: bool(hyper.standard) if hyper.range == "flag" else hyper.standard
        for hyper in description.hypers
        if not hyper.kept
    }
    return Form(
        description.rule,
        tuple(map(_hyper, standards)),
        standards,
        {hyper.name: hyper.standard for hyper in description.hypers if hyper.kept},
        description.slots,
        description.conditions,
        options[0] if options else None,
        description.elementwise,
        description.average,
    )


def _hyper(name: str) -> tuple[str, int | None]:
    element = re.fullmatch(r"(\w+)\[(\d+)\]", name)
    return (name, None) if element is None else (element[1], int(element[2]))
