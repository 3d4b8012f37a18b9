"""NaN, infinities, zeros, denormals and the largest numbers."""

import itertools

import mlx.core as mx
import numpy as np
import pytest

import mlx_opt
from cases import (
    DTYPES,
    dtype_name,
    each_case,
    each_dtype,
    each_elementwise,
    each_rule,
    exact_step,
    normal,
    rounded,
    ulp,
    wide,
)
from mlx_opt import references

INF = float("inf")
SPECIAL = [0.0, -0.0, 1.0, -2.5, 1e-30, 1e30, INF, -INF, float("nan")]


def grid(*axes):
    """Every combination of the axes' values, a float32 array an axis."""
    columns = np.array(list(itertools.product(*axes)), np.float32).T
    return [mx.array(np.ascontiguousarray(column)) for column in columns]


def step(optimizer, w, g, state):
    optimizer.init({"w": w})
    optimizer.state["w"].update(state)
    return optimizer.apply_gradients({"w": g}, {"w": w})["w"], optimizer.state["w"]


def kinds(x):
    """Per element: NaN, an infinity with its sign, or a finite number."""
    x = wide(x)
    return np.where(np.isnan(x), "nan", np.where(np.isinf(x), np.char.mod("%+.0f", x), "finite"))


def assert_alike(got, expected, name, case, cancelled):
    """The same NaN and infinities, and finite values close to each other.

    `cancelled`: what rounding may make of differences of large numbers.
    """
    assert np.array_equal(kinds(got), kinds(expected)), name
    got, expected = wide(got), wide(expected)
    finite = np.isfinite(expected)
    # Stock's bias correction is off by more: it takes 1 - 0.999**step in float32.
    rtol = 1e-4 if case.options.get("bias_correction") else 2e-6
    atol = 1e-38 + np.broadcast_to(cancelled, finite.shape)[finite]
    difference = np.abs(got[finite] - expected[finite])
    assert np.all(difference <= rtol * np.abs(expected[finite]) + atol), name


def finite_slots(case, size):
    """State that an optimizer may have."""
    return {
        name: normal(size, seed=i) if case.is_signed(name) else mx.abs(normal(size, seed=i))
        for i, name in enumerate(case.slots)
    }


def assert_steps_alike(case, w, g, state):
    got, got_state = step(case.ours(0.01), w, g, state)
    expected, expected_state = step(case.stock(0.01), w, g, state)
    cancelled = dict.fromkeys(["w", *case.slots], 0.0)
    if case.rule in ("Adan", "MADGRAD"):
        before = {name: wide(x) for name, x in state.items()}
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            exact = exact_step(case, wide(w), wide(g), before, 1, 0.01)
        cancelled = {name: np.where(np.isfinite(e), e, 0.0) for name, (_, e) in exact.items()}
    assert_alike(got, expected, "parameter", case, cancelled["w"])
    for name in case.slots:
        assert_alike(got_state[name], expected_state[name], name, case, cancelled[name])


@each_case
def test_special_gradients_give_what_stock_gives(case):
    w, g = grid([1.0, -0.5, 0.0], SPECIAL)
    state = finite_slots(case, w.size)
    assert_steps_alike(case, w, g, state)


@each_case
def test_special_parameters_give_what_stock_gives(case):
    w, g = grid(SPECIAL, [1.0, -0.5, 0.0])
    state = finite_slots(case, w.size)
    assert_steps_alike(case, w, g, state)


@each_rule
def test_special_slots_give_what_stock_gives(case):
    if not case.slots:
        pytest.skip("no slots")
    signed, squares = SPECIAL, [x for x in SPECIAL if not x < 0]
    columns = [signed if case.is_signed(name) else squares for name in case.slots]
    w, g, *slots = grid([1.0, -0.5], [0.5, 0.0], *columns)
    state = dict(zip(case.slots, slots, strict=True))
    assert_steps_alike(case, w, g, state)


@each_dtype
@each_elementwise
def test_a_nan_or_infinity_stays_in_its_element(case, dtype):
    g = np.zeros(203, np.float32)
    poisoned = [0, 17, 100, 202]
    g[poisoned] = [np.nan, np.inf, -np.inf, np.nan]
    w = normal(203, dtype=dtype)
    optimizer = case.ours(0.01)
    new = wide(optimizer.apply_gradients({"w": mx.array(g).astype(dtype)}, {"w": w})["w"])
    clean = wide(case.ours(0.01).apply_gradients({"w": mx.zeros(203, dtype)}, {"w": w})["w"])
    others = np.setdiff1d(np.arange(203), poisoned)
    assert np.array_equal(new[others], clean[others])


@each_dtype
def test_a_result_above_the_largest_number_is_infinite(dtype):
    largest = {mx.float32: 3.4e38, mx.float16: 65504.0, mx.bfloat16: 3.38e38}[dtype]
    w = mx.array([largest, -largest]).astype(dtype)
    g = mx.array([-largest, largest]).astype(dtype)
    new = mlx_opt.SGD(1.0).apply_gradients({"w": g}, {"w": w})["w"]
    assert wide(new).tolist() == [INF, -INF]


# float16's denormals are float32's normal numbers.
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}])
def test_denormals_are_rounded_as_any_number(dtype, options, request):
    if dtype != mx.float16:
        request.getfixturevalue("denormals")
    smallest = float(ulp(0.0, dtype))
    multiples = np.random.default_rng(0).integers(-40, 40, (2, 333)).astype(np.float64)
    w, g = (x * smallest for x in multiples)
    optimizer = mlx_opt.SGD(0.375, **options)
    arrays = {"w": mx.array(w.astype(np.float32)).astype(dtype)}
    gradients = {"w": mx.array(g.astype(np.float32)).astype(dtype)}
    assert np.array_equal(wide(arrays["w"]), w), "the array lost its denormals on the way in"
    new = optimizer.apply_gradients(gradients, arrays)["w"]
    expected, state = references.sgd(
        w, g, {"v": np.zeros_like(w)}, 1, learning_rate=0.375, **options
    )
    got = wide(new)
    assert np.array_equal(got, rounded(expected, dtype))
    assert np.array_equal(wide(optimizer.state["w"]["v"]), state["v"])


@each_rule
def test_adam_like_rules_divide_by_denormal_squares_without_nan(case, denormals):
    g = mx.full((64,), 1e-20)  # squared: a denormal, or zero
    w = mx.ones((64,))
    new = case.ours(0.01).apply_gradients({"w": g}, {"w": w})["w"]
    expected = case.stock(0.01).apply_gradients({"w": g}, {"w": w})["w"]
    assert mx.all(mx.isfinite(new)).item()
    np.testing.assert_allclose(wide(new), wide(expected), rtol=1e-6)
