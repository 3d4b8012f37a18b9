"""What a training loses with a state in codes of 8 bits: the last held-out losses of several seeds.

    pip install 'mlx-opt[demo]'
    python -m mlx_opt.benchmarks.eight_bits [--seeds N] [--json PATH]

The task, the rates and the schedule are those of mlx_opt.benchmarks.convergence.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from . import convergence
from .convergence_tasks import text_task
from .environment import write_figures

RULES = "AdamW", "Lion"


def losses_of(rule: str, seeds: int) -> dict[str, list[float]]:
    """For each format of the state the last losses, one a seed."""
    task, plain = text_task(), convergence.CONTENDERS[rule]
    rate = json.loads(convergence.RATES.read_text())["rates"]["text"][rule]
    found: dict[str, list[float]] = {}
    for format in ("float32", "int8"):
        name = f"{rule}, {format}"
        make = partial(plain.make, state_dtype=format)
        convergence.CONTENDERS[name] = plain._replace(make=make)
        found[format] = [
            convergence.train(task, name, rate, seed).losses[-1] for seed in range(seeds)
        ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    losses: dict[str, Any] = {}
    for rule in RULES:
        losses[rule] = losses_of(rule, options.seeds)
        for format, own in losses[rule].items():
            print(f"{rule:6} {format:8} {mean(own):.4f} +- {stdev(own):.4f}", flush=True)
    if options.json:
        write_figures(options.json, seeds=options.seeds, losses=losses)


if __name__ == "__main__":
    main()
