"""Where the formulas stand by the names of the optimizers, and what several of them use."""

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx

FORMULAS: dict[str, Callable[..., Any]] = {}
"""The formula of each optimizer, by the name of its class."""

CASES: list[tuple[str, dict[str, Any]]] = []
"""Options of the constructors, besides the learning rate, that reach every rule and form of it."""

FINISHES: dict[str, Callable[..., Any]] = {}
"""What gives the new parameter from the new state and the gradient, of rules whose first pass
updates the state: the second pass reads the state as it is stored."""


KEPT: dict[str, Callable[..., Any]] = {}
"""What gives the numbers that a rule keeps from step to step as they are in a step, by name. It
takes the array module, the hyperparameters by their names in the description, among them these
numbers as they were before, the learning rate and the step. If they depend on sums over all
tensors, these follow, by their names."""

SUMS: dict[str, Callable[..., Any]] = {}
"""What gives a tensor's part of the sums over all tensors that a rule needs, by their names. It
takes what the formula takes, with the numbers that the rule keeps as before the step."""


def keep(optimizer: str) -> Callable[..., Any]:
    """Make a function what gives the numbers that an optimizer's rule keeps."""

    def register(formula: Callable[..., Any]) -> Callable[..., Any]:
        KEPT[optimizer] = formula
        return formula

    return register


def sums(optimizer: str) -> Callable[..., Any]:
    """Make a function what gives a tensor's part of an optimizer's sums over all tensors."""

    def register(formula: Callable[..., Any]) -> Callable[..., Any]:
        SUMS[optimizer] = formula
        return formula

    return register


def finish(optimizer: str) -> Callable[..., Any]:
    """Make a function the second pass of an optimizer's formula, which takes the new state."""

    def register(formula: Callable[..., Any]) -> Callable[..., Any]:
        FINISHES[optimizer] = formula
        return formula

    return register


def reference(optimizer: str, *options: dict[str, Any]) -> Callable[..., Any]:
    """Make a function the formula of an optimizer. `options`: those with which tests run it."""

    def register(formula: Callable[..., Any]) -> Callable[..., Any]:
        FORMULAS[optimizer] = formula
        CASES.extend((optimizer, case) for case in options or ({},))
        return formula

    return register


def log(xp, x):
    """In double precision where `x` is a number: what is near 1 loses its digits in float32.

    The logarithm of 0 is a number that can be divided by and whose exponential is 0.
    """
    if isinstance(x, mx.array):
        return xp.log(x)
    return math.log(x) if x > 0 else -1e300


def one_minus_power(xp, beta, step):
    """1 - beta^step, without cancellation."""
    return -xp.expm1(step * log(xp, beta))


def with_decay(xp, g, decay, w):
    """A gradient to which decay is added: none if it is 0, of an infinite parameter either."""
    return g + xp.where(decay == 0, 0, decay * w)


def with_decay_of(xp, kind, g, decay, w):
    """A gradient to which decay is added if it is of that kind."""
    return with_decay(xp, g, decay, w) if kind == "coupled" else g


def decayed(xp, w, update, kind, decay, learning_rate, max_learning_rate, cautious):
    """A parameter after decay of another kind. `update`: what is subtracted besides, or a number of
    its sign."""
    if kind == "coupled":
        return w
    rate = decay if kind == "independent" else learning_rate * decay
    if kind == "corrected":
        rate = rate * learning_rate / max_learning_rate
    return xp.where(update * w >= 0, w * (1 - rate), w) if cautious else w * (1 - rate)


def agree(xp, a, b):
    """True where both have the same sign, and neither is 0."""
    return xp.sign(a) * xp.sign(b) > 0


def value_or(xp, slot, first):
    """The values of a slot, or `first` where it is unset, that is NaN."""
    return xp.where(xp.isnan(slot), first, slot)


def progress(xp, step, steps):
    """How much of a warm-up of so many steps is done, from 0 to 1."""
    return xp.minimum(step / xp.maximum(steps, 1), 1)


def log_between(xp, first, last, done):
    """The logarithm of a beta whose half-life, which is as 1 / log(beta), is `done` of the way
    between those of two others."""
    return 1 / ((1 - done) / log(xp, first) + done / log(xp, last))
