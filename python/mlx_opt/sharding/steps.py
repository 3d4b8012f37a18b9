"""A step of several members."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from .. import loss_scale, reserved, step
from ..clipping import ClipRequest
from .division import Division
from .exchange import Exchange, own_elements
from .fully_sharded import Names
from .leaves import flat, parts_of
from .plan import Leaf


def make_step(
    division: Division,
    tree: Any,
    parameters: dict[str, mx.array],
    names: Names,
    request: ClipRequest | None,
    put: Callable[[dict[str, mx.array]], None],
) -> None:
    """Make a step of several members.

    Args:
        tree: The gradients.
        parameters: All parameters, by path; emptied.
        names: The names of the parameters.
        request: How the gradients are clipped.
        put: Called with new parameters by path, as soon as they are exchanged.
    """
    plan, rank, most = division.plan, division.members.rank, division.bucket_size
    gradients = flat(tree, names)
    _check_dtypes(division, gradients, parameters)
    leaves = [leaf for path, leaf in plan.leaves.items() if path in gradients]
    exchanged = [leaf for leaf in leaves if leaf.is_exchanged]
    root = parts_of(division.optimizer)[0].state
    exchange = Exchange(division.members, root["step"])
    if request is None and loss_scale.KEY in reserved.entries_of(root):
        request = ClipRequest()
    if request is not None:
        request = request._replace(across=exchange.norm)

    rows = [leaf for leaf in exchanged if leaf.split]
    averages = gradients | exchange.gather_rows(rows, gradients, most)
    parameters |= exchange.gather_rows(rows, parameters, most)
    replicated = [leaf.path for leaf in leaves if not leaf.split]
    averages |= exchange.average(plan.rounds(replicated, most), gradients)
    updated = _update_own(division, leaves, averages, parameters, request)
    del averages

    dtypes = {path: mx.result_type(parameters[path], x) for path, x in gradients.items()}
    empty = {
        leaf.path: parameters[leaf.path].astype(dtypes[leaf.path])
        for leaf in exchanged
        if leaf.size == 0
    }
    parameters.clear()
    put(empty | {leaf.path: updated[leaf.path] for leaf in leaves if not leaf.is_exchanged})
    exchange.spread(
        plan.rounds([leaf.path for leaf in exchanged], most),
        {path: x.reshape(-1) for path, x in updated.items()},
        lambda path: plan.range_of(path, rank).start,
        dtypes,
        lambda path, x: put({path: _shaped(division, plan.leaves[path], x)}),
    )
    # The next step's operations follow these, even if it has other parameters.
    root["step"] = exchange.after_all(root["step"])


def _update_own(
    division: Division,
    leaves: list[Leaf],
    averages: dict[str, mx.array],
    parameters: dict[str, mx.array],
    request: ClipRequest | None,
) -> dict[str, mx.array]:
    """Update this member's elements; return the new ones, by path."""
    own: dict[str, mx.array] = {}
    own_averages: dict[str, mx.array] = {}
    for leaf in leaves:
        x: mx.array | None = parameters[leaf.path]
        if leaf.is_exchanged:
            x = own_elements(division.plan, leaf, division.members.rank, parameters[leaf.path])
        if x is not None:
            own[leaf.path] = x
            own_averages[leaf.path] = averages[leaf.path].reshape(x.shape)
    parts = division.shares_of(own_averages)
    trees = division.tree(own), division.tree(own_averages)
    result: Any = tree_flatten(step.apply(parts, *trees, request))
    return dict(result) if own else {}


def _shaped(division: Division, leaf: Leaf, flattened: mx.array) -> mx.array:
    """What this member's model has of a new parameter."""
    if not leaf.split:
        return flattened.reshape(leaf.shape)
    length = leaf.size // division.members.size
    rows = flattened[division.members.rank * length :][:length]
    return rows.reshape(-1, *leaf.shape[1:])


def _check_dtypes(
    division: Division, gradients: dict[str, mx.array], parameters: dict[str, mx.array]
) -> None:
    """Raise ValueError if a member could not tell the dtypes of parameters that others update."""
    if not any(part._gives("state_dtype") for part in parts_of(division.optimizer)):
        return
    for path, gradient in gradients.items():
        given, expected = gradient.dtype, parameters[path].dtype
        if given != expected:
            raise ValueError(
                f"{path}: gradient {given}, parameter {expected}: "
                "with state_dtype Sharded expects the same dtype"
            )
