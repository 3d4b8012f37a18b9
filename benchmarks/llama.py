"""A Llama of random weights, trained by mlx-lm's own trainer, as `mlx_lm.lora` does."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.llama import Model, ModelArgs
from mlx_lm.tuner.trainer import TrainingArgs, train
from mlx_lm.tuner.utils import linear_to_lora_layers

LORA = {"rank": 8, "scale": 20.0, "dropout": 0.0}


class Text:
    """Sequences in which a token mostly tells the next one, so that there is something to learn."""

    def __init__(self, vocabulary: int, sequences: int, length: int) -> None:
        generator = np.random.default_rng(0)
        rows = np.empty((sequences, length), int)
        rows[:, 0] = generator.integers(1, vocabulary, sequences)
        for i in range(1, length):
            rows[:, i] = (5 * rows[:, i - 1] + generator.integers(0, 4, sequences)) % vocabulary
        self.length = length
        self.rows = [(row.tolist(), 0) for row in rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[list[int], int]:
        return self.rows[i]


class Reports:
    """A callback of the trainer that passes on what it reports of the training."""

    def __init__(self, take: Callable[[dict[str, Any]], None]) -> None:
        self.on_train_loss_report = take

    def on_val_loss_report(self, report: dict[str, Any]) -> None:
        pass


def llama(
    layers: int, width: int, hidden: int, heads: int, kv_heads: int, vocabulary: int
) -> ModelArgs:
    return ModelArgs(
        model_type="llama",
        hidden_size=width,
        num_hidden_layers=layers,
        intermediate_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        rms_norm_eps=1e-5,
        vocab_size=vocabulary,
    )


def make_model(arguments: ModelArgs, kind: str, dtype: mx.Dtype = mx.float32) -> nn.Module:
    """The same weights each time. `kind`: "full", or "LoRA" with all layers adapted."""
    mx.random.seed(0)
    model = Model(arguments)
    model.set_dtype(dtype)
    mx.eval(model.parameters())
    if kind == "LoRA":
        model.freeze()
        linear_to_lora_layers(model, arguments.num_hidden_layers, LORA)
    mx.eval(model.parameters())
    return model


def train_quietly(
    model: nn.Module,
    optimizer: Any,
    text: Text,
    take_report: Callable[[dict[str, Any]], None],
    batch: int,
    steps: int,
    report_every: int = 1,
    accumulate: int = 1,
) -> None:
    """Train with mlx-lm's trainer, which prints nothing and saves to nowhere."""
    np.random.seed(0)  # the order of the batches
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        arguments = TrainingArgs(
            batch_size=batch,
            iters=steps,
            steps_per_report=report_every,
            steps_per_save=10**9,
            max_seq_length=text.length,
            adapter_file=f"{folder}/adapters.safetensors",
            grad_accumulation_steps=accumulate,
        )
        train(model, optimizer, text, args=arguments, training_callback=Reports(take_report))
