"""The loss scale: gradients are divided by it, and it follows which steps are finite."""

import copy

import mlx.core as mx
import mlx.nn as nn
import pytest

import mlx_opt
from cases import Case, assert_close, assert_same, normal
from mlx_opt import loss_scale


def tree(seed, scale=1.0, dtype=mx.float32):
    return {"a": scale * normal(9, seed=seed, dtype=dtype), "b": [scale * normal(4, 3, seed=seed)]}


@pytest.mark.parametrize("case", [Case("AdamW"), Case("SGD"), Case("Adafactor"), Case("Muon")])
@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_a_step_divides_by_it(case, max_norm):
    scaled, plain = case.ours(0.01), case.ours(0.01)
    scaled.loss_scale = 1024.0
    w, expected = tree(0), tree(0)
    for step in range(3):
        w = scaled.apply_gradients(tree(1 + step, 1024.0), w, max_norm=max_norm)
        expected = plain.apply_gradients(
            tree(1 + step), expected, max_norm=max_norm, skip_nonfinite=True
        )
    assert_same(w, expected)
    assert_same(scaled.grad_norm, plain.grad_norm)
    assert scaled.loss_scale.item() == 1024.0


def test_it_is_halved_after_a_step_that_is_skipped():
    optimizer, w = mlx_opt.AdamW(0.01), tree(0)
    optimizer.loss_scale = 8.0
    after = optimizer.apply_gradients(tree(1, float("inf")), w)
    assert_same(after, w)
    assert optimizer.loss_scale.item() == 4.0
    assert (optimizer.step.item(), optimizer.skipped.item()) == (0, 1)


def test_it_is_doubled_after_steps_that_are_not(monkeypatch):
    monkeypatch.setattr(loss_scale, "INTERVAL", 3)
    optimizer, w, scales = mlx_opt.SGD(0.01), tree(0), []
    optimizer.loss_scale = 2.0**23
    for step in range(10):
        optimizer.apply_gradients(tree(1, float("nan") if step == 4 else 1.0), w)
        scales.append(optimizer.loss_scale.item() / 2**23)
    assert scales == [1, 1, 2, 2, 1, 1, 1, 2, 2, 2]
    for _ in range(4):
        optimizer.apply_gradients(tree(1), w)
    assert optimizer.loss_scale.item() == 2**24


@pytest.mark.parametrize("evaluated", [True, False])
def test_small_gradients_of_float16_count(evaluated):
    """Slopes of 2**-27 are 0 in float16."""
    model = nn.Module()
    model.w = mx.ones(3, mx.float16)
    optimizer = mlx_opt.SGD(2.0**20)
    optimizer.loss_scale = 2.0**10

    def loss(model):
        return optimizer.loss_scale.astype(mx.float16) * (model.w * 2**-13).sum() * 2**-14

    _, g = nn.value_and_grad(model, loss)(model)
    if evaluated:
        mx.eval(model, g)
    optimizer.update(model, g)
    assert_close(model.w, mx.full(3, 1 - 2**-7, mx.float16), 1e-3)


def test_compiled_and_several_optimizers():
    def build():
        return mlx_opt.MultiOptimizer(
            [mlx_opt.AdamW(0.01), mlx_opt.Lion(0.01)], [lambda path, x: path == "a"]
        )

    eager, traced = build(), build()
    w, expected = tree(0), tree(0)
    for optimizer in (eager, traced):
        optimizer.init(w)
        optimizer.loss_scale = 16.0
    state = [w, traced.state]

    def run(g):
        state[0].update(traced.apply_gradients(g, state[0], max_norm=1.0))

    step = mx.compile(run, inputs=state, outputs=state)
    for number, factor in enumerate([16.0, float("nan"), 8.0, 8.0]):
        step(tree(1 + number, factor))
        expected = eager.apply_gradients(tree(1 + number, factor), expected, max_norm=1.0)
    assert_close(w, dict(sorted(expected.items())), 1e-6)
    assert eager.loss_scale.item() == traced.loss_scale.item() == 8.0
    assert traced.skipped.item() == 1


def test_an_error_takes_it_back():
    optimizer = mlx_opt.SGD(0.1)
    optimizer.loss_scale = 4.0
    optimizer.apply_gradients(tree(1), tree(0))
    before = copy.deepcopy(optimizer.state)
    with pytest.raises(ValueError, match="a: gradient"):
        optimizer.apply_gradients({"a": mx.ones(2)}, tree(0))
    assert_same(optimizer.state, before)


def test_it_is_in_the_state_and_may_be_turned_off():
    optimizer, w = mlx_opt.SGD(0.5), {"w": mx.ones(2)}
    assert optimizer.loss_scale is None
    optimizer.loss_scale = 4
    other = mlx_opt.SGD(0.5)
    other.state = copy.deepcopy(optimizer.state)
    assert other.loss_scale.item() == 4.0
    assert_same(other.apply_gradients({"w": 4 * mx.ones(2)}, w)["w"], mx.full(2, 0.5))
    optimizer.loss_scale = None
    assert_same(optimizer.apply_gradients({"w": mx.ones(2)}, w)["w"], mx.full(2, 0.5))
    assert optimizer.loss_scale is None


@pytest.mark.parametrize(
    "value, error", [("big", TypeError), (True, TypeError), (0.0, ValueError), (-1, ValueError),
                     (float("nan"), ValueError), (mx.ones(2), ValueError), (2.0**30, ValueError)],
)  # fmt: skip
def test_another_value_is_refused(value, error):
    optimizer = mlx_opt.SGD(0.1)
    with pytest.raises(error, match="loss_scale: expected"):
        optimizer.loss_scale = value
    assert optimizer.loss_scale is None
