"""Adafactor's CUDA kernels against the CPU's. Skipped without a GPU."""

import gc

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

import mlx_opt
from cases import DTYPES, assert_same, dtype_name, wide

if not mx.is_available(mx.gpu):
    pytest.skip("there is no GPU", allow_module_level=True)

OPTIONS = [
    {},
    {"beta_1": 0.9},
    {"weight_decay": 0.1, "beta_1": 0.5},
    {"eps": (1e-8, 0.5), "clip_threshold": 0.1},
    {"decay_rate": -0.5, "warmup_init": True},
    {"scale_parameter": False, "weight_decay": 0.1},
    {"relative_step": False, "learning_rate": 0.01},
    {"beta_1": 0.0, "relative_step": False, "learning_rate": lambda step: 0.1 / (step + 1)},
]
SHAPES = [(64, 64), (33, 17), (257, 384), (5025, 96), (96, 5025), (3, 4500), (4500, 3), (1, 700)]
SHAPES += [(700, 1), (1, 1), (4, 5, 6), (2, 3, 20, 17), (16, 3, 3, 32), (3, 128, 256)]
SHAPES += [(1,), (129,), (4096,), (100_003,), (), (0,), (0, 5), (5, 0), (2, 0, 3)]
LAYOUTS = {
    "plain": lambda x: x,
    "transposed": lambda x: mx.swapaxes(mx.contiguous(mx.swapaxes(x, -1, -2)), -1, -2),
    "strided": lambda x: mx.repeat(x, 2, axis=-1)[..., ::2],
    "backwards": lambda x: mx.contiguous(x[::-1])[::-1],
    "misaligned": lambda x: mx.concatenate([mx.zeros(1, x.dtype), x.flatten()])[1:].reshape(
        x.shape
    ),
    "broadcast": lambda x: mx.broadcast_to(x[:1], x.shape),
}
SPACING = {mx.float32: 2e-6, mx.float16: 2**-10, mx.bfloat16: 2**-7}
each_option = pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "default")
each_moment = pytest.mark.parametrize("options", OPTIONS[:2], ids=["plain", "moment"])


def values(shape, seed, dtype=mx.float32):
    x = np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)
    return mx.array(x).astype(dtype)


def tree(shapes, seed, dtype=mx.float32, layout=LAYOUTS["plain"]):
    return {str(i): layout(values(s, seed, dtype)) for i, s in enumerate(shapes)}


def steps(device, options, parameters, gradients, count=3, clip=None, state_dtype=None):
    """Parameters and state after some steps on a device, of trees that are made there."""
    with mx.stream(device):
        w = parameters()
        optimizer = mlx_opt.Adafactor(**options)
        optimizer.init(w if state_dtype is None else tree_map(lambda x: x.astype(state_dtype), w))
        for t in range(count):
            w = optimizer.apply_gradients(gradients(t), w, **(clip or {}))
            mx.eval(w, optimizer.state)
        state = {k: optimizer.state[k] for k in w}
    return dict(tree_flatten([w, state]))


def assert_devices_agree(*arguments, **options):
    got, expected = (steps(d, *arguments, **options) for d in (mx.gpu, mx.cpu))
    assert got.keys() == expected.keys()
    # A stored half may differ by one unit, and the next step's results with it.
    coarsest = max(SPACING[x.dtype] for x in expected.values())
    for name, x in expected.items():
        assert (got[name].dtype, got[name].shape) == (x.dtype, x.shape), name
        a, b = wide(got[name]), wide(x)
        scale = np.abs(b).max(initial=0.0)
        tolerance = (2 * SPACING[x.dtype] + 0.05 * coarsest) * scale
        assert np.abs(a - b).max(initial=0.0) <= tolerance, name


@each_option
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_every_option_gives_what_the_cpu_gives(options, dtype):
    assert_devices_agree(
        options, lambda: tree(SHAPES, 1, dtype), lambda t: tree(SHAPES, 2 + t, dtype)
    )


