"""The README's picture, from what ``bench --json`` wrote: time and memory of a step by dtype.

python -m mlx_opt.benchmarks.picture docs/figures/*.json --out docs/benchmark.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from .options import OURS
from .workloads import ITEMSIZES, RULES

LABELS = {
    OURS: "mlx_opt",
    "mlx": "mlx.optimizers",
    "compiled": "mlx.optimizers\nin mx.compile",
    "torch": "torch, fused",
}
# The lighter colour of a peer is for the smaller dtype.
COLORS = {True: ("#b3470f", "#e3a07c"), False: ("#3d6f9e", "#a9c5e0")}
HEIGHT = 0.38


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="JSON")
    parser.add_argument("--out", type=Path, required=True, metavar="PNG")
    options = parser.parse_args()
    reports = [json.loads(path.read_text()) for path in options.files]
    runs = [run for report in reports for run in report["runs"]]
    draw(runs).savefig(options.out, dpi=150)


def draw(runs: list[dict[str, Any]]) -> Figure:
    """Draw the runs of one rule and model, one for each dtype."""
    runs = sorted(runs, key=lambda run: -ITEMSIZES[run["dtype"]])
    rule, model, parameters = runs[0]["rule"], runs[0]["model"], runs[0]["parameters"]
    arrays = RULES[rule].slots + 2
    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    time, memory = figure.subplots(1, 2, sharey=True)
    scale = parameters * 1e-6  # milliseconds of a nanosecond a parameter
    _bars(
        time,
        runs,
        lambda peer: peer["ns_per_parameter"] * scale,
        [_peer(run, "limit")["ns_per_parameter"] * scale for run in runs],
        "limit: the same bytes streamed through memory",
    )
    time.set_title("Time of a step, milliseconds", loc="left")
    _bars(
        memory,
        runs,
        lambda peer: peer["peak_bytes_per_parameter"],
        [arrays * ITEMSIZES[run["dtype"]] for run in runs],
        f"limit: parameter, gradient and {RULES[rule].slots} moments",
    )
    memory.set_title("Peak memory, bytes a parameter", loc="left")
    figure.suptitle(f"{rule} on the {parameters / 1e6:.1f} M parameters of {model}", fontsize=13)
    return figure


def _bars(
    axes: Axes,
    runs: list[dict[str, Any]],
    value_of: Callable[[dict[str, Any]], float | None],
    limits: list[float],
    limit_text: str,
) -> None:
    widest = 0.0
    for i, run in enumerate(runs):
        for row, name in enumerate(LABELS):
            peer = _peer(run, name)
            value = None if peer is None else value_of(peer)
            place = row + (i - (len(runs) - 1) / 2) * HEIGHT
            if value is None:
                axes.text(0, place, " not measured", va="center", color="gray", fontsize=8)
                continue
            axes.barh(place, value, HEIGHT * 0.92, color=COLORS[name == OURS][i])
            axes.text(value, place, f" {value:.3g}", va="center", fontsize=9)
            axes.plot([limits[i]] * 2, [place - HEIGHT / 2, place + HEIGHT / 2], "k-", lw=1.5)
            widest = max(widest, value)
    axes.set_xlim(0, widest * 1.12)
    axes.set_yticks(range(len(LABELS)), list(LABELS.values()))
    axes.set_ylim(len(LABELS) - 0.5, -0.5)
    axes.spines[["top", "right"]].set_visible(False)
    handles: list[Any] = [
        Patch(color=color, label=run["dtype"])
        for run, color in zip(runs, ("#555555", "#bbbbbb"), strict=True)
    ]
    [line] = axes.plot([], [], "k-", lw=1.5, label=limit_text)
    axes.legend(handles=[*handles, line], loc="lower right", frameon=False, fontsize=8)


def _peer(run: dict[str, Any], name: str) -> Any:
    return next((peer for peer in run["peers"] if peer["peer"] == name), None)


if __name__ == "__main__":
    main()
