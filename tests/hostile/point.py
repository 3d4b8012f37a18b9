"""What a point is: a place in a step where code of the program's own runs."""

import contextlib
import enum


class Kind(enum.Enum):
    """What a program may expect of an action there, in terms of steps of mlx.optimizers."""

    SETTLED = "before anything is read: as there, or as if it had been done before the step"
    HOOK = "the program's own part of the step: as there, or before the step"
    WALK = (
        "while properties and trees are read: each leaf as there, as before, as after, or as never"
    )
    ANYTIME = "at any time: each leaf as before the step, as after it, or as never"


class Point:
    """A place for foreign code. Its methods build that in; these do not."""

    kind = Kind.WALK
    must_be_reached = False
    """Whether the code must run where it runs with mlx.optimizers."""

    silent = False
    """Whether an exception there is reported by Python and goes no further."""

    def allows(self, form):
        return True

    def optimizer(self, base, rule, fire):
        return base

    def install(self, world):
        pass

    def between(self, world):
        """Called before the step in which foreign code acts."""

    def module(self, base, fire):
        return base

    def mapping(self, base, fire):
        """The type of the dicts in a model."""
        return base

    def gradient_containers(self, fire):
        return dict, list

    def filter(self, function, fire):
        return function

    def around(self, world):
        return contextlib.nullcontext()


def with_method(base, name, fire, late=False):
    """A subclass that calls `fire` before a method of its base, or after it."""

    def method(self, *arguments, **options):
        if late:
            result = getattr(super(made, self), name)(*arguments, **options)
            fire()
            return result
        fire()
        return getattr(super(made, self), name)(*arguments, **options)

    methods = {name: method}
    if name == "__eq__":  # which would leave it without a hash
        methods["__hash__"] = base.__hash__
    made = type(f"Foreign{base.__name__}", (base,), methods)
    return made
