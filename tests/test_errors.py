"""What is refused, in which words, and that a refused step has changed nothing."""

import subprocess
import sys

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_map

import mlx_opt
from cases import each_rule, flat, normal


def tree(seed):
    return {
        "embedding": normal(6, 3, seed=seed),
        "layers": [
            {"mlp": {"weight": normal(8, 4, seed=seed + i)}, "norms": (normal(4, seed=seed + i),)}
            for i in range(4)
        ],
    }


def wrong_shape():
    g = tree(1)
    g["layers"][3]["mlp"]["weight"] = mx.zeros((4, 8))
    return g


def snapshot(optimizer, w):
    """All that a step may change, as the objects they are and the values they have."""
    arrays = flat({"w": w, "state": optimizer.state})
    return {path: (x, x.tolist()) for path, x in arrays.items()}


def assert_unchanged(optimizer, w, before):
    after = flat({"w": w, "state": optimizer.state})
    assert after.keys() == before.keys()
    for path, (x, values) in before.items():
        assert after[path] is x, path
        assert x.tolist() == values, path


def refused(optimizer, g, w, error):
    """The message of the error that the step raises, having changed nothing."""
    before, initialized = snapshot(optimizer, w), optimizer._initialized
    with pytest.raises(error) as caught:
        optimizer.apply_gradients(g, w)
    assert_unchanged(optimizer, w, before)
    assert optimizer._initialized == initialized
    with pytest.raises(error) as again:
        optimizer.update(w, g)
    assert_unchanged(optimizer, w, before)
    assert str(caught.value) == str(again.value)
    return str(caught.value.args[0])


def trained(optimizer):
    """An optimizer that has done two steps, and its parameters."""
    w = tree(0)
    for step in range(2):
        w = optimizer.apply_gradients(tree(5 + step), w)
    mx.eval(w, optimizer.state)
    return optimizer, w


BOTH = pytest.mark.parametrize("started", [False, True], ids=["first-step", "third-step"])


def start(case, started):
    return trained(case.ours(0.1)) if started else (case.ours(0.1), tree(0))


@BOTH
@each_rule
def test_a_gradient_of_another_shape_is_named_by_its_path_and_both_shapes(case, started):
    optimizer, w = start(case, started)
    message = refused(optimizer, wrong_shape(), w, ValueError)
    assert message == "layers.3.mlp.weight: gradient (4, 8), parameter (8, 4)"


@pytest.mark.parametrize(
    ("gradient", "parameter", "message"),
    [
        ((2, 3), (3,), "gradient (2, 3), parameter (3)"),
        ((1,), (), "gradient (1), parameter ()"),
        ((), (4,), "gradient (), parameter (4)"),
        ((0,), (1,), "gradient (0), parameter (1)"),
    ],
)
def test_shapes_that_would_broadcast_are_refused(gradient, parameter, message):
    optimizer = mlx_opt.SGD(0.1)
    w, g = {"w": mx.ones(parameter)}, {"w": mx.ones(gradient)}
    text = refused(optimizer, g, w, ValueError)
    assert text.replace(",)", ")") == f"w: {message}"


@BOTH
@each_rule
def test_a_gradient_without_a_parameter_is_a_key_error(case, started):
    optimizer, w = start(case, started)
    g = tree(1)
    g["layers"][2]["mlp"]["bias"] = mx.zeros(8)
    message = refused(optimizer, g, w, KeyError)
    assert message == "layers.2.mlp.bias: there is a gradient but no parameter"


@BOTH
def test_a_longer_list_of_gradients_is_a_key_error(started):
    optimizer, w = trained(mlx_opt.AdamW(0.1)) if started else (mlx_opt.AdamW(0.1), tree(0))
    g = tree(1)
    g["layers"].append(g["layers"][0])
    message = refused(optimizer, g, w, LookupError)
    assert message == "layers.4: there is a gradient but no parameter"


@each_rule
def test_a_gradient_without_state_is_a_key_error(case):
    optimizer, w = trained(case.ours(0.1))
    w["new"], g = mx.zeros(3), tree(1) | {"new": mx.zeros(3)}
    message = refused(optimizer, g, w, KeyError)
    assert message == "new: there is a gradient but no optimizer state"


@pytest.mark.parametrize("name", ["m", "v"])
def test_state_that_lacks_a_moment_is_a_key_error(name):
    optimizer, w = trained(mlx_opt.AdamW(0.1))
    del optimizer.state["layers"][1]["mlp"]["weight"][name]
    message = refused(optimizer, tree(1), w, KeyError)
    assert message == f'layers.1.mlp.weight: the optimizer state has no array "{name}"'


def test_state_of_another_rule_is_a_key_error():
    lion, w = trained(mlx_opt.Lion(0.1))
    optimizer = mlx_opt.AdamW(0.1)
    optimizer.state = lion.state
    optimizer._initialized = True
    message = refused(optimizer, tree(1), w, KeyError)
    assert message == 'embedding: the optimizer state has no array "v"'


def test_state_of_another_shape_is_a_value_error():
    optimizer, w = trained(mlx_opt.AdamW(0.1))
    optimizer.state["layers"][1]["mlp"]["weight"]["v"] = mx.zeros((4, 8))
    message = refused(optimizer, tree(1), w, ValueError)
    assert message == 'layers.1.mlp.weight: state "v" (4, 8), parameter (8, 4)'


