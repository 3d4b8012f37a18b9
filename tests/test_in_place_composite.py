"""Optimizers made of several: each part of a model is updated as if it were alone, and in place."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as stock
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_flatten, tree_map, tree_unflatten

import mlx_opt
from cases import assert_close, assert_same, copied, is_lazy, normal
from mlx_opt.trees import split


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(6, 4, bias=True) for _ in range(3)]
        self.scales = [normal(4, seed=1), normal(4, 4, seed=2), normal(3, seed=3)]
        self.table = {"wide": normal(2, 9, seed=4), "one": normal(seed=5)}
        self.update_from(0)

    def update_from(self, seed):
        self.update(tree_map(lambda x: normal(*x.shape, seed=seed), self.parameters()))


def is_matrix(path, x):
    return x.ndim == 2


def pair(package):
    return package.MultiOptimizer([package.AdamW(0.1), package.Lion(0.01)], [is_matrix])


def nested(package):
    inner = package.MultiOptimizer(
        [package.Adafactor(), package.SGD(0.1, momentum=0.9)], [is_matrix]
    )
    return package.MultiOptimizer([inner, package.Adam(0.1)], [lambda p, x: "layers" in p])


def with_muon(package):
    return package.MultiOptimizer([package.Muon(0.02), package.AdamW(0.1)], [is_matrix])


def with_fallback(_):
    return mlx_opt.Muon(0.02, fallback=mlx_opt.AdamW(0.1))


BUILDS = pytest.mark.parametrize("build", [pair, nested, with_muon, with_fallback])


def gradients(model, seed):
    g = tree_map(lambda x: normal(*x.shape, seed=100 + seed), model.parameters())
    mx.eval(g)
    return g


def walk(optimizer, steps, **options):
    model = Model()
    for step in range(steps):
        optimizer.update(model, gradients(model, step), **options)
        mx.eval(model.parameters(), optimizer.state)
    return model


def plain(optimizer, steps, **options):
    """What apply_gradients makes of the same model."""
    model = Model()
    for step in range(steps):
        model.update(optimizer.apply_gradients(gradients(model, step), model, **options))
        mx.eval(model.parameters(), optimizer.state)
    return model


def overwritten(model, call):
    """The paths of the parameters that a call overwrites: the same objects, and not in a graph."""
    before = {path: id(x) for path, x in tree_flatten(model.parameters())}
    call()
    after = tree_flatten(model.parameters())
    return {path for path, x in after if id(x) == before[path] and not is_lazy(x)}


@BUILDS
@pytest.mark.parametrize("options", [{}, {"max_norm": 0.5, "skip_nonfinite": True}], ids=str)
def test_steps_give_what_new_arrays_give(build, options):
    optimizer, oracle = build(mlx_opt), build(mlx_opt)
    model = walk(optimizer, 6, **options)
    assert_same(model.parameters(), plain(oracle, 6, **options).parameters())
    assert_same(optimizer.state, oracle.state)


@pytest.mark.parametrize("build", [pair, with_muon])
def test_steps_are_stocks(build):
    assert_close(
        walk(build(mlx_opt), 4).parameters(), walk(build(stock), 4).parameters(), tolerance=1e-5
    )


@BUILDS
def test_what_needs_no_graph_is_overwritten(build):
    optimizer = build(mlx_opt)
    model = walk(optimizer, 3)
    g = gradients(model, 3)
    matrices = {path for path, x in tree_flatten(model.parameters()) if x.ndim == 2}
    every = {path for path, _ in tree_flatten(model.parameters())}
    changed = overwritten(model, lambda: optimizer.update(model, g))
    assert changed == (every - matrices if build in (with_muon, with_fallback) else every)


@BUILDS
def test_what_is_held_keeps_its_value(build):
    optimizer = build(mlx_opt)
    model = walk(optimizer, 3)
    held = [model.layers[1].bias, model.scales[1], model.table["one"]]
    before = [copied(x) for x in held]
    optimizer.update(model, gradients(model, 3))
    mx.eval(model.parameters(), optimizer.state)
    assert_same(held, before)
    assert not np.array_equal(model.layers[1].bias, before[0])


def test_a_part_of_another_package_goes_through_apply_gradients():
    def build(first):
        return mlx_opt.MultiOptimizer([first.AdamW(0.1), mlx_opt.Lion(0.01)], [is_matrix])

    model = walk(build(stock), 4)
    assert_close(model.parameters(), walk(build(mlx_opt), 4).parameters(), tolerance=1e-6)


def test_a_model_with_an_update_of_its_own_is_updated_by_it():
    calls = []

    class Own(Model):
        def update(self, parameters, strict=True):
            calls.append(sorted(path for path, _ in tree_flatten(parameters)))
            return super().update(parameters, strict)

    model, optimizer = Own(), pair(mlx_opt)
    calls.clear()
    optimizer.update(model, gradients(model, 0))
    assert calls == [sorted(path for path, _ in tree_flatten(model.parameters()))]


def test_a_subclass_of_multi_may_change_apply_gradients():
    class Halved(mlx_opt.MultiOptimizer):
        def apply_gradients(self, gradients, parameters):
            return super().apply_gradients(tree_map(lambda g: g / 2, gradients), parameters)

    optimizer, oracle = Halved([mlx_opt.SGD(0.1)]), mlx_opt.MultiOptimizer([mlx_opt.SGD(0.05)])
    assert_close(walk(optimizer, 2).parameters(), walk(oracle, 2).parameters(), tolerance=1e-6)


@BUILDS
def test_an_error_in_a_part_changes_nothing(build):
    optimizer = build(mlx_opt)
    model = walk(optimizer, 2)
    before = tree_map(copied, (model.parameters(), optimizer.state))
    g = gradients(model, 2)
    g["scales"][2] = mx.zeros(5)
    with pytest.raises(ValueError, match=r"scales\.2: gradient \(5,\), parameter \(3,\)"):
        optimizer.update(model, g)
    assert_same((model.parameters(), optimizer.state), before)


def test_a_module_in_two_places_is_updated_by_one_part():
    """By which is left to chance in stock, where the last result stays; but never by both."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = self.b = nn.Linear(1, 1, bias=False)
            self.a.weight = mx.array([[1.0]])

    model = Tied()
    optimizer = mlx_opt.MultiOptimizer(
        [mlx_opt.SGD(0.25), mlx_opt.SGD(0.125)], [lambda path, _: path.startswith("a")]
    )
    for _ in range(3):
        model.a.weight = mx.array([[1.0]])
        g = tree_map(mx.ones_like, model.parameters())
        mx.eval(g, model.parameters())
        optimizer.update(model, g)
        mx.eval(model.parameters(), optimizer.state)
        assert model.a.weight.item() in (0.75, 0.875)


trees = st.recursive(
    st.integers(0, 2),
    lambda children: (
        st.lists(children, max_size=4)
        | st.lists(children, max_size=3).map(tuple)
        | st.dictionaries(st.sampled_from("abc"), children, max_size=3)
    ),
    max_leaves=12,
)


@given(trees)
def test_a_tree_is_split_as_stock_splits_it(tree):
    paths = []

    def part_of(path, leaf):
        paths.append(path)
        return leaf

    parts = split(tree, 3, part_of)
    leaves = tree_flatten(tree)
    assert paths == [path for path, _ in leaves]
    for i in range(3):
        expected = [(path, leaf) for path, leaf in leaves if leaf == i]
        assert parts[i] == (tree_unflatten(expected) if expected else {})
