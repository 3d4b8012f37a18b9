"""`maximize`: a step on the negative of the gradients."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as stock
import pytest
from mlx.utils import tree_map

import mlx_opt
from cases import assert_close, assert_same, normal
from mlx_opt import Group

OPTIMIZERS = {
    "SGD": lambda **options: mlx_opt.SGD(0.1, momentum=0.9, weight_decay=0.1, **options),
    "Adam": lambda **options: mlx_opt.Adam(0.1, **options),
    "AdamW": lambda **options: mlx_opt.AdamW(0.1, **options),
    "Lion": lambda **options: mlx_opt.Lion(0.1, **options),
    "Muon": lambda **options: mlx_opt.Muon(0.1, **options),
}
each_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


def tree(seed, dtype=mx.float32):
    return {"a": normal(6, 4, seed=seed, dtype=dtype), "b": [normal(9, seed=seed, dtype=dtype)]}


def negative(gradients):
    return tree_map(lambda g: -g, gradients)


def walk(optimizer, gradients, dtype=mx.float32, **options):
    w = tree(0, dtype)
    for g in gradients:
        w = optimizer.apply_gradients(g, w, **options)
    return w


@each_optimizer
@pytest.mark.parametrize(
    "clip",
    [{}, {"max_norm": 0.5}, {"max_norm": 0.5, "skip_nonfinite": True, "max_value": 0.1}],
    ids=str,
)
def test_it_is_the_step_on_negative_gradients(make, clip):
    ascent, descent = make(maximize=True), make()
    gradients = [tree(step) for step in range(1, 4)]
    w = walk(ascent, gradients, **clip)
    expected = walk(descent, [negative(g) for g in gradients], **clip)
    assert_same(w, expected)
    assert_same(ascent.state, descent.state)


@each_optimizer
def test_in_place_and_in_compile(make):
    optimizer, plain, model = make(maximize=True), make(), nn.Module()
    model.a = normal(6, 4)
    expected = {"a": normal(6, 4)}
    optimizer.init(model)
    state = [model.state, optimizer.state]

    def step(g):
        optimizer.update(model, {"a": g})

    for seed, run in enumerate([step, mx.compile(step, state, state), step], 1):
        g = normal(6, 4, seed=seed)
        run(g)
        mx.eval(model, optimizer.state)
        expected = plain.apply_gradients({"a": -g}, expected)
    assert_close(model.parameters(), expected, 1e-6)


def test_a_skipped_step_changes_nothing():
    optimizer = mlx_opt.AdamW(0.1, maximize=True)
    w, g = tree(0), tree(1)
    g["a"] = g["a"] * float("nan")
    assert_same(optimizer.apply_gradients(g, w, skip_nonfinite=True), w)


@pytest.mark.parametrize("dtype", [mx.complex64, mx.bfloat16], ids=str)
def test_other_dtypes(dtype):
    for make in OPTIMIZERS.values():
        if dtype == mx.complex64 and make is OPTIMIZERS["Muon"]:
            continue  # stock's iterations take no complex numbers
        gradients = [tree(1, dtype)]
        w = walk(make(maximize=True), gradients, dtype)
        assert_same(w, walk(make(), [negative(g) for g in gradients], dtype))


def test_apply_single_and_hooks_negate_once():
    w, g = normal(5), normal(5, seed=1)
    for cls in (mlx_opt.SGD, type("Hooked", (mlx_opt.SGD,), {"apply_single": _through})):
        optimizer = cls(0.5, maximize=True)
        expected = w + 0.5 * g
        assert mx.allclose(optimizer.apply_single(g, w, {"v": mx.zeros(5)}), expected)
        assert mx.allclose(optimizer.apply_gradients({"w": g}, {"w": w})["w"], expected)


def _through(self, gradient, parameter, state):
    return mlx_opt.SGD.apply_single(self, gradient, parameter, state)


def test_groups_are_told_apart():
    optimizer = mlx_opt.SGD(0.5, groups=[Group("b", maximize=True)])
    w = {"a": mx.ones(2), "b": mx.ones(2), "c": mx.ones(2)}
    updated = optimizer.apply_gradients(w, w, max_norm=100.0)
    assert [updated[name].tolist() for name in "abc"] == [[0.5, 0.5], [1.5, 1.5], [0.5, 0.5]]
    rows = optimizer.describe(w, show=False)
    assert [row.values["maximize"] for row in rows] == [False, True, False]


def test_the_members_of_a_multi_optimizer_and_a_fallback_have_their_own():
    w = {"a": mx.ones((2, 2)), "b": mx.ones(2)}
    both = mlx_opt.MultiOptimizer(
        [mlx_opt.SGD(0.5, maximize=True), mlx_opt.SGD(0.5)], [lambda path, _: path == "a"]
    )
    updated = both.apply_gradients(w, w)
    assert updated["a"].tolist() == [[1.5, 1.5], [1.5, 1.5]]
    assert updated["b"].tolist() == [0.5, 0.5]
    muon = mlx_opt.Muon(0.1, fallback=mlx_opt.SGD(0.5, maximize=True))
    assert muon.apply_gradients(w, w)["b"].tolist() == [1.5, 1.5]


def test_pytorchs():
    torch = pytest.importorskip("torch")
    for ours, theirs in (
        (mlx_opt.SGD(0.1, momentum=0.9, weight_decay=0.1, maximize=True), torch.optim.SGD),
        (
            mlx_opt.AdamW(0.1, weight_decay=0.1, bias_correction=True, maximize=True),
            torch.optim.AdamW,
        ),
    ):
        options = {"momentum": 0.9} if theirs is torch.optim.SGD else {}
        w = {"w": normal(7)}
        p = torch.tensor(w["w"].tolist(), dtype=torch.float64)
        optimizer = theirs([p], lr=0.1, weight_decay=0.1, maximize=True, **options)
        for step in range(20):
            g = normal(7, seed=step)
            w = ours.apply_gradients({"w": g}, w)
            p.grad = torch.tensor(g.tolist(), dtype=torch.float64)
            optimizer.step()
        assert mx.allclose(w["w"], mx.array(p.tolist()), 1e-5, 1e-5)


def test_optimizers_without_it_refuse_it():
    with pytest.raises(TypeError):
        mlx_opt.RMSprop(0.1, maximize=True)
    assert not hasattr(stock.SGD(0.1), "maximize")
