"""A step of an optimizer and all its components: settle, check, act.

1. *Settle*: everything that runs the program's own code comes first, for all parts: filters,
   ``init``, schedules, properties. The results are in the state and in the parts from then on.
2. *Check*: the leaves are collected, held by object, and checked.
3. *Act*: from the first change of an array to the last entry of the state no Python code runs.

An error undoes the settling, so it leaves the model and every state unchanged.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers.optimizers as stock
from mlx.utils import tree_merge

from . import _ext, loss_scale, reserved, telemetry
from .clipping import ClippedStep, ClipRequest, negative_of
from .foreign import Apply, holder_of, members_of, note_state, run_foreign
from .grouping import Portion
from .rollback import Change, Rollback
from .sums import Totals, totals_of


class Share(NamedTuple):
    """The share of a step that one optimizer takes."""

    optimizer: stock.Optimizer
    gradients: Any
    apply: Apply | None
    """The optimizer's own step; None if the primitives run it."""


class Settled(NamedTuple):
    """A fused optimizer's step after the program's own code has run."""

    optimizer: Any
    gradients: Any
    state: dict
    changes: list[Change]
    """The entries of the state, besides those of parameters, that the step replaces."""

    values: dict[str, Any]
    """The optimizer's hyperparameters."""

    portions: list[Portion]
    kept: list[tuple[dict, str]]
    """The places in the state of the numbers that the rule keeps."""

    step: Any
    fused: bool


def update(
    shares: list[Share],
    model: Any,
    gradients: Any,
    request: ClipRequest | None,
    divisor: Any = None,
    rollback: Rollback | None = None,
) -> None:
    """Update a model in place.

    `divisor`: what the gradients are divided by; None for 1. `rollback`: has what else is to be
    undone if the step fails.
    """
    with rollback or Rollback() as rollback:
        replaces_leaves = getattr(model.update, "__func__", None) is nn.Module.update
        assigned = replaces_leaves and all(share.apply is None for share in shares)
        step = _prepare(shares, model, gradients, request, divisor, rollback, assigned)
        if assigned and _ext.update(step.parts, step.counters, rollback.notes):
            return
        tree = step.tree()
        rollback.keep_tree(model)
        model.update(tree)
        _ext.commit(step.parts, rollback.notes)


def apply(
    shares: list[Share],
    parameters: Any,
    gradients: Any,
    request: ClipRequest | None,
    divisor: Any = None,
    rollback: Rollback | None = None,
    advances: bool = True,
) -> Any:
    """Return the updated parameters; see `update`.

    `advances`: False for further leaves of the step that the last call made.
    """
    with rollback or Rollback() as rollback:
        step = _prepare(shares, parameters, gradients, request, divisor, rollback, False, advances)
        tree = step.tree()
        _ext.commit(step.parts, rollback.notes)
        _ext.evaluate_chains(step.parts, step.counters)
        return tree


def begin(shares: list[Share], parameters: Any) -> None:
    """Initialize states and check all leaves, before a step that is made by several calls.

    An error leaves all states unchanged.
    """
    with Rollback() as rollback:
        for optimizer, gradients, _ in shares:
            _initialize(optimizer, gradients, parameters, rollback)
            optimizer.check(gradients, parameters)  # type: ignore[attr-defined]


class _Step(NamedTuple):
    """A step that is ready to run."""

    parts: list[_ext.Part]
    trees: list[Any]
    """The results of the optimizers that run themselves."""

    counters: list[Any]

    def tree(self) -> Any:
        """The updated parameters; changes nothing."""
        _ext.stage(self.parts)
        trees = [part.tree() for part in self.parts] + self.trees
        tree = trees[0] if trees else {}
        for other in trees[1:]:
            tree = tree_merge(tree, other)
        return tree


