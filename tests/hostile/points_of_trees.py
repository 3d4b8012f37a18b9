"""Points in the methods of containers and keys."""

from .point import Point, with_method
from .trees import entry


class OfGradients(Point):
    """A method of the dicts, or lists, that gradients are given in."""

    def __init__(self, base, name):
        self.base, self.name = base, name

    def gradient_containers(self, fire):
        foreign = with_method(self.base, self.name, fire)
        return (foreign, list) if self.base is dict else (dict, foreign)


class OfKeys(Point):
    """A method of the keys in the trees of gradients; those of a model are plain texts."""

    def __init__(self, name):
        self.name = name

    def gradient_containers(self, fire):
        key_type = with_method(str, self.name, fire)
        return (lambda items: {key_type(key): value for key, value in items.items()}), list


class OfModel(Point):
    """A method of the model and of the dicts in it."""

    def __init__(self, name):
        self.name = name

    def allows(self, form):
        # There the parameters are a tree, and nothing is put into it.
        return form.way != "apply_gradients" or self.name not in ("__setitem__", "update")

    def module(self, base, fire):
        return with_method(base, self.name, fire)

    def mapping(self, base, fire):
        return with_method(base, self.name, fire)


class OfState(Point):
    """A method of the dict that is the optimizer's state."""

    def __init__(self, name):
        self.name = name

    def allows(self, form):
        return form.place != "fallback"  # whose state is at a place in another one

    def install(self, world):
        world.part.state = with_method(dict, self.name, world.fire)(world.part.state)


class OfLeafState(Point):
    """A method of the dicts that hold the state of one parameter."""

    def __init__(self, name):
        self.name = name

    def allows(self, form):
        return form.when == 1

    def between(self, world):
        foreign = with_method(dict, self.name, world.fire)
        for path in (world.target, world.twin):
            *parents, key = path
            tree = entry(world.part.state, parents)
            tree[key] = foreign(tree[key])
