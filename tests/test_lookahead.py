"""Slow weights around any optimizer."""

import copy
import pickle

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten

import mlx_opt
from cases import assert_same, flat, for_compile, normal
from mlx_opt import Lookahead

OPTIMIZERS = {
    "SGD": lambda: mlx_opt.SGD(0.1, momentum=0.9),
    "AdamW": lambda: mlx_opt.AdamW(1e-2, weight_decay=0.1),
    "Muon": lambda: mlx_opt.Muon(1e-2, fallback=mlx_opt.Lion(1e-3)),
    "several": lambda: mlx_opt.MultiOptimizer(
        [mlx_opt.Lamb(1e-2), mlx_opt.Lion(1e-3)], [lambda _, x: x.ndim == 2]
    ),
}


def tree(seed, dtype=mx.float32):
    shapes = {"a": (9, 7), "layers": (13,), "scalar": (), "empty": (0, 3)}
    named = {name: normal(*shape, seed=seed, dtype=dtype) for name, shape in shapes.items()}
    return {**named, "layers": [{"w": named["layers"]}]}


def by_hand(inner, w, steps, k, alpha):
    """The parameters and the slow weights; the steps are those of another optimizer."""
    slow = {path: np.array(x.astype(mx.float32)) for path, x in flat(w).items()}
    for number, seed in enumerate(steps, 1):
        dtype = w["a"].dtype
        w = inner.apply_gradients(tree(seed, dtype), w)
        if number % k == 0:
            for path, x in flat(w).items():
                moved = np.array(x.astype(mx.float32)) - slow[path]
                slow[path] = slow[path] + np.float32(alpha) * moved
            pairs = [(path, mx.array(x).astype(dtype)) for path, x in slow.items()]
            w = tree_unflatten(pairs)
    return w, slow


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=list(OPTIMIZERS))
def test_against_a_loop_by_hand(build, dtype):
    optimizer, w = Lookahead(build(), k=3, alpha=0.4), tree(0, dtype)
    expected, slow = by_hand(build(), w, range(1, 9), 3, 0.4)
    for seed in range(1, 9):
        w = optimizer.apply_gradients(tree(seed, dtype), w)
    for path, x in flat(expected).items():
        assert_same(flat(w)[path], x)
        got = flat(optimizer.slow_parameters(w))[path]
        np.testing.assert_array_equal(np.array(got), slow[path])


def test_a_model():
    models = [nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)) for _ in range(2)]
    models[1].update(models[0].parameters())
    optimizer, other = Lookahead(mlx_opt.AdamW(0.1), k=2), Lookahead(mlx_opt.AdamW(0.1), k=2)
    for seed in range(1, 6):
        g = {"layers": [{}, {"weight": normal(2, 3, seed=seed)}]}
        optimizer.update(models[0], g, max_norm=1.0)
        w = other.apply_gradients(g, models[1].trainable_parameters(), max_norm=1.0)
        models[1].update(w)
    assert_same(models[0].layers[1].weight, models[1].layers[1].weight)
    assert [path for path, _ in tree_flatten(optimizer.state["mlx_opt"]["slow"])] == [
        "layers.1.weight"
    ]
    assert optimizer.grad_norm is not None


def test_calls_that_make_no_step_move_nothing():
    optimizer = Lookahead(mlx_opt.SGD(1.0, accumulate=2), k=2)
    w, seen = {"w": mx.array(8.0, mx.bfloat16)}, []
    for _ in range(6):
        w = optimizer.apply_gradients({"w": mx.array(1.0, mx.bfloat16)}, w)
        seen.append(w["w"].item())
    assert seen == [8.0, 7.0, 7.0, 7.0, 7.0, 6.0]
    bad = Lookahead(mlx_opt.SGD(1.0), k=1, alpha=0.3)
    w = bad.apply_gradients({"w": mx.array(1.0)}, {"w": mx.array(8.0)}, skip_nonfinite=True)
    before = w["w"].item(), bad.slow_parameters(w)["w"].item()
    w = bad.apply_gradients({"w": mx.array(float("nan"))}, w, skip_nonfinite=True)
    assert (w["w"].item(), bad.slow_parameters(w)["w"].item()) == before
    assert bad.skipped.item() == 1


def test_compiled(compiler):
    ours, theirs = (Lookahead(mlx_opt.AdamW(1e-2), k=2) for _ in range(2))
    w, expected = (for_compile(tree(0)) for _ in range(2))
    ours.init(w)
    state, traces = [ours.state], []

    def step(w, g):
        traces.append(1)
        return ours.apply_gradients(g, w)

    step = mx.compile(step, inputs=state, outputs=state)
    for seed in range(1, 6):
        g = for_compile(tree(seed))
        w = step(w, g)
        expected = theirs.apply_gradients(g, expected)
    assert len(traces) == 1
    for path, x in flat(expected).items():
        np.testing.assert_allclose(np.array(flat(w)[path]), np.array(x), rtol=1e-6)


