"""Lookahead: slow weights that follow those of another optimizer."""

from __future__ import annotations

from numbers import Real
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map_with_path, tree_unflatten

from . import reserved
from .base import Optimizer, shares_of
from .tools import summary
from .tools.describe import ParameterRow
from .trees import parameters_of
from .wrapper import Wrapper

KEY = "slow"
"""The key of the slow weights among mlx_opt's entries of the state, a tree like the parameters."""


class Lookahead(Wrapper):
    """Moves slow weights towards those of an optimizer in every ``k``-th step, and those onto them.

    After a step whose number is a multiple of k, slow becomes slow + alpha * (w - slow), and w
    becomes slow. Slow weights begin as the parameters before their first step. They are in the
    state, in float32 for parameters in bfloat16 and float16.
    Zhang, Lucas, Hinton and Ba, `Lookahead optimizer: k steps forward, 1 step back
    <https://arxiv.org/abs/1907.08610>`_. See docs/lookahead.md.

    Args:
        optimizer: An optimizer of mlx_opt, also a :class:`MultiOptimizer`.
        k: The number of steps between two moves.
        alpha: How far the slow weights move, in (0, 1].

    Raises:
        TypeError: The optimizer is none of mlx_opt, is itself a wrapper, or has master weights.
            ``k`` is not an int, or ``alpha`` not a number.
        ValueError: ``k`` is below 1, or ``alpha`` out of its range.

    Example:
        >>> import mlx.core as mx
        >>> import mlx_opt as optim
        >>> optimizer, w = optim.Lookahead(optim.SGD(1.0), k=2), {"w": mx.array([8.0])}
        >>> for _ in range(2):
        ...     w = optimizer.apply_gradients({"w": mx.array([1.0])}, w)
        >>> w
        {'w': array([7], dtype=float32)}
    """

    def __init__(self, optimizer: Optimizer, k: int = 6, alpha: float = 0.5) -> None:
        if not isinstance(optimizer, Optimizer):
            found = type(optimizer).__name__
            raise TypeError(f"Lookahead: expected an optimizer of mlx_opt, got {found}")
        optimizer._refuse_as_part()
        for share in shares_of(optimizer, {}):
            gives = getattr(share.optimizer, "_gives", None)
            if gives is not None and gives("master_weights"):
                raise TypeError("Lookahead: an optimizer with master_weights is not supported")
        self.optimizer = optimizer
        self.k, self.alpha = _checked_steps(k), _checked_rate(alpha)
        self._schedulers: dict[str, Any] = {}

    @summary.never_raises
    def __repr__(self) -> str:
        return f"<Lookahead(k={self.k}, alpha={self.alpha}) of {self.optimizer!r}>"

    def update(
        self,
        model: Any,
        gradients: Any,
        max_norm: float | mx.array | None = None,
        skip_nonfinite: bool = False,
        max_value: float | mx.array | None = None,
        normalizer: float | mx.array | None = None,
    ) -> None:
        """Update the parameters of a model; see :meth:`Optimizer.update`."""
        paths = _paths_of(gradients)
        before = _selected(model.parameters(), paths)
        slow, step = self._slow(before), self._step()
        limits = max_norm, skip_nonfinite, max_value, normalizer
        self.optimizer.update(model, gradients, *limits)
        new = self._moved(slow, _selected(model.parameters(), paths), step)
        model.update(tree_unflatten(list(new.items())))

    def apply_gradients(
        self,
        gradients: Any,
        parameters: Any,
        max_norm: float | mx.array | None = None,
        skip_nonfinite: bool = False,
        max_value: float | mx.array | None = None,
        normalizer: float | mx.array | None = None,
    ) -> Any:
        """Return the updated parameters; see :meth:`Optimizer.apply_gradients`.

        Args:
            gradients: As for that.
            parameters: As for that.
            max_norm: As for :meth:`update`.
            skip_nonfinite: As for :meth:`update`.
            max_value: As for :meth:`update`.
            normalizer: As for :meth:`update`.
        """
        slow, step = self._slow(_selected(parameters, _paths_of(gradients))), self._step()
        limits = max_norm, skip_nonfinite, max_value, normalizer
        updated = self.optimizer.apply_gradients(gradients, parameters, *limits)
        leaves: Any = tree_flatten(updated)
        new = self._moved(slow, dict(leaves), step)
        return tree_map_with_path(lambda path, _: new[path or ""], updated)

    def slow_parameters(self, model: Any) -> Any:
        """Return the slow weights of a model's parameters; the model keeps its own.

        Args:
            model: The module that the optimizer updates, of which the trainable parameters are
                taken, or a tree of arrays.

        Returns:
            A tree of the same structure, in float32 for parameters in bfloat16 and float16. A
            parameter that has had no step is its own slow weight.
        """
        slow = self._stored()
        return tree_map_with_path(lambda path, x: slow.get(path or "", x), parameters_of(model))

    def init(self, parameters: Any) -> None:
        """Initialize parameters that have no state, and slow weights; see :meth:`Optimizer.init`.

        Args:
            parameters: A tree of arrays.
        """
        self.optimizer.init(parameters)
        leaves: Any = tree_flatten(parameters)
        self._store(self._slow(dict(leaves)))

    def check(self, gradients: Any, parameters: Any) -> None:
        self.optimizer.check(gradients, parameters)

    def describe(self, model: Any, show: bool = True) -> list[ParameterRow]:
        """As the optimizer that is wrapped."""
        optimizer: Any = self.optimizer
        rows: list[ParameterRow] = optimizer.describe(model, show)
        return rows

    @property
    def step(self) -> Any:
        return self._step()

    def _states(self) -> list[dict]:
        return self.optimizer._states()

    def _has_ema(self) -> bool:
        return self.optimizer._has_ema()

    def _frozen(self, gradients: Any) -> set[str]:
        return self.optimizer._frozen(gradients)

    def _check_takes_gradients(self) -> None:
        self.optimizer._check_takes_gradients()

    def _refuse_as_part(self) -> None:
        raise TypeError("Lookahead cannot be a part of another optimizer: wrap that instead")

    def _step(self) -> Any:
        return self._clip_state()["step"]

    def _stored(self) -> dict[str, mx.array]:
        leaves: Any = tree_flatten(reserved.entries_of(self._clip_state()).get(KEY, {}))
        return dict(leaves)

    def _store(self, slow: dict[str, mx.array]) -> None:
        if slow:
            entries = self._clip_state().setdefault(reserved.KEY, {})
            entries[KEY] = tree_unflatten(list(slow.items()))

    def _slow(self, parameters: dict[str, mx.array]) -> dict[str, mx.array]:
        """All slow weights; those of parameters that have none begin as these."""
        slow = self._stored()
        for path, x in parameters.items():
            if path not in slow:
                slow[path] = x.astype(mx.result_type(x, mx.float32))
        return slow

    def _moved(
        self, slow: dict[str, mx.array], parameters: dict[str, mx.array], step: Any
    ) -> dict[str, mx.array]:
        """The parameters after a step, and after a move if one is due. `step`: its number before.

        A call that makes no step, because it is skipped or only adds gradients, moves nothing.
        """
        number = mx.array(self._step())
        is_due = mx.logical_and(number % self.k == 0, number != step)
        new: dict[str, mx.array] = {}
        for path, x in parameters.items():
            before = slow[path]
            after = before + self.alpha * (x.astype(before.dtype) - before)
            slow[path] = mx.where(is_due, after, before)
            new[path] = mx.where(is_due, after.astype(x.dtype), x)
        self._store(slow)
        return new


def _checked_steps(k: Any) -> int:
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"Lookahead: k: expected an int, got {type(k).__name__}")
    if k < 1:
        raise ValueError(f"Lookahead: k: expected 1 or more, got {k}")
    return k


def _checked_rate(alpha: Any) -> float:
    if isinstance(alpha, bool) or not isinstance(alpha, Real):
        raise TypeError(f"Lookahead: alpha: expected a number, got {type(alpha).__name__}")
    if not 0 < float(alpha) <= 1:
        raise ValueError(f"Lookahead: alpha: expected a number in (0, 1], got {alpha}")
    return float(alpha)


def _paths_of(gradients: Any) -> list[str]:
    leaves: Any = tree_flatten(gradients)
    return [path for path, _ in leaves]


def _selected(parameters: Any, paths: list[str]) -> dict[str, mx.array]:
    """The parameters of some paths. What is missing is left for the step to refuse."""
    tree = parameters.parameters() if hasattr(parameters, "parameters") else parameters
    leaves: Any = tree_flatten(tree)
    found = dict(leaves)
    return {path: found[path] for path in paths if isinstance(found.get(path), mx.array)}
