"""mx.vmap over a step: its arrays, its learning rate, and with compile and mx.grad."""

import mlx.core as mx
import mlx.optimizers as stock
import pytest

import mlx_opt
from cases import Case, assert_close, each_of_slow_subset, each_rule, normal
from transforms import LR, alike, pair, step, total


@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0), (1, 0), (-1, 1)])
@each_rule
def test_vmap_is_a_step_for_each(case, axes):
    batch, rest = 4, (4, 4)  # square, so that any axis may be the batch's
    shapes = [(batch, *rest) if axis is not None else rest for axis in axes]
    g, w = (normal(*shape, seed=i) for i, shape in enumerate(shapes))
    new, slots = mx.vmap(lambda g, w: step(case.ours(LR), g, w), in_axes=axes)(g, w)
    assert new.shape == (batch, *rest)

    def one(x, axis, b):
        return x if axis is None else mx.take(x, b, axis)

    for b in range(batch):
        expected, expected_slots = step(case.ours(LR), one(g, axes[0], b), one(w, axes[1], b))
        assert_close(new[b], expected, 1e-7)
        for name, m in expected_slots.items():
            assert_close(slots[name][b], m, 1e-7)


@each_rule
def test_vmap_over_the_learning_rate_and_the_step(case):
    g, w = pair(3, 4)
    rates, numbers = mx.array([0.1, 0.2, 0.3]), mx.array([0, 5, 9], mx.uint64)
    both = mx.vmap(lambda g, w, lr, n: step(case.ours(LR), g, w, lr, n))(g, w, rates, numbers)
    shared = mx.vmap(lambda lr, n: step(case.ours(LR), g, w, lr, n), in_axes=(0, None), out_axes=0)(
        rates, numbers[1]
    )
    for b in range(3):
        expected = step(case.ours(LR), g[b], w[b], rates[b], numbers[b])
        assert_close(both[0][b], expected[0], 1e-7)
        expected = step(case.ours(LR), g, w, rates[b], numbers[1])
        assert_close(shared[0][b], expected[0], 1e-7)
        for name, m in expected[1].items():
            assert_close(shared[1][name][b], m, 1e-7)


@each_rule
def test_vmap_inside_vmap(case):
    g, w = pair(2, 3, 5)
    rates = mx.array([0.1, 0.2])

    def run(build):
        def one(g, w, lr):
            return step(build(LR), g, w, lr)[0]

        return mx.vmap(mx.vmap(one, in_axes=(0, 0, None)))(g, w, rates)

    assert_close(run(case.ours), run(case.stock), 3e-5)


@each_of_slow_subset
def test_vmap_of_compile_and_compile_of_vmap(case):
    alike(lambda f: mx.vmap(mx.compile(f)), case, *pair(3, 4))
    alike(lambda f: mx.compile(mx.vmap(f)), case, *pair(3, 4))


@each_rule
def test_vmap_of_grad(case):
    alike(lambda f: mx.vmap(mx.grad(f, argnums=(0, 1))), case, *pair(3, 4))


@pytest.mark.parametrize("transform", [mx.grad, lambda f: lambda x: mx.jvp(f, [x], [x])])
def test_a_gradient_of_vmap_is_refused_with_what_to_do(transform):
    g, w = pair(3, 4)
    loss = total(Case("AdamW").ours)
    with pytest.raises(ValueError, match="take vmap of the gradient"):
        mx.eval(transform(lambda g: mx.sum(mx.vmap(loss)(g, w)))(g))


@pytest.mark.xfail(strict=True, reason="where one leaf is mapped, all leaves' results are")
def test_a_leaf_that_is_not_mapped_may_stay_so():
    def run(x):
        leaves = {"mapped": x, "not": mx.ones(3)}
        return Case("AdamW").ours(LR).apply_gradients(leaves, leaves)

    new = mx.vmap(run, out_axes={"mapped": 0, "not": None})(mx.ones((2, 3)))
    assert new["mapped"].shape == (2, 3) and new["not"].shape == (3,)


def test_vmap_over_a_hyperparameter():
    g, w = pair(5)
    decays = mx.array([0.1, 0.5])

    def run(package):
        def one(decay):
            return package.AdamW(LR, weight_decay=decay).apply_gradients({"w": g}, {"w": w})["w"]

        return mx.vmap(one)(decays)

    assert_close(run(mlx_opt), run(stock), 2e-6)


def test_a_mapped_hyperparameter_and_an_empty_parameter():
    w, g = {"w": mx.ones(2), "empty": mx.zeros((0, 3))}, {"w": mx.ones(2), "empty": mx.ones((0, 3))}

    def one(rate):
        return mlx_opt.SGD(rate).apply_gradients(g, w)

    mapped = mx.vmap(one)(mx.array([0.5, 0.25]))
    assert mapped["empty"].shape == (2, 0, 3)
    assert mapped["w"].tolist() == [[0.5, 0.5], [0.75, 0.75]]
