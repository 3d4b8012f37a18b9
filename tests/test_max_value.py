"""`max_value`: each element of a gradient is clipped, after the scale for `max_norm`."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as stock
import pytest
from mlx.utils import tree_map

import mlx_opt
from cases import Case, assert_close, assert_same, each_dtype, flat, normal
from mlx_opt import Group

CASES = [
    Case("SGD", {"momentum": 0.9}),
    Case("AdamW"),
    Case("AdamW", {"amsgrad": True}),
    Case("Adafactor", {"relative_step": False}),
    Case("Lamb"),
    Case("Muon"),
]
each_case = pytest.mark.parametrize("case", CASES, ids=str)


def tree(seed, dtype=mx.float32):
    def x(*shape):
        return normal(*shape, seed=seed, dtype=dtype)

    return {"a": x(9, 4), "b": [x(130), x(33, 20).T, x(), x(0)]}


def clipped(gradients, limit):
    return tree_map(lambda g: mx.clip(g, -limit, limit).astype(g.dtype), gradients)


@each_case
@each_dtype
def test_it_is_the_step_on_clipped_gradients(case, dtype):
    ours, plain = case.ours(0.01), case.ours(0.01)
    w, expected = tree(0, dtype), tree(0, dtype)
    for step in range(1, 4):
        g = tree(step, dtype)
        w = ours.apply_gradients(g, w, max_value=0.5)
        # A copy of the transposed gradient would be summed up in another order.
        expected = plain.apply_gradients(tree_map(lambda x: mx.clip(x, -0.5, 0.5), g), expected)
    assert_close(w, expected, {mx.float32: 1e-6}.get(dtype, 1e-2))
    assert ours.grad_norm is None
    changed = case.ours(0.01).apply_gradients(tree(1, dtype), tree(0, dtype))
    bounded = case.ours(0.01).apply_gradients(tree(1, dtype), tree(0, dtype), max_value=0.01)
    if case.rule == "SGD":
        assert not mx.array_equal(changed["a"], bounded["a"])


@each_case
def test_it_follows_the_scale_of_the_norm(case):
    ours, plain = case.ours(0.01), case.ours(0.01)
    w, g = tree(0), tree(1)
    expected = mlx_opt.clip_grad_norm(g, 5.0)
    w = ours.apply_gradients(g, w, max_norm=5.0, max_value=0.1)
    assert_close(w, plain.apply_gradients(clipped(expected[0], 0.1), tree(0)), 1e-6)
    assert_same(ours.grad_norm, expected[1])


def test_it_is_in_the_units_of_the_divided_gradients():
    ours, plain = mlx_opt.SGD(0.5), mlx_opt.SGD(0.5)
    ours.loss_scale = 1024.0
    w, g = tree(0), tree(1)
    scaled = tree_map(lambda x: 1024 * x, g)
    assert_same(
        ours.apply_gradients(scaled, w, max_value=0.25), plain.apply_gradients(clipped(g, 0.25), w)
    )


@pytest.mark.parametrize("limit", [0.25, mx.array(0.25)], ids=["number", "array"])
def test_in_place_in_compile_and_under_vmap(limit):
    optimizer, plain, model = mlx_opt.AdamW(0.1), mlx_opt.AdamW(0.1), nn.Module()
    model.a = normal(6, 4)
    expected = {"a": normal(6, 4)}
    optimizer.init(model)
    state = [model.state, optimizer.state]

    def step(g):
        optimizer.update(model, {"a": g}, max_value=limit)

    for seed, run in enumerate([step, mx.compile(step, state, state), step], 1):
        g = normal(6, 4, seed=seed)
        run(g)
        mx.eval(model, optimizer.state)
        expected = plain.apply_gradients(clipped({"a": g}, 0.25), expected)
    assert_close(model.parameters(), expected, 1e-6)

    def one(g, w):
        return mlx_opt.SGD(0.5).apply_gradients({"w": g}, {"w": w}, max_value=limit)["w"]

    g, w = normal(3, 5, seed=1), normal(3, 5)
    assert mx.allclose(mx.vmap(one)(g, w), w - 0.5 * mx.clip(g, -0.25, 0.25))


def test_nan_stays_nan_and_infinity_is_clipped():
    optimizer, w = mlx_opt.SGD(1.0), {"w": mx.zeros(3)}
    g = {"w": mx.array([float("nan"), float("inf"), -float("inf")])}
    updated = optimizer.apply_gradients(g, w, max_value=2.0)["w"].tolist()
    assert updated[0] != updated[0]
    assert updated[1:] == [-2.0, 2.0]


def test_of_groups_members_and_optimizers_of_other_packages():
    w = {"a": mx.zeros(2), "b": mx.zeros(2)}
    g = {"a": mx.ones(2), "b": mx.full(2, 3.0)}
    grouped = mlx_opt.SGD(1.0, groups=[Group("a", learning_rate_scale=0.5)])
    both = mlx_opt.MultiOptimizer([mlx_opt.SGD(0.5), stock.SGD(1.0)], [lambda path, _: path == "a"])
    for optimizer in (grouped, both):
        updated = flat(optimizer.apply_gradients(g, w, max_value=2.0))
        assert updated["a"].tolist() == [-0.5, -0.5]
        assert updated["b"].tolist() == [-2.0, -2.0]


def test_gradients_where_there_is_no_kernel():
    def loss(w):
        return mlx_opt.SGD(1.0).apply_gradients({"w": w}, {"w": w}, max_value=2.0)["w"].sum()

    slope = mx.grad(loss)(mx.array([1.0, 3.0]))
    assert slope.tolist() == [0.0, 1.0]
    w = {"w": mx.ones(2, mx.complex64)}
    with pytest.raises(ValueError, match="max_value: expected real gradients, got complex ones"):
        mlx_opt.SGD(1.0).apply_gradients(w, w, max_value=2.0)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (-1.0, ValueError, "max_value should be >=0, -1.0 was provided instead"),
        ("1", TypeError, "max_value: expected a number or a 0-d mlx.core.array, got str"),
        (mx.ones(2), ValueError, r"max_value: expected a number, got shape \(2,\)"),
    ],
)
def test_wrong_values_are_refused(value, error, message):
    w = {"w": mx.ones(2)}
    with pytest.raises(error, match=message):
        mlx_opt.SGD(1.0).apply_gradients(w, w, max_value=value)
