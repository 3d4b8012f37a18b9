"""Actions that put one thing in the place of another: SPOTS times THINGS."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx
import mlx.optimizers as stock
import numpy as np

from .photo import flat
from .trees import entry, fresh


class Action(NamedTuple):
    run: Callable  # of a world
    in_state: bool = False
    """Whether it needs the state of a parameter, which the first step makes."""

    needs_moment: bool = False
    evaluates: bool = False
    """Whether it evaluates arrays, which cannot be done while a step is traced."""

    of_containers: bool = False
    """Whether it puts a dict or a list in the place of another."""

    of_dtype: bool = False
    of_root: bool = False
    """Whether it changes the root of a state, where norm and count of skipped steps are."""

    nested: bool = False
    """Whether it makes a step of the same optimizer, or of a copy of it."""


GONE = object()


def place_of(world, spot):
    """The container and the key of a spot."""
    *parents, key = world.target
    if spot == "parameter":
        return entry(world.model, parents), key
    if spot == "gradient":
        return entry(world.gradients, parents), key
    if spot == "leaf-state":
        return entry(world.part.state, parents), key
    if spot == "moment":
        return entry(world.part.state, world.target), world.rule.moment
    if spot in ("step", "learning_rate"):
        return world.part.state, spot
    tree = {"model": world.model, "gradients": world.gradients, "state": world.part.state}
    return tree[spot.removesuffix("-branch")], "c"


def twin_of(world, spot):
    """What stands at the same spot of another parameter."""
    if spot.endswith("-branch"):
        container, _ = place_of(world, spot)
        return container["b"]
    if spot == "moment":
        return entry(world.part.state, world.twin)[world.rule.moment]
    trees = {"parameter": world.model, "gradient": world.gradients, "leaf-state": world.part.state}
    return entry(trees[spot], world.twin)


def other(spot):
    def thing(world, old):
        container, key = place_of(world, spot)
        return container[key]

    return thing


def evaluated(x):
    mx.eval(x)
    return x


# Of a world and what stands at the spot.
THINGS = {
    "gone": lambda world, old: GONE,
    "text": lambda world, old: "text",
    "none": lambda world, old: None,
    "number": lambda world, old: 2,
    "float": lambda world, old: 0.5,
    "numpy": lambda world, old: np.full(old.shape, 0.5, np.float32),
    "numpy-number": lambda world, old: np.float32(2),
    "fresh": lambda world, old: fresh(old.shape, 7),
    "lazy": lambda world, old: fresh(old.shape, 8) * 1,
    "copy": lambda world, old: evaluated(old * 1),
    "shared": lambda world, old: mx.array(old),
    "reversed": lambda world, old: old[::-1],
    "longer": lambda world, old: fresh((5, *old.shape[1:]), 9),
    "one": lambda world, old: fresh((1,), 9),
    "half": lambda world, old: evaluated(old.astype(mx.float16)),
    "complex": lambda world, old: evaluated(old.astype(mx.complex64)),
    "integer": lambda world, old: mx.array(2, mx.int32),
    "nan": lambda world, old: evaluated(old * mx.nan),
    "uninitialised": lambda world, old: mx.array.__new__(mx.array),
    "parameter": other("parameter"),
    "gradient": other("gradient"),
    "moment": other("moment"),
    "list": lambda world, old: [old],
    "tuple": lambda world, old: (old,),
    "empty": lambda world, old: type(old)(),
    "container-copy": lambda world, old: copy.copy(old),
}
TWIN = "twin"
NUMBERS = (int, float, np.number)

SPOTS = {
    "moment": "gone none text float numpy fresh lazy copy shared reversed longer one half complex"
    " nan uninitialised parameter gradient list twin",
    "leaf-state": "gone none text empty container-copy list twin",
    "parameter": "gone text float numpy fresh lazy copy shared reversed longer one half complex"
    " uninitialised gradient moment list tuple twin",
    "gradient": "gone none numpy fresh lazy shared reversed longer one half complex nan"
    " uninitialised parameter moment list twin",
    "step": "gone none text number float numpy-number integer",
    "learning_rate": "gone none text number float numpy-number integer one half",
    "model-branch": "gone none empty tuple container-copy twin",
    "gradients-branch": "gone none empty tuple container-copy twin",
    "state-branch": "gone none empty tuple container-copy twin",
}


def put(spot, thing):
    """The action that puts a thing at a spot; what stood there is kept."""
    of_root = spot in ("step", "learning_rate")
    state = spot in ("moment", "leaf-state", "state-branch") or thing == "moment"

    def run(world):
        container, key = place_of(world, spot)
        old = container[key]
        new = twin_of(world, spot) if thing == TWIN else THINGS[thing](world, old)
        if of_root and isinstance(new, NUMBERS) and world.package is stock:
            new = mx.array(new)  # it takes some numbers and not others
        for path, leaf in flat(old).items():
            if isinstance(leaf, mx.array) and world.may_look:
                world.keep(leaf, ".".join(("old", spot, *path)))
        if new is GONE:
            del container[key]
        else:
            container[key] = new

    return Action(
        run,
        in_state=state,
        needs_moment="moment" in (spot, thing),
        evaluates=thing in ("copy", "half", "complex", "nan"),
        of_containers=spot == "leaf-state" or spot.endswith("-branch"),
        of_dtype=thing in ("half", "complex"),
        of_root=of_root,
    )


def swap(spot):
    def run(world):
        container, key = place_of(world, spot)
        tree = {"parameter": world.model, "gradient": world.gradients}.get(spot, world.part.state)
        twin, twin_key = entry(tree, world.twin[:-1]), world.twin[-1]
        if spot == "moment":
            twin, twin_key = twin[twin_key], world.rule.moment
        container[key], twin[twin_key] = twin[twin_key], container[key]

    state = spot in ("moment", "leaf-state")
    return Action(
        run, in_state=state, needs_moment=spot == "moment", of_containers=spot == "leaf-state"
    )


PUTS = {
    f"{spot}-{thing}": put(spot, thing)
    for spot, things in SPOTS.items()
    for thing in things.split()
}
PUTS |= {
    f"{spot}-swapped": swap(spot) for spot in ("moment", "leaf-state", "parameter", "gradient")
}
