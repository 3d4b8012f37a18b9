"""Clipping by the global norm, and steps that are skipped where it is not finite."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.optimizers.optimizers as stock
from mlx.utils import tree_map

from . import _ext

Formula = Callable[[mx.array, mx.array, Any], mx.array]


class ClipRequest(NamedTuple):
    """The values of ``max_norm`` and ``skip_nonfinite`` of :meth:`Optimizer.update`."""

    max_norm: float | mx.array | None
    skip_nonfinite: bool

    @staticmethod
    def from_arguments(max_norm: Any, skip_nonfinite: Any) -> ClipRequest | None:
        if max_norm is None and skip_nonfinite is False:
            return None
        skip_nonfinite = _flag(skip_nonfinite)
        if max_norm is None:
            return ClipRequest(None, True) if skip_nonfinite else None
        return ClipRequest(_checked_norm(max_norm), skip_nonfinite)

    def compute(self, gradients: list[Any], loss_scale: mx.array | None) -> ClippedStep:
        """The norm and the scale of gradients: trees, or lists of the parts that hold them."""
        norm = global_norm(gradients)
        if loss_scale is not None:
            norm = norm / loss_scale
        finite = mx.isfinite(norm) if self.skip_nonfinite else None
        scale = _ext.gradient_scale(norm, *self)
        _ext.begin_scale(scale)
        if loss_scale is not None:
            scale = scale / loss_scale
        return ClippedStep(norm, scale, finite, loss_scale)


class ClippedStep(NamedTuple):
    """The clipping of one step."""

    norm: mx.array
    """The global norm of all gradients, 0-d."""

    scale: mx.array
    """The factor of the gradients, 0-d; NaN if the step is skipped."""

    finite: mx.array | None
    """A 0-d bool, true if the step is applied; None if steps are never skipped."""

    loss_scale: mx.array | None = None
    """What the gradients were multiplied by, 0-d; None if they were not."""

    def scaled(self, gradient: mx.array) -> mx.array:
        return scaled(gradient, self.scale)

    def chosen(self, new: Any, old: Any) -> Any:
        """`new` if the step is applied, else `old`."""
        return new if self.finite is None else mx.where(self.finite, new, old)

    def around(self, formula: Formula) -> Formula:
        """`formula` on scaled gradients, whose results count only if the step is applied."""

        def step(gradient: mx.array, parameter: mx.array, state: Any) -> mx.array:
            before = dict(state)
            updated = self._updated(formula, gradient, parameter, state)
            for name, old in before.items():
                state[name] = self.chosen(state[name], old)
            return self.chosen(updated, parameter)

        return step

    def _updated(
        self, formula: Formula, gradient: mx.array, parameter: mx.array, state: Any
    ) -> mx.array:
        if gradient.dtype not in (mx.float16, mx.bfloat16):
            return formula(self.scaled(gradient), parameter, state)
        # A scaled gradient may be too small for half precision.
        before = dict(state)
        updated = formula(gradient.astype(mx.float32) * self.scale, parameter, state)
        for name, old in before.items():
            if isinstance(old, mx.array):
                state[name] = state[name].astype(mx.result_type(old, gradient))
        return updated.astype(mx.result_type(gradient, parameter))


def clip_grad_norm(grads: Any, max_norm: float) -> tuple[Any, mx.array]:
    """Scale gradients down if their global norm is greater than ``max_norm``.

    To clip and update, ``optimizer.update(model, gradients, max_norm=...)`` is faster, because it
    never writes the clipped gradients.

    Args:
        grads: A tree of arrays.
        max_norm: The maximum norm, in units of the gradients; 0 or more.

    Returns:
        The clipped gradients, with the same structure, shapes and dtypes, and the norm before
        clipping, a 0-d array. The norm of float32, float16 and bfloat16 gradients is a float32. Its
        squares are summed in one pass, always in the same order, in double precision, with Metal in
        two floats.

    Raises:
        ValueError: ``max_norm`` is negative.

    Reference: Pascanu, Mikolov and Bengio, ICML 2013, arXiv:1211.5063.

    Example:
        >>> import mlx.core as mx
        >>> import mlx_opt as optim
        >>> optim.clip_grad_norm({"w": mx.array([3.0, 4.0])}, max_norm=1.0)
        ({'w': array([0.6, 0.8], dtype=float32)}, array(5, dtype=float32))
    """
    greatest = _checked_norm(max_norm)
    norm = global_norm(grads)
    scale = _ext.gradient_scale(norm, greatest)
    return tree_map(lambda g: scaled(g, scale), grads), norm


def global_norm(tree: Any) -> mx.array:
    """The square root of the sum of the squares of all elements, 0-d. `tree`: see `compute`."""
    norm = _ext.global_norm(tree)
    if norm is not None:
        return norm
    # For other dtypes MLX computes the norm; nothing evaluates its clipped gradients.
    gradients = tree_map(_gradients_of, tree, is_leaf=lambda x: isinstance(x, _ext.Part))
    return stock.clip_grad_norm(gradients, 0.0)[1]


def _gradients_of(leaf: Any) -> Any:
    return leaf.gradients() if isinstance(leaf, _ext.Part) else leaf


def scaled(gradient: mx.array, scale: mx.array) -> mx.array:
    if mx.issubdtype(gradient.dtype, mx.floating):
        return (gradient * scale).astype(gradient.dtype)
    return gradient * scale


def _checked_norm(max_norm: Any) -> float | mx.array:
    if isinstance(max_norm, mx.array):
        if max_norm.size != 1:
            raise ValueError(f"max_norm: expected a number, got shape {tuple(max_norm.shape)}")
        return max_norm
    try:
        number = float("" if isinstance(max_norm, str) else max_norm)
    except (TypeError, ValueError):
        raise TypeError(
            f"max_norm: expected a number or a 0-d mlx.core.array, got {type(max_norm).__name__}"
        ) from None
    if number < 0:
        raise ValueError(f"max_norm should be >=0, {max_norm} was provided instead")
    return number


def _flag(skip_nonfinite: Any) -> bool:
    """Convert True, False, 1, 0 and NumPy's bools."""
    if isinstance(skip_nonfinite, bool):
        return skip_nonfinite
    try:
        number = operator.index(skip_nonfinite)
    except TypeError:
        number = int(skip_nonfinite) if type(skip_nonfinite).__name__ in ("bool", "bool_") else -1
    if number not in (0, 1):
        raise TypeError(f"skip_nonfinite: expected a bool, got {type(skip_nonfinite).__name__}")
    return bool(number)
