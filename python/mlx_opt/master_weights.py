"""Master weights: the float32 weights of parameters in bfloat16 and float16.

The rule reads and writes the weight; the parameter is its rounding. The parameter's state holds the
weight itself, as `master`, or, for bfloat16, the 16 bits of it that the parameter lacks, as
`remainder`. If a parameter is not the rounding of its master, something else has written it since
the last step, and the master becomes what was written. A master that is NaN is unset.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map_with_path

from .descriptions import Slot
from .hyperparameters import Option
from .state_dtypes import Formula, begin
from .trees import check_arrays, parameters_of

SLOTS = {
    "float32": Slot("master", "elements", "all", None, False, False, "float32", "unset"),
    "remainder": Slot("remainder", "elements", "all", None, False, False, "bits16", "zeros"),
}
"""The slot of each kind of master weights."""

KEYS = tuple(slot.name for slot in SLOTS.values())

NARROW = (mx.bfloat16, mx.float16)
"""The dtypes of parameters that can have a master weight."""


class MasterWeights(Option):
    """The argument ``master_weights``."""

    def __init__(self, optimizer: str) -> None:
        super().__init__(optimizer, "master_weights")

    def check(self, value: Any) -> None:
        if not (value is None or isinstance(value, str) and value in SLOTS):
            *kinds, last = (f'"{kind}"' for kind in SLOTS)
            raise ValueError(
                f"{self.optimizer}: master_weights: expected {', '.join(kinds)}, {last} or None, "
                f"got {value!r}"
            )


def key_for(kind: str | None, dtype: mx.Dtype) -> str | None:
    """The name of the slot of a parameter's master weight; None if it has none."""
    if kind is None or dtype not in NARROW or kind == "remainder" and dtype != mx.bfloat16:
        return None
    return SLOTS[kind].name


def check_parameter(kind: str | None, path: str, parameter: mx.array) -> None:
    """Raise ValueError if a parameter that should have a master weight cannot have it."""
    if kind == "remainder" and parameter.dtype == mx.float16:
        raise ValueError(
            f'{path}: master_weights="remainder" is for bfloat16, got float16: use "float32"'
        )


def init_single(optimizer: Any, parameter: mx.array, state: dict) -> None:
    """Initialize the state of a parameter, with a master weight if the optimizer has them."""
    key = key_for(optimizer.master_weights, parameter.dtype)
    if key is None:
        begin(optimizer, parameter, state)
        return
    begin(optimizer, parameter.astype(mx.float32), state)
    begins = {"master": (float("nan"), mx.float32), "remainder": (0, mx.uint16)}
    state[key] = mx.full(parameter.shape, *begins[key])


def drop_others(optimizer: Any, parameter: mx.array, state: dict) -> list[str]:
    """Drop from a parameter's state the master weights that it should not have; their names."""
    key = key_for(optimizer.master_weights, parameter.dtype)
    others = [name for name in KEYS if name in state and name != key]
    for name in others:
        del state[name]
    return others


def is_in(state: Any) -> bool:
    """True if a parameter's state has a master weight."""
    return any(path.rpartition(".")[2] in KEYS for path in _flat(state))


def _flat(tree: Any) -> dict[str, mx.array]:
    flat: Any = tree_flatten(tree, destination={})
    return flat


def weight_of(parameter: mx.array, master: mx.array) -> mx.array:
    """The weight of a parameter in float32, of its master or remainder; as in rules/master.h."""
    wide = parameter.astype(mx.float32)
    if master.dtype != mx.uint16:
        rounded = master.astype(parameter.dtype).astype(mx.float32)
        return mx.where(rounded == wide, master.astype(mx.float32), wide)
    low = master.astype(mx.uint32)
    borrowed = mx.where(low < 0x8000, mx.array(0, mx.uint32), mx.array(0x10000, mx.uint32))
    weight = (wide.view(mx.uint32) + low - borrowed).view(mx.float32)
    return mx.where(mx.isnan(weight), wide, weight)


def split(weight: mx.array, kind: str, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
    """The parameter and the master or remainder of a weight; as in rules/master.h."""
    if kind == "float32":
        return weight.astype(dtype), weight
    nan = mx.array(0x7FC00000, mx.uint32)
    bits = mx.where(mx.isnan(weight), nan, weight.view(mx.uint32))
    high = ((bits + 0x8000) >> 16).astype(mx.uint16)
    return high.view(mx.bfloat16), (bits & 0xFFFF).astype(mx.uint16)


def around(formula: Formula, kind: str | None) -> Formula:
    """`formula` on the master weights in the place of the parameters that have them."""
    return formula if kind is None else MasterFormula(formula, kind)


class MasterFormula:
    """A formula on the master weights in the place of the parameters that have them."""

    def __init__(self, formula: Formula, kind: str) -> None:
        self.formula = formula
        self._kind = kind

    def with_formula(self, formula: Formula) -> MasterFormula:
        return MasterFormula(formula, self._kind)

    def __call__(self, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
        key = key_for(self._kind, parameter.dtype)
        if key is None:
            return self.formula(gradient, parameter, state)
        wide = {name: _wide(x) for name, x in state.items() if name != key}
        own = dict(wide)
        weight = self.formula(_wide(gradient), weight_of(parameter, state[key]), own)
        updated, state[key] = split(weight.astype(mx.float32), self._kind, parameter.dtype)
        state.update({name: x for name, x in own.items() if x is not wide.get(name)})
        return updated


def _wide(x: Any) -> Any:
    return x.astype(mx.float32) if isinstance(x, mx.array) and x.dtype in NARROW else x


def parameters(states: list[Any], model: Any) -> Any:
    """The weights of a model's parameters in float32. `states`: those of its optimizers."""
    slots = {path: x for state in states for path, x in _flat(state).items()}

    def weight(path: str, parameter: mx.array) -> mx.array:
        if parameter.dtype not in NARROW:
            return parameter
        for key in KEYS:
            if f"{path}.{key}" in slots:
                return weight_of(parameter, slots[f"{path}.{key}"])
        return parameter.astype(mx.float32)

    tree = parameters_of(model)
    check_arrays(tree)
    return tree_map_with_path(weight, tree)
