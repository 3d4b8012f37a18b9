"""What is wrong with a program's run with mlx_opt, judged by its runs with mlx.optimizers."""

import re
import sys
import traceback

import mlx.optimizers as stock

import mlx_opt

from .actions import ACTIONS
from .differences import DOCUMENTED, SIZE_CHANGED
from .photo import brief, differences, is_near, matches, without_dtype
from .point import Kind
from .points import POINTS
from .programs import Program, run
from .trees import LEAVES

# When an action may seem to have been done, by the kind of its point.
SEEMING = {
    Kind.SETTLED: ("there", "before", "after init"),
    Kind.HOOK: ("there", "before", "after init"),
    Kind.WALK: ("there", "before", "after init", "after", "never"),
    Kind.ANYTIME: ("before", "after init", "after", "never", "there"),
}
PLACES = (*(rf"{path}(\.\d)?:" for path in (*LEAVES, "b", "c")), "step", "learning_rate")
"""What the error of a step may name: a parameter, a branch, an entry of a state."""


def judged(name):
    """The complaints about one program, by its name; it runs in this process."""
    program = Program.named(name)
    print("mlx_opt", flush=True)
    got = run(mlx_opt, program)
    return Judge(program, Expected(program), got).complaints()


class Expected(dict):
    """Runs with mlx.optimizers by the moment of the action, made when they are asked for."""

    def __init__(self, program):
        self.program = program

    def __missing__(self, moment):
        print("mlx.optimizers, with the action", moment, flush=True)
        self[moment] = run(stock, self.program, moment)
        return self[moment]


