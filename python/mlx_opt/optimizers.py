"""The optimizers: mlx.optimizers' classes with their steps run by fused primitives.

Each class inherits its constructor, its state and its formula from the class of the same name in
mlx.optimizers. What is added is `_rule`, which says which primitive does the same.
"""

from __future__ import annotations

import mlx.optimizers.optimizers as stock

from .fused import FusedOptimizer, Rule


class SGD(FusedOptimizer, stock.SGD):
    __doc__ = stock.SGD.__doc__

    def _rule(self) -> Rule:
        if self.momentum <= 0:
            return Rule("SGD", (), (self.weight_decay,))
        hypers = (self.momentum, max(self.dampening, 0.0), self.weight_decay)
        return Rule("Nesterov" if self.nesterov else "Momentum", ("v",), hypers)


class RMSprop(FusedOptimizer, stock.RMSprop):
    __doc__ = stock.RMSprop.__doc__

    def _rule(self) -> Rule:
        return Rule("RMSprop", ("v",), (self.alpha, self.eps))


class Adagrad(FusedOptimizer, stock.Adagrad):
    __doc__ = stock.Adagrad.__doc__

    def _rule(self) -> Rule:
        return Rule("Adagrad", ("v",), (self.eps,))


class AdaDelta(FusedOptimizer, stock.AdaDelta):
    __doc__ = stock.AdaDelta.__doc__

    def _rule(self) -> Rule:
        return Rule("AdaDelta", ("v", "u"), (self.rho, self.eps))


class Adam(FusedOptimizer, stock.Adam):
    __doc__ = stock.Adam.__doc__

    def _rule(self) -> Rule:
        return Rule("AdamW", ("m", "v"), (*self.betas, self.eps, 0.0, self.bias_correction))


class AdamW(Adam, stock.AdamW):
    __doc__ = stock.AdamW.__doc__

    def _rule(self) -> Rule:
        hypers = (*self.betas, self.eps, self.weight_decay, self.bias_correction)
        return Rule("AdamW", ("m", "v"), hypers)


class Adamax(Adam, stock.Adamax):
    __doc__ = stock.Adamax.__doc__

    def _rule(self) -> Rule:
        return Rule("Adamax", ("m", "v"), (*self.betas, self.eps))


class Lion(FusedOptimizer, stock.Lion):
    __doc__ = stock.Lion.__doc__

    def _rule(self) -> Rule:
        return Rule("Lion", ("m",), (*self.betas, max(self.weight_decay, 0.0)))
