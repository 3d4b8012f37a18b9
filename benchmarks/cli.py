"""The command ``python -m mlx_opt bench``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mlx_opt.tools import info

from .measure import Run, measure
from .peers import LIMIT, MEASURED_BY, OURS, PEERS, has_meaning, why_missing
from .report import table, write_json, write_plot
from .together import run_together, table_together
from .workloads import ALL, ITEMSIZES, MODELS, RULES, Model, Workload, model_named

OPTIONAL_PEERS = [peer for peer in PEERS if peer not in (OURS, LIMIT)]
# Average number of running processes from which on they are in the way.
BUSY = 0.5
DESCRIPTION = """\
Time the steps of mlx_opt's optimizers beside those of mlx.optimizers and PyTorch, and beside the
time in which the same bytes can be streamed through memory. All take turns on the same values."""
EPILOG = """\
Threads: as MLX_OPT_NUM_THREADS says, for PyTorch too. docs/benchmarks.md says what is counted.

examples:
  python -m mlx_opt bench
  python -m mlx_opt bench --rule all --model gpt2 --json gpt2.json --plot gpt2.png
  python -m mlx_opt bench --together --model gpt2 --rule AdamW --rule AdamW-clipped
  python -m mlx_opt bench --rule Lion --dtype bfloat16 --model 24*1024x1024,24*1024"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mlx_opt bench",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--rule",
        action="append",
        choices=[*RULES, "all"],
        metavar="CLASS",
        help=f"may be repeated; {', '.join(RULES)} or all but Muon: all (default: AdamW)",
    )
    parser.add_argument(
        "--model",
        type=_model,
        default="small",
        help=f"{', '.join(MODELS)}, or shapes: 24*1024x1024,24*1024 (default: %(default)s)",
    )
    parser.add_argument(
        "--dtype", choices=ITEMSIZES, default="float32", help="of parameters, state and gradients"
    )
    parser.add_argument(
        "--rounds", type=_rounds, default=20, help="turns of each peer (default: %(default)s)"
    )
    parser.add_argument(
        "--peers",
        nargs="+",
        choices=OPTIONAL_PEERS,
        metavar="PEER",
        help=f"beside {OURS}: {', '.join(OPTIONAL_PEERS)} (default: all that are here)",
    )
    parser.add_argument(
        "--together",
        action="store_true",
        help="time the rules in turn with one another and with memory, and no peers",
    )
    parser.add_argument("--json", type=_output, metavar="PATH", help="write every round's times")
    parser.add_argument("--plot", type=_output, metavar="PATH", help="draw the times (a PNG)")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    options = parser.parse_args(argv)
    rules = _chosen_rules(options.rule)
    if "torch" in (options.peers or []) and find_spec("torch") is None:
        parser.error("--peers torch needs PyTorch: pip install torch")
    if options.together and (options.peers or options.json or options.plot):
        parser.error("--together has none of --peers, --json and --plot")
    if options.plot and find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install matplotlib")
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
        console.print(table(runs[-1]))
        measure_of = MEASURED_BY.get(rule)
        if measure_of in runs[-1].results:
            ratio = 1 / runs[-1].time_over_ours(measure_of)
            console.print(f"{OURS} takes {ratio:.2f} times {measure_of}")
    if options.json:
        write_json(options.json, runs, _environment())
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
    console.print(table_together(run))


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


def _environment() -> dict[str, str]:
    facts = dict(info.report().facts)
    if find_spec("torch") is not None:
        facts["torch"] = metadata.version("torch")
    return facts


def _model(text: str) -> Model:
    try:
        return model_named(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _rounds(text: str) -> int:
    # Of fewer there are no deciles.
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"must be a whole number of 2 or more, got {text}")
    return int(text)


def _output(text: str) -> Path:
    path = Path(text)
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.absolute().parent}")
    return path
