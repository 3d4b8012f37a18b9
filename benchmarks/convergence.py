"""How fast the rules learn: a small language model and a small image model.

    pip install 'mlx-opt[demo]'
    python -m mlx_opt.benchmarks.convergence [--json PATH] [--plot PATH]
    python -m mlx_opt.benchmarks.convergence --tune

Every rule starts from the same weights and sees the same batches. The learning rate warms up and
falls to 0 on a cosine, but for Schedule-Free rules, whose rate stays. Its peak comes from
convergence_rates.json, which --tune writes: of rates a factor of 2 apart, the one with the lowest
held-out loss at the end of a run whose weights and batches are not those of the comparison. Seconds
are those of a step, without the evaluations: medians of short runs by turns.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import mlx_opt as optim

from .convergence_tasks import TASKS, Task, loss_of
from .environment import write_figures
from .options import output_path

RATES = Path(__file__).with_name("convergence_rates.json")
TUNING_SEED = 1000
EVALUATIONS = 20  # of a run
WARM_UP = 0.1  # of the steps
TURNS, TIMED = 3, 40  # runs whose steps are timed, and their steps
DECAY: dict[str, Any] = {"weight_decay": 0.1, "groups": [optim.no_decay()]}


class Contender(NamedTuple):
    """A rule with everything but its learning rate."""

    make: Callable[..., Any]
    start: float
    """The learning rate that tuning begins at."""

    scheduled: bool = True


def muon(rate: Any) -> Any:
    fallback = partial(optim.AdamW, bias_correction=True, **DECAY)
    return optim.Muon(rate, weight_decay=0.1, adjust_lr="match_rms_adamw", fallback=fallback(rate))


CONTENDERS = {
    "SGD": Contender(partial(optim.SGD, momentum=0.9, nesterov=True), 0.1),
    "AdamW": Contender(partial(optim.AdamW, bias_correction=True, **DECAY), 4e-3),
    "NAdam": Contender(partial(optim.NAdam, decoupled_weight_decay=True, **DECAY), 4e-3),
    "RAdam": Contender(partial(optim.RAdam, decoupled_weight_decay=True, **DECAY), 4e-3),
    "Adan": Contender(partial(optim.Adan, **DECAY), 8e-3),
    "ADOPT": Contender(partial(optim.ADOPT, decouple=True, **DECAY), 4e-3),
    "LaProp": Contender(partial(optim.LaProp, **DECAY), 4e-3),
    "AdEMAMix": Contender(partial(optim.AdEMAMix, **DECAY), 4e-3),
    "Lion": Contender(partial(optim.Lion, **DECAY), 1e-3),
    "Lamb": Contender(partial(optim.Lamb, **DECAY), 1.6e-2),
    "Adafactor": Contender(
        partial(optim.Adafactor, relative_step=False, scale_parameter=False), 8e-3
    ),
    "Muon": Contender(muon, 8e-3),
    "AdamWScheduleFree": Contender(
        partial(optim.AdamWScheduleFree, **DECAY), 8e-3, scheduled=False
    ),
}


class Run(NamedTuple):
    """The held-out losses of a training, evenly spaced, and the median seconds of a step."""

    losses: list[float]
    step_seconds: float


def schedule(peak: float, steps: int, falls: bool) -> Any:
    warm_up = round(WARM_UP * steps)
    rest = optim.cosine_decay(peak, steps - warm_up) if falls else lambda _: peak
    return optim.join_schedules([optim.linear_schedule(0.0, peak, warm_up), rest], [warm_up])


def train(task: Task, name: str, rate: float, seed: int) -> Run:
    """Train from the seed's weights on its batches."""
    mx.random.seed(seed)
    model = task.make_model()
    contender = CONTENDERS[name]
    optimizer = contender.make(schedule(rate, task.steps, contender.scheduled))
    state = [model.state, optimizer.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def step(inputs: mx.array, labels: mx.array) -> mx.array:
        loss, gradients = nn.value_and_grad(model, loss_of)(model, inputs, labels)
        optimizer.update(model, gradients)
        return loss

    random = np.random.default_rng(seed)
    every = task.steps // EVALUATIONS
    losses, seconds = [held_out_loss(task, model, optimizer)], []
    for number in range(1, task.steps + 1):
        batch = task.make_batch(random)
        begin = time.perf_counter()
        loss = step(*batch)
        mx.eval(loss, state)
        seconds.append(time.perf_counter() - begin)
        if number % every == 0:
            losses.append(held_out_loss(task, model, optimizer))
    return Run(losses, median(seconds))


def held_out_loss(task: Task, model: nn.Module, optimizer: Any) -> float:
    parameters = model.trainable_parameters()
    if hasattr(optimizer, "eval_parameters") and optimizer.state["step"].item() > 0:
        model.update(optimizer.eval_parameters(model))
    loss: Any = loss_of(model, *task.held_out).item()
    model.update(parameters)
    return loss


def best_rate(task: Task, name: str, advance: Callable[[], None]) -> float:
    """The best of the rates a factor of 2 apart, from the start towards where the loss falls."""
    losses: dict[int, float] = {}

    def loss_at(power: int) -> float:
        if power not in losses:
            rate = CONTENDERS[name].start * 2.0**power
            loss = train(task, name, rate, TUNING_SEED).losses[-1]
            losses[power] = loss if math.isfinite(loss) else math.inf
            advance()
        return losses[power]

    best = 0
    while True:
        better = min((best - 1, best, best + 1), key=loss_at)
        if better == best:
            return CONTENDERS[name].start * 2.0**best
        best = better


def tune(tasks: Sequence[str], names: Sequence[str], console: Console) -> dict[str, Any]:
    rates: dict[str, dict[str, float]] = {}
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("tuning", total=None)
        for title in tasks:
            task = TASKS[title]()
            rates[title] = {}
            for name in names:
                progress.update(bar, description=f"tuning {title}, {name}")
                rates[title][name] = best_rate(task, name, lambda: progress.advance(bar))
                console.print(f"{title}, {name}: {rates[title][name]:.2g}")
    return rates


def compare(
    title: str, names: Sequence[str], seeds: int, rates: dict[str, float], advance: Callable
) -> dict[str, Any]:
    """The losses and the seconds of a step of each rule."""
    task = TASKS[title]()
    short = task._replace(steps=TIMED)

    def run(task: Task, name: str, seed: int) -> Run:
        advance(f"{title}, {name}")
        return train(task, name, rates[name], seed)

    losses = by_turns(seeds, names, lambda name, seed: run(task, name, seed).losses)
    seconds = by_turns(TURNS, names, lambda name, seed: run(short, name, seed).step_seconds)
    return {
        "title": f"{task.title}, {parameters_of(task):,} parameters",
        "steps": task.steps,
        "rates": {name: rates[name] for name in names},
        "losses": losses,
        "step_seconds": {name: median(of) for name, of in seconds.items()},
    }


def by_turns(
    turns: int, names: Sequence[str], run: Callable[[str, int], Any]
) -> dict[str, list[Any]]:
    """What `run` gives for each name, turn by turn."""
    results: dict[str, list[Any]] = {name: [] for name in names}
    for turn in range(turns):
        for name in names:
            results[name].append(run(name, turn))
    return results


def parameters_of(task: Task) -> int:
    leaves: Any = tree_flatten(task.make_model().trainable_parameters())
    return sum(x.size for _, x in leaves)


def table_of(found: dict[str, Any]) -> Table:
    table = Table(title=f"{found['title']}: held-out loss after {found['steps']} steps")
    for heading in ("rule", "rate", "mean", "lowest", "highest", "ms a step"):
        table.add_column(heading, justify="left" if heading == "rule" else "right")
    ends = {name: [run[-1] for run in runs] for name, runs in found["losses"].items()}
    for name in sorted(ends, key=lambda name: mean(ends[name])):
        table.add_row(
            name,
            f"{found['rates'][name]:.2g}",
            *(f"{loss:.3f}" for loss in (mean(ends[name]), min(ends[name]), max(ends[name]))),
            f"{found['step_seconds'][name] * 1e3:.1f}",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--task", nargs="+", choices=TASKS, default=list(TASKS), help="default: both")
    add("--rule", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="CLASS")
    add("--seeds", type=int, default=3, help="runs of each (default: %(default)s)")
    add("--tune", action="store_true", help=f"write {RATES.name} instead")
    add("--rates", type=output_path, default=RATES, metavar="PATH", help="another file of rates")
    add("--json", type=output_path, metavar="PATH", help="write the losses")
    add("--plot", type=output_path, metavar="PATH", help="draw the losses (a PNG)")
    options = parser.parse_args()
    console = Console()
    if options.tune:
        write_figures(options.rates, rates=tune(options.task, options.rule, console))
        return
    rates = json.loads(options.rates.read_text())["rates"]
    found = {}
    runs = len(options.rule) * (options.seeds + TURNS)
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("training", total=len(options.task) * runs)
        for title in options.task:
            found[title] = compare(
                title,
                options.rule,
                options.seeds,
                rates[title],
                lambda now: progress.update(bar, advance=1, description=now),
            )
            console.print(table_of(found[title]))
    if options.json:
        write_figures(options.json, tasks=found)
    if options.plot:
        from .convergence_picture import draw

        draw(found).savefig(options.plot, dpi=150)


if __name__ == "__main__":
    main()
