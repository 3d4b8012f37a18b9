"""Which programs are run: every action at every point, in forms drawn so that each value of an axis
meets each point, each action and each value of every other axis.

MLX_OPT_HOSTILE=all runs each action at each point with every optimizer in every place, called in
every way; the rest of the form is drawn. MLX_OPT_HOSTILE=1000 runs so many of the sample, drawn so
that every point and every action is met, and a part of the storms and the interrupts.
"""

import itertools
import os
import random

from .actions import ACTIONS
from .forms import AXES, RULES, Form, is_valid
from .point import Kind
from .points import POINTS
from .programs import Program
from .puts import SPOTS

DRAWS = 3  # forms looked at for each program


def suits(program):
    """False where the point or the action has no place in the form."""
    point, action, form = POINTS[program.point], ACTIONS[program.action], program.form
    if not (is_valid(form) and point.allows(form)):
        return False
    ends_mlx = "Adafactor" in form.rule or form.rule in ("momentum", "nesterov")
    if program.action.endswith("uninitialised") and ends_mlx:
        return False  # the process ends in mlx.optimizers
    if action.needs_moment and RULES[form.rule].moment is None:
        return False
    if form.way == "compiled":
        # Nothing can be evaluated while a step is traced. Its state has been made before, and what
        # is put in its place is not traced.
        own = point.kind in (Kind.SETTLED, Kind.HOOK)
        return own and not (action.evaluates or action.in_state or action.of_containers)
    return form.when == 1 or not action.in_state


def fixed(point, action):
    """Values that suit more programs, put in where what was drawn does not suit."""
    return (
        {},
        {"when": 1},
        {"when": 1, "rule": "AdamW", "way": "update", "held": "nothing"},
        {"when": 1, "rule": "AdamW", "way": "lazy", "held": "nothing", "place": "second part"},
        {"when": 1, "rule": "AdamW", "way": "update", "held": "nothing", "place": "alone"},
        {"when": 0, "rule": "AdamW", "way": "update", "held": "nothing", "place": "alone"},
    )


def drawn(generator, point, action, **given):
    """A program with a form that suits it, or None."""
    form = Form(*(generator.choice(values) for values in AXES))._replace(**given)
    for values in fixed(point, action):
        program = Program(point, action, form._replace(**(values | given)))
        if suits(program):
            return program
    return None


def pairs(program):
    values = [("point", program.point), ("action", program.action)]
    values += zip(Form._fields, program.form, strict=True)
    return set(itertools.combinations(values, 2))


def missing(programs):
    """The pairs of a point or an action and a value of an axis that are in none of the programs."""
    seen = set().union(*map(pairs, programs))
    kinds = [("point", point) for point in POINTS] + [("action", action) for action in ACTIONS]
    values = [(name, value) for name, axis in AXES._asdict().items() for value in axis]
    return [pair for pair in itertools.product(kinds, values) if pair not in seen]


def with_pair(generator, pair):
    """A program with a pair, or None if none is found."""
    (kind, name), (axis, value) = pair
    others = list(ACTIONS if kind == "point" else POINTS)
    generator.shuffle(others)
    for other in others:
        point, action = (name, other) if kind == "point" else (other, name)
        program = drawn(generator, point, action, **{axis: value})
        if program:
            return program
    return None


def sample():
    """One program for each action at each point, and some more; the same ones each time."""
    generator = random.Random(1)
    covered = set()
    programs = []
    for point, action in itertools.product(POINTS, ACTIONS):
        candidates = [drawn(generator, point, action) for _ in range(DRAWS)]
        candidates = [(program, pairs(program)) for program in candidates if program]
        if not candidates:
            continue
        program, new = max(candidates, key=lambda candidate: len(candidate[1] - covered))
        covered |= new
        programs.append(program)
    more = (with_pair(generator, pair) for pair in missing(programs))
    return programs + [program for program in more if program]


def all_programs():
    generator = random.Random(1)
    axes = (POINTS, ACTIONS, AXES.rule, AXES.place, AXES.way)
    for point, action, rule, place, way in itertools.product(*axes):
        for _ in range(DRAWS):
            program = drawn(generator, point, action, rule=rule, place=place, way=way)
            if program:
                yield program
                break


def part_of_sample(count):
    """So many programs of the sample, with every point and action; the same ones each time."""
    programs = sample()
    random.Random(1).shuffle(programs)
    met = set()

    def is_new(program):
        new = {("point", program.point), ("action", program.action)} - met
        met.update(new)
        return bool(new)

    programs.sort(key=is_new, reverse=True)
    return programs[:count]


def thinned(forms, stride):
    """All forms, or where MLX_OPT_HOSTILE is a number each `stride`-th."""
    return forms[::stride] if os.environ.get("MLX_OPT_HOSTILE", "").isdigit() else forms


def wanted_programs():
    wanted = os.environ.get("MLX_OPT_HOSTILE", "")
    if wanted == "all":
        return all_programs()
    if wanted.isdigit():
        return part_of_sample(int(wanted))
    if wanted:
        raise ValueError(f"MLX_OPT_HOSTILE: expected all or a number, got {wanted!r}")
    return sample()


def groups():
    """The names of the programs to be run, by point and by what their actions are about."""
    found = {}
    for program in wanted_programs():
        about = next((spot for spot in SPOTS if program.action.startswith(spot)), "other")
        found.setdefault(f"{program.point}/{about}", []).append(str(program))
    return found
