"""Muon: orthogonalised momentum."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.optimizers.optimizers as stock

from . import _ext, docstrings, muon_formula, muon_options, reserved, splits
from .base import Optimizer, is_own, shares_of
from .descriptions import initial_state
from .fused import FusedOptimizer, described_by
from .groups import groups_from
from .step import Share
from .tools.describe import Described
from .trees import for_each_leaf
from .trees import split as split_tree


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
        split: For matrices that hold several, one below the other, their blocks, each of which has
            an orthogonal factor and a factor of the learning rate of its own: a dict from patterns,
            as :class:`Group` has them, to the number of blocks of equal size, or to the rows of
            each block. Groups can have ``split`` too, which comes first. A block that is one row of
            more than two dimensions is a matrix of the others. Default: ``None``
        equalize: Divide the ``"rows"``, ``"columns"`` or ``"both"`` of the direction by their norms
            before the iterations (MuonEq, arXiv:2603.28254), or replace it by its ``"sign"``.
            Default: ``None``
        normalize: Divide the ``"rows"`` or ``"columns"`` of the orthogonal factor by their norms,
            or one after the other, ``"columns_rows"`` or ``"rows_columns"`` (Muon+,
            arXiv:2602.21545); ``"frobenius"`` scales it to the norm of an exact factor. Default:
            ``None``
        normuon: Divide each row of the factor by the root of its second moment, and restore the
            factor's norm (NorMuon, arXiv:2510.05491). The moments are the state's ``s``, in
            float32. Default: ``False``
        adamuon: Divide each element by the root of its second moment, and scale to the norm of an
            exact factor (AdaMuon, arXiv:2507.11005). The moments are ``s``, in float32. Default:
            ``False``
        beta2: The part of the second moment that is kept from step to step. Default: ``0.95``
        hyperball: Keep the Frobenius norm of each matrix, to which the learning rate is relative.
            Needs ``weight_decay=0``. Default: ``False``
        fallback: An optimizer of this package for parameters of fewer than two dimensions, with its
            own learning rate. Its state is ``state["mlx_opt"]["fallback"]``. Lists and tuples in
            the trees are returned as lists. Default: ``None``
        master_weights: ``"float32"`` or, for bfloat16, ``"remainder"``, to keep float32 weights;
            ``fallback`` has its own. Default: ``None``
        ema_decay: Keep an exponential moving average of the weights with this decay: a number, a
            schedule or an array; see :meth:`ema_parameters`. ``fallback`` has its own. Default:
            ``None``
        ema_warmup: ``"ratio"``: the decay is at most (1 + s) / (10 + s) after s steps; a power p:
            at most 1 - (1 + s)^-p. Default: ``None``
        ema_update_after: The number of steps that are not averaged. Default: ``0``
        groups: Groups of parameters with values of their own: :class:`Group`, or dicts. Those of
            ``fallback`` come first for its parameters, and then these, as far as it has such
            hyperparameters; a ``learning_rate`` is only for Muon's.
        state_dtype: The dtype of the momentum, as for :class:`SGD`; ``fallback`` has its own.
            Default: ``None``
        accumulate: The number of calls whose gradients make a step, for ``fallback`` too; see
            :attr:`accumulate`. Default: ``1``
        accumulate_dtype: The dtype in which they are added up, or that of the first. Default:
            ``None``
        stochastic_rounding: Round results in bfloat16 up or down at random, right on average;
            ``fallback`` has its own. See docs/stochastic-rounding.md. Default: ``False``
        rounding_seed: The seed of the random bits. Default: ``0``

    Raises:
        ValueError: ``ns_coefficients``, ``ns_dtype``, ``adjust_lr``, ``equalize`` or ``normalize``
            has another value, ``ns_steps`` is negative, both ``normuon`` and ``adamuon`` are true,
            or ``hyperball`` with decay. In a step also: a split does not fit its parameter.
        TypeError: ``fallback`` is not an optimizer of this package, ``ns_steps`` is not an int, or
            ``split`` is no dict of ints and lists of ints.

    Example:
        >>> import mlx.core as mx
        >>> import mlx_opt as optim
        >>> optimizer = optim.Muon(0.1, ns_coefficients="polar_express", weight_decay=0.0)
        >>> w = optimizer.apply_gradients({"w": mx.array([[3.0, 0.0]])}, {"w": mx.zeros((1, 2))})
        >>> w["w"].shape
        (1, 2)

        Queries of four heads, keys and values of one each, in one matrix:

        >>> optimizer = optim.Muon(0.02, normuon=True, split={"*qkv_proj.weight": [256, 64, 64]})
        >>> w = {"qkv_proj": {"weight": mx.ones((384, 256))}}
        >>> w = optimizer.apply_gradients(w, w)
        >>> optimizer.state["qkv_proj"]["weight"]["s"].shape
        (384,)
    """

    _rule = "Muon"
    _formula_depends_on_dtypes = True  # the iterations are in that of the direction
    _options = (*muon_options.PROGRAM, "decoupled_weight_decay", "maximize", "split")
    _additions = {
        "weight_decay_kind": "coupled",
        "max_learning_rate": 0.0,
        "cautious_weight_decay": False,
        "split": None,
        "equalize": None,
        "normalize": None,
        "normuon": False,
        "adamuon": False,
        "beta2": 0.95,
        "hyperball": False,
    }
    # Of objects that were pickled without them.
    maximize = False
    equalize: str | None = None
    normalize: str | None = None
    hyperball = False
    split: Any = None
    """The blocks of parameters for which no group has any."""

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
        split: Mapping[Any, int | Sequence[int]] | None = None,
        equalize: str | None = None,
        normalize: str | None = None,
        normuon: bool = False,
        adamuon: bool = False,
        beta2: float = 0.95,
        hyperball: bool = False,
        fallback: Optimizer | None = None,
        master_weights: str | None = None,
        ema_decay: Any = None,
        ema_warmup: float | str | None = None,
        ema_update_after: int = 0,
        groups: Sequence[Any] = (),
        state_dtype: Any = None,
        accumulate: int = 1,
        accumulate_dtype: Any = None,
        stochastic_rounding: bool = False,
        rounding_seed: int = 0,
    ):
        if fallback is not None and not isinstance(fallback, Optimizer):
            raise TypeError(
                f"fallback: expected an optimizer of mlx_opt, got {type(fallback).__name__}"
            )
        if fallback is not None:
            fallback._refuse_as_part()
        if fallback is not None and fallback.accumulate != 1:
            raise ValueError("fallback: accumulate is Muon's own, not its fallback's")
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
        self.equalize = equalize
        self.normalize = normalize
        self.normuon = bool(normuon)
        self.adamuon = bool(adamuon)
        self.beta2 = beta2
        self.hyperball = bool(hyperball)
        self._set_common(
            {
                "master_weights": master_weights,
                "ema_decay": ema_decay,
                "ema_warmup": ema_warmup,
                "ema_update_after": ema_update_after,
                "groups": [*groups_from(type(self).__name__, groups), *splits.groups_of(split)],
                "state_dtype": state_dtype,
                "accumulate": accumulate,
                "accumulate_dtype": accumulate_dtype,
                "stochastic_rounding": stochastic_rounding,
                "rounding_seed": rounding_seed,
            }
        )
        self._program_of(self._checked(self._values()))
        if isinstance(fallback, FusedOptimizer):
            fallback._add_groups(self.groups)

    def _shown_attributes(self) -> list[str]:
        names = super()._shown_attributes()
        return names if self.fallback is None else [*names, "fallback"]

    def init_single(self, parameter: mx.array, state: dict) -> None:
        """Initialize optimizer state"""
        super().init_single(parameter, state)
        slots = [each for each in self._forms.form_of(self._values()).slots if each.name != "v"]
        state.update(initial_state([x for x in slots if x.is_of(parameter.ndim)], parameter))

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

    def _states(self) -> list[dict]:
        return super()._states() + ([] if self.fallback is None else self.fallback._states())

    def _has_ema(self) -> bool:
        return super()._has_ema() or self.fallback is not None and self.fallback._has_ema()

    def check(self, gradients: Any, parameters: Any) -> None:
        if self.fallback is None:
            super().check(gradients, parameters)
            return
        matrices, others = _split(gradients)
        super().check(matrices, parameters)
        self.fallback.check(others, parameters)

    def _frozen(self, gradients: Any) -> set[str]:
        if self.fallback is None:
            return super()._frozen(gradients)
        matrices, others = _split(gradients)
        return super()._frozen(matrices) | self.fallback._frozen(others)

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
        self._check_splits(gradients)
        if self.fallback is None or isinstance(self.fallback, FusedOptimizer):
            return
        grouped = self._grouping.grouped(_split(parameters)[1], ignored="split")
        if grouped:
            kind = type(self.fallback).__name__
            raise ValueError(f"groups: {grouped[0]}: {kind} updates it, which cannot have groups")

    def _check_splits(self, gradients: Any) -> None:
        """Raise ValueError for a parameter that its split does not fit."""
        found = self._grouping.assignment.found  # type: ignore[union-attr]

        def check(path: str, array: Any, _: Any, index: Any) -> None:
            group = found.combinations[index].get("split") if isinstance(index, int) else None
            if group is not None:
                splits.check_fit(self.groups[group].hyperparameters["split"], path, array)

        for_each_leaf(check, gradients, None, found.tree)

    def _described(self, parameters: Any, model: Any) -> list[Described]:
        if self.fallback is None:
            return super()._described(parameters, model)
        matrices, others = _split(parameters)
        return super()._described(matrices, model) + described_by(self.fallback, others, model)

    def _checked(self, values: dict[str, Any]) -> dict[str, Any]:
        kind = values["weight_decay_kind"]
        if values["normuon"] and values["adamuon"]:
            raise ValueError("Muon: normuon and adamuon cannot be combined")
        decay = values["weight_decay"]
        if values["hyperball"] and (isinstance(decay, mx.array) or decay != 0):
            raise ValueError("Muon: hyperball needs a weight_decay of 0")
        if values["decoupled_weight_decay"]:
            if kind not in ("coupled", "decoupled"):
                raise ValueError(f"decoupled_weight_decay: weight_decay_kind is {kind!r} too")
            values = {**values, "weight_decay_kind": "decoupled"}
        return super()._checked(values)

    def _program_of(self, values: dict[str, Any]) -> tuple[_ext.Program, list[Any]]:
        splits.blocks_from(values["split"])
        program, hypers = super()._program_of(values)
        formats = self._forms.form_of(values).formats(values)
        return muon_options.program_of(program.rule, values, formats), hypers

    def _split_of(self, values: dict[str, Any]) -> tuple[int, ...]:
        return splits.blocks_from(values["split"])

    def _formula(self, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
        return muon_formula.updated(self, gradient, parameter, state)

    def _uses_primitives(self) -> bool:
        return self._uses_own_iterations()

    def _uses_own_iterations(self) -> bool:
        """True if mlx.optimizers' iterations are not overridden."""
        return is_own(self, "_zeropower_via_newtonschulz5", _iterations)


_iterations = stock.Muon._zeropower_via_newtonschulz5


def _split(tree: Any) -> tuple[Any, Any]:
    """The matrices of a tree, and the leaves with fewer dimensions."""

    def part_of(_: str, x: Any) -> int:
        return getattr(x, "ndim", 2) < 2

    matrices, others = split_tree(tree, 2, part_of)
    return matrices, others
