"""Clipping by the global norm, and steps that are skipped where it is not finite."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.optimizers.optimizers as stock
from mlx.utils import tree_map

from . import _ext
from .state_dtypes import Formula


class ClipRequest(NamedTuple):
    """The arguments of :meth:`Optimizer.update` that clip the gradients or skip the step."""

    max_norm: float | mx.array | None = None
    skip_nonfinite: bool = False
    max_value: mx.array | None = None

    across: Callable[[mx.array], mx.array] | None = None
    """The norm of gradients that are divided among processes, from that of this process's."""

    @staticmethod
    def from_arguments(max_norm: Any, skip_nonfinite: Any, max_value: Any) -> ClipRequest | None:
        if max_norm is None and skip_nonfinite is False and max_value is None:
            return None
        skip_nonfinite = _flag(skip_nonfinite)
        if max_norm is None and max_value is None and not skip_nonfinite:
            return None
        if max_norm is not None:
            max_norm = checked_limit("max_norm", max_norm)
        if max_value is not None:
            max_value = mx.array(checked_limit("max_value", max_value))
        return ClipRequest(max_norm, skip_nonfinite, max_value)

    def compute(
        self, gradients: list[Any], loss_scale: mx.array | None, divisor: Any = None
    ) -> ClippedStep:
        """The norm and the scale of gradients: trees, or lists of the parts that hold them.

        `divisor`: what the gradients are divided by, besides the loss scale; None for 1.
        """
        if self.max_norm is None and not self.skip_nonfinite:
            scale = mx.array(1.0) if divisor is None else mx.array(1.0) / divisor
            return ClippedStep(None, scale, None, max_value=self.max_value)
        unit = divisor if loss_scale is None else loss_scale
        if divisor is not None and loss_scale is not None:
            unit = loss_scale * divisor
        norm = global_norm(gradients)
        if self.across is not None:
            norm = self.across(norm)
        if unit is not None:
            norm = norm / unit
        finite = mx.isfinite(norm) if self.skip_nonfinite else None
        scale = _ext.gradient_scale(norm, self.max_norm, self.skip_nonfinite)
        _ext.begin_scale(scale)
        if unit is not None:
            scale = scale / unit
        return ClippedStep(norm, scale, finite, loss_scale, self.max_value)


class ClippedStep(NamedTuple):
    """What one step does with the gradients, and whether it is applied."""

    norm: mx.array | None
    """The global norm of all gradients, 0-d; None if the step does not need it."""

    scale: mx.array
    """The factor of the gradients, 0-d; NaN if the step is skipped."""

    finite: mx.array | None
    """A 0-d bool, true if the step is applied; None if steps are never skipped."""

    loss_scale: mx.array | None = None
    """What the gradients were multiplied by, 0-d; None if they were not."""

    max_value: mx.array | None = None
    """The maximum size of an element after the scale, 0-d; None if there is none."""

    def scaled(self, gradient: mx.array) -> mx.array:
        return scaled(gradient, self.scale, self.max_value)

    def chosen(self, new: Any, old: Any) -> Any:
        """`new` if the step is applied, else `old`."""
        return new if self.finite is None else mx.where(self.finite, new, old)

    def around(self, formula: Formula) -> Formula:
        """`formula` on scaled gradients, whose results count only if the step is applied."""
        on_scaled = self._on_scaled(formula)

        def step(gradient: mx.array, parameter: mx.array, state: Any) -> mx.array:
            before = dict(state)
            updated = on_scaled(gradient, parameter, state)
            for name, old in before.items():
                state[name] = self._chosen_as_stored(state[name], old)
            return self._chosen_as_stored(updated, parameter)

        return step

    def _on_scaled(self, formula: Formula) -> Formula:
        """`formula` on scaled gradients. They are scaled where its arrays are float32 already."""
        with_formula = getattr(formula, "with_formula", None)
        if with_formula is not None:
            return with_formula(self._on_scaled(formula.formula))  # type: ignore[attr-defined]
        return partial(self._updated, formula)

    def _chosen_as_stored(self, new: Any, old: Any) -> Any:
        """`chosen`, in the dtype of the new array."""
        if self.finite is not None and isinstance(new, mx.array) and isinstance(old, mx.array):
            old = old.astype(new.dtype)
        return self.chosen(new, old)

    def _updated(
        self, formula: Formula, gradient: mx.array, parameter: mx.array, state: Any
    ) -> mx.array:
        if gradient.dtype not in (mx.float16, mx.bfloat16):
            return formula(self.scaled(gradient), parameter, state)
        # A scaled gradient may be too small for half precision.
        before = dict(state)
        updated = formula(self.scaled(gradient.astype(mx.float32)), parameter, state)
        for name, old in before.items():
            if isinstance(old, mx.array) and state[name] is not old:
                state[name] = state[name].astype(mx.result_type(old, gradient))
        return updated.astype(mx.result_type(gradient, parameter))


def negative_of(clipped: ClippedStep | None) -> ClippedStep:
    """The same with the negative of the gradients."""
    if clipped is None:
        return ClippedStep(None, mx.array(-1.0), None)
    return clipped._replace(scale=-clipped.scale)


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
    greatest = checked_limit("max_norm", max_norm)
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


def scaled(gradient: mx.array, scale: mx.array, max_value: mx.array | None = None) -> mx.array:
    """A gradient times its scale, whose elements are then at most `max_value` from 0."""
    x = gradient * scale
    if max_value is not None:
        if mx.issubdtype(x.dtype, mx.complexfloating):
            raise ValueError("max_value: expected real gradients, got complex ones")
        x = mx.clip(x, -max_value, max_value)
    return x.astype(gradient.dtype) if mx.issubdtype(gradient.dtype, mx.floating) else x


def checked_limit(name: str, limit: Any) -> float | mx.array:
    if isinstance(limit, mx.array):
        if limit.size != 1:
            raise ValueError(f"{name}: expected a number, got shape {tuple(limit.shape)}")
        return limit
    try:
        number = float("" if isinstance(limit, str) else limit)
    except (TypeError, ValueError):
        raise TypeError(
            f"{name}: expected a number or a 0-d mlx.core.array, got {type(limit).__name__}"
        ) from None
    if not number >= 0:  # or NaN
        raise ValueError(f"{name} should be >=0, {limit} was provided instead")
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
