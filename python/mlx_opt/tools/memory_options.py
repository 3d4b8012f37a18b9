"""The command line of ``memory``; it imports no MLX."""

from __future__ import annotations

import argparse
from typing import Any

AS_EVER = "promoted"
"""The state's dtypes without `state_dtype`."""

_DTYPES = ("float32", "float16", "bfloat16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--params", type=_count, required=True, metavar="N", help="their number, such as 1.2e9"
    )
    parser.add_argument(
        "--rule",
        nargs="+",
        default=["AdamW", "Lion", "SGD", "Adafactor", "Muon"],
        metavar="NAME",
        help="optimizers by the names of their classes; default: some",
    )
    parser.add_argument(
        "--dtype",
        nargs="+",
        default=["float32", "bfloat16"],
        choices=_DTYPES,
        metavar="DTYPE",
        help="of the parameters and gradients; default: float32 bfloat16",
    )
    parser.add_argument(
        "--state-dtype",
        nargs="+",
        default=[AS_EVER, "float32", "bfloat16"],
        type=_state_dtype,
        metavar="DTYPE",
        help=f"a dtype, {AS_EVER}, or slots with theirs, as m=bfloat16,v=float32; default: "
        f"{AS_EVER} float32 bfloat16",
    )
    parser.add_argument(
        "--accumulate", type=int, default=1, metavar="K", help="calls whose gradients are added up"
    )
    parser.set_defaults(usage_error=parser.error)


def _count(text: str) -> int:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 1 <= number < 1e18:
        raise argparse.ArgumentTypeError(f"expected a number of 1 or more, got {text}")
    return int(number)


def _state_dtype(text: str) -> Any:
    """A dtype's name, or a dict of these by the names of slots."""
    if "=" not in text:
        return text
    return {slot: dtype for slot, _, dtype in (each.partition("=") for each in text.split(","))}
