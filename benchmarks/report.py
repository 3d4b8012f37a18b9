"""Runs as a table, as JSON and as a plot."""

from __future__ import annotations

from dataclasses import asdict
from math import floor, log10
from pathlib import Path
from statistics import quantiles
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from .environment import write_figures
from .measure import Run
from .peers import ADAMW, LIMIT, OURS

COLORS = {OURS: "#b3470f", "mlx": "#8fb3d9", "compiled": "#3d6f9e", "torch": "#c9a227"}
HEADINGS = (
    "step",
    "ns/\nparam",
    "GB/s",
    "of\nlimit",
    "peak\nB/param",
    f"time/\n{OURS}",
    "10-90 %",
)
# Where there is no room for all columns.
DROPPED_FIRST = ("10-90 %", "GB/s", "peak\nB/param", "bytes/\nparam", "ns/\nparam")


def table(run: Run, console: Console) -> Table:
    rule, model, dtype = run.workload
    title = f"{rule}, {model.name}: {len(model.shapes)} tensors, {model.size:,} parameters of "
    rows = [_row(run, peer) for peer in run.results]
    return fitting(console, ["peer", *HEADINGS], rows, title + dtype, _caption(run))


def fitting(
    console: Console, headings: list[str], rows: list[list[str]], title: str, caption: str
) -> Table:
    """A table of as many columns as the console has room for."""
    columns = list(range(len(headings)))
    dropped = [headings.index(heading) for heading in DROPPED_FIRST if heading in headings]
    while True:
        table = Table(
            title=title,
            caption=caption,
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        for i in columns:
            table.add_column(headings[i], justify="right" if i else "left", no_wrap=True)
        for row in rows:
            table.add_row(*(row[i] for i in columns), style="dim" if row[0] == LIMIT else None)
        if _width_of(table, console) <= console.width or not dropped:
            return table
        columns.remove(dropped.pop(0))


SUMMARY = (
    "rule",
    "state,\nB/param",
    "moved,\nB/param",
    "of\nlimit",
    "time/\nadamw",
    "a byte/\nadamw",
    "torch",
    "published",
)


def summary(runs: list[Run], console: Console) -> Table:
    """Several rules in one table."""
    caption = (
        "state, moved: bytes. of limit: the time of the same bytes streamed, over mlx_opt's. "
        "time/adamw: over mlx_opt's AdamW in the same rounds; a byte: each over the bytes that it "
        f"moves. torch, published: their time over {OURS}'s. All are medians of the rounds."
    )
    return fitting(console, list(SUMMARY), [summary_row(run) for run in runs], "", caption)


def summary_row(run: Run) -> list[str]:
    """The cells of a rule, empty where its peer did not take part."""
    workload, size = run.workload, run.workload.model.size
    timed = run.results
    to_adamw = 1 / run.time_over_ours(ADAMW) if ADAMW in timed else None
    if workload.rule == "AdamW":
        to_adamw = 1.0
    bytes_to_adamw = workload.bytes_moved / workload._replace(rule="AdamW").bytes_moved
    return [
        workload.rule,
        f"{(workload.resident_bytes - 2 * workload.itemsize * size) / size:.0f}",
        f"{workload.bytes_moved / size:.0f}",
        f"{digits(100 * run.share_of_limit(OURS))}%",
        "" if to_adamw is None else f"{to_adamw:.2f}",
        "" if to_adamw is None else f"{to_adamw / bytes_to_adamw:.2f}",
        *(digits(run.time_over_ours(x)) if x in timed else "" for x in ("torch", "published")),
    ]


def _width_of(table: Table, console: Console) -> int:
    """The width that a table needs, however wide the console is."""
    return console.measure(table, options=console.options.update(max_width=1000)).maximum


def write_json(path: Path, runs: list[Run]) -> None:
    write_figures(path, runs=[_as_json(run) for run in runs])


def write_plot(path: Path, runs: list[Run]) -> None:
    """Draw bars of the time per parameter, with the limit as a line across each rule's bars."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.5 + 1.6 * len(runs), 4.2), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(COLORS)
    for i, (peer, color) in enumerate(COLORS.items()):
        places = [place for place, run in enumerate(runs) if peer in run.results]
        heights = [runs[place].nanoseconds_a_parameter(peer) for place in places]
        lefts = [place + (i - (len(COLORS) - 1) / 2) * width for place in places]
        if places:
            axes.bar(lefts, heights, width, color=color, label=peer)
    limits = [run.nanoseconds_a_parameter(LIMIT) for run in runs]
    starts = [place - 0.45 for place in range(len(runs))]
    axes.hlines(limits, starts, [start + 0.9 for start in starts], color="black", label=LIMIT)
    axes.set_xticks(range(len(runs)), [run.workload.rule for run in runs])
    _, model, dtype = runs[0].workload
    axes.set_title(f"Optimizer step, {model.name}, {dtype}")
    axes.set_ylabel("nanoseconds per parameter")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def _caption(run: Run) -> str:
    workload = run.workload
    a_parameter = workload.bytes_moved // workload.model.size
    lines = [f"{peer}: {result.about}" for peer, result in run.results.items()]
    lines.append(
        f"GB/s: the {a_parameter} bytes per parameter that {workload.rule} has to move, over the "
        f"step's time. Medians of {len(run.results[OURS].seconds)} rounds; 10-90 %: of the rounds."
    )
    if not run.in_turn:
        lines.append("Too large to be held at once: each peer ran alone, one after another.")
    return "\n".join(lines)


def _row(run: Run, peer: str) -> list[str]:
    peak = run.peak_bytes_a_parameter(peer)
    deciles = quantiles(run.ratios(peer, to=OURS), n=10, method="inclusive")
    return [
        peer,
        time_text(run.seconds(peer)),
        digits(run.nanoseconds_a_parameter(peer)),
        digits(run.gigabytes_a_second(peer)),
        f"{digits(100 * run.share_of_limit(peer))}%",
        "" if peak is None else digits(peak),
        digits(run.time_over_ours(peer)),
        "" if peer == OURS else f"{digits(deciles[0])}-{digits(deciles[-1])}",
    ]


def digits(value: float) -> str:
    """Three digits or more, with no exponent."""
    return f"{value:,.{max(0, 2 - floor(log10(value)))}f}"


def time_text(seconds: float) -> str:
    """With its unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{digits(seconds / size)} {unit}"
    return f"{digits(seconds * 1e6)} us"


def _as_json(run: Run) -> dict[str, Any]:
    workload = run.workload
    return {
        "rule": workload.rule,
        "model": workload.model.name,
        "tensors": len(workload.model.shapes),
        "parameters": workload.model.size,
        "dtype": workload.dtype,
        "bytes_moved": workload.bytes_moved,
        "in_turn": run.in_turn,
        "peers": [_peer_as_json(run, peer) for peer in run.results],
    }


def _peer_as_json(run: Run, peer: str) -> dict[str, Any]:
    return {
        **asdict(run.results[peer]),
        "ns_per_parameter": run.nanoseconds_a_parameter(peer),
        "gb_per_s": run.gigabytes_a_second(peer),
        "share_of_limit": run.share_of_limit(peer),
        "peak_bytes_per_parameter": run.peak_bytes_a_parameter(peer),
        f"time_over_{OURS}": run.time_over_ours(peer),
    }
