"""Every action while steps are made, from another thread and from a signal's handler."""

import pytest

from .actions import ACTIONS
from .forms import PLACES, RULES
from .processes import apart
from .sampling import thinned
from .storms import signal_storm, suits_signals, suits_threads, thread_storm

RULES_IN_TURN = [rule for rule in RULES if rule != "Muon"]
OPTIONS_IN_TURN = ["plain", "max_norm", "plain", "skip"]


def form(i, action):
    """Rule, place, way and option of the i-th program, each of them in turn."""
    rule = RULES_IN_TURN[i % len(RULES_IN_TURN)]
    if rule == "hook" and action.endswith("uninitialised"):
        rule = "AdamW"  # MLX's operators, which the hook calls, end the process
    option = OPTIONS_IN_TURN[i % len(OPTIONS_IN_TURN)]
    return [rule, PLACES[i % len(PLACES)], "update", option, 1, "nothing", "last", 0]


def each(names):
    programs = [pytest.param(name, form(i, name), id=name) for i, name in enumerate(names)]
    return pytest.mark.parametrize("action, form", thinned(programs, 6))


@each([name for name in ACTIONS if suits_threads(name)])
@apart
def test_another_thread_acts_again_and_again(action, form):
    thread_storm(action, form)


@each([name for name in ACTIONS if suits_signals(name)])
@apart
def test_the_handler_of_a_signal_acts_again_and_again(action, form):
    signal_storm(action, form)
