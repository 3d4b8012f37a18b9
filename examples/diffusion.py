"""Diffusion in the plane: from noise to points around eight centres.

A network learns to predict the noise in a noisy point (J. Ho et al., arXiv:2006.11239). Its
parameters are float32 and its arithmetic is bfloat16; the optimizer is Adan, which mlx.optimizers
does not have.

    python examples/diffusion.py --steps 400
"""

import argparse
import math

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

import mlx_opt as optim

LEVELS, BATCH, WIDTH, REPORT = 40, 128, 64, 50
BETAS = mx.linspace(1e-3, 0.25, LEVELS)
KEPT = mx.cumprod(1 - BETAS)  # of the signal, after each level of noise
ANGLES = mx.arange(8) * (math.pi / 4)
CENTRES = 2 * mx.stack([mx.cos(ANGLES), mx.sin(ANGLES)], axis=1)


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Embedding(LEVELS, WIDTH)
        self.inner = nn.Linear(2, WIDTH)
        self.layers = [nn.Linear(WIDTH, WIDTH) for _ in range(2)]
        self.outer = nn.Linear(WIDTH, 2)

    def __call__(self, points: mx.array, level: mx.array) -> mx.array:
        x = self.inner(points) + self.level(level)
        for layer in self.layers:
            x = x + layer(nn.silu(x))
        return self.outer(nn.silu(x))


def real_points(count: int) -> mx.array:
    which = mx.random.randint(0, 8, (count,))
    return CENTRES[which] + 0.1 * mx.random.normal((count, 2))


def loss_of(parameters: dict, model: Denoiser) -> mx.array:
    """The error of the noise predicted with the parameters rounded to bfloat16."""
    model.update(tree_map(lambda array: array.astype(mx.bfloat16), parameters))
    level = mx.random.randint(0, LEVELS, (BATCH,))
    noise = mx.random.normal((BATCH, 2))
    kept = KEPT[level][:, None]
    noisy = kept.sqrt() * real_points(BATCH) + (1 - kept).sqrt() * noise
    predicted = model(noisy.astype(mx.bfloat16), level).astype(mx.float32)
    return nn.losses.mse_loss(predicted, noise)


def sample(model: Denoiser, count: int) -> mx.array:
    x = mx.random.normal((count, 2))
    for level in reversed(range(LEVELS)):
        beta, kept = BETAS[level], KEPT[level]
        noise = model(x, mx.full((count,), level))
        x = (x - beta / (1 - kept).sqrt() * noise) / (1 - beta).sqrt()
        if level > 0:
            x = x + beta.sqrt() * mx.random.normal((count, 2))
    return x


def distance(points: mx.array) -> float:
    """To the nearest centre, the mean."""
    return mx.linalg.norm(points[:, None] - CENTRES, axis=2).min(axis=1).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=400)
    steps = parser.parse_args().steps

    mx.random.seed(0)
    model = Denoiser()
    parameters = model.trainable_parameters()
    optimizer = optim.Adan(
        optim.cosine_decay(1e-2, steps),
        groups=[optim.Group("level.*", learning_rate_scale=0.5)],
    )
    print(f"distance of samples before: {distance(sample(model, 500)):.2f}")
    losses: list[float] = []
    for i in range(1, steps + 1):
        loss, gradients = mx.value_and_grad(loss_of)(parameters, model)
        parameters = optimizer.apply_gradients(
            gradients, parameters, max_norm=1.0, skip_nonfinite=True
        )
        mx.eval(loss, parameters, optimizer.state)
        losses.append(loss.item())
        if i % REPORT == 0:
            print(f"step {i:4}   loss {sum(losses[-REPORT:]) / REPORT:.3f}")
    model.update(parameters)
    print(f"distance of samples after: {distance(sample(model, 500)):.2f}")


if __name__ == "__main__":
    main()
