"""The trees of a member's elements, and the states that belong to them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_unflatten

from .exchange import copied, own_elements
from .plan import Leaf, Plan, Range


class Structure:
    """The containers of a tree of parameters; their keys are those of paths."""

    def __init__(self, paths: list[str]) -> None:
        self._tree = tree_unflatten([(path, path) for path in paths]) if paths else {}

    def tree(self, values: dict[str, Any], others: Any = None) -> Any:
        """A tree of some of the leaves, whose places in lists are those in the whole tree.

        `others`: a module or a tree, of whose leaves those are taken that are beside a leaf in a
        list, because :meth:`mlx.nn.Module.update` needs all of them.
        """
        return _selected(self._tree, _nested(values), others) if values else {}


def _nested(values: dict[str, Any]) -> Any:
    """Values by path as dicts in dicts, down to a value; the keys of lists are numbers as text."""
    if list(values) == [""]:
        return values[""]
    nested: dict[str, Any] = {}
    for path, value in values.items():
        *keys, last = path.split(".")
        node = nested
        for key in keys:
            node = node.setdefault(key, {})
        node[last] = value
    return nested


def _selected(node: Any, wanted: Any, others: Any) -> Any:
    """The part of a tree that is wanted: a value for a leaf, else what is wanted below, by key."""
    if isinstance(node, str):
        return wanted
    if isinstance(node, list) and isinstance(others, dict):  # whose keys are numbers
        node = {str(i): child for i, child in enumerate(node)}
    if isinstance(node, dict):
        return {
            key: _selected(child, wanted[key], None if others is None else others[key])
            for key, child in node.items()
            if key in wanted
        }
    places = [None] * len(node) if others is None else others
    items: list[Any] = [x if isinstance(x, mx.array) else {} for x in places[: len(node)]]
    for key, below in wanted.items():
        i = int(key)
        items[i] = _selected(node[i], below, places[i])
    return items


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


class _Cut(NamedTuple):
    """A slot that has some of its elements for a while."""

    slots: dict
    name: str
    whole: mx.array
    at: Range


@contextmanager
def cut(states: list[dict], plan: Plan, member: int, pieces: dict[str, Range]) -> Iterator[None]:
    """Let slots have only some elements, and write these into the whole slots afterwards.

    `pieces`: which elements of each parameter; the slots have all that this member has.
    """
    cuts = [each for path in pieces for each in _cuts(states, plan, member, path, pieces[path])]
    _narrow(cuts)
    try:
        yield
    except BaseException:
        for slots, name, whole, _ in cuts:
            slots[name] = whole
        raise
    while cuts:
        _write_back(cuts)


def _cuts(states: list[dict], plan: Plan, member: int, path: str, piece: Range) -> list[_Cut]:
    own = plan.range_of(path, member)
    if piece == own:
        return []
    container, key = _place_of(states[plan.leaves[path].share], path)
    slots, at = container[key], Range(piece.start - own.start, piece.stop - own.start)
    return [
        _Cut(slots, name, x, at)
        for name, x in slots.items()
        if isinstance(x, mx.array) and x.size == own.size
    ]


def _narrow(cuts: list[_Cut]) -> None:
    for slots, name, whole, at in cuts:
        slots[name] = whole.reshape(-1)[at.start : at.stop]


def _write_back(cuts: list[_Cut]) -> None:
    """Write the last; nothing else holds the whole slot, so that its buffer is written to."""
    slots, name, whole, at = cuts.pop()
    piece, shape = slots[name], whole.shape
    whole = whole.astype(piece.dtype).reshape(-1)
    whole[at.start : at.stop] = piece
    slots[name] = whole.reshape(shape)
    mx.eval(slots[name])
