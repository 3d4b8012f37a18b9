"""The groups of an optimizer, with the values that they have in a step."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from numbers import Real
from operator import is_
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.optimizers.optimizers as stock

from . import _ext, codes, ema, master_weights, state_dtypes
from .assignment import Assignment, Found
from .forms import Forms
from .group_formula import GroupFormula, with_values
from .group_kept import KeptNumbers, entries_of, own_entries
from .group_settings import LearningRate, Settings
from .groups import OTHERS, Group
from .hyperparameters import Attribute
from .rollback import Change, Rollback
from .state_dtypes import slots_of
from .tools.describe import Described, ParameterRow
from .trees import for_each_leaf


class Portion(NamedTuple):
    """The leaves of a step that one program updates."""

    program: _ext.Program
    groups: list[tuple[list[Any], Any, float, Any]]
    """For each group the hyperparameters, the learning rate, its factor and the formula."""

    tree: Any
    """The index of each leaf in `positions`; None if there is one group."""

    positions: list[int]
    maximizes: bool = False
    """True if the step takes the negative of the gradients."""

    splits: Sequence[tuple[int, ...]] = ()
    """For each group the rows of the blocks of its matrices."""

    keys: Sequence[str | None] = (None,)
    """For each group the key of the numbers that the rule keeps for it; see KeptNumbers."""

    labels: Sequence[tuple[str, ...]] = ((),)
    """For each group the names of the user's groups that it takes values from."""


class _Combined(NamedTuple):
    """What the leaves of one combination of groups have."""

    hypers: list[Any]
    own: dict[str, Any]
    """What the groups set."""

    values: dict[str, Any]
    """All hyperparameters."""

    split: tuple[int, ...]
    key: str | None = None
    """The key of the numbers that the rule keeps for it; see KeptNumbers."""

    labels: tuple[str, ...] = ()
    """The names of the groups."""

    @property
    def scale(self) -> float:
        return self.own.get("learning_rate_scale", 1.0)

    def rate(self, optimizer: Any) -> Any:
        own = self.own.get("learning_rate")
        return optimizer._rate(self.values) if own is None else own


class _Kind(NamedTuple):
    """What the leaves of one portion share."""

    program: _ext.Program
    maximizes: bool


class _Plan(NamedTuple):
    """The portions of a step without their learning rates, which are the same in the next step if
    the optimizer's own hyperparameters are."""

    found: Found
    key: list[Any]
    portions: list[tuple[_Kind, list[_Combined], list[int]]]


