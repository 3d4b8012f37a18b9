"""Undoes the changes of a step that fails."""

from __future__ import annotations

from collections.abc import Callable
from operator import setitem
from types import TracebackType
from typing import Any, NamedTuple

from .trees import CONTAINERS


class Change(NamedTuple):
    """An entry of a dict before and after it was set."""

    entries: dict
    key: Any
    old: Any
    new: Any


class Rollback:
    """Undoes the noted changes, in reverse order, if its ``with`` block raises."""

    def __init__(self) -> None:
        # Functions with their arguments, because a closure for each entry would cost more.
        self.notes: list[tuple[Callable[..., Any], tuple]] = []
        """Emptied by the code that makes the step, before Python can handle a signal."""

    def __enter__(self) -> Rollback:
        return self

    def __exit__(
        self,
        error: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self.undo()
        self.notes.clear()

    def undo(self) -> None:
        while self.notes:
            function, arguments = self.notes.pop()
            function(*arguments)

    def note(self, undo: Callable[..., Any], *arguments: Any) -> None:
        self.notes.append((undo, arguments))

    def put(self, entries: dict, key: Any, value: Any, changes: list[Change] | None = None) -> None:
        """Set an entry of a dict. If it had a value, the change is appended to `changes`."""
        if key in entries:
            old = entries[key]
            self.notes.append((setitem, (entries, key, old)))
            if changes is not None:
                changes.append(Change(entries, key, old, value))
        else:
            self.notes.append((_remove, (entries, key)))
        entries[key] = value

    def keep_tree(self, tree: Any) -> None:
        """Note the contents of all containers of a tree."""
        seen: set[int] = set()
        stack = [tree]
        while stack:
            node = stack.pop()
            if not isinstance(node, CONTAINERS) or id(node) in seen:
                continue
            seen.add(id(node))
            if isinstance(node, dict):
                self.note(_restore_dict, node, dict(node))
                stack.extend(node.values())
            else:
                if isinstance(node, list):
                    self.note(_restore_list, node, list(node))
                stack.extend(node)


def _remove(entries: dict, key: Any) -> None:
    entries.pop(key, None)


def _restore_dict(entries: dict, before: dict) -> None:
    dict.clear(entries)
    dict.update(entries, before)


def _restore_list(entries: list, before: list) -> None:
    list.__setitem__(entries, slice(None), before)
