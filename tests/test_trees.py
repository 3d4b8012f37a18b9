"""Trees: what goes in, what comes out, and what is left alone."""

from collections import OrderedDict
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as stock
import numpy as np
import pytest
from mlx.utils import tree_map, tree_merge, tree_unflatten

import mlx_opt
from cases import (
    assert_close,
    assert_same,
    each_dtype,
    each_rule,
    flat,
    normal,
    same_bits,
    signature,
)


class Pair(NamedTuple):
    left: object
    right: object


def deep(seed, dtype=mx.float32):
    def x(*shape):
        return normal(*shape, seed=seed, dtype=dtype)

    return {
        "embedding": {"weight": x(5, 3)},
        "layers": [
            {"attention": {"query": x(3, 3), "norms": (x(3), x())}},
            [x(2), (x(0), [x(0, 4)])],
        ],
        "pair": Pair(x(4), {"deeper": Pair(x(1), [x(1, 1, 1)])}),
        "none": {"list": [], "tuple": (), "dict": {}},
        "head": x(7, 2),
    }


def types(tree):
    """The tree with each container's type in place of the container, and None for each leaf."""
    if isinstance(tree, dict):
        return dict, {key: types(child) for key, child in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree), [types(child) for child in tree]
    return None


@each_dtype
@each_rule
def test_nested_trees_are_updated_as_their_leaves_are_alone(case, dtype):
    optimizer = case.ours(0.1)
    w = deep(1, dtype)
    alone = {path: (case.ours(0.1), x) for path, x in flat(w).items() if isinstance(x, mx.array)}
    for step in range(3):
        g = deep(2 + step, dtype)
        w = optimizer.apply_gradients(g, w)
        leaves = flat(g)
        alone = {
            path: (one, one.apply_gradients({"x": leaves[path]}, {"x": x})["x"])
            for path, (one, x) in alone.items()
        }
    assert len(alone) == 11
    for path, (one, x) in alone.items():
        assert same_bits(flat(w)[path], x), path
        for name in case.slots:
            assert same_bits(flat(optimizer.state)[f"{path}.{name}"], one.state["x"][name]), path


@each_rule
def test_the_result_and_the_state_have_the_containers_that_stock_gives(case):
    ours, theirs = case.ours(0.1), case.stock(0.1)
    for step in range(2):
        g = deep(2 + step)
        got, expected = ours.apply_gradients(g, deep(1)), theirs.apply_gradients(g, deep(1))
        assert types(got) == types(expected)
        assert types(ours.state) == types(theirs.state)
        assert signature(got) == signature(expected)
        assert signature(ours.state) == signature(theirs.state)
    assert type(got["pair"]) is Pair
    assert type(got["layers"][0]["attention"]["norms"]) is tuple


def test_a_subset_of_gradients_updates_a_subset():
    w = {
        "a": normal(3, seed=1),
        "b": [normal(3, seed=2), normal(3, seed=3)],
        "c": normal(2, seed=4),
    }
    optimizer = mlx_opt.AdamW(0.1)
    optimizer.init(w)
    before = dict(flat(optimizer.state))
    new = optimizer.apply_gradients({"b": [mx.ones(3)]}, w)
    assert signature(new) == [("b.0", (3,), mx.float32)]
    after = flat(optimizer.state)
    changed = {path for path in before if after[path] is not before[path]}
    assert changed == {"step", "b.0.m", "b.0.v"}


def test_subsets_that_take_turns_give_what_stock_gives():
    subsets = [["a"], ["b.c"], ["a", "b.d"], [], ["b.c", "b.d"]]
    results = []
    for package in (mlx_opt, stock):
        w = {"a": normal(3, seed=1), "b": {"c": normal(4, seed=2), "d": normal(5, seed=3)}}
        optimizer = package.AdamW(0.1, weight_decay=0.1)
        optimizer.init(w)
        for step, subset in enumerate(subsets):
            g = [(path, normal(*flat(w)[path].shape, seed=10 + step)) for path in subset]
            new = optimizer.apply_gradients(tree_unflatten(g) if g else {}, w)
            w = tree_merge(w, new, lambda old, new: new)
        results.append((w, optimizer.state))
    assert_close(results[0], results[1], 2e-6)


