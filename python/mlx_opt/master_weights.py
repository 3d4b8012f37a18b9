"""Master weights: the float32 weights of parameters in bfloat16 and float16.

The state of such a parameter holds its master weight, which the rule reads and writes; the
parameter is its rounding. Where a parameter is not that, something else has written it since the
last step, and the master becomes what was written. A master that is NaN is unset.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map_with_path

from .descriptions import Slot
from .hyperparameters import Option
from .trees import parameters_of

KEY = "master"
SLOT = Slot(KEY, "elements", "all", None, False, False, "float32", "unset")

NARROW = (mx.bfloat16, mx.float16)
"""The dtypes of parameters that can have a master weight."""

_KINDS = ("float32",)

Formula = Callable[[mx.array, mx.array, Any], mx.array]


class MasterWeights(Option):
    """The argument ``master_weights``."""

    def __init__(self, optimizer: str) -> None:
        super().__init__(optimizer, "master_weights")

    def check(self, value: Any) -> None:
        if value is not None and value not in _KINDS:
            kinds = ", ".join(f'"{kind}"' for kind in _KINDS)
            raise ValueError(
                f"{self.optimizer}: master_weights: expected {kinds} or None, got {value!r}"
            )


def init_single(optimizer: Any, parameter: mx.array, state: dict) -> None:
    """Initialize the state of a parameter, with a master weight if the optimizer has them."""
    if optimizer.master_weights is None or parameter.dtype not in NARROW:
        optimizer.init_single(parameter, state)
        return
    optimizer.init_single(parameter.astype(mx.float32), state)
    state[KEY] = mx.full(parameter.shape, float("nan"), mx.float32)


def has_master(optimizer: Any, parameter: mx.array) -> bool:
    return optimizer.master_weights is not None and parameter.dtype in NARROW


def is_in(state: Any) -> bool:
    """True if a parameter's state has a master weight."""
    return any(path.endswith(f".{KEY}") for path in _flat(state))


def _flat(tree: Any) -> dict[str, mx.array]:
    flat: Any = tree_flatten(tree, destination={})
    return flat


def weight_of(parameter: mx.array, master: mx.array) -> mx.array:
    """The weight of a parameter in float32; as `weight_of` in rules/master.h."""
    wide = parameter.astype(mx.float32)
    rounded = master.astype(parameter.dtype).astype(mx.float32)
    return mx.where(rounded == wide, master.astype(mx.float32), wide)


def around(formula: Formula, master_weights: str | None) -> Formula:
    """`formula` on the master weights in the place of the parameters that have them."""
    if master_weights is None:
        return formula

    def step(gradient: mx.array, parameter: mx.array, state: Any) -> mx.array:
        master = state.get(KEY)
        if not isinstance(master, mx.array) or parameter.dtype not in NARROW:
            return formula(gradient, parameter, state)
        own = {name: _wide(x) for name, x in state.items() if name != KEY}
        updated = formula(_wide(gradient), weight_of(parameter, master), own)
        state.update(own)
        state[KEY] = updated.astype(mx.float32)
        return state[KEY].astype(parameter.dtype)

    return step


def _wide(x: Any) -> Any:
    return x.astype(mx.float32) if isinstance(x, mx.array) and x.dtype in NARROW else x


def parameters(states: list[Any], model: Any) -> Any:
    """The weights of a model's parameters in float32. `states`: those of its optimizers."""
    slots = {path: x for state in states for path, x in _flat(state).items()}

    def weight(path: str, parameter: mx.array) -> mx.array:
        if parameter.dtype not in NARROW:
            return parameter
        master = slots.get(f"{path}.{KEY}")
        return parameter.astype(mx.float32) if master is None else weight_of(parameter, master)

    return tree_map_with_path(weight, parameters_of(model))
