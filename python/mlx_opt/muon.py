"""Muon: momentum, orthogonalised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.optimizers.optimizers as stock
from mlx.utils import tree_flatten, tree_map, tree_merge

from . import _ext, newton_schulz
from .base import Optimizer, Step, is_own
from .clipping import Clip, Scaling, with_scale
from .fused import STORAGE, UPDATE, FusedOptimizer, Rule, Write, in_float32
from .trees import split


class Muon(FusedOptimizer, stock.Muon):
    r"""Muon: momentum whose matrices are replaced by their orthogonal factors.

    Jordan et al., `Muon: An optimizer for hidden layers in neural networks
    <https://kellerjordan.github.io/posts/muon/>`_. Without the keyword arguments it does what
    :class:`mlx.optimizers.Muon` does. Matrices of one shape go through the iterations together.

    A parameter of more than two dimensions is taken as the matrix of its first dimension by all
    others. One of fewer takes its momentum as it is, or goes to ``fallback``.

    Args:
        learning_rate: A float, or a callable from the number of updates done to a float.
        momentum: The part of the momentum that is kept from step to step. Default: ``0.95``
        weight_decay: Added to the gradient, times the parameter. Default: ``0.01``
        nesterov: Use Nesterov's form of the momentum. Default: ``True``
        ns_steps: The number of Newton-Schulz iterations. Default: ``5``
        ns_dtype: The dtype of their matrix products, ``mx.bfloat16`` for speed on GPUs. Default:
            bfloat16 for bfloat16, else float32
        ns_coefficients: ``"quintic"``, ``"polar_express"`` (arXiv:2505.16932), or for each
            iteration a triple (a, b, c) of which the last stays: x becomes
            :math:`a x + b x x^T x + c (x x^T)^2 x`. Default: ``"quintic"``
        adjust_lr: What the learning rate is multiplied with for a matrix of r rows and c columns:
            ``"original"`` :math:`\sqrt{\max(1, r / c)}`, of the parameter's last two dimensions,
            or ``"match_rms_adamw"`` :math:`0.2 \sqrt{\max(r, c)}` (arXiv:2502.16982). Default:
            ``"original"``
        decoupled_weight_decay: Take the decay off the parameter, times the learning rate, in place
            of adding it to the gradient. Default: ``False``
        fallback: An optimizer of this package for parameters of fewer than two dimensions. Its
            state is at ``"fallback"`` in this one's, and its learning rate is its own. Lists and
            tuples in the trees come back as lists. Default: ``None``

    Raises:
        ValueError: ``ns_coefficients`` or ``adjust_lr`` is none of these, or ``ns_steps`` negative.
        TypeError: ``fallback`` is not an optimizer of this package.

    Example:
        >>> import mlx.core as mx
        >>> import mlx_opt as optim
        >>> optimizer = optim.Muon(0.1, ns_coefficients="polar_express", weight_decay=0.0)
        >>> w = optimizer.apply_gradients({"w": mx.array([[3.0, 0.0]])}, {"w": mx.zeros((1, 2))})
        >>> w["w"].shape
        (1, 2)
    """

    _in_place = False

    def __init__(
        self,
        learning_rate: float | Callable[[mx.array], mx.array],
        momentum: float = 0.95,
        weight_decay: float = 0.01,
        nesterov: bool = True,
        ns_steps: int = 5,
        *,
        ns_dtype: mx.Dtype | None = None,
        ns_coefficients: str | Sequence[tuple[float, float, float]] = "quintic",
        adjust_lr: str = "original",
        decoupled_weight_decay: bool = False,
        fallback: Optimizer | None = None,
    ):
        if isinstance(ns_coefficients, str) and ns_coefficients not in newton_schulz.SETS:
            raise ValueError(
                f"ns_coefficients: expected triples or one of {', '.join(newton_schulz.SETS)}, "
                f"got {ns_coefficients!r}"
            )
        if adjust_lr not in ADJUSTMENTS:
            raise ValueError(
                f"adjust_lr: expected one of {', '.join(ADJUSTMENTS)}, got {adjust_lr!r}"
            )
        if ns_steps < 0:
            raise ValueError(f"ns_steps: expected 0 or more, got {ns_steps}")
        if fallback is not None and not isinstance(fallback, Optimizer):
            raise TypeError(
                f"fallback: expected an optimizer of mlx_opt, got {type(fallback).__name__}"
            )
        self.fallback = fallback
        super().__init__(learning_rate, momentum, weight_decay, nesterov, ns_steps)
        self.ns_dtype = ns_dtype
        self.ns_coefficients = ns_coefficients
        self.adjust_lr = adjust_lr
        self.decoupled_weight_decay = decoupled_weight_decay

    def init(self, parameters: Any) -> None:
        if self.fallback is None:
            super().init(parameters)
            return
        matrices, others = _split(parameters)
        super().init(matrices)
        self.fallback.init(others)
        self._state["fallback"] = self.fallback.state

    @property
    def state(self) -> dict:
        """The optimizer's state dictionary."""
        return self._state

    @state.setter
    def state(self, state: dict) -> None:
        self._initialized = False
        self._state = state
        if self.fallback is not None and "fallback" in state:
            self.fallback.state = state["fallback"]

    def check(self, gradients: Any, parameters: Any) -> None:
        if self.fallback is None:
            super().check(gradients, parameters)
            return
        matrices, others = _split(gradients)
        super().check(matrices, parameters)
        self.fallback.check(others, parameters)

    def _steps(self, gradients: Any, model: Any) -> list[Step] | None:
        if self.fallback is None:
            return super()._steps(gradients, model)
        matrices, others = self._begin(gradients, model)
        steps, rest = super()._steps(matrices, model), self.fallback._steps(others, model)
        return None if steps is None or rest is None else steps + rest

    def _begin(self, gradients: Any, parameters: Any) -> tuple[Any, Any]:
        """What is for this optimizer and what for the fallback; both have state."""
        if not self._initialized:
            self.check(gradients, parameters)
            self.init(gradients)
        return _split(gradients)

    def _step(
        self,
        gradients: Any,
        parameters: Any,
        clip: Clip | Scaling | None,
        run: Callable[[_ext.Batch, Scaling | None], Any],
    ) -> Any:
        if self.fallback is None:
            return super()._step(gradients, parameters, clip, run)
        self.check(gradients, parameters)
        matrices, others = self._begin(gradients, parameters)
        scaling = None if clip is None else clip.of(gradients)
        updated = super()._step(matrices, parameters, scaling, run)
        if scaling is None:
            rest = self.fallback.apply_gradients(others, parameters)
        else:
            rest = self.fallback._apply_clipped(others, parameters, scaling)
        return tree_merge(updated, rest)

    def _rule(self) -> Rule:
        decay = 0.0 if self.decoupled_weight_decay else self.weight_decay
        return Rule("Muon", ("v",), (self.momentum, self.nesterov, decay))

    def _run(
        self, parameters: Any, batch: _ext.Batch, scaling: Scaling | None, write: Write = UPDATE
    ) -> Any:
        rule = self._rule()
        scalars = (self.learning_rate, self.step)
        first = with_scale(self._formula, scaling)
        directions = batch.update(rule.name, rule.hypers, *scalars, *first)
        batch = _ext.Batch(self._orthogonalized(directions), parameters, None, (), False)
        decay = self.weight_decay if self.decoupled_weight_decay else 0.0
        # Of a direction of length 1 plain descent with decay is descent with decoupled decay.
        last = with_scale(self._descent, None if scaling is None else scaling.once_more())
        return write(batch, "SGD", (decay,), *scalars, *last)

    def _orthogonalized(self, directions: Any) -> Any:
        leaves: list[Any] = [leaf[1] for leaf in tree_flatten(directions)]
        own = not is_own(self, "_zeropower_via_newtonschulz5", stock.Muon)
        together = []
        for i, x in enumerate(leaves):
            if x.ndim < 2 or x.size == 0:
                continue
            if own or x.dtype not in STORAGE:
                matrix = self._zeropower_via_newtonschulz5(_matrix(x), steps=self.ns_steps)
                leaves[i] = _adjustment(self, x) * matrix.reshape(x.shape)
            else:
                together.append(i)
        sets = newton_schulz.SETS
        coefficients = self.ns_coefficients
        results = newton_schulz.orthogonalized(
            [_matrix(leaves[i]) for i in together],
            [_adjustment(self, leaves[i]) for i in together],
            sets[coefficients] if isinstance(coefficients, str) else coefficients,
            self.ns_steps,
            self.ns_dtype,
        )
        for i, result in zip(together, results, strict=True):
            leaves[i] = result if leaves[i].ndim == 2 else result.reshape(leaves[i].shape)
        iterator = iter(leaves)
        return tree_map(lambda _: next(iterator), directions)

    def _formula(self, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
        return in_float32(self._direction, gradient, parameter, state)

    def _direction(self, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
        if self.weight_decay != 0 and not self.decoupled_weight_decay:
            gradient = gradient + self.weight_decay * parameter
        v = self.momentum * state["v"] + (1 - self.momentum) * gradient
        state["v"] = v
        return gradient * (1 - self.momentum) + v * self.momentum if self.nesterov else v

    def _descent(self, update: mx.array, parameter: mx.array, state: dict | None) -> mx.array:
        def formula(update: mx.array, parameter: mx.array, state: dict) -> mx.array:
            if self.weight_decay != 0 and self.decoupled_weight_decay:
                update = update + self.weight_decay * parameter
            return parameter - self.learning_rate.astype(update.dtype) * update

        return in_float32(formula, update, parameter, {})


def _original(shape: tuple[int, ...]) -> float:
    return max(1, shape[-2] / shape[-1]) ** 0.5


def _match_rms_adamw(shape: tuple[int, ...]) -> float:
    rows, size = shape[0], 1
    for n in shape[1:]:
        size *= n
    return 0.2 * max(rows, size) ** 0.5


ADJUSTMENTS = {"original": _original, "match_rms_adamw": _match_rms_adamw}


def _adjustment(optimizer: Muon, x: mx.array) -> float:
    return ADJUSTMENTS[optimizer.adjust_lr](x.shape)


def _matrix(x: mx.array) -> mx.array:
    return x if x.ndim == 2 else x.reshape(x.shape[0], -1)


def _split(tree: Any) -> tuple[Any, Any]:
    """The matrices of a tree, and what has fewer dimensions."""

    def part_of(_: str, x: Any) -> int:
        return isinstance(x, mx.array) and x.ndim < 2

    matrices, others = split(tree, 2, part_of)
    return matrices, others
