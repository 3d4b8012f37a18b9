"""float16 and bfloat16: every step is the float64 step of what is stored, rounded once."""

import mlx.core as mx
import numpy as np
import pytest

from cases import (
    Case,
    assert_exact,
    at_step,
    each_case,
    each_half,
    each_learning_rate,
    each_rule,
    exact_step,
    normal,
    ulp,
    wide,
)
from mlx_opt import references

STEPS = 25
SIZE = 1500


def spread(step, dtype):
    """A gradient whose elements are of all magnitudes from 1e-4 to 100."""
    g = normal(SIZE, seed=100 + step)
    return (g * 10 ** mx.random.uniform(-4, 2, (SIZE,), key=mx.random.key(step))).astype(dtype)


@each_learning_rate
@each_half
@each_case
def test_each_step_is_the_exact_one_rounded_once(case, dtype, learning_rate):
    optimizer = case.ours(learning_rate)
    w = normal(SIZE, seed=1, dtype=dtype)
    optimizer.init({"w": w})
    for step in range(STEPS):
        g = spread(step, dtype)
        state = {name: wide(optimizer.state["w"][name]) for name in case.slots}
        lr = at_step(learning_rate, step)
        new = optimizer.apply_gradients({"w": g}, {"w": w})["w"]
        kept = {name: optimizer.state[name].item() for name in case.keeps}
        stored = optimizer.state["w"]
        expected = exact_step(case, wide(w), wide(g), state, step + 1, lr, stored, kept)
        w = new
        for name, x in {"w": w, **optimizer.state["w"]}.items():
            if name in expected:
                assert x.dtype == case.formats.get(name, dtype)
                assert_exact(x, *expected[name])


@each_half
@each_rule
def test_a_gradient_of_another_dtype_is_taken_exactly(case, dtype):
    optimizer = case.ours(0.01)
    w, g = normal(SIZE, seed=1), normal(SIZE, seed=2, dtype=dtype)
    optimizer.init({"w": w})
    before = references.initial_state(case.rule, w, case.options)
    new = optimizer.apply_gradients({"w": g}, {"w": w})["w"]
    expected = exact_step(case, wide(w), wide(g), before, 1, 0.01, optimizer.state["w"])
    assert_exact(new, *expected["w"])


@each_half
@each_rule
def test_a_zero_gradient_is_no_nan(case, dtype):
    optimizer = case.ours(0.01)
    w = {"w": normal(100, seed=1, dtype=dtype)}
    for _ in range(5):
        w = optimizer.apply_gradients({"w": mx.zeros(100, dtype)}, w)
    assert mx.all(mx.isfinite(w["w"])).item()
    assert all(mx.all(mx.isfinite(optimizer.state["w"][name])).item() for name in case.slots)


@pytest.mark.parametrize("magnitude", [3e-4, 300.0, 30000.0])
@each_rule
def test_a_float16_gradient_whose_square_float16_lacks_gives_a_finite_step(case, magnitude):
    # 3e-4 squared is below float16's smallest denormal, 300 squared above its largest number.
    optimizer = case.ours(1e-3)
    w = {"w": mx.ones(100, mx.float16)}
    w = optimizer.apply_gradients({"w": mx.full(100, magnitude, mx.float16)}, w)
    assert mx.all(mx.isfinite(w["w"])).item()
    assert mx.all(w["w"] <= 1).item()


@each_half
@pytest.mark.parametrize("rule", ["AdamW", "Lion"])
def test_decay_too_small_for_the_dtype_adds_to_the_update(rule, dtype):
    # In either dtype 1 - lr * decay is 1. The update alone falls just short of the tie above `w`.
    w = mx.full((8,), 1.0, dtype)
    spacing = float(ulp(np.float64(0.75), dtype))
    lr, decay = 0.49 * spacing, 0.1
    case = Case(rule, {"weight_decay": decay} | ({"betas": (0.0, 0.0)} if rule == "AdamW" else {}))
    without = case._replace(options=case.options | {"weight_decay": 0.0})
    g = {"w": mx.ones((8,), dtype)}
    assert wide(without.ours(lr).apply_gradients(g, {"w": w})["w"])[0] == 1
    assert wide(case.ours(lr).apply_gradients(g, {"w": w})["w"])[0] == 1 - spacing
