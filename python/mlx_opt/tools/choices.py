"""The command ``memory``: what rules and dtypes would hold, beside each other."""

from __future__ import annotations

import argparse
import inspect
import json
from typing import Any

import mlx.core as mx

from .. import optimizers
from ..descriptions import STORAGE
from .memory import Memory, print_table, text_of
from .memory_options import AS_EVER

SIDE = 4096
"""Parameters are counted as square matrices of this size."""


def main(options: argparse.Namespace) -> int:
    try:
        found = _choices(options)
    except (TypeError, ValueError) as error:
        options.usage_error(str(error))
    if options.json:
        rows = [{**labels, **memory} for labels, memory in found]
        print(json.dumps({"schema": 1, "params": options.params, "choices": rows}, indent=2))
        return 0
    print_table(
        f"{options.params:,} parameters, as matrices of {SIDE} x {SIDE}; between steps, and at a "
        "step's peak",
        ["rule", "dtype", "state dtype", "state", "between", "peak", "B/param"],
        [
            [
                labels["rule"],
                labels["dtype"],
                _text(labels["state_dtype"]),
                text_of(sum(memory["state"].values())),
                text_of(memory["between_steps"]),
                text_of(memory["step_peak"]),
                f"{memory['step_peak'] / options.params:.2f}",
            ]
            for labels, memory in found
        ],
        "memory needs rich: pip install 'mlx-opt[bench]', or --json",
    )
    return 0


def _text(state_dtype: Any) -> str:
    if isinstance(state_dtype, str):
        return state_dtype
    return ",".join(f"{slot}={dtype}" for slot, dtype in state_dtype.items())


def _choices(options: argparse.Namespace) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The choices, with what each holds; without those that equal one before them."""
    found: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for rule in options.rule:
        for dtype in options.dtype:
            known: list[dict[str, Any]] = []
            for state_dtype in options.state_dtype:
                memory = _memory(rule, dtype, state_dtype, options)
                if memory not in known:
                    known.append(memory)
                    labels = {"rule": rule, "dtype": dtype, "state_dtype": state_dtype}
                    found.append((labels, memory))
    return found


def _memory(rule: str, dtype: str, state_dtype: Any, options: argparse.Namespace) -> dict[str, Any]:
    cls = getattr(optimizers, rule, None) if rule in optimizers.__all__ else None
    if cls is None or "state_dtype" not in inspect.signature(cls).parameters:
        raise ValueError(f"there is no rule {rule}")
    given = None if state_dtype == AS_EVER else state_dtype
    optimizer = cls(learning_rate=0.1, state_dtype=given, accumulate=options.accumulate)
    parameters = {"w": mx.zeros((SIDE, SIDE), STORAGE[dtype])}  # nothing evaluates it
    scale = options.params / SIDE**2
    memory: Memory = optimizer.memory(parameters, show=False)
    scaled = {name: _scaled(size, scale) for name, size in memory._asdict().items()}
    for name in ("between_steps", "step_peak"):
        scaled[name] = _scaled(getattr(memory, name), scale)
    return scaled


def _scaled(size: Any, scale: float) -> Any:
    if isinstance(size, dict):
        return {slot: _scaled(each, scale) for slot, each in size.items() if slot}
    return round(size * scale)
