"""MultiOptimizer: each weight to the first optimizer whose filter takes it."""

import re
import tempfile
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as stock
import pytest
from mlx.utils import tree_map

import mlx_opt
from cases import assert_close, flat, normal, signature

PACKAGES = pytest.mark.parametrize("package", [mlx_opt, stock], ids=["ours", "stock"])


def tree(seed):
    return {
        "embedding": normal(7, 4, seed=seed),
        "layers": [{"weight": normal(4, 4, seed=seed + i), "bias": normal(4, seed=seed + i)}
                   for i in range(3)],
        "head": {"weight": normal(4, 2, seed=seed)},
    }  # fmt: skip


def by_path(tree):
    """The leaves sorted by path: stock merges the trees of its parts in the order of a set."""
    return dict(sorted(flat(tree).items()))


def is_matrix(path, x):
    return "layers" in path and x.ndim == 2


def flat_pair(package):
    return package.MultiOptimizer([package.Muon(0.02), package.AdamW(0.01)], [is_matrix])


def three(package):
    return package.MultiOptimizer(
        [
            package.Lion(0.01),
            package.SGD(0.1, momentum=0.9),
            package.AdamW(lambda s: 0.1 / (1 + s)),
        ],
        [is_matrix, lambda path, x: path.endswith("bias")],
    )


def nested(package):
    inner = package.MultiOptimizer(
        [package.Lion(0.01), package.SGD(0.1)], [lambda p, x: x.ndim == 1]
    )
    return package.MultiOptimizer([inner, package.AdamW(0.1)], [lambda p, x: "layers" in p])


def one(package):
    return package.MultiOptimizer([package.AdamW(0.1)])


def none_for_the_first(package):
    return package.MultiOptimizer([package.Lion(0.1), package.AdamW(0.1)], [lambda p, x: False])


BUILDS = pytest.mark.parametrize("build", [flat_pair, three, nested, one, none_for_the_first])


def walk(optimizer, steps=4):
    w = tree(0)
    for step in range(steps):
        w = optimizer.apply_gradients(tree(10 + step), w)
        mx.eval(w, optimizer.state)
    return w


@BUILDS
def test_each_weight_is_updated_as_stock_updates_it(build):
    ours, theirs = build(mlx_opt), build(stock)
    assert signature(ours.state) == signature(theirs.state)
    a, b = walk(ours), walk(theirs)
    assert_close(dict(sorted(flat(a).items())), dict(sorted(flat(b).items())), 2e-5)
    assert_close(ours.state, theirs.state, 2e-5)


@BUILDS
def test_init_gives_stocks_state(build):
    ours, theirs = build(mlx_opt), build(stock)
    for optimizer in (ours, theirs):
        optimizer.init(tree(0))
    assert signature(ours.state) == signature(theirs.state)


@BUILDS
def test_a_compiled_step_gives_what_plain_steps_give(build):
    optimizer = build(mlx_opt)
    optimizer.init(tree(0))
    step = mx.compile(
        optimizer.apply_gradients, inputs=[optimizer.state], outputs=[optimizer.state]
    )
    w = tree(0)
    for i in range(4):
        w = step(tree(10 + i), w)
    again = build(mlx_opt)
    assert_close(dict(flat(w)), dict(flat(walk(again))), 1e-5)


@pytest.mark.parametrize("ours_first", [True, False])
def test_optimizers_of_both_packages_may_be_mixed(ours_first):
    a, b = (mlx_opt, stock) if ours_first else (stock, mlx_opt)

    def build(outer, first, second):
        return outer.MultiOptimizer([first.Lion(0.01), second.AdamW(0.1)], [is_matrix])

    expected = walk(build(stock, stock, stock))
    for outer in (mlx_opt, stock):
        assert_close(by_path(walk(build(outer, a, b))), by_path(expected), 2e-5)


@PACKAGES
def test_the_learning_rate_is_the_firsts_and_is_set_in_all(package):
    optimizer = three(package)
    assert optimizer.learning_rate.item() == pytest.approx(0.01)
    optimizer.learning_rate = 0.5
    assert [o.learning_rate.item() for o in optimizer.optimizers] == [0.5] * 3


@PACKAGES
def test_the_dictionary_is_split_by_path(package):
    parts = three(package)._split_dictionary(tree(0))
    paths = [set(flat(part)) for part in parts]
    assert paths[0] == {f"layers.{i}.weight" for i in range(3)}
    assert paths[1] == {f"layers.{i}.bias" for i in range(3)}
    assert paths[2] == {"embedding", "head.weight"}


