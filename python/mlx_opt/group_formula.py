"""The formula of an optimizer with the hyperparameters of a group."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.optimizers.optimizers as stock


class GroupFormula:
    """The formula of an optimizer with a group's hyperparameters."""

    def __init__(self, optimizer: Any, values: dict[str, Any], rate: Any, scale: float) -> None:
        self._arguments = optimizer, values, rate, scale
        self._optimizer: Any = None

    def __call__(self, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
        if self._optimizer is None:
            optimizer, values, rate, scale = self._arguments
            if rate is not None:
                values = {**values, "learning_rate": rate if scale == 1.0 else rate * scale}
            self._optimizer = with_values(optimizer, values)
        return self._optimizer._formula(gradient, parameter, state)


def with_values(optimizer: Any, values: dict[str, Any]) -> Any:
    """A copy of an optimizer whose hyperparameters have other values, for use within a step."""
    cls: Any = type(optimizer)
    # A property of a subclass would win over a value of the object.
    replaced = {
        name: value
        for name, value in values.items()
        if getattr(cls, name, None) is not stock.Optimizer.learning_rate
        and isinstance(getattr(cls, name, None), property)
    }
    if replaced:
        metaclass: Any = type(cls)
        cls = metaclass(cls.__name__, (cls,), {"__module__": cls.__module__, **replaced})
    copy = object.__new__(cls)
    vars(copy).update(vars(optimizer))
    own = {name: x for name, x in values.items() if name not in replaced}
    rate = own.pop("learning_rate", None)
    vars(copy).update(own)
    copy._state = dict(optimizer.state)
    if rate is not None:
        copy._state["learning_rate"] = rate
    return copy
