"""A step of several members."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from .. import loss_scale, reserved, step
from ..clipping import ClipRequest, checked_limit
from ..rollback import Rollback
from .division import Division
from .exchange import Exchange, copied
from .fully_sharded import Names
from .leaves import flat, parts_of
from .pending import Pending, average_number
from .plan import Leaf, Range, Round, ranges_in
from .states import cut

STAGES = 16
"""The most parts in which a step averages gradients and updates their parameters."""


def make_step(
    division: Division,
    tree: Any,
    parameters: dict[str, mx.array],
    names: Names,
    request: ClipRequest | None,
    normalizer: Any,
    put: Callable[[dict[str, mx.array]], None],
) -> None:
    """Make a step of several members.

    Args:
        tree: The gradients.
        parameters: All parameters, by path; emptied.
        names: The names of the parameters.
        request: How the gradients are clipped.
        normalizer: What they are divided by, if it is not None; of this member.
        put: Called with new parameters by path, as soon as they are exchanged.
    """
    gradients = flat(tree, names)
    if normalizer is not None:
        normalizer = checked_limit("normalizer", normalizer)
    pending = Pending(division)
    accumulates = pending.is_used(normalizer)
    _check_dtypes(division, gradients, parameters, accumulates)
    root = parts_of(division.optimizer)[0].state
    if request is None and loss_scale.KEY in reserved.entries_of(root):
        request = ClipRequest(skip_nonfinite=True)
    exchange = Exchange(division.members, root["step"], gradients.values())
    made = _Step(division, gradients, parameters, request, exchange, put)
    if accumulates:
        made.run_pending(pending, normalizer)
    else:
        made.run()
    # The next step's operations follow these, even if it has other parameters.
    root["step"] = exchange.after_all(root["step"])


class _Step:
    """A step; see `make_step`."""

    def __init__(
        self,
        division: Division,
        gradients: dict[str, mx.array],
        parameters: dict[str, mx.array],
        request: ClipRequest | None,
        exchange: Exchange,
        put: Callable[[dict[str, mx.array]], None],
    ) -> None:
        self._division = division
        self._rank = division.members.rank
        self._all_leaves = [
            leaf for path, leaf in division.plan.leaves.items() if path in parameters
        ]
        self._leaves = [leaf for leaf in self._all_leaves if leaf.path in gradients]
        self._gradients = gradients
        # Nothing else holds these later, so that their buffers are written to.
        self._parameters = {leaf.path: parameters[leaf.path] for leaf in self._all_leaves}
        parameters.clear()
        self._exchange = exchange
        self._request = None if request is None else request._replace(across=exchange.norm)
        self._put = put
        self._has_advanced = False

    def run(self) -> None:
        empty = [leaf.path for leaf in self._leaves if leaf.is_exchanged and leaf.size == 0]
        self._put({path: self._target(path) for path in empty})
        staged = [leaf for leaf in self._leaves if self._is_staged(leaf)]
        rounds = self._rounds(staged)
        if rounds:
            self._begin()
        others = [leaf for leaf in self._leaves if leaf.size and not self._is_staged(leaf)]
        if others or not rounds:
            self._update_at_once(others)
        length = max(1, -(-len(rounds) // STAGES))
        for i in range(0, len(rounds), length):
            self._update_in(rounds[i : i + length])

    def _is_staged(self, leaf: Leaf) -> bool:
        """True if the elements of a leaf may be updated in parts, so that few averages are in
        memory. A norm needs all of them first."""
        request = self._request
        needs_norm = request is not None and (
            request.max_norm is not None or bool(request.skip_nonfinite)
        )
        return not (needs_norm or self._exchange.is_traced or leaf.whole or leaf.split)

    def _rounds(self, leaves: list[Leaf]) -> list[Round]:
        paths = [leaf.path for leaf in leaves]
        return self._division.plan.rounds(paths, self._division.bucket_size)

    def _begin(self) -> None:
        """Initialize all states and check all leaves, before the first part of the step."""
        values: dict[str, mx.array] = {}
        gradients: dict[str, mx.array] = {}
        for leaf in self._leaves:
            own = self._own(leaf, self._parameters[leaf.path])
            gradient = self._own(leaf, self._gradients[leaf.path])
            if own is not None and gradient is not None:
                values[leaf.path], gradients[leaf.path] = own, gradient
        step.begin(self._division.shares_of(gradients), self._division.tree(values))

    def _own(self, leaf: Leaf, array: mx.array) -> mx.array | None:
        """This member's elements of an array that it has of a leaf, in the shape of their state."""
        if not leaf.is_exchanged:
            return array
        own = self._division.plan.range_of(leaf.path, self._rank)
        if leaf.split and array.size != leaf.size:  # there are only rows yet
            array = mx.zeros(leaf.shape, array.dtype)
        return _piece(array, own) if own.size else None

    def _update_in(self, rounds: list[Round]) -> None:
        """Average gradients in some rounds and update their parameters."""
        own = ranges_in(rounds, self._rank)
        averages = self._exchange.average(rounds, self._gradients, own)
        values = {path: _piece(self._parameters[path], each) for path, each in own.items()}
        averages = {path: x.reshape(values[path].shape) for path, x in averages.items()}
        states = [part.state for part in parts_of(self._division.optimizer)]
        with cut(states, self._division.plan, self._rank, own):
            updated = self._updated(values, averages)
            del values, averages
            mx.eval(updated)
        self._spread(rounds, updated, own)

    def _update_at_once(self, leaves: list[Leaf]) -> None:
        """Average all gradients of some leaves, and update their parameters."""
        averages, values = self._averages(leaves), self._values(leaves)
        averages = {path: averages[path].reshape(x.shape) for path, x in values.items()}
        updated = self._updated(values, averages)
        del values, averages
        self._spread_all(leaves, updated)

    def run_pending(self, pending: Pending, normalizer: Any) -> None:
        """Add the averages to those that are pending, and make the step if it is time."""
        division = self._division
        leaves = [leaf for leaf in self._leaves if leaf.size]
        averages = self._averages(leaves)
        if normalizer is not None:
            normalizer = average_number(self._exchange, division.members.size, normalizer)
        unchanged = {leaf.path: self._parameters[leaf.path] for leaf in self._leaves}
        every = [leaf for leaf in self._all_leaves if leaf.size]
        values = self._values(every)
        own = {leaf.path: values[leaf.path] for leaf in leaves if leaf.path in values}
        averages = {path: averages[path].reshape(x.shape) for path, x in own.items()}
        with Rollback() as rollback:
            total = pending.add(
                division.tree(averages), division.tree(values), normalizer, rollback
            )
            if total is not None:
                found: Any = tree_flatten(total.gradients)
                shares, trees = division.shares_of(dict(found)), division.tree(values)
                result: Any = tree_flatten(
                    step.apply(
                        shares, trees, total.gradients, self._request, total.divisor, rollback
                    )
                )
        self._put(unchanged)
        if total is not None:
            unchanged.clear()
            updated = values | (dict(result) if found else {})
            del values, own, averages, total, trees, shares, found, result
            self._spread_all(every, updated)

    def _averages(self, leaves: list[Leaf]) -> dict[str, mx.array]:
        """The averages of all gradients of some leaves, as far as this member needs them."""
        plan, most = self._division.plan, self._division.bucket_size
        rows = [leaf for leaf in leaves if leaf.is_exchanged and leaf.split]
        averages = {leaf.path: self._gradients[leaf.path] for leaf in leaves if leaf.split}
        averages |= self._exchange.gather_rows(rows, self._gradients, most)
        own = {leaf.path: plan.range_of(leaf.path, self._rank) for leaf in leaves}
        rounds = self._rounds([leaf for leaf in leaves if not leaf.split])
        return averages | self._exchange.average(rounds, self._gradients, own)

    def _values(self, leaves: list[Leaf]) -> dict[str, mx.array]:
        """This member's elements of parameters. Those of which it has rows become whole where the
        rule needs that."""
        most = self._division.bucket_size
        rows = [leaf for leaf in leaves if leaf.is_exchanged and leaf.split]
        self._parameters |= self._exchange.gather_rows(rows, self._parameters, most)
        own = {leaf.path: self._own(leaf, self._parameters[leaf.path]) for leaf in leaves}
        return {path: x for path, x in own.items() if x is not None}

    def _spread_all(self, leaves: list[Leaf], updated: dict[str, mx.array]) -> None:
        """Put this member's new elements of some leaves, and bring them to all members."""
        if not self._exchange.is_traced:
            mx.eval(updated)
        exchanged = [leaf for leaf in leaves if leaf.is_exchanged]
        self._put({leaf.path: updated[leaf.path] for leaf in leaves if not leaf.is_exchanged})
        own = {x.path: self._division.plan.range_of(x.path, self._rank) for x in exchanged}
        self._spread(self._rounds(exchanged), updated, own)

    def _updated(
        self, values: dict[str, mx.array], averages: dict[str, mx.array]
    ) -> dict[str, mx.array]:
        """This member's new elements of some parameters, from the old ones, by path."""
        shares = self._division.shares_of(averages)
        trees = self._division.tree(values), self._division.tree(averages)
        advances, self._has_advanced = not self._has_advanced, True
        result: Any = tree_flatten(step.apply(shares, *trees, self._request, advances=advances))
        return dict(result) if values else {}

    def _target(self, path: str) -> mx.array:
        """An array that gets the elements of a new parameter."""
        parameter = self._parameters.pop(path)
        if path not in self._gradients:
            return parameter
        return parameter.astype(mx.result_type(parameter, self._gradients[path]))

    def _spread(
        self, rounds: list[Round], updated: dict[str, mx.array], own: dict[str, Range]
    ) -> None:
        """Bring the new elements of some rounds to all members."""
        plan, rank = self._division.plan, self._rank
        paths = list(dict.fromkeys(path for round in rounds for path in round.paths()))
        targets = {path: self._target(path).reshape(-1) for path in paths}
        updated = {path: x.reshape(-1) for path, x in updated.items()}

        def put(new: dict[str, mx.array]) -> None:
            leaves = [plan.leaves[path] for path in new]
            self._put({x.path: new[x.path].reshape(x.shape) for x in leaves if not x.split})

        self._exchange.spread(rounds, updated, own, targets, put)
        rows: dict[str, mx.array] = {}
        for path in paths:
            leaf = plan.leaves[path]
            if leaf.split:
                x = targets[path].reshape(plan.members, -1, *leaf.shape[1:])[rank]
                rows[path] = copied(x)
        self._put(rows)
        self._parameters |= targets


def _piece(array: mx.array, own: Range) -> mx.array:
    """Some elements of an array: all of it as it is, or a flat part."""
    return array if own.size == array.size else array.reshape(-1)[own.start : own.stop]


def _check_dtypes(
    division: Division,
    gradients: dict[str, mx.array],
    parameters: dict[str, mx.array],
    accumulates: bool,
) -> None:
    """Raise ValueError if a member could not tell the dtypes of parameters that others update."""
    parts = parts_of(division.optimizer)
    given = [
        option
        for option in ("state_dtype", "master_weights")
        if any(part._gives(option) for part in parts)
    ]
    given += ["accumulate"] if accumulates else []
    if not given:
        return
    for path, gradient in gradients.items():
        if gradient.dtype != parameters[path].dtype:
            raise ValueError(
                f"{path}: gradient {gradient.dtype}, parameter {parameters[path].dtype}: "
                f"with {given[0]} Sharded expects the same dtype"
            )
