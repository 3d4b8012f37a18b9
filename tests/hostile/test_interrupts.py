"""Exceptions that hit a step at any time: the step is made in all its parts, or in none."""

import pytest

from .forms import PLACES, RULES
from .interrupts import at_each_call, by_signals, from_a_thread
from .processes import apart
from .sampling import thinned

# A user's own rule is Python from one parameter to the next.
FORMS = [
    [rule, place, way, ("plain", "max_norm", "skip")[i % 3], 1, "nothing", "first", 0]
    for i, (rule, place, way) in enumerate(
        (rule, place, way)
        for rule in RULES
        if rule != "hook"
        for place in PLACES
        if (rule, place) != ("Muon", "fallback")
        for way in ("update", "lazy")
    )
]
each_form = pytest.mark.parametrize("form", thinned(FORMS, 5), ids=lambda form: "-".join(form[:4]))


@each_form
@apart
def test_an_exception_at_each_call_of_a_step(form):
    at_each_call(form)


@each_form
@apart
def test_exceptions_of_a_signals_handler(form):
    by_signals(form)


@each_form
@apart
def test_exceptions_that_a_thread_puts_into_another(form):
    from_a_thread(form)