class Judge:
    def __init__(self, program, expected, got):
        self.program, self.expected, self.got = program, expected, got
        self.point, self.action = POINTS[program.point], ACTIONS[program.action]
        self.when = program.form.when
        self.own_rule = program.form.rule == "hook"
        self.kind = self.point.kind
        if self.own_rule and self.kind is Kind.SETTLED:
            self.kind = Kind.HOOK  # a user's own rule is settled in the user's own step
        # Newton-Schulz iterations of float32 matrices, summed in other orders.
        orthogonal = program.form.rule == "Muon" or program.form.place == "fallback"
        half = program.action.endswith("half")  # which mlx_opt computes with in float32
        self.tolerance = 5e-3 if half else 1e-3 if orthogonal else 1e-5

    def complaints(self):
        found = [f"what is held changed: {what}" for what in self.got.changed]
        # A property is read once, where mlx.optimizers reads it for each parameter.
        must_run = self.point.must_be_reached and (
            self.program.form.call == 0 or self.kind is Kind.HOOK
        )
        if must_run and not self.got.reached and self.expected["there"].reached:
            found.append("the foreign code did not run")
        error = self.got.outcomes[self.when].error
        found += self.of_error(error) if error else self.of_results()
        return found

    def moments(self):
        """When the action may seem to have been done."""
        if not self.got.reached:
            return ("never",)
        moments = list(SEEMING[self.kind])
        if self.when > 0:
            moments = [moment for moment in moments if moment != "after init"]
        elif self.program.form.option != "plain":
            moments.append("there, init first")  # init is given gradients that are not clipped yet
        if self.kind is Kind.HOOK and self.program.form.option == "skipped":
            return (*moments, "never")  # what is skipped is the hook's part of the step
        return moments

    def visible(self, photo):
        """A photo without what the action may well have taken away with the state it was in."""
        hidden = {("norm",), ("skipped",)} if self.action.of_root else set()
        photo = {path: value for path, value in photo.items() if path not in hidden}
        if self.program.form.option == "skipped" and self.action.of_dtype:
            # Whether a step is skipped is not known before it runs; the dtype it would have, is.
            photo = {path: without_dtype(value) for path, value in photo.items()}
        return photo

    def different(self, got, expected):
        return differences(self.visible(got), self.visible(expected), self.tolerance)

    def of_results(self):
        """Of a step that raised nothing."""
        photo = self.got.outcomes[self.when].photo
        found, done = [], []
        for moment in self.moments():
            expected = self.expected[moment].outcomes[self.when]
            if expected.error:
                found.append(f"no error, where mlx.optimizers raises {expected.error!r} ({moment})")
                continue
            wrong = self.different(photo, expected.photo) or self.of_next_step(moment)
            if not wrong:
                return []
            found.append(f"unlike the action done {moment}: {wrong}")
            done.append(expected.photo)
        if done and self.happens_in_parts():
            found = self.of_parts(photo, done)
        if found and done and self.action.nested and self.got.reached:
            return self.of_nested(photo, done)
        return found

    def happens_in_parts(self):
        """True if the action may come after some leaves were read and before others."""
        kind, form = self.kind, self.program.form
        in_parts = kind in (Kind.WALK, Kind.ANYTIME) or (
            kind is Kind.HOOK and form.option == "skipped"
        )
        return in_parts and self.got.reached

    def of_parts(self, photo, expected):
        """Of a step in which not all has happened at one time."""
        if self.program.action.startswith("gradient") and self.program.form.option != "plain":
            return []  # the norm of some of these gradients and some of those is of no other run
        if self.action.of_containers:  # the step may be written to one that is no longer there
            expected = [*expected, self.photo_of("without the step")]
        return self.of_leaves(photo, expected)

    def of_nested(self, photo, expected):
        """Of a step in the middle of which the optimizer, or a copy of it, makes another one.

        What the inner step reads is partly of before the outer one and partly of after it, and what
        it writes may be written over: no numbers are promised. All has the form that it should
        have, and is no farther from where it was than two steps can lead.
        """
        before = self.photo_of("untouched")
        paths = set(photo).union(*expected)
        return [
            f"{'.'.join(path)}: {brief(photo.get(path, 'nothing'))} is no result of two steps"
            for path in sorted(paths)
            if not is_near(photo.get(path), before.get(path), [e.get(path) for e in expected])
        ]

    def of_leaves(self, photo, expected):
        """Each leaf by itself."""
        nothing = "nothing"
        photo, expected = self.visible(photo), [self.visible(other) for other in expected]
        paths = set(photo).union(*expected)
        return [
            f"{'.'.join(path)}: {brief(photo.get(path, nothing))} is of no run of mlx.optimizers"
            for path in sorted(paths)
            if not any(
                matches(photo.get(path, nothing), other.get(path, nothing), self.tolerance)
                for other in expected
            )
        ]

    def of_next_step(self, moment):
        """What differs in the step after."""
        if self.program.form.way == "compiled":
            return []
        got, expected = self.got.outcomes[-1], self.expected[moment].outcomes[-1]
        if not (got.error or expected.error):
            wrong = self.different(got.photo, expected.photo)
        elif self.stands_for(got.error, expected.error) or self.is_documented(got.error):
            wrong = []
        else:
            wrong = [f"{got.error!r}, expected {expected.error!r}"]
        return [f"in the next step: {what}" for what in wrong]

    def of_error(self, error):
        """Of a step that raised: it is to be expected, and nothing else happened."""
        found = []
        if not (self.is_expected(error) or self.is_documented(error) or self.is_of_init(error)):
            found.append(f"{error!r}, unlike mlx.optimizers")
        if self.program.form.way == "compiled":
            return found  # MLX leaves a trace's arrays where they are
        photo = self.got.outcomes[self.when].photo
        if not any(self.is_as(photo, moment) for moment in self.whole_after_errors()):
            both = [self.photo_of(moment) for moment in ("without the step", "untouched")]
            wrong = self.of_leaves(photo, both)
            found += [f"after {type(error).__name__}, {what}" for what in wrong]
        return found

    def whole_after_errors(self):
        """The runs that an error may leave all as, besides what it takes back."""
        if self.own_rule or self.kind is Kind.HOOK:
            return ("there",)  # it is raised in the program's own part of the step
        return ("never",) if self.kind is Kind.ANYTIME else ()

    def photo_of(self, moment):
        return self.expected[moment].outcomes[self.when].photo

    def is_as(self, photo, moment):
        return not self.different(photo, self.photo_of(moment))

    def is_of_init(self, error):
        """True if mlx.optimizers' own init has raised it, because the action has changed the trees
        that it was walking. It walks them in other turns than in a step of mlx.optimizers."""
        frames = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
        own = stock.Optimizer.init.__code__
        in_gradients = self.program.action.startswith("gradient")
        of_trees = in_gradients or self.action.of_containers or self.action.of_root
        return self.got.reached and of_trees and own in frames

    def is_expected(self, error):
        for moment in self.moments():
            other = self.expected[moment].outcomes[self.when].error
            if self.stands_for(error, other):
                return True
        return False

    def stands_for(self, error, other):
        """True if mlx.optimizers has an error too, of the same class or less telling."""
        if error is None or other is None:
            return False
        same = isinstance(error, type(other)) or isinstance(other, type(error))
        return same or names_the_place(error, self.kind)

    def is_documented(self, error):
        if isinstance(error, RuntimeError) and self.program.action in SIZE_CHANGED.split():
            return "changed size during iteration" in str(error)
        return names_the_place(error, self.kind) and any(
            isinstance(error, kind)
            and re.search(text, str(error))
            and self.program.action in actions.split()
            for actions, kind, text in DOCUMENTED
        )


def names_the_place(error, kind):
    """True if an error tells where, in words; nanobind's tell the signature of a function."""
    text = str(error)
    if "incompatible function arguments" in text:
        return False
    # A hook is given one parameter and its state, which have no names there.
    places = (*PLACES, "the optimizer state", "parameter") if kind is Kind.HOOK else PLACES
    return any(re.search(rf"(^|\W){place}(\W|$)", text) for place in places)


if __name__ == "__main__":
    for complaint in judged(sys.argv[1]):
        print(complaint)
