"""Trees of arrays: dicts, lists and tuples, with arrays as leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

CONTAINERS = (dict, list, tuple)


def parameters_of(model: Any) -> Any:
    """The trainable parameters of a module; a tree of arrays as it is."""
    return model.trainable_parameters() if isinstance(model, nn.Module) else model


def check_arrays(tree: Any, path: str = "") -> None:
    """Raise TypeError for a leaf that is not an array."""
    if isinstance(tree, CONTAINERS):
        prefix = f"{path}." if path else ""
        for key, child in tree.items() if isinstance(tree, dict) else enumerate(tree):
            check_arrays(child, f"{prefix}{key}")
    elif not isinstance(tree, mx.array):
        raise TypeError(f"{path or 'model'}: expected an array, got {type(tree).__name__}")


def like(tree: Any, other: Any) -> Any:
    """The leaves of another tree for those of a tree."""
    if isinstance(tree, dict):
        return {key: like(child, other[key]) for key, child in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [like(child, other[i]) for i, child in enumerate(tree)]
    return other


def split(tree: Any, count: int, part_of: Callable[[str, Any], int], path: str = "") -> list[Any]:
    """Split a tree into parts, whose leaves have the same paths as in the tree.

    Args:
        tree: A tree.
        count: The number of parts.
        part_of: Called with a leaf's path (keys joined by dots) and the leaf; returns the index of
            its part.
        path: The path of the tree itself.

    Returns:
        The parts; an empty one is a dict. Tuples become lists, and places of other parts' leaves in
        a list become empty dicts.
    """
    parts: list[Any] = [{} for _ in range(count)]
    if not isinstance(tree, CONTAINERS):
        parts[part_of(path, tree)] = tree
        return parts
    # A list, because a filter may change the tree.
    items: list[tuple[Any, Any]] = list(tree.items() if isinstance(tree, dict) else enumerate(tree))
    prefix = f"{path}." if path else ""
    for key, child in items:
        here = f"{prefix}{key}"
        if isinstance(child, CONTAINERS):
            for part, below in zip(parts, split(child, count, part_of, here), strict=True):
                if below:
                    part[key] = below
        else:
            parts[part_of(here, child)][key] = child
    return parts if isinstance(tree, dict) else [_listed(part) for part in parts]


def _listed(items: dict[int, Any]) -> Any:
    return [items.get(i, {}) for i in range(max(items) + 1)] if items else {}


def for_each_leaf(
    visit: Callable[[str, mx.array, Any, int], None],
    parameters: Any,
    state: Any,
    tree: Any,
    path: str = "",
) -> None:
    """Visit each leaf of a tree of parameters with its state, if any, and its index in `tree`."""
    if not isinstance(parameters, CONTAINERS):
        visit(path, parameters, state, tree)
        return
    prefix = f"{path}." if path else ""
    for key, child in parameters.items() if isinstance(parameters, dict) else enumerate(parameters):
        below = None if state is None else state[key]
        index = tree.get(key) if isinstance(tree, dict) else None
        for_each_leaf(visit, child, below, index, f"{prefix}{key}")
