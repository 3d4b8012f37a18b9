"""The table of several rules in Markdown, from what ``bench --rule all --json`` wrote.

python -m mlx_opt.benchmarks.rules_table rules.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from .measure import Result, Run
from .report import SUMMARY, summary_row
from .workloads import Workload, model_named


def runs_of(path: Path) -> list[Run]:
    """The runs of a file."""
    runs = []
    for run in json.loads(path.read_text())["runs"]:
        workload = Workload(run["rule"], model_named(run["model"]), run["dtype"])
        results = {
            peer["peer"]: Result(peer["peer"], peer["about"], peer["seconds"])
            for peer in run["peers"]
        }
        runs.append(Run(workload, results, run["in_turn"]))
    return runs


def markdown(runs: list[Run]) -> str:
    """A row for each rule."""
    headings = [heading.replace("\n", " ") for heading in SUMMARY]
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *map(summary_row, runs)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    print(markdown(runs_of(Path(sys.argv[1]))), end="")
