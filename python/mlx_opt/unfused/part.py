"""The leaves of a step that one program updates, as the C++ Part has them, without kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import delitem, setitem
from typing import Any, NamedTuple

import mlx.core as mx

from ..descriptions import BY_RULE, Hyper, Slot, check_kind_or_number, number_from
from ..ema import NAME, SLOT
from ..master_weights import KEYS, SLOTS, key_for, weight_of
from ..trees import CONTAINERS
from ..weight_norms import norms_of

Formula = Callable[[mx.array, mx.array, Any], mx.array]
Notes = list[tuple[Callable[..., Any], tuple]]
"""What undoes a step that fails, as Rollback has it."""

OTHER_PART, UNCHANGED = -1, -2
"""Instead of a group's number: leaves of another part, and leaves that are not updated."""


class Program:
    """A rule with its options settled."""

    def __init__(
        self,
        rule: str,
        with_options: bool = False,
        formats: dict[str, str] | None = None,
        masters: str | None = None,
        has_ema: bool = False,
    ) -> None:
        """`formats`: not used; the formulas get the dtypes from the optimizer."""
        if rule not in BY_RULE:
            raise ValueError(f'there is no rule "{rule}"')
        if masters is not None and masters not in SLOTS:
            raise ValueError(f'there are no master weights "{masters}"')
        self.rule = rule
        self._with_options = with_options
        self._masters = masters
        self.has_ema = has_ema

    def with_ema(self) -> Program:
        """The same program with an average of each parameter's weights."""
        return Program(self.rule, self._with_options, None, self._masters, has_ema=True)

    def slots(self, parameter: mx.array) -> list[Slot]:
        """The slots of a parameter that a step uses."""
        slots = BY_RULE[self.rule].slots_for(parameter.ndim, self._with_options, with_idle=False)
        if self._masters is not None and key_for(self._masters, parameter.dtype) is not None:
            slots = [*slots, SLOTS[self._masters]]
        return [*slots, SLOT] if self.has_ema else slots


class _Leaf(NamedTuple):
    gradient: mx.array
    parameter: mx.array
    state: Any
    container: Any
    key: Any
    group: int


class _Node(NamedTuple):
    """A container of the gradients' tree."""

    type: Any
    children: list[tuple[Any, Any]]
    """For each key a node, the index of a leaf, or a `_Value`."""


class _Value(NamedTuple):
    """What stands in the result for a leaf that the part does not update."""

    value: Any


