"""The trees of a member's elements, and the states that belong to them."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx.utils import tree_unflatten

from .exchange import copied, own_elements
from .plan import Leaf, Plan


class Structure:
    """The containers of a tree of parameters; their keys are those of paths."""

    def __init__(self, paths: list[str]) -> None:
        self._tree = tree_unflatten([(path, path) for path in paths]) if paths else {}

    def tree(self, values: dict[str, Any]) -> Any:
        """A tree of some of the leaves, whose places in lists are those in the whole tree."""
        return _selected(self._tree, values)


def _selected(node: Any, values: dict[str, Any]) -> Any:
    if isinstance(node, str):
        return values.get(node, {})
    if isinstance(node, dict):
        children = {key: _selected(child, values) for key, child in node.items()}
        return {key: x for key, x in children.items() if not _is_empty(x)}
    items = [_selected(child, values) for child in node]
    return {} if all(map(_is_empty, items)) else items


def _is_empty(x: Any) -> bool:
    return isinstance(x, dict) and not x


def divide(state: dict, leaves: list[Leaf], plan: Plan, member: int) -> None:
    """Leave in a state only a member's elements of these parameters.

    The state may be that of whole parameters; one that has been divided already is unchanged.
    """
    for leaf in leaves:
        container, key = _place_of(state, leaf.path)
        slots = None if container is None else container[key]
        if not isinstance(slots, dict):
            continue
        if plan.range_of(leaf.path, member).size == 0:
            slots.clear()
        elif not leaf.whole:
            for name, x in slots.items():
                if isinstance(x, mx.array) and tuple(x.shape) == leaf.shape:
                    slots[name] = _divided(plan, leaf, member, x)


def _divided(plan: Plan, leaf: Leaf, member: int, whole: mx.array) -> mx.array:
    own: Any = own_elements(plan, leaf, member, whole)
    if own is whole:
        return whole
    if leaf.split:
        own = own.reshape(-1, *leaf.shape[1:])
    return copied(own)


def _place_of(tree: Any, path: str) -> tuple[Any, Any]:
    """The container of a path's entry in a tree, and its key; None if there is no such entry."""
    container: Any = None
    key: Any = None
    node = tree
    for part in path.split("."):
        container, key = node, int(part) if isinstance(node, (list, tuple)) else part
        try:
            node = container[key]
        except (KeyError, IndexError, TypeError):
            return None, None
    return container, key
