"""Numbers that a rule keeps from step to step in the root of the state: NAdam's `mu_product`."""

import copy
import gc
import pickle
import weakref

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map, tree_unflatten

import mlx_opt
from cases import (
    Case,
    assert_close,
    assert_goes_on_inside_compile,
    assert_same,
    mu_product,
    normal,
    wide,
)

NAN = float("nan")
CASE = Case("NAdam", {"weight_decay": 0.1, "momentum_decay": 0.1})


class Lines:
    """A file that keeps its lines."""

    def __init__(self):
        self.lines = []

    def write(self, text):
        self.lines += text.splitlines()


def tree(seed, dtype=mx.float32):
    def x(*shape):
        return normal(*shape, seed=seed, dtype=dtype)

    return {"a": x(9, 4), "layers": [{"weight": x(130)}, {"weight": x(), "bias": x(3)}]}


def walk(optimizer, seeds, w=None, **options):
    w = tree(0) if w is None else w
    for seed in seeds:
        w = optimizer.apply_gradients(tree(seed), w, **options)
    return w


def assert_kept(optimizer, steps, case=CASE):
    number = optimizer.state["mu_product"]
    assert (number.dtype, number.shape) == (mx.float32, ())
    assert number.item() == pytest.approx(mu_product(case, steps), rel=1e-5)


def test_the_number_begins_as_the_description_says_and_each_step_changes_it():
    optimizer = CASE.ours(0.01)
    assert optimizer.state["mu_product"].item() == 1
    w = tree(0)
    for steps in range(1, 6):
        w = walk(optimizer, [steps], w)
        assert_kept(optimizer, steps)
        assert optimizer.mu_product is optimizer.state["mu_product"]


def test_the_update_is_the_one_of_the_paper():
    optimizer, case = mlx_opt.NAdam(0.01), Case("NAdam")
    w, state = wide(tree(0)["a"]), {"m": 0.0, "v": 0.0}
    for step in range(1, 30):
        w, state = case.reference(w, wide(tree(step)["a"]), state, step, 0.01)
    got = walk(optimizer, range(1, 30))["a"]
    np.testing.assert_allclose(wide(got), w, rtol=2e-6, atol=2e-6)


def test_it_is_no_argument_and_is_not_set_as_one():
    with pytest.raises(TypeError, match="unexpected keyword argument 'mu_product'"):
        mlx_opt.NAdam(0.01, mu_product=0.5)
    with pytest.raises(AttributeError):
        mlx_opt.NAdam(0.01).mu_product = 0.5


@pytest.mark.parametrize("name", ["eps", "momentum_decay", "mu_product"])
def test_several_values_for_one_are_refused_by_name(name):
    optimizer, several = mlx_opt.NAdam(0.01), mx.array([0.5, 0.25])
    if name == "mu_product":
        optimizer.state[name] = several
    else:
        setattr(optimizer, name, several)
    with pytest.raises(ValueError, match=rf"{name} must be a scalar, got shape \(2,\)"):
        optimizer.apply_gradients(tree(1), tree(0))
    assert optimizer.step.item() == 0


def test_a_state_without_it_is_refused_and_nothing_changes():
    optimizer = CASE.ours(0.01)
    w = walk(optimizer, [1])
    del optimizer.state["mu_product"]
    before = tree_map(mx.array, optimizer.state)
    with pytest.raises(KeyError, match='the optimizer state has no "mu_product"'):
        optimizer.apply_gradients(tree(2), w)
    assert_same(optimizer.state, before)


def test_another_value_in_the_state_counts():
    optimizer, case = CASE.ours(0.01), CASE
    optimizer.init(tree(0))
    case.begin_after(optimizer, 50)
    w = optimizer.apply_gradients(tree(1), tree(0))
    state = {"m": 0.0, "v": 0.0}
    expected, _ = case.reference(wide(tree(0)["a"]), wide(tree(1)["a"]), state, 51, 0.01)
    np.testing.assert_allclose(wide(w["a"]), expected, rtol=2e-6, atol=2e-6)
    assert_kept(optimizer, 51)


