"""Optimizers that are derived from a description: arguments, checks, schedules, subclasses."""

import copy
import pickle

import mlx.core as mx
import numpy as np
import pytest

import mlx_opt
from cases import Case, assert_close, assert_same, normal, wide
from mlx_opt import references


def tree(seed):
    return {"a": normal(17, seed=seed), "b": [normal(4, 5, seed=seed + 50)]}


def walk(optimizer, steps=5):
    w = tree(0)
    for step in range(steps):
        w = optimizer.apply_gradients(tree(1 + step), w)
    return w


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"eps": -1}, ValueError, "AdEMAMix: eps: expected 0 or more, got -1"),
        ({"eps": float("nan")}, ValueError, "AdEMAMix: eps: expected 0 or more, got nan"),
        (
            {"betas": (0.9, 0.99, 1)},
            ValueError,
            r"AdEMAMix: betas\[2\]: expected a number in \[0, 1\), got 1",
        ),
        ({"betas": (0.9, 0.99)}, ValueError, r"betas: expected 3 numbers, got \(0.9, 0.99\)"),
        ({"betas": 0.9}, ValueError, "AdEMAMix: betas: expected 3 numbers, got 0.9"),
        ({"alpha": "2"}, TypeError, "AdEMAMix: alpha: expected a number .*, got str"),
        ({"alpha": None}, TypeError, "AdEMAMix: alpha: expected a number .*, got NoneType"),
        ({"momentum": 0.9}, TypeError, "AdEMAMix: got an unexpected keyword argument 'momentum'"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(options, error, message):
    with pytest.raises(error, match=message):
        mlx_opt.AdEMAMix(0.1, **options)


def test_a_missing_learning_rate_is_refused():
    with pytest.raises(TypeError, match="Signum: missing a required argument: 'learning_rate'"):
        mlx_opt.Signum()


def test_a_wrong_value_set_later_is_refused_and_changes_nothing():
    optimizer = mlx_opt.Signum(0.1, weight_decay=0.25)
    with pytest.raises(ValueError, match="Signum: weight_decay: expected 0 or more, got -1"):
        optimizer.weight_decay = -1
    assert optimizer.weight_decay == 0.25


def test_arguments_may_be_given_by_position():
    optimizer = mlx_opt.Signum(0.1, 0.8, 0.25)
    assert (optimizer.beta, optimizer.weight_decay) == (0.8, 0.25)
    assert optimizer.state.keys() == {"step", "learning_rate"}


@pytest.mark.parametrize("value", [np.float32(0.25), np.array(0.25), mx.array(0.25), 0.25])
def test_a_scalar_of_any_kind_counts_as_its_value(value):
    expected = walk(mlx_opt.Signum(0.1, beta=0.25, weight_decay=0.25))
    assert_close(walk(mlx_opt.Signum(0.1, beta=value, weight_decay=value)), expected)


def falling(step):
    return 0.5 / (1 + step)


def test_any_hyperparameter_may_be_on_a_schedule():
    optimizer = mlx_opt.AdEMAMix(0.1, weight_decay=falling, alpha=lambda step: 3.0 * step)
    w = expected = tree(0)
    steady = mlx_opt.AdEMAMix(0.1)
    for step in range(5):
        w = optimizer.apply_gradients(tree(1 + step), w)
        steady.weight_decay, steady.alpha = falling(step), 3.0 * step
        expected = steady.apply_gradients(tree(1 + step), expected)
        assert optimizer.weight_decay.item() == pytest.approx(falling(step))
    assert_close(w, expected)
    assert optimizer.state.keys() >= {"weight_decay", "alpha"}


def test_a_schedule_is_traced_by_compile():
    expected = walk(mlx_opt.Signum(0.1, weight_decay=falling))
    optimizer = mlx_opt.Signum(0.1, weight_decay=falling)
    optimizer.init(tree(0))
    step = mx.compile(
        optimizer.apply_gradients, inputs=[optimizer.state], outputs=[optimizer.state]
    )
    w = tree(0)
    for i in range(5):
        w = step(tree(1 + i), w)
    assert_close(w, expected)


def test_a_value_set_over_a_schedule_lasts_until_the_next_step():
    optimizer = mlx_opt.Signum(0.1, weight_decay=falling)
    optimizer.weight_decay = 0.125
    assert optimizer.weight_decay.item() == 0.125
    optimizer.apply_gradients(tree(1), tree(0))
    assert optimizer.weight_decay.item() == 0.5


def test_a_parameter_may_have_the_name_of_a_hyperparameter():
    w = {"alpha": mx.ones(3), "eps": mx.ones(3)}
    optimizer = mlx_opt.AdEMAMix(0.1)
    new = optimizer.apply_gradients(w, w)
    assert optimizer.alpha == 2.0
    assert mx.array_equal(new["alpha"], new["eps"]).item()


def test_a_schedule_survives_pickle_and_copies():
    optimizer = mlx_opt.Signum(0.1, weight_decay=falling)
    w = optimizer.apply_gradients(tree(1), tree(0))
    for twin in (pickle.loads(pickle.dumps(optimizer)), copy.deepcopy(optimizer)):
        other = copy.deepcopy(optimizer)
        assert_same(twin.apply_gradients(tree(2), w), other.apply_gradients(tree(2), w))


class Halved(mlx_opt.Signum):
    def __init__(self, learning_rate, weight_decay):
        super().__init__(learning_rate / 2, weight_decay=weight_decay)

    def apply_single(self, gradient, parameter, state):
        return super().apply_single(gradient * 2, parameter, state)


def test_a_subclass_may_have_its_own_arguments_and_step():
    doubled = [{"a": 2 * g["a"], "b": [2 * g["b"][0]]} for g in map(tree, range(1, 6))]
    optimizer, w = mlx_opt.Signum(0.05, weight_decay=0.25), tree(0)
    for g in doubled:
        w = optimizer.apply_gradients(g, w)
    assert_close(walk(Halved(0.1, 0.25)), w)


def test_ademamixs_slow_moment_moves_in_bfloat16():
    case = Case("AdEMAMix")
    optimizer = case.ours(1e-3)
    w = {"w": normal(257, seed=1, dtype=mx.bfloat16)}
    optimizer.init(w)
    slow = np.zeros(257)
    for step in range(300):
        g = normal(257, seed=2 + step, dtype=mx.bfloat16)
        w = optimizer.apply_gradients({"w": g + 1}, w)
        slow = 0.9999 * slow + 1e-4 * wide(g + 1)
    assert w["w"].dtype == mx.bfloat16
    np.testing.assert_allclose(wide(optimizer.state["w"]["m2"]), slow, rtol=1e-5)


@pytest.mark.parametrize("betas", [(0.9, 0.999, 0.9999), (0.0, 0.9, 0.99), (0.9, 0.9, 0.0)])
@pytest.mark.parametrize("warmup", [1, 2, 50, 51, 10_000_000])
def test_ademamixs_warm_ups_hold_at_any_step(betas, warmup):
    options = {"betas": betas, "alpha": 5.0, "alpha_warmup": warmup, "beta3_warmup": warmup}
    optimizer = mlx_opt.AdEMAMix(0.01, **options)
    w, g = normal(64, seed=1), normal(64, seed=2)
    optimizer.init({"w": w})
    optimizer.state["step"] = mx.array(49, mx.uint64)
    new = optimizer.apply_gradients({"w": g}, {"w": w})["w"]
    expected, state = references.REFERENCES["AdEMAMix"](
        wide(w),
        wide(g),
        references.initial_state("AdEMAMix", w, {}),
        50,
        learning_rate=0.01,
        **options,
    )
    np.testing.assert_allclose(wide(optimizer.state["w"]["m2"]), state["m2"], rtol=1e-6)
    np.testing.assert_allclose(wide(new), expected, rtol=1e-6, atol=1e-6)
