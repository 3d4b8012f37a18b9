"""The norms of updates and parameters: the same as from the arrays before and after the step."""

import copy
import pickle

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as stock
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten

import mlx_opt
from cases import CASES, SUMMING, Case, normal, wide

MUON = [Case("Muon"), Case("Muon", {"normuon": True})]
SHAPES = {"matrix": (24, 40), "long": (3000,), "short": (5,), "empty": (0,)}


def model_of(dtype=mx.float32, shapes=SHAPES):
    model = nn.Module()
    for i, (name, shape) in enumerate(shapes.items()):
        model[name] = normal(*shape, seed=i, dtype=dtype)
    return model


def gradients_of(seed, dtype=mx.float32, shapes=SHAPES):
    return {
        name: normal(*shape, seed=100 * seed + i, dtype=dtype, scale=0.1)
        for i, (name, shape) in enumerate(shapes.items())
    }


def weights(parameters):
    return {name: np.array(wide(x), np.float64) for name, x in tree_flatten(parameters)}


def norm(arrays):
    return np.sqrt(sum(np.square(np.abs(x)).sum() for x in arrays))


def assert_norms(found, before, after, names=None, tolerance=2e-6):
    names = after if names is None else names
    update = norm([after[name] - before[name] for name in names])
    np.testing.assert_allclose(found.update_norm.item(), update, tolerance, 1e-30)
    np.testing.assert_allclose(
        found.parameter_norm.item(), norm([after[name] for name in names]), tolerance
    )
    ratio = found.update_norm / found.parameter_norm
    assert found.ratio.item() == ratio.item() and found.ratio.dtype == mx.float32


@pytest.mark.parametrize("case", [*CASES, *SUMMING, *MUON], ids=str)
def test_of_every_rule(case):
    model, optimizer = model_of(), case.ours(1e-2)
    assert optimizer.telemetry is None
    optimizer.telemetry = True
    assert optimizer.telemetry is None
    for step in range(3):
        before = weights(model)
        optimizer.update(model, gradients_of(step))
        assert_norms(optimizer.telemetry, before, weights(model))
    assert optimizer.telemetry.groups == {}
    plain, expected = model_of(), case.ours(1e-2)
    for step in range(3):
        expected.update(plain, gradients_of(step))
    for name, x in weights(plain).items():
        np.testing.assert_array_equal(x, weights(model)[name])
    optimizer.telemetry = False
    assert optimizer.telemetry is None


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.complex64])
@pytest.mark.parametrize("rule", ["AdamW", "Adafactor", "Lamb", "SGD"])
def test_of_other_dtypes(rule, dtype):
    if rule in ("Adafactor", "Lamb") and dtype == mx.complex64:
        pytest.skip("the rule is of real numbers")
    shapes = {name: shape for name, shape in SHAPES.items() if name != "empty"}
    optimizer = getattr(mlx_opt, rule)(1e-1)
    optimizer.telemetry = True
    w = {name: normal(*shape, seed=1).astype(dtype) for name, shape in shapes.items()}
    g = {name: normal(*shape, seed=2).astype(dtype) for name, shape in shapes.items()}
    after = optimizer.apply_gradients(g, dict(w))
    as_numpy = [
        {
            name: np.array(x.astype(mx.float32) if dtype != mx.complex64 else x)
            for name, x in t.items()
        }
        for t in (w, after)
    ]
    assert_norms(optimizer.telemetry, *as_numpy, tolerance=1e-5)


@pytest.mark.parametrize("rule", ["AdamW", "Lamb", "Muon"])
@pytest.mark.parametrize("kind", ["float32", "remainder"])
def test_of_master_weights(rule, kind):
    model, optimizer = model_of(mx.bfloat16), getattr(mlx_opt, rule)(1e-4, master_weights=kind)
    optimizer.telemetry = True
    for step in range(2):
        before = weights(optimizer.master_parameters(model))
        optimizer.update(model, gradients_of(step, mx.bfloat16))
        after = weights(optimizer.master_parameters(model))
        assert_norms(optimizer.telemetry, before, after, tolerance=1e-4)
    assert norm([after[x] - before[x] for x in after]) > 0


@pytest.mark.parametrize(
    "options",
    [
        {"ema_decay": 0.9},
        {"state_dtype": "int8"},
        {"stochastic_rounding": True},
        {"maximize": True},
    ],
    ids=str,
)
def test_with_options(options):
    shapes = {"matrix": (80, 96), "short": (5,)}
    model, optimizer = model_of(mx.bfloat16, shapes), mlx_opt.AdamW(1e-1, **options)
    optimizer.telemetry = True
    for step in range(2):
        before = weights(model)
        optimizer.update(model, gradients_of(step, mx.bfloat16, shapes))
        assert_norms(optimizer.telemetry, before, weights(model), tolerance=1e-5)


