"""The numbers that a rule keeps from step to step for groups, and the entries of groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from . import reserved
from .assignment import Combination
from .forms import Forms
from .groups import Group
from .rollback import Change, Rollback


class KeptNumbers:
    """The numbers of the combinations whose groups change what the rule computes them of.

    If that is sums over all tensors, each group with a name has numbers of its own.
    """

    def __init__(self, groups: tuple[Group, ...], forms: Forms) -> None:
        self._groups = groups
        self._names = forms.kept
        self._inputs = forms.kept_inputs
        self._by_name = forms.sums > 0
        self.keys = {
            group.name
            for group in groups
            if (self._by_name and group.name is not None) or self._inputs & {*group.hyperparameters}
        }
        """The names of the groups that change them."""

    def key_of(self, combination: Combination) -> str | None:
        """The key of a combination's numbers in the state: the names of its groups that change
        them. None if it has those of the optimizer."""
        if not self.keys:
            return None
        groups = sorted(
            {
                i
                for name, i in combination.items()
                if name in self._inputs or (self._by_name and self._groups[i].name is not None)
            }
        )
        return "+".join(str(self._groups[i].name) for i in groups) or None

    def has(self, key: str) -> bool:
        """True if a key can be one of these."""
        return self.keys.issuperset(key.split("+"))

    def of(self, combination: Combination, entries: dict) -> dict[str, Any]:
        """A combination's own numbers. `entries`: those of all groups in the state."""
        key = self.key_of(combination) if self.keys else None
        own = {} if key is None else entries.get(key, {})
        return {name: x for name, x in own.items() if name in self._names}

    def settle(
        self,
        optimizer: Any,
        base: dict[str, Any],
        combinations: list[tuple[Combination, dict[str, Any]]],
        step: Any,
        rollback: Rollback,
        changes: list[Change],
        sums: Mapping[str | None, list[mx.array]],
    ) -> list[tuple[dict, str]]:
        """Put the numbers of a step into the state; return their places there.

        `base`: the optimizer's hyperparameters with its numbers before this step, as which others
        begin. `combinations`: each with what its groups set. `sums`: see `Grouping.settle_kept`.
        """
        places: list[tuple[dict, str]] = []
        done: set[str] = set()
        for combination, own in combinations:
            key = self.key_of(combination)
            if key is None or key in done or own.get("frozen"):
                continue
            done.add(key)
            entries = own_entries(optimizer.state, key, rollback)
            numbers = optimizer._next_kept({**base, **own}, step, sums.get(key))
            for name, number in numbers.items():
                if name not in entries:
                    rollback.put(entries, name, base[name])
                rollback.put(entries, name, number, changes)
                places.append((entries, name))
        return places


def own_entries(state: dict, name: str | None, rollback: Rollback) -> dict:
    """The entries of a group in a state, which are made if there are none."""
    for key in (reserved.KEY, reserved.GROUPS, name):
        if key not in state:
            rollback.put(state, key, {})
        state = state[key]
    return state


def entries_of(state: dict) -> dict:
    """The entries of all groups in a state."""
    return reserved.entries_of(state).get(reserved.GROUPS, {})
