"""The twin of digits.cpp: the same network, data, batches and optimizer, in Python.

python digits.py DATA [--epochs N] [--load FOLDER] [--save FOLDER]
"""

import argparse
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

import mlx_opt as optim

SIZES = [64, 128, 10]
TRAINING_IMAGES = 1500
BATCH_SIZE = 50
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.05
MAX_NORM = 1.0


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(a, b) for a, b in zip(SIZES, SIZES[1:], strict=False)]
        for i, layer in enumerate(self.layers):
            outputs, inputs = layer.weight.shape
            limit = inputs**-0.5
            layer.weight = mx.random.uniform(
                -limit, limit, layer.weight.shape, key=mx.random.key(i)
            )
            layer.bias = mx.zeros(outputs)

    def __call__(self, x: mx.array) -> mx.array:
        return self.layers[1](nn.relu(self.layers[0](x)))


def cross_entropy(model: Network, images: mx.array, labels: mx.array) -> mx.array:
    logits = model(images)
    of_label = mx.take_along_axis(logits, labels[:, None], axis=1).squeeze(1)
    return mx.mean(mx.logsumexp(logits, axis=1) - of_label)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--load", type=Path, help="go on from the checkpoint in this folder")
    parser.add_argument("--save", type=Path, help="leave a checkpoint in this folder")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    data = mx.load(arguments.data)
    images, labels = data["images"][:TRAINING_IMAGES], data["labels"][:TRAINING_IMAGES]
    test_images, test_labels = data["images"][TRAINING_IMAGES:], data["labels"][TRAINING_IMAGES:]

    model = Network()
    optimizer = optim.AdamW(LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    optimizer.init(model.trainable_parameters())
    if arguments.load:
        model.load_weights(str(arguments.load / "parameters.safetensors"))
        state = mx.load(str(arguments.load / "optimizer.safetensors"))
        optimizer.state = tree_unflatten(list(state.items()))
    loss_and_grad = nn.value_and_grad(model, cross_entropy)

    batches = TRAINING_IMAGES // BATCH_SIZE
    for epoch in range(optimizer.step.item() // batches, arguments.epochs):
        order = mx.random.permutation(TRAINING_IMAGES, key=mx.random.key(100 + epoch))
        total = 0.0
        for batch in range(batches):
            picked = order[batch * BATCH_SIZE : (batch + 1) * BATCH_SIZE]
            loss, gradients = loss_and_grad(model, images[picked], labels[picked])
            mx.eval(loss, gradients)
            optimizer.update(model, gradients, max_norm=MAX_NORM, skip_nonfinite=True)
            del gradients
            mx.eval(model.parameters(), optimizer.state)
            total += loss.item()
        right = mx.mean(mx.argmax(model(test_images), axis=1) == test_labels).item()
        print(f"epoch {epoch + 1:3d} loss {total / batches:.6f} test accuracy {right:.4f}")

    if arguments.save:
        arguments.save.mkdir(parents=True, exist_ok=True)
        model.save_weights(str(arguments.save / "parameters.safetensors"))
        state = dict(tree_flatten(optimizer.state))
        mx.save_safetensors(str(arguments.save / "optimizer.safetensors"), state)


if __name__ == "__main__":
    main()