@pytest.mark.parametrize("rule", ["AdamW", "Lamb", "Adafactor"])
def test_of_groups(rule):
    groups = [
        mlx_opt.Group("s*", "long", name="vectors", learning_rate=1e-3),
        mlx_opt.Group("short", weight_decay=0.1),
        mlx_opt.Group("empty", frozen=True),
    ]
    options = {"relative_step": False} if rule == "Adafactor" else {}
    model, optimizer = model_of(), getattr(mlx_opt, rule)(1e-2, groups=groups, **options)
    optimizer.telemetry = True
    for step in range(2):
        before = weights(model)
        optimizer.update(model, gradients_of(step))
        after = weights(model)
    found = optimizer.telemetry
    assert {*found.groups} == {"vectors", "short", "(others)"}
    assert_norms(found, before, after, ["matrix", "long", "short"])
    assert_norms(found.groups["vectors"], before, after, ["long", "short"])
    assert_norms(found.groups["short"], before, after, ["short"])
    assert_norms(found.groups["(others)"], before, after, ["matrix"])


def test_of_several_optimizers():
    def is_matrix(name, x):
        return x.ndim == 2

    def is_long(name, x):
        return name == "long"

    group = mlx_opt.Group("short", learning_rate_scale=0.5)
    optimizers = [mlx_opt.Lion(1e-2), mlx_opt.AdamW(1e-2), mlx_opt.AdamW(1e-3, groups=[group])]
    optimizer = mlx_opt.MultiOptimizer(optimizers, [is_matrix, is_long])
    optimizer.telemetry = True
    model = model_of()
    for step in range(2):
        before = weights(model)
        optimizer.update(model, gradients_of(step))
        after = weights(model)
        found = optimizer.telemetry
        assert_norms(found, before, after)
        assert_norms(found.groups["Lion"], before, after, ["matrix"])
        assert_norms(found.groups["AdamW 1"], before, after, ["long"])
        assert_norms(found.groups["AdamW 2"], before, after, ["short", "empty"])
        assert_norms(found.groups["AdamW 2: short"], before, after, ["short"])
    assert optimizers[0].telemetry.update_norm.item() == found.groups["Lion"].update_norm.item()
    foreign = mlx_opt.MultiOptimizer([mlx_opt.Lion(1e-2), stock.SGD(1.0)], [is_matrix])
    with pytest.raises(TypeError, match="telemetry: SGD is not an optimizer of mlx_opt"):
        foreign.telemetry = True


def test_of_a_fallback():
    optimizer, model = mlx_opt.Muon(1e-2, fallback=mlx_opt.AdamW(1e-2)), model_of()
    optimizer.telemetry = True
    before = weights(model)
    optimizer.update(model, gradients_of(0))
    after, found = weights(model), optimizer.telemetry
    assert_norms(found, before, after)
    assert_norms(found.groups["Muon"], before, after, ["matrix"])
    assert_norms(found.groups["AdamW"], before, after, ["long", "short", "empty"])


@pytest.mark.parametrize("rule", ["AdamW", "Lamb", "Adafactor", "Muon"])
def test_of_a_skipped_step(rule):
    model, optimizer = model_of(), getattr(mlx_opt, rule)(1e-2)
    optimizer.telemetry = True
    optimizer.update(model, gradients_of(0), skip_nonfinite=True)
    assert optimizer.telemetry.update_norm.item() > 0
    before, broken = weights(model), gradients_of(1)
    broken["short"] = broken["short"] * float("nan")
    optimizer.update(model, broken, skip_nonfinite=True)
    assert optimizer.skipped.item() == 1
    assert optimizer.telemetry.update_norm.item() == 0
    assert_norms(optimizer.telemetry, before, weights(model))


def test_of_clipping_and_of_several_calls_for_a_step():
    model, optimizer = model_of(), mlx_opt.SGD(1.0, accumulate=2)
    optimizer.telemetry = True
    before = weights(model)
    optimizer.update(model, gradients_of(0), max_norm=0.5)
    assert optimizer.telemetry is None
    optimizer.update(model, gradients_of(1), max_norm=0.5)
    found = optimizer.telemetry
    assert_norms(found, before, weights(model))
    np.testing.assert_allclose(found.update_norm.item(), 0.5, 1e-4)
    optimizer.update(model, gradients_of(2), max_norm=0.5)
    assert optimizer.telemetry.update_norm.item() == found.update_norm.item()


