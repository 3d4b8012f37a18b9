"""The two sets of parameters of the optimizers that average: those that train and their average."""

import copy
import pickle

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map, tree_unflatten

import mlx_opt
from cases import DTYPES, assert_close, assert_same, normal, wide

RATE, STEPS = 0.1, 6
PARTS = {"SGDScheduleFree": 0.9, "AdamWScheduleFree": 0.9, "RAdamScheduleFree": 0.9}
NAMES = [*PARTS, "GPAAdamW"]
each_class = pytest.mark.parametrize("name", NAMES)


def model_of(dtype=mx.float32):
    model = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2, bias=False))
    seeds = iter(range(9))
    model.update(
        tree_map(lambda x: normal(*x.shape, seed=next(seeds), dtype=dtype), model.parameters())
    )
    return model


def train(optimizer, model, steps=STEPS, first=0):
    for step in range(first, first + steps):
        seeds = iter(range(10 * step, 10 * step + 9))
        g = tree_map(lambda x, s=seeds: normal(*x.shape, seed=100 + next(s)), model.parameters())
        optimizer.update(model, g)
        mx.eval(model.state, optimizer.state)


def trained(name, dtype=mx.float32, **options):
    model, optimizer = model_of(dtype), getattr(mlx_opt, name)(RATE, **options)
    train(optimizer, model)
    return model, optimizer


def copies(tree):
    return tree_map(mx.array, tree)


def averages_by_hand(name, steps, part):
    """The mean of z after each step, which the state has, weighted by the squares of the largest
    learning rates so far."""
    model, optimizer = model_of(), getattr(mlx_opt, name)(RATE)
    sums, weights = None, 0.0
    for step in range(steps):
        train(optimizer, model, 1, step)
        z = {k: wide(x) for k, x in tree_flatten(optimizer.state) if k.endswith(".z")}
        weight = optimizer.state["lr_max"].item() ** 2
        weights += weight
        sums = {k: weight * x + (sums[k] if sums else 0) for k, x in z.items()}
    return {k.removesuffix(".z"): x / weights for k, x in sums.items()}


@pytest.mark.parametrize("name", PARTS)
def test_the_average_is_the_mean_of_all_base_iterates(name):
    model, optimizer = trained(name)
    means = averages_by_hand(name, STEPS, PARTS[name])
    averages = dict(tree_flatten(optimizer.eval_parameters(model)))
    assert averages.keys() == means.keys()
    for path, mean in means.items():
        np.testing.assert_allclose(wide(averages[path]), mean, rtol=0, atol=2e-6)


def test_primal_averaging_forgets_base_iterates_at_a_constant_rate():
    model = model_of()
    optimizer = mlx_opt.GPAAdamW(RATE, eval_interp_coeff=0.8)
    averages = {path: wide(x) for path, x in tree_flatten(model.parameters())}
    for step in range(STEPS):
        train(optimizer, model, 1, step)
        z = {k: wide(x) for k, x in tree_flatten(optimizer.state) if k.endswith(".z")}
        averages = {k: 0.8 * x + 0.2 * z[f"{k}.z"] for k, x in averages.items()}
    for path, x in tree_flatten(optimizer.eval_parameters(model)):
        np.testing.assert_allclose(wide(x), averages[path], rtol=0, atol=2e-6)