@pytest.mark.parametrize("steps", [0, 3])
def test_a_checkpoint_goes_on(steps, tmp_path):
    optimizer, path = CASE.ours(0.01), str(tmp_path / "state.safetensors")
    optimizer.init(tree(0))
    w = walk(optimizer, range(1, 1 + steps))
    mx.save_safetensors(path, dict(tree_flatten(optimizer.state)))
    again = CASE.ours(0.01)
    again.state = tree_unflatten(list(mx.load(path).items()))
    assert_same(walk(again, [8, 9], w), walk(optimizer, [8, 9], w))
    assert_same(again.state["mu_product"], optimizer.state["mu_product"])


def test_copies_and_pickles_keep_it():
    optimizer = CASE.ours(0.01)
    w = walk(optimizer, [1, 2])
    twins = [pickle.loads(pickle.dumps(optimizer)), copy.deepcopy(optimizer)]
    expected = walk(optimizer, [3], w)
    for twin in twins:
        assert_same(walk(twin, [3], w), expected)
        assert_kept(twin, 3)


def test_it_does_not_keep_the_optimizer_alive():
    optimizer = CASE.ours(0.01)
    walk(optimizer, [1])
    gone = weakref.ref(optimizer)
    gc.disable()
    try:
        del optimizer
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("bad", [NAN, float("inf")])
@pytest.mark.parametrize("first", [0, 2])
def test_a_skipped_step_does_not_change_it(bad, first):
    optimizer, never = CASE.ours(0.01), CASE.ours(0.01)
    w = walk(optimizer, range(1, 1 + first), skip_nonfinite=True)
    before = optimizer.state["mu_product"].item()
    broken = tree_map(lambda g: g * bad, tree(7))
    w = optimizer.apply_gradients(broken, w, skip_nonfinite=True)
    assert optimizer.state["mu_product"].item() == before
    w = walk(optimizer, [8, 9], w, skip_nonfinite=True)
    expected = walk(never, [*range(1, 1 + first), 8, 9], skip_nonfinite=True)
    assert_same(w, expected)
    assert_kept(optimizer, first + 2)


def test_an_error_takes_it_back():
    optimizer = CASE.ours(0.01)
    w = walk(optimizer, [1])
    before = tree_map(mx.array, optimizer.state)
    wrong = tree(2)
    wrong["layers"][1]["bias"] = mx.ones(4)
    with pytest.raises(ValueError, match=r"layers.1.bias: gradient \(4,\), parameter \(3,\)"):
        optimizer.apply_gradients(wrong, w)
    assert_same(optimizer.state, before)


def test_steps_in_place_give_what_steps_through_the_graph_give():
    def model():
        layer = nn.Linear(8, 4)
        layer.update(tree_map(lambda x: normal(*x.shape, seed=3), layer.parameters()))
        return layer

    ours, ways = CASE.ours(0.01), CASE.ours(0.01)
    overwritten, held = model(), model()
    for seed in range(4):
        g = tree_map(lambda x, seed=seed: normal(*x.shape, seed=10 + seed), held.parameters())
        before = held.weight
        place = id(overwritten["weight"])
        mx.eval(g)
        ours.update(overwritten, g)
        ways.update(held, g)
        assert id(overwritten["weight"]) == place or seed == 0
        mx.eval(overwritten.parameters(), held.parameters(), ours.state, ways.state)
        del before
    assert_close(overwritten.parameters(), held.parameters(), 1e-7)
    assert_kept(ours, 4)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("initialized", [True, False])
def test_it_goes_on_inside_compile(initialized):
    optimizer, _ = assert_goes_on_inside_compile(CASE, initialized, 2, 5, 1e-6)
    assert_kept(optimizer, 4)


