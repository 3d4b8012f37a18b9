"""How equal mlx_opt is to mlx.optimizers: a small Llama, trained by mlx-lm's trainer with both.

    pip install mlx-lm
    python -m mlx_opt.benchmarks.equality [--steps 200] [--nudges 5] [--json PATH]

The run with mlx.optimizers ("stock") is the measure. It is compared with the run with mlx_opt, and
with stock's own runs from weights that were nudged by up to 1e-7 of themselves, about their
rounding error. At last both optimizers get the same gradients, those of stock's run. The difference
of two sets of weights is the largest of a tensor, in parts of that tensor's largest value.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as stock
import numpy as np
from mlx.utils import tree_flatten, tree_map
from mlx_lm.tuner.trainer import default_loss, iterate_batches

import mlx_opt

from .environment import write_figures
from .llama import Text, llama, make_model, train_quietly

NUDGE = 1e-7
VOCABULARY, LENGTH, SEQUENCES, BATCH = 97, 33, 512, 4
ARGUMENTS = llama(3, 64, 128, 4, 2, VOCABULARY)
LEARNING_RATES = {"full": 3e-3, "LoRA": 1e-3}
WEIGHT_DECAY = 0.1
TEXT = Text(VOCABULARY, SEQUENCES, LENGTH)


class Trained(NamedTuple):
    weights: dict[str, mx.array]
    losses: list[float]


class Difference(NamedTuple):
    """What two runs differ by."""

    weights: float
    losses: float
    last_loss: float


def make(kind: str, nudge_seed: int | None = None) -> nn.Module:
    model = make_model(ARGUMENTS, kind)
    if nudge_seed is not None:
        mx.random.seed(nudge_seed)
        model.update(tree_map(nudged, model.parameters()))
        mx.eval(model.parameters())
    return model


def nudged(x: mx.array) -> mx.array:
    return x * (1 + NUDGE * mx.random.uniform(-1, 1, x.shape))


def make_optimizer(package: Any, kind: str) -> Any:
    return package.AdamW(LEARNING_RATES[kind], weight_decay=WEIGHT_DECAY)


def trained(model: nn.Module, optimizer: Any, steps: int) -> Trained:
    """The model after mlx-lm's trainer."""
    losses: list[float] = []
    train_quietly(
        model, optimizer, TEXT, lambda report: losses.append(report["train_loss"]), BATCH, steps
    )
    return Trained(weights_of(model), losses)


def weights_of(model: nn.Module) -> dict[str, mx.array]:
    return dict(tree_flatten(model.trainable_parameters()))


def difference(one: Trained, other: Trained) -> Difference:
    losses = [abs(a - b) for a, b in zip(one.losses, other.losses, strict=True)]
    return Difference(distance(one.weights, other.weights), max(losses), losses[-1])


def distance(one: dict[str, mx.array], other: dict[str, mx.array]) -> float:
    """The largest difference of a tensor, in parts of its largest value."""
    parts = [abs(x - other[name]).max() / abs(x).max() for name, x in one.items()]
    largest: Any = mx.stack(parts).max()
    return largest.item()


def distance_on_same_gradients(kind: str, steps: int) -> float:
    """The distance of the weights of both optimizers after the gradients of stock's run."""
    model = make(kind)
    loss_and_gradients = nn.value_and_grad(model, default_loss)
    optimizers = [make_optimizer(package, kind) for package in (stock, mlx_opt)]
    ours = weights_of(model)
    np.random.seed(0)
    batches = iterate_batches(TEXT, BATCH, LENGTH, loop=True)
    for _, batch in zip(range(steps), batches, strict=False):
        _, gradients = loss_and_gradients(model, *batch)
        optimizers[0].update(model, gradients)
        ours = optimizers[1].apply_gradients(dict(tree_flatten(gradients)), ours)
        mx.eval(model.parameters(), ours, [each.state for each in optimizers])
    return distance(weights_of(model), ours)


def compare(kind: str, steps: int, nudges: int) -> dict[str, Any]:
    measure = trained(make(kind), make_optimizer(stock, kind), steps)
    ours = trained(make(kind), make_optimizer(mlx_opt, kind), steps)
    nudged_runs = []
    for seed in range(1, nudges + 1):
        again = trained(make(kind, seed), make_optimizer(stock, kind), steps)
        nudged_runs.append(difference(measure, again)._asdict())
    return {
        "kind": kind,
        "learning_rate": LEARNING_RATES[kind],
        "trainable": sum(x.size for x in measure.weights.values()),
        "losses": [measure.losses[0], measure.losses[-1]],
        "mlx_opt": difference(measure, ours)._asdict(),
        "nudged": nudged_runs,
        "same_gradients": distance_on_same_gradients(kind, steps),
    }


def print_report(report: dict[str, Any]) -> None:
    first, last = report["losses"]
    print(f"{report['kind']}, {report['trainable']:,} parameters, loss {first:.3f} to {last:.3f}")
    print(f"  {'differs from stock by':<28} {'weights':>10} {'losses':>10} {'last loss':>10}")
    rows = {"mlx_opt": report["mlx_opt"]}
    rows |= {f"stock, nudged {i}": row for i, row in enumerate(report["nudged"], start=1)}
    for name, row in rows.items():
        print(f"  {name:<28} " + " ".join(f"{value:>10.2g}" for value in row.values()))
    print(f"  {'mlx_opt, the same gradients':<28} {report['same_gradients']:>10.2g}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--nudges", type=int, default=5, help="runs of stock that are nudged")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures")
    options = parser.parse_args()
    reports = []
    for kind in LEARNING_RATES:
        reports.append(compare(kind, options.steps, options.nudges))
        print_report(reports[-1])
        sys.stdout.flush()
    if options.json:
        settings = {"steps": options.steps, "nudge": NUDGE, "weight_decay": WEIGHT_DECAY}
        write_figures(options.json, **settings, runs=reports)


if __name__ == "__main__":
    main()
