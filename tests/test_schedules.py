"""Schedules: when they are asked, with what, and what becomes of the answer."""

import mlx.core as mx
import mlx.optimizers as stock
import pytest

import mlx_opt
from cases import assert_close, dtype_name, each_rule, normal

PACKAGES = pytest.mark.parametrize("package", [mlx_opt, stock], ids=["ours", "stock"])


class Recorder:
    """A schedule that keeps the steps it was asked for."""

    def __init__(self):
        self.steps = []

    def __call__(self, step):
        self.steps.append(step.item())
        return mx.array(0.5 ** (1 + step.item()))


@PACKAGES
def test_a_schedule_is_asked_once_when_made_and_once_a_step_for_the_steps_done(package):
    schedule = Recorder()
    optimizer = package.SGD(schedule)
    assert schedule.steps == [0]
    optimizer.init({"w": mx.zeros(2)})
    assert schedule.steps == [0]
    w = {"w": mx.zeros(2)}
    for _ in range(3):
        w = optimizer.apply_gradients({"w": mx.ones(2)}, w)
    assert schedule.steps == [0, 0, 1, 2]
    assert w["w"].tolist() == [-0.875, -0.875]  # 1/2 + 1/4 + 1/8
    assert optimizer.learning_rate.item() == 0.125


@PACKAGES
def test_a_step_without_gradients_asks_too(package):
    schedule = Recorder()
    optimizer = package.AdamW(schedule)
    optimizer.update({}, {})
    optimizer.update({}, {})
    assert schedule.steps == [0, 0, 1]


@PACKAGES
def test_each_optimizer_of_several_asks_its_own(package):
    first, second = Recorder(), Recorder()
    optimizer = package.MultiOptimizer(
        [package.SGD(first), package.AdamW(second)], [lambda path, _: path == "a"]
    )
    w = {"a": mx.zeros(2), "b": mx.zeros(2)}
    optimizer.apply_gradients(w, w)
    optimizer.apply_gradients({"a": mx.zeros(2)}, w)
    assert first.steps == second.steps == [0, 0, 1]


@PACKAGES
def test_a_schedule_set_later_takes_over(package):
    optimizer = package.SGD(1.0)
    optimizer._maybe_schedule("learning_rate", lambda step: mx.array(10.0) * (step + 1))
    assert optimizer._schedulers.keys() == {"learning_rate"}
    w = optimizer.apply_gradients({"w": mx.ones(1)}, {"w": mx.zeros(1)})
    w = optimizer.apply_gradients({"w": mx.ones(1)}, w)
    assert w["w"].tolist() == [-30.0]


@PACKAGES
def test_a_learning_rate_set_over_a_schedule_lasts_until_the_next_step(package):
    optimizer = package.SGD(lambda step: mx.array(1.0))
    optimizer.learning_rate = 5.0
    assert optimizer.learning_rate.item() == 5.0
    w = optimizer.apply_gradients({"w": mx.ones(1)}, {"w": mx.zeros(1)})
    assert w["w"].tolist() == [-1.0]


def test_a_schedule_that_fails_changes_nothing():
    def schedule(step):
        if asked[0]:
            raise RuntimeError("no more steps")
        asked[0] = True
        return mx.array(0.1)

    asked = [False]
    optimizer = mlx_opt.AdamW(schedule)
    optimizer.init({"w": mx.zeros(2)})
    before = optimizer.state["w"]["m"]
    with pytest.raises(RuntimeError, match="no more steps"):
        optimizer.apply_gradients({"w": mx.ones(2)}, {"w": mx.zeros(2)})
    assert optimizer.step.item() == 0
    assert optimizer.state["w"]["m"] is before


SCHEDULES = {
    "exponential": lambda: stock.exponential_decay(0.1, 0.9),
    "step": lambda: stock.step_decay(0.1, 0.5, 3),
    "cosine": lambda: stock.cosine_decay(0.1, 6, 0.01),
    "linear": lambda: stock.linear_schedule(0.0, 0.1, 5),
    "joined": lambda: stock.join_schedules(
        [stock.linear_schedule(0.01, 0.1, 3), stock.cosine_decay(0.1, 5)], [4]
    ),
}


@pytest.mark.parametrize("name", list(SCHEDULES))
@each_rule
def test_stocks_schedules_give_what_they_give_with_stock(case, name):
    ours, theirs = case.ours(SCHEDULES[name]()), case.stock(SCHEDULES[name]())
    a = b = {"w": normal(31, seed=1)}
    rates = []
    for step in range(8):
        g = {"w": normal(31, seed=2 + step)}
        a, b = ours.apply_gradients(g, a), theirs.apply_gradients(g, b)
        assert ours.learning_rate.item() == theirs.learning_rate.item()
        rates.append(ours.learning_rate.item())
    assert len(set(rates)) > 1
    assert_close(a, b, 5e-6)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.int32], ids=dtype_name)
@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_schedule_may_return_an_array_of_any_dtype_with_one_element(dtype, shape):
    optimizer = mlx_opt.SGD(lambda step: mx.full(shape, 2, dtype) * (1 + step).astype(dtype))
    w = {"w": mx.zeros(2)}
    for _ in range(2):
        w = optimizer.apply_gradients({"w": mx.ones(2)}, w)
    assert w["w"].tolist() == [-6.0, -6.0]
    assert optimizer.learning_rate.dtype == dtype