def test_a_model_keeps_what_has_no_gradient():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm(4), nn.Linear(4, 2))
    model.layers[0].freeze()
    before = dict(flat(model.parameters()))
    g = tree_map(mx.ones_like, model.trainable_parameters())
    optimizer = mlx_opt.Lion(0.1)
    optimizer.update(model, g)
    after = flat(model.parameters())
    trained = set(flat(g))
    assert trained and trained < set(before)
    for path, x in before.items():
        assert (after[path] is x) == (path not in trained), path


def test_the_gradients_and_the_parameters_given_stay_the_same_objects():
    w, g = deep(1), deep(2)
    w_leaves, g_leaves = dict(flat(w)), dict(flat(g))
    new = mlx_opt.AdamW(0.1).apply_gradients(g, w)
    assert all(flat(w)[path] is x for path, x in w_leaves.items())
    assert all(flat(g)[path] is x for path, x in g_leaves.items())
    assert new is not w and new["layers"] is not w["layers"]


@each_rule
def test_an_empty_update_counts_a_step(case):
    optimizer = case.ours(lambda step: 0.1 * 0.5**step)
    model = {}
    for _ in range(4):
        optimizer.update(model, {})
    assert optimizer.step.item() == 4
    assert optimizer.state.keys() == {"step", "learning_rate", *case.keeps}
    np.testing.assert_allclose(optimizer.learning_rate.item(), 0.1 * 0.5**3, rtol=1e-6)


def test_plain_dicts_are_updated_in_place_of_a_module():
    w = {"a": mx.array([1.0, 2.0])}
    optimizer = mlx_opt.SGD(0.5)
    optimizer.update(w, {"a": mx.array([1.0, 1.0])})
    assert w["a"].tolist() == [0.5, 1.5]


def test_dict_and_list_subclasses_are_trees():
    class Names(list):
        pass

    g = OrderedDict(a=mx.ones(2), b=Names([mx.ones(3)]))
    w = OrderedDict(b=Names([mx.ones(3)]), a=mx.ones(2))
    new = mlx_opt.SGD(1.0).apply_gradients(g, w)
    assert type(new) is dict and list(new) == ["a", "b"]
    assert type(new["b"]) is Names
    assert new["a"].tolist() == [0, 0]


def test_a_module_may_be_the_gradient():
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    new = mlx_opt.SGD(1.0).apply_gradients(other, model)
    assert_same(new["weight"], model.weight - other.weight)


def test_keys_that_are_not_strings_are_kept():
    w = {1: mx.ones(2), ("a", 2): [mx.ones(2)]}
    optimizer = mlx_opt.AdamW(1.0)
    new = optimizer.apply_gradients(w, w)
    assert list(new) == [1, ("a", 2)]
    assert optimizer.state[("a", 2)][0]["m"].shape == (2,)


def test_a_lone_array_is_a_tree():
    new = mlx_opt.SGD(0.5).apply_gradients(mx.array([1.0]), mx.array([3.0]))
    assert new.tolist() == [2.5]


def test_parameters_in_other_containers_than_the_gradients_are_found():
    g = {"layers": [mx.ones(2), mx.ones(2)], "pair": (mx.ones(1), mx.ones(1))}
    w = {"layers": (mx.zeros(2), mx.zeros(2)), "pair": [mx.zeros(1), mx.zeros(1), mx.zeros(9)]}
    new = mlx_opt.SGD(1.0).apply_gradients(g, w)
    assert type(new["layers"]) is list and type(new["pair"]) is tuple
    assert len(new["pair"]) == 2


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (1, 1, 1), (2, 0, 2), (127,), (3, 5, 7)])
@each_dtype
@each_rule
def test_a_parameter_of_any_shape_keeps_it(case, dtype, shape):
    optimizer = case.ours(0.1)
    w = {"w": normal(*shape, seed=1, dtype=dtype)}
    w = optimizer.apply_gradients({"w": normal(*shape, seed=2, dtype=dtype)}, w)
    mx.eval(w, optimizer.state)
    assert w["w"].shape == shape and w["w"].dtype == dtype
    for name in case.slots:
        assert optimizer.state["w"][name].shape == shape
