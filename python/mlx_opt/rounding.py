"""Stochastic rounding: results in bfloat16 are rounded up or down at random, right on average.

The random bits depend on the seed, the number of the step, the parameter's path and the element's
index in it, and on nothing else.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from .hyperparameters import Option
from .state_dtypes import Formula

NAME, SEED = "stochastic_rounding", "rounding_seed"


class StochasticRounding(Option):
    """The argument ``stochastic_rounding``."""

    def __init__(self, optimizer: str) -> None:
        super().__init__(optimizer, NAME)

    def check(self, value: Any) -> None:
        if not isinstance(value, bool):
            kind = type(value).__name__
            raise TypeError(f"{self.optimizer}: {NAME}: expected a bool, got {kind}")


def check_seed(optimizer: str, seed: Any) -> None:
    """Raise TypeError or ValueError if the argument ``rounding_seed`` cannot be one."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"{optimizer}: {SEED}: expected an int, got {type(seed).__name__}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"{optimizer}: {SEED}: expected 0 to 2**64 - 1, got {seed}")


def seed_of(values: dict[str, Any]) -> int | None:
    """The seed, from the values of an optimizer's attributes; None if it rounds to nearest."""
    return values[SEED] if values.get(NAME) else None


def check(values: dict[str, Any]) -> None:
    """Raise ValueError if another option does not go with stochastic rounding."""
    if values.get(NAME) and values.get("master_weights") is not None:
        raise ValueError(f"{NAME} does not go with master_weights, which lose nothing")


def around(formula: Formula, values: dict[str, Any]) -> Formula:
    """`formula`, refusing what only the primitives can round."""
    if not values.get(NAME):
        return formula

    def step(gradient: mx.array, parameter: mx.array, state: Any) -> mx.array:
        arrays = [parameter, *state.values()]
        if any(isinstance(x, mx.array) and x.dtype == mx.bfloat16 for x in arrays):
            raise ValueError(
                f"{NAME}: bfloat16 is rounded so by the fused step only, which cannot be "
                "differentiated and needs arrays in float32, float16 or bfloat16"
            )
        return formula(gradient, parameter, state)

    return step
