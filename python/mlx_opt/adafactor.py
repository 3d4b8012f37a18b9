"""Adafactor, whose step looks at whole tensors."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.optimizers.optimizers as stock

from . import _ext
from .clipping import Scaling, with_scale
from .optimizers import FusedOptimizer


class Adafactor(FusedOptimizer, stock.Adafactor):
    __doc__ = stock.Adafactor.__doc__

    _in_place = False

    def _batch(
        self, gradients: Any, parameters: Any, state: Any, initialized: bool = True
    ) -> _ext.Batch:
        moments = ["exp_avg_sq"] if self.beta_1 is None else ["exp_avg_sq", "exp_avg"]
        factored = ["exp_avg_sq_row", "exp_avg_sq_col"]
        return _ext.Batch(gradients, parameters, state, moments, initialized, factored)

    def _run(self, parameters: Any, batch: _ext.Batch, scaling: Scaling | None) -> Any:
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
        learning_rate = mx.array(0.0) if self.relative_step else self.learning_rate
        arguments = (hypers, learning_rate, self.step)
        return batch.adafactor(*arguments, *with_scale(self._formula, scaling))
