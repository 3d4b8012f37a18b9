"""Clipping by the global norm, and steps that are not taken where it is not finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.optimizers.optimizers as stock
from mlx.utils import tree_map

from . import _ext

Formula = Callable[[mx.array, mx.array, Any], mx.array]


class Clip(NamedTuple):
    """What ``max_norm`` and ``skip_nonfinite`` of :meth:`Optimizer.update` ask for."""

    max_norm: float | mx.array | None
    skip_nonfinite: bool

    @staticmethod
    def asked_for(max_norm: float | mx.array | None, skip_nonfinite: bool) -> Clip | None:
        if max_norm is None and not skip_nonfinite:
            return None
        if max_norm is not None:
            _check(max_norm)
        return Clip(max_norm, skip_nonfinite)

    def of(self, gradients: Any) -> Scaling:
        norm = global_norm(gradients)
        finite = mx.isfinite(norm) if self.skip_nonfinite else None
        scale = _ext.gradient_scale(norm, *self)
        _ext.begin_scale(scale)
        return Scaling(norm, scale, finite)


class Scaling(NamedTuple):
    """What a step does with the gradients."""

    norm: mx.array
    """Of all gradients together, 0-d."""

    scale: mx.array
    """What they are multiplied with, 0-d; NaN where the step is not taken."""

    finite: mx.array | None
    """Whether the step is taken, 0-d; None if it is whatever the norm."""

    def of(self, gradients: Any) -> Scaling:
        return self

    def scaled(self, gradient: mx.array) -> mx.array:
        return scaled(gradient, self.scale)

    def chosen(self, new: Any, old: Any) -> Any:
        """`new` where the step is taken, else `old`."""
        return new if self.finite is None else mx.where(self.finite, new, old)

    def once_more(self) -> Scaling:
        """For a second primitive of the same step, whose gradients are made of scaled ones."""
        return self._replace(scale=self.chosen(mx.array(1.0), mx.array(mx.nan)))

    def changes(self, changes: dict, state: dict) -> dict:
        """What happens to the state's own entries in place of `changes`."""
        chosen = {
            name: self.chosen(value, state[name]) if name in state else value
            for name, value in changes.items()
        }
        chosen["grad_norm"] = self.norm
        if self.finite is not None:
            skipped = state.get("skipped", mx.array(0, mx.uint64))
            chosen["skipped"] = skipped + mx.logical_not(self.finite).astype(mx.uint64)
        return chosen

    def around(self, formula: Formula) -> Formula:
        """The formula of a leaf, of the scaled gradient, and its results only if it is taken."""

        def step(gradient: mx.array, parameter: mx.array, state: Any) -> mx.array:
            before = dict(state or {})
            updated = formula(self.scaled(gradient), parameter, state)
            for name, old in before.items():
                state[name] = self.chosen(state[name], old)
            return self.chosen(updated, parameter)

        return step

    def apply(self, optimizer: stock.Optimizer, gradients: Any, parameters: Any) -> Any:
        """A step of any optimizer, through its `apply_gradients`, with clipped gradients."""
        if not optimizer._initialized:
            optimizer.init(gradients)
        before = tree_map(lambda x: x, optimizer.state)
        updated = optimizer.apply_gradients(tree_map(self.scaled, gradients), parameters)
        if self.finite is not None:
            self._restore(optimizer.state, before)
            updated = tree_map(self.chosen, updated, parameters)
        optimizer.state.update(self.changes({}, before))
        return updated

    def _restore(self, state: Any, before: Any) -> None:
        for key, value in list(state.items() if isinstance(state, dict) else enumerate(state)):
            if isinstance(value, (dict, list, tuple)):
                self._restore(value, before[key])
            elif isinstance(value, mx.array) and key in before:
                state[key] = self.chosen(value, before[key])


def with_scale(formula: Formula, scaling: Scaling | None) -> tuple:
    """The last arguments of a step of a Batch: formula, scale, and whether it may be skipped."""
    if scaling is None:
        return (formula,)
    return scaling.around(formula), scaling.scale, scaling.finite is not None


def clip_grad_norm(grads: Any, max_norm: float) -> tuple[Any, mx.array]:
    """Scale gradients down where their global norm is greater than ``max_norm``.

    To clip and update, ``optimizer.update(model, gradients, max_norm=...)`` is faster: there the
    clipped gradients are never written.

    Args:
        grads: A tree of arrays.
        max_norm: The greatest norm they may have, in units of the gradients; 0 or more.

    Returns:
        The clipped gradients, of the same structure, shapes and dtypes, and the norm that they had,
        a 0-d array. The norm of float32, float16 and bfloat16 is float32, of squares summed in one
        pass and always in the same order: in double precision, or with Metal in two floats.

    Raises:
        ValueError: ``max_norm`` is negative.

    Reference: Pascanu, Mikolov and Bengio, ICML 2013, arXiv:1211.5063.

    Example:
        >>> import mlx.core as mx
        >>> import mlx_opt as optim
        >>> optim.clip_grad_norm({"w": mx.array([3.0, 4.0])}, max_norm=1.0)
        ({'w': array([0.6, 0.8], dtype=float32)}, array(5, dtype=float32))
    """
    _check(max_norm)
    norm = global_norm(grads)
    scale = _ext.gradient_scale(norm, max_norm)
    return tree_map(lambda g: scaled(g, scale), grads), norm


def global_norm(tree: Any) -> mx.array:
    """The square root of the sum of the squares of all elements, 0-d."""
    norm = _ext.global_norm(tree)
    # The norm of other dtypes is what MLX makes of it; nothing evaluates its clipped gradients.
    return stock.clip_grad_norm(tree, 0.0)[1] if norm is None else norm


def scaled(gradient: mx.array, scale: mx.array) -> mx.array:
    if mx.issubdtype(gradient.dtype, mx.floating):
        return (gradient * scale).astype(gradient.dtype)
    return gradient * scale


def _check(max_norm: float | mx.array) -> None:
    if not isinstance(max_norm, mx.array) and max_norm < 0:
        raise ValueError(f"max_norm should be >=0, {max_norm} was provided instead")