def test_a_scheduled_momentum_decay_is_that_of_the_same_step():
    def schedule(step):
        return 0.5 / (1 + step)

    optimizer = mlx_opt.NAdam(0.01, momentum_decay=schedule)
    product, w = 1.0, tree(0)
    for done in range(4):
        w = walk(optimizer, [1 + done], w)
        product *= 0.9 * (1 - 0.5 * 0.96 ** ((done + 1) * schedule(done)))
        assert optimizer.state["mu_product"].item() == pytest.approx(product, rel=1e-5)


def test_each_hyperparameter_is_read_once_a_step():
    reads = []

    class Watched(mlx_opt.NAdam):
        @property
        def momentum_decay(self):
            reads.append(1)
            return 0.1

        @momentum_decay.setter
        def momentum_decay(self, value):
            pass

    optimizer = Watched(0.01, weight_decay=0.1)
    w = walk(optimizer, [1])
    reads.clear()
    walk(optimizer, [2], w)
    assert len(reads) == 1


def test_a_subclass_with_a_step_of_its_own_keeps_it_too():
    class Halved(mlx_opt.NAdam):
        def apply_single(self, gradient, parameter, state):
            return super().apply_single(gradient / 2, parameter, state)

    halved, plain = Halved(0.01, momentum_decay=0.1), mlx_opt.NAdam(0.01, momentum_decay=0.1)
    w = expected = tree(0)
    for seed in (1, 2, 3):
        w = halved.apply_gradients(tree(seed), w)
        expected = plain.apply_gradients(tree_map(lambda g: g / 2, tree(seed)), expected)
    assert_close(w, expected)
    assert_kept(halved, 3)
    broken = tree_map(lambda g: g * NAN, tree(7))
    kept = halved.apply_gradients(broken, w, skip_nonfinite=True)
    assert_same(kept, w)
    assert_kept(halved, 3)


def test_optimizers_of_a_multi_optimizer_have_each_their_own():
    both = mlx_opt.MultiOptimizer(
        [CASE.ours(0.01), mlx_opt.NAdam(0.02)], [lambda path, _: path == "a"]
    )
    w = walk(both, [1, 2])
    assert_kept(both.optimizers[0], 2)
    assert_kept(both.optimizers[1], 2, Case("NAdam"))
    assert_close(w["a"], walk(CASE.ours(0.01), [1, 2])["a"], 1e-7)
    alone = walk(mlx_opt.NAdam(0.02), [1, 2])
    assert_close(w["layers"], alone["layers"], 1e-7)


def test_a_gradient_goes_through_two_steps():
    def loss(make):
        def run(g):
            optimizer, w = make(0.1), {"w": mx.array([1.0, -2.0, 0.5])}
            for factor in (1.0, 0.5):
                w = optimizer.apply_gradients({"w": g * factor}, w)
            return (w["w"] * mx.array([1.0, 2.0, 3.0])).sum()

        return run

    g = mx.array([3.0, 4.0, -1.0])
    assert_close(mx.grad(loss(CASE.ours))(g), mx.grad(loss(CASE.stock))(g), 2e-5)


def test_complex_parameters_have_it_too():
    w, g = {"w": mx.array([1.0 + 2.0j, -0.5j])}, {"w": mx.array([0.5 - 1.0j, 0.25 + 0.0j])}
    optimizer = CASE.ours(0.01)
    for _ in range(2):
        w = optimizer.apply_gradients(g, w)
    assert_kept(optimizer, 2)
    assert np.isfinite(np.array(w["w"])).all()


def test_a_loop_that_evaluates_the_model_alone_builds_no_chain():
    optimizer, w = CASE.ours(0.01), {"w": normal(5, seed=1)}
    for seed in range(50):
        w = optimizer.apply_gradients({"w": normal(5, seed=seed)}, w, skip_nonfinite=True)
        mx.eval(w)
    graph = Lines()
    mx.export_to_dot(graph, optimizer.state["mu_product"])
    assert len(graph.lines) < 100
    assert_kept(optimizer, 50)
