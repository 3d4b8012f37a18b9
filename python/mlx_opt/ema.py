"""An exponential moving average of the weights, which any optimizer can keep beside its step.

The parameter's state holds it as `ema`, in float32. It is NaN until the parameter's first step, and
begins as what that step gives. With master weights it is the average of these.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from numbers import Real
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map, tree_map_with_path

from . import master_weights, reserved
from .descriptions import STORAGE, Slot
from .hyperparameters import Attribute, Hyperparameter
from .state_dtypes import Formula
from .trees import parameters_of

NAME, WARMUP, UPDATE_AFTER = "ema_decay", "ema_warmup", "ema_update_after"

SLOT = Slot("ema", "elements", "all", None, False, False, "float32", "unset")

EVALUATING = "evaluating"
"""The key of the entry that a state has while the model has averages."""

DEFAULTS: dict[str, Any] = {NAME: None, WARMUP: None, UPDATE_AFTER: 0}
"""The constructors' arguments, with their defaults."""


class Decay(Attribute):
    """The argument ``ema_decay``."""

    def __init__(self, optimizer: str = "") -> None:
        super().__init__(optimizer, NAME, {NAME: None})

    def check(self, value: Any) -> None:
        if value is None or callable(value):
            return
        if isinstance(value, mx.array):
            if value.size != 1:
                shape = tuple(value.shape)
                raise ValueError(f"{self.optimizer}: {NAME}: expected a number, got shape {shape}")
        elif isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(
                f"{self.optimizer}: {NAME}: expected a number, a schedule, an array or None, "
                f"got {type(value).__name__}"
            )
        elif not 0 <= float(value) < 1:
            raise ValueError(f"{self.optimizer}: {NAME}: expected a number in [0, 1), got {value}")


class DecayOf(Hyperparameter):
    """The attribute ``ema_decay``; None for an object that was pickled without it."""

    def __init__(self) -> None:
        super().__init__(Decay(), is_checked=False)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        if instance is not None and NAME not in vars(instance):
            return None
        return super().__get__(instance, owner)

    def __set__(self, instance: Any, value: Any) -> None:
        Decay(type(instance).__name__).check(value)
        super().__set__(instance, value)


def checked_warmup(optimizer: str, given: Any) -> float | str | None:
    """The argument `ema_warmup`.

    Raises:
        TypeError, ValueError: It is not one of its values.
    """
    if given is None or given == "ratio":
        return given  # type: ignore[no-any-return]
    expected = f'{optimizer}: {WARMUP}: expected "ratio", a power in (0, 1] or None, got'
    if isinstance(given, str):
        raise ValueError(f"{expected} {given!r}")
    if isinstance(given, bool) or not isinstance(given, Real):
        raise TypeError(f"{expected} {type(given).__name__}")
    if not 0 < float(given) <= 1:
        raise ValueError(f"{expected} {given}")
    return float(given)


def checked_update_after(optimizer: str, given: Any) -> int:
    """The argument `ema_update_after`.

    Raises:
        TypeError, ValueError: It is not an int of 0 or more.
    """
    if isinstance(given, bool) or not isinstance(given, int):
        raise TypeError(f"{optimizer}: {UPDATE_AFTER}: expected an int, got {type(given).__name__}")
    if given < 0:
        raise ValueError(f"{optimizer}: {UPDATE_AFTER}: expected 0 or more, got {given}")
    return given


def is_kept(decay: Any) -> bool:
    """True if parameters with this decay have an average."""
    return isinstance(decay, mx.array) or callable(decay) or decay is not None and decay != 0


def is_warming_up(optimizer: Any) -> bool:
    """True if the decay of a step depends on its number."""
    return optimizer.ema_warmup is not None or optimizer.ema_update_after > 0


def with_average(
    optimizer: Any, program: Any, hypers: list[Any], decay: Any
) -> tuple[Any, list[Any]]:
    """A program and its hyperparameters, with the average if there is a decay."""
    if not is_kept(decay):
        return program, hypers
    return _with_average(program), [*hypers, _rate(optimizer, decay)]


@cache
def _with_average(program: Any) -> Any:
    return program.with_ema()


def _rate(optimizer: Any, decay: Any) -> Any:
    """1 minus the decay in this step."""
    rate: Any = 1.0 - (decay.astype(mx.float32) if isinstance(decay, mx.array) else float(decay))
    if is_warming_up(optimizer):
        rate = mx.maximum(_least_rate(optimizer), rate)
    return rate.reshape(()) if isinstance(rate, mx.array) else rate


