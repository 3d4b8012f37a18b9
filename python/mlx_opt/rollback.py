"""What a step undoes where it fails."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

from .trees import CONTAINERS


class Rollback:
    """Takes back, in reverse order, what was noted, if its ``with`` block raises."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

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
        self._undo.clear()

    def undo(self) -> None:
        while self._undo:
            self._undo.pop()()

    def note(self, undo: Callable[[], None]) -> None:
        self._undo.append(undo)

    def put(self, entries: dict, key: Any, value: Any, before: dict | None = None) -> None:
        """Set an entry of a dict; `before` gets what it was."""
        if key in entries:
            old = entries[key]
            self._undo.append(lambda: entries.__setitem__(key, old))
            if before is not None:
                before[key] = old
        else:
            self._undo.append(lambda: entries.pop(key, None))
        entries[key] = value

    def keep_tree(self, tree: Any) -> None:
        """Note the contents of all containers of a tree, whatever changes them."""
        seen: set[int] = set()
        stack = [tree]
        while stack:
            node = stack.pop()
            if not isinstance(node, CONTAINERS) or id(node) in seen:
                continue
            seen.add(id(node))
            if isinstance(node, dict):
                self._undo.append(_restore_dict(node, dict(node)))
                stack.extend(node.values())
            else:
                if isinstance(node, list):
                    self._undo.append(_restore_list(node, list(node)))
                stack.extend(node)


def _restore_dict(entries: dict, before: dict) -> Callable[[], None]:
    def undo() -> None:
        dict.clear(entries)
        dict.update(entries, before)

    return undo


def _restore_list(entries: list, before: list) -> Callable[[], None]:
    def undo() -> None:
        list.__setitem__(entries, slice(None), before)

    return undo
