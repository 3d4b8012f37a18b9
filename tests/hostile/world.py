"""A model, its optimizer and its gradients, with mlx.optimizers or with mlx_opt."""

import contextlib

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as stock

from .forms import OPTIONS, RULES, make_hook
from .photo import differences, flat, photo, seen
from .trees import SHAPES, TARGETS, entries, grown, lazily, put_leaves, seen_array

OURS = "mlx_opt"
"""The key at the root of a state for all that mlx.optimizers does not have."""


class World:
    """All that a program holds. `point` builds its own code in, which calls `fire`."""

    def __init__(self, package, form, point, fire, shapes=SHAPES):
        self.package, self.form, self.point, self.fire = package, form, point, fire
        self.rule = RULES[form.rule]
        self.target, self.twin = TARGETS[form.place][form.target]
        self.shapes = shapes
        self.kept = []
        self.may_look = form.way != "compiled"  # where arrays are not those of a trace
        self.norm = self.skipped = None  # of mlx.optimizers, which has neither
        self.noted = None
        self.init_first = False
        self.model = point.module(nn.Module, fire)()
        for key, value in grown(shapes, 10, (point.mapping(dict, fire), list)).items():
            setattr(self.model, key, value)
        self.part = self.make_part()
        self.top = self.assembled()
        point.install(self)
        self.gradients = None
        self.compiled = None

    def make_part(self):
        """The optimizer that is acted on."""
        if self.rule.name == "Hook":
            base = make_hook(self.package)
        else:
            base = getattr(self.package, self.rule.name)
        made = self.point.optimizer(base, self.rule, self.fire)
        return made(learning_rate=0.1, **self.rule.options)

    def assembled(self):
        """The optimizer that is called."""
        place, package = self.form.place, self.package
        if place == "alone":
            return self.part
        if place == "fallback":
            self.other = package.Muon(0.1) if package is stock else None
            if package is stock:
                return stock.MultiOptimizer([self.other, self.part], [lambda _, x: x.ndim > 1])
            self.other = package.Muon(0.1, fallback=self.part)
            return self.other
        self.other = package.SGD(0.1, momentum=0.8)
        takes = self.point.filter(lambda path, _: path == "e", self.fire)
        return package.MultiOptimizer([self.other, self.part], [takes])

    def begin(self, step):
        """Make the gradients of a step."""
        containers = self.point.gradient_containers(self.fire)
        gradients = grown(self.shapes, 100 + 10 * step, containers)
        if self.form.option == "skipped" and step == self.form.when:
            gradients["c"][1] = mx.full((4,), mx.inf)
            mx.eval(gradients["c"][1])
        if self.form.way == "lazy":
            gradients = lazily(gradients)
        self.gradients = gradients
        if self.form.way == "compiled" and step == 0:
            self.top.init(self.model.parameters())

    def hold(self):
        """Hold arrays that a step replaces or overwrites, as other code of a program would."""
        held = self.form.held
        if held == "gradients":
            self.keep_all(self.gradients)
        elif held == "parameters":
            self.keep_all(self.model)
        elif held == "moments":
            self.keep_all([part.state for part in self.parts()])
        elif held == "views":
            self.keep_all([x[1:] for x in flat(self.model).values() if seen_array(x)])

    def keep_all(self, tree):
        for path, leaf in flat(tree).items():
            if seen_array(leaf):
                self.keep(leaf, ".".join(path))

    def keep(self, x, name="array"):
        """Hold an array, which from now on may not change."""
        self.kept.append((name, x, seen(x)))

    def changed(self):
        """What was held and has other values now."""
        now = {(f"held {i}", name): seen(x) for i, (name, x, _) in enumerate(self.kept)}
        then = {(f"held {i}", name): values for i, (name, _, values) in enumerate(self.kept)}
        return differences(now, then, 0)

    def parts(self):
        """All optimizers that have a state of their own; last the one that is acted on."""
        if self.form.place == "alone":
            return [self.part]
        return [self.other, self.part]

    def options(self):
        return OPTIONS[self.form.option]

    def step(self):
        """One step in the program's form."""
        if self.package is stock:
            self.step_of_stock()
        elif self.form.way == "compiled":
            self.step_compiled()
        else:
            self.call(self.gradients, self.options())

    def call(self, gradients, options):
        new = None
        with self.point.around(self):
            if self.form.way == "apply_gradients":
                new = self.top.apply_gradients(gradients, self.model, **options)
            else:
                self.top.update(self.model, gradients, **options)
        if new is not None:
            put_leaves(self.model, new)

    def step_of_stock(self):
        """The step with its options, in mlx.optimizers' words."""
        options = self.options()
        if not options:
            self.call(self.gradients, {})
            return
        if self.init_first and not all(part._initialized for part in self.parts()):
            self.top.init(self.gradients)
        clipped, norm = stock.clip_grad_norm(self.gradients, options.get("max_norm", mx.inf))
        skip_nonfinite = options.get("skip_nonfinite") and not mx.isfinite(norm).item()
        if skip_nonfinite:
            # The step is made all the same, which may fail, and taken back.
            if not all(part._initialized for part in self.parts()):
                self.top.init(self.gradients)
            self.noted = self.entries()
        self.call(clipped, {})
        if skip_nonfinite:
            self.restore()
        if options.get("skip_nonfinite"):
            self.skipped = (self.skipped or 0) + skip_nonfinite
        self.norm = norm

    def entries(self):
        """All entries of the model and the states that are no containers, by where they are."""
        trees = [self.model, *(part.state for part in self.parts())]
        found = [entry for tree in trees for entry in entries(tree)]
        return {(id(container), key): (container, key, value) for container, key, value in found}

    def act(self, action):
        """Run an action. What it changes stays so, if the step is taken back."""
        before = self.entries()
        action(self)
        if self.noted is None:
            return
        now = self.entries()
        for place, (_, _, value) in before.items():
            if place not in now:
                self.noted.pop(place, None)
            elif now[place][2] is value:
                del now[place]
        self.noted |= now

    def restore(self):
        for container, key, value in self.noted.values():
            container[key] = value
        self.noted = None

    def step_compiled(self):
        """The first call traces the step, and is what is compared. mlx.optimizers is not compiled:
        its operations are fused, which takes a compiler and seconds."""
        if self.compiled is None:
            state = [self.model.state, self.top.state]

            def traced(gradients):
                self.gradients = gradients
                self.call(gradients, self.options())

            self.compiled = mx.compile(traced, inputs=state, outputs=state)
        self.compiled(self.gradients)

    def evaluate(self):
        with contextlib.suppress(RuntimeError):  # a tracer that outlived its trace
            mx.eval([x for x in flat(self.trees()).values() if seen_array(x)])

    def trees(self):
        trees = {"model": self.model, "gradients": self.gradients}
        for i, part in enumerate(self.parts()):
            state = part.state
            if isinstance(state, dict):
                state = {key: value for key, value in dict.items(state) if key != OURS}
            trees[f"state {i}"] = state
        return trees

    def photo(self):
        """What can be seen of all."""
        trees = self.trees()
        if self.form.way == "compiled":
            del trees["gradients"]  # of a trace
        trees["norm"] = self.norm if self.package is stock else self.top.grad_norm
        trees["skipped"] = self.skipped if self.package is stock else self.top.skipped
        return photo(trees)
