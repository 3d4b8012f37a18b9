"""Handwritten digits, learnt twice: with the stock AdamW and with the one of mlx_opt.

A small convolutional network is trained on the 1797 8x8 images that scikit-learn ships,
once with `mlx.optimizers.AdamW` and once with `mlx_opt.AdamW`, from the same initial weights
and over the same batches. The demo prints accuracy, optimizer time and memory side by side
and draws both loss curves and the step times. It takes about 80 seconds on two CPU cores.

    pip install 'mlx-opt[demo]'
    python examples/digits.py --out digits.png
"""

import argparse
import gc
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as stock
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mlx.utils import tree_flatten
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import mlx_opt as optim

BATCH_SIZE = 32
SPLIT_SEED = 0
TEST_SHARE = 0.2
WARMUP_STEPS = 10
MEMORY_STEPS = 10
SETTINGS = {"learning_rate": 1e-3, "weight_decay": 0.05}
OPTIMIZERS = {
    "mlx.optimizers.AdamW": lambda: stock.AdamW(**SETTINGS),
    "mlx_opt.AdamW": lambda: optim.AdamW(**SETTINGS),
}
STOCK_COLOR = "#8fb3d9"
OURS_COLOR = "#b3470f"


@dataclass(frozen=True)
class Digits:
    """Images of shape (N, 8, 8, 1) in [0, 1] with their labels of shape (N,)."""

    images: mx.array
    labels: mx.array


