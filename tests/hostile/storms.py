"""Steps while another thread, or the handler of a signal, acts again and again.

Whether an action falls into a step or between two is chance, so the numbers are compared when all
is quiet again. Until then nothing may crash, hang or overwrite what is held.
"""

import contextlib
import itertools
import random
import signal
import sys
import threading
import time

import mlx.core as mx
import mlx.optimizers as stock

import mlx_opt

from .actions import ACTIONS
from .forms import Form
from .photo import differences, flat, seen
from .point import Point
from .trees import containers_copied, grown, seen_array
from .world import World

SECONDS = 0.1
LARGE = {  # a step is still running when the next one begins; narrow, for Muon's iterations
    "e": (16, 2500),
    "a": (16, 2500),
    "b": {"w": (16, 2500), "v": (4000,)},
    "c": [(4000,), (4000,)],
    "d": (4000,),
}
# A stream of MLX's belongs to the thread that made it, so other threads make no lazy arrays.
LAZY = ("lazy", "copy", "reversed", "half", "complex", "nan", "called", "steps")


RAISING = ("raised", "interrupted")  # which may hit the test itself; see test_interrupts.py


def suits_threads(name):
    return not ACTIONS[name].evaluates and not name.endswith(LAZY) and suits_signals(name)


def suits_signals(name):
    return name not in RAISING


def begin(package, form, shapes=LARGE):
    """A program without a point: its code runs beside the steps."""
    world = World(package, form, Point(), lambda: None, shapes)
    world.begin(0)
    world.given = containers_copied(world.gradients)
    rule = world.rule
    world.hypers = {
        name: getattr(world.part, name) for name in {**rule.options, **rule.changed, **rule.other}
    }
    return world


def quiet(world):
    """Put back all that an action may have changed. The states begin anew."""
    for key, value in grown(world.shapes, 10).items():
        dict.__setitem__(world.model, key, value)
    world.model.pop("z", None)
    for name, value in world.hypers.items():
        setattr(world.part, name, value)
    vars(world.part).pop("apply_single", None)
    world.part._schedulers.clear()
    for part in world.parts():
        part.state = {"step": mx.array(0, mx.uint64), "learning_rate": mx.array(0.1)}
    world.gradients = containers_copied(world.given)


def steps(world, seconds):
    """Steps for a while. What other code has broken is an error of theirs, and no SystemError,
    with which Python tells of an extension that goes against its rules."""
    end = time.monotonic() + seconds
    number = 0
    while time.monotonic() < end:
        number += 1
        held = []
        if number % 3 == 0:  # else the step may overwrite its parameters
            held = [x for x in flat(world.model).values() if seen_array(x)]
        try:
            before = [seen(x) for x in held]
            world.top.update(world.model, world.gradients, **world.options())
        except (SystemError, MemoryError):
            raise
        except Exception:
            continue
        for x, values in zip(held, before, strict=True):
            assert not differences({("x",): seen(x)}, {("x",): values}, 0)


def assert_in_order(world, form):
    """All goes on as with mlx.optimizers."""
    quiet(world)
    other = begin(stock, form)
    for _ in range(3):
        for each in (world, other):
            each.gradients = containers_copied(each.given)
            each.step()
            each.evaluate()
        wrong = differences(world.photo(), other.photo(), 1e-3)
        assert not wrong, wrong


def thread_storm(action, form):
    form = Form(*form)
    world = begin(mlx_opt, form)
    world.may_look = False
    over = threading.Event()
    failures = []

    def act():
        generator = random.Random(1)
        while not over.is_set():
            with contextlib.suppress(Exception):
                ACTIONS[action].run(world)
            time.sleep(generator.uniform(0, 2e-4))
            quiet(world)
            time.sleep(generator.uniform(0, 1e-3))

    def guarded():
        try:
            act()
        except BaseException as error:
            failures.append(error)

    sys.setswitchinterval(1e-5)
    thread = threading.Thread(target=guarded)
    thread.start()
    try:
        steps(world, SECONDS)
    finally:
        over.set()
        thread.join()
    assert not failures, failures
    assert_in_order(world, form)


def signal_storm(action, form):
    form = Form(*form)
    world = begin(mlx_opt, form)
    generator = random.Random(1)
    turns = itertools.cycle([ACTIONS[action].run, quiet])

    def handler(*_):
        with contextlib.suppress(Exception):  # where there is nothing to act on yet
            next(turns)(world)
        signal.setitimer(signal.ITIMER_REAL, generator.uniform(5e-5, 1e-3))

    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 1e-4)
    try:
        steps(world, SECONDS)
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
    assert not world.changed(), world.changed()
    assert_in_order(world, form)