@PACKAGES
def test_state_is_loaded_part_by_part(package):
    trained, fresh = three(package), three(package)
    w = walk(trained)
    states = [dict(s) for s in tree_map(mx.array, trained.state)["states"]]
    fresh.state = {"states": states}
    assert [o.state is s for o, s in zip(fresh.optimizers, states, strict=True)] == [True] * 3
    assert_close(fresh.apply_gradients(tree(5), w), trained.apply_gradients(tree(5), w), 1e-7)
    with pytest.raises(ValueError, match="Invalid state"):
        fresh.state = {"states": states[:2]}


@PACKAGES
def test_filters_are_one_fewer_than_optimizers(package):
    with pytest.raises(ValueError, match="Given 0 filters but 1 needed"):
        package.MultiOptimizer([package.SGD(0.1), package.SGD(0.1)])


@PACKAGES
def test_a_model_is_updated(package):
    mx.random.seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = package.MultiOptimizer(
        [package.SGD(0.05), package.Adam(0.01)], [lambda path, _: path.endswith("bias")]
    )
    x, y = normal(32, 4, seed=1), normal(32, 1, seed=2)
    loss_and_grad = nn.value_and_grad(model, lambda x, y: mx.mean((model(x) - y) ** 2))
    losses = []
    for _ in range(25):
        loss, g = loss_and_grad(x, y)
        optimizer.update(model, g)
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert optimizer.optimizers[0].step.item() == optimizer.optimizers[1].step.item() == 25


def with_own_state(package):
    """An optimizer whose hooks keep something else than the rule it is derived from."""

    class SignMomentum(package.Adam):
        def init_single(self, parameter, state):
            state["velocity"] = mx.zeros_like(parameter)

        def apply_single(self, gradient, parameter, state):
            state["velocity"] = 0.9 * state["velocity"] + gradient
            return parameter - self.learning_rate * mx.sign(state["velocity"])

    return package.MultiOptimizer([SignMomentum(0.1), package.SGD(0.1)], [is_matrix])


def test_a_subclass_with_state_of_its_own_may_be_a_part():
    ours, theirs = with_own_state(mlx_opt), with_own_state(stock)
    assert_close(by_path(walk(ours)), by_path(walk(theirs)), 1e-6)


def test_a_subclass_that_takes_other_shapes_may_be_a_part():
    class Broadcasting(mlx_opt.SGD):
        def apply_single(self, gradient, parameter, state):
            return parameter - gradient

    optimizer = mlx_opt.MultiOptimizer([Broadcasting(0.1), mlx_opt.SGD(0.1)], [lambda p, x: True])
    new = optimizer.apply_gradients({"w": mx.ones((1, 3))}, {"w": mx.ones((2, 3))})
    assert new["w"].shape == (2, 3)


def test_a_part_may_work_around_the_step():
    class Filtering(mlx_opt.AdamW):
        def apply_gradients(self, gradients, parameters):
            return super().apply_gradients(
                {k: g for k, g in gradients.items() if g is not None}, parameters
            )

    optimizer = mlx_opt.MultiOptimizer([Filtering(0.1), mlx_opt.SGD(0.1)], [lambda p, x: p != "c"])
    w = {"a": mx.ones(2), "b": mx.ones(2), "c": mx.ones(2)}
    new = optimizer.apply_gradients({"a": mx.ones(2), "b": None, "c": mx.ones(2)}, w)
    assert new.keys() == {"a", "c"}


def test_a_part_may_have_a_hook_of_its_own():
    muon = mlx_opt.Muon(0.1)
    muon.apply_single = lambda gradient, parameter, state: parameter - gradient
    optimizer = mlx_opt.MultiOptimizer([muon, mlx_opt.SGD(0.1)], [lambda p, x: True])
    new = optimizer.apply_gradients({"w": mx.ones((1, 3))}, {"w": mx.ones((2, 3))})
    assert new["w"].shape == (2, 3)


def steps_behind(arrays):
    """The number of primitives of a step that arrays depend on."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.dot"
        mx.export_to_dot(str(path), *arrays)
        return len(re.findall(r"mlx_opt::Step\b", path.read_text()))


@pytest.mark.parametrize("rules", [["AdamW"] * 3, ["SGD", "AdamW", "SGD"], ["Muon"] * 2])
def test_optimizers_of_one_rule_share_a_primitive(rules):
    optimizers = [getattr(mlx_opt, rule)(0.01 * (1 + i)) for i, rule in enumerate(rules)]
    filters = [lambda path, x, i=i: f"layers.{i}" in path for i in range(len(rules) - 1)]
    optimizer = mlx_opt.MultiOptimizer(optimizers, filters)
    w = optimizer.apply_gradients(tree(1), tree(0))
    steps = 2 if "Muon" in rules else len(set(rules))
    assert steps_behind(flat(w).values()) == steps
