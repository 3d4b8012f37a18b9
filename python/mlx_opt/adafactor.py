"""Adafactor, whose step looks at whole tensors."""

from __future__ import annotations

import mlx.core as mx
import mlx.optimizers.optimizers as stock

from .fused import FusedOptimizer, Rule


class Adafactor(FusedOptimizer, stock.Adafactor):
    __doc__ = stock.Adafactor.__doc__

    def _rule(self) -> Rule:
        moments = ("exp_avg_sq",) if self.beta_1 is None else ("exp_avg_sq", "exp_avg")
        hypers = (
            *self.eps,
            self.clip_threshold,
            self.decay_rate,
            0.0 if self.beta_1 is None else self.beta_1,
            self.weight_decay,
            self.scale_parameter,
            self.relative_step,
            self.warmup_init,
        )
        return Rule("Adafactor", moments, hypers, ("exp_avg_sq_row", "exp_avg_sq_col"))

    def _step_size(self) -> mx.array:
        # With relative_step the rule finds its own, and there need not be a learning rate.
        return mx.array(0.0) if self.relative_step else super()._step_size()