def test_nothing_is_waited_for():
    optimizer, model = mlx_opt.Muon(1e-2), model_of()
    optimizer.telemetry = True
    optimizer.update(model, gradients_of(0))
    entries = optimizer.state["mlx_opt"]["telemetry"]
    assert [x.shape for x in entries] == [(1, 2)]
    model, optimizer = model_of(), mlx_opt.AdamW(1e-2)
    gradients = gradients_of(0)
    mx.eval(model, gradients)
    optimizer.telemetry = True
    arrays = {name: id(x) for name, x in tree_flatten(model)}
    optimizer.update(model, gradients)
    if mx.default_device() == mx.cpu:
        assert {name: id(x) for name, x in tree_flatten(model)} == arrays  # in place


def test_sums_do_not_depend_on_threads():
    threads = mlx_opt.num_threads()
    shapes = {"a": (1 << 20,), "b": (300, 1000)}
    found = []
    try:
        for count in (1, 2, 3):
            mlx_opt.set_num_threads(count)
            model, optimizer = model_of(shapes=shapes), mlx_opt.AdamW(1e-2)
            gradients = gradients_of(0, shapes=shapes)
            gradients["b"] = gradients["b"].reshape(1000, 300).T
            mx.eval(model, gradients)
            optimizer.telemetry = True
            before = weights(model)
            optimizer.update(model, gradients)
            assert_norms(optimizer.telemetry, before, weights(model), tolerance=1e-6)
            found.append([x.item() for x in optimizer.telemetry[:2]])
    finally:
        mlx_opt.set_num_threads(threads)
    assert found[0] == found[1] == found[2]


def test_inside_compile():
    model = model_of()
    groups = [mlx_opt.Group("short", learning_rate_scale=0.5)]
    optimizer = mlx_opt.AdamW(1e-2, groups=groups)
    optimizer.telemetry = True
    state = [model.state, optimizer.state]

    def step(gradients):
        optimizer.update(model, gradients, max_norm=1.0)

    compiled = mx.compile(step, inputs=state, outputs=state)
    for i in range(4):
        before = weights(model)
        compiled(gradients_of(i))
        mx.eval(state)
        assert_norms(optimizer.telemetry, before, weights(model))
        assert_norms(optimizer.telemetry.groups["short"], before, weights(model), ["short"])


@pytest.mark.parametrize("rule", ["AdamW", "Lamb", "Muon"])
def test_inside_vmap(rule):
    optimizer = getattr(mlx_opt, rule)(1e-2)
    optimizer.telemetry = True
    w, g = normal(3, 8, 8), normal(3, 8, 8, seed=1)

    def step(w, g):
        optimizer.init({"w": mx.zeros((8, 8))})
        updated = optimizer.apply_gradients({"w": g}, {"w": w})["w"]
        found = optimizer.telemetry
        return updated, found.update_norm, found.parameter_norm

    after, updates, parameters = mx.vmap(step)(w, g)
    for i in range(3):
        change = np.array(after[i]) - np.array(w[i])
        np.testing.assert_allclose(updates[i].item(), np.linalg.norm(change), 1e-4)
        np.testing.assert_allclose(parameters[i].item(), np.linalg.norm(after[i]), 1e-5)


def test_inside_grad():
    optimizer = mlx_opt.SGD(0.5)
    optimizer.telemetry = True

    def update_norm(g):
        optimizer.apply_gradients({"w": g}, {"w": mx.ones(2)})
        return optimizer.telemetry.update_norm

    g = mx.array([3.0, 4.0])
    np.testing.assert_allclose(mx.grad(update_norm)(g), 0.5 * np.array([0.6, 0.8]), 1e-6)


class Hooked(mlx_opt.SGD):
    def apply_single(self, gradient, parameter, state):
        return super().apply_single(gradient, parameter, state) - 0.125


class Halves(mlx_opt.SGD):
    def apply_gradients(self, gradients, parameters):
        updated = super().apply_gradients(gradients, parameters)
        return {name: 0.5 * x for name, x in updated.items()}


@pytest.mark.parametrize("cls", [Hooked, Halves])
def test_of_hooks(cls):
    optimizer, model = cls(0.5), model_of()
    optimizer.telemetry = True
    before = weights(model)
    optimizer.update(model, gradients_of(0))
    assert_norms(optimizer.telemetry, before, weights(model))


