"""Which parameters are in which groups."""

from __future__ import annotations

import difflib
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from . import _ext
from .groups import Group, Match, _name_of
from .trees import CONTAINERS

Combination = dict[str, int]
"""For each hyperparameter that a group sets, the number of the group that it comes from."""


class Found(NamedTuple):
    """The parameters that an optimizer has met, with their groups."""

    tree: Any
    """Dicts by the keys of the parameters' tree, with the index of a combination for each."""

    combinations: list[Combination]
    matched: set[tuple[int, int]]
    """The groups and their patterns that have matched a parameter."""

    paths: list[str]
    is_judged: bool
    """True if it has been checked that all patterns match a parameter."""


class Assignment:
    """The groups of all parameters that an optimizer has met; each is assigned once."""

    def __init__(self, groups: tuple[Group, ...], keys: list[tuple[str, ...]]) -> None:
        """`keys`: the names of what each group sets."""
        self._groups = groups
        self._keys = keys
        self.found = Found({}, [], set(), [], is_judged=False)

    def extend(self, gradients: Any, parameters: Any, judges: bool = True) -> bool:
        """Assign all parameters of a step; return True if any is new.

        May run the functions of the groups. `judges`: True if `parameters` are those of a step.

        Raises:
            ValueError: A pattern matches none of the parameters of the first step.
        """
        found = self.found
        if found.is_judged and _ext.is_assigned(found.tree, gradients):
            return False
        search = _Search(self._groups, self._keys, found)
        tree = search.assigned(parameters, found.tree, "")
        # For parameters that are in containers of other kinds.
        tree = search.assigned(gradients, tree, "")
        if judges and not found.is_judged and search.paths:
            self._check_all_match(search.matched, search.paths)
        is_judged = found.is_judged or judges and bool(search.paths)
        self.found = Found(tree, search.combinations, search.matched, search.paths, is_judged)
        return True

    def restore(self, found: Found) -> None:
        """Forget the parameters that have been met since."""
        self.found = found

    def _check_all_match(self, matched: set[tuple[int, int]], paths: list[str]) -> None:
        for i, group in enumerate(self._groups):
            for k, each in enumerate(group.match):
                if (i, k) not in matched and not group.may_match_nothing:
                    raise ValueError(
                        f"groups: {_shown(each)} matches no parameter{_near(each, paths)}"
                    )


class _Search:
    """Adds parameters to those that were found."""

    def __init__(
        self, groups: tuple[Group, ...], keys: list[tuple[str, ...]], found: Found
    ) -> None:
        self._groups = tuple(zip(groups, keys, strict=True))
        self.combinations = list(found.combinations)
        self.matched = set(found.matched)
        self.paths = list(found.paths)

    def assigned(self, node: Any, tree: Any, path: str) -> Any:
        """`tree` with the leaves of `node` added."""
        if isinstance(node, mx.array):
            if isinstance(tree, int):
                return tree
            self.paths.append(path)
            return self._index_of(self._combination_of(path, node))
        if not isinstance(node, CONTAINERS):
            return tree
        assigned = dict(tree) if isinstance(tree, dict) else {}
        prefix = f"{path}." if path else ""
        # A list, because a group's function may change the tree.
        items = list(node.items() if isinstance(node, dict) else enumerate(node))
        for key, child in items:
            if isinstance(node, nn.Module) and str(key).startswith("_"):
                continue
            below = self.assigned(child, assigned.get(key), f"{prefix}{key}")
            if below is not None:
                assigned[key] = below
        return assigned

    def _combination_of(self, path: str, array: mx.array) -> Combination:
        combination: Combination = {}
        for i, (group, keys) in enumerate(self._groups):
            found = [k for k, each in enumerate(group.match) if _matches(each, path, array)]
            self.matched.update((i, k) for k in found)
            if found:
                for key in keys:
                    combination.setdefault(key, i)
        return combination

    def _index_of(self, combination: Combination) -> int:
        if combination not in self.combinations:
            self.combinations.append(combination)
        return self.combinations.index(combination)


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