class Part:
    """The leaves of a tree of gradients with their parameters and states; see the stub of _ext."""

    def __init__(
        self,
        program: Program,
        groups: Sequence[tuple[Sequence[Any], Any, float, Formula]],
        step: Any,
        gradients: Any,
        parameters: Any,
        state: Any,
        initialized: bool = True,
        assigned: bool = False,
        fused: bool = True,
        assignment: Any = None,
        positions: Sequence[int] = (),
        splits: Sequence[Sequence[int]] = (),
    ) -> None:
        for hypers, rate, _, _ in groups:
            _check_scalars(program, hypers, rate)
        checked_step(step)
        self._program = program
        self._formulas = [formula for *_, formula in groups]
        self._trees = gradients, parameters, state
        self._initialized = initialized
        self._assigned = assigned
        self._assignment = assignment
        self._positions = positions
        self._around: Callable[[Formula], Formula] | None = None
        self._norms: mx.array | None = None
        self._staged_norms: mx.array | None = None
        self._root: Any = None
        self._leaves: list[_Leaf] = []
        self._collected = False
        self._results: list[mx.array] = []
        self._entries: list[tuple[Any, Any, Any]] = []
        """For each entry of a state that changes its dict, key and value."""

    def collect(self) -> None:
        """Find the leaves and check them; changes nothing."""
        if not self._collected:
            self._collected = True
            gradients, parameters, state = self._trees
            self._root = self._walk(gradients, parameters, state, None, self._assignment, "", None)

    def clip(
        self,
        scale: mx.array,
        skip_nonfinite: bool,
        around: Any,
        max_value: mx.array | None = None,
    ) -> None:
        """Set what is done with the gradients, which `around` does."""
        self._around = around

    def take_norms(self, norms: mx.array) -> None:
        """Ask for the norms of each group, which the step makes the value of `norms`."""
        self._norms = norms

    def leaves(self) -> list[_Leaf]:
        self.collect()
        return self._leaves

    def gradients(self) -> list[mx.array]:
        """The gradients of all leaves."""
        return [leaf.gradient for leaf in self.leaves()]

    def sums(self) -> list[list[mx.array]]:
        """None: the formula updates all leaves."""
        return []

    def unserved(self) -> list[tuple[int, mx.array, mx.array, Any]]:
        """The group, gradient, parameter and state of each leaf."""
        return [(leaf.group, leaf.gradient, leaf.parameter, leaf.state) for leaf in self.leaves()]

    def is_assignable(self) -> bool:
        """True if no container of a parameter has a `__setitem__` of its own."""
        return all(has_own_assignment(leaf.container) for leaf in self.leaves())

    def stage(self) -> None:
        """Run the formulas, and hold their results."""
        self._results, self._entries = [], []
        weights: list[tuple[int, mx.array, mx.array]] = []
        states: dict[int, dict] = {}  # the copies that the formulas change, by the original
        for leaf in self.leaves():
            state = states.setdefault(id(leaf.state), {})
            if not state and isinstance(leaf.state, dict):
                state.update(leaf.state)
            formula = self._formulas[leaf.group]
            if self._around is not None:
                formula = self._around(formula)
            result = formula(leaf.gradient, leaf.parameter, state)
            if not isinstance(result, mx.array):
                raise TypeError("the formula of a step must return an array")
            self._results.append(result)
            self._entries += [(leaf.state, key, value) for key, value in state.items()]
            weights.append((leaf.group, *self._weights_of(leaf, result, state)))
        if self._norms is not None:
            self._staged_norms = norms_of(weights, len(self._formulas))

    def _weights_of(self, leaf: _Leaf, result: mx.array, state: dict) -> tuple[mx.array, mx.array]:
        """The weight of a leaf before and after the step, of its master weight if it has one."""
        for key in KEYS:
            if isinstance(leaf.state, dict) and key in leaf.state:
                before = weight_of(leaf.parameter, leaf.state[key])
                return before, weight_of(result, state[key])
        return leaf.parameter, result

    def tree(self) -> Any:
        """The staged parameters, with the structure of the gradients."""
        return self._rebuilt(self._root)

    def commit(self, notes: Notes | None = None) -> None:
        """Put the staged slots into the state. `notes`: gets what undoes that."""
        for state, key, value in self._entries:
            if isinstance(state, dict):
                _store(state, key, value, notes)
        if self._norms is not None and self._staged_norms is not None:
            self._norms[:] = self._staged_norms

    def assign(self, notes: Notes) -> None:
        """Put the staged parameters into their tree."""
        for leaf, result in zip(self.leaves(), self._results, strict=True):
            _store(leaf.container, leaf.key, result, notes)

    def _walk(
        self,
        gradients: Any,
        parameters: Any,
        state: Any,
        container: Any,
        groups: Any,
        path: str,
        key: Any,
    ) -> Any:
        """The node of a tree, the index of a leaf, or a `_Value`."""
        if not isinstance(gradients, CONTAINERS):
            group = self._group_of(gradients, groups, path)
            if group < 0:
                return _Value(parameters if group == UNCHANGED else {})
            leaf = _Leaf(gradients, parameters, state, container, key, group)
            self._check(leaf, path)
            self._leaves.append(leaf)
            return len(self._leaves) - 1
        node = _Node(type(gradients), [])
        # A list, because a class of the trees may change them.
        items = gradients.items() if isinstance(gradients, dict) else enumerate(gradients)
        for child_key, child in list(items):
            here = f"{path}.{child_key}" if path else str(child_key)
            parameter = _entry(parameters, child_key, "parameter", here)
            below = groups.get(child_key) if isinstance(groups, dict) else None
            is_container = isinstance(child, CONTAINERS)
            group = 0 if is_container else self._group_of(child, below, here)
            own_state = self._state_of(state, child_key, here) if group >= 0 else None
            if group == OTHER_PART and isinstance(gradients, dict):
                continue  # a list needs something in the leaf's place
            result = self._walk(child, parameter, own_state, parameters, below, here, child_key)
            node.children.append((child_key, result))
        return node

    def _group_of(self, gradient: Any, groups: Any, path: str) -> int:
        """The leaf's group, or what stands for none."""
        if self._assignment is None or not isinstance(gradient, mx.array):
            return 0
        if type(groups) is not int or not 0 <= groups < len(self._positions):
            raise ValueError(f"{_prefix(path)}the tree of gradients changed during the step")
        return self._positions[groups]

    def _state_of(self, state: Any, key: Any, path: str) -> Any:
        if self._initialized:
            return _entry(state, key, "optimizer state", path)
        # Before init the state may end anywhere above the leaves.
        try:
            return None if state is None else state[key]
        except (LookupError, TypeError):
            return None

    def _check(self, leaf: _Leaf, path: str) -> None:
        for given, what in ((leaf.gradient, "gradient"), (leaf.parameter, "parameter")):
            if not isinstance(given, mx.array):
                raise TypeError(
                    f"{_prefix(path)}{what} must be an mlx.core.array, got {type(given).__name__}"
                )
        if self._assigned and (not path or isinstance(leaf.container, tuple)):
            raise TypeError(
                f"{_prefix(path)}the parameter is in a tuple, which cannot be updated; use a list"
            )
        gradient, shape = leaf.gradient.shape, leaf.parameter.shape
        state = leaf.state if isinstance(leaf.state, dict) else {}
        slots = self._program.slots(leaf.parameter)
        for slot in slots:
            if slot.name not in state and self._initialized:
                raise KeyError(f'{_prefix(path)}the optimizer state has no array "{slot.name}"')
        if gradient != shape:
            raise ValueError(f"{_prefix(path)}gradient {gradient}, parameter {shape}")
        # The formulas take what mlx.optimizers takes: numbers, lists, arrays of other packages.
        arrays: list[Any] = [state.get(slot.name) for slot in slots]
        if not all(isinstance(x, mx.array) for x in arrays):
            return
        for slot, x in zip(slots, arrays, strict=True):
            expected = slot.shape_for(shape)
            if x.shape != expected:
                what = "parameter" if slot.extent == "elements" else "expected"
                raise ValueError(f'{_prefix(path)}state "{slot.name}" {x.shape}, {what} {expected}')

    def _rebuilt(self, node: Any) -> Any:
        if isinstance(node, _Value):
            return node.value
        if isinstance(node, int):
            return self._results[node]
        if issubclass(node.type, dict):
            return {key: self._rebuilt(child) for key, child in node.children}
        results = [self._rebuilt(child) for _, child in node.children]
        if node.type is list:
            return results
        return node.type(*results) if hasattr(node.type, "_fields") else node.type(results)