def test_lookahead_has_that_of_the_optimizer_inside():
    optimizer = mlx_opt.Lookahead(mlx_opt.SGD(0.5), k=2)
    optimizer.telemetry = True
    model = model_of()
    before = weights(model)
    optimizer.update(model, gradients_of(0))
    assert_norms(optimizer.telemetry, before, weights(model))


def test_sharded_refuses():
    optimizer = mlx_opt.AdamW(1e-2)
    sharded = mlx_opt.Sharded(optimizer)
    with pytest.raises(TypeError, match="Sharded: telemetry"):
        sharded.telemetry = True
    optimizer.telemetry = True
    with pytest.raises(TypeError, match="Sharded: telemetry"):
        sharded.update(model_of(), gradients_of(0))
    with pytest.raises(TypeError, match="Sharded: telemetry"):
        mlx_opt.Sharded(optimizer)


def test_copies_and_checkpoints(tmp_path):
    model, optimizer = model_of(), mlx_opt.AdamW(1e-2)
    optimizer.telemetry = True
    optimizer.update(model, gradients_of(0))
    expected = [x.item() for x in optimizer.telemetry[:2]]
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert [x.item() for x in other.telemetry[:2]] == expected
    path = str(tmp_path / "state.safetensors")
    mx.save_safetensors(path, tree_flatten(optimizer.state, destination={}))
    loaded = mlx_opt.AdamW(1e-2)
    loaded.state = tree_unflatten(list(mx.load(path).items()))
    assert loaded.telemetry is None
    loaded.telemetry = True
    assert loaded.telemetry is None
    before = weights(model)
    loaded.update(model, gradients_of(1))
    assert_norms(loaded.telemetry, before, weights(model))


def test_an_error_leaves_it():
    model, optimizer = model_of(), mlx_opt.AdamW(1e-2)
    optimizer.telemetry = True
    optimizer.update(model, gradients_of(0))
    expected = [x.item() for x in optimizer.telemetry[:2]]
    broken = gradients_of(1)
    broken["short"] = mx.zeros(6)
    with pytest.raises(ValueError, match="short"):
        optimizer.update(model, broken)
    assert [x.item() for x in optimizer.telemetry[:2]] == expected
    with pytest.raises(TypeError, match="telemetry: expected a bool, got int"):
        optimizer.telemetry = 1


def test_turned_off_and_on_inside_compile(compiler):
    """Whatever the order of the captured trees, what a function gives back stays in its place."""
    model, optimizer = nn.Linear(16, 8), mlx_opt.AdamW(1e-2)
    optimizer.telemetry = True
    optimizer.init(model.trainable_parameters())
    state = [optimizer.state, model.state]

    def step(x):
        loss, gradients = nn.value_and_grad(model, lambda m, x: m(x).sum())(model, x)
        optimizer.update(model, gradients)
        return loss

    compiled = mx.compile(step, inputs=state, outputs=state)
    for takes in (True, True, False, False, True):
        optimizer.telemetry = takes
        mx.eval(compiled(mx.ones((2, 16))), state)
        assert (model.weight.shape, model.bias.shape) == ((8, 16), (8,))
        assert (optimizer.telemetry is not None) == takes


@pytest.mark.usefixtures("cpu")
def test_many_elements_lose_no_digits():
    """A sum in float32 of ones, one after another, ends at 2^24."""
    optimizer = mlx_opt.Adafactor(1e-2, relative_step=False)
    optimizer.telemetry = True
    w = optimizer.apply_gradients({"w": mx.ones((4096, 5000))}, {"w": mx.ones((4096, 5000))})
    expected = w["w"][0, 0].item() * (4096 * 5000) ** 0.5
    assert optimizer.telemetry.parameter_norm.item() == pytest.approx(expected, rel=1e-4)


def test_stages_of_a_shapeless_function(compiler):
    optimizer = mlx_opt.AdamW(1e-3)
    optimizer.telemetry = True
    w = {"a": normal(8, 8, seed=1), "b": normal(8, 8, seed=2)}
    optimizer.init(w)

    def step(w, x):
        gradients = mx.grad(lambda w: (mx.tanh(x @ w["a"]) @ w["b"]).sum())(w)
        return optimizer.apply_gradients(gradients, w)

    state = [optimizer.state]
    step = mx.compile(step, inputs=state, outputs=state, shapeless=True)
    mlx_opt._ext.set_stage_bytes(1)
    try:
        for rows in (4, 5):
            after = step(w, normal(rows, 8, seed=rows))
            mx.eval(after, state)
            assert_norms(optimizer.telemetry, w, after)
            w = after
    finally:
        mlx_opt._ext.set_stage_bytes()
