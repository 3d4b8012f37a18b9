"""Whatever a program does around a step, its numbers are those of mlx.optimizers, held arrays keep
their values, and an error leaves the model and every state as they were."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as stock
import numpy as np
import pytest
from mlx.utils import tree_map

import mlx_opt
from cases import assert_close, assert_same

PACKAGES = pytest.mark.parametrize("package", [mlx_opt, stock], ids=["ours", "stock"])
CALLS = pytest.mark.parametrize("call", ["update", "apply_gradients"])


def copied(tree):
    return tree_map(lambda x: mx.array(np.array(x)), tree)


def model_of(count=3, shape=(4,)):
    model = nn.Module()
    for i in range(count):
        model[f"p{i}"] = mx.full(shape, 1.0 + i)
    return model


def gradients_of(model):
    gradients = {name: 0.5 * x for name, x in model.parameters().items()}
    mx.eval(gradients, model.parameters())
    return gradients


def step(optimizer, model, gradients, call):
    if call == "update":
        optimizer.update(model, gradients)
    else:
        model.update(optimizer.apply_gradients(gradients, model))
    mx.eval(model.parameters(), optimizer.state)


def walk(package, make, call, steps=4):
    """The parameters after some steps; the gradients of each stay as they were."""
    model = model_of()
    optimizer = make(package, model)
    for _ in range(steps):
        gradients = gradients_of(model)
        before = copied(gradients)
        step(optimizer, model, gradients, call)
        assert_same(gradients, before)
    return model.parameters()


@CALLS
@pytest.mark.parametrize(("first", "then"), [(0.0, 0.9), (0.9, 0.0), (0.9, 0.5)])
def test_a_schedule_may_change_the_momentum(call, first, then):
    def make(package, _):
        def rate(count):
            if count.item() == 1:
                optimizer.momentum = then
            return mx.array(0.1)

        optimizer = package.SGD(0.1, momentum=first)
        optimizer._schedulers["learning_rate"] = rate
        return optimizer

    assert_close(walk(mlx_opt, make, call), walk(stock, make, call))


@CALLS
def test_a_property_may_depend_on_the_step(call):
    def make(package, _):
        class Warm(package.SGD):
            momentum = property(lambda self: 0.0 if self.step.item() < 2 else 0.9, lambda *_: None)

        return Warm(0.1)

    assert_close(walk(mlx_opt, make, call), walk(stock, make, call))


@CALLS
def test_a_schedule_may_swap_a_parameter(call):
    kept = []

    def make(package, model):
        def rate(count):
            if count.item() == 2:
                kept.append(model.p0)
                model.p0 = mx.full((4,), 7.0)
                mx.eval(model.p0)
            return mx.array(0.1)

        optimizer = package.SGD(0.1)
        optimizer._schedulers["learning_rate"] = rate
        return optimizer

    assert_close(walk(mlx_opt, make, call), walk(stock, make, call))
    ours, theirs = kept
    assert_close(ours, theirs)


@CALLS
@pytest.mark.parametrize("instead", [None, "text"])
def test_state_that_a_schedule_takes_away_is_an_error_and_no_step(call, instead):
    model, optimizer = model_of(), mlx_opt.AdamW(0.1)
    step(optimizer, model, gradients_of(model), call)
    before = copied(model.parameters())

    def rate(count):
        if instead is None:
            del optimizer.state["p1"]["m"]
        else:
            optimizer.state["p1"]["m"] = instead
        return mx.array(0.1)

    optimizer._schedulers["learning_rate"] = rate
    with pytest.raises((KeyError, TypeError)):
        step(optimizer, model, gradients_of(model), call)
    assert_same(model.parameters(), before)
    assert optimizer.step.item() == 1


@CALLS
@pytest.mark.parametrize("options", [{}, {"max_norm": 1.0, "skip_nonfinite": True}], ids=str)
def test_a_part_that_fails_leaves_the_others_alone(call, options):
    def rate(count):
        if count.item() >= 1:
            raise RuntimeError("schedule")
        return mx.array(0.1)

    model = model_of()
    parts = [mlx_opt.SGD(0.1, momentum=0.9), mlx_opt.AdamW(rate)]
    optimizer = mlx_opt.MultiOptimizer(parts, [lambda path, _: path == "p0"])
    step(optimizer, model, gradients_of(model), call)
    before, state = copied(model.parameters()), copied(optimizer.state)
    with pytest.raises(RuntimeError, match="schedule"):
        getattr(optimizer, call)(
            *((model, gradients_of(model)) if call == "update" else (gradients_of(model), model)),
            **options,
        )
    assert_same(model.parameters(), before)
    assert_same(optimizer.state, state)


def test_one_dict_of_state_at_two_places_is_updated_in_turn():
    def result(package):
        model, optimizer = model_of(4, (300, 300)), package.AdamW(0.1)
        gradients = gradients_of(model)
        step(optimizer, model, gradients, "update")
        for i in range(4):
            optimizer.state[f"p{i}"] = optimizer.state["p0"]
        for _ in range(3):
            step(optimizer, model, gradients, "update")
        return model.parameters()

    assert_close(result(mlx_opt), result(stock))


@PACKAGES
def test_parameters_may_have_any_name(package):
    names = ["grad_norm", "skipped", "fallback"]
    model = nn.Module()
    for name in names:
        model[name] = mx.ones((3,))
    optimizer = package.AdamW(0.1)
    for _ in range(2):
        options = {"max_norm": 10.0, "skip_nonfinite": True} if package is mlx_opt else {}
        optimizer.update(model, {name: mx.ones((3,)) for name in names}, **options)
    assert all(optimizer.state[name].keys() == {"m", "v"} for name in names)
    assert_close(model.parameters(), {name: model.grad_norm for name in names})


def test_a_parameter_of_the_reserved_name_is_refused():
    with pytest.raises(ValueError, match="mlx_opt: a parameter of this name"):
        mlx_opt.SGD(0.1).init({"mlx_opt": mx.ones(3)})


def test_former_root_entries_load():
    optimizer = mlx_opt.Muon(0.1, fallback=mlx_opt.SGD(0.1))
    w = {"w": mx.ones((2, 3)), "b": mx.ones(3)}
    optimizer.apply_gradients(w, w, max_norm=1.0, skip_nonfinite=True)
    state = dict(optimizer.state)
    state |= state.pop("mlx_opt")
    again = mlx_opt.Muon(0.1, fallback=mlx_opt.SGD(0.1))
    again.state = state
    assert again.state["mlx_opt"]["fallback"] is again.fallback.state
    assert again.skipped.item() == 0 and again.grad_norm.item() == optimizer.grad_norm.item()
    assert_same(again.apply_gradients(w, w), optimizer.apply_gradients(w, w))


def test_a_tree_may_change_while_it_is_walked():
    gradients = {f"p{i}": mx.ones(4) for i in range(50)}

    class Parameters(dict):
        def __getitem__(self, key):
            gradients.clear()
            return mx.ones(4)

    updated = mlx_opt.SGD(0.1).apply_gradients(gradients, Parameters())
    assert len(updated) in (0, 50)


def test_an_array_that_was_never_made_is_a_type_error():
    with pytest.raises(TypeError, match="w: gradient must be"):
        mlx_opt.SGD(0.1).apply_gradients({"w": mx.array.__new__(mx.array)}, {"w": mx.ones(3)})


@pytest.mark.parametrize("lazy", [True, False])
def test_a_parameter_in_a_tuple_is_refused_before_anything_changes(lazy):
    model = nn.Module()
    model.p, model.t = mx.ones(2), [(mx.ones(2),)]
    optimizer = mlx_opt.SGD(0.1, momentum=0.9)
    gradients = {"p": mx.ones(2), "t": [[mx.ones(2)]]}
    optimizer.init(gradients)
    mx.eval(model.p, model.t, optimizer.state, gradients)
    if lazy:
        gradients = {"p": gradients["p"] * 1, "t": [[gradients["t"][0][0] * 1]]}
    with pytest.raises(TypeError, match="t.0.0: the parameter is in a tuple"):
        optimizer.update(model, gradients)
    assert optimizer.step.item() == 0 and model.p[0].item() == 1.0
    assert not optimizer.state["p"]["v"].any()


class Packed(mlx_opt.SGD):
    """A list of arrays, which the first step makes, and one that grows."""

    def init_single(self, parameter, state):
        state["count"] = 0

    def apply_single(self, gradient, parameter, state):
        m, history = state.get("m", [mx.zeros_like(gradient), mx.zeros((0, gradient.size))])
        history = mx.concatenate([history, gradient.reshape(1, -1)])
        state["m"] = [0.9 * m + gradient, history]
        state["count"] += 1
        return parameter - self.learning_rate * state["m"][0]


def test_a_hooks_own_kinds_of_state_may_be_skipped():
    optimizer, plain = Packed(0.1), Packed(0.1)
    w = expected = {"w": mx.ones(3)}
    for value in (mx.nan, 1.0, 2.0, mx.nan, 3.0):
        gradients = {"w": mx.full((3,), value)}
        w = optimizer.apply_gradients(gradients, w, skip_nonfinite=True)
        if np.isfinite(value):
            expected = plain.apply_gradients(gradients, expected)
    assert_close(w, expected)
    assert optimizer.skipped.item() == 2 and optimizer.step.item() == 3
    assert optimizer.state["w"]["count"] == 3


@pytest.mark.parametrize("options", [{"max_norm": 1.0}, {"skip_nonfinite": True}], ids=str)
def test_a_wrapper_has_only_apply_gradients(options):
    class Wrapper(mlx_opt.Optimizer):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def apply_gradients(self, gradients, parameters):
            return self.inner.apply_gradients(gradients, parameters)

    wrapper, w = Wrapper(mlx_opt.AdamW(0.1)), {"w": mx.ones(3)}
    model = dict(w)
    wrapper.update(model, {"w": mx.array([0.1, 0.2, 0.3])}, **options)
    assert_close(model, mlx_opt.AdamW(0.1).apply_gradients({"w": mx.array([0.1, 0.2, 0.3])}, w))
    if "skip_nonfinite" in options:
        before = copied(model)
        wrapper.update(model, {"w": mx.full((3,), mx.nan)}, **options)
        assert_same(model, before)
        assert wrapper.inner.step.item() == 1


@PACKAGES
@pytest.mark.parametrize("name", ["apply_gradients", "apply_single"])
def test_a_patched_base_class_is_called(package, name, monkeypatch):
    owner = package.Optimizer if name == "apply_gradients" else package.SGD
    original, seen = getattr(owner, name), []

    def patched(self, *arguments):
        seen.append(name)
        return original(self, *arguments)

    monkeypatch.setattr(owner, name, patched)
    model = {"w": mx.ones(2)}
    package.SGD(0.1).update(model, {"w": mx.ones(2)})
    assert seen == [name]


@pytest.mark.parametrize("count", [1000, 1000.0, np.int64(1000), np.array(1000)], ids=repr)
def test_a_step_may_be_a_number(count):
    def result(package):
        optimizer = package.AdamW(1e-3, bias_correction=True)
        optimizer.init({"w": mx.ones(3)})
        optimizer.state["step"] = count
        return optimizer.apply_gradients({"w": mx.ones(3)}, {"w": mx.ones(3)})

    assert_close(result(mlx_opt), result(stock))


@pytest.mark.parametrize("flag", [1, np.True_])
def test_skip_nonfinite_takes_what_is_true(flag):
    w = {"w": mx.ones(3)}
    optimizer = mlx_opt.SGD(0.1)
    optimizer.apply_gradients({"w": mx.full((3,), mx.nan)}, w, skip_nonfinite=flag)
    assert optimizer.skipped.item() == 1


@pytest.mark.parametrize("options", [{"skip_nonfinite": "yes"}, {"max_norm": "1"}], ids=str)
def test_other_options_are_refused_by_name(options):
    w, optimizer = {"w": mx.ones(3)}, mlx_opt.SGD(0.1)
    with pytest.raises(TypeError, match=next(iter(options))):
        optimizer.apply_gradients(w, w, **options)
    assert optimizer.state.keys() == {"step", "learning_rate"}


@pytest.mark.parametrize("outputs", ["none", "model"])
def test_a_rule_that_does_not_read_the_step_does_not_depend_on_it(outputs):
    def result(package):
        model, optimizer = model_of(), package.SGD(0.1)
        optimizer.init(model.parameters())

        def step(gradients):
            optimizer.update(model, gradients)
            return model.parameters()

        captured = {} if outputs == "none" else {"outputs": [model.state]}
        compiled = mx.compile(step, inputs=optimizer.state, **captured)
        updated = {}
        for _ in range(3):
            updated = compiled({f"p{i}": mx.full((4,), 0.5) for i in range(3)})
            mx.eval(updated)
        return updated

    assert_close(result(mlx_opt), result(stock))
