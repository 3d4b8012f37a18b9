"""Subclasses and instances that replace a hook are served by their hook, as with stock."""

import copy

import mlx.core as mx
import mlx.optimizers as stock
import numpy as np
import pytest
from mlx.utils import tree_map

import mlx_opt
from cases import assert_close, assert_same, each_rule, flat, normal, wide

PACKAGES = pytest.mark.parametrize("package", [mlx_opt, stock], ids=["ours", "stock"])
RULES = pytest.mark.parametrize("rule", ["Adam", "AdamW", "Muon"])


def tree(seed):
    return {"a": normal(3, 4, seed=seed), "layers": [{"b": normal(2, 5, seed=seed)}]}


def walk(optimizer, steps=3):
    w = tree(0)
    for step in range(steps):
        w = optimizer.apply_gradients(tree(1 + step), w)
        mx.eval(w, optimizer.state)
    return w


def both(make, tolerance=2e-6):
    """What `make(package)` builds walks alike in either package."""
    ours, theirs = make(mlx_opt), make(stock)
    assert_close(walk(ours), walk(theirs), tolerance)
    assert_close(ours.state, theirs.state, tolerance)
    return ours


def test_an_optimizer_is_made_of_two_hooks():
    def make(package):
        class SignDescent(package.Optimizer):
            def __init__(self, learning_rate):
                super().__init__()
                self._maybe_schedule("learning_rate", learning_rate)

            def init_single(self, parameter, state):
                state["seen"] = mx.zeros_like(parameter)

            def apply_single(self, gradient, parameter, state):
                state["seen"] = state["seen"] + mx.abs(gradient)
                return parameter - self.learning_rate * mx.sign(gradient)

        return SignDescent(lambda step: 0.1 / (1 + step))

    optimizer = both(make)
    assert optimizer.state["a"].keys() == {"seen"}


def test_the_base_class_leaves_the_hooks_to_others():
    optimizer = mlx_opt.Optimizer()
    with pytest.raises(NotImplementedError):
        optimizer.init_single(mx.zeros(1), {})
    with pytest.raises(NotImplementedError):
        optimizer.apply_single(mx.zeros(1), mx.zeros(1), {})


@RULES
def test_init_single_may_add_to_the_state(rule):
    def make(package):
        class WithAverage(getattr(package, rule)):
            def init_single(self, parameter, state):
                super().init_single(parameter, state)
                state["average"] = mx.array(parameter)

        return WithAverage(0.01)

    optimizer = both(make, 1e-5)
    assert "average" in optimizer.state["a"]


@pytest.mark.parametrize("rule", ["Adam", "AdamW"])
def test_init_single_may_choose_the_slots(rule):
    def make(package):
        class Warm(getattr(package, rule)):
            def init_single(self, parameter, state):
                state["m"] = mx.ones(parameter.shape, mx.bfloat16)
                state["v"] = mx.ones_like(parameter)

        return Warm(0.01)

    ours, theirs = make(mlx_opt), make(stock)
    assert_close(walk(ours), walk(theirs), 1e-2)
    assert ours.state["a"]["m"].dtype == theirs.state["a"]["m"].dtype


@RULES
def test_apply_single_may_work_around_the_rule(rule):
    def make(package):
        class Clipped(getattr(package, rule)):
            def __init__(self, *arguments):
                super().__init__(*arguments)
                self.shapes = []

            def apply_single(self, gradient, parameter, state):
                self.shapes.append(gradient.shape)
                gradient = mx.clip(gradient, -0.5, 0.5)
                return 0.999 * super().apply_single(gradient, parameter, state)

        return Clipped(0.01)

    optimizer = both(make, 1e-5)
    assert optimizer.shapes == [(3, 4), (2, 5)] * 3


@each_rule
def test_apply_single_called_by_hand_is_one_leafs_step(case):
    ours, theirs = case.ours(0.1), case.stock(0.1)
    w, g = normal(4, seed=1), normal(4, seed=2)
    results = []
    for optimizer in (ours, theirs):
        state = {}
        optimizer.init_single(w, state)
        case.begin_after(optimizer, 1)
        kept = state
        results.append((optimizer.apply_single(g, w, state), state))
        assert kept is state
    assert_close(results[0], results[1], 2e-5)


@RULES
def test_apply_gradients_may_work_around_the_step(rule):
    def make(package):
        class Scaled(getattr(package, rule)):
            def apply_gradients(self, gradients, parameters):
                gradients = tree_map(lambda g: 2 * g, gradients)
                new = super().apply_gradients(gradients, parameters)
                return tree_map(lambda x: x + 1, new)

        return Scaled(0.01)

    both(make, 1e-5)


