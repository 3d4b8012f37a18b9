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

from . import _ext, reserved
from .clipping import ClippedStep, ClipRequest, Formula
from .foreign import Apply, members_of, note_state, run_foreign
from .rollback import Rollback


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
    before: dict[str, Any]
    """The old entries of the state's root that the step replaces."""

    after: dict[str, Any]
    """The new entries."""

    program: _ext.Program
    hypers: list
    kept: list[str]
    """The numbers in the state's root that the rule keeps."""

    rate: Any
    step: Any
    formula: Formula
    fused: bool


def update(shares: list[Share], model: Any, gradients: Any, request: ClipRequest | None) -> None:
    """Update a model in place."""
    with Rollback() as rollback:
        replaces_leaves = getattr(model.update, "__func__", None) is nn.Module.update
        assigned = replaces_leaves and all(share.apply is None for share in shares)
        step = _prepare(shares, model, gradients, request, rollback, assigned)
        if assigned and _ext.update(step.parts, step.counters, rollback.notes):
            return
        tree = step.tree()
        rollback.keep_tree(model)
        model.update(tree)
        _ext.commit(step.parts, rollback.notes)


def apply(shares: list[Share], parameters: Any, gradients: Any, request: ClipRequest | None) -> Any:
    """Return the updated parameters."""
    with Rollback() as rollback:
        step = _prepare(shares, parameters, gradients, request, rollback, assigned=False)
        tree = step.tree()
        _ext.commit(step.parts, rollback.notes)
        _ext.evaluate_chains(step.parts, step.counters)
        return tree


class _Step(NamedTuple):
    """A step that is ready to run."""

    parts: list[_ext.Part]
    trees: list[Any]
    """The results of the optimizers that run themselves."""

    counters: list[Any]

    def tree(self) -> Any:
        """The updated parameters; changes nothing."""
        for part in self.parts:
            part.stage()
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
    rollback: Rollback,
    assigned: bool,
) -> _Step:
    fused = [share for share in shares if share.apply is None]
    settled = [_settle(share, parameters, rollback) for share in fused]
    parts = [_part(step, parameters, assigned) for step in settled]
    clipped = None
    if request is not None:
        # The norm must be that of the step's gradients. A part holds them; a split has copied the
        # tree, which may have changed since.
        if len(shares) > 1:
            gradients = [share.gradients for share in shares]
        clipped = request.compute(gradients, parts[0] if len(shares) == len(parts) == 1 else None)
    counters: list[Any] = []
    for step, part in zip(settled, parts, strict=True):
        if clipped is not None:
            skip_nonfinite = clipped.finite is not None
            part.clip(clipped.scale, skip_nonfinite, clipped.around(step.formula))
            _choose_root_entries(step, clipped, rollback)
            record(step.optimizer, clipped, rollback)
        counters += counters_of(step.state)
        counters += [step.state[name] for name in step.kept if name in step.state]
    trees = []
    for optimizer, own, apply in shares:
        if apply is not None:
            trees.append(run_foreign(optimizer, apply, own, parameters, clipped, rollback))
            if clipped is not None:
                for member in members_of(optimizer):
                    record(member, clipped, rollback)
    return _Step(parts, trees, counters)


def _settle(share: Share, parameters: Any, rollback: Rollback) -> Settled:
    optimizer: Any = share.optimizer
    if not optimizer._initialized:
        optimizer.check(share.gradients, parameters)
        note_state(optimizer, rollback)
        optimizer._init_own(share.gradients)
    rollback.note(setattr, optimizer, "_state", optimizer._state)
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    for name, schedule in optimizer._schedulers.items():
        after[name] = schedule(optimizer.step)
        rollback.put(optimizer.state, name, after[name], before)
    after["step"] = _ext.next_number(optimizer.step)
    rollback.put(optimizer.state, "step", after["step"], before)
    program, hypers = optimizer._program()
    rate, step = optimizer._rate(), optimizer.step
    kept = _ext.next_kept(program, hypers, step)
    if kept:
        for name, number in kept.items():
            after[name] = number
            rollback.put(optimizer.state, name, number, before)
        hypers[-len(kept) :] = kept.values()
    # A schedule may have installed a hook.
    own = optimizer._uses_own_step()
    formula = optimizer._formula if own else optimizer.apply_single
    fused = own and optimizer._uses_primitives()
    state = optimizer.state
    return Settled(
        optimizer,
        share.gradients,
        state,
        before,
        after,
        program,
        hypers,
        list(kept),
        rate,
        step,
        formula,
        fused,
    )


def _part(settled: Settled, parameters: Any, assigned: bool) -> _ext.Part:
    return _ext.Part(
        settled.program,
        settled.hypers,
        settled.rate,
        settled.step,
        settled.formula,
        settled.gradients,
        parameters,
        settled.state,
        True,
        assigned,
        settled.fused,
    )


def _choose_root_entries(settled: Settled, clipped: ClippedStep, rollback: Rollback) -> None:
    """Make the entries of the state's root the old ones if the step is skipped."""
    if clipped.finite is None:
        return
    state = settled.state
    for name, old in settled.before.items():
        new = settled.after[name]
        if state.get(name) is new:  # else other code has replaced the entry
            rollback.put(state, name, _chosen_entry(clipped, name, new, old))


def record(optimizer: Any, clipped: ClippedStep, rollback: Rollback) -> None:
    """Record the results of clipping in an optimizer's state."""
    state = optimizer.state
    if reserved.KEY not in state:
        rollback.put(state, reserved.KEY, {})
    entries = state[reserved.KEY]
    rollback.put(entries, "grad_norm", clipped.norm)
    if clipped.finite is not None:
        skipped = entries.get("skipped", mx.array(0, mx.uint64))
        skipped = skipped + mx.logical_not(clipped.finite).astype(mx.uint64)
        rollback.put(entries, "skipped", skipped)


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
    return [x for x in (state.get("step"), entries.get("skipped")) if x is not None]
