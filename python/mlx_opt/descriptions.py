"""The rules' descriptions, as the build has written them from the C++ sources.

They need neither a compiled part nor anything else of a build but the data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from . import _rules

COEFFICIENTS: Mapping[str, Sequence[Sequence[float]]] = _rules.COEFFICIENTS
"""Muon's sets by name: (a, b, c) for each iteration; further iterations repeat the last."""

STACK_ELEMENTS = _rules.STACK_ELEMENTS
"""Muon's default number of elements of a stack of matrices."""


DECAY_KINDS: Sequence[str] = _rules.DECAY_KINDS


STORAGE: Mapping[str, mx.Dtype] = {
    "float32": mx.float32,
    "float16": mx.float16,
    "bfloat16": mx.bfloat16,
}
"""The dtypes that the primitives read and write, by the names of the formats of slots."""


class Hyper(NamedTuple):
    """A hyperparameter; see the C++ HyperInfo."""

    name: str
    standard: Any
    range: str
    kept: bool


class Slot(NamedTuple):
    """A state array of a parameter; see the C++ SlotInfo."""

    name: str
    extent: str
    owner: str
    option: str | None
    follows: bool
    idle: bool
    format: str
    begin: str
    codes: str = "of_any_sign"

    def is_of(self, ndim: int) -> bool:
        """True if a parameter of so many dimensions has the slot."""
        return self.owner == "all" or (self.owner == "matrices") == (ndim >= 2)

    def shape_for(self, parameter: Sequence[int]) -> tuple[int, ...]:
        shape = list(parameter)
        if self.extent != "elements":
            del shape[-1 if self.extent == "rows" else -2]
        return tuple(shape)

    def dtype_for(self, parameter: mx.Dtype) -> mx.Dtype:
        """The dtype before the first step."""
        if self.format == "promoted":
            return parameter
        # Only formulas take float64 and complex numbers, whose slots need more than float32.
        stored = STORAGE.get(self.format, mx.float32)  # codes are of parameters of many elements
        is_storage = parameter in STORAGE.values()
        return stored if is_storage else mx.result_type(stored, parameter)


class Description(NamedTuple):
    """A rule's metadata; see the C++ Description."""

    rule: str
    optimizer: str
    hypers: tuple[Hyper, ...]
    slots: tuple[Slot, ...]
    conditions: tuple[tuple[str, str], ...]
    coupling: tuple[str, str | None, str | None]
    average: tuple[str, str] | None
    """For a parameter that is between a slot and its average: the slot, and the hyperparameter that
    is the average's part."""

    elementwise: bool
    """True if the update of an element depends only on that element's gradient and state."""

    sums: int
    """The number of sums over all tensors on which the numbers that the rule keeps depend."""

    def slots_for(self, ndim: int, with_options: bool, with_idle: bool) -> list[Slot]:
        """The slots of a parameter. `with_options`: those of an option, too. `with_idle`: those
        that the rule does not use, too."""
        return [
            slot
            for slot in self.slots
            if slot.is_of(ndim)
            and (with_options or slot.option is None)
            and (with_idle or not slot.idle)
        ]

    def is_coupled(self, hypers: Sequence[Any]) -> bool:
        """True if the rule adds weight decay to the gradient."""
        when, decay, kind = self.coupling
        if when != "unless_zero":
            return when == "always"
        values = dict(zip([hyper.name for hyper in self.hypers], hypers, strict=True))
        value = values[decay or ""]
        is_zero = not isinstance(value, mx.array) and value == 0
        return not is_zero and (kind is None or values[kind] == "coupled")


def _description(rule: dict[str, Any]) -> Description:
    hypers = tuple(Hyper(*each) for each in rule["hypers"])
    slots = tuple(Slot(*each) for each in rule["slots"])
    conditions = tuple(rule["conditions"])
    return Description(**{**rule, "hypers": hypers, "slots": slots, "conditions": conditions})


_RULES: Any = _rules.RULES

BY_RULE: dict[str, Description] = {rule["rule"]: _description(rule) for rule in _RULES}

OPTIMIZERS = list(dict.fromkeys(each.optimizer for each in BY_RULE.values()))
"""The names of the optimizers that the rules serve."""