@pytest.mark.parametrize("parameter", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("gradient", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("state", DTYPES, ids=dtype_name)
@each_moment
def test_every_mix_of_dtypes_gives_what_the_cpu_gives(options, parameter, gradient, state):
    shapes = [(130, 264), (33, 17), (3, 20, 17), (129,), (4096,)]
    assert_devices_agree(
        options,
        lambda: tree(shapes, 1, parameter),
        lambda t: tree(shapes, 2 + t, gradient),
        state_dtype=state,
    )


@pytest.mark.parametrize("of_parameter", LAYOUTS)
@pytest.mark.parametrize("of_gradient", LAYOUTS)
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=dtype_name)
@each_moment
def test_any_layout(options, dtype, of_gradient, of_parameter):
    shapes = [(64, 64), (65, 63), (2, 200), (300, 4), (257, 1030), (3, 70, 40), (1, 9), (9, 1)]
    assert_devices_agree(
        options,
        lambda: tree(shapes, 1, dtype, LAYOUTS[of_parameter]),
        lambda t: tree(shapes, 2 + t, dtype, LAYOUTS[of_gradient]),
    )


def test_states_of_any_layout():
    trees = []
    for device in (mx.gpu, mx.cpu):
        with mx.stream(device):
            optimizer, w = mlx_opt.Adafactor(beta_1=0.9), tree([(40, 30), (500,)], 1)
            optimizer.init(w)
            for state in (optimizer.state["0"], optimizer.state["1"]):
                for name, x in state.items():
                    state[name] = LAYOUTS["strided"](mx.ones_like(x))
            w = optimizer.apply_gradients(tree([(40, 30), (500,)], 2), w)
            mx.eval(w, optimizer.state)
            trees.append(dict(tree_flatten([w, optimizer.state])))
    for name, x in trees[1].items():
        np.testing.assert_allclose(np.array(trees[0][name]), np.array(x), rtol=5e-6, err_msg=name)


def test_hundreds_of_tensors_of_all_kinds_in_many_steps():
    sizes = np.random.default_rng(0).integers(1, 200, (600, 2)).tolist()
    shapes = [tuple(s) if i % 3 else (s[0],) for i, s in enumerate(sizes)]
    assert_devices_agree(
        {"beta_1": 0.9, "weight_decay": 0.01},
        lambda: tree(shapes, 1),
        lambda t: tree(shapes, 2 + t),
        count=20,
    )


@pytest.mark.parametrize("clip", [{"max_norm": 0.5}, {"max_norm": 0.5, "skip_nonfinite": True}])
@each_moment
def test_clipped_steps_give_what_the_cpu_gives(options, clip):
    assert_devices_agree(
        options,
        lambda: tree(SHAPES, 1),
        lambda t: tree(SHAPES, 2 + t),
        clip=clip,
    )


@pytest.mark.parametrize("held", [False, True], ids=["in-place", "held"])
@pytest.mark.parametrize("layout", ["plain", "transposed", "strided"])
@each_moment
def test_a_step_that_is_not_taken_changes_nothing(options, layout, held):
    shapes = [s for s in SHAPES if len(s) > 1 and 0 not in s] + [(5, 0)]
    optimizer, w = mlx_opt.Adafactor(**options), tree(shapes, 1)
    if layout == "plain":
        w |= {"vector": values((129,), 1), "scalar": values((), 1)}
    optimizer.init(w)
    w = optimizer.apply_gradients(tree_map(mx.ones_like, w), w)
    states = {k: optimizer.state[k] for k in w}
    before = tree_map(lambda x: mx.array(np.array(x)), [w, states])
    mx.eval(before)
    g = {k: values(x.shape, 2) for k, x in w.items()}
    g = {k: LAYOUTS[layout](x) if x.ndim > 1 else x for k, x in g.items()}
    g["0"] = g["0"] * mx.nan
    kept = [w, tree_map(lambda x: x, states)] if held else None
    w = optimizer.apply_gradients(g, w, skip_nonfinite=True)
    assert_same([w, {k: optimizer.state[k] for k in w}], before)
    assert kept is None or len(kept) == 2
    assert optimizer.skipped.item() == 1


def test_what_is_held_is_not_written_to():
    optimizer, w = mlx_opt.Adafactor(beta_1=0.9), tree(SHAPES, 1)
    optimizer.init(w)
    mx.eval(w, optimizer.state)
    held = tree_map(lambda x: mx.array(np.array(x)), [w, optimizer.state])
    kept = [w, tree_map(lambda x: x, optimizer.state)]
    g = tree(SHAPES, 2)
    mx.eval(g)
    mx.eval(optimizer.apply_gradients(g, w), optimizer.state)
    assert_same(kept, held)


def run_model(step_of, evaluate, count=12):
    model = nn.Module()
    for name, x in tree([(300, 260), (260, 300), (129,), (3, 50, 60)], 1).items():
        model[name] = x
    optimizer = mlx_opt.Adafactor(beta_1=0.9)
    optimizer.init(model)
    step = step_of(model, optimizer)
    for t in range(count):
        step(tree([(300, 260), (260, 300), (129,), (3, 50, 60)], 2 + t))
        evaluate(model.state, optimizer.state)
    return model.state, optimizer.state


def eager(model, optimizer):
    return lambda g: optimizer.update(model, g)


def compiled(model, optimizer):
    state = [model.state, optimizer.state]
    return mx.compile(lambda g: optimizer.update(model, g), inputs=state, outputs=state)


@pytest.mark.parametrize("step_of", [eager, compiled])
def test_any_loop_gives_the_same_bits(step_of):
    expected = run_model(eager, mx.eval)
    assert_same(run_model(step_of, mx.async_eval), expected)
    assert_same(run_model(step_of, mx.eval), expected)


@pytest.mark.parametrize("beta_1", [None, 0.9])
def test_a_step_takes_little_memory(beta_1):
    gc.collect()
    mx.synchronize()
    before = mx.get_active_memory()
    optimizer = mlx_opt.Adafactor(beta_1=beta_1)
    w = {str(i): mx.ones((4096, 4096)) for i in range(4)}
    g = tree_map(mx.ones_like, w)
    optimizer.init(w)
    mx.eval(w, g, optimizer.state)
    for i in range(6):
        if i == 2:
            mx.synchronize()
            mx.reset_peak_memory()
        w = optimizer.apply_gradients(g, w)
        mx.eval(w, optimizer.state)
        mx.synchronize()
    arrays = 2 if beta_1 is None else 3
    per_parameter = (mx.get_peak_memory() - before) / (4 << 24)
    assert per_parameter <= 4 * arrays * 1.05


def test_more_elements_than_32_bits_count():
    shape = (65537, 32771)
    if mx.device_info()["free_memory"] < 8 * shape[0] * shape[1]:
        pytest.skip("there is not enough memory")
    w = mx.zeros(shape, mx.bfloat16)
    optimizer = mlx_opt.Adafactor(1.0, relative_step=False, scale_parameter=False)
    w = optimizer.apply_gradients({"w": mx.full(shape, -2, mx.bfloat16)}, {"w": w})["w"]
    mx.eval(w)
    assert mx.all(w == 1).item()
