"""Points in what Python itself calls: at the end of an object, in a collection, at a call."""

import contextlib
import gc
import sys
import weakref

import mlx.core as mx

from .point import Kind, Point
from .trees import entry


class EndOfValue(Point):
    """The end of what a schedule has put into the state."""

    kind, silent = Kind.ANYTIME, True

    def install(self, world):
        class Value(float):
            def __del__(self):
                world.fire()

        world.part._maybe_schedule("other", lambda step: Value(1.0))


class EndOfArray(Point):
    """The end of an array that a step replaces: of a subclass, or one with a weak reference."""

    kind, silent = Kind.ANYTIME, True

    def __init__(self, weak):
        self.weak = weak

    def allows(self, form):
        return form.when == 1 and form.held in ("nothing", "gradients")

    def between(self, world):
        class Mortal(mx.array):
            def __del__(self):
                world.fire()

        for tree in (world.model, world.part.state):
            place = entry(tree, world.target[:-1])
            key = world.target[-1]
            if tree is world.part.state:
                place, key = place[key], next(iter(place[key]))
            if self.weak:
                world.weak = [weakref.ref(place[key], lambda _: world.fire())]
            else:
                place[key] = Mortal(place[key])
                mx.eval(place[key])


class GarbageCollection(Point):
    """A callback of Python's collector, which runs wherever a container is made."""

    kind, silent = Kind.ANYTIME, True

    @contextlib.contextmanager
    def around(self, world):
        def callback(phase, _):
            if phase == "start":
                world.fire()

        before = gc.get_threshold()
        gc.callbacks.append(callback)
        gc.set_threshold(1)
        try:
            yield
        finally:
            gc.set_threshold(*before)
            gc.callbacks.remove(callback)


class PythonCall(Point):
    """A call or a return within the step, by their number; a signal's handler runs at these."""

    kind = Kind.ANYTIME

    def __init__(self, number):
        self.number = number

    @contextlib.contextmanager
    def around(self, world):
        left = [self.number]

        def profile(*_):
            left[0] -= 1
            if left[0] < 0:
                world.fire()

        sys.setprofile(profile)
        try:
            yield
        finally:
            sys.setprofile(None)
