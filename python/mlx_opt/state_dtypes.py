"""The option `state_dtype`: the dtypes of an optimizer's state, as the program chooses them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx

from . import codes
from .descriptions import BY_RULE, STORAGE, Slot, of_optimizer, result_dtypes

NAME = "state_dtype"

NEEDS_ELEMENTWISE = " is for rules that update each element by itself"

FORMATS = (*STORAGE, codes.FORMAT)

Formula = Callable[[mx.array, mx.array, Any], mx.array]

Formats = tuple[tuple[str, str], ...]
"""For slots by name the names of their dtypes."""


def named(given: Any) -> Any:
    """The option with names for dtypes, which can be copied and pickled."""
    if isinstance(given, Mapping):
        return {slot: named(dtype) for slot, dtype in given.items()}
    if not isinstance(given, mx.Dtype):
        return given
    if given == mx.int8:
        return codes.FORMAT
    names = [name for name, dtype in STORAGE.items() if dtype == given]
    return names[0] if names else given


def has_codes(given: Any) -> bool:
    """True if the option stores slots in codes of 8 bits."""
    return codes.FORMAT in (given.values() if isinstance(given, Mapping) else (given,))


def formats_of(name: str, optimizer: str, given: Any) -> Formats | None:
    """The formats of the slots of an optimizer's rules; None if nothing is given.

    `name`: for errors. `optimizer`: the name in the rules' descriptions.

    A dtype for all slots leaves those as they are that the rule stores in float32; a slot that is
    named is stored as it is said, but has codes only if they can hold it.

    Raises:
        TypeError: A dtype is neither a dtype nor the name of one.
        ValueError: There is no such format, or no such slot, or codes cannot hold it.
    """
    if given is None:
        return None
    slots = {slot.name: slot for rule in of_optimizer(optimizer) for slot in rule.slots}
    if not isinstance(given, Mapping):
        format = _format_from(name, given)
        formats = [(slot.name, format) for slot in slots.values() if _can_have(format, slot)]
        if not formats and format == codes.FORMAT:
            raise ValueError(f"{name}: {NAME}: there is no state that int8 can hold")
        return tuple(formats)
    for each in given:
        if each not in slots:
            known = ", ".join(slots) or "no state"
            raise ValueError(f"{name}: {NAME}: there is no {each!r}; it has {known}")
    formats = [(each, _format_from(name, dtype)) for each, dtype in given.items()]
    for each, format in formats:
        if format == codes.FORMAT and not _can_have(format, slots[each]):
            raise ValueError(f"{name}: {NAME}: {each} needs more than the 8 bits of int8")
    return tuple(formats)


def _can_have(format: str, slot: Slot) -> bool:
    """True if a slot has the format that is for all slots."""
    is_coded = format == codes.FORMAT
    return slot.format == "promoted" and not (is_coded and slot.codes == "none")


def check_codes(name: str, values: dict[str, Any], elementwise: bool) -> None:
    """Raise ValueError if a rule cannot have codes that the option asks for."""
    if elementwise or not has_codes(values.get(NAME)):
        return
    reason = " does not go with cautious" if values.get("cautious") else NEEDS_ELEMENTWISE
    raise ValueError(f"{name}: {NAME}: int8{reason}")


def _format_from(optimizer: str, given: Any) -> str:
    name = named(given)
    if isinstance(name, str) and name in FORMATS:
        return name
    if not isinstance(given, (mx.Dtype, str)):
        raise TypeError(
            f"{optimizer}: {NAME}: expected a dtype, its name, or a dict of these by the names of "
            f"slots, got {type(given).__name__}"
        )
    *formats, last = FORMATS
    shown = repr(given) if isinstance(given, str) else given
    raise ValueError(f"{optimizer}: {NAME}: expected {', '.join(formats)} or {last}, got {shown}")


def with_formats(slots: tuple[Slot, ...], formats: Formats | None) -> tuple[Slot, ...]:
    """The slots with these formats in place of their own."""
    if formats is None:
        return slots
    own = dict(formats)
    return tuple(slot._replace(format=own.get(slot.name, slot.format)) for slot in slots)


def slots_of(optimizer: Any) -> tuple[Slot, ...]:
    """The slots of an optimizer, with the formats that the program chooses."""
    values = optimizer._values()
    slots: tuple[Slot, ...] = optimizer._forms.form_of(values).slots_as_stored(values)
    return slots


def begin(optimizer: Any, parameter: mx.array, state: dict) -> None:
    """Initialize the state of a parameter, with the dtypes that the program chooses."""
    optimizer.init_single(parameter, state)
    if optimizer.state_dtype is None:
        return
    for slot in slots_of(optimizer):
        x = state.get(slot.name)
        if not isinstance(x, mx.array) or slot.format == "promoted":
            continue
        if codes.has_codes(slot, parameter):
            state.update(codes.begin(slot, parameter))
        else:
            state[slot.name] = x.astype(slot.dtype_for(parameter.dtype))


def stored(optimizer: Any, formula: Formula, values: dict[str, Any]) -> Formula:
    """A formula of an optimizer whose results have the dtypes that those of the primitives have.

    `values`: of the optimizer's attributes.
    """
    if values.get(NAME) is None and optimizer._formula_depends_on_dtypes:
        return formula
    return StoredFormula(formula, optimizer, values)


class StoredFormula:
    """A formula whose results have the dtypes that those of the primitives have.

    It computes in float32. Arrays that the primitives could not store are left to the formula.
    """

    def __init__(self, formula: Formula, optimizer: Any, values: dict[str, Any]) -> None:
        """`values`: of the optimizer's attributes; read only where the formula is called."""
        self.formula = formula
        self._arguments = optimizer, values
        self._settled: tuple[tuple[Slot, ...], bool] | None = None

    def with_formula(self, formula: Formula) -> StoredFormula:
        return StoredFormula(formula, *self._arguments)

    def _slots(self) -> tuple[tuple[Slot, ...], bool]:
        """The slots with their formats, and whether weight decay is added to the gradient."""
        if self._settled is None:
            optimizer, values = self._arguments
            program, hypers = optimizer._program_of(values)
            slots = optimizer._forms.form_of(values).slots_as_stored(values)
            self._settled = slots, BY_RULE[program.rule].is_coupled(hypers)
        return self._settled

    def __call__(self, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
        slots, coupled = self._slots()
        coded = [slot for slot in slots if codes.scale_name(slot.name) in state]
        for slot in coded:
            scales = state.pop(codes.scale_name(slot.name))
            state[slot.name] = codes.decode(state[slot.name], scales)
        updated = self._step(gradient, parameter, state, slots, coupled)
        for slot in coded:
            state.update(codes.encode(slot, state[slot.name]))
        return updated

    def _step(
        self,
        gradient: mx.array,
        parameter: mx.array,
        state: dict,
        slots: tuple[Slot, ...],
        coupled: bool,
    ) -> mx.array:
        slots = tuple(slot for slot in slots if not slot.idle and slot.name in state)
        names = [slot.name for slot in slots]
        arrays = [parameter, *(state[name] for name in names), gradient]
        dtypes = [x.dtype if isinstance(x, mx.array) else None for x in arrays]
        if any(dtype is None or dtype not in STORAGE.values() for dtype in dtypes):
            return self.formula(gradient, parameter, state)
        keeps_parameter = self._arguments[1].get(NAME) is not None
        results = result_dtypes(slots, arrays, coupled, keeps_parameter)
        wide = [x.astype(mx.float32) for x in arrays]
        state.update(zip(names, wide[1:-1], strict=True))
        updated = self.formula(wide[-1], wide[0], state)
        for name, dtype in zip(names, results[1:], strict=True):
            state[name] = state[name].astype(dtype)
        return updated.astype(results[0])
