"""The optimizers: mlx.optimizers' classes with their steps run by fused primitives.

Each class inherits its constructor, its state and its formula from the class of the same name in
mlx.optimizers and adds its name in the rules' descriptions. Muon and MultiOptimizer are defined in
modules of their own; this module has everything that mlx.optimizers.optimizers has. The classes
that mlx.optimizers does not have are derived from their rules' descriptions.
"""

from __future__ import annotations

from typing import Any

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


class SGD(FusedOptimizer, stock.SGD):
    __doc__ = docstring(stock.SGD)
    __init__ = constructor(stock.SGD)
    _rule = "SGD"


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
    __doc__ = docstring(stock.Adam, "nesterov", rule="AdamW")
    __init__ = constructor(stock.Adam, "nesterov")
    _additions: tuple[str, ...] = ("nesterov",)
    _rule = "AdamW"
    _fixed = {"weight_decay": 0.0, "cautious_weight_decay": False}


class AdamW(Adam, stock.AdamW):
    __doc__ = docstring(stock.AdamW, "nesterov", "cautious_weight_decay")
    __init__ = constructor(stock.AdamW, "nesterov", "cautious_weight_decay")
    _additions = ("nesterov", "cautious_weight_decay")
    _fixed = {}


class Adamax(Adam, stock.Adamax):
    __doc__ = docstring(stock.Adamax)
    __init__ = constructor(stock.Adamax)
    _additions = ()
    _rule = "Adamax"


class Lion(FusedOptimizer, stock.Lion):
    __doc__ = docstring(stock.Lion)
    __init__ = constructor(stock.Lion)
    _rule = "Lion"


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