def _prepare(
    shares: list[Share],
    parameters: Any,
    gradients: Any,
    request: ClipRequest | None,
    divisor: Any,
    rollback: Rollback,
    assigned: bool,
    advances: bool = True,
) -> _Step:
    own_shares = [share for share in shares if share.apply is None]
    settled = [_settle(share, parameters, rollback, advances) for share in own_shares]
    parts = [_parts(step, parameters, assigned) for step in settled]
    clipped = None
    # Of several optimizers the first holds it, as it does the norm.
    state = holder_of(shares[0].optimizer).state if shares else {}
    scale = reserved.entries_of(state).get(loss_scale.KEY)
    if scale is not None:
        request = (request or ClipRequest())._replace(skip_nonfinite=True)
    if divisor is not None:
        request = request or ClipRequest()
    if request is not None:
        own = iter(parts)
        held = [share.gradients if share.apply else next(own) for share in shares]
        clipped = request.compute(held, scale, divisor)
    for i, step in enumerate(settled):
        if step.optimizer._forms.sums:
            settled[i] = _with_sums(step, parts[i], clipped, rollback)
            parts[i] = _parts(settled[i], parameters, assigned)
    counters: list[Any] = []
    for step, own_parts in zip(settled, parts, strict=True):
        _clip(step, own_parts, clipped)
        if step.optimizer._takes_norms:
            telemetry.ask(step.optimizer, step.state, step.portions, own_parts, rollback)
        if clipped is not None:
            _choose_entries(step, clipped, rollback)
            record(step.optimizer, clipped, rollback)
        counters += counters_of(step.state)
        counters += [entries[name] for entries, name in step.kept if name in entries]
    trees = []
    for optimizer, own, apply in shares:
        if apply is not None:
            trees.append(run_foreign(optimizer, apply, own, parameters, clipped, rollback))
            if getattr(optimizer, "_takes_norms", False):
                telemetry.record(optimizer, parameters, trees[-1], rollback)
            if clipped is not None:
                for member in members_of(optimizer):
                    record(member, clipped, rollback)
    return _Step([part for own_parts in parts for part in own_parts], trees, counters)


def _settle(share: Share, parameters: Any, rollback: Rollback, advances: bool) -> Settled:
    optimizer: Any = share.optimizer
    rollback.note(setattr, optimizer, "_state", optimizer._state)
    _initialize(optimizer, share.gradients, parameters, rollback)
    changes: list[Change] = []
    kept: list[tuple[dict, str]] = []
    values = _advance(optimizer, rollback, changes, kept) if advances else optimizer._values()
    portions = optimizer._portions(values)
    # A schedule may have installed a hook.
    fused = optimizer._uses_own_step() and optimizer._uses_primitives()
    state, step = optimizer.state, optimizer.step
    return Settled(optimizer, share.gradients, state, changes, values, portions, kept, step, fused)


def _initialize(optimizer: Any, gradients: Any, parameters: Any, rollback: Rollback) -> None:
    """Assign parameters to groups, and begin their states before the first step."""
    if optimizer._grouping is not None:
        found = optimizer._grouping.assignment.found
        rollback.note(optimizer._grouping.assignment.restore, found)
        optimizer._assign(gradients, parameters)
    if not optimizer._initialized:
        optimizer.check(gradients, parameters)
        note_state(optimizer, rollback)
        optimizer._init_own(optimizer._to_initialize(gradients, parameters))


def _advance(
    optimizer: Any, rollback: Rollback, changes: list[Change], kept: list[tuple[dict, str]]
) -> dict[str, Any]:
    """Put the numbers of the next step into the state; return the hyperparameters with them."""
    for name, schedule in optimizer._schedulers.items():
        value = schedule(optimizer.step)  # may replace the state
        rollback.put(optimizer.state, name, value, changes)
    if optimizer._grouping is not None:
        optimizer._grouping.settle(optimizer, rollback, changes)
    number = _ext.next_number(optimizer.step)
    rollback.put(optimizer.state, "step", number, changes)
    values, step = optimizer._values(), optimizer.step
    if not optimizer._forms.sums:  # else they need the gradients
        kept += _settle_kept(optimizer, values, step, {}, rollback, changes)
    return values