def of_optimizer(optimizer: str) -> list[Description]:
    """The rules that serve an optimizer, in the order in which their conditions are checked."""
    return [each for each in BY_RULE.values() if each.optimizer == optimizer]


_RANGES = {
    "any": (lambda x: True, ""),
    "not_negative": (lambda x: x >= 0, "0 or more"),
    "positive": (lambda x: x > 0, "more than 0"),
    "not_positive": (lambda x: x <= 0, "0 or less"),
    "below_one": (lambda x: 0 <= x < 1, "a number in [0, 1)"),
    "fraction": (lambda x: 0 < x < 1, "a number in (0, 1)"),
    "flag": (lambda x: x in (0, 1), "true or false"),
}


def check_hyper(optimizer: str, name: str, value: Any) -> None:
    """Check a value of a hyperparameter; arrays are not checked.

    Raises:
        TypeError: The value is not a number.
        ValueError: It is out of the hyperparameter's range.
    """
    if isinstance(value, mx.array):
        return
    full_name = f"{optimizer}: {name}"
    found = [x for each in of_optimizer(optimizer) for x in each.hypers if x.name == name]
    if not found:
        number_from(full_name, value)  # an option that is no hyperparameter
        return
    check_kind_or_number(found[0], full_name, value)
    if found[0].range == "decay_kind":
        return
    holds, expected = _RANGES[found[0].range]
    if not holds(number := number_from(full_name, value)):
        raise ValueError(f"{full_name}: expected {expected}, got {number:g}")


def check_kind_or_number(hyper: Hyper, name: str, value: Any) -> None:
    """Check that a value is a kind of weight decay, if the hyperparameter is one, or a number.

    Raises:
        TypeError: The value is not a number.
        ValueError: It is no kind of weight decay.
    """
    if hyper.range != "decay_kind":
        number_from(name, value)
    elif value not in DECAY_KINDS:
        *kinds, last = (f'"{kind}"' for kind in DECAY_KINDS)
        raise ValueError(f"{name}: expected {', '.join(kinds)} or {last}, got {value!r}")


def number_from(name: str, value: Any) -> float:
    """A number as a float.

    Raises:
        TypeError: The value is not a number; the message has the name.
    """
    if isinstance(value, (int, float)):
        return float(value)
    try:
        if not isinstance(value, str):
            return float(value)
    except Exception as error:
        raise TypeError(_not_a_number(name, value)) from error
    raise TypeError(_not_a_number(name, value))


def _not_a_number(name: str, value: Any) -> str:
    return f"{name}: expected a number or a 0-d mlx.core.array, got {type(value).__name__}"


def initial_state(slots: Sequence[Slot], parameter: mx.array) -> dict[str, mx.array]:
    """The state of a parameter before the first step."""
    begins = {"zeros": 0.0, "unset": float("nan")}
    return {
        slot.name: mx.full(
            slot.shape_for(parameter.shape), begins[slot.begin], slot.dtype_for(parameter.dtype)
        )
        for slot in slots
    }


def result_dtypes(
    slots: Sequence[Slot],
    operands: Sequence[mx.array],
    coupled: bool,
    keeps_parameter: bool = False,
) -> list[mx.Dtype]:
    """The dtypes of a tensor's results, the parameter's first; as the C++ push_dtypes.

    `operands`: the parameter, its slots and the gradient, each float32, float16 or bfloat16.
    """
    own, *states, gradient = (x.dtype for x in operands)
    # Weight decay that is added to the gradient promotes it with the parameter's dtype.
    if coupled:
        gradient = mx.result_type(gradient, own)
    before = gradient
    dtypes: list[mx.Dtype] = []
    for slot, state in zip(slots, states, strict=True):
        if slot.format != "promoted":
            dtypes.append(slot.dtype_for(own))
            continue
        dtypes.append(mx.result_type(state, before if slot.follows else gradient))
        before = mx.result_type(before, dtypes[-1])
    keeps_parameter |= any(slot.format != "promoted" for slot in slots)
    return [
        own if keeps_parameter else mx.result_type(own, mx.result_type(gradient, before)),
        *dtypes,
    ]
