"""A program's run, with mlx.optimizers or with mlx_opt."""

import zlib
from typing import NamedTuple

from mlx_opt import _ext

from .actions import ACTIONS
from .forms import Form
from .points import POINTS
from .world import World


class Program(NamedTuple):
    point: str
    action: str
    form: Form

    def __str__(self):
        return f"{self.point}/{self.action}/{','.join(map(str, self.form))}"

    @staticmethod
    def named(text):
        point, action, form = text.split("/")
        values = form.split(",")
        integers = {"when", "call"}
        fields = zip(Form._fields, values, strict=True)
        return Program(
            point, action, Form(*(int(v) if name in integers else v for name, v in fields))
        )


class Outcome(NamedTuple):
    """What a step came to."""

    error: BaseException | None
    photo: dict


class Run(NamedTuple):
    outcomes: list[Outcome]
    """Of each step. The action is in that of the form's `when`, which is the first that is seen;
    one more follows."""

    reached: bool
    """Whether the foreign code ran to where it acts."""

    changed: list[str]
    """What was held and has other values."""


class Trigger:
    """Acts once: when it is called in the step for which it is set."""

    def __init__(self, calls_before, act):
        self.left, self.act = calls_before, act
        self.is_set = self.reached = False

    def __call__(self):
        if not self.is_set:
            return
        self.left -= 1
        if self.left < 0:
            self.is_set, self.reached = False, True
            self.act()


def run(package, program, moment="there"):
    """Run a program, with its action where its point is, or at another moment; see MOMENTS."""
    # One half of the programs run their steps on the calling thread, the other half queue them.
    _ext.set_small_step(0 if zlib.crc32(str(program).encode()) % 2 else 8192)
    form, point = program.form, POINTS[program.point]
    trigger = Trigger(form.call, lambda: world.act(ACTIONS[program.action].run))
    world = World(package, form, point, trigger)
    outcomes = []
    for step in range(form.when + 2):
        world.begin(step)
        error = None
        if step == form.when:
            point.between(world)
            world.hold()
            error = MOMENTS[moment](world, trigger, point.silent)
        else:
            error = error_of(world.step)
        world.evaluate()
        seen = world.photo() if step >= form.when else {}
        outcomes.append(Outcome(error, seen))
    return Run(outcomes, trigger.reached, world.changed())


def error_of(function):
    """What a function raises, or None."""
    try:
        function()
    except BaseException as error:
        return error
    return None


def there(world, trigger, silent):
    trigger.is_set = True
    error = error_of(world.step)
    trigger.is_set = False
    return error


def there_init_first(world, trigger, silent):
    world.init_first = True
    return there(world, trigger, silent)


def before(world, trigger, silent):
    error = error_of(trigger.act)
    if error and not silent:
        return error
    return error_of(world.step)


def after_init(world, trigger, silent):
    return error_of(lambda: world.top.init(world.gradients)) or before(world, trigger, silent)


def after(world, trigger, silent):
    error = error_of(world.step) or error_of(trigger.act)
    return None if silent else error


def never(world, trigger, silent):
    return error_of(world.step)


def without_step(world, trigger, silent):
    error_of(trigger.act)


def untouched(world, trigger, silent):
    pass


MOMENTS = {
    "there": there,
    "there, init first": there_init_first,
    "before": before,
    "after init": after_init,
    "after": after,
    "never": never,
    "without the step": without_step,
    "untouched": untouched,
}
"""When the action is done, in terms of the step; in the last two there is none."""
