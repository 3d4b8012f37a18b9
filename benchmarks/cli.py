"""The command ``python -m mlx_opt bench``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .measure import Run, measure
from .options import OPTIONAL_PEERS, OURS
from .peers import PEERS, has_meaning, measured_by, why_missing
from .report import summary, table, write_json, write_plot
from .together import run_together, table_together
from .workloads import ALL, Workload

# Average number of running processes from which on they are in the way.
BUSY = 0.5


def main(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Run the benchmarks that a command line asks for."""
    rules = _chosen_rules(options.rule)
    if "torch" in (options.peers or []) and find_spec("torch") is None:
        parser.error("--peers torch needs PyTorch: pip install torch")
    if options.together and (options.peers or options.json or options.plot):
        parser.error("--together has none of --peers, --json and --plot")
    if options.plot and find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install 'mlx-opt[bench]'")
    console = Console()
    if (load := os.getloadavg()[0]) > BUSY:
        console.print(f"The machine is busy (load {load:.1f}): these times will be too long.")
    if options.together:
        _run_together(rules, options, console)
        return 0
    runs = []
    for rule in rules:
        workload = Workload(rule, options.model, options.dtype)
        names = _chosen_peers(rule, options.peers or OPTIONAL_PEERS, console)
        runs.append(_measure(workload, names, options.rounds))
        console.print(table(runs[-1], console))
        measure_of = measured_by(rule)
        if measure_of in runs[-1].results:
            ratio = 1 / runs[-1].time_over_ours(measure_of)
            console.print(f"{OURS} takes {ratio:.2f} times {measure_of}")
    if len(runs) > 1:
        console.print(summary(runs, console))
    if options.json:
        write_json(options.json, runs)
    if options.plot:
        write_plot(options.plot, runs)
    return 0


def _chosen_rules(names: list[str] | None) -> list[str]:
    chosen = names or ["AdamW"]
    return list(
        dict.fromkeys(rule for name in chosen for rule in (ALL if name == "all" else [name]))
    )


def _chosen_peers(rule: str, optional: list[str], console: Console) -> list[str]:
    chosen = []
    for peer in PEERS:
        if not has_meaning(peer, rule) or (peer in OPTIONAL_PEERS and peer not in optional):
            continue
        if reason := why_missing(peer, rule):
            console.print(f"without {peer}: {reason}")
        else:
            chosen.append(peer)
    return chosen


def _measure(workload: Workload, names: list[str], rounds: int) -> Run:
    with _progress(len(names) * (rounds + 1)) as show:
        return measure(workload, names, rounds, lambda what: show(f"{workload.rule} {what}"))


def _run_together(rules: list[str], options: argparse.Namespace, console: Console) -> None:
    with _progress((len(rules) + 3) * (options.rounds + 1)) as show:
        run = run_together(rules, options.model, options.dtype, options.rounds, show)
    console.print(table_together(run, console))


@contextmanager
def _progress(total: int) -> Iterator[Callable[[str], None]]:
    """A bar that goes on by one whenever it is told of what comes."""
    progress = Progress(
        TextColumn("{task.description:<22}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        auto_refresh=False,  # its thread would draw while a step is timed
    )
    task = progress.add_task("", total=total)
    with progress:
        yield lambda what: progress.update(task, advance=1, description=what, refresh=True)
