"""The pictures of convergence.py: the held-out loss against steps and against seconds.

python -m mlx_opt.benchmarks.convergence_picture docs/figures/convergence.json docs/convergence.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figures", type=Path, metavar="JSON")
    parser.add_argument("picture", type=Path, metavar="PNG")
    options = parser.parse_args()
    draw(json.loads(options.figures.read_text())["tasks"]).savefig(options.picture, dpi=150)


def draw(tasks: dict[str, Any]) -> Figure:
    """A row for each task: means over the seeds, with the range of the seeds behind them."""
    figure = Figure(figsize=(11, 4.2 * len(tasks)), layout="constrained")
    rows = figure.subplots(len(tasks), 2, squeeze=False, sharey="row")
    for (by_step, by_time), task in zip(rows, tasks.values(), strict=True):
        for name in ranking(task):
            draw_rule(by_step, by_time, task, name)
        by_step.set(xlabel="steps", ylabel="held-out loss", yscale="log")
        by_time.set(xlabel="seconds of the steps")
        by_step.set_title(task["title"], loc="left", fontsize=11)
        by_time.legend(frameon=False, fontsize=8, loc="upper right")
        for axes in (by_step, by_time):
            axes.spines[["top", "right"]].set_visible(False)
    return figure


def ranking(task: dict[str, Any]) -> list[str]:
    """The rules, the lowest loss first."""
    ends = {name: mean(run[-1] for run in runs) for name, runs in task["losses"].items()}
    return sorted(ends, key=lambda name: ends[name])


def draw_rule(by_step: Axes, by_time: Axes, task: dict[str, Any], name: str) -> None:
    losses = list(zip(*task["losses"][name], strict=True))
    between = task["steps"] / (len(losses) - 1)
    steps = [between * k for k in range(len(losses))]
    seconds = task["step_seconds"][name]
    color = colormaps["tab20"](list(task["losses"]).index(name))
    style: dict[str, Any] = {"color": color, "linewidth": 1.4, "label": name}
    middle = [mean(each) for each in losses]
    by_step.plot(steps, middle, **style)
    by_time.plot([step * seconds for step in steps], middle, **style)
    low, high = [min(each) for each in losses], [max(each) for each in losses]
    by_step.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)


if __name__ == "__main__":
    main()
