"""Adafactor against float64 and stock; and what a rule of whole tensors may get wrong."""

import gc

import mlx.core as mx
import mlx.optimizers as stock
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_map

import mlx_opt
from cases import (
    DTYPES,
    assert_close,
    assert_same,
    copied,
    each_dtype,
    each_half,
    falling,
    flat,
    normal,
    rounded,
    signature,
    ulp,
    wide,
)
from mlx_opt import references

OPTIONS = [
    {},
    {"beta_1": 0.9},
    {"weight_decay": 0.1, "beta_1": 0.5},
    {"eps": (1e-8, 0.5), "clip_threshold": 0.1},
    {"decay_rate": -0.5, "warmup_init": True},
    {"scale_parameter": False, "weight_decay": 0.1},
    {"relative_step": False, "learning_rate": 0.01},
    {"relative_step": False, "learning_rate": falling, "scale_parameter": False},
    {"learning_rate": 0.5},
    {"beta_1": 0.0},
]
each_option = pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "default")
SHAPES = {
    "matrix": (33, 17),
    "wide": (3, 4500),
    "tall": (300, 2),
    "one-row": (1, 70),
    "one-column": (70, 1),
    "three": (4, 5, 6),
    "four": (2, 3, 20, 17),
    "vector": (129,),
    "scalar": (),
    "one": (1, 1),
}


def tree(seed, dtype=mx.float32, scale=1.0):
    x = {name: normal(*s, seed=seed, scale=scale, dtype=dtype) for name, s in SHAPES.items()}
    return {"layers": [x, (x["matrix"],)]}


def exact_state(optimizer, w):
    """Zeros as the optimizer has them, by path of the parameter, in float64."""
    state = flat(optimizer.state)
    return {
        path: {
            name.removeprefix(path + "."): np.zeros(x.shape)
            for name, x in state.items()
            if name.startswith(path + ".")
        }
        for path in w
    }


@each_option
def test_many_steps_follow_the_reference(options):
    optimizer, w = mlx_opt.Adafactor(**options), tree(0)
    optimizer.init(w)
    exact = {path: wide(x) for path, x in flat(w).items()}
    state = exact_state(optimizer, exact)
    for step in range(50):
        g = tree(1 + step, scale=0.1 * (1 + step % 5))
        w = optimizer.apply_gradients(g, w)
        mx.eval(w, optimizer.state)
        now = dict(options)
        if callable(now.get("learning_rate")):
            now["learning_rate"] = now["learning_rate"](step)
        for path, x in flat(g).items():
            exact[path], state[path] = references.adafactor(
                exact[path], wide(x), state[path], step + 1, **now
            )
    got, got_state = flat(w), flat(optimizer.state)
    for path, x in exact.items():
        assert np.abs(wide(got[path]) - x).max() <= 2e-6 * np.abs(x).max(), path
        for name, slot in state[path].items():
            error = np.abs(wide(got_state[f"{path}.{name}"]) - slot).max()
            assert error <= 4e-6 * np.abs(slot).max(), f"{path}.{name}"


@each_option
def test_many_steps_are_stocks(options):
    ours, theirs = mlx_opt.Adafactor(**options), stock.Adafactor(**options)
    w = v = tree(0)
    for step in range(20):
        g = tree(1 + step)
        w, v = ours.apply_gradients(g, w), theirs.apply_gradients(g, v)
        mx.eval(w, v, ours.state, theirs.state)
    assert_close(w, v, 5e-6)
    assert_close(ours.state, theirs.state, 2e-5)


@given(
    shape=st.lists(st.integers(1, 40), max_size=4),
    seed=st.integers(0, 1000),
    options=st.sampled_from(OPTIONS[:7]),
    transposed=st.booleans(),
)
def test_a_step_of_any_shape(shape, seed, options, transposed):
    optimizer = mlx_opt.Adafactor(**options)
    w, g = normal(*shape, seed=seed), normal(*shape, seed=seed + 1)
    if transposed and len(shape) > 1:
        g = mx.swapaxes(mx.contiguous(mx.swapaxes(g, -1, -2)), -1, -2)
    optimizer.init({"w": w})
    state = exact_state(optimizer, {"w": w})["w"]
    got = optimizer.apply_gradients({"w": g}, {"w": w})["w"]
    exact, _ = references.adafactor(wide(w), wide(g), state, 1, **options)
    assert np.abs(wide(got) - exact).max() <= 1e-6 * max(np.abs(exact).max(), np.abs(wide(w)).max())


