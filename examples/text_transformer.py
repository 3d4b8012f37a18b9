"""A small transformer that learns to write English, letter by letter.

The text is Python's own help on its language, so nothing is downloaded. The step is compiled as a
whole; it clips by the global norm, skips gradients that are not finite, and has a warm-up and no
weight decay on biases and norms.

    python examples/text_transformer.py --steps 150
"""

import argparse
import time
from functools import partial
from pydoc_data.topics import topics

import mlx.core as mx
import mlx.nn as nn

import mlx_opt as optim

CONTEXT, BATCH, WIDTH, LAYERS, HEADS = 32, 8, 48, 2, 4
PEAK_RATE, WARMUP, REPORT = 1e-2, 20, 25


class Writer(nn.Module):
    """Predicts each next letter."""

    def __init__(self, letters: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(letters, WIDTH)
        self.position = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.TransformerEncoder(LAYERS, WIDTH, HEADS, norm_first=True)
        self.head = nn.Linear(WIDTH, letters)

    def __call__(self, text: mx.array) -> mx.array:
        length = text.shape[1]
        x = self.embedding(text) + self.position(mx.arange(length))
        mask = nn.MultiHeadAttention.create_additive_causal_mask(length)
        return self.head(self.blocks(x, mask))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=150)
    steps = parser.parse_args().steps

    text = "\n".join(topics[topic] for topic in sorted(topics))
    letters = sorted(set(text))
    number = {letter: i for i, letter in enumerate(letters)}
    data = mx.array([number[letter] for letter in text])

    mx.random.seed(0)
    model = Writer(len(letters))
    warm_up = optim.linear_schedule(0.0, PEAK_RATE, WARMUP)
    decay = optim.cosine_decay(PEAK_RATE, max(steps - WARMUP, 1))
    optimizer = optim.AdamW(
        optim.join_schedules([warm_up, decay], [WARMUP]),
        betas=[0.9, 0.95],
        weight_decay=0.1,
        bias_correction=True,
        groups=[optim.no_decay()],
    )

    optimizer.telemetry = True

    def loss_of(model: Writer, batch: mx.array) -> mx.array:
        return nn.losses.cross_entropy(model(batch[:, :-1]), batch[:, 1:], reduction="mean")

    state = [model.state, optimizer.state, mx.random.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def step() -> mx.array:
        starts = mx.random.randint(0, data.size - CONTEXT, (BATCH, 1))
        batch = data[starts + mx.arange(CONTEXT + 1)]
        loss, gradients = nn.value_and_grad(model, loss_of)(model, batch)
        optimizer.update(model, gradients, max_norm=1.0, skip_nonfinite=True)
        return loss

    begin = time.perf_counter()
    losses: list[float] = []
    for i in range(1, steps + 1):
        loss = step()
        mx.eval(loss, state)
        losses.append(loss.item())
        if i % REPORT == 0:
            mean = sum(losses[-REPORT:]) / REPORT
            moved = optimizer.telemetry.ratio.item()
            norm = optimizer.grad_norm.item()
            print(f"step {i:4}   loss {mean:.3f}   norm {norm:.2f}   moved by {moved:.1%}")
    seconds = time.perf_counter() - begin
    letters_a_second = steps * BATCH * CONTEXT / seconds
    print(f"{letters_a_second:,.0f} letters a second, {optimizer.skipped.item()} steps skipped")


if __name__ == "__main__":
    main()
