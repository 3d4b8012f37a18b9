"""What a step makes of dtypes that differ, and of dtypes the primitives do not serve."""

import itertools

import mlx.core as mx
import numpy as np
import pytest

from cases import (
    DTYPES,
    assert_exact,
    assert_same,
    dtype_name,
    each_case,
    each_rule,
    exact_step,
    normal,
    signature,
    wide,
)

SHAPE = (3, 5)


def typed(dtype, seed):
    x = normal(*SHAPE, seed=seed)
    return x.astype(dtype) if mx.issubdtype(dtype, mx.inexact) else (4 * x).astype(dtype)


def one_step(optimizer, w, g, slots, learning_rate=None):
    """The result's and the state's tree after a step from slots of the given dtypes."""
    optimizer.init({"w": w})
    for i, (name, dtype) in enumerate(slots.items()):
        optimizer.state["w"][name] = mx.abs(typed(dtype, 10 + i))
    if learning_rate is not None:
        optimizer.learning_rate = learning_rate
    result = optimizer.apply_gradients({"w": g}, {"w": w})
    mx.eval(result, optimizer.state)
    return result, optimizer.state


def outcome(call, *arguments):
    """What a call returns, or the type of what it raises."""
    try:
        return call(*arguments)
    except Exception as error:
        return type(error)


def each_pair(dtypes):
    pairs = list(itertools.product(dtypes, dtypes))
    return pytest.mark.parametrize(("w_dtype", "g_dtype"), pairs, ids=dtype_name)


@each_pair(DTYPES)
@each_case
def test_any_three_dtypes_promote_as_stock_promotes_them(case, w_dtype, g_dtype):
    w, g = typed(w_dtype, 1), typed(g_dtype, 2)
    for dtypes in itertools.product(DTYPES, repeat=len(case.slots)):
        slots = dict(zip(case.slots, dtypes, strict=True))
        ours = one_step(case.ours(0.01), w, g, slots)
        stock = one_step(case.stock(0.01), w, g, slots)
        assert signature(ours) == signature(stock), slots


@each_pair(DTYPES)
@each_rule
def test_any_three_dtypes_give_the_exact_step_rounded_once(case, w_dtype, g_dtype):
    w, g = typed(w_dtype, 1), typed(g_dtype, 2)
    for dtypes in itertools.product(DTYPES, repeat=len(case.slots)):
        slots = dict(zip(case.slots, dtypes, strict=True))
        before = {name: wide(mx.abs(typed(t, 10 + i))) for i, (name, t) in enumerate(slots.items())}
        result, state = one_step(case.ours(0.01), w, g, slots)
        expected = exact_step(case, wide(w), wide(g), before, 1, 0.01, state["w"])
        for name, (exact, error) in expected.items():
            assert_exact(result["w"] if name == "w" else state["w"][name], exact, error)


OTHERS = [mx.float32, mx.bfloat16, mx.float16, mx.int32, mx.uint8, mx.complex64]


@each_pair(OTHERS)
@each_rule
def test_integers_and_complex_numbers_are_of_the_dtypes_they_are_with_stock(case, w_dtype, g_dtype):
    def step(optimizer):
        w, g = typed(w_dtype, 1), typed(g_dtype, 2)
        slots = dict.fromkeys(case.slots, w_dtype)
        return signature(one_step(optimizer, w, g, slots))

    assert outcome(step, case.ours(0.01)) == outcome(step, case.stock(0.01))


@each_rule
def test_complex_numbers_are_updated_by_stocks_formula(case):
    w = normal(6, seed=1) + 1j * normal(6, seed=2)
    g = normal(6, seed=3) + 1j * normal(6, seed=4)

    def two_steps(optimizer):
        new = optimizer.apply_gradients({"w": g}, {"w": w})
        new = optimizer.apply_gradients({"w": g}, new)
        mx.eval(new, optimizer.state)
        return new, optimizer.state

    expected = outcome(two_steps, case.stock(0.01))
    got = outcome(two_steps, case.ours(0.01))
    if isinstance(expected, type):
        assert got is expected
    else:
        assert_same(got, expected)


@each_rule
def test_float64_is_updated_by_stocks_formula(case, cpu):
    w = mx.array(np.linspace(-1, 1, 9), mx.float64)
    g = mx.array(np.linspace(2, -1, 9), mx.float64)
    ours, stock = case.ours(0.01), case.stock(0.01)
    a, b = {"w": w}, {"w": w}
    for _ in range(3):
        a = ours.apply_gradients({"w": g}, a)
        b = stock.apply_gradients({"w": g}, b)
    assert a["w"].dtype == mx.float64
    assert_same(a, b)
    assert_same(ours.state, stock.state)


@each_rule
def test_leaves_of_all_dtypes_may_be_in_one_tree(case):
    dtypes = [mx.float32, mx.complex64, mx.bfloat16, mx.float16]
    w = {dtype_name(t): typed(t, i) for i, t in enumerate(dtypes)}
    g = {dtype_name(t): typed(t, 10 + i) for i, t in enumerate(dtypes)}
    if outcome(lambda: case.stock(0.01).apply_gradients(g, w)) in (TypeError, ValueError):
        del w["complex64"], g["complex64"]
    optimizer = case.ours(0.01)
    together = optimizer.apply_gradients(g, w)
    for name in w:
        alone = case.ours(0.01)
        assert_same(alone.apply_gradients({name: g[name]}, {name: w[name]})[name], together[name])
        assert_same(alone.state[name], optimizer.state[name])


@each_rule
@pytest.mark.parametrize("learning_rate", [1, 2, mx.array(1), mx.array(0.5, mx.bfloat16), True])
def test_a_learning_rate_of_any_dtype_counts_as_its_value(case, learning_rate):
    w, g = {"w": normal(5, seed=1)}, {"w": normal(5, seed=2)}
    optimizer, stock = case.ours(learning_rate), case.stock(learning_rate)
    same = case.ours(float(learning_rate))
    assert optimizer.learning_rate.dtype == stock.learning_rate.dtype
    assert_same(optimizer.apply_gradients(g, w), same.apply_gradients(g, w))
    stock.apply_gradients(g, w)
    assert signature(optimizer.state) == signature(stock.state)


@each_rule
@pytest.mark.parametrize("dtype", [mx.int32, mx.uint32, mx.int64, mx.float32], ids=dtype_name)
def test_a_step_of_any_dtype_counts_on(case, dtype):
    w, g = {"w": normal(5, seed=1)}, {"w": normal(5, seed=2)}

    def from_step_two(optimizer):
        optimizer.init(w)
        optimizer.state["step"] = mx.array(2, dtype)
        return optimizer.apply_gradients(g, w), optimizer.state

    ours, state = from_step_two(case.ours(0.1))
    stock, stock_state = from_step_two(case.stock(0.1))
    assert signature(state) == signature(stock_state)
    assert state["step"].item() == 3
    np.testing.assert_allclose(wide(ours["w"]), wide(stock["w"]), rtol=1e-4)
