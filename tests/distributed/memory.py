"""How many bytes a step of Sharded needs at most."""

import mlx.core as mx
import mlx.nn as nn
from members import SIZE, WORLD
from mlx.utils import tree_flatten, tree_map

import mlx_opt

WIDTH = 128
BUCKET = 400_000


def peak_of_a_step(optimizer, **arguments):
    """The bytes a parameter of a step after the first, without three buckets."""
    model = nn.Module()
    model.embedding = mx.zeros((24 * WIDTH, WIDTH))  # a third of all
    model.matrices = [mx.zeros((WIDTH, 4 * WIDTH)) for _ in range(12)]
    model.norms = [mx.ones(WIDTH) for _ in range(2)]
    size = sum(x.size for _, x in tree_flatten(model.parameters()))
    for _ in range(2):
        gradients = tree_map(mx.ones_like, model.parameters())
        mx.eval(gradients, model.parameters())
        mx.synchronize()
        before = mx.get_active_memory() - held(optimizer.state, gradients, model.parameters())
        mx.reset_peak_memory()
        optimizer.update(model, gradients, **arguments)
        mx.eval(model.parameters(), optimizer.state)
        peak = mx.get_peak_memory()
    return (peak - before - 3 * BUCKET) / size


def held(*trees):
    return sum(x.nbytes for tree in trees for _, x in tree_flatten(tree))


def new_parameters_and_averages_never_stand_beside_the_old_ones():
    if mx.default_device().type == mx.gpu:
        return  # CUDA's threads may hold what a finished kernel has read for a moment longer
    for arguments, averages in (({}, 0.0), ({"max_norm": 1.0}, 4 / SIZE)):
        optimizer = mlx_opt.Sharded(mlx_opt.AdamW(1e-3), WORLD, bucket_size=BUCKET)
        peak = peak_of_a_step(optimizer, **arguments)
        expected = 8 + 8 / SIZE + averages
        assert peak < expected + 0.3, (arguments, peak, expected)


CASES = []
FOR_TWO_MEMBERS = [
    new_parameters_and_averages_never_stand_beside_the_old_ones,
]