def _check_scalars(program: Program, hypers: Sequence[Any], rate: Any) -> None:
    described = BY_RULE[program.rule].hypers
    if program.has_ema:
        described = (*described, Hyper(NAME, 0.0, "any", False))
    for hyper, value in zip(described, hypers, strict=True):
        if not isinstance(value, mx.array):
            check_kind_or_number(hyper, hyper.name, value)
        elif value.size != 1:
            raise ValueError(_not_a_scalar(program, hyper.name, value))
    if rate is not None and not isinstance(rate, mx.array):
        given = type(rate).__name__
        raise TypeError(f"learning_rate: expected a 0-d mlx.core.array, got {given}")
    if rate is not None and rate.size != 1:
        raise ValueError(_not_a_scalar(program, "learning_rate", rate))


def _not_a_scalar(program: Program, name: str, value: mx.array) -> str:
    return f"mlx_opt {program.rule}: {name} must be a scalar, got shape {value.shape}"


def checked_step(step: Any) -> Any:
    """The number of a step, unless it is not a whole number of 0 or more."""
    if isinstance(step, mx.array):
        return step
    number = number_from("step", step)
    if not 0 <= number < 1e18:
        raise ValueError("step: expected 0 or more")
    if number != int(number):
        raise ValueError("step: expected a whole number")
    return step


def _prefix(path: str) -> str:
    return f"{path}: " if path else ""


def _entry(tree: Any, key: Any, what: str, path: str) -> Any:
    try:
        return tree[key]
    except Exception as error:
        if isinstance(tree, CONTAINERS) and not isinstance(error, LookupError):
            raise
        raise KeyError(f"{path}: there is a gradient but no {what}") from error


def has_own_assignment(container: Any) -> bool:
    """True if `container[key] = value` runs no Python code of a subclass."""
    base = dict if isinstance(container, dict) else list
    return isinstance(container, base) and type(container).__setitem__ is base.__setitem__


def _store(container: Any, key: Any, value: Any, notes: Notes | None) -> None:
    """Set an entry without running Python code of a subclass."""
    base: Any = dict if isinstance(container, dict) else list
    if notes is not None:
        if base is list or key in container:
            notes.append((setitem, (container, key, base.__getitem__(container, key))))
        else:
            notes.append((delitem, (container, key)))
    base.__setitem__(container, key, value)
