"""mx.grad, mx.value_and_grad, mx.vjp, mx.jvp through a step, plain, compiled and checkpointed."""

import mlx.core as mx
import mlx.optimizers as stock
import numpy as np
import pytest

import mlx_opt
from cases import (
    Case,
    assert_close,
    dtype_name,
    each_of_slow_subset,
    each_rule,
    normal,
    signature,
    wide,
)
from transforms import LR, alike, pair, step, total


@pytest.mark.parametrize("argument", [0, 1, (0, 1)])
@each_rule
def test_grad_is_that_of_stocks_formula(case, argument):
    alike(lambda f: mx.grad(f, argnums=argument), case, *pair(3, 5))


@each_rule
def test_value_and_grad_gives_the_value_too(case):
    alike(lambda f: mx.value_and_grad(f, argnums=(0, 1)), case, *pair(7))


@each_rule
def test_vjp_is_that_of_stocks_formula(case):
    def vjp(f):
        return lambda g, w: mx.vjp(f, [g, w], [mx.array(2.0)])

    alike(vjp, case, *pair(7))


@each_rule
def test_jvp_is_that_of_stocks_formula(case):
    g, w = pair(7)

    def jvp(f):
        return lambda g, w: mx.jvp(f, [g, w], [mx.cos(g), mx.ones_like(w)])

    alike(jvp, case, g, w)


@each_rule
def test_the_second_derivative_is_that_of_stocks_formula(case):
    def twice(f):
        return mx.grad(lambda g, w: mx.sum(mx.grad(f, argnums=1)(g, w) ** 2), argnums=(0, 1))

    alike(twice, case, *pair(5), tolerance=1e-4)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16], ids=dtype_name)
@each_rule
def test_halves_have_a_gradient_of_their_dtype_taken_in_float32(case, dtype):
    g, w = (x.astype(dtype) for x in pair(50))
    got = mx.grad(total(case.ours), argnums=(0, 1))(g, w)
    expected = mx.grad(total(case.stock), argnums=(0, 1))(
        g.astype(mx.float32), w.astype(mx.float32)
    )
    for x, y in zip(got, expected, strict=True):
        assert x.dtype == dtype
        x, y = wide(x), wide(y)
        assert np.abs(x - y).max() <= {mx.float16: 4e-3, mx.bfloat16: 3e-2}[dtype] * np.abs(y).max()


@each_rule
def test_a_gradient_through_two_steps_is_that_of_stocks_formula(case):
    def loss(build):
        def run(g, w):
            optimizer = build(LR)
            optimizer.init({"w": w})
            for _ in range(2):
                w = optimizer.apply_gradients({"w": g * w}, {"w": w})["w"]
            return mx.sum(w * w)

        return run

    g, w = pair(6)
    got = mx.grad(loss(case.ours), argnums=(0, 1))(g, w)
    assert_close(got, mx.grad(loss(case.stock), argnums=(0, 1))(g, w), 5e-5)


def test_what_is_not_differentiated_still_gets_its_step():
    """One of two leaves depends on the variable; the other's step is the plain one."""
    case = Case("AdamW", {"weight_decay": 0.1})

    def loss(x, build):
        optimizer = build(LR)
        w = {"a": x * 2, "b": mx.ones(3)}
        new = optimizer.apply_gradients({"a": mx.ones(3), "b": mx.full(3, 2.0)}, w)
        return mx.sum(new["a"] * new["b"])

    x = normal(3)
    got = mx.value_and_grad(lambda x: loss(x, case.ours))(x)
    assert_close(got, mx.value_and_grad(lambda x: loss(x, case.stock))(x), 1e-5)


@pytest.mark.parametrize("transform", ["grad", "jvp"])
@each_rule
def test_the_learning_rate_has_a_derivative(case, transform):
    g, w = pair(5)

    def derivative(f):
        def at(lr):
            return f(g, w, lr)

        if transform == "grad":
            return mx.grad(at)
        return lambda lr: mx.jvp(at, [lr], [mx.array(1.0)])

    alike(derivative, case, mx.array(0.3))


def test_a_hyperparameter_has_a_derivative():
    g, w = pair(5)

    def loss(package):
        def at(decay):
            optimizer = package.AdamW(LR, weight_decay=decay)
            return mx.sum(optimizer.apply_gradients({"w": g}, {"w": w})["w"] ** 2)

        return at

    got, expected = mx.grad(loss(mlx_opt))(mx.array(0.1)), mx.grad(loss(stock))(mx.array(0.1))
    assert_close(got, expected, 1e-5)


@each_of_slow_subset
def test_grad_inside_and_outside_compile(case):
    alike(lambda f: mx.compile(mx.grad(f, argnums=(0, 1))), case, *pair(4, 3))
    alike(lambda f: mx.grad(mx.compile(f), argnums=(0, 1)), case, *pair(4, 3))


def test_grad_inside_compile_with_captured_state():
    results = []
    for package in (mlx_opt, stock):
        optimizer = package.AdamW(LR)
        optimizer.init({"w": mx.zeros(4)})

        def run(x, optimizer=optimizer):
            def loss(x):
                new = optimizer.apply_gradients({"w": mx.sin(x)}, {"w": x})
                return mx.sum(new["w"] ** 2)

            return mx.grad(loss)(x)

        compiled = mx.compile(run, inputs=[optimizer.state], outputs=[optimizer.state])
        results.append([compiled(normal(4, seed=i)) for i in range(3)])
    assert_close(results[0], results[1], 2e-5)


@each_rule
def test_grad_through_a_checkpoint(case):
    alike(lambda f: mx.grad(mx.checkpoint(f), argnums=(0, 1)), case, *pair(4))


def test_grad_through_a_custom_function():
    case = Case("AdamW", {"weight_decay": 0.1})
    alike(lambda f: mx.grad(mx.custom_function(f), argnums=(0, 1)), case, *pair(4))


@each_rule
def test_the_state_before_the_step_has_a_gradient(case):
    if not case.slots:
        pytest.skip("no slots")
    g, w = pair(5)

    def loss(build):
        def at(*slots):
            optimizer = build(LR)
            optimizer.init({"w": w})
            optimizer.state["w"].update(zip(case.slots, slots, strict=True))
            return mx.sum(optimizer.apply_gradients({"w": g}, {"w": w})["w"] ** 2)

        return mx.grad(at, argnums=tuple(range(len(case.slots))))

    slots = [mx.full((5,), 0.25)] * len(case.slots)
    assert_close(loss(case.ours)(*slots), loss(case.stock)(*slots), 2e-5)


def test_values_may_be_evaluated_inside_a_gradient():
    def loss(build):
        def at(x):
            optimizer, w = build(LR), {"w": x}
            for _ in range(2):
                w = optimizer.apply_gradients({"w": mx.sin(w["w"])}, w)
                mx.eval(w, optimizer.state)
            return mx.sum(w["w"] ** 2)

        return mx.value_and_grad(at)

    case = Case("AdamW", {"weight_decay": 0.1})
    assert_close(loss(case.ours)(normal(5)), loss(case.stock)(normal(5)), 2e-5)


def test_a_traced_step_keeps_dtypes():
    case = Case("AdamW")
    g, w = normal(4, seed=1, dtype=mx.bfloat16), normal(4, seed=2)
    plain = signature(step(case.ours(LR), g, w))
    seen = []

    def loss(w):
        result = step(case.ours(LR), g, w)
        seen.append(signature(result))
        return mx.sum(result[0])

    mx.grad(loss)(w)
    mx.vmap(lambda w: step(case.ours(LR), g[0], w))(w)
    assert seen == [plain]
