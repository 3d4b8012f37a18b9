"""Memory and time of steps: mlx.launch -n 2 -- python tests/distributed/measure.py [--layers 12].

Compares AdamW and Muon divided by Sharded with each process doing all of it after
`average_gradients`, with the optimizers of mlx.optimizers and of mlx_opt. The gradients are
evaluated and held by the program, as if a backward pass had just ended.
"""

import argparse
import re
import time

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as stock
from members import RANK, SIZE, WORLD
from mlx.utils import tree_flatten

import mlx_opt


def model_of(layers, width):
    """The matrices of a transformer, and an embedding."""
    shapes = {"embedding": (24 * width, width)}
    for i in range(layers):
        shapes |= {f"qkv{i}": (3 * width, width), f"out{i}": (width, width)}
        shapes |= {f"up{i}": (4 * width, width), f"down{i}": (width, 4 * width)}
        shapes |= {f"norm{i}": (width,)}
    model = nn.Module()
    for name, shape in shapes.items():
        model[name] = mx.random.normal(shape) * 0.02
    mx.eval(model.parameters())
    return model


def measured(make, averages, arguments, layers, width, steps):
    """The peak of a step in bytes a parameter beyond the first step, and its seconds."""
    mx.random.seed(0)
    model, optimizer = model_of(layers, width), make()
    size = sum(x.size for _, x in tree_flatten(model.parameters()))
    seconds = []
    for step in range(steps + 1):
        gradients = {name: mx.random.normal(x.shape) for name, x in model.parameters().items()}
        mx.eval(gradients)
        mx.eval(mx.distributed.all_sum(mx.array(1), group=WORLD))  # all begin together
        mx.synchronize()
        if step == 1:
            mx.clear_cache()
            mx.reset_peak_memory()
        begin = time.perf_counter()
        if averages:
            gradients = nn.average_gradients(gradients, WORLD)
        optimizer.update(model, gradients, **arguments)
        mx.eval(model.parameters(), optimizer.state)
        mx.synchronize()
        seconds.append(time.perf_counter() - begin)
    return mx.get_peak_memory() / size, sorted(seconds[1:])[steps // 2], size


def exchanges(layers, width, bucket_size, steps):
    """The seconds that the exchange of all gradients takes by itself, by each way of MLX's."""
    mx.random.seed(0)
    gradients = model_of(layers, width).parameters()
    flat = [x.flatten() for _, x in tree_flatten(gradients)]
    flat = [x[: x.size // SIZE * SIZE] for x in flat]
    mx.eval(flat)

    def scatter_and_gather():
        parts = [mx.distributed.sum_scatter(x, group=WORLD) for x in flat]
        return [mx.distributed.all_gather(x, group=WORLD) for x in parts]

    ways = {
        "average_gradients": lambda: nn.average_gradients(
            gradients, WORLD, all_reduce_size=bucket_size or 32 * 1024**2
        )
    }
    if mx.default_device().type == mx.gpu:  # neither the ring nor MPI has sum_scatter
        ways["sum_scatter and all_gather, a tensor at a time"] = scatter_and_gather
    for name, exchange in ways.items():
        seconds = []
        for _ in range(steps + 1):
            mx.eval(mx.distributed.all_sum(mx.array(1), group=WORLD))
            mx.synchronize()
            begin = time.perf_counter()
            mx.eval(exchange())
            mx.synchronize()
            seconds.append(time.perf_counter() - begin)
        yield name, sorted(seconds[1:])[steps // 2], sum(x.nbytes for x in flat)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--bucket-size", type=int)
    parser.add_argument("--only", default="", help="a pattern for the names of the rows")
    given = parser.parse_args()

    def sharded(optimizer):
        return mlx_opt.Sharded(optimizer, WORLD, bucket_size=given.bucket_size)

    on_gpu = mx.default_device().type == mx.gpu  # on the CPU products in bfloat16 are slow
    muon = {"fallback": mlx_opt.AdamW(1e-3), "ns_dtype": mx.bfloat16 if on_gpu else None}
    rows = [
        ("AdamW in one process", lambda: mlx_opt.AdamW(1e-3), False, {}),
        ("AdamW of mlx.optimizers, average_gradients", lambda: stock.AdamW(1e-3), True, {}),
        ("AdamW, average_gradients", lambda: mlx_opt.AdamW(1e-3), True, {}),
        ("AdamW, Sharded", lambda: sharded(mlx_opt.AdamW(1e-3)), False, {}),
        (
            "AdamW, Sharded, max_norm",
            lambda: sharded(mlx_opt.AdamW(1e-3)),
            False,
            {"max_norm": 1.0},
        ),
        ("Muon in one process", lambda: mlx_opt.Muon(1e-3, **muon), False, {}),
        ("Muon, average_gradients", lambda: mlx_opt.Muon(1e-3, **muon), True, {}),
        ("Muon, Sharded", lambda: sharded(mlx_opt.Muon(1e-3, **muon)), False, {}),
    ]
    for name, seconds, size in exchanges(given.layers, given.width, given.bucket_size, given.steps):
        if RANK == 0:
            print(
                f"{SIZE} members, the exchange of {size / 1e6:.0f} MB by {name}: "
                f"{1e3 * seconds:.1f} ms, {size / seconds / 1e9:.1f} GB/s",
                flush=True,
            )
    for name, make, averages, arguments in rows:
        if not re.search(given.only, name):
            continue
        peak, seconds, size = measured(
            make, averages, arguments, given.layers, given.width, given.steps
        )
        if RANK == 0:
            print(
                f"{SIZE} members, {size / 1e6:.0f} M parameters, {name}: "
                f"{peak:.2f} bytes a parameter, {1e3 * seconds:.1f} ms a step",
                flush=True,
            )


main()
