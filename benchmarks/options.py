"""The options of ``python -m mlx_opt bench``. Needs no library, so that --help always works."""

from __future__ import annotations

import argparse
from pathlib import Path

from .workloads import ITEMSIZES, MODELS, RULES, Model, model_named

OURS = "mlx_opt"
# The peers that --peers can name, in the order of the report.
OPTIONAL_PEERS = ["mlx", "compiled", "torch", "published", "adamw", "products"]
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


# Layers, width, hidden width, heads, key and value heads, vocabulary.
LLAMAS = {
    "1M": (4, 128, 384, 4, 2, 1000),
    "110M": (12, 768, 2048, 12, 12, 16000),
    "1.2B": (16, 2048, 8192, 32, 8, 128256),
}
KINDS = ("full", "LoRA")
TRAINING = """\
Train a Llama of random weights with mlx-lm's trainer, unmodified, with
mlx.optimizers ("stock") and with mlx_opt by turns: tokens a second and the
peak of memory. The first 20 steps of each run, in which MLX compiles, do not
count. Needs mlx-lm."""


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
        help="an optimizer, AdamW-clipped, or all but Muon: all; may be repeated (default: AdamW)",
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
    parser.add_argument(
        "--training",
        action="store_true",
        help="train a Llama with mlx-lm's trainer instead; bench --training --help has the options",
    )
    parser.add_argument(
        "--json", type=output_path, metavar="PATH", help="write every round's times"
    )
    parser.add_argument("--plot", type=output_path, metavar="PATH", help="draw the times (a PNG)")
    return parser


def build_training_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mlx_opt bench --training",
        usage="python -m mlx_opt bench --training [-h] [option ...]",
        description=TRAINING,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--size", choices=LLAMAS, default="1M", help="parameters (default: %(default)s)")
    kinds, types = list(KINDS), list(ITEMSIZES)
    add("--kind", nargs="+", choices=kinds, default=kinds, metavar="KIND", help="full, LoRA")
    add(
        "--dtype",
        nargs="+",
        choices=types,
        default=["float32", "bfloat16"],
        metavar="DTYPE",
        help=", ".join(types) + " (default: float32 bfloat16)",
    )
    add("--rule", nargs="+", default=["AdamW"], metavar="CLASS", help="default: AdamW")
    add("--batch", type=_count, default=2, help="sequences (default: %(default)s)")
    add("--length", type=_count, default=256, help="tokens of each (default: %(default)s)")
    add("--accumulate", type=_count, default=1, help="batches of a step (default: %(default)s)")
    add("--steps", type=_count, default=10, help="of each of 3 reports (default: %(default)s)")
    add("--rounds", type=_count, default=3, help="turns of each (default: %(default)s)")
    add("--json", type=output_path, metavar="PATH", help="write every report")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more, got {text}")
    return int(text)


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


def output_path(text: str) -> Path:
    path = Path(text)
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.absolute().parent}")
    return path
