"""Several optimizers, each for a part of the parameters."""

from __future__ import annotations

import inspect
from typing import Any

import mlx.optimizers.optimizers as stock

from .base import Optimizer, shares_of
from .foreign import holder_of
from .fused import described_by
from .step import Share
from .tools import describe, summary
from .tools.describe import Described, ParameterRow
from .trees import split


class MultiOptimizer(Optimizer, stock.MultiOptimizer):
    __doc__ = f"""{inspect.cleandoc(stock.MultiOptimizer.__doc__ or "")}

All parts are updated in one step, and ``update(model, gradients, max_norm=1.0,
skip_nonfinite=True)`` takes one norm over all gradients. Parts that are optimizers of mlx_opt are
fused, in place and in float32 arithmetic. ``groups`` belong to them, ``accumulate`` and
``accumulate_dtype`` are arguments of this class. See docs/groups.md and
docs/clipping.md.
"""

    def __init__(
        self,
        optimizers: list[Any],
        filters: list[Any] = [],  # noqa: B006 (as in mlx.optimizers)
        *,
        groups: Any = (),
        accumulate: int = 1,
        accumulate_dtype: Any = None,
    ) -> None:
        if groups:
            raise TypeError("MultiOptimizer: groups belong to its optimizers, which take them")
        for optimizer in optimizers:
            if isinstance(optimizer, Optimizer):
                optimizer._refuse_as_part()
        if any(getattr(each, "accumulate", 1) != 1 for each in optimizers):
            raise ValueError("MultiOptimizer: accumulate is its own, not one of its optimizers'")
        stock.MultiOptimizer.__init__(self, optimizers, filters)
        self.accumulate = accumulate
        self.accumulate_dtype = accumulate_dtype

    @summary.never_raises
    def __repr__(self) -> str:
        return summary.summary_of_several(self, self.optimizers)

    state = stock.MultiOptimizer.state

    def init(self, parameters: Any) -> None:
        stock.MultiOptimizer.init(self, parameters)

    def describe(self, model: Any, show: bool = True) -> list[ParameterRow]:
        """As for any optimizer; parameters of optimizers of other packages are left out."""
        return describe.describe(self._described, model, show)

    def _described(self, parameters: Any, model: Any) -> list[Described]:
        parts = self._split_dictionary(parameters)
        members = zip(self.optimizers, parts, strict=True)
        return [each for member, part in members for each in described_by(member, part, model)]

    def check(self, gradients: Any, parameters: Any) -> None:
        parts = self._split_dictionary(gradients)
        for optimizer, part in zip(self.optimizers, parts, strict=True):
            if isinstance(optimizer, Optimizer):
                optimizer.check(part, parameters)

    def _states(self) -> list[dict]:
        members = (each for each in self.optimizers if isinstance(each, Optimizer))
        return [state for member in members for state in member._states()]

    def _has_ema(self) -> bool:
        return any(isinstance(each, Optimizer) and each._has_ema() for each in self.optimizers)

    def _check_takes_gradients(self) -> None:
        for optimizer in self.optimizers:
            if isinstance(optimizer, Optimizer):
                optimizer._check_takes_gradients()

    def _frozen(self, gradients: Any) -> set[str]:
        members = zip(self.optimizers, self._split_dictionary(gradients), strict=True)
        found = [each._frozen(part) for each, part in members if isinstance(each, Optimizer)]
        return set().union(*found)

    def _clip_state(self) -> dict:
        # The results are those of all gradients; each optimizer has them.
        state: dict = holder_of(self).state
        return state

    def _shares(self, gradients: Any) -> list[Share]:
        parts = self._split_dictionary(gradients)
        shares: list[Share] = []
        for optimizer, part in zip(self.optimizers, parts, strict=True):
            shares += shares_of(optimizer, part)
        return shares

    def _split_dictionary(self, gradients: Any) -> list[Any]:
        def part_of(path: str, leaf: Any) -> int:
            for i, takes in enumerate(self.filters):
                if takes(path, leaf):
                    return i
            raise ValueError(f"{path}: no filter takes it")

        count = len(self.optimizers)
        return [gradients] if count == 1 else split(gradients, count, part_of)
