"""Every action while steps are made, from another thread and from a signal's handler."""

import itertools

import pytest

from .actions import ACTIONS
from .forms import PLACES, RULES
from .processes import apart
from .storms import signal_storm, suits_signals, suits_threads, thread_storm


def forms():
    """Rule, place, way and option, each of them in turn."""
    rules = [rule for rule in RULES if rule != "Muon"]
    options = ("plain", "max_norm", "plain", "skip")
    for i in itertools.count():
        rule, place = rules[i % len(rules)], PLACES[i % len(PLACES)]
        yield [rule, place, "update", options[i % len(options)], 1, "nothing", "last", 0]


def each(names):
    return pytest.mark.parametrize(
        "action, form",
        [pytest.param(name, form, id=name) for name, form in zip(names, forms(), strict=False)],
    )


@each([name for name in ACTIONS if suits_threads(name)])
@apart
def test_another_thread_acts_again_and_again(action, form):
    thread_storm(action, form)


@each([name for name in ACTIONS if suits_signals(name)])
@apart
def test_the_handler_of_a_signal_acts_again_and_again(action, form):
    signal_storm(action, form)
