"""The kinds of weight decay, what goes together, and `amsgrad`."""

import copy
import pickle

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import mlx_opt
from cases import Case, assert_close, assert_same, exact_step, normal, same_bits, wide
from mlx_opt import Group

OPTIMIZERS = [mlx_opt.SGD, mlx_opt.Adam, mlx_opt.AdamW, mlx_opt.Lion, mlx_opt.Muon]
each_optimizer = pytest.mark.parametrize("cls", OPTIMIZERS, ids=lambda cls: cls.__name__)

LOSSES = {
    "decoupled": lambda rate: rate * 0.1,
    "independent": lambda rate: 0.1,
    "corrected": lambda rate: rate**2 / 0.5 * 0.1,
}


@each_optimizer
@pytest.mark.parametrize("kind", LOSSES)
def test_a_parameter_loses_the_fraction_that_the_kind_says(cls, kind):
    """With gradients of 0, which move nothing."""
    optimizer = cls(0.25, weight_decay=0.1, weight_decay_kind=kind, max_learning_rate=0.5)
    w = {"w": normal(5, 3)}
    after = optimizer.apply_gradients({"w": mx.zeros((5, 3))}, w)
    expected = wide(w["w"]) * (1 - LOSSES[kind](0.25))
    np.testing.assert_allclose(wide(after["w"]), expected, rtol=2e-7)


@each_optimizer
def test_cautious_decay_leaves_elements_that_the_step_moves_away_from_0(cls):
    def walk(**options):
        optimizer = cls(1e-3, weight_decay_kind="independent", **options)
        return wide(optimizer.apply_gradients({"w": g}, {"w": w})["w"])

    w, g = normal(6, 5), normal(6, 5, seed=1)
    plain = walk(weight_decay=0.0)
    shrinks = (wide(w) - plain) * wide(w) >= 0
    assert 0 < shrinks.sum() < w.size
    decayed = walk(weight_decay=0.1, cautious_weight_decay=True)
    expected = plain - np.where(shrinks, 0.1 * wide(w), 0)
    np.testing.assert_allclose(decayed, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["coupled", "decoupled", "corrected"])
@pytest.mark.parametrize("cautious", [False, True])
def test_muons_decay_follows_the_formula(kind, cautious):
    if kind == "coupled" and cautious:
        pytest.skip("refused")
    options = {
        "weight_decay": 0.1,
        "weight_decay_kind": kind,
        "max_learning_rate": 0.5,
        "cautious_weight_decay": cautious,
    }
    optimizer = mlx_opt.Muon(0.1, **options)
    w, state = wide(normal(6, 4)), {"v": np.zeros((6, 4))}
    ours = {"w": normal(6, 4)}
    for step in range(1, 4):
        g = normal(6, 4, seed=step)
        ours = optimizer.apply_gradients({"w": g}, ours)
        w, state = mlx_opt.references.muon(w, wide(g), state, step, learning_rate=0.1, **options)
    np.testing.assert_allclose(wide(ours["w"]), w, rtol=0, atol=2e-5)


def test_adam_with_coupled_decay_is_adamw_with_it():
    adam = mlx_opt.Adam(0.1, weight_decay=0.1)
    adamw = mlx_opt.AdamW(0.1, weight_decay=0.1, weight_decay_kind="coupled")
    g, w = {"w": normal(9, seed=1)}, {"w": normal(9)}
    assert_same(adam.apply_gradients(g, w), adamw.apply_gradients(g, w))


def test_without_decay_the_kind_changes_no_bit_and_no_kernel():
    g, w = {"w": normal(9, seed=1)}, {"w": normal(9)}
    results = []
    for kind in ("coupled", "independent"):
        optimizer = mlx_opt.AdamW(0.1, weight_decay=0.0, weight_decay_kind=kind)
        assert optimizer.describe(w, show=False)[0].rule == "AdamW"
        results.append(optimizer.apply_gradients(g, w))
    assert_same(results[0], results[1])


@pytest.mark.parametrize("kind", ["coupled", "corrected"])
def test_where_there_is_no_kernel_the_formula_decays_alike(kind):
    def step(optimizer, dtype):
        w = {"w": normal(9).astype(dtype)}
        return optimizer.apply_gradients({"w": normal(9, seed=1).astype(dtype)}, w)["w"]

    for cls in (mlx_opt.SGD, mlx_opt.AdamW, mlx_opt.Lion):
        options = {"weight_decay": 0.1, "weight_decay_kind": kind, "max_learning_rate": 0.5}
        ours = step(cls(0.1, **options), mx.float32)
        formula = step(cls(0.1, **options), mx.complex64)
        if cls is not mlx_opt.Lion:  # the sign of a complex number is on the unit circle
            assert mx.allclose(mx.real(formula), ours, 1e-5, 1e-6), cls


def test_the_greatest_learning_rate_is_scaled_with_a_groups():
    groups = [
        Group("a", learning_rate_scale=0.5),
        Group("b", learning_rate_scale=0.5, max_learning_rate=0.5),
    ]
    optimizer = mlx_opt.SGD(
        0.25,
        weight_decay=0.1,
        weight_decay_kind="corrected",
        max_learning_rate=0.5,
        groups=groups,
    )
    ones = {"a": mx.ones(1), "b": mx.ones(1), "c": mx.ones(1)}
    zeros = {name: mx.zeros(1) for name in ones}
    rows = {row.path: row.values for row in optimizer.describe(ones, show=False)}
    assert [rows[name]["max_learning_rate"] for name in "abc"] == [0.25, 0.5, 0.5]
    after = optimizer.apply_gradients(zeros, ones)
    losses = [0.1 * 0.125**2 / 0.25, 0.1 * 0.125**2 / 0.5, 0.1 * 0.25**2 / 0.5]
    np.testing.assert_allclose([1 - after[name].item() for name in "abc"], losses, rtol=1e-4)