def _settle_kept(
    optimizer: Any,
    values: dict[str, Any],
    step: Any,
    sums: Totals,
    rollback: Rollback,
    changes: list[Change],
) -> list[tuple[dict, str]]:
    """Put the numbers that the rule keeps into the state and the values; their places there."""
    kept: list[tuple[dict, str]] = []
    if optimizer._grouping is not None:
        kept += optimizer._grouping.settle_kept(optimizer, values, step, rollback, changes, sums)
    for name, number in optimizer._next_kept(values, step, sums.get(None)).items():
        rollback.put(optimizer.state, name, number, changes)
        values[name] = number
        kept.append((optimizer.state, name))
    return kept


def _with_sums(
    settled: Settled, parts: list[_ext.Part], clipped: ClippedStep | None, rollback: Rollback
) -> Settled:
    """The step of a rule whose numbers depend on sums over all tensors, with these numbers."""
    optimizer, values = settled.optimizer, settled.values
    _clip(settled, parts, clipped)
    sums = totals_of(optimizer, settled.portions, parts, clipped)
    kept = _settle_kept(optimizer, values, settled.step, sums, rollback, settled.changes)
    return settled._replace(portions=optimizer._portions(values), kept=kept)


def _parts(settled: Settled, parameters: Any, assigned: bool) -> list[_ext.Part]:
    return [
        _ext.Part(
            portion.program,
            portion.groups,
            settled.step,
            settled.gradients,
            parameters,
            settled.state,
            True,
            assigned,
            settled.fused,
            portion.tree,
            portion.positions,
            portion.splits,
        )
        for portion in settled.portions
    ]


def _clip(settled: Settled, parts: list[_ext.Part], clipped: ClippedStep | None) -> None:
    """Tell the parts what is done with the gradients."""
    ascent: ClippedStep | None = None
    for part, portion in zip(parts, settled.portions, strict=True):
        own = clipped
        if portion.maximizes:
            own = ascent = ascent or negative_of(clipped)
        if own is not None:
            part.clip(own.scale, own.finite is not None, own.around, own.max_value)


def _choose_entries(settled: Settled, clipped: ClippedStep, rollback: Rollback) -> None:
    """Make the state's entries besides those of parameters the old ones if the step is skipped."""
    if clipped.finite is None:
        return
    for entries, name, old, new in settled.changes:
        if entries.get(name) is new:  # else other code has replaced the entry
            rollback.put(entries, name, _chosen_entry(clipped, name, new, old))


def record(optimizer: Any, clipped: ClippedStep, rollback: Rollback) -> None:
    """Record the results of clipping in an optimizer's state."""
    if clipped.norm is None:
        return
    state = optimizer.state
    if reserved.KEY not in state:
        rollback.put(state, reserved.KEY, {})
    entries = state[reserved.KEY]
    rollback.put(entries, "grad_norm", clipped.norm)
    if clipped.finite is not None:
        skipped = entries.get("skipped", mx.array(0, mx.uint64))
        skipped = skipped + mx.logical_not(clipped.finite).astype(mx.uint64)
        rollback.put(entries, "skipped", skipped)
        if clipped.loss_scale is not None:
            loss_scale.record(entries, clipped.loss_scale, clipped.finite, rollback)


def _chosen_entry(clipped: ClippedStep, name: str, new: Any, old: Any) -> Any:
    """An entry of a state's root after a step that may be skipped."""
    try:
        return clipped.chosen(new, old)
    except (TypeError, ValueError):
        given = ", then ".join(dict.fromkeys(type(value).__name__ for value in (old, new)))
        raise TypeError(
            f'state "{name}": skip_nonfinite expects a number or an array, got {given}'
        ) from None


def counters_of(state: Any) -> list[Any]:
    """The arrays of a state that count steps."""
    entries = reserved.entries_of(state)
    names = ("skipped", loss_scale.KEY, loss_scale.STEPS_KEY)
    numbers = [state.get("step"), *(entries.get(name) for name in names)]
    return [x for x in numbers if x is not None]
