"""An optimizer, the group whose members divide its states, and how they are divided."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from ..base import Optimizer
from ..step import Share
from .agreement import check_agreement, facts_of
from .exchange import Members
from .fully_sharded import Names, names_of
from .leaves import flat, leaves_of, parts_of, refuse_telemetry, whole_shapes
from .plan import Plan
from .states import Structure, divide

LEAST_BUCKET = 32 * 1024**2
BUCKETS = 32
"""The number of rounds that exchange large parameters. Each round waits, so few are fast."""


class Division:
    """The parameters that an optimizer has met, and which member has which elements of them."""

    def __init__(self, optimizer: Optimizer, members: Members, bucket_size: int | None) -> None:
        self.optimizer = optimizer
        self.members = members
        self._given_bucket_size = bucket_size
        self.bucket_size = bucket_size or LEAST_BUCKET
        """How many bytes one operation exchanges at most."""
        self.plan = Plan(members.size)
        self._structure = Structure([])
        self._has_agreed = False

    def tree(self, values: dict[str, Any]) -> Any:
        """A tree of some of the leaves, by path."""
        return self._structure.tree(values)

    def anew(self) -> Division:
        """The same of no parameters."""
        return Division(self.optimizer, self.members, self._given_bucket_size)

    def whole(self, parameters: Any) -> Any:
        """A tree with what the trainable parameters of a module, or a tree, are as a whole."""
        names = names_of(parameters, self.members.size)
        tree = _trainable(parameters)
        found = flat(tree, names)
        shapes = whole_shapes(tree, found, names, self.members.size)
        leaves = [(path, mx.zeros(shape, found[path].dtype)) for path, shape in shapes.items()]
        return tree_unflatten(leaves) if leaves else {}

    def meet_all(self, parameters: Any, divides_states: bool = True) -> dict[str, Any]:
        """Divide the trainable parameters of a module, or a tree; return them by path."""
        names = names_of(parameters, self.members.size)
        tree = _trainable(parameters)
        self.meet(tree, parameters, names, divides_states)
        return flat(tree, names)

    def meet(
        self, gradients: Any, parameters: Any, names: Names, divides_states: bool = True
    ) -> None:
        """Divide parameters that are new, and their states, if all members agree on them.

        Raises:
            KeyError, TypeError, ValueError: A gradient does not fit its parameter.
            RuntimeError: The members do not agree.
        """
        refuse_telemetry(self.optimizer)
        plan, members = self.plan, self.members
        all_parameters = flat(parameters, names)
        shapes = whole_shapes(gradients, all_parameters, names, members.size)
        # Sorted, because equal trees of two processes may have their keys in different orders.
        new = {path: shapes[path] for path in sorted(shapes) if path not in plan.leaves}
        if not new and self._has_agreed:
            return
        parts = parts_of(self.optimizer)
        leaves = leaves_of(self.optimizer, all_parameters, new)
        if members.size > 1:
            dtypes = {path: x.dtype for path, x in flat(gradients, names).items()}
            facts = facts_of(parts, leaves, dtypes, self._given_bucket_size)
            facts["accumulate"] = str(self.optimizer.accumulate)
            check_agreement(members, facts)
        self._has_agreed = True
        plan.extend(leaves)
        if self._given_bucket_size is None:
            total = sum(leaf.size * leaf.dtype.size for leaf in plan.leaves.values())
            self.bucket_size = max(LEAST_BUCKET, total // BUCKETS)
        self._structure = Structure([*plan.leaves])
        for index, part in enumerate(parts if divides_states else ()):
            own = [leaf for leaf in leaves if leaf.share == index]
            divide(part.state, own, plan, members.rank)

    def shares_of(self, own: dict[str, mx.array]) -> list[Share]:
        """The parts of a step of this member's elements."""
        parts = parts_of(self.optimizer)
        values: list[dict[str, mx.array]] = [{} for _ in parts]
        for path, x in own.items():
            values[self.plan.leaves[path].share][path] = x
        trees = [self._structure.tree(each) for each in values]
        return [Share(part, tree, None) for part, tree in zip(parts, trees, strict=True)]


def _trainable(parameters: Any) -> Any:
    return parameters.trainable_parameters() if isinstance(parameters, nn.Module) else parameters