@pytest.mark.parametrize("parameter", DTYPES, ids=str)
@pytest.mark.parametrize("gradient", DTYPES, ids=str)
@pytest.mark.parametrize("beta_1", [None, 0.9])
def test_dtypes_promote_as_in_stock(parameter, gradient, beta_1):
    signatures = []
    for package in (mlx_opt, stock):
        optimizer = package.Adafactor(beta_1=beta_1)
        w = tree(0, parameter)
        optimizer.init(w)
        w = optimizer.apply_gradients(tree(1, gradient), w)
        signatures.append((signature(w), signature(optimizer.state)))
    assert signatures[0] == signatures[1]


@each_half
def test_halves_are_the_float64_step_rounded_once(dtype):
    optimizer = mlx_opt.Adafactor(beta_1=0.9)
    for name, shape in SHAPES.items():
        w, g = (normal(*shape, seed=seed, dtype=dtype) for seed in (1, 2))
        optimizer = mlx_opt.Adafactor(beta_1=0.9)
        optimizer.init({"w": w})
        state = exact_state(optimizer, {"w": w})["w"]
        got = optimizer.apply_gradients({"w": g}, {"w": w})["w"]
        exact, slots = references.adafactor(wide(w), wide(g), state, 1, beta_1=0.9)
        for x, y in [(got, exact), *((optimizer.state["w"][k], slots[k]) for k in slots)]:
            assert x.dtype == dtype
            assert np.all(np.abs(wide(x) - rounded(y, dtype)) <= ulp(y, dtype)), name


@each_half
def test_a_zero_gradient_changes_no_half(dtype):
    w = {"a": normal(5, 4, dtype=dtype), "b": normal(3, dtype=dtype)}
    got = mlx_opt.Adafactor().apply_gradients(tree_map(mx.zeros_like, w), w)
    assert_same(got, w)


def assert_alike(got, expected, dtype):
    """The same bits on the CPU. On a GPU the order of the sums depends on the layout."""
    if mx.default_device().type == mx.cpu:
        assert_same(got, expected)
    else:
        assert_close(got, expected, {mx.float16: 2**-10, mx.bfloat16: 2**-7}.get(dtype, 2e-6))


@each_dtype
def test_layouts_make_no_difference(dtype):
    w, g = normal(130, 300, seed=1, dtype=dtype), normal(130, 300, seed=2, dtype=dtype)
    layouts = {
        "transposed": lambda x: mx.contiguous(x.T).T,
        "strided": lambda x: mx.repeat(x, 2, axis=1)[:, ::2],
        "offset": lambda x: mx.concatenate([x[:1], x])[1:],
    }

    def walk(w, g):
        optimizer = mlx_opt.Adafactor(beta_1=0.9)
        for _ in range(3):
            w = optimizer.apply_gradients({"w": g}, {"w": w})["w"]
        return w, optimizer.state

    expected = walk(w, g)
    for layout in layouts.values():
        assert_alike(walk(layout(w), layout(g)), expected, dtype)


def test_batches_of_transposed_matrices():
    g = mx.swapaxes(mx.contiguous(mx.swapaxes(normal(3, 40, 50, seed=1), -1, -2)), -1, -2)
    w = normal(3, 40, 50, seed=2)
    got = mlx_opt.Adafactor().apply_gradients({"w": g}, {"w": w})
    expected = mlx_opt.Adafactor().apply_gradients({"w": copied(g)}, {"w": w})
    assert_alike(got, expected, mx.float32)


def test_nothing_depends_on_the_number_of_threads(cpu):
    shapes = [(700, 3000), (3000, 700), (1, 300_000), (300_000,), (20, 30, 50)]
    w = {str(i): normal(*s, seed=1) for i, s in enumerate(shapes)}
    g = {str(i): normal(*s, seed=2) for i, s in enumerate(shapes)}
    before = mlx_opt.num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            mlx_opt.set_num_threads(threads)
            optimizer = mlx_opt.Adafactor(beta_1=0.9)
            results.append((optimizer.apply_gradients(g, w), optimizer.state))
            mx.eval(results[-1])
    finally:
        mlx_opt.set_num_threads(before)
    for result in results[1:]:
        assert_same(result, results[0])


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (2, 0, 3)])
def test_parameters_without_elements(shape):
    w = {"w": mx.zeros(shape), "x": mx.ones((2, 2))}
    optimizer = mlx_opt.Adafactor(beta_1=0.9)
    for _ in range(2):
        w = optimizer.apply_gradients(tree_map(mx.ones_like, w), w)
    assert w["w"].shape == shape
    mx.eval(w, optimizer.state)
    assert all(mx.all(mx.isfinite(x)).item() for _, x in flat(optimizer.state).items())


