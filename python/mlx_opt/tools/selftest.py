"""The self-test of ``python -m mlx_opt selftest``: the fused rules against float64."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

import mlx_opt

from .. import _ext, references
from . import info

CASES = references.CASES
STORAGES = ("float32", "float16", "bfloat16")
LEARNING_RATE = 0.01
STEPS = 3
MAX_NORM = 1.0

# Vectors with a tail, short and long, matrices, and tensors of one element and of none.
SHAPES = [(1031,), (7,), (70_001,), (96, 68), (5, 4, 9), (0, 3), ()]

# A multiple of the error of references.exact_step, which suits half precision: AdaDelta has nine
# dependent float32 operations, and a GPU rounds exp and log to a few units in the last place.
MARGIN = 4

# The smallest normal float32; Metal treats denormals as zero.
LEAST_NORMAL = 2.0**-126

JSON_SCHEMA = 1
"""The version of the structure that --json prints; it grows when a key changes or goes."""

# Of each device's table.
HEADING = "the largest error of a step, in multiples of what rounding allows"
EXPLANATION = (
    "Above 1 is WRONG. 1.00 is expected in float16 and bfloat16: what is allowed there is little "
    "more than half a unit in the last place, by which storing a result rounds it."
)


class Outcome(NamedTuple):
    """The result of a rule on a device with a storage."""

    share: float
    """The largest error, in multiples of the allowed one."""

    error: str = ""
    """The exception that it raised, if any."""

    @property
    def right(self) -> bool:
        return not self.error and self.share <= 1

    def as_json(self) -> dict[str, Any]:
        share = self.share if math.isfinite(self.share) else None  # JSON has no NaN
        return {"right": self.right, "share": share, "error": self.error}

    def __str__(self) -> str:
        if self.error:
            return "raised"
        return f"{self.share:.2f}" if self.right else f"{self.share:.3g} WRONG"


Outcomes = dict[str, dict[str, Outcome]]
"""By case and storage."""


def main(as_json: bool = False) -> int:
    """Print the report; return 1 if a device has no backend or a rule is wrong, else 0."""
    installation = info.report()
    console = Console(quiet=as_json)
    console.print(str(installation), markup=False, highlight=False, soft_wrap=True)
    devices: dict[str, Outcomes] = {}
    problems = []
    for device in filter(mx.is_available, (mx.cpu, mx.gpu)):
        with _default(device):
            if not _ext.available():
                problems.append(f"{device.name}: no backend of this build serves it")
                continue
            outcomes = devices[device.name] = run()
        console.print(_table(device.name, outcomes))
        problems += [
            f"{device.name}: {case} with {storage}: {outcome.error or 'wrong'}"
            for case, row in outcomes.items()
            for storage, outcome in row.items()
            if not outcome.right
        ]
    if devices:
        console.print(EXPLANATION)
    for problem in problems:
        console.print(f"problem: {problem}", markup=False, soft_wrap=True)
    if not problems:
        console.print("All rules are right.")
    if as_json:
        print(json.dumps(_as_json(installation, devices, problems), indent=2))
    return 1 if problems else 0


def _as_json(
    installation: info.Report, devices: dict[str, Outcomes], problems: list[str]
) -> dict[str, Any]:
    return {
        "schema": JSON_SCHEMA,
        "installation": installation._asdict(),
        "devices": {
            device: {
                case: {storage: outcome.as_json() for storage, outcome in row.items()}
                for case, row in outcomes.items()
            }
            for device, outcomes in devices.items()
        },
        "problems": problems,
    }


def run() -> Outcomes:
    """Check every rule, and clipping, with every storage on the default device."""
    outcomes = {
        name_of(rule, options): {storage: check(rule, options, storage) for storage in STORAGES}
        for rule, options in CASES
    }
    clipping = {storage: check_clipping(storage) for storage in STORAGES}
    return outcomes | {name_of("clip_grad_norm", {"max_norm": MAX_NORM}): clipping}


def check(rule: str, options: dict[str, Any], storage: str) -> Outcome:
    """Take a few steps and compare each with the float64 step from the same values."""
    return _outcome(lambda: _worst_of_steps(rule, options, storage))


def check_clipping(storage: str) -> Outcome:
    """Compare the gradients' norm, and the gradients clipped to another, with float64."""
    return _outcome(lambda: _worst_of_clipping(storage))


