"""The base of optimizers that do more around the steps of another."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from .base import Optimizer
from .telemetry import Telemetry


class Wrapper(Optimizer):
    """Has the learning rate, the state and the accumulation of the optimizer that it wraps."""

    optimizer: Optimizer

    @property
    def state(self) -> dict:
        """The state of the optimizer that is wrapped."""
        return self.optimizer.state

    @state.setter
    def state(self, state: dict) -> None:
        self.optimizer.state = state

    @property
    def learning_rate(self) -> Any:
        return self.optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: float | mx.array) -> None:
        self.optimizer.learning_rate = learning_rate

    @property
    def accumulate(self) -> int:
        """As of the optimizer that is wrapped."""
        return self.optimizer.accumulate

    @accumulate.setter
    def accumulate(self, count: int) -> None:
        self.optimizer.accumulate = count

    @property
    def accumulate_dtype(self) -> mx.Dtype | None:
        """As of the optimizer that is wrapped."""
        return self.optimizer.accumulate_dtype

    @accumulate_dtype.setter
    def accumulate_dtype(self, dtype: Any) -> None:
        self.optimizer.accumulate_dtype = dtype

    @property
    def telemetry(self) -> Telemetry | None:
        """As of the optimizer that is wrapped."""
        return self.optimizer.telemetry

    @telemetry.setter
    def telemetry(self, on: bool) -> None:
        self.optimizer.telemetry = on

    def _clip_state(self) -> dict:
        return self.optimizer._clip_state()
