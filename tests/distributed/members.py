"""What the programs of the tests of several processes share."""

import sys
import traceback

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map, tree_map_with_path

import mlx_opt

mlx_opt.set_num_threads(1)  # the members share the machine
WORLD = mx.distributed.init()
RANK, SIZE = WORLD.rank(), WORLD.size()


def normal(seed, shape):
    return mx.array(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def gradients(parameters, step, member):
    """The gradients of one member, which every process can compute."""
    paths = sorted(path for path, _ in tree_flatten(parameters))
    seeds = {path: [step, member, i] for i, path in enumerate(paths)}
    return tree_map_with_path(
        lambda path, p: normal(seeds[path or ""], p.shape).astype(p.dtype), parameters
    )


def average(trees):
    return tree_map(lambda *x: sum(x) / len(x), *trees)


def averages(parameters, step):
    return average([gradients(parameters, step, member) for member in range(SIZE)])


def distance(a, b):
    """The greatest difference of two trees, relative to the size of the elements."""
    a, b = dict(tree_flatten(a)), dict(tree_flatten(b))
    assert a.keys() == b.keys(), (sorted(a), sorted(b))
    worst = 0.0
    for path, x in a.items():
        y = b[path]
        assert (x.shape, x.dtype) == (y.shape, y.dtype), (path, x.shape, y.shape, x.dtype, y.dtype)
        if x.size:
            x, y = np.array(x.astype(mx.float32)), np.array(y.astype(mx.float32))
            worst = max(worst, float(np.max(np.abs(x - y) / (1 + np.abs(y)))))
    return worst


def raised(error, call):
    """The message of the error that a call raises."""
    try:
        call()
    except error as caught:
        return str(caught.args[0])
    raise AssertionError(f"{error.__name__} was not raised")


def run(cases):
    """Run functions in order, on every member; the first failure ends the process."""
    for case in cases:
        try:
            case()
        except BaseException:
            traceback.print_exc()
            print(f"member {RANK} of {SIZE}: {case.__name__} failed", file=sys.stderr, flush=True)
            sys.exit(1)
    print(f"member {RANK} of {SIZE}: all cases passed", flush=True)