def _outcome(worst: Callable[[], float]) -> Outcome:
    try:
        return Outcome(worst())
    except Exception as error:  # a device that fails one rule is still tested with the others
        return Outcome(float("nan"), f"{type(error).__name__}: {error}")


def _worst_of_steps(rule: str, options: dict[str, Any], storage: str) -> float:
    optimizer = getattr(mlx_opt, rule)(LEARNING_RATE, **options)
    parameters = _values(storage, seed=0)
    optimizer.init(parameters)
    worst = 0.0
    for step in range(1, STEPS + 1):
        gradients = _gradients(storage, seed=step)
        before = {name: _wide_tensor(optimizer, parameters, name) for name in parameters}
        parameters = optimizer.apply_gradients(gradients, parameters)
        mx.eval(parameters, optimizer.state)
        for name, old in before.items():
            if not parameters[name].size:
                continue
            kept = {name: optimizer.state[name].item() for name in references.begin_kept(rule)}
            settings = {"learning_rate": LEARNING_RATE} | options | kept
            g = _wide(gradients[name])
            w = old.pop("w")
            new = _wide_tensor(optimizer, parameters, name)
            exact = references.exact_step(rule, w, g, old, step, settings, new)
            shares = [_share(new[k], exact[k], storage) for k in new]
            worst = max(worst, *shares)
    return worst


def _worst_of_clipping(storage: str) -> float:
    def share(got: mx.array, exact: np.ndarray, storage: str) -> float:
        return _share(_wide(got), (exact, references.FLOAT32 * np.abs(exact)), storage)

    worst = 0.0
    for step in range(1, STEPS + 1):
        gradients = _gradients(storage, seed=step)
        clipped, norm = mlx_opt.clip_grad_norm(gradients, MAX_NORM)
        exact = np.sqrt(sum(np.sum(_wide(g) ** 2) for g in gradients.values()))
        scale = MAX_NORM / (exact + 1e-6)
        shares = [share(clipped[k], scale * _wide(g), storage) for k, g in gradients.items()]
        worst = max(worst, share(norm, exact, "float32"), *shares)
    return worst


def name_of(rule: str, options: dict[str, Any]) -> str:
    """A case, written as a call."""
    return f"{rule}({', '.join(f'{k}={v}' for k, v in options.items())})"


@contextmanager
def _default(device: Any) -> Iterator[None]:
    before = mx.default_device()
    mx.set_default_device(device)
    try:
        yield
    finally:
        mx.set_default_device(before)


def _values(storage: str, seed: int) -> dict[str, mx.array]:
    generator = np.random.default_rng(seed)
    arrays = {}
    for k, shape in enumerate(SHAPES):
        values = np.asarray(generator.normal(size=shape), np.float32)
        arrays[str(k)] = mx.array(values).astype(getattr(mx, storage))
    mx.eval(arrays)
    return arrays


def _gradients(storage: str, seed: int) -> dict[str, mx.array]:
    """Gradients, transposed in the first step and reversed in the second."""
    gradients = _values(storage, seed)
    if seed == 1:
        gradients = {k: mx.contiguous(x.T).T for k, x in gradients.items()}
    elif seed == 2:
        gradients = {k: x[::-1] if x.ndim else x for k, x in gradients.items()}
    mx.eval(gradients)
    return gradients


def _wide(x: mx.array) -> np.ndarray:
    return np.array(x.astype(mx.float32)).astype(np.float64)


def _wide_tensor(optimizer: Any, parameters: dict, name: str) -> dict[str, np.ndarray]:
    """The parameter "w" and its slots, by name, in float64."""
    return {"w": _wide(parameters[name])} | {
        slot: _wide(x) for slot, x in optimizer.state[name].items()
    }


def _share(got: np.ndarray, expected: tuple[np.ndarray, np.ndarray], storage: str) -> float:
    """The largest error in multiples of what is allowed."""
    if not got.size:
        return 0.0
    exact, error = expected
    allowed = MARGIN * error + references.ulp(np.abs(exact) + error, storage) / 2 + LEAST_NORMAL
    share = np.abs(got - exact) / allowed
    return float("inf") if np.isnan(share).any() else float(share.max())


def _table(device: str, outcomes: Outcomes) -> Table:
    table = Table(title=f"{device}: {HEADING}", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("rule", overflow="fold")
    for storage in STORAGES:
        table.add_column(storage, justify="right", no_wrap=True)
    for case, row in outcomes.items():
        table.add_row(case, *map(str, row.values()))
    return table
