"""LoRA with mlx-lm's own trainer, on a small random Llama: nothing is downloaded.

The optimizer has LoRA+'s learning rate for B (S. Hayou et al., arXiv:2402.12354), clips by the
global norm and skips steps whose gradients are not finite. The texts count upwards from a random
number, so there is something to learn.

    pip install 'mlx-lm[train]'
    python examples/mlx_lm_lora.py --iters 60
"""

import argparse
import random
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mlx.core as mx

import mlx_opt as optim

WORDS, LENGTH = 97, 24
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": WORDS,
}


class Clipped(optim.AdamW):
    """mlx-lm's trainer calls update without these arguments."""

    def update(self, model: Any, gradients: Any) -> None:  # type: ignore[override]
        super().update(model, gradients, max_norm=1.0, skip_nonfinite=True)


class Counting:
    """A data set as mlx-lm takes it: lists of tokens, and where the answer begins."""

    def __init__(self, count: int) -> None:
        starts = [random.randrange(WORDS) for _ in range(count)]
        self.texts = [([(start + i) % WORDS for i in range(LENGTH)], 0) for start in starts]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, i: int) -> tuple[list[int], int]:
        return self.texts[i]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--iters", type=int, default=60)
    iterations = parser.parse_args().iters
    if find_spec("mlx_lm") is None:
        sys.exit("this example needs mlx-lm: pip install 'mlx-lm[train]'")

    from mlx_lm.models.llama import Model, ModelArgs
    from mlx_lm.tuner.trainer import TrainingArgs, TrainingCallback, train
    from mlx_lm.tuner.utils import linear_to_lora_layers

    losses: list[float] = []

    class Collect(TrainingCallback):
        def on_train_loss_report(self, train_info: dict) -> None:
            losses.append(train_info["train_loss"])

    random.seed(0)
    mx.random.seed(0)
    model = Model(ModelArgs.from_dict(LLAMA))
    model.freeze()
    linear_to_lora_layers(model, 2, {"rank": 8, "scale": 10.0, "dropout": 0.0})

    warm_up = optim.linear_schedule(0.0, 3e-3, 5)
    decay = optim.cosine_decay(3e-3, max(iterations - 5, 1))
    optimizer = Clipped(
        optim.join_schedules([warm_up, decay], [5]),
        bias_correction=True,
        weight_decay=0.0,
        groups=[optim.Group("*.lora_b", learning_rate_scale=16.0)],
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArgs(
            batch_size=4,
            iters=iterations,
            val_batches=0,
            steps_per_report=10,
            adapter_file=str(Path(folder) / "adapters.safetensors"),
            max_seq_length=64,
        )
        train(model, optimizer, Counting(200), None, arguments, training_callback=Collect())
    print(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} in the end")
    print(f"norm {optimizer.grad_norm.item():.2f}, {optimizer.skipped.item()} steps skipped")


if __name__ == "__main__":
    main()
