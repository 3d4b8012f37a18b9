"""Points in what a program says of its optimizer."""

import mlx.core as mx

from .point import Kind, Point, with_method


class Schedule(Point):
    """A schedule of the optimizer, or of the one beside it."""

    kind, must_be_reached = Kind.SETTLED, True

    def __init__(self, name, of_other=False):
        self.name, self.of_other = name, of_other

    def allows(self, form):
        return form.place != "alone" or not self.of_other

    def install(self, world):
        def schedule(step):
            world.fire()
            return mx.array(0.1)

        optimizer = world.other if self.of_other else world.part
        optimizer._maybe_schedule(self.name, schedule)


class Property(Point):
    """An attribute that a subclass makes a property; by default the rule's hyperparameter."""

    must_be_reached = True

    def __init__(self, name=None):
        self.name = name

    def optimizer(self, base, rule, fire):
        name = self.name or rule.hyperparameter
        inherited = getattr(base, name, None)

        def get(self):
            fire()
            if inherited:
                return inherited.__get__(self, type(self))
            return vars(self)[f"own {name}"]

        def put(self, value):
            if inherited:
                inherited.__set__(self, value)
            else:
                vars(self)[f"own {name}"] = value

        return type(f"Foreign{base.__name__}", (base,), {name: property(get, put)})


class Number(Point):
    """A hyperparameter that is a number with methods of its own."""

    def optimizer(self, base, rule, fire):
        foreign = with_method(float, "__mul__", fire)
        foreign = with_method(with_method(foreign, "__rmul__", fire), "__float__", fire)

        class Foreign(base):
            def __setattr__(self, name, value):
                if name == rule.hyperparameter and type(value) is float:
                    value = foreign(value)
                super().__setattr__(name, value)

        return Foreign


class Hook(Point):
    """A method that a subclass of the optimizer overrides."""

    kind, must_be_reached = Kind.HOOK, True

    def __init__(self, name, late=False):
        self.name, self.late = name, late

    def allows(self, form):
        once = self.name in ("init", "init_single")
        if once and (form.when != 0 or form.way == "compiled"):
            return False
        # The optimizer that is called is another one.
        return form.place == "alone" or self.name not in ("update", "init")

    def optimizer(self, base, rule, fire):
        return with_method(base, self.name, fire, self.late)


class InstanceHook(Point):
    """An apply_single that is put into the instance."""

    kind, must_be_reached = Kind.HOOK, True

    def install(self, world):
        original = world.part.apply_single

        def apply_single(gradient, parameter, state):
            world.fire()
            return original(gradient, parameter, state)

        world.part.apply_single = apply_single


class Filter(Point):
    """The filter of a MultiOptimizer."""

    must_be_reached = True

    def allows(self, form):
        return form.place == "second part"

    def filter(self, function, fire):
        def foreign(path, leaf):
            fire()
            return function(path, leaf)

        return foreign
