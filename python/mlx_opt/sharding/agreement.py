"""Finds out whether all members of a group train the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from .._built import VERSION
from ..accumulation import calls_of
from .exchange import Members
from .plan import Leaf


def facts_of(
    optimizers: list[Any], leaves: list[Leaf], dtypes: dict[str, mx.Dtype], bucket_size: int | None
) -> dict[str, str]:
    """What must be the same on all members, by names for messages. `dtypes`: the gradients'."""
    mlx: str = mx.__version__  # type: ignore[attr-defined]
    facts = {"mlx_opt": VERSION, "mlx": mlx, "bucket_size": str(bucket_size)}
    for optimizer in optimizers:
        name = type(optimizer).__name__
        here = f"{name} ({len(facts)})" if name in facts else name
        facts[here] = ", ".join(
            [
                *(f"{key}={_text(value)}" for key, value in optimizer._values().items()),
                *(f"group {group.label}" for group in optimizer.groups),
            ]
        )
        facts[f"the step of {here}"] = _text(optimizer.step)
        facts[f"the pending calls of {here}"] = str(calls_of(optimizer.state))
    for leaf in leaves:
        rows = " divided into rows" if leaf.split else ""
        dtype = str(leaf.dtype).removeprefix("mlx.core.")
        gradient = str(dtypes[leaf.path]).removeprefix("mlx.core.")
        facts[leaf.path or "the parameter"] = (
            f"{dtype} {list(leaf.shape)}{rows}, updated by optimizer {leaf.share}, "
            f"with a gradient of {gradient}"
        )
    return facts


def _text(value: Any) -> str:
    if not isinstance(value, mx.array):
        return str(value)
    try:
        return str(value.item())
    except ValueError:  # traced, or no number
        return "an array"


def check_agreement(members: Members, facts: dict[str, str]) -> None:
    """Compare facts, by what they are of, with those of the other members.

    One small collective operation if they agree. It is evaluated at once.

    Raises:
        RuntimeError: They differ. All members raise it; the message names what differs and where.
    """
    digest = hashlib.sha256(json.dumps(facts).encode()).digest()
    mine = mx.array(list(digest), mx.uint8).reshape(1, -1)
    digests: Any = mx.distributed.all_gather(mine, group=members.group).tolist()
    if any(each != digests[0] for each in digests):
        raise RuntimeError(_difference(gather_values(members, facts)))


def gather_values(members: Members, value: Any) -> list[Any]:
    """A value of each member, as JSON has it."""
    data = json.dumps(value).encode()
    sizes: Any = mx.distributed.all_gather(mx.array([len(data)]), group=members.group).tolist()
    padded = mx.array(list(data.ljust(max(sizes))), mx.uint8).reshape(1, -1)
    rows: Any = mx.distributed.all_gather(padded, group=members.group).tolist()
    return [json.loads(bytes(row)) for row in rows]


def together(members: Members, call: Callable[[], Any]) -> list[Any]:
    """Call a function on all members, and return what it has returned to each, as JSON has it.

    Raises:
        OSError, RuntimeError, ValueError: It has raised that on this member.
        RuntimeError: It has raised on another.
    """
    error: Exception | None = None
    try:
        outcome = {"result": call()}
    except (OSError, RuntimeError, ValueError) as caught:
        error, outcome = caught, {"error": str(caught)}
    outcomes = gather_values(members, outcome)
    if error is not None:
        raise error
    for member, each in enumerate(outcomes):
        if "error" in each:
            raise RuntimeError(f"Sharded: member {member}: {each['error']}")
    return [each["result"] for each in outcomes]


def _difference(facts: list[dict[str, str]]) -> str:
    first = facts[0]
    return next(
        f"Sharded: the members of the group differ: {name} is {first.get(name, 'missing')} on "
        f"member 0, {other.get(name, 'missing')} on member {member}"
        for member, other in enumerate(facts)
        for name in [*first, *other]
        if first.get(name) != other.get(name)
    )
