"""Saves and loads divided states, on all members together."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from .. import accumulation, reserved
from .._built import VERSION
from . import checkpoint
from .agreement import gather_values, together
from .checkpoint import Reader
from .exchange import Members
from .plan import Plan, Range


def save(folder: Path, state: dict, prefixes: list[str], plan: Plan, members: Members) -> None:
    """Save a state. `prefixes`: what the paths of each part's parameters begin with in it."""
    keys = {prefixes[leaf.share] + leaf.path: leaf for leaf in plan.leaves.values()}
    pending = f"{prefixes[0]}{reserved.KEY}.{accumulation.KEY}."
    arrays: dict[str, mx.array] = {}
    ranges: dict[str, Range] = {}
    leaves: Any = tree_flatten(state)
    for name, x in leaves:
        key = name.rpartition(".")[0]
        if name.startswith(pending):
            continue
        if key not in keys:
            if members.rank == 0:
                arrays[name] = x
            continue
        arrays[name] = x
        if not keys[key].whole:
            ranges[key] = plan.range_of(keys[key].path, members.rank)

    token = gather_values(members, checkpoint.new_token())[0]
    name = f"{token}-{members.rank}-of-{members.size}.safetensors"
    files = together(members, lambda: checkpoint.write_member(folder, name, arrays, ranges))
    index = {
        "token": token,
        "mlx_opt": VERSION,
        "files": files,
        "parameters": {key: list(leaf.shape) for key, leaf in keys.items()},
    }
    together(members, lambda: checkpoint.write_index(folder, index))
    together(members, lambda: checkpoint.remove_others(folder, index))


def load(folder: Path, prefixes: list[str], plan: Plan, members: Members) -> dict:
    """The state of a member's elements from a checkpoint."""
    index: dict[str, Any] = {}
    state: dict[str, mx.array] = {}

    def read_index() -> str:
        index.update(checkpoint.read_index(folder))
        token: str = index["token"]
        return token

    if len(set(together(members, read_index))) > 1:
        raise ValueError(f"{folder}: the members have different checkpoints there")

    def check_files() -> None:
        for i, each in enumerate(index["files"]):
            if i % members.size == members.rank:
                checkpoint.check_file(folder, each)

    together(members, check_files)

    def read_arrays() -> None:
        reader = Reader(folder, index)
        keys = {prefixes[leaf.share] + leaf.path: leaf for leaf in plan.leaves.values()}
        for key, shape in reader.shapes.items():
            if key not in keys:
                raise ValueError(f"{folder}: {key} is of no parameter of the model")
            if keys[key].shape != shape:
                found = keys[key].shape
                raise ValueError(f"{folder}: {key} has the shape {shape}, the parameter {found}")
        mx.eval(reader.root)
        state.update(reader.root)
        for key, leaf in keys.items():
            own = plan.range_of(leaf.path, members.rank)
            if own.size == 0 or key not in reader.shapes:
                continue
            for slot, x in reader.slots(key, own).items():
                has_rows = leaf.split and not leaf.whole
                state[f"{key}.{slot}"] = x.reshape(-1, *leaf.shape[1:]) if has_rows else x

    together(members, read_arrays)
    return tree_of(state)


def whole_state(folder: Path) -> dict:
    """The whole state that a checkpoint has, read by one process."""
    index = checkpoint.read_index(folder)
    for each in index["files"]:
        checkpoint.check_file(folder, each)
    reader = Reader(folder, index)
    state = dict(reader.root)
    for key, shape in reader.shapes.items():
        slots = reader.slots(key, Range(0, prod(shape)))
        state.update({f"{key}.{slot}": x for slot, x in slots.items()})
    return tree_of(state)


def tree_of(state: dict[str, mx.array]) -> dict:
    tree: Any = tree_unflatten([*state.items()])
    return dict(tree)
