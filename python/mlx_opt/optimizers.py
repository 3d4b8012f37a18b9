"""The optimizers: mlx.optimizers' classes with their steps run by fused primitives.

Each class inherits its constructor, its state and its formula from the class of the same name in
mlx.optimizers and adds its name in the rules' descriptions. Muon and MultiOptimizer are defined in
modules of their own; this module has everything that mlx.optimizers.optimizers has. The classes
that mlx.optimizers does not have are derived from their rules' descriptions.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.optimizers.optimizers as stock

from . import descriptions
from .base import Optimizer
from .clipping import clip_grad_norm
from .constructors import constructor, docstring
from .derived import optimizer_class
from .fused import FusedOptimizer
from .multi import MultiOptimizer
from .muon import Muon

__all__ = [
    "AdaDelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Lion",
    "MultiOptimizer",
    "Muon",
    "Optimizer",
    "RMSprop",
    "SGD",
    "clip_grad_norm",
]


_DECAY = {"max_learning_rate": 0.0, "cautious_weight_decay": False, "maximize": False}
_COUPLED = {"weight_decay_kind": "coupled", **_DECAY}
_DECOUPLED = {"weight_decay_kind": "decoupled", **_DECAY}
_ADAM = {"nesterov": False, "amsgrad": False, "cautious": False}
_LION = {"cautious": False, **_DECOUPLED}


class SGD(FusedOptimizer, stock.SGD):
    __doc__ = docstring(stock.SGD, _COUPLED)
    __init__ = constructor(stock.SGD, _COUPLED)
    _additions = _COUPLED
    _rule = "SGD"
    _options = ("maximize",)
    maximize = False

    def _check_group(self, values: dict[str, Any]) -> None:
        momentum, dampening = values["momentum"], values["dampening"]
        numbers = not isinstance(momentum, mx.array) and not isinstance(dampening, mx.array)
        if values["nesterov"] and numbers and (momentum <= 0 or dampening != 0):
            raise ValueError(
                "SGD: groups: nesterov needs a momentum above 0 and a dampening of 0, "
                f"got {momentum} and {dampening}"
            )


class RMSprop(FusedOptimizer, stock.RMSprop):
    __doc__ = docstring(stock.RMSprop)
    __init__ = constructor(stock.RMSprop)
    _rule = "RMSprop"


class Adagrad(FusedOptimizer, stock.Adagrad):
    __doc__ = docstring(stock.Adagrad)
    __init__ = constructor(stock.Adagrad)
    _rule = "Adagrad"


class AdaDelta(FusedOptimizer, stock.AdaDelta):
    __doc__ = docstring(stock.AdaDelta)
    __init__ = constructor(stock.AdaDelta)
    _rule = "AdaDelta"


class Adam(FusedOptimizer, stock.Adam):
    _additions: dict[str, Any] = {**_ADAM, "weight_decay": 0.0, **_COUPLED}
    __doc__ = docstring(stock.Adam, _additions, rule="AdamW")
    __init__ = constructor(stock.Adam, _additions)
    _rule = "AdamW"
    _options: tuple[str, ...] = ("maximize",)
    maximize = False
    amsgrad: Any

    def init_single(self, parameter: mx.array, state: dict) -> None:
        """Initialize optimizer state"""
        super().init_single(parameter, state)
        if "amsgrad" in self._additions and self.amsgrad:
            state["v_max"] = mx.zeros_like(parameter)


class AdamW(Adam, stock.AdamW):
    _additions = {**_ADAM, **_DECOUPLED}
    __doc__ = docstring(stock.AdamW, _additions)
    __init__ = constructor(stock.AdamW, _additions)


class Adamax(Adam, stock.Adamax):
    __doc__ = docstring(stock.Adamax)
    __init__ = constructor(stock.Adamax)
    _additions = {}
    _options = ()
    _rule = "Adamax"


class Lion(FusedOptimizer, stock.Lion):
    __doc__ = docstring(stock.Lion, _LION)
    __init__ = constructor(stock.Lion, _LION)
    _additions = _LION
    _rule = "Lion"
    _options = ("maximize",)
    maximize = False


class Adafactor(FusedOptimizer, stock.Adafactor):
    __doc__ = docstring(stock.Adafactor)
    __init__ = constructor(stock.Adafactor)
    _rule = "Adafactor"

    def _reads_rate(self, values: dict[str, Any]) -> bool:
        return not values["relative_step"]  # else the rule computes it


DERIVED = {
    name: optimizer_class(name, __name__)
    for name in descriptions.OPTIMIZERS
    if name not in globals() and not hasattr(stock, name)
}
globals().update(DERIVED)  # where pickle looks for them
__all__ += list(DERIVED)