@BOTH
@pytest.mark.parametrize("wrong", [None, 1.0, "x"], ids=repr)
def test_a_gradient_that_is_no_array_is_a_type_error(wrong, started):
    optimizer, w = trained(mlx_opt.AdamW(0.1)) if started else (mlx_opt.AdamW(0.1), tree(0))
    g = tree(1)
    g["layers"][0]["norms"] = (wrong,)
    with pytest.raises(TypeError) as caught:
        optimizer.apply_gradients(g, w)
    kind = type(wrong).__name__
    expected = f"layers.0.norms.0: gradient must be an mlx.core.array, got {kind}"
    assert str(caught.value) == expected
    assert optimizer.step.item() == (2 if started else 0)


def test_a_parameter_that_is_no_array_is_a_type_error():
    w = tree(0)
    w["layers"][0]["mlp"] = {"weight": [mx.zeros((8, 4))]}
    with pytest.raises(TypeError) as caught:
        mlx_opt.AdamW(0.1).apply_gradients(tree(1), w)
    expected = "layers.0.mlp.weight: parameter must be an mlx.core.array, got list"
    assert str(caught.value) == expected


def test_a_tree_deeper_than_the_parameters_is_refused():
    optimizer = mlx_opt.AdamW(0.1)
    g = tree(1)
    g["embedding"] = {"weight": g["embedding"]}
    with pytest.raises((KeyError, TypeError, ValueError, IndexError)) as caught:
        optimizer.apply_gradients(g, tree(0))
    assert "embedding" in str(caught.value)
    assert optimizer.step.item() == 0


def test_a_module_is_as_it_was():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    g = tree_map(mx.ones_like, model.parameters())
    g["layers"][1]["weight"] = mx.ones((4, 2))
    optimizer = mlx_opt.AdamW(0.1)
    before = dict(flat(model.parameters()))
    with pytest.raises(
        ValueError, match=r"^layers\.1\.weight: gradient \(4, 2\), parameter \(2, 4\)$"
    ):
        optimizer.update(model, g)
    assert all(flat(model.parameters())[path] is x for path, x in before.items())
    assert optimizer.state.keys() == {"step", "learning_rate"}


def test_a_step_goes_on_after_an_error():
    optimizer, w = trained(mlx_opt.AdamW(0.1))
    twin, _ = trained(mlx_opt.AdamW(0.1))
    with pytest.raises(ValueError):
        optimizer.apply_gradients(wrong_shape(), w)
    got, expected = optimizer.apply_gradients(tree(1), w), twin.apply_gradients(tree(1), w)
    assert all(mx.array_equal(flat(got)[path], x).item() for path, x in flat(expected).items())


SPLITS = {
    "fused": lambda: [mlx_opt.AdamW(0.1), mlx_opt.SGD(0.1)],
    "nested": lambda: [mlx_opt.AdamW(0.1), mlx_opt.MultiOptimizer([mlx_opt.Lion(0.1)])],
}


@pytest.mark.parametrize("split", list(SPLITS))
@BOTH
def test_a_wrong_part_of_a_multi_optimizer_changes_no_part(split, started):
    optimizer = mlx_opt.MultiOptimizer(SPLITS[split](), [lambda path, _: "embedding" in path])
    w = tree(0)
    optimizer.init(w)
    if started:
        w = optimizer.apply_gradients(tree(3), w)
    before = snapshot(optimizer, w)
    with pytest.raises(ValueError) as caught:
        optimizer.update(w, wrong_shape())
    assert str(caught.value) == "layers.3.mlp.weight: gradient (4, 8), parameter (8, 4)"
    assert_unchanged(optimizer, w, before)


def test_a_wrong_part_of_muon_changes_no_part():
    parts = [mlx_opt.AdamW(0.1), mlx_opt.Muon(0.1)]
    optimizer = mlx_opt.MultiOptimizer(parts, [lambda path, _: "embedding" in path])
    w = tree(0)
    optimizer.init(w)
    before = snapshot(optimizer, w)
    with pytest.raises(ValueError):
        optimizer.update(w, wrong_shape())
    assert_unchanged(optimizer, w, before)


@pytest.mark.parametrize("learning_rate", [mx.array([0.1, 0.2, 0.3]), 0.1], ids=["vector", "float"])
def test_a_learning_rate_that_is_no_scalar_array_changes_nothing(learning_rate):
    optimizer = mlx_opt.AdamW(0.1)
    w, g = {"w": mx.zeros(2)}, {"w": mx.ones(2)}
    optimizer.init(w)
    optimizer.state["learning_rate"] = learning_rate
    with pytest.raises((TypeError, ValueError)):
        optimizer.apply_gradients(g, w)
    assert optimizer.step.item() == 0


TREES = {
    "a-cycle": "g = {}; g['g'] = g",
    "a-hundred-thousand-levels": "for _ in range(100_000): g = {'g': g}",
}


@pytest.mark.parametrize("tree", list(TREES))
def test_a_tree_without_end_is_a_recursion_error(tree):
    code = f"""
import mlx.core as mx, mlx_opt
g = mx.ones(2)
{TREES[tree]}
try:
    mlx_opt.SGD(0.1).apply_gradients(g, g)
except RecursionError:
    print("refused")
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "refused")


def test_hyperparameters_that_stock_refuses_are_refused():
    with pytest.raises(ValueError, match="Nesterov"):
        mlx_opt.SGD(0.1, nesterov=True)
    with pytest.raises(ValueError, match="epsilon"):
        mlx_opt.Adam(0.1, eps=-1)
    for build in (mlx_opt.Adam, mlx_opt.AdamW, mlx_opt.Adamax, mlx_opt.Lion):
        with pytest.raises(ValueError, match="beta1"):
            build(0.1, betas=[1.0, 0.9])
    for build in (mlx_opt.RMSprop, mlx_opt.Adagrad, mlx_opt.AdaDelta):
        with pytest.raises(ValueError, match="epsilon"):
            build(0.1, eps=0.0)
