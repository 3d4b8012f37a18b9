"""The options of ``python -m mlx_opt bench``. Needs no library, so that --help always works."""

from __future__ import annotations

import argparse
from pathlib import Path

from .workloads import ITEMSIZES, MODELS, RULES, Model, model_named

OURS = "mlx_opt"
# The peers that --peers can name, in the order of the report.
OPTIONAL_PEERS = ["mlx", "compiled", "torch", "adamw", "products"]
DESCRIPTION = """\
Time the steps of mlx_opt's optimizers beside those of mlx.optimizers and
PyTorch, and beside the time in which the same bytes can be streamed through
memory. All take turns on the same values."""
EPILOG = """\
Threads: as MLX_OPT_NUM_THREADS says, for PyTorch too. docs/benchmarks.md says
what is counted.

examples:
  python -m mlx_opt bench
  python -m mlx_opt bench --rule all --model gpt2 --json a.json --plot a.png
  python -m mlx_opt bench --together --rule AdamW --rule AdamW-clipped
  python -m mlx_opt bench --dtype bfloat16 --model 24*1024x1024,24*1024"""


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
