"""What users feel: tokens a second and the peak memory of mlx-lm's trainer, unmodified.

    pip install mlx-lm
    python -m mlx_opt bench --training [--size 110M] [--dtype bfloat16] [--json PATH]

The trainer runs with mlx.optimizers ("stock") and with mlx_opt by turns, each time from the same
random weights. The first steps of each run, in which MLX compiles, do not count.
"""

from __future__ import annotations

import argparse
import gc
from itertools import chain
from math import ceil
from statistics import median
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.optimizers as stock
from mlx.utils import tree_flatten
from rich.console import Console
from rich.progress import Progress

import mlx_opt

from .environment import write_figures
from .llama import Text, llama, make_model, train_quietly
from .options import LLAMAS
from .report import fitting

PACKAGES = {"stock": stock, "mlx_opt": mlx_opt}
REPORTS = 3  # of each run that count
WARM_UP = 20  # steps before these at least: MLX compiles, and CUDA builds its graphs
HEADINGS = [
    "training",
    "stock\ntok/s",
    "mlx_opt\ntok/s",
    "ratio",
    "low to high",
    "peak,\nGB",
    "ours",
]


class Setting(NamedTuple):
    """What is trained."""

    size: str
    kind: str
    dtype: str
    rule: str
    batch: int
    length: int
    accumulate: int

    @property
    def title(self) -> str:
        accumulated = f" x {self.accumulate}" if self.accumulate > 1 else ""
        return f"{self.kind} {self.dtype} {self.rule}{accumulated}"


class Turn(NamedTuple):
    """One run of the trainer."""

    tokens_per_second: list[float]
    peak: int
    trainable: int
    last_loss: float


def run_once(setting: Setting, package: Any, steps: int, text: Text) -> Turn:
    """Train from the first weights on with one package's optimizer."""
    gc.collect()
    mx.clear_cache()
    mx.reset_peak_memory()
    model = make_model(llama(*LLAMAS[setting.size]), setting.kind, getattr(mx, setting.dtype))
    optimizer = getattr(package, setting.rule)(1e-4)
    warm_up = ceil(WARM_UP / steps)
    reports: list[dict[str, Any]] = []
    train_quietly(
        model,
        optimizer,
        text,
        reports.append,
        setting.batch,
        (warm_up + REPORTS) * steps * setting.accumulate,
        steps * setting.accumulate,
        setting.accumulate,
    )
    leaves: Any = tree_flatten(model.trainable_parameters())
    trainable = sum(x.size for _, x in leaves)
    speeds = [report["tokens_per_second"] for report in reports[warm_up:]]
    return Turn(speeds, mx.get_peak_memory(), trainable, reports[-1]["train_loss"])


def measure(setting: Setting, rounds: int, steps: int, advance: Any) -> dict[str, list[Turn]]:
    """The runs of both packages, by turns."""
    vocabulary = LLAMAS[setting.size][-1]
    text = Text(vocabulary, 8 * setting.batch, setting.length + 1)
    turns: dict[str, list[Turn]] = {name: [] for name in PACKAGES}
    for _ in range(rounds):
        for name, package in PACKAGES.items():
            turns[name].append(run_once(setting, package, steps, text))
            advance()
    return turns


def row(setting: Setting, turns: dict[str, list[Turn]]) -> list[str]:
    speeds = {
        name: list(chain.from_iterable(turn.tokens_per_second for turn in of_package))
        for name, of_package in turns.items()
    }
    middle = {name: median(all_speeds) for name, all_speeds in speeds.items()}
    ratios = [
        median(ours.tokens_per_second) / median(theirs.tokens_per_second)
        for theirs, ours in zip(turns["stock"], turns["mlx_opt"], strict=True)
    ]
    peaks = {name: max(turn.peak for turn in of_package) for name, of_package in turns.items()}
    return [
        setting.title,
        *(f"{middle[name]:,.0f}" for name in PACKAGES),
        f"{median(ratios):.2f}",
        f"{min(ratios):.2f} to {max(ratios):.2f}",
        *(f"{peaks[name] / 1e9:.2f}" for name in PACKAGES),
    ]


def main(options: argparse.Namespace) -> int:
    """Run the trainings that a command line asks for."""
    console = Console()
    settings = [
        Setting(options.size, kind, dtype, rule, options.batch, options.length, options.accumulate)
        for kind in options.kind
        for dtype in options.dtype
        for rule in options.rule
    ]
    rows, found = [], []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("training", total=len(settings) * options.rounds * len(PACKAGES))
        for setting in settings:
            progress.update(task, description=setting.title)
            turns = measure(setting, options.rounds, options.steps, lambda: progress.advance(task))
            rows.append(row(setting, turns))
            runs = {name: [turn._asdict() for turn in of] for name, of in turns.items()}
            found.append({**setting._asdict(), "runs": runs})
    title = f"Llama {options.size}, {options.batch} x {options.length} tokens a batch"
    console.print(fitting(console, HEADINGS, rows, title, ""))
    if options.json:
        write_figures(options.json, settings=found)
    return 0
