"""Checkpoints of divided states. One that another number of members has left is taken up."""

import shutil
import sys
from pathlib import Path

import mlx.core as mx
from members import RANK, SIZE, WORLD, distance, gradients, normal, raised
from mlx.utils import tree_flatten

import mlx_opt
from mlx_opt.sharding import checkpoint

FOLDER = Path(sys.argv[1])


def parameters():
    layers = [{"weight": normal([1, i], (5, 3)), "bias": normal([2, i], (3,))} for i in range(3)]
    return {"layers": layers, "embedding": normal(3, (9, 4)), "scale": normal(4, ())}


def optimizer():
    made = [
        mlx_opt.Muon(1e-2, fallback=mlx_opt.AdamW(1e-2)),
        mlx_opt.Adafactor(1e-2, beta_1=0.9),
        mlx_opt.Lion(1e-2),
    ]
    return mlx_opt.MultiOptimizer(
        made, [lambda path, _: "layers" in path, lambda path, _: path == "embedding"]
    )


def trained(optimizer, w, first, steps):
    """Steps whose gradients are the same on all members, and for any number of them."""
    for step in range(first, first + steps):
        w = optimizer.apply_gradients(gradients(w, step, 0), w, max_norm=1.0)
        mx.eval(w, optimizer.state)
    return w


def barrier():
    mx.eval(mx.distributed.all_sum(mx.array(1), group=WORLD))


def training_goes_on_with_another_number_of_members():
    folder = FOLDER / "left"
    divided = mlx_opt.Sharded(optimizer(), WORLD, bucket_size=100)
    begun = 0
    w = parameters()
    if folder.exists():
        divided.load_state(folder, w)
        begun = divided.step.item()
        w = trained(optimizer(), w, 0, begun)
    w = trained(divided, w, begun, 2)
    expected = trained(optimizer(), parameters(), 0, begun + 2)
    assert distance(w, expected) < 1e-5, (begun, distance(w, expected))
    divided.save_state(folder)
    files = sorted(path.name for path in folder.iterdir())
    assert len(files) == SIZE + 1 and files[-1] == "index.json", files


def a_damaged_checkpoint_changes_nothing():
    divided = mlx_opt.Sharded(optimizer(), WORLD)
    trained(divided, parameters(), 0, 1)
    folder = FOLDER / f"damaged-{SIZE}"
    if RANK == 0:
        shutil.copytree(FOLDER / "left", folder)
        path = next(folder.glob("*-1-of-*"))
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    barrier()
    before = dict(tree_flatten(divided.state))
    error = ValueError if RANK == 1 else RuntimeError
    message = raised(error, lambda: divided.load_state(folder, parameters()))
    assert "-1-of-" in message and ": damaged: " in message, message
    after = dict(tree_flatten(divided.state))
    assert after.keys() == before.keys() and all(after[path] is before[path] for path in after)
    trained(divided, parameters(), 1, 1)


def a_write_that_fails_leaves_the_checkpoint_that_was_there():
    divided = mlx_opt.Sharded(optimizer(), WORLD)
    folder = FOLDER / "left"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    trained(divided, parameters(), 0, 1)
    stock = mx.save_safetensors

    def fails(*arguments):
        raise OSError("no space left")

    checkpoint.mx.save_safetensors = fails if RANK == SIZE - 1 else stock
    try:
        error = OSError if RANK == SIZE - 1 else RuntimeError
        message = raised(error, lambda: divided.save_state(folder))
    finally:
        checkpoint.mx.save_safetensors = stock
    assert message.endswith("no space left"), message
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert before.items() <= after.items()
    divided.load_state(folder, parameters())
    barrier()
    divided.save_state(folder)
    assert len(list(folder.iterdir())) == SIZE + 1


CASES = [
    training_goes_on_with_another_number_of_members,
]
FOR_TWO_MEMBERS = [
    a_damaged_checkpoint_changes_nothing,
    a_write_that_fails_leaves_the_checkpoint_that_was_there,
]
