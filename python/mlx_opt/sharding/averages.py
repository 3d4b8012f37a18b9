"""What a divided optimizer computes of all parameters from the states that the members have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map_with_path

from .. import master_weights
from ..averaging import Averaging
from ..trees import parameters_of
from ..wrapper import Wrapper
from .division import Division
from .exchange import Exchange, copied
from .fully_sharded import names_of
from .leaves import parts_of
from .plan import Leaf


class WithParameters(Wrapper):
    """The methods of optimizers whose states give other parameters than a model has."""

    _division: Division

    def eval(self, model: nn.Module) -> None:
        """As that of the optimizer that is divided. All members call it, as all of these methods.

        Args:
            model: The module that the optimizer updates.

        Raises:
            TypeError: The optimizer does not average the parameters.
        """
        self._averaging()
        Averaging.eval(self, model)  # type: ignore[arg-type]

    def train(self, model: nn.Module) -> None:
        """As that of the optimizer that is divided; see :meth:`eval`."""
        self._averaging()
        Averaging.train(self, model)  # type: ignore[arg-type]

    @contextmanager
    def evaluating(self, model: nn.Module) -> Iterator[None]:
        """As that of the optimizer that is divided; see :meth:`eval`."""
        self._averaging()
        with Averaging.evaluating(self, model):  # type: ignore[arg-type]
            yield

    def eval_parameters(self, model: Any) -> Any:
        """As that of the optimizer that is divided; see :meth:`eval`."""
        self._averaging()
        return Averaging.eval_parameters(self, model)  # type: ignore[arg-type]

    def master_parameters(self, model: Any) -> Any:
        """Return a model's parameters in float32; see :meth:`Optimizer.master_parameters`.

        All members call it. Each gets all of them, or its rows of those that
        :func:`mlx.nn.fully_shard` has divided.

        Args:
            model: The module that the optimizer updates, or a tree of arrays.
        """
        if self._division.members.size == 1:
            return self.optimizer.master_parameters(model)
        states = [part.state for part in parts_of(self.optimizer)]
        new = _computed(
            self._division,
            model,
            lambda own: master_weights.parameters(states, own),
            lambda leaf: mx.float32 if leaf.dtype in master_weights.NARROW else leaf.dtype,
        )
        return _placed(self._division, new, model)

    _switch = Averaging._switch

    @property
    def _is_evaluating(self) -> bool:
        return self._averaging()._is_evaluating

    def _averaging(self) -> Averaging:
        if not isinstance(self.optimizer, Averaging):
            name = type(self.optimizer).__name__
            raise TypeError(f"Sharded: {name} does not average the parameters")
        return self.optimizer

    def _moved(self, parameters: Any, model: Any, evaluates: bool) -> Any:
        optimizer = self._averaging()
        if self._division.members.size == 1:
            return optimizer._moved(parameters, model, evaluates)
        new = _computed(
            self._division,
            model,
            lambda own: optimizer._moved(own, own, evaluates),
            lambda leaf: leaf.dtype,
        )
        return _placed(self._division, new, model)


def _placed(division: Division, new: dict[str, mx.array], model: Any) -> Any:
    names = names_of(model, division.members.size)
    return tree_map_with_path(lambda path, _: new[names.plain(path or "")], parameters_of(model))


def _computed(
    division: Division,
    model: Any,
    compute: Callable[[Any], Any],
    dtype_of: Callable[[Leaf], mx.Dtype],
) -> dict[str, mx.array]:
    """What a function makes of a tree of this member's elements, from all members, by path.

    Of parameters that are divided into rows these are this member's rows.
    """
    plan, rank, most = division.plan, division.members.rank, division.bucket_size
    values: dict[str, Any] = division.meet_all(model)
    root = parts_of(division.optimizer)[0].state
    exchange = Exchange(division.members, root["step"], values.values())
    leaves = [plan.leaves[path] for path in values]
    exchanged = [leaf for leaf in leaves if leaf.is_exchanged and leaf.size]
    rows = [leaf for leaf in exchanged if leaf.split]
    values = values | exchange.gather_rows(rows, values, most)
    own = {leaf.path: plan.range_of(leaf.path, rank) for leaf in exchanged}
    mine = {path: x for path, x in values.items() if path not in own}
    for path, each in own.items():
        if each.size:
            x = values[path]
            mine[path] = x if each.size == x.size else x.reshape(-1)[each.start : each.stop]
    found: Any = tree_flatten(compute(division.tree(mine))) if mine else []
    computed: dict[str, mx.array] = dict(found)
    targets = {leaf.path: mx.zeros(leaf.size, dtype_of(leaf)) for leaf in exchanged}
    exchange.spread(
        plan.rounds(own, most),
        {path: x.reshape(-1) for path, x in computed.items()},
        own,
        targets,
        lambda _: None,
    )
    root["step"] = exchange.after_all(root["step"])
    result = {leaf.path: computed[leaf.path] for leaf in leaves if leaf.path not in own}
    for leaf in exchanged:
        whole = targets[leaf.path]
        if leaf.split:
            result[leaf.path] = copied(whole.reshape(plan.members, -1, *leaf.shape[1:])[rank])
        else:
            result[leaf.path] = whole.reshape(leaf.shape)
    return result
