"""Which parameters are in which groups."""

from __future__ import annotations

import difflib
from fnmatch import fnmatchcase
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from . import _ext
from .groups import Group, Match, _name_of
from .trees import CONTAINERS

Combination = dict[str, int]
"""For each hyperparameter that a group sets, the number of the group that it comes from."""


class Assignment:
    """The groups of all parameters that an optimizer has met; each is assigned once."""

    def __init__(self, groups: tuple[Group, ...], keys: list[tuple[str, ...]]) -> None:
        """`keys`: the names of what each group sets."""
        self._groups = groups
        self._keys = keys
        self._judged = False
        self._numbers: dict[tuple[tuple[str, int], ...], int] = {}
        self.tree: Any = {}
        """Dicts by the keys of the parameters' tree, with the index of a combination for each."""

        self.combinations: list[Combination] = []

    def extend(self, gradients: Any, parameters: Any) -> None:
        """Assign all parameters of a step. May run the functions of the groups.

        Raises:
            ValueError: A pattern matches none of the parameters of the first step.
        """
        if self._judged and _ext.is_assigned(self.tree, gradients):
            return
        arrays: dict[str, mx.array] = {}
        matched: set[tuple[int, int]] = set()
        tree = self._assigned(parameters, self.tree, "", arrays, matched)
        # For parameters that are in containers of other kinds.
        tree = self._assigned(gradients, tree, "", arrays, matched)
        if not self._judged and arrays:
            self._check_all_match(matched, list(arrays))
            self._judged = True
        self.tree = tree

    def combination_of(self, tree: Any) -> Combination:
        return self.combinations[tree] if isinstance(tree, int) else {}

    def _assigned(
        self,
        node: Any,
        tree: Any,
        path: str,
        arrays: dict[str, mx.array],
        matched: set[tuple[int, int]],
    ) -> Any:
        """`tree` with the leaves of `node` added."""
        if isinstance(node, mx.array):
            if isinstance(tree, int):
                return tree
            arrays[path] = node
            return self._number_of(path, node, matched)
        if not isinstance(node, CONTAINERS):
            return tree
        assigned = dict(tree) if isinstance(tree, dict) else {}
        prefix = f"{path}." if path else ""
        # A list, because a group's function may change the tree.
        items = list(node.items() if isinstance(node, dict) else enumerate(node))
        for key, child in items:
            if isinstance(node, nn.Module) and str(key).startswith("_"):
                continue
            below = self._assigned(child, assigned.get(key), f"{prefix}{key}", arrays, matched)
            if below is not None:
                assigned[key] = below
        return assigned

    def _number_of(self, path: str, array: mx.array, matched: set[tuple[int, int]]) -> int:
        combination: Combination = {}
        for i, (group, keys) in enumerate(zip(self._groups, self._keys, strict=True)):
            found = [k for k, each in enumerate(group.match) if _matches(each, path, array)]
            matched.update((i, k) for k in found)
            if found:
                for key in keys:
                    combination.setdefault(key, i)
        identity = tuple(sorted(combination.items()))
        if identity not in self._numbers:
            self._numbers[identity] = len(self.combinations)
            self.combinations.append(combination)
        return self._numbers[identity]

    def _check_all_match(self, matched: set[tuple[int, int]], paths: list[str]) -> None:
        for i, group in enumerate(self._groups):
            for k, each in enumerate(group.match):
                if (i, k) not in matched and not group.may_match_nothing:
                    raise ValueError(
                        f"groups: {_shown(each)} matches no parameter{_near(each, paths)}"
                    )


def _matches(match: Match, path: str, array: mx.array) -> bool:
    return fnmatchcase(path, match) if isinstance(match, str) else bool(match(path, array))


def _shown(match: Match) -> str:
    return f'"{match}"' if isinstance(match, str) else _name_of(match)


def _near(match: Match, paths: list[str]) -> str:
    near = (
        difflib.get_close_matches(match, paths, n=3, cutoff=0.0) if isinstance(match, str) else []
    )
    if not near:
        return ""
    shown = ", ".join(f'"{path}"' for path in near)
    return (
        f"; the nearest path is {shown}" if len(near) == 1 else f"; the nearest paths are {shown}"
    )
