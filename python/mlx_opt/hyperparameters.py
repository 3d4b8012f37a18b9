"""The hyperparameters of an optimizer: what they may be, and the attributes that hold them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from . import descriptions, reserved


class Attribute:
    """A hyperparameter of an optimizer's constructor: a number, a bool, or several numbers."""

    def __init__(
        self, optimizer: str, name: str, standards: dict[str, Any], is_option: bool = False
    ) -> None:
        """`standards`: the rule's hyperparameters of this attribute, with their defaults."""
        self.optimizer = optimizer
        self.name = name
        self.parts = tuple(standards)
        self.is_sequence = self.parts != (name,)
        self.is_option = is_option
        self.standard = tuple(standards.values()) if self.is_sequence else standards[name]

    @property
    def may_be_scheduled(self) -> bool:
        """False for what chooses the program of a step."""
        return not self.is_option and not isinstance(self.standard, (bool, str))

    def fits(self, value: Any) -> bool:
        """True if the value has a part for each of the rule's."""
        if not self.is_sequence or callable(value):
            return True
        return isinstance(value, (tuple, list)) and len(value) == len(self.parts)

    def split(self, value: Any) -> list[Any]:
        """The value of each part."""
        if not self.fits(value):
            count = len(self.parts)
            raise ValueError(
                f"{self.optimizer}: {self.name}: expected {count} numbers, got {value}"
            )
        if not self.is_sequence:
            return [value]
        if callable(value):
            return [Element(self, value, i) for i in range(len(self.parts))]
        return list(value)

    def joined(self, parts: list[Any]) -> Any:
        return tuple(parts) if self.is_sequence else parts[0]

    def settled(self, value: Any) -> Any:
        """A constant value in the form that a step takes."""
        return value

    def check(self, value: Any) -> None:
        """Raise TypeError or ValueError unless the rule allows a value."""
        if self.is_option and value is None:
            return
        for part, each in zip(self.parts, self.split(value), strict=True):
            if callable(each) and self.may_be_scheduled:
                continue
            if isinstance(each, mx.array) and not self.may_be_scheduled:
                kind = type(self.standard).__name__
                raise TypeError(f"{self.optimizer}: {part}: expected a {kind}, got array")
            descriptions.check_hyper(self.optimizer, part, each)


class Option(Attribute):
    """An argument of a constructor that chooses the program of a step; its use checks it."""

    def __init__(self, optimizer: str, name: str) -> None:
        super().__init__(optimizer, name, {name: None}, is_option=True)

    def check(self, value: Any) -> None:
        pass


class Element:
    """The schedule of an element of a schedule's sequence."""

    def __init__(self, attribute: Attribute, schedule: Callable[[Any], Any], index: int) -> None:
        self.attribute, self.schedule, self.index = attribute, schedule, index

    def __call__(self, step: Any) -> Any:
        values, count = self.schedule(step), len(self.attribute.parts)
        shape = getattr(values, "shape", None)
        if shape == (count,) or isinstance(values, (tuple, list)) and len(values) == count:
            return values[self.index]
        raise ValueError(
            f"{self.attribute.optimizer}: {self.attribute.name}: expected {count} numbers from its "
            f"schedule, got {values}"
        )


def has_schedule(value: Any) -> bool:
    """True for a schedule, and for a sequence with one."""
    return callable(value) or isinstance(value, (tuple, list)) and any(map(callable, value))


def first_value(value: Any) -> Any:
    """A value with its schedules replaced by what they are at step 0."""
    if callable(value):
        return value(mx.array(0, mx.uint64))
    return [first_value(each) if callable(each) else each for each in value]


class Held(tuple):
    """The parts of a hyperparameter of which some are in the optimizer's state."""


class InState:
    """The place of a part that is in the optimizer's state."""

    def __init__(self, first: Any, is_scheduled: bool) -> None:
        """`first`: the value until the state has one."""
        self._first = first
        self._is_scheduled = is_scheduled

    def value(self, state: dict, part: str) -> Any:
        values = state if self._is_scheduled else _values_of(state)
        return values.get(part, self._first)


def _values_of(state: dict) -> dict:
    """The values of hyperparameters that are arrays."""
    return reserved.entries_of(state).get(reserved.VALUES, {})


class Hyperparameter:
    """The attribute of an optimizer that holds a hyperparameter.

    Numbers are in the object's own dict. A schedule's value is in the root of the optimizer's
    state, like the learning rate's, and an array is under the reserved key, so that mx.compile sees
    them change. A value that is set over a schedule lasts until the next step.
    """

    def __init__(self, attribute: Attribute, is_checked: bool, missing: Any = None) -> None:
        """`is_checked`: False if any value can be set, as with mlx.optimizers. `missing`: the value
        of objects that were pickled without the attribute; None if there are none."""
        self.attribute = attribute
        self.name = attribute.name
        self.is_checked = is_checked
        self.missing = missing
        self.__doc__ = f"Default: {attribute.standard}."

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        if instance is None:
            return self
        try:
            value = instance.__dict__[self.name]
        except KeyError:
            if self.missing is not None and self.name in instance._additions:
                return self.missing
            raise AttributeError(f'{type(instance).__name__} has no "{self.name}"') from None
        if type(value) is not Held:
            return value
        state = instance.state
        return self.attribute.joined(
            [
                each.value(state, part) if isinstance(each, InState) else each
                for part, each in zip(self.attribute.parts, value, strict=True)
            ]
        )

    def __set__(self, instance: Any, value: Any) -> None:
        attribute = self.attribute
        if self.is_checked:
            attribute.check(value)
        held = value
        if attribute.may_be_scheduled and attribute.fits(value):
            parts = zip(attribute.parts, attribute.split(value), strict=True)
            held = Held(_hold(instance, part, each) for part, each in parts)
        if type(held) is Held and not any(isinstance(each, InState) for each in held):
            held = value
        vars(instance)[self.name] = held

    def __delete__(self, instance: Any) -> None:
        if vars(instance).pop(self.name, _ABSENT) is _ABSENT:
            raise AttributeError(f'{type(instance).__name__} has no "{self.name}"')


_ABSENT = object()


def _hold(optimizer: Any, part: str, value: Any) -> Any:
    """The value, or its place in the state, where it is put."""
    if callable(value):
        optimizer._maybe_schedule(part, value)
        return InState(optimizer.state[part], is_scheduled=True)
    # A subclass may set a hyperparameter before the constructor has run.
    own = vars(optimizer)
    if part in own.get("_schedulers", ()):
        optimizer.state[part] = mx.array(value)
        return InState(optimizer.state[part], is_scheduled=True)
    if isinstance(value, mx.array) and "_state" in own:
        entries = optimizer.state.setdefault(reserved.KEY, {})
        entries.setdefault(reserved.VALUES, {})[part] = value
        return InState(value, is_scheduled=False)
    if "_state" in own:
        _values_of(optimizer.state).pop(part, None)
    return value