def test_checkpoints(tmp_path):
    first, second = (Lookahead(mlx_opt.AdamW(1e-2), k=3) for _ in range(2))
    w = tree(0)
    del w["empty"]  # files have no empty arrays
    grads = [{name: x for name, x in tree(seed).items() if name in w} for seed in range(1, 7)]
    for g in grads[:4]:
        w = first.apply_gradients(g, w)
    path = str(tmp_path / "state.safetensors")
    mx.save_safetensors(path, dict(tree_flatten(first.state)))
    second.state = tree_unflatten(list(mx.load(path).items()))
    for optimizer in (copy.deepcopy(first), pickle.loads(pickle.dumps(first)), second):
        expected, own, theirs = copy.deepcopy(first), w, w
        for g in grads[4:]:
            own, theirs = optimizer.apply_gradients(g, own), expected.apply_gradients(g, theirs)
        for name, x in flat(theirs).items():
            assert_same(flat(own)[name], x)
        for name, x in flat(expected.state).items():
            assert_same(flat(optimizer.state)[name], x)


def test_an_array_that_is_held_does_not_change():
    model = nn.Linear(8, 8)
    optimizer = Lookahead(mlx_opt.SGD(0.1), k=2)
    held = model.weight
    before = held + 0
    mx.eval(before)
    for _ in range(3):
        optimizer.update(model, {"weight": mx.ones((8, 8))})
        mx.eval(model.parameters(), optimizer.state)
    assert_same(held, before)


def test_an_error_leaves_all_as_it_was():
    optimizer = Lookahead(mlx_opt.SGD(0.1), k=1)
    w = optimizer.apply_gradients({"w": mx.ones(3)}, {"w": mx.ones(3)})
    before = flat(optimizer.state)
    with pytest.raises(ValueError, match="w: gradient"):
        optimizer.apply_gradients({"w": mx.ones(4)}, w)
    with pytest.raises(KeyError, match="no parameter"):
        optimizer.apply_gradients({"x": mx.ones(3)}, w)
    assert flat(optimizer.state) == before


def test_memory_counts_slow_weights():
    memory = Lookahead(mlx_opt.SGD(0.1, momentum=0.9)).memory({"w": mx.zeros(100)}, show=False)
    assert memory.state["slow"] == memory.state["v"] == 400


def test_the_average_is_of_the_fast_weights():
    optimizer = Lookahead(mlx_opt.SGD(1.0, ema_decay=0.5), k=2)
    w = {"w": mx.array(8.0)}
    for _ in range(2):
        w = optimizer.apply_gradients({"w": mx.array(1.0)}, w)
    assert (w["w"].item(), optimizer.ema_parameters(w)["w"].item()) == (7.0, 6.5)


def test_attributes():
    optimizer = Lookahead(mlx_opt.SGD(0.5))
    assert repr(optimizer).startswith("<Lookahead(k=6, alpha=0.5) of <SGD(learning_rate=0.5")
    optimizer.learning_rate = 0.25
    assert optimizer.optimizer.learning_rate.item() == 0.25
    optimizer.accumulate = 2
    assert optimizer.optimizer.accumulate == 2
    rows = optimizer.describe({"w": mx.ones(3)}, show=False)
    assert rows[0].rule == "SGD"


ERRORS = [
    (lambda: Lookahead(1), "TypeError: Lookahead: expected an optimizer of mlx_opt, got int"),
    (
        lambda: Lookahead(Lookahead(mlx_opt.SGD(0.1))),
        "TypeError: Lookahead cannot be a part of another optimizer: wrap that instead",
    ),
    (
        lambda: mlx_opt.MultiOptimizer([Lookahead(mlx_opt.SGD(0.1))]),
        "TypeError: Lookahead cannot be a part of another optimizer: wrap that instead",
    ),
    (
        lambda: Lookahead(mlx_opt.Sharded(mlx_opt.SGD(0.1))),
        "TypeError: Sharded cannot be a part of another optimizer: divide that instead",
    ),
    (
        lambda: mlx_opt.Sharded(Lookahead(mlx_opt.SGD(0.1))),
        "TypeError: Sharded: Lookahead has its own step, which cannot be divided",
    ),
    (
        lambda: Lookahead(mlx_opt.SGD(0.1, master_weights="float32")),
        "TypeError: Lookahead: an optimizer with master_weights is not supported",
    ),
    (
        lambda: Lookahead(mlx_opt.SGD(0.1), k=1.5),
        "TypeError: Lookahead: k: expected an int, got float",
    ),
    (
        lambda: Lookahead(mlx_opt.SGD(0.1), k=0),
        "ValueError: Lookahead: k: expected 1 or more, got 0",
    ),
    (
        lambda: Lookahead(mlx_opt.SGD(0.1), alpha="a"),
        "TypeError: Lookahead: alpha: expected a number, got str",
    ),
    (
        lambda: Lookahead(mlx_opt.SGD(0.1), alpha=1.5),
        "ValueError: Lookahead: alpha: expected a number in (0, 1], got 1.5",
    ),
]


@pytest.mark.parametrize("build, message", ERRORS)
def test_errors(build, message):
    with pytest.raises((TypeError, ValueError)) as error:
        build()
    assert f"{type(error.value).__name__}: {error.value}" == message
