"""Muon: orthogonalised momentum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.optimizers.optimizers as stock

from . import _ext, docstrings, newton_schulz, reserved
from .base import Optimizer, is_own, shares_of
from .formulas.registry import decayed, with_decay_of
from .fused import STORAGE, FusedOptimizer, described_by, in_float32
from .step import Share
from .tools.describe import Described
from .trees import split

_PROGRAM = ("ns_steps", "ns_dtype", "ns_coefficients", "adjust_lr")


@docstrings.completed
class Muon(FusedOptimizer, stock.Muon):
    r"""Muon: momentum whose matrices are replaced by their orthogonal factors.

    Jordan et al., `Muon: An optimizer for hidden layers in neural networks
    <https://kellerjordan.github.io/posts/muon/>`_. Without the keyword arguments it behaves like
    :class:`mlx.optimizers.Muon`. Matrices of the same shape are orthogonalised together.

    A parameter of more than two dimensions is treated as a matrix of its first dimension by all
    others. One of fewer is updated by its momentum without orthogonalisation, or by ``fallback``.

    Args:
        learning_rate: A float, or a callable from the number of updates done to a float.
        momentum: The part of the momentum that is kept from step to step. Default: ``0.95``
        weight_decay: Added to the gradient, times the parameter; see ``weight_decay_kind``.
            Default: ``0.01``
        nesterov: Use Nesterov's form of the momentum. Default: ``True``
        ns_steps: The number of Newton-Schulz iterations. Default: ``5``
        ns_dtype: The dtype of their matrix products, ``mx.bfloat16`` for speed on GPUs. Default:
            bfloat16 for bfloat16, else float32
        ns_coefficients: ``"quintic"``, ``"polar_express"`` (arXiv:2505.16932), or for each
            iteration a triple (a, b, c), the last of which is repeated: x becomes
            :math:`a x + b x x^T x + c (x x^T)^2 x`. Default: ``"quintic"``
        adjust_lr: The factor of the learning rate for a matrix of r rows and c columns:
            ``"original"`` :math:`\sqrt{\max(1, r / c)}`, of the parameter's last two dimensions,
            or ``"match_rms_adamw"`` :math:`0.2 \sqrt{\max(r, c)}` (arXiv:2502.16982). Default:
            ``"original"``
        decoupled_weight_decay: If true, another name of ``weight_decay_kind="decoupled"``.
            Default: ``False``
        weight_decay_kind: ``"coupled"``, ``"decoupled"``, ``"independent"`` or ``"corrected"``, as
            for :class:`SGD`. Default: ``"coupled"``
        max_learning_rate: The greatest of the run, for corrected decay. Default: ``0.0``
        cautious_weight_decay: Decay only elements whose update and parameter agree in sign.
            Default: ``False``
        maximize: Ascend: negate the gradients. Default: ``False``
        fallback: An optimizer of this package for parameters of fewer than two dimensions, with its
            own learning rate. Its state is ``state["mlx_opt"]["fallback"]``. Lists and tuples in
            the trees are returned as lists. Default: ``None``
        groups: Groups of parameters with values of their own: :class:`Group`, or dicts. Those of
            ``fallback`` come first for its parameters, and then these, as far as it has such
            hyperparameters; a ``learning_rate`` is only for Muon's.

    Raises:
        ValueError: ``ns_coefficients``, ``ns_dtype`` or ``adjust_lr`` has another value, or
            ``ns_steps`` is negative.
        TypeError: ``fallback`` is not an optimizer of this package, or ``ns_steps`` is not an int.

    Example:
        >>> import mlx.core as mx
        >>> import mlx_opt as optim
        >>> optimizer = optim.Muon(0.1, ns_coefficients="polar_express", weight_decay=0.0)
        >>> w = optimizer.apply_gradients({"w": mx.array([[3.0, 0.0]])}, {"w": mx.zeros((1, 2))})
        >>> w["w"].shape
        (1, 2)
    """

    _rule = "Muon"
    _options = (*_PROGRAM, "decoupled_weight_decay", "maximize")
    maximize = False
    _additions = {
        "weight_decay_kind": "coupled",
        "max_learning_rate": 0.0,
        "cautious_weight_decay": False,
    }

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
        weight_decay_kind: str = "coupled",
        max_learning_rate: float = 0.0,
        cautious_weight_decay: bool = False,
        maximize: bool = False,
        fallback: Optimizer | None = None,
        groups: Sequence[Any] = (),
    ):
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
        self.weight_decay_kind = weight_decay_kind
        self.max_learning_rate = max_learning_rate
        self.cautious_weight_decay = bool(cautious_weight_decay)
        self.maximize = bool(maximize)
        self._program_of(self._checked(self._values()))
        self._set_groups(groups)
        if isinstance(fallback, FusedOptimizer):
            fallback._add_groups(self.groups)

    def _shown_attributes(self) -> list[str]:
        names = super()._shown_attributes()
        return names if self.fallback is None else [*names, "fallback"]

    def init(self, parameters: Any) -> None:
        if self.fallback is None:
            super().init(parameters)
            return
        self._assign(parameters, parameters, judges=False)
        reserved.refuse_parameters_of_that_name(parameters, self._schedulers)
        matrices, others = _split(parameters)
        super().init(matrices)
        self.fallback.init(others)
        self._state.setdefault(reserved.KEY, {})["fallback"] = self.fallback.state

    def _init_own(self, gradients: Any) -> None:
        if self.fallback is None:
            super()._init_own(gradients)
            return
        super().init(gradients)
        self._state.setdefault(reserved.KEY, {})["fallback"] = self.fallback.state

    @property
    def state(self) -> dict:
        """The optimizer's state dictionary."""
        return self._state

    @state.setter
    def state(self, state: dict) -> None:
        reserved.move_former_entries(state)
        if self.fallback is not None:
            reserved.move_former_fallback(state)
            if "fallback" in reserved.entries_of(state):
                self.fallback.state = reserved.entries_of(state)["fallback"]
        self._initialized = False
        self._state = state

    def check(self, gradients: Any, parameters: Any) -> None:
        if self.fallback is None:
            super().check(gradients, parameters)
            return
        matrices, others = _split(gradients)
        super().check(matrices, parameters)
        self.fallback.check(others, parameters)

    def _shares(self, gradients: Any) -> list[Share]:
        if self.fallback is None:
            return super()._shares(gradients)
        matrices, others = _split(gradients)
        return super()._shares(matrices) + shares_of(self.fallback, others)

    def _assign(self, gradients: Any, parameters: Any, judges: bool = True) -> None:
        if self._grouping is None or not self._grouping.assignment.extend(
            gradients, parameters, judges
        ):
            return
        if self.fallback is None or isinstance(self.fallback, FusedOptimizer):
            return
        grouped = self._grouping.grouped(_split(parameters)[1])
        if grouped:
            kind = type(self.fallback).__name__
            raise ValueError(f"groups: {grouped[0]}: {kind} updates it, which cannot have groups")

    def _described(self, parameters: Any, model: Any) -> list[Described]:
        if self.fallback is None:
            return super()._described(parameters, model)
        matrices, others = _split(parameters)
        return super()._described(matrices, model) + described_by(self.fallback, others, model)

    def _checked(self, values: dict[str, Any]) -> dict[str, Any]:
        kind = values["weight_decay_kind"]
        if values["decoupled_weight_decay"]:
            if kind not in ("coupled", "decoupled"):
                raise ValueError(f"decoupled_weight_decay: weight_decay_kind is {kind!r} too")
            values = {**values, "weight_decay_kind": "decoupled"}
        return super()._checked(values)

    def _program_of(self, values: dict[str, Any]) -> tuple[_ext.Program, list[Any]]:
        hypers = super()._program_of(values)[1]
        return _program(*(values[name] for name in _PROGRAM)), hypers

    def _formula(self, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
        def descend(update: mx.array, parameter: mx.array, _: dict) -> mx.array:
            rate = self.learning_rate.astype(update.dtype)
            parameter = decayed(
                mx,
                parameter,
                update,
                self._kind,
                self.weight_decay,
                rate,
                self.max_learning_rate,
                self.cautious_weight_decay,
            )
            return parameter - rate * update

        direction = in_float32(self._direction, gradient, parameter, state)
        return in_float32(descend, self._orthogonalized(direction), parameter, {})

    @property
    def _kind(self) -> str:
        return "decoupled" if self.decoupled_weight_decay else self.weight_decay_kind

    def _direction(self, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
        if self.weight_decay != 0:
            gradient = with_decay_of(mx, self._kind, gradient, self.weight_decay, parameter)
        v = self.momentum * state["v"] + (1 - self.momentum) * gradient
        state["v"] = v
        return gradient * (1 - self.momentum) + v * self.momentum if self.nesterov else v

    def _orthogonalized(self, x: mx.array) -> mx.array:
        if x.ndim < 2 or x.size == 0:
            return x
        scale = ADJUSTMENTS[self.adjust_lr](x.shape)
        matrix = x if x.ndim == 2 else x.reshape(x.shape[0], -1)
        if x.dtype not in STORAGE or not self._uses_own_iterations():
            matrix = self._zeropower_via_newtonschulz5(matrix, steps=self.ns_steps)
            return scale * matrix.reshape(x.shape)
        coefficients = newton_schulz.coefficients_of(self.ns_coefficients)
        [factor] = newton_schulz.orthogonalized(
            [matrix], [scale], coefficients, self.ns_steps, self.ns_dtype
        )
        return factor if x.ndim == 2 else factor.reshape(x.shape)

    def _uses_primitives(self) -> bool:
        return self._uses_own_iterations()

    def _uses_own_iterations(self) -> bool:
        """True if mlx.optimizers' iterations are not overridden."""
        return is_own(self, "_zeropower_via_newtonschulz5", _iterations)


_iterations = stock.Muon._zeropower_via_newtonschulz5


def _program(ns_steps: Any, ns_dtype: Any, ns_coefficients: Any, adjust_lr: Any) -> _ext.Program:
    """The program with these options.

    Raises:
        TypeError, ValueError: An option has a wrong value; the message names it.
    """
    if adjust_lr not in ADJUSTMENTS:
        raise ValueError(f"adjust_lr: expected one of {', '.join(ADJUSTMENTS)}, got {adjust_lr!r}")
    if isinstance(ns_steps, bool) or not isinstance(ns_steps, int):
        raise TypeError(f"ns_steps: expected an int, got {type(ns_steps).__name__}")
    if ns_steps < 0:
        raise ValueError(f"ns_steps: expected 0 or more, got {ns_steps}")
    if not (ns_dtype is None or ns_dtype in STORAGE):
        raise ValueError(f"ns_dtype: expected float32, float16, bfloat16 or None, got {ns_dtype}")
    coefficients = newton_schulz.coefficients_of(ns_coefficients)
    triples = tuple(map(tuple, coefficients))
    return _cached(ns_steps, ns_dtype, triples, adjust_lr, newton_schulz.STACK)


@cache
def _cached(*options: Any) -> _ext.Program:
    """One object for the same options, so that their leaves are updated together."""
    return _ext.muon_program(*options)


def _original(shape: tuple[int, ...]) -> float:
    return max(1, shape[-2] / shape[-1]) ** 0.5


def _match_rms_adamw(shape: tuple[int, ...]) -> float:
    rows, size = shape[0], 1
    for n in shape[1:]:
        size *= n
    return 0.2 * max(rows, size) ** 0.5


ADJUSTMENTS = {"original": _original, "match_rms_adamw": _match_rms_adamw}


def _split(tree: Any) -> tuple[Any, Any]:
    """The matrices of a tree, and the leaves with fewer dimensions."""

    def part_of(_: str, x: Any) -> int:
        return getattr(x, "ndim", 2) < 2

    matrices, others = split(tree, 2, part_of)
    return matrices, others
