"""Muon."""

from __future__ import annotations

from typing import Any

import mlx.optimizers.optimizers as stock

from . import _ext
from .optimizers import Optimizer, is_own


class Muon(Optimizer, stock.Muon):
    __doc__ = stock.Muon.__doc__

    def check(self, gradients: Any, parameters: Any) -> None:
        if is_own(self, "apply_gradients", Optimizer) and is_own(self, "apply_single", stock.Muon):
            _ext.Batch(gradients, parameters, None, (), initialized=False)
