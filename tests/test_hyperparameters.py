"""Hyperparameters that are no Python floats, that are on a schedule, or change between steps."""

import mlx.core as mx
import mlx.optimizers as stock
import numpy as np
import pytest

import mlx_opt
from cases import Case, assert_close, assert_same, each_rule, normal, signature

ARRAYS = {
    "SGD": ["weight_decay"],
    "RMSprop": ["alpha", "eps"],
    "Adagrad": ["eps"],
    "AdaDelta": ["rho", "eps"],
    "Adam": ["eps"],
    "AdamW": ["weight_decay", "eps"],
    "Adamax": ["eps"],
}
VALUES = {"weight_decay": 0.1, "alpha": 0.9, "rho": 0.8, "eps": 1e-3}


def tree(seed):
    return {"a": normal(17, seed=seed), "b": {"c": normal(4, 5, seed=seed + 50)}}


def walk(optimizer, steps=5, between=lambda optimizer, step: None):
    w = tree(0)
    for step in range(steps):
        between(optimizer, step)
        w = optimizer.apply_gradients(tree(1 + step), w)
    return w


@pytest.mark.parametrize("rule", list(ARRAYS))
def test_an_array_counts_as_its_value(rule):
    values = {name: VALUES[name] for name in ARRAYS[rule]}
    arrays = {name: mx.array(value) for name, value in values.items()}
    expected = walk(Case(rule, values).ours(0.01))
    assert_close(walk(Case(rule, arrays).ours(0.01)), expected)
    assert_close(walk(Case(rule, arrays).stock(0.01)), expected, 5e-6)


@pytest.mark.parametrize("package", [mlx_opt, stock])
def test_betas_given_as_arrays_count_as_their_values(package):
    expected = walk(mlx_opt.AdamW(0.01, betas=[0.8, 0.95], bias_correction=True))
    optimizer = package.AdamW(0.01, betas=[0.9, 0.9], bias_correction=True)
    optimizer.betas = [mx.array(0.8), mx.array(0.95)]
    assert_close(walk(optimizer), expected, 1e-5)


def scheduled(package):
    """AdamW whose decay is on a schedule, the way users write it."""

    class ScheduledDecay(package.AdamW):
        def __init__(self, learning_rate, weight_decay):
            super().__init__(learning_rate)
            self._maybe_schedule("weight_decay", weight_decay)

        @property
        def weight_decay(self):
            return self.state["weight_decay"]

        @weight_decay.setter
        def weight_decay(self, value):
            self.state["weight_decay"] = mx.array(value)

    return ScheduledDecay


def falling_decay(step):
    return 0.5 / (1 + step)


@pytest.mark.parametrize("decay", [0.3, falling_decay])
def test_a_subclass_may_schedule_the_decay(decay):
    ours = scheduled(mlx_opt)(0.1, decay)
    theirs = scheduled(stock)(0.1, decay)
    assert_close(walk(ours), walk(theirs), 2e-6)
    assert signature(ours.state) == signature(theirs.state)
    assert "weight_decay" in ours.state


def test_a_scheduled_decay_is_traced_by_compile():
    expected = walk(scheduled(stock)(0.1, falling_decay))
    optimizer = scheduled(mlx_opt)(0.1, falling_decay)
    optimizer.init(tree(0))
    step = mx.compile(
        optimizer.apply_gradients, inputs=[optimizer.state], outputs=[optimizer.state]
    )
    w = tree(0)
    for i in range(5):
        w = step(tree(1 + i), w)
    assert_close(w, expected, 2e-6)


def test_a_decay_set_in_the_state_between_compiled_steps_is_seen():
    ours, theirs = scheduled(mlx_opt)(0.1, 0.5), scheduled(stock)(0.1, 0.5)
    ours.init(tree(0))
    compiled = mx.compile(ours.apply_gradients, inputs=[ours.state], outputs=[ours.state])
    a = b = tree(0)
    for step in range(4):
        ours.weight_decay = theirs.weight_decay = 0.2 * step
        a = compiled(tree(1 + step), a)
        b = theirs.apply_gradients(tree(1 + step), b)
    assert_close(a, b, 2e-6)


@pytest.mark.parametrize(
    "value", [np.float32(0.25), np.float64(0.25), np.array(0.25), mx.array(0.25)], ids=repr
)
def test_a_scalar_of_any_kind_counts_as_its_value(value):
    expected = walk(mlx_opt.SGD(0.01, momentum=0.25, weight_decay=0.25))
    got = walk(mlx_opt.SGD(0.01, momentum=value, weight_decay=value))
    assert_close(got, expected)


def test_integers_count_as_their_values():
    expected = walk(mlx_opt.AdamW(0.01, betas=[0.0, 0.0], eps=1.0, weight_decay=1.0))
    assert_same(walk(mlx_opt.AdamW(0.01, betas=[0, 0], eps=1, weight_decay=1)), expected)


@pytest.mark.parametrize("rule", ["SGD", "AdamW"])
def test_a_hyperparameter_set_between_steps_holds_from_the_next(rule):
    def change(optimizer, step):
        optimizer.weight_decay = 0.05 * step

    ours = walk(Case(rule).ours(0.1), between=change)
    assert_close(ours, walk(Case(rule).stock(0.1), between=change), 2e-6)
    with pytest.raises(AssertionError):
        assert_close(ours, walk(Case(rule).stock(0.1)), 2e-6)


@each_rule
def test_a_learning_rate_set_between_steps_holds_from_the_next(case):
    def change(optimizer, step):
        optimizer.learning_rate = 0.1 / (1 + step)

    ours = walk(case.ours(0.5), between=change)
    assert_close(ours, walk(case.ours(lambda step: 0.1 / (1 + step))), 1e-6)


def test_momentum_switched_off_and_on_finds_its_old_velocity():
    def change(optimizer, step):
        optimizer.momentum = 0.9 if step % 2 else 0.0

    ours, theirs = mlx_opt.SGD(0.1), stock.SGD(0.1)
    assert_close(walk(ours, between=change), walk(theirs, between=change), 2e-6)
    assert_close(ours.state, theirs.state, 2e-6)


@pytest.mark.parametrize("values", [0.9, (0.9,), mx.array([0.9, 0.9, 0.9])])
def test_a_schedule_of_several_numbers_returns_as_many(values):
    with pytest.raises(ValueError, match="MARS: betas: expected 2 numbers from its schedule, got"):
        mlx_opt.MARS(0.1, betas=lambda step: values)
