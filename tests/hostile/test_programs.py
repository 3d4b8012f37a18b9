"""Every action at every point, in forms drawn from all; see the package's first lines."""

import random

import pytest

from .processes import needs_fork, server, told
from .sampling import groups, missing, sample, with_pair

GROUPS = groups()


@needs_fork
@pytest.mark.parametrize("group", GROUPS)
def test_programs(group):
    failures = []
    for name in GROUPS[group]:
        status, printed, complaints = server().run("hostile.judge", "judged", {"name": name})
        if status != 0:
            failures.append(f"{name}: {told(status, printed)}")
        elif complaints:
            failures.append("\n    ".join([f"{name}:", *complaints]))
    assert not failures, "\n".join(failures)


def test_each_point_and_each_action_is_met_by_every_form_that_suits_it():
    generator = random.Random(2)
    assert not [pair for pair in missing(sample()) if with_pair(generator, pair)]
