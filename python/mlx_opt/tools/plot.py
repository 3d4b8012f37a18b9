"""A picture of a schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

# More are not seen in a picture, and each is a call of the schedule.
MOST_POINTS = 2000


def plot_schedule(schedule: Callable[[mx.array], Any], steps: int) -> Any:
    """Draw the values of a schedule in the first ``steps`` steps of a training.

    The schedule is called as an optimizer calls it, with the number of steps done, from 0 to
    ``steps - 1``; if there are more than 2000, with 2000 of these numbers, evenly spaced. A
    schedule of several numbers, such as one for ``betas``, gives a line for each.

    Args:
        schedule: A callable from the number of steps done, a 0-d array, to a number.
        steps: How many steps, at least 1.

    Returns:
        A :class:`matplotlib.figure.Figure`, which a notebook shows and ``savefig`` writes.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: ``schedule`` is not callable.
        ValueError: ``steps`` is less than 1.

    Example:
        >>> import mlx_opt as optim
        >>> warm_up = optim.linear_schedule(0.0, 1e-3, 100)
        >>> schedule = optim.join_schedules([warm_up, optim.cosine_decay(1e-3, 900)], [100])
        >>> figure = optim.plot_schedule(schedule, 1000)
        >>> figure.axes[0].get_xlabel()
        'steps done'
    """
    if not callable(schedule):
        raise TypeError(f"schedule: expected a callable, got {type(schedule).__name__}")
    if steps < 1:
        raise ValueError(f"steps: expected 1 or more, got {steps}")
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        message = "plot_schedule needs matplotlib: pip install 'mlx-opt[bench]'"
        raise ImportError(message) from error
    points = _points(steps)
    values = [schedule(mx.array(step, mx.uint64)) for step in points]
    mx.eval(values)
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(points, [_number(value) for value in values])
    axes.set_xlabel("steps done")
    axes.set_ylabel("value")
    axes.set_xlim(0, max(1, steps - 1))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _points(steps: int) -> list[int]:
    count = min(steps, MOST_POINTS)
    return [i * (steps - 1) // max(1, count - 1) for i in range(count)]


def _number(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_number(each) for each in value]
    return value.tolist() if isinstance(value, mx.array) else value