class DigitNet(nn.Module):
    """Two convolutions and two linear layers, 1.1 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, kernel_size=3, stride=2, padding=1)
        self.hidden = nn.Linear(4 * 4 * 32, 2048)
        self.logits = nn.Linear(2048, 10)

    def __call__(self, images: mx.array) -> mx.array:
        x = nn.relu(self.conv1(images))
        x = nn.relu(self.conv2(x))
        x = nn.relu(self.hidden(x.flatten(1)))
        return self.logits(x)


def load_split() -> tuple[Digits, Digits]:
    bunch = load_digits()
    images = (bunch.images / 16).astype(np.float32)[..., None]
    labels = bunch.target.astype(np.int32)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=TEST_SHARE, random_state=SPLIT_SEED, stratify=labels
    )
    train = Digits(mx.array(train_x), mx.array(train_y))
    test = Digits(mx.array(test_x), mx.array(test_y))
    mx.eval(train.images, train.labels, test.images, test.labels)
    return train, test


def batches(digits: Digits, epochs: int, seed: int) -> Iterator[Digits]:
    """Full batches only, in an order that depends on nothing but the seed."""
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(len(digits.labels))
        for start in range(0, len(order) - BATCH_SIZE + 1, BATCH_SIZE):
            picked = mx.array(order[start : start + BATCH_SIZE])
            yield Digits(digits.images[picked], digits.labels[picked])


def initial_model(seed: int) -> DigitNet:
    mx.random.seed(seed)
    model = DigitNet()
    mx.eval(model.parameters())
    return model


def parameter_count(model: nn.Module) -> int:
    return sum(array.size for _, array in tree_flatten(model.parameters()))


def cross_entropy(model: DigitNet, batch: Digits) -> mx.array:
    return nn.losses.cross_entropy(model(batch.images), batch.labels, reduction="mean")


def accuracy(model: DigitNet, digits: Digits) -> float:
    predicted = mx.argmax(model(digits.images), axis=1)
    return mx.mean(predicted == digits.labels).item()


class Training:
    """A model in training with one optimizer, and what was measured on the way."""

    def __init__(self, name: str, optimizer: stock.Optimizer, seed: int) -> None:
        self.name = name
        self.optimizer = optimizer
        self.model = initial_model(seed)
        self.loss_and_grad = nn.value_and_grad(self.model, cross_entropy)
        self.losses: list[float] = []
        self.step_ms: list[float] = []

    def step(self, batch: Digits) -> None:
        loss, grads = self.loss_and_grad(self.model, batch)
        mx.eval(loss, grads)
        start = time.perf_counter()
        self.optimizer.update(self.model, grads)
        mx.eval(self.model.parameters(), self.optimizer.state)
        self.step_ms.append((time.perf_counter() - start) * 1e3)
        self.losses.append(loss.item())


@dataclass(frozen=True)
class Result:
    name: str
    losses: np.ndarray
    step_ms: np.ndarray
    peak_mib: float
    accuracy: float

    @property
    def median_ms(self) -> float:
        return float(np.median(self.step_ms))


def forget_earlier_arrays() -> None:
    gc.collect()
    mx.clear_cache()
    mx.reset_peak_memory()


def peak_memory_mib(name: str, train: Digits, seed: int) -> float:
    """Peak of a short training that has the process to itself."""
    forget_earlier_arrays()
    training = Training(name, OPTIMIZERS[name](), seed)
    for batch in islice(batches(train, epochs=1, seed=seed), MEMORY_STEPS):
        training.step(batch)
    return mx.get_peak_memory() / 2**20


def train_in_turns(
    trainings: list[Training], train: Digits, epochs: int, seed: int, console: Console
) -> None:
    """Every batch goes to each training in turn, so that a busy machine slows all alike."""
    progress = Progress(
        TextColumn("{task.description:<20}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.2e}"),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
    )
    total = epochs * (len(train.labels) // BATCH_SIZE)
    bars = [progress.add_task(t.name, total=total, loss=float("nan")) for t in trainings]
    with progress:
        for batch in batches(train, epochs, seed):
            for training, bar in zip(trainings, bars, strict=True):
                training.step(batch)
                progress.update(bar, advance=1, loss=training.losses[-1])


def compare(epochs: int, seed: int, console: Console) -> list[Result]:
    train, test = load_split()
    peaks = [peak_memory_mib(name, train, seed) for name in OPTIMIZERS]
    forget_earlier_arrays()
    trainings = [Training(name, make(), seed) for name, make in OPTIMIZERS.items()]
    train_in_turns(trainings, train, epochs, seed, console)
    return [
        Result(
            training.name,
            np.array(training.losses),
            np.array(training.step_ms[WARMUP_STEPS:]),
            peak,
            accuracy(training.model, test),
        )
        for training, peak in zip(trainings, peaks, strict=True)
    ]


def largest_loss_difference(theirs: Result, ours: Result) -> float:
    return float(np.max(np.abs(theirs.losses - ours.losses)))


def table_row(run: Result) -> tuple[str, ...]:
    low, high = np.percentile(run.step_ms, [10, 90])
    return (
        run.name,
        f"{run.accuracy:.2%}",
        f"{run.median_ms:.2f}",
        f"{low:.2f} to {high:.2f}",
        f"{run.peak_mib:.1f}",
    )


def comparison_table(theirs: Result, ours: Result, parameters: int) -> Table:
    table = Table(
        title=f"AdamW on handwritten digits, {parameters:,} parameters, {mx.default_device()}",
        caption=(
            "Optimizer step: update() and the evaluation of parameters and state, with loss and "
            "gradients evaluated before the clock starts; both trainings take turns batch by "
            f"batch, and the first {WARMUP_STEPS} of {len(theirs.losses)} steps are left out. Peak "
            f"memory: all MLX arrays over {MEMORY_STEPS} steps of training, forward and backward "
            "pass included, each optimizer alone."
        ),
        caption_justify="left",
    )
    table.add_column("optimizer", no_wrap=True)
    table.add_column("test\naccuracy", justify="right")
    table.add_column("median step\n(ms)", justify="right")
    table.add_column("10 to 90 %\n(ms)", justify="right")
    table.add_column("peak memory\n(MiB)", justify="right")
    table.add_row(*table_row(theirs))
    table.add_row(*table_row(ours), end_section=True)
    table.add_row(
        "stock / mlx_opt",
        "",
        f"{theirs.median_ms / ours.median_ms:.2f}x",
        "",
        f"{theirs.peak_mib / ours.peak_mib:.2f}x",
        style="bold",
    )
    return table


def draw_losses(axes: Axes, theirs: Result, ours: Result) -> None:
    steps = np.arange(1, len(theirs.losses) + 1)
    axes.plot(steps, theirs.losses, color=STOCK_COLOR, linewidth=3, label=theirs.name)
    axes.plot(steps, ours.losses, "--", color=OURS_COLOR, linewidth=1.2, label=ours.name)
    axes.set_yscale("log")
    axes.set_xlim(1, steps[-1])
    axes.set_xlabel("training step")
    axes.set_ylabel("cross-entropy of the batch (nats)")
    axes.set_title(f"Loss: largest difference {largest_loss_difference(theirs, ours):.2g} nats")
    axes.legend(frameon=False)


def draw_step_times(axes: Axes, theirs: Result, ours: Result) -> None:
    limit = np.percentile(np.concatenate([theirs.step_ms, ours.step_ms]), 98) * 1.05
    bins = np.linspace(0, limit, 61)
    for run, color, line in ((theirs, STOCK_COLOR, "-"), (ours, OURS_COLOR, "--")):
        shown = np.minimum(run.step_ms, limit)
        label = f"{run.name}, median {run.median_ms:.2f} ms"
        axes.hist(shown, bins, color=color, alpha=0.35)
        axes.hist(shown, bins, color=color, histtype="step", linestyle=line)
        axes.axvline(run.median_ms, ymax=0.84, color=color, linestyle=line, label=label)
    axes.set_xlim(0, limit)
    axes.margins(y=0.25)
    axes.set_xlabel("optimizer step (ms; the last bin holds all longer ones)")
    axes.set_ylabel("number of steps")
    axes.set_title(f"Optimizer step: stock / mlx_opt = {theirs.median_ms / ours.median_ms:.2f}")
    axes.legend(frameon=False, loc="upper left")


def save_figure(path: Path, theirs: Result, ours: Result) -> None:
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_losses(left, theirs, ours)
    draw_step_times(right, theirs, ours)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(path, dpi=150)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("digits.png"), help="where the PNG goes")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the training images")
    parser.add_argument("--seed", type=int, default=0, help="initial weights and batch order")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    console = Console()
    theirs, ours = compare(arguments.epochs, arguments.seed, console)
    parameters = parameter_count(initial_model(arguments.seed))
    console.print(comparison_table(theirs, ours, parameters))
    console.print(f"largest loss difference: {largest_loss_difference(theirs, ours):.2g} nats")
    save_figure(arguments.out, theirs, ours)
    console.print(f"figure written to {arguments.out.resolve()}")


if __name__ == "__main__":
    main()
