"""Training for quantization: weights that lose little when they are rounded to a few bits.

The forward pass uses the weights as `mx.quantize` will store them; the gradient passes through the
rounding as if it were not there, to the float32 weights, which the optimizer updates. In the end
both models, trained with and without, are quantized by `nn.quantize`.

    python examples/quantized_training.py --bits 2
"""

import argparse

import mlx.core as mx
import mlx.nn as nn

import mlx_opt as optim

WIDTH, BATCH, GROUP_SIZE, LAST = 128, 64, 64, 50


class FakeQuantizedLinear(nn.Linear):
    """Computes with rounded weights and keeps its own."""

    bits = 4

    def __call__(self, x: mx.array) -> mx.array:
        settings = {"group_size": GROUP_SIZE, "bits": self.bits}
        rounded = mx.dequantize(*mx.quantize(self.weight, **settings), **settings)
        weight = self.weight + mx.stop_gradient(rounded - self.weight)
        return x @ weight.T + self.bias


def network(linear: type[nn.Linear]) -> nn.Module:
    mx.random.seed(0)
    sizes = [(GROUP_SIZE, WIDTH), (WIDTH, WIDTH), (WIDTH, 8)]
    layers: list = [linear(*size) for size in sizes]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


def targets(x: mx.array) -> mx.array:
    """What is to be learnt."""
    return mx.tanh(x[:, :8] + x[:, 8:16] - x[:, 16:24])


def loss_of(model: nn.Module, x: mx.array) -> mx.array:
    return nn.losses.mse_loss(model(x), targets(x))


def train(model: nn.Module, steps: int) -> float:
    """Train a model and return the mean of the last losses."""
    optimizer = optim.AdamW(
        optim.cosine_decay(3e-3, steps),
        weight_decay=0.01,
        bias_correction=True,
        groups=[optim.no_decay()],
    )
    loss_and_gradients = nn.value_and_grad(model, loss_of)
    losses: list[float] = []
    for _ in range(steps):
        loss, gradients = loss_and_gradients(model, mx.random.normal((BATCH, GROUP_SIZE)))
        mx.eval(loss, gradients)
        optimizer.update(model, gradients, max_norm=1.0, skip_nonfinite=True)
        del gradients
        mx.eval(model.parameters(), optimizer.state)
        losses.append(loss.item())
    return sum(losses[-LAST:]) / LAST


def quantized_loss(model: nn.Module, bits: int) -> float:
    quantized = network(nn.Linear)
    quantized.update(model.parameters())
    nn.quantize(quantized, group_size=GROUP_SIZE, bits=bits)
    mx.random.seed(1)
    return loss_of(quantized, mx.random.normal((2048, GROUP_SIZE))).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bits", type=int, default=2, choices=[2, 3, 4])
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    FakeQuantizedLinear.bits = arguments.bits

    for name, linear in (("as usual", nn.Linear), ("with rounding", FakeQuantizedLinear)):
        model = network(linear)
        last = train(model, arguments.steps)
        rounded = quantized_loss(model, arguments.bits)
        print(f"trained {name}: loss {last:.3f}, with {arguments.bits} bits {rounded:.3f}")


if __name__ == "__main__":
    main()
