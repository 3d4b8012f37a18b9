"""Exceptions that hit a step at any time: it is made, or nothing is."""

import contextlib
import ctypes
import itertools
import random
import signal
import sys
import threading
import time

import mlx.optimizers as stock

import mlx_opt

from .calls import Hostile
from .forms import Form
from .photo import differences
from .storms import begin
from .trees import SHAPES

STEPS = 40
TOLERANCE = 1e-3  # the steps of mlx.optimizers and ours, all of them


class Progress:
    """A program and what mlx.optimizers makes of it, step by step."""

    def __init__(self, form):
        self.form = Form(*form)
        self.world = begin(mlx_opt, self.form, SHAPES)
        other = begin(stock, self.form, SHAPES)
        self.expected = []
        self.step(other)  # the first step makes the state, and is the one to begin with
        self.step(self.world)
        for _ in range(STEPS + 2):
            self.expected.append(other.photo())
            self.step(other)
        self.done = 0

    def step(self, world):
        world.begin(0)
        world.step()
        world.evaluate()

    def check(self):
        """What is there is what one of the next steps leaves, in all parts of it."""
        self.world.evaluate()
        photo = self.world.photo()
        steps = (self.done, self.done + 1)
        wrong = [differences(photo, self.expected[step], TOLERANCE) for step in steps]
        assert not all(wrong), wrong
        self.done = steps[wrong.index([])]

    def begin(self):
        self.world.begin(0)

    def call(self):
        world = self.world
        world.top.update(world.model, world.gradients, **world.options())


def at_each_call(form):
    """An exception at one call or return of Python's after another, until a step gets through."""
    progress = Progress(form)
    for place in itertools.count():
        countdown = Countdown(place)
        progress.begin()
        with contextlib.suppress(Hostile), countdown:
            progress.call()
        progress.check()
        if countdown.left > 0:
            return  # a step has no more calls
        if progress.done == STEPS:
            progress = Progress(form)


class Countdown:
    """Raises at a call or a return of Python's, by their number."""

    def __init__(self, left):
        self.left = left

    def profile(self, *_):
        self.left -= 1
        if self.left == 0:
            raise Hostile

    def __enter__(self):
        sys.setprofile(self.profile)

    def __exit__(self, *_):
        sys.setprofile(None)


def by_signals(form):
    """An exception from a signal's handler, at random times."""
    progress = Progress(form)
    generator = random.Random(1)
    inside = [False]

    def handler(*_):
        if inside[0]:
            inside[0] = False
            raise Hostile

    signal.signal(signal.SIGALRM, handler)
    end = time.monotonic() + 0.2
    while progress.done < STEPS and time.monotonic() < end:
        progress.begin()
        with contextlib.suppress(Hostile):
            inside[0] = True
            signal.setitimer(signal.ITIMER_REAL, generator.uniform(1e-6, 3e-4))
            progress.call()
            inside[0] = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        progress.check()


def from_a_thread(form):
    """An exception that another thread puts into this one, as debuggers and notebooks do."""
    progress = Progress(form)
    raising = ctypes.pythonapi.PyThreadState_SetAsyncExc
    target = ctypes.c_ulong(threading.get_ident())
    lock = threading.Lock()
    inside, over = [False], threading.Event()

    def interrupt():
        generator = random.Random(1)
        while not over.is_set():
            time.sleep(generator.uniform(0, 2e-4))
            with lock:
                if inside[0]:
                    inside[0] = False
                    raising(target, ctypes.py_object(Hostile))

    def step():
        """One step, and what is on its way at its end: at most one exception a step."""
        with lock:
            inside[0] = True
        progress.call()
        with lock:
            inside[0] = False
        for _ in range(1000):
            pass

    sys.setswitchinterval(1e-5)
    thread = threading.Thread(target=interrupt)
    thread.start()
    end = time.monotonic() + 0.2
    try:
        while progress.done < STEPS and time.monotonic() < end:
            progress.begin()
            try:
                step()
            except Hostile:
                pass
            progress.check()
    finally:
        over.set()
        thread.join()
