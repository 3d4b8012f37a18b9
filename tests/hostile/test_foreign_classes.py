"""Optimizers made of others, classes that are patched, and modules with methods of their own."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as stock
import pytest

import mlx_opt

from .photo import differences, photo
from .processes import apart

OPTIONS = {
    "plain": {},
    "max_norm": {"max_norm": 1.0},
    "skip": {"skip_nonfinite": True},
    "both": {"max_norm": 1.0, "skip_nonfinite": True},
}
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
FUSED = [
    "SGD",
    "RMSprop",
    "Adagrad",
    "AdaDelta",
    "Adam",
    "AdamW",
    "Adamax",
    "Lion",
    "Adafactor",
    "Muon",
]


def wrapper(package, inner):
    class Wrapper(package.Optimizer):
        """Defines apply_gradients alone."""

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def apply_gradients(self, gradients, parameters):
            return self.inner.apply_gradients(gradients, parameters)

    return Wrapper(inner)


def placed(package, place):
    made = wrapper(package, package.AdamW(0.1))
    if place == "alone":
        return made
    filters = [lambda path, _: path == "w"]
    return package.MultiOptimizer([package.SGD(0.1), made], filters)


def model_of():
    model = nn.Module()
    model.w, model.b = mx.full((3, 4), 2.0), mx.full((3,), 3.0)
    mx.eval(model.parameters())
    return model


GRADIENTS = {"w": [[0.5, -1.0, 2.0, 0.25]] * 3, "b": [0.5, 1.0, 2.0]}


def gradients_of():
    gradients = {key: mx.array(value) for key, value in GRADIENTS.items()}
    mx.eval(gradients)
    return gradients


# Its own apply_gradients has no options.
@pytest.mark.parametrize(
    "place, call", [("alone", "update"), ("part", "update"), ("part", "apply_gradients")]
)
@each_option
def test_an_optimizer_made_of_another_one(options, place, call):
    models = []
    for package in (stock, mlx_opt):
        model, optimizer = model_of(), placed(package, place)
        for _ in range(3):
            gradients = gradients_of()
            if package is stock:
                if "max_norm" in options:
                    gradients, _ = stock.clip_grad_norm(gradients, options["max_norm"])
                optimizer.update(model, gradients)
            elif call == "update":
                optimizer.update(model, gradients, **options)
            else:
                model.update(optimizer.apply_gradients(gradients, model, **options))
        models.append(photo(model))
    assert not differences(models[1], models[0], 1e-5)


@pytest.mark.parametrize("place", ["alone", "part"])
def test_an_optimizer_made_of_another_one_leaves_the_model_in_a_skipped_step(place):
    model, optimizer = model_of(), placed(mlx_opt, place)
    before = photo(model)
    gradients = gradients_of() | {"b": mx.array([mx.nan, 1.0, 1.0])}
    optimizer.update(model, gradients, skip_nonfinite=True)
    assert not differences(photo(model), before, 0)
    assert optimizer.skipped.item() == 1


def options_of(rule):
    return {} if rule == "Adafactor" else {"learning_rate": 0.1}


@pytest.mark.parametrize("call", ["update", "apply_gradients"])
@pytest.mark.parametrize("name", ["apply_gradients", "apply_single"])
@pytest.mark.parametrize("rule", FUSED)
@apart
def test_a_method_patched_in_the_rules_class_is_called(rule, name, call):
    for package in (stock, mlx_opt):
        cls = getattr(package, rule)
        calls = []
        original = getattr(cls, name)

        def patched(self, *arguments, original=original, calls=calls, **options):
            calls.append(name)
            return original(self, *arguments, **options)

        setattr(cls, name, patched)
        model, optimizer = model_of(), cls(**options_of(rule))
        step(optimizer, model, call)
        assert calls, package.__name__


@pytest.mark.parametrize("call", ["update", "apply_gradients"])
@pytest.mark.parametrize("rule", FUSED)
@apart
def test_apply_gradients_patched_in_the_base_class_is_called(rule, call):
    for package in (stock, mlx_opt):
        original = package.Optimizer.apply_gradients
        calls = []

        def patched(self, gradients, parameters, original=original, calls=calls):
            calls.append(type(self))
            return original(self, gradients, parameters)

        package.Optimizer.apply_gradients = patched
        model, optimizer = model_of(), getattr(package, rule)(**options_of(rule))
        step(optimizer, model, call)
        assert calls, package.__name__


def step(optimizer, model, call):
    if call == "update":
        optimizer.update(model, gradients_of())
    else:
        model.update(optimizer.apply_gradients(gradients_of(), model))
    mx.eval(model.parameters())


@pytest.mark.parametrize("lazy", [False, True])
def test_a_modules_own_setitem_sees_its_parameters_or_the_arrays_stay(lazy):
    """It is called with each new array. A step that overwrites an array puts none there."""

    class Watching(nn.Module):
        def __setitem__(self, key, value):
            seen.append(key)
            super().__setitem__(key, value)

    seen = []
    model = Watching()
    model.w, model.b = mx.full((3, 4), 2.0), mx.full((3,), 3.0)
    mx.eval(model.parameters())
    optimizer = mlx_opt.AdamW(0.1)
    for _ in range(3):
        seen.clear()
        before = {key: id(x) for key, x in dict.items(model)}
        gradients = gradients_of()
        if lazy:
            gradients = {key: 1 * x for key, x in gradients.items()}
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)
        for key, x in dict.items(model):
            assert id(x) == before[key] or key in seen
    assert not lazy or set(seen) == {"w", "b"}