def _least_rate(optimizer: Any) -> mx.array:
    warmup = optimizer.ema_warmup
    averaged = mx.array(optimizer.step).astype(mx.float32) - (optimizer.ema_update_after + 1)
    if warmup is None:
        return (averaged <= 0).astype(mx.float32)
    if warmup == "ratio":
        return mx.where(averaged <= 0, 1.0, 9.0 / (10.0 + averaged))
    return (1.0 + mx.maximum(averaged, 0.0)) ** -warmup


def init_single(optimizer: Any, parameter: mx.array, state: dict) -> None:
    """Add the average to a parameter's initial state if the optimizer has averages."""
    if is_kept(optimizer.ema_decay):
        unset = mx.full(parameter.shape, float("nan"))
        state[SLOT.name] = unset.astype(SLOT.dtype_for(parameter.dtype))


def drop(optimizer: Any, state: dict) -> list[str]:
    """Drop from a parameter's state an average that it should not have; its name."""
    if SLOT.name not in state or is_kept(optimizer.ema_decay):
        return []
    del state[SLOT.name]
    return [SLOT.name]


def is_in(state: Any) -> bool:
    """True if a parameter's state has an average."""
    leaves: Any = tree_flatten(state)
    return any(path.rpartition(".")[2] == SLOT.name for path, _ in leaves)


def around(formula: Formula, hypers: list[Any], values: dict[str, Any]) -> Formula:
    """`formula` with the average of its weights. `hypers`: those of its program."""
    if not is_kept(values.get(NAME)):
        return formula
    rate = hypers[-1]

    def step(gradient: mx.array, parameter: mx.array, state: Any) -> mx.array:
        own = {name: x for name, x in state.items() if name != SLOT.name}
        updated = formula(gradient, parameter, own)
        if all(x.dtype in STORAGE.values() for x in (gradient, parameter)):
            updated = updated.astype(parameter.dtype)
        state.update(own)
        key = master_weights.key_for(values["master_weights"], parameter.dtype)
        weight = updated if key is None else master_weights.weight_of(updated, own[key])
        state[SLOT.name] = _averaged(state[SLOT.name], weight, rate)
        return updated

    return step


def _averaged(average: mx.array, weight: mx.array, rate: Any) -> mx.array:
    """As `averaged` in rules/ema.h."""
    average = average.astype(mx.result_type(average, mx.float32))
    weight = weight.astype(average.dtype)
    rate = mx.array(rate, mx.float32)
    is_mixed = mx.logical_and(average == average, rate < 1.0)  # noqa: PLR0124 (false for NaN)
    return mx.where(is_mixed, average + rate * (weight - average), weight)


def parameters(optimizer: Any, model: Any) -> Any:
    """The averages of a model's parameters; see `Optimizer.ema_parameters`."""
    if not optimizer._has_ema():
        raise ValueError(f"{type(optimizer).__name__}: it has no ema_decay, and so no averages")
    slots: dict[str, mx.array] = {}
    for state in optimizer._states():
        leaves: Any = tree_flatten(state)
        slots.update(leaves)

    def average(path: str, parameter: mx.array) -> mx.array:
        found = slots.get(f"{path}.{SLOT.name}")
        if found is None:
            return parameter
        return mx.where(mx.isnan(found), parameter.astype(found.dtype), found)

    return tree_map_with_path(average, parameters_of(model))


@contextmanager
def evaluating(optimizer: Any, model: Any) -> Iterator[None]:
    """See `Optimizer.evaluating`."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an mlx.nn.Module, got {type(model).__name__}")
    averages = parameters(optimizer, model)
    states = optimizer._states()
    if any(is_evaluating(state) for state in states):
        yield
        return
    before = parameters_of(model)
    model.update(tree_map(lambda x, w: x.astype(w.dtype), averages, before))
    for state in states:
        state.setdefault(reserved.KEY, {})[EVALUATING] = mx.array(True)
    try:
        yield
    finally:
        for state in states:
            _forget(state)
        model.update(before)


def is_evaluating(state: dict) -> bool:
    return EVALUATING in reserved.entries_of(state)


def _forget(state: dict) -> None:
    """Remove the entry, so that the state has the structure that it had before."""
    entries = reserved.entries_of(state)
    entries.pop(EVALUATING, None)
    if not entries:
        state.pop(reserved.KEY, None)
