"""The README's picture, from figures in the repository:

    python -m mlx_opt.benchmarks.picture docs/figures/adamw-gpt2.json docs/benchmark.png

The JSON has a panel for each quantity, with the machine, the date and the code of its figures, and
the limit: what no step can do without.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

LABELS = {
    "mlx_opt": "mlx_opt",
    "mlx": "mlx.optimizers",
    "compiled": "mlx.optimizers\nin mx.compile",
    "torch": "torch, fused",
}
# The lighter colour of a pair is for the second dtype.
OURS, OTHERS, NEUTRAL = ("#b3470f", "#e3a07c"), ("#3d6f9e", "#a9c5e0"), ("#666666", "#bbbbbb")
HEIGHT = 0.38


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figures", type=Path, metavar="JSON")
    parser.add_argument("picture", type=Path, metavar="PNG")
    options = parser.parse_args()
    draw(json.loads(options.figures.read_text())).savefig(options.picture, dpi=150)


def draw(figures: dict[str, Any]) -> Figure:
    panels = figures["panels"]
    figure = Figure(figsize=(5 * len(panels), 3.8), layout="constrained")
    figure.suptitle(figures["title"], fontsize=13)
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, panel in zip(all_axes, panels, strict=True):
        draw_panel(axes, panel)
    return figure


def draw_panel(axes: Axes, panel: dict[str, Any]) -> None:
    for i, values in enumerate(panel["values"].values()):
        for row, name in enumerate(LABELS):
            place = row + (i - 0.5) * HEIGHT
            if name not in values:
                axes.text(0, place, " not measured", va="center", color="gray", fontsize=8)
                continue
            color = (OURS if name == "mlx_opt" else OTHERS)[i]
            axes.barh(place, values[name], HEIGHT * 0.9, color=color)
            axes.text(values[name], place, f"  {values[name]:.3g}", va="center", fontsize=9)
            ends = [place - HEIGHT / 2, place + HEIGHT / 2]
            axes.plot([values["limit"]] * 2, ends, color="black", linewidth=1.6)
    axes.set_title(panel["title"], loc="left", fontsize=11)
    axes.set_xlim(0, axes.dataLim.xmax * 1.1)
    axes.set_yticks(range(len(LABELS)), list(LABELS.values()))
    axes.set_ylim(len(LABELS) - 0.5, -0.5)
    axes.spines[["top", "right"]].set_visible(False)
    [limit] = axes.plot([], [], color="black", linewidth=1.6, label=panel["limit"])
    dtypes = [Patch(color=NEUTRAL[i], label=dtype) for i, dtype in enumerate(panel["values"])]
    axes.legend(handles=[*dtypes, limit], loc="lower right", frameon=False, fontsize=8)


if __name__ == "__main__":
    main()