class Grouping:
    """The groups of an optimizer."""

    def __init__(
        self,
        optimizer: str,
        groups: tuple[Group, ...],
        attributes: list[Attribute],
        forms: Forms,
    ) -> None:
        """`attributes`: the hyperparameters that a group can have, besides the learning rate."""
        self.groups = groups
        self._attributes = {each.name: each for each in [LearningRate(), *attributes]}
        self._settings = [
            Settings(optimizer, group, self._attributes, forms.kept_inputs) for group in groups
        ]
        self._kept = KeptNumbers(groups, forms)
        names = [group.name for group in self.groups if group.name is not None]
        if len(names) != len(set(names)):
            raise ValueError(f"{optimizer}: groups: two groups have the same name")
        self.assignment = Assignment(groups, [each.keys for each in self._settings])
        is_in_state = any(each.is_in_state for each in self._settings)
        self._has_values_in_state = is_in_state or bool(self._kept.keys)
        self._plan: _Plan | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_plan": None}  # programs cannot be pickled

    def check(self, optimizer: Any, base: dict[str, Any]) -> None:
        """Raise what the values of a group would raise in a step."""
        for settings in self._settings:
            optimizer._program_of({**base, **settings.values(self._attributes, {})})

    def init(self, optimizer: Any, parameters: Any) -> None:
        """Initialize the state of assigned parameters that have none.

        Slots that a parameter's program has and its state has not are begun, with a warning. A
        master weight or an average that its program does not have is dropped, with a warning. Slots
        that are to have codes are encoded, others decoded.
        """
        skeleton = _Skeleton()
        skeleton._state = optimizer.state
        skeleton.init(parameters)
        begun: list[str] = []
        dropped: list[str] = []
        optimizers = [with_values(optimizer, own) for own in self._own_values(optimizer.state)]
        frozen = [bool(vars(each).get("frozen")) for each in optimizers]

        has_codes = codes.are_in(optimizer.state, optimizer._slots())
        slots = [
            slots_of(each) if has_codes or state_dtypes.has_codes(each.state_dtype) else ()
            for each in optimizers
        ]

        def check_leaf(path: str, parameter: mx.array, state: Any, index: int) -> None:
            if not frozen[index]:
                master_weights.check_parameter(optimizers[index].master_weights, path, parameter)
                codes.check(path, parameter, state, slots[index])

        def init_leaf(path: str, parameter: mx.array, state: dict, index: int) -> None:
            if frozen[index]:
                return
            others = master_weights.drop_others(optimizers[index], parameter, state)
            others += ema.drop(optimizers[index], state)
            dropped.extend(f"{path}.{name}" for name in others)
            codes.convert(parameter, state, slots[index])
            fresh: dict[str, Any] = {}
            master_weights.init_single(optimizers[index], parameter, fresh)
            ema.init_single(optimizers[index], parameter, fresh)
            missing = {name: x for name, x in fresh.items() if name not in state}
            if len(missing) < len(fresh):
                begun.extend(f"{path}.{name}" for name in missing)
            elif state and path:
                return  # of another optimizer; the step raises
            state.update(missing)

        for_each_leaf(check_leaf, parameters, optimizer.state, self.assignment.found.tree)
        for_each_leaf(init_leaf, parameters, optimizer.state, self.assignment.found.tree)
        if begun:
            warnings.warn(f"the state had no {_some(begun)}; begun anew", stacklevel=4)
        if dropped:
            message = f"the optimizer has no {_some(dropped)}; dropped from the state"
            warnings.warn(message, stacklevel=4)

    def settle(self, optimizer: Any, rollback: Rollback, changes: list[Change]) -> None:
        """Put the values of schedules, and arrays that are missing, into the state."""
        for settings in self._settings:
            if not settings.is_in_state:
                continue
            for part, schedule in settings.schedules.items():
                value = schedule(optimizer.step)  # may replace the state
                value = mx.array(float(value)) if isinstance(value, Real) else value
                entries = own_entries(optimizer.state, settings.name, rollback)
                rollback.put(entries, part, value, changes)
            entries = own_entries(optimizer.state, settings.name, rollback)
            for part, array in settings.arrays.items():
                if part not in entries:
                    rollback.put(entries, part, array)

    def settle_kept(
        self,
        optimizer: Any,
        base: dict[str, Any],
        step: Any,
        rollback: Rollback,
        changes: list[Change],
        sums: Mapping[str | None, list[mx.array]],
    ) -> list[tuple[dict, str]]:
        """Put the numbers that the rule keeps for groups into the state; see KeptNumbers.

        `sums`: those over all tensors that the rule needs, by the keys of the numbers.
        """
        if not self._kept.keys:
            return []
        found = self.assignment.found.combinations
        combinations = list(zip(found, self._own_values(optimizer.state), strict=True))
        return self._kept.settle(optimizer, base, combinations, step, rollback, changes, sums)

    def entries_to_forget(self, entries: dict) -> list[str]:
        """The names of entries that are of no group."""
        names = {each.name for each in self._settings if each.is_in_state}
        return sorted(key for key in set(entries) - names if not self._kept.has(key))

    def portions(self, optimizer: Any, base: dict[str, Any]) -> list[Portion]:
        """The portions of a step. `base`: the optimizer's own hyperparameters."""
        found, key = self.assignment.found, _key_of(base)
        plan = self._plan
        if plan is None or plan.found is not found or not _same(plan.key, key):
            plan = self._planned(optimizer, base, found, key)
            changes = self._has_values_in_state or ema.is_warming_up(optimizer)
            self._plan = None if changes else plan
        rate: Any = None
        portions: list[Portion] = []
        for (program, maximizes), combinations, positions in plan.portions:
            groups = []
            for combined in combinations:
                own_rate = combined.own.get("learning_rate")
                if own_rate is None:
                    rate = own_rate = combined.rate(optimizer) if rate is None else rate
                formula = optimizer._formula
                if combined.own:
                    formula = GroupFormula(optimizer, combined.own, own_rate, combined.scale)
                formula = optimizer._as_stored(formula, combined.hypers, combined.values)
                groups.append((combined.hypers, own_rate, combined.scale, formula))
            splits = [combined.split for combined in combinations]
            keys = [combined.key for combined in combinations]
            labels = [combined.labels for combined in combinations]
            portions.append(
                Portion(program, groups, found.tree, positions, maximizes, splits, keys, labels)
            )
        return portions

    def _planned(self, optimizer: Any, base: dict[str, Any], found: Found, key: Any) -> _Plan:
        portions: dict[_Kind, list[_Combined]] = {}
        places: list[tuple[_Kind | None, int]] = []  # the portion and the group of each combination
        own_values = self._own_values(optimizer.state)
        for combination, own in zip(found.combinations, own_values, strict=True):
            if own.get("frozen"):
                places.append((None, 0))
                continue
            kind, combined = self._combined(optimizer, base, own)
            labels = tuple(self.groups[i].label for i in sorted({*combination.values()}))
            key_of_kept = self._kept.key_of(combination)
            combined = combined._replace(key=key_of_kept, labels=labels or (OTHERS,))
            groups = portions.setdefault(kind, [])
            places.append((kind, len(groups)))
            groups.append(combined)
        if not portions:  # there are no parameters, or all are frozen
            kind, combined = self._combined(optimizer, base, {})
            portions[kind] = [combined]
        return _Plan(
            found,
            key,
            [
                (kind, groups, _positions(places, kind, i == 0))
                for i, (kind, groups) in enumerate(portions.items())
            ],
        )

    def described(self, optimizer: Any, base: dict[str, Any], parameters: Any) -> Described:
        """What the optimizer does with each parameter. `base`: its own hyperparameters."""
        rows: list[ParameterRow] = []
        combinations = self.assignment.found.combinations
        settled = [
            self._combined(optimizer, base, own) for own in self._own_values(optimizer.state)
        ]

        def add(path: str, parameter: Any, _: Any, index: Any) -> None:
            if not isinstance(parameter, mx.array):
                raise TypeError(f"{path}: expected an array, got {type(parameter).__name__}")
            combination, (kind, combined) = combinations[index], settled[index]
            frozen = bool(combined.own.get("frozen"))
            rate, scale = combined.rate(optimizer), combined.scale
            values = _shown(rate, scale, {name: combined.values[name] for name in base})
            rows.append(
                ParameterRow(
                    path,
                    tuple(parameter.shape),
                    parameter.dtype,
                    kind.program.rule,
                    {} if frozen else values,
                    {key: self.groups[i].label for key, i in combination.items()},
                    frozen,
                )
            )

        for_each_leaf(add, parameters, None, self.assignment.found.tree)
        shown = _shown(optimizer._rate(base), 1.0, base)
        return Described(type(optimizer).__name__, shown, rows)

    def grouped(self, parameters: Any, ignored: str) -> list[str]:
        """The paths of assigned parameters for which a group sets anything but `ignored`."""
        paths: list[str] = []

        def add(path: str, _: Any, __: Any, index: int) -> None:
            if {*self.assignment.found.combinations[index]} - {ignored}:
                paths.append(path)

        for_each_leaf(add, parameters, None, self.assignment.found.tree)
        return paths

    def frozen(self, optimizer: Any, parameters: Any) -> set[str]:
        """The paths of assigned parameters that are frozen."""
        frozen = [bool(own.get("frozen")) for own in self._own_values(optimizer.state)]
        paths: set[str] = set()

        def add(path: str, _: Any, __: Any, index: int) -> None:
            if frozen[index]:
                paths.add(path)

        if any(frozen):
            for_each_leaf(add, parameters, None, self.assignment.found.tree)
        return paths

    def _combined(
        self, optimizer: Any, base: dict[str, Any], own: dict[str, Any]
    ) -> tuple[_Kind, _Combined]:
        """The portion of the leaves of a combination, whose groups set `own`."""
        scale = own.get("learning_rate_scale", 1.0)
        if scale != 1.0 and "max_learning_rate" in base:
            own = {"max_learning_rate": scale * base["max_learning_rate"], **own}
        values = optimizer._checked({**base, **own})
        optimizer._check_group(values)
        program, hypers = optimizer._step_program(values)
        for name in ("learning_rate", "learning_rate_scale"):
            if name in own and not optimizer._reads_rate(values):
                raise ValueError(f"groups: {name}: the step does not read the learning rate")
        split = optimizer._split_of(values)
        return _Kind(program, bool(values.get("maximize"))), _Combined(hypers, own, values, split)

    def _own_values(self, state: dict) -> list[dict[str, Any]]:
        """What the groups of each combination set."""
        entries = entries_of(state)
        settled = [each.values(self._attributes, entries) for each in self._settings]
        return [
            {name: settled[i][name] for name, i in combination.items()}
            | self._kept.of(combination, entries)
            for combination in self.assignment.found.combinations
        ]


