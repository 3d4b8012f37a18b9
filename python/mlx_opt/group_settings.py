"""What one group sets, in the form that a step takes."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any

import mlx.core as mx

from .groups import Group
from .hyperparameters import Attribute

OWN_KEYS = ("learning_rate_scale", "frozen")


class Settings:
    """What one group sets: constants, and values that the optimizer's state has."""

    def __init__(
        self,
        optimizer: str,
        group: Group,
        attributes: dict[str, Attribute],
        kept_inputs: frozenset[str] = frozenset(),
    ) -> None:
        """`kept_inputs`: the hyperparameters of which the rule computes a number that it keeps."""
        self.name = group.name
        self.constants: dict[str, Any] = {}
        self.schedules: dict[str, Callable[[Any], Any]] = {}
        self.arrays: dict[str, mx.array] = {}
        self._sequences: dict[str, list[Any]] = {}
        """The attributes with elements in the state, whose places have None."""

        if group.frozen is not None:
            self.constants["frozen"] = group.frozen
        if group.learning_rate_scale is not None:
            self.constants["learning_rate_scale"] = _scale(group.learning_rate_scale)
        for name, value in group.hyperparameters.items():
            if name not in attributes:
                known = ", ".join([*attributes, *OWN_KEYS])
                raise TypeError(
                    f"{optimizer}: groups: there is no {name}; a group can have {known}"
                )
            self._add(attributes[name], value)
            if name in kept_inputs and group.name is None:
                raise ValueError(
                    f"{optimizer}: groups: a group with {name} needs a name, for the number that "
                    "the state keeps for it"
                )
        if self.name is None and self.is_in_state:
            first = next(iter(self._sequences))
            raise ValueError(
                f"{optimizer}: groups: a group with a schedule or an array for {first} needs a name"
            )

    def _add(self, attribute: Attribute, value: Any) -> None:
        attribute.check(value)
        if not attribute.may_be_scheduled:
            self.constants[attribute.name] = value
            return
        constants = attribute.split(value)
        for i, (part, each) in enumerate(zip(attribute.parts, constants, strict=True)):
            if callable(each):
                self.schedules[part] = each
            elif isinstance(each, mx.array):
                self.arrays[part] = each
            else:
                continue
            constants[i] = None
            self._sequences[attribute.name] = constants
        if attribute.name not in self._sequences:
            self.constants[attribute.name] = attribute.settled(value)

    @property
    def is_in_state(self) -> bool:
        """True if the optimizer's state has values of the group."""
        return bool(self._sequences)

    @property
    def keys(self) -> tuple[str, ...]:
        return (*self.constants, *self._sequences)

    def values(self, attributes: dict[str, Attribute], entries: dict) -> dict[str, Any]:
        """The values of all that the group sets. `entries`: the groups' entries in the state."""
        if not self._sequences:
            return self.constants
        own = entries.get(self.name, {})
        values = dict(self.constants)
        for name, constants in self._sequences.items():
            attribute = attributes[name]
            parts = zip(attribute.parts, constants, strict=True)
            values[name] = attribute.joined(
                [own.get(part, 0.0) if each is None else each for part, each in parts]
            )
        return values


class LearningRate(Attribute):
    """A group's own learning rate."""

    def __init__(self) -> None:
        super().__init__("", "learning_rate", {"learning_rate": None})

    def check(self, value: Any) -> None:
        if callable(value) or isinstance(value, mx.array):
            return
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(
                "groups: learning_rate: expected a number, a schedule or an array, "
                f"got {type(value).__name__}"
            )

    def settled(self, value: Any) -> Any:
        return mx.array(float(value))


def _scale(given: Any) -> float:
    if isinstance(given, bool) or not isinstance(given, Real) or not float(given) >= 0:
        raise ValueError(
            f"groups: learning_rate_scale: expected a number of 0 or more, got {given!r}"
        )
    return float(given)
