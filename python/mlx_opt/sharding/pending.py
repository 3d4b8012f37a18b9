"""Averages that are added up over several calls, before a step is made with all of them."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from .. import accumulation
from ..accumulation import Total
from ..rollback import Rollback
from .division import Division
from .exchange import Exchange
from .leaves import parts_of


class Pending:
    """This member's elements of the gradients that are pending, which each call has averaged.

    Has what `accumulation` asks of an optimizer.
    """

    _grouping = None

    def __init__(self, division: Division) -> None:
        self._division = division
        self._clip_state = division.optimizer._clip_state
        self._check_takes_gradients = division.optimizer._check_takes_gradients
        self.optimizers = parts_of(division.optimizer)
        self.accumulate = division.optimizer.accumulate
        self.accumulate_dtype = division.optimizer.accumulate_dtype

    def is_used(self, normalizer: Any) -> bool:
        return accumulation.is_used(self, normalizer)

    def add(
        self, averages: Any, parameters: Any, normalizer: Any, rollback: Rollback
    ) -> Total | None:
        """As `accumulation.add`, for trees of this member's elements."""
        return accumulation.add(self, averages, parameters, normalizer, rollback)

    def check(self, gradients: Any, parameters: Any) -> None:
        for optimizer, own, _ in self._shares(gradients):
            optimizer.check(own, parameters)

    def _frozen(self, gradients: Any) -> set[str]:
        shares = self._shares(gradients)
        return set().union(*(optimizer._frozen(own) for optimizer, own, _ in shares))

    def _shares(self, gradients: Any) -> list[Any]:
        leaves: Any = tree_flatten(gradients)
        return list(self._division.shares_of(dict(leaves)))


def average_number(exchange: Exchange, size: int, number: Any) -> mx.array:
    """The average over the members of a number of each."""
    mine = mx.array(number).astype(mx.float32).reshape(1)
    return exchange.sum(mine).reshape(()) / size