def forget_other_groups(state: dict, grouping: Grouping | None) -> None:
    """Drop a state's entries of groups that an optimizer does not have, with a warning."""
    entries = entries_of(state)
    others = sorted(entries) if grouping is None else grouping.entries_to_forget(entries)
    if others:
        names = ", ".join(others)
        warnings.warn(f"the optimizer has no groups {names}; dropped from the state", stacklevel=3)
    for name in others:
        del entries[name]


def _some(names: list[str], count: int = 5) -> str:
    """The first names of a list, and the number of the others."""
    others = [f"{len(names) - count} others"] if len(names) > count else []
    return ", ".join([*names[:count], *others])


def _positions(places: list[tuple[_Kind | None, int]], kind: _Kind, is_first: bool) -> list[int]:
    """The group of each combination in one portion."""
    other_part, unchanged = -1, -2
    if not is_first:
        unchanged = other_part  # the first portion returns the parameters
    return [
        unchanged if own is None else group if own == kind else other_part for own, group in places
    ]


def _key_of(base: dict[str, Any]) -> list[Any]:
    """The numbers of hyperparameters, to be compared with those of another step."""
    key: list[Any] = []
    for value in base.values():
        if isinstance(value, (list, tuple)):  # may change its elements
            key += value
        else:
            key.append(value)
    return key


def _same(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(map(is_, a, b))


def _shown(rate: mx.array | None, scale: float, values: dict[str, Any]) -> dict[str, Any]:
    """The values with the learning rate, if the step reads it, as numbers."""
    rates = {} if rate is None else {"learning_rate": (rate * scale).item()}
    return {**rates, **{name: _number(value) for name, value in values.items()}}


def _number(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(map(_number, value))
    return value.item() if isinstance(value, mx.array) else value


class _Skeleton(stock.Optimizer):
    """Makes an empty dict in the state for each parameter."""

    def init_single(self, parameter: mx.array, state: dict) -> None:
        pass
