"""The dynamic scale of a loss whose gradients are float16.

The program multiplies the loss by the scale, so that small gradients do not underflow; the step
divides the gradients by it. Micikevicius et al., arXiv:1710.03740.
"""

from __future__ import annotations

from numbers import Real
from typing import Any

import mlx.core as mx

from .rollback import Rollback

KEY, STEPS_KEY = "loss_scale", "steps_at_loss_scale"

INTERVAL = 2000
"""The number of steps in a row, none of them skipped, after which the scale is doubled."""

SMALLEST, LARGEST = 2.0**-24, 2.0**24


def checked(value: Any) -> mx.array:
    """The scale as an array.

    Raises:
        TypeError, ValueError: It is no number above 0.
    """
    if isinstance(value, bool) or not isinstance(value, (Real, mx.array)):
        raise TypeError(f"loss_scale: expected a number or None, got {type(value).__name__}")
    if isinstance(value, mx.array) and value.size != 1:
        raise ValueError(f"loss_scale: expected a number, got shape {tuple(value.shape)}")
    if isinstance(value, mx.array):
        return value.astype(mx.float32).reshape(())
    number = float(value)
    if not SMALLEST <= number <= LARGEST:
        raise ValueError(f"loss_scale: expected a number from 2**-24 to 2**24, got {value}")
    return mx.array(number, mx.float32)


def record(entries: dict, scale: mx.array, finite: mx.array, rollback: Rollback) -> None:
    """Put the scale of the next step into an optimizer's entries."""
    steps = entries.get(STEPS_KEY, mx.array(0, mx.uint32)) + 1
    grows = steps >= INTERVAL
    after = mx.where(grows, mx.minimum(2.0 * scale, LARGEST), scale)
    shrunk = mx.maximum(0.5 * scale, SMALLEST)
    rollback.put(entries, KEY, mx.where(finite, after, shrunk))
    zero = mx.array(0, mx.uint32)
    rollback.put(entries, STEPS_KEY, mx.where(mx.logical_and(finite, ~grows), steps, zero))