@each_class
def test_the_model_gets_the_average_and_its_parameters_again(name):
    model, optimizer = trained(name)
    before, averages = copies(model.parameters()), optimizer.eval_parameters(model)
    optimizer.eval(model)
    assert_same(model.parameters(), averages)
    assert_same(optimizer.eval_parameters(model), averages)
    optimizer.eval(model)
    assert_same(model.parameters(), averages)
    optimizer.train(model)
    assert_close(model.parameters(), before, 2e-6)
    optimizer.train(model)
    assert_close(model.parameters(), before, 2e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_block_restores_the_parameters_exactly(dtype):
    model, optimizer = trained("AdamWScheduleFree", dtype)
    before, averages = copies(model.parameters()), optimizer.eval_parameters(model)
    for _ in range(20):
        with optimizer.evaluating(model):
            assert_same(model.parameters(), averages)
            assert all(x.dtype == dtype for _, x in tree_flatten(model.parameters()))
    assert_same(model.parameters(), before)


def test_a_block_that_raises_restores_them_too():
    model, optimizer = trained("SGDScheduleFree")
    before = copies(model.parameters())
    with pytest.raises(KeyError, match="inside"), optimizer.evaluating(model):
        raise KeyError("inside")
    assert_same(model.parameters(), before)
    train(optimizer, model, 1)


def test_what_a_block_changes_in_the_model_remains():
    model, optimizer = trained("SGDScheduleFree")
    with optimizer.evaluating(model):
        model.layers[0].bias = mx.ones(3)
        averages = copies(model.parameters())
    assert_close(optimizer.eval_parameters(model), averages, 1e-6)


def test_blocks_nest():
    model, optimizer = trained("SGDScheduleFree")
    before = copies(model.parameters())
    with optimizer.evaluating(model), optimizer.evaluating(model):
        averages = copies(model.parameters())
    assert_same(model.parameters(), before)
    optimizer.eval(model)
    with optimizer.evaluating(model):
        assert_same(model.parameters(), averages)
    assert_same(model.parameters(), averages)
    with pytest.raises(RuntimeError):
        train(optimizer, model, 1)


@each_class
@pytest.mark.parametrize("way", ["update", "apply_gradients", "multi"])
def test_a_step_with_the_average_is_refused_and_changes_nothing(name, way):
    model, optimizer = trained(name)
    optimizer.eval(model)
    before = copies((model.parameters(), optimizer.state))
    g = tree_map(mx.ones_like, model.parameters())
    with pytest.raises(RuntimeError, match=rf"{name}: the model has the average .* train\(model\)"):
        if way == "update":
            optimizer.update(model, g)
        elif way == "apply_gradients":
            optimizer.apply_gradients(g, model.parameters())
        else:
            both = mlx_opt.MultiOptimizer([mlx_opt.SGD(0.1), optimizer], [lambda *_: False])
            both.update(model, g)
    assert_same((model.parameters(), optimizer.state), before)
    optimizer.train(model)
    train(optimizer, model, 1)


@pytest.mark.usefixtures("compiler")
def test_a_compiled_step_with_the_average_is_refused():
    model, optimizer = trained("AdamWScheduleFree")
    state = [model.state, optimizer.state]
    g = tree_map(mx.ones_like, model.parameters())
    step = mx.compile(lambda g: optimizer.update(model, g), inputs=state, outputs=state)
    plain = copy.deepcopy(optimizer)
    expected = plain.apply_gradients(g, copies(model.parameters()))
    step(g)
    assert_close(model.parameters(), expected, 1e-6)
    optimizer.eval(model)
    with optimizer.evaluating(model):
        pass
    optimizer.train(model)
    step(g)
    mx.eval(state)
    assert optimizer.step.item() == STEPS + 2
    optimizer.eval(model)
    # MLX leaves its tracers in the captured trees where any function that it compiles raises.
    with pytest.raises(RuntimeError, match="the model has the average"):
        step(g)


@each_class
def test_before_the_first_step_the_average_is_the_parameter(name):
    model, optimizer = model_of(), getattr(mlx_opt, name)(RATE)
    before = copies(model.parameters())
    for _ in range(2):
        assert_same(optimizer.eval_parameters(model), before)
        with optimizer.evaluating(model):
            assert_same(model.parameters(), before)
        optimizer.init(model.trainable_parameters())
    optimizer.eval(model)
    optimizer.train(model)
    assert_same(model.parameters(), before)
    train(optimizer, model)
    expected = trained(name)[0]
    assert_same(model.parameters(), expected.parameters())


def test_each_group_has_its_own_part():
    groups = [mlx_opt.Group("*bias", momentum=0.5), mlx_opt.freeze("layers.1*")]
    model = model_of()
    frozen = mx.array(model.layers[1].weight)
    optimizer = mlx_opt.SGDScheduleFree(RATE, groups=groups)
    train(optimizer, model)
    y, z = model.layers[0].bias, optimizer.state["layers"][0]["bias"]["z"]
    x = optimizer.eval_parameters(model)["layers"][0]["bias"]
    np.testing.assert_allclose(wide(x), 2 * wide(y) - wide(z), rtol=0, atol=1e-6)
    with optimizer.evaluating(model):
        assert_same(model.layers[1].weight, frozen)


def test_parameters_without_a_state_keep_their_values():
    model, optimizer = model_of(), mlx_opt.SGDScheduleFree(RATE)
    model.layers[1].freeze()
    g = {"layers": [{"weight": mx.ones((3, 5))}]}
    optimizer.update(model, g)
    before = copies(model.parameters())
    optimizer.eval(model)
    assert_same(model.layers[0].bias, before["layers"][0]["bias"])
    assert_same(model.layers[1].weight, before["layers"][1]["weight"])


def test_a_plain_tree_has_averages_and_is_no_model():
    optimizer = mlx_opt.SGDScheduleFree(RATE)
    w = {"w": normal(4)}
    for _ in range(3):
        w = optimizer.apply_gradients({"w": mx.ones(4)}, w)
    z = optimizer.state["w"]["z"]
    x = optimizer.eval_parameters(w)["w"]
    np.testing.assert_allclose(wide(w["w"]), 0.1 * wide(z) + 0.9 * wide(x), rtol=0, atol=1e-6)
    for call in (optimizer.eval, optimizer.train):
        with pytest.raises(TypeError, match=r"model: expected an mlx\.nn\.Module, got dict"):
            call(w)


def test_a_checkpoint_knows_which_parameters_the_model_has(tmp_path):
    path = str(tmp_path / "state.safetensors")
    model, optimizer = trained("AdamWScheduleFree")
    optimizer.eval(model)
    mx.save_safetensors(path, dict(tree_flatten(optimizer.state)))
    again = mlx_opt.AdamWScheduleFree(RATE)
    again.state = tree_unflatten(list(mx.load(path).items()))
    for twin in (again, pickle.loads(pickle.dumps(optimizer)), copy.deepcopy(optimizer)):
        with pytest.raises(RuntimeError, match="has the average"):
            train(twin, model, 1)
    other = model_of()
    other.update(model.parameters())
    for twin, twin_model in ((optimizer, model), (again, other)):
        twin.train(twin_model)
        train(twin, twin_model, 2, STEPS)
    assert_same(other.parameters(), model.parameters())
    assert_same(again.state["layers"], optimizer.state["layers"])


def test_many_equal_steps_are_counted_exactly():
    optimizer = mlx_opt.SGDScheduleFree(1e-3)
    optimizer.init({"w": mx.zeros(1)})
    optimizer.state["step"] = mx.array(5_000_000, mx.uint64)
    optimizer.state["averaged_steps"] = mx.array(5_000_000.0)
    optimizer.state["lr_max"] = mx.array(1e-3)
    w = {"w": mx.zeros(1)}
    for _ in range(3):
        w = optimizer.apply_gradients({"w": mx.ones(1)}, w)
    assert optimizer.averaged_steps.item() == 5_000_003


def test_steps_without_a_learning_rate_do_not_count():
    optimizer = mlx_opt.SGDScheduleFree(lambda step: mx.where(step < 2, 0.0, 0.1))
    w = {"w": normal(4)}
    for step in range(4):
        new = optimizer.apply_gradients({"w": mx.ones(4)}, w)
        assert np.isfinite(wide(new["w"])).all()
        if step < 2:
            assert_same(new, w)
        w = new
    assert optimizer.averaged_steps.item() == 2


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1])
def test_a_part_out_of_its_range_is_refused(value):
    with pytest.raises(ValueError, match=r"momentum: expected a number in \(0, 1\), got"):
        mlx_opt.SGDScheduleFree(RATE, momentum=value)
    with pytest.raises(ValueError, match=r"betas\[0\]: expected a number in \(0, 1\), got"):
        mlx_opt.AdamWScheduleFree(RATE, betas=(value, 0.9))


def test_other_optimizers_have_no_such_calls():
    for cls in (mlx_opt.AdamW, mlx_opt.NAdam, mlx_opt.Signum):
        assert not hasattr(cls, "eval_parameters")
