"""Slots that have no value before the first step: Adan's `previous`, MADGRAD's `x0`."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map, tree_unflatten

import mlx_opt
from cases import (
    DTYPES,
    Case,
    assert_close,
    assert_goes_on_inside_compile,
    assert_same,
    each_dtype,
    flat,
    normal,
    wide,
)

NAN = float("nan")
CASES = [Case("Adan", {"weight_decay": 0.1}), Case("MADGRAD", {"weight_decay": 0.1})]
each = pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)


def tree(seed, dtype=mx.float32):
    def x(*shape):
        return normal(*shape, seed=seed, dtype=dtype)

    return {"a": x(9, 4), "layers": [{"weight": x(130)}, {"weight": x(), "bias": x(3)}]}


def slot_of(case, optimizer, path):
    """The slot that begins unset, of the parameter at a path."""
    (name,) = case.unset
    return flat(optimizer.state)[f"{path}.{name}"]


def first_value(case, w, g):
    """What the slot is after the first step."""
    return g if case.rule == "Adan" else w


def reference(case, walk, learning_rate=0.01):
    """The parameter and the state in float64 after (parameter, gradient) steps; a parameter that
    is None is that of the step before."""
    state = {name: 0.0 for name in case.slots}
    w = None
    for step, (given, g) in enumerate(walk, start=1):
        w = w if given is None else wide(given)
        if step == 1:
            state |= {name: first_value(case, w, wide(g)) for name in case.unset}
        w, state = case.reference(w, wide(g), state, step, learning_rate)
    return w, state


def assert_is(case, optimizer, w, walk, path="a"):
    """The parameter and the state at a path are what the reference makes of the walk."""
    expected, state = reference(case, walk)
    np.testing.assert_allclose(wide(flat(w)[path]), expected, rtol=2e-6, atol=2e-6)
    for name, x in state.items():
        got = wide(flat(optimizer.state)[f"{path}.{name}"])
        np.testing.assert_allclose(got, x, rtol=2e-6, atol=2e-6, err_msg=name)


def assert_unset(case, optimizer, w):
    for path, _ in tree_flatten(w):
        assert mx.all(mx.isnan(slot_of(case, optimizer, path))).item(), path


@each
def test_the_slot_is_unset_until_the_first_step(case):
    optimizer = case.ours(0.01)
    optimizer.init(tree(0))
    assert_unset(case, optimizer, tree(0))
    w = optimizer.apply_gradients(tree(1), tree(0))
    for path, g in flat(tree(1)).items():
        expected = first_value(case, flat(tree(0))[path], g)
        assert_same(slot_of(case, optimizer, path), expected)
    w = optimizer.apply_gradients(tree(2), w)
    walk = [(tree(0)["a"], tree(1)["a"]), (None, tree(2)["a"])]
    assert_is(case, optimizer, w, walk)


@each
def test_an_init_that_the_first_step_makes_is_as_good(case):
    optimizer, initialized = case.ours(0.01), case.ours(0.01)
    initialized.init(tree(0))
    w, expected = tree(0), tree(0)
    for seed in (1, 2, 3):
        w = optimizer.apply_gradients(tree(seed), w)
        expected = initialized.apply_gradients(tree(seed), expected)
    assert_same(w, expected)
    assert_same(optimizer.state, initialized.state)


@each
def test_weights_that_are_loaded_after_init_are_those_that_count(case):
    optimizer = case.ours(0.01)
    optimizer.init(tree(0))
    w = optimizer.apply_gradients(tree(1), tree(7))
    assert_is(case, optimizer, w, [(tree(7)["a"], tree(1)["a"])])


@each
def test_steps_in_place_give_what_steps_through_the_graph_give(case):
    def model():
        layer = nn.Linear(8, 4)
        layer.update(tree_map(lambda x: normal(*x.shape, seed=3), layer.parameters()))
        return layer

    ours, ways = case.ours(0.01), case.ours(0.01)
    overwritten, held = model(), model()
    ours.init(overwritten.parameters())
    ways.init(held.parameters())
    mx.eval(ours.state, ways.state)
    for seed in range(3):
        g = tree_map(lambda x, seed=seed: normal(*x.shape, seed=10 + seed), held.parameters())
        before = held.weight
        value = wide(before)
        place = id(overwritten["weight"])
        mx.eval(g)
        ours.update(overwritten, g)
        ways.update(held, g)
        assert id(overwritten["weight"]) == place
        mx.eval(overwritten.parameters(), held.parameters(), ours.state, ways.state)
        assert np.array_equal(wide(before), value)  # who holds the parameter sees no change
    assert_same(overwritten.parameters(), held.parameters())
    assert_same(ours.state, ways.state)


@each
def test_a_layer_that_is_unfrozen_later_begins_then(case):
    mx.random.seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = case.ours(0.01)
    optimizer.init(model.parameters())
    model.layers[0].freeze()
    walks = {}

    def step(seed):
        trained = model.trainable_parameters()
        g = tree_map(lambda x: normal(*x.shape, seed=seed), trained)
        for (path, w), (_, slope) in zip(tree_flatten(trained), tree_flatten(g), strict=True):
            given = None if walks.get(path) else mx.array(w)
            walks.setdefault(path, []).append((given, slope))
        optimizer.update(model, g)
        mx.eval(model.parameters(), optimizer.state)

    step(1)
    frozen = flat(optimizer.state)[f"layers.0.weight.{case.unset[0]}"]
    assert mx.all(mx.isnan(frozen)).item()
    model.unfreeze()
    before = mx.array(model.layers[0].weight)
    step(2)
    first = walks["layers.0.weight"][0][1]
    assert_same(slot_of(case, optimizer, "layers.0.weight"), first_value(case, before, first))
    assert_is(case, optimizer, model.parameters(), walks["layers.1.weight"], "layers.1.weight")


@each
def test_an_init_for_parameters_that_are_added_leaves_the_others_set(case):
    optimizer = case.ours(0.01)
    w = optimizer.apply_gradients({"a": normal(5, seed=1)}, {"a": normal(5, seed=2)})
    before = tree_map(mx.array, optimizer.state["a"])
    w["b"] = normal(5, seed=3)
    optimizer.init(w)
    assert_same(optimizer.state["a"], before)
    assert mx.all(mx.isnan(slot_of(case, optimizer, "b"))).item()
    g = {"a": normal(5, seed=4), "b": normal(5, seed=5)}
    optimizer.apply_gradients(g, w)
    assert_same(slot_of(case, optimizer, "b"), first_value(case, w["b"], g["b"]))


@pytest.mark.parametrize("steps", [0, 1, 2])
@each
def test_a_checkpoint_of_any_step_goes_on(case, steps, tmp_path):
    optimizer, path = case.ours(0.01), str(tmp_path / "state.safetensors")
    w = tree(0)
    optimizer.init(w)
    for seed in range(1, 1 + steps):
        w = optimizer.apply_gradients(tree(seed), w)
    mx.save_safetensors(path, dict(tree_flatten(optimizer.state)))
    again = case.ours(0.01)
    again.state = tree_unflatten(list(mx.load(path).items()))
    other = w
    for seed in (8, 9):
        w = optimizer.apply_gradients(tree(seed), w)
        other = again.apply_gradients(tree(seed), other)
    assert_same(other, w)
    assert_same(*(dict(sorted(flat(x.state).items())) for x in (again, optimizer)))


@each_dtype
@each
def test_the_slot_has_the_dtype_that_its_rule_says(case, dtype):
    optimizer = case.ours(0.01)
    w, g = normal(33, seed=1, dtype=dtype), normal(33, seed=2, dtype=dtype)
    optimizer.init({"w": w})
    kept = case.formats.get(case.unset[0], dtype)
    assert slot_of(case, optimizer, "w").dtype == kept
    optimizer.apply_gradients({"w": g}, {"w": w})
    assert_same(slot_of(case, optimizer, "w"), first_value(case, w, g).astype(kept))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_parameter_keeps_its_digits_whatever_its_gradient_has(dtype):
    w, g = normal(33, seed=1), normal(33, seed=2, dtype=dtype)
    optimizer = mlx_opt.MADGRAD(0.01)
    optimizer.apply_gradients({"w": g}, {"w": w})  # init is given the gradient
    assert_same(optimizer.state["w"]["x0"], w)


@each
def test_the_first_step_takes_the_clipped_gradient(case):
    optimizer, plain = case.ours(0.01), case.ours(0.01)
    w, expected = tree(0), tree(0)
    for seed in (1, 2):
        clipped, _ = mlx_opt.clip_grad_norm(tree(seed), 0.5)
        w = optimizer.apply_gradients(tree(seed), w, max_norm=0.5)
        expected = plain.apply_gradients(clipped, expected)
        if seed == 1 and case.rule == "Adan":
            assert not flat(optimizer.state)["a.v"].any().item()  # there is no difference yet
    assert_close(w, expected)
    assert_close(slot_of(case, optimizer, "a"), slot_of(case, plain, "a"))


@pytest.mark.parametrize("bad", [NAN, float("inf")])
@each
def test_after_a_first_step_that_is_skipped_the_next_one_begins(case, bad):
    optimizer, never = case.ours(0.01), case.ours(0.01)
    broken = tree_map(lambda g: g * bad, tree(1))
    w = optimizer.apply_gradients(broken, tree(0), skip_nonfinite=True)
    assert_unset(case, optimizer, w)
    w, expected = tree(7), tree(7)  # loaded meanwhile
    for seed in (2, 3):
        w = optimizer.apply_gradients(tree(seed), w, skip_nonfinite=True)
        expected = never.apply_gradients(tree(seed), expected, skip_nonfinite=True)
    assert_same(w, expected)
    assert optimizer.step.item() == 2 and optimizer.skipped.item() == 1


@each
def test_an_error_leaves_the_slot_unset(case):
    optimizer = case.ours(0.01)
    optimizer.init(tree(0))
    wrong = tree(1)
    wrong["layers"][1]["bias"] = mx.ones(4)
    with pytest.raises(ValueError, match=r"layers.1.bias: gradient \(4,\), parameter \(3,\)"):
        optimizer.apply_gradients(wrong, tree(0))
    assert_unset(case, optimizer, tree(0))
    assert optimizer.step.item() == 0


@each
def test_a_slot_that_is_set_by_hand_counts(case):
    (name,) = case.unset
    w, g, own = (normal(33, seed=seed) for seed in (1, 2, 3))
    optimizer = case.ours(0.01)
    optimizer.init({"w": w})
    optimizer.state["w"][name] = own
    new = optimizer.apply_gradients({"w": g}, {"w": w})["w"]
    state = dict.fromkeys(case.slots, 0.0) | {name: wide(own)}
    expected, _ = case.reference(wide(w), wide(g), state, 1, 0.01)
    np.testing.assert_allclose(wide(new), expected, rtol=2e-6, atol=2e-6)


@each
def test_parts_of_a_multi_optimizer_begin_each_for_itself(case):
    both = mlx_opt.MultiOptimizer(
        [case.ours(0.01), mlx_opt.AdamW(0.01)], [lambda path, _: path == "a"]
    )
    w = both.apply_gradients(tree(1), tree(0))
    w = both.apply_gradients(tree(2), w)
    walk = [(tree(0)["a"], tree(1)["a"]), (None, tree(2)["a"])]
    assert_is(case, both.optimizers[0], {"a": w["a"]}, walk)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("initialized", [True, False])
@each
def test_a_captured_step_begins_and_goes_on(case, initialized):
    optimizer, plain = assert_goes_on_inside_compile(case, initialized, 0, 4, 1e-7)
    assert_close(optimizer.state, plain.state, 1e-7)


@each
def test_gradients_go_through_the_first_step_and_the_next(case):
    def loss(optimizer):
        def run(g):
            w = {"w": mx.array([1.0, -2.0, 0.5])}
            for factor in (1.0, 0.5):
                w = optimizer().apply_gradients({"w": g * factor}, w)
            return (w["w"] * mx.array([1.0, 2.0, 3.0])).sum()

        return run

    def of(make):
        optimizer = make(0.1)
        return lambda: optimizer

    g = mx.array([3.0, 4.0, -1.0])
    ours = mx.grad(lambda g: loss(of(case.ours))(g))(g)
    assert_close(ours, mx.grad(lambda g: loss(of(case.stock))(g))(g), 2e-5)
    assert mx.all(mx.isfinite(ours)).item()


@each
def test_a_batch_of_first_steps(case):
    def step(g, w):
        optimizer = case.ours(0.1)
        w = optimizer.apply_gradients({"w": g}, {"w": w})
        return optimizer.apply_gradients({"w": 2 * g}, w)["w"]

    g, w = normal(3, 5, seed=1), normal(3, 5)
    assert_close(mx.vmap(step)(g, w), mx.stack([step(a, b) for a, b in zip(g, w, strict=True)]))


@each
def test_complex_parameters_begin_too(case):
    w, g = mx.array([1.0 + 2.0j, -0.5j]), mx.array([0.5 - 1.0j, 0.25 + 0.0j])
    optimizer = case.ours(0.01)
    optimizer.init({"w": w})
    new = optimizer.apply_gradients({"w": g}, {"w": w})["w"]
    assert_same(slot_of(case, optimizer, "w"), first_value(case, w, g))
    assert np.isfinite(np.array(new)).all()
