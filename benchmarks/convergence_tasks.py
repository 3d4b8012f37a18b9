"""Two small things to learn, of data that are there without a download."""

from __future__ import annotations

from collections.abc import Callable
from pydoc_data.topics import topics
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

Batch = tuple[mx.array, mx.array]


class Task(NamedTuple):
    """A model, its training data and what it is judged by."""

    title: str
    steps: int
    make_model: Callable[[], nn.Module]
    make_batch: Callable[[np.random.Generator], Batch]
    """Draws a batch of the training data."""

    held_out: Batch


def loss_of(model: nn.Module, inputs: mx.array, labels: mx.array) -> mx.array:
    """The mean cross entropy, in nats."""
    return nn.losses.cross_entropy(model(inputs), labels, reduction="mean")


class Writer(nn.Module):
    """A transformer that predicts each next letter."""

    def __init__(self, letters: int, context: int) -> None:
        super().__init__()
        width, layers, heads = 64, 2, 4
        self.embedding = nn.Embedding(letters, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.TransformerEncoder(layers, width, heads, norm_first=True)
        self.head = nn.Linear(width, letters)
        self._places = mx.arange(context)
        self._mask = nn.MultiHeadAttention.create_additive_causal_mask(context)

    def __call__(self, text: mx.array) -> mx.array:
        return self.head(
            self.blocks(self.embedding(text) + self.position(self._places), self._mask)
        )


def text_task() -> Task:
    """The letters of Python's own help; its last tenth is held out."""
    context, batch = 32, 8
    text = "\n".join(topics[topic] for topic in sorted(topics))
    letters = sorted(set(text))
    numbers = np.array([letters.index(letter) for letter in text], np.int32)
    end = len(numbers) * 9 // 10

    def rows(starts: np.ndarray) -> Batch:
        picked = numbers[starts[:, None] + np.arange(context + 1)]
        return mx.array(picked[:, :-1]), mx.array(picked[:, 1:])

    return Task(
        "a transformer, letters of English",
        300,
        lambda: Writer(len(letters), context),
        lambda random: rows(random.integers(0, end - context, batch)),
        rows(np.linspace(end, len(numbers) - context - 1, 64).astype(int)),
    )


class DigitNet(nn.Module):
    """Two convolutions and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, kernel_size=3, stride=2, padding=1)
        self.hidden = nn.Linear(4 * 4 * 32, 128)
        self.norm = nn.LayerNorm(128)
        self.logits = nn.Linear(128, 10)

    def __call__(self, images: mx.array) -> mx.array:
        x = nn.relu(self.conv1(images))
        x = nn.relu(self.conv2(x))
        return self.logits(self.norm(nn.relu(self.hidden(x.flatten(1)))))


def digits_task() -> Task:
    """scikit-learn's 1797 handwritten digits of 8x8; every fifth is held out."""
    from sklearn.datasets import load_digits  # only this task needs it

    batch = 32
    bunch = load_digits()
    images = (bunch.images / 16).astype(np.float32)[..., None]
    labels = bunch.target.astype(np.int32)
    held_out = np.arange(len(labels)) % 5 == 0
    known = np.flatnonzero(~held_out)

    def rows(picked: np.ndarray) -> Batch:
        return mx.array(images[picked]), mx.array(labels[picked])

    return Task(
        "a convolutional net, handwritten digits",
        200,
        DigitNet,
        lambda random: rows(random.choice(known, batch, replace=False)),
        rows(np.flatnonzero(held_out)),
    )


TASKS: dict[str, Callable[[], Task]] = {"text": text_task, "digits": digits_task}
