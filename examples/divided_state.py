"""Two processes, or more, each with a part of the optimizer's state.

A network learns the sign of a product. Each process has the model, its own batches and 1/N of
AdamW's state; the state is saved in the middle, and may be loaded by any number of processes.

    python examples/divided_state.py
    mlx.launch -n 2 -- python examples/divided_state.py --folder state
    mlx.launch -n 3 -- python examples/divided_state.py --folder state
"""

import argparse
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

import mlx_opt as optim

BATCH, WIDTH, REPORT = 128, 256, 10


def loss_of(model: nn.Module, x: mx.array) -> mx.array:
    target = (x[:, :1] * x[:, 1:] > 0).astype(mx.float32)
    return nn.losses.binary_cross_entropy(model(x), target, with_logits=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--folder", type=Path, help="where the state and the model are kept")
    given = parser.parse_args()

    world = mx.distributed.init()
    mx.random.seed(0)  # the same parameters everywhere
    model = nn.Sequential(
        nn.Linear(2, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1)
    )
    optimizer = optim.Sharded(optim.AdamW(1e-3), world)
    if given.folder is not None and (given.folder / "index.json").exists():
        model.load_weights(str(given.folder / "model.npz"))
        optimizer.load_state(given.folder, model)
    loss_and_gradients = nn.value_and_grad(model, loss_of)

    mx.random.seed(1 + world.rank())  # other data on each
    for number in range(1, given.steps + 1):
        loss, gradients = loss_and_gradients(model, mx.random.normal((BATCH, 2)))
        optimizer.update(model, gradients, max_norm=1.0)
        mx.eval(loss, model.parameters(), optimizer.state)
        if number % REPORT == 0 and world.rank() == 0:
            print(f"step {optimizer.step.item()}: loss {loss.item():.3f}", flush=True)

    slots = [x.nbytes for path, x in tree_flatten(optimizer.state) if path.endswith((".m", ".v"))]
    print(f"process {world.rank()} of {world.size()} keeps {sum(slots)} bytes of state")
    if given.folder is not None:
        optimizer.save_state(given.folder)
        if world.rank() == 0:
            model.save_weights(str(given.folder / "model.npz"))


if __name__ == "__main__":
    main()