def test_groups_of_other_kinds_share_a_rule_but_the_plain_one():
    groups = [
        Group("a", weight_decay_kind="independent"),
        Group("b", weight_decay_kind="coupled"),
        Group("c", amsgrad=True),
        Group("e", cautious=True),
    ]
    ones = {name: mx.ones(2) for name in "abcde"}
    optimizer = mlx_opt.AdamW(0.1, groups=groups)
    rules = [row.rule for row in optimizer.describe(ones, show=False)]
    assert rules == ["AdamWVariant", "AdamWVariant", "AdamAMSGrad", "AdamW", "CautiousAdamW"]
    optimizer.init(ones)
    assert [set(optimizer.state[name]) for name in "cd"] == [{"m", "v", "v_max"}, {"m", "v"}]


REFUSED = [
    ({"weight_decay_kind": "half"}, 'expected "coupled", "decoupled".* got \'half\''),
    ({"weight_decay_kind": 1}, "weight_decay_kind: expected"),
    ({"weight_decay_kind": "coupled", "cautious_weight_decay": True}, 'other than "coupled"'),
    ({"weight_decay_kind": "corrected"}, "needs max_learning_rate"),
    ({"max_learning_rate": -1.0}, "max_learning_rate: expected 0 or more"),
]


@each_optimizer
@pytest.mark.parametrize(("options", "message"), REFUSED, ids=lambda x: str(x)[:40])
def test_what_does_not_fit_is_refused_by_name(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls(0.1, weight_decay=0.1, **options)
    optimizer = cls(0.1, weight_decay=0.1)
    w = {"w": mx.ones((2, 2))}
    with pytest.raises(ValueError, match=message):
        for name, value in options.items():
            setattr(optimizer, name, value)
        optimizer.apply_gradients(w, w)


def test_values_of_groups_are_refused_where_they_meet():
    kind = Group("*", weight_decay_kind="corrected")
    rate = Group("a", max_learning_rate=0.5)
    w = {"a": mx.ones(2)}
    mlx_opt.AdamW(0.1, groups=[kind, rate]).apply_gradients(w, w)
    with pytest.raises(ValueError, match="needs max_learning_rate"):
        mlx_opt.AdamW(0.1, groups=[kind, rate]).apply_gradients(
            {"b": mx.ones(2), **w}, {**w, "b": w["a"]}
        )


def test_muons_two_names_of_decoupled_decay():
    w, g = {"w": normal(4, 3)}, {"w": normal(4, 3, seed=1)}
    one = mlx_opt.Muon(0.1, decoupled_weight_decay=True, cautious_weight_decay=True)
    other = mlx_opt.Muon(0.1, weight_decay_kind="decoupled", cautious_weight_decay=True)
    assert_same(one.apply_gradients(g, w), other.apply_gradients(g, w))
    with pytest.raises(ValueError, match="weight_decay_kind is 'independent' too"):
        mlx_opt.Muon(0.1, decoupled_weight_decay=True, weight_decay_kind="independent")


class TestAmsgrad:
    def test_it_keeps_the_largest(self):
        optimizer = mlx_opt.Adam(0.1, amsgrad=True)
        w = {"w": normal(33)}
        largest = 0.0
        for step in range(4):
            w = optimizer.apply_gradients({"w": normal(33, seed=step, scale=4 - step)}, w)
            largest = np.maximum(largest, wide(optimizer.state["w"]["v"]))
            assert np.array_equal(wide(optimizer.state["w"]["v_max"]), largest)

    def test_a_model_in_place_in_compile_and_copied(self):
        def step(g):
            optimizer.update(model, {"weight": g})

        model = nn.Module()
        model.weight = normal(5, 4)
        case = Case("AdamW", {"amsgrad": True})
        optimizer = case.ours(0.1)
        optimizer.init(model)
        w, state = wide(model.weight), {k: np.zeros((5, 4)) for k in case.slots}
        state_tree = [model.state, optimizer.state]
        for number, run in enumerate([step, mx.compile(step, state_tree, state_tree)], 1):
            g = normal(5, 4, seed=number)
            run(g)
            mx.eval(model, optimizer.state)
            expected = exact_step(case, w, wide(g), state, number, 0.1)
            np.testing.assert_allclose(wide(model.weight), expected["w"][0], rtol=1e-5, atol=1e-6)
            w = expected["w"][0]
            state = {k: expected[k][0] for k in case.slots}
        for again in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
            assert again.amsgrad
            assert same_bits(again.state["weight"]["v_max"], optimizer.state["weight"]["v_max"])

    def test_a_group_that_begins_with_it_begins_its_slot(self):
        w, g = {"w": normal(4)}, {"w": normal(4, seed=1)}
        before = mlx_opt.AdamW(0.1)
        w = before.apply_gradients(g, w)
        after = mlx_opt.AdamW(0.1, groups=[Group("*", amsgrad=True)])
        after.state = copy.deepcopy(before.state)
        with pytest.warns(UserWarning, match="w.v_max"):
            resumed = after.apply_gradients(g, w)
        assert_close(resumed, before.apply_gradients(g, w), 1e-6)  # v has grown in both
