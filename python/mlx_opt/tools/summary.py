"""The text of ``repr(optimizer)``: its hyperparameters, its groups, and where its step is fused.

It is for sessions and debuggers, which show objects that are half made or being traced. So it never
raises, and evaluates nothing of the size of a parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from reprlib import recursive_repr
from typing import Any

import mlx.core as mx
import mlx.optimizers.schedulers as schedulers

UNKNOWN = "?"
LONGEST = 80


def never_raises(text: Callable[[Any], str]) -> Callable[[Any], str]:
    """A ``__repr__`` that is `text`, or the plain one if the object cannot be described."""

    @recursive_repr()
    @wraps(text)
    def __repr__(self: Any) -> str:
        try:
            return text(self)
        except Exception:
            return object.__repr__(self)

    return __repr__


def summary(optimizer: Any, names: Iterable[str], use: str) -> str:
    """`names`: the attributes to show. `use`: how the optimizer's steps run."""
    shown = [f"{name}={_attribute(optimizer, name)}" for name in names]
    if groups := getattr(optimizer, "groups", ()):
        shown.append(f"{len(groups)} group{'s' if len(groups) > 1 else ''}")
    return f"<{type(optimizer).__name__}({', '.join(shown)}): {use}>"


def summary_of_several(optimizer: Any, members: Iterable[Any]) -> str:
    return f"<{type(optimizer).__name__} of {', '.join(map(_text, members))}>"


def rate_of(optimizer: Any) -> list[str]:
    """The name of the learning rate, if the optimizer has one."""
    return ["learning_rate"] if "learning_rate" in vars(optimizer).get("_state", ()) else []


def numbers_of(optimizer: Any) -> list[str]:
    """The names of the numbers and flags that an optimizer without a rule has."""
    numbers = [name for name, value in vars(optimizer).items() if isinstance(value, (int, float))]
    return [name for name in numbers if not name.startswith("_")]


def _attribute(optimizer: Any, name: str) -> str:
    schedules = vars(optimizer).get("_schedulers", {})
    if name in schedules:
        return _name_of(schedules[name])
    try:
        value = getattr(optimizer, name)
    except Exception:  # a property of a subclass, or an attribute that is not set yet
        return UNKNOWN
    parts = [f"{name}[{i}]" for i in range(len(value))] if isinstance(value, tuple) else []
    if not any(part in schedules for part in parts):
        return _text(value)
    shown = [
        _name_of(schedules[part]) if part in schedules else _text(each)
        for part, each in zip(parts, value, strict=True)
    ]
    return f"({', '.join(shown)})"


def _text(value: Any) -> str:
    if isinstance(value, mx.array):
        return _array_text(value)
    if isinstance(value, (tuple, list)):
        text = ", ".join(map(_text, value))
        return f"[{text}]" if isinstance(value, list) else f"({text})"
    if callable(value) and not isinstance(value, type):
        return _name_of(value)
    text = f"{value:.6g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= LONGEST or text.startswith("<") else f"{text[:LONGEST]}..."


def _array_text(array: mx.array) -> str:
    if array.ndim:
        return f"array of shape {array.shape}"
    try:
        value = array.item()
    except ValueError:  # it is being traced
        return "array"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _name_of(function: Any) -> str:
    """The name of a schedule; one of mlx.optimizers is a function in the one that it is made by."""
    name = getattr(function, "__qualname__", type(function).__name__)
    if getattr(function, "__module__", None) == schedulers.__name__:
        return name.partition(".")[0]
    return name.rpartition(".")[2]