@pytest.mark.parametrize("beta_1", [None, 0.9])
def test_a_step_takes_no_memory_of_the_size_of_the_parameters(cpu, beta_1):
    n, size = 2 * 1024 * 1024, 4
    gc.collect()
    mx.synchronize()
    mx.clear_cache()
    before = mx.get_active_memory()
    optimizer = mlx_opt.Adafactor(beta_1=beta_1)
    w = {"a": mx.ones((1024, 1024)), "b": mx.ones((16, 256, 256))}
    mx.eval(w)
    optimizer.init(w)
    mx.eval(optimizer.state)
    mx.reset_peak_memory()
    for _ in range(4):
        g = tree_map(mx.ones_like, w)
        mx.eval(g)
        w = optimizer.apply_gradients(g, w)
        del g
        mx.eval(w, optimizer.state)
    arrays = 2 if beta_1 is None else 3
    assert (mx.get_peak_memory() - before) / n == pytest.approx(arrays * size, rel=0.03)


def test_a_held_parameter_and_state_are_not_written_to():
    optimizer, w = mlx_opt.Adafactor(beta_1=0.9), tree(0)
    optimizer.init(w)
    held, state = tree_map(copied, w), tree_map(mx.array, optimizer.state)
    kept = tree_map(lambda x: x, optimizer.state)
    mx.eval(optimizer.apply_gradients(tree(1), w), optimizer.state)
    assert_same(w, held)
    assert_same(kept, state)


def test_gradients_vmap_and_compile():
    def step(package, **options):
        def run(g, w):
            optimizer = package.Adafactor(beta_1=0.9, **options)
            return optimizer.apply_gradients({"w": g}, {"w": w})["w"]

        return run

    g, w = normal(3, 8, 5, seed=1), normal(3, 8, 5, seed=2)
    assert_close(mx.vmap(step(mlx_opt))(g, w), mx.vmap(step(stock))(g, w))
    assert_close(
        mx.vmap(step(mlx_opt), (None, 0))(g[0], w), mx.vmap(step(stock), (None, 0))(g[0], w)
    )
    assert_close(mx.compile(step(mlx_opt))(g, w), step(stock)(g, w))
    gradients = [
        mx.grad(lambda g, p=package: step(p)(g, w[0]).square().sum())(g[0])
        for package in (mlx_opt, stock)
    ]
    assert_close(*gradients, 1e-5)


def test_checkpoints_pass_both_ways():
    ours, theirs = mlx_opt.Adafactor(beta_1=0.9), stock.Adafactor(beta_1=0.9)
    w = ours.apply_gradients(tree(1), tree(0))
    theirs.state = tree_map(mx.array, ours.state)
    expected = theirs.apply_gradients(tree(2), w)
    assert_close(ours.apply_gradients(tree(2), w), expected, 2e-6)
    ours.state = tree_map(mx.array, theirs.state)
    assert_close(
        ours.apply_gradients(tree(3), expected), theirs.apply_gradients(tree(3), expected), 2e-6
    )


def test_other_dtypes_go_by_stocks_formula():
    w, g = {"w": mx.array([[1 + 1j, 2.0]])}, {"w": mx.array([[0.5 + 1j, -1.0]])}
    assert_same(mlx_opt.Adafactor().apply_gradients(g, w), stock.Adafactor().apply_gradients(g, w))


def test_an_array_for_a_hyperparameter_is_read_when_the_step_runs():
    ours, plain = mlx_opt.Adafactor(), mlx_opt.Adafactor(weight_decay=0.25)
    ours.weight_decay = mx.array(0.25)
    assert_same(ours.apply_gradients(tree(1), tree(0)), plain.apply_gradients(tree(1), tree(0)))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("exp_avg_sq_row", (5,), 'w: state "exp_avg_sq_row" (5,), expected (4,)'),
        ("exp_avg_sq_col", (4,), 'w: state "exp_avg_sq_col" (4,), expected (5,)'),
        ("exp_avg", (5, 4), 'w: state "exp_avg" (5, 4), parameter (4, 5)'),
    ],
)
def test_state_of_another_shape_is_refused(name, shape, message):
    optimizer, w = mlx_opt.Adafactor(beta_1=0.9), {"w": mx.ones((4, 5))}
    optimizer.init(w)
    optimizer.state["w"][name] = mx.zeros(shape)
    with pytest.raises(ValueError) as caught:
        optimizer.apply_gradients(w, w)
    assert str(caught.value) == message
    assert optimizer.step.item() == 0


def test_a_missing_learning_rate_is_a_key_error_and_changes_nothing():
    optimizer = mlx_opt.Adafactor(relative_step=False)
    with pytest.raises(KeyError, match="learning_rate"):
        optimizer.apply_gradients({"w": mx.ones((2, 2))}, {"w": mx.ones((2, 2))})
    assert optimizer.step.item() == 0