@RULES
def test_init_may_be_overridden(rule):
    def make(package):
        class Counting(getattr(package, rule)):
            inits = 0

            def init(self, parameters):
                self.inits += 1
                super().init(parameters)

        return Counting(0.01)

    assert both(make, 1e-5).inits == 1


@PACKAGES
@RULES
def test_update_goes_through_apply_gradients(package, rule):
    class Frozen(getattr(package, rule)):
        def apply_gradients(self, gradients, parameters):
            return tree_map(lambda g, p: p, gradients, parameters)

    model = tree(0)
    before = dict(flat(model))
    Frozen(0.01).update(model, tree(1))
    assert all(flat(model)[path] is x for path, x in before.items())


@PACKAGES
@pytest.mark.parametrize("rule", ["SGD", "Adam", "AdamW", "Muon"])
def test_an_instances_own_apply_single_is_called(package, rule):
    optimizer = getattr(package, rule)(0.01)
    calls = []

    def apply_single(gradient, parameter, state):
        calls.append(gradient.shape)
        return parameter + 1

    optimizer.apply_single = apply_single
    new = optimizer.apply_gradients(tree(1), tree(0))
    assert calls == [(3, 4), (2, 5)]
    assert_same(new, tree_map(lambda x: x + 1, tree(0)))


def test_an_instances_apply_single_may_wrap_the_classes():
    optimizer, plain = mlx_opt.AdamW(0.1), mlx_opt.AdamW(0.1)
    original = optimizer.apply_single
    optimizer.apply_single = lambda g, w, state: original(0.5 * g, w, state)
    halved = walk(optimizer)
    w = tree(0)
    for step in range(3):
        w = plain.apply_gradients(tree_map(lambda g: 0.5 * g, tree(1 + step)), w)
    assert_close(halved, w, 1e-7)


def test_a_method_of_another_optimizer_may_be_borrowed():
    lion, adam = mlx_opt.Lion(0.1), mlx_opt.AdamW(0.1)
    adam.apply_single = lion.apply_single
    adam.init_single = lion.init_single
    assert_close(walk(adam), walk(mlx_opt.Lion(0.1)), 1e-7)


@PACKAGES
def test_schedulers_are_a_dict_that_users_read_and_change(package):
    optimizer = package.AdamW(lambda step: mx.array(0.5))
    assert list(optimizer._schedulers) == ["learning_rate"]
    optimizer._schedulers["beta"] = lambda step: step * 2
    optimizer.update({}, {})
    optimizer.update({}, {})
    assert optimizer.state["beta"].item() == 2
    del optimizer._schedulers["learning_rate"]
    optimizer.learning_rate = 0.25
    optimizer.update({}, {})
    assert optimizer.learning_rate.item() == 0.25


@PACKAGES
def test_initialized_says_whether_init_is_due(package):
    optimizer = package.Adam(0.1)
    assert optimizer._initialized is False
    optimizer.apply_gradients(tree(1), tree(0))
    assert optimizer._initialized is True
    optimizer.state = copy.deepcopy(optimizer.state)
    assert optimizer._initialized is False


def test_a_subclass_with_a_property_for_a_hyperparameter_is_asked_each_step():
    def make(package):
        class Warming(package.AdamW):
            asked = 0

            @property
            def eps(self):
                Warming.asked += 1
                return 1e-3

            @eps.setter
            def eps(self, value):
                pass

        Warming.asked = 0
        return Warming(0.1)

    optimizer = both(make)
    assert type(optimizer).asked >= 3


def test_a_subclass_of_a_rule_is_of_both_packages():
    for name in ("SGD", "RMSprop", "Adagrad", "AdaDelta", "Adam", "AdamW", "Adamax", "Lion"):
        optimizer = getattr(mlx_opt, name)(0.1)
        assert isinstance(optimizer, getattr(stock, name))
        assert isinstance(optimizer, mlx_opt.Optimizer)
    assert isinstance(mlx_opt.AdamW(0.1), mlx_opt.Adam)
    assert isinstance(mlx_opt.Adamax(0.1), mlx_opt.Adam)


def test_a_hook_may_give_another_dtype_or_shape():
    class Ensemble(mlx_opt.SGD):
        def apply_single(self, gradient, parameter, state):
            return mx.stack([super().apply_single(gradient, parameter, state)] * 2)

    new = Ensemble(1.0).apply_gradients({"w": mx.ones(3)}, {"w": mx.ones(3)})
    np.testing.assert_array_equal(wide(new["w"]), np.zeros((2, 3)))


def test_a_hook_takes_what_the_rule_would_refuse():
    class Broadcasting(mlx_opt.AdamW):
        def apply_single(self, gradient, parameter, state):
            return parameter - gradient

    g, w = {"w": mx.ones((1, 3))}, {"w": mx.ones((2, 3))}
    assert Broadcasting(1.0).apply_gradients(g, w)["w"].shape == (2, 3)
