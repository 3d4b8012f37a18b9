"""The trees of arrays that programs are about."""

import functools
import random

import mlx.core as mx
import numpy as np

SHAPES = {
    "e": (4, 6),
    "a": (4, 6),
    "b": {"w": (4, 6), "v": (4,)},
    "c": [(4,), (4,)],
    "d": (4,),
}
LEAVES = ("e", "a", "b.w", "b.v", "c.0", "c.1", "d")
# In each place: the first and last parameters of the optimizer that is acted on, each with another
# of its shape. What the other optimizer takes lies before them.
TARGETS = {
    "alone": {"first": [("e",), ("a",)], "last": [("d",), ("b", "v")]},
    "second part": {"first": [("a",), ("b", "w")], "last": [("d",), ("c", 1)]},
    "fallback": {"first": [("b", "v"), ("c", 0)], "last": [("d",), ("c", 1)]},
}


@functools.cache
def numbers(shape, seed):
    generator = random.Random(f"{seed} {shape}")
    values = [generator.choice((-1, 1)) * generator.uniform(0.2, 1) for _ in range(67)]
    return np.resize(np.array(values, np.float32), shape)


def fresh(shape, seed=0):
    """An evaluated array of values that tell where they come from; none is near 0."""
    x = mx.array(numbers(shape, seed))
    mx.eval(x)
    return x


def grown(shapes, seed, containers=(dict, list)):
    """A tree of arrays."""
    mapping, sequence = containers
    if isinstance(shapes, dict):
        items = {k: grown(v, seed + i, containers) for i, (k, v) in enumerate(shapes.items())}
        return mapping(items)
    if isinstance(shapes, list):
        return sequence(grown(v, seed + 50 + i, containers) for i, v in enumerate(shapes))
    return fresh(shapes, seed)


def entry(tree, path):
    for key in path:
        tree = tree[key]
    return tree


def entries(tree):
    """The leaves of a tree with their containers and keys, but for those of tuples."""
    if isinstance(tree, (dict, list)):
        for key, child in list(dict.items(tree) if isinstance(tree, dict) else enumerate(tree)):
            if isinstance(child, (dict, list)):
                yield from entries(child)
            else:
                yield tree, key, child


def seen_array(x):
    return isinstance(x, mx.array)


def containers_copied(tree):
    """A tree of the same leaves."""
    if isinstance(tree, dict):
        return {key: containers_copied(child) for key, child in tree.items()}
    if isinstance(tree, list):
        return [containers_copied(child) for child in tree]
    return tree


def lazily(tree):
    """The same tree, its arrays to be computed yet."""
    if isinstance(tree, dict):
        return type(tree)({key: lazily(child) for key, child in dict.items(tree)})
    if isinstance(tree, list):
        return type(tree)(lazily(child) for child in list.__iter__(tree))
    return tree + mx.zeros(())


def put_leaves(model, tree):
    """Put new parameters into a model, where it has parameters."""
    for key, child in list(tree.items() if isinstance(tree, dict) else enumerate(tree)):
        base = dict if isinstance(model, dict) else list
        if isinstance(model, dict) and key not in model:
            continue
        if isinstance(child, (dict, list)) and isinstance(model[key], (dict, list)):
            put_leaves(model[key], child)
        else:
            base.__setitem__(model, key, child)
