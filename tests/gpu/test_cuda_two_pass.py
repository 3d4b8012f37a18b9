"""Rules of two passes on CUDA, against float64 and the CPU. Skipped without a GPU."""

import gc

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

import mlx_opt
from cases import DTYPES, copied, dtype_name, same_bits, wide
from mlx_opt import references

if not mx.is_available(mx.gpu):
    pytest.skip("there is no GPU", allow_module_level=True)

OPTIONS = [
    {},
    {"weight_decay": 0.0},
    {"betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.3},
    {"learning_rate": lambda step: 0.1 / (1 + step)},
]
SHAPES = [(1,), (7,), (4095,), (4096,), (4097,), (100_003,), (64, 64), (130, 67), (2, 3, 4), ()]
SHAPES += [(1000, 4000), (3, 5000), (0,), (0, 5)]
LAYOUTS = {
    "plain": lambda x: x,
    "transposed": lambda x: mx.contiguous(x.T).T,
    "strided": lambda x: mx.repeat(x, 2, axis=-1)[..., ::2],
    "backwards": lambda x: mx.contiguous(x[::-1])[::-1],
    "misaligned": lambda x: mx.concatenate([mx.zeros(1, x.dtype), x.flatten()])[1:].reshape(
        x.shape
    ),
    "broadcast": lambda x: mx.broadcast_to(x[:1], x.shape),
}
SPACING = {mx.float32: 2e-6, mx.float16: 2**-10, mx.bfloat16: 2**-7}
each_option = pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "default")


def values(shape, seed, dtype=mx.float32):
    x = np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)
    return mx.array(x).astype(dtype)


def tree(shapes, seed, dtype=mx.float32, layout=LAYOUTS["plain"]):
    return {str(i): layout(values(s, seed, dtype)) for i, s in enumerate(shapes)}


def lamb(options):
    return mlx_opt.Lamb(**{"learning_rate": 0.1, **options})


def steps(device, options, parameters, gradients, count=3, state_dtype=None, **update):
    """Parameters and state after some steps on a device, of trees that are made there."""
    with mx.stream(device):
        w = parameters()
        optimizer = lamb(options)
        optimizer.init(w if state_dtype is None else tree_map(lambda x: x.astype(state_dtype), w))
        for t in range(count):
            w = optimizer.apply_gradients(gradients(t), w, **update)
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
@pytest.mark.parametrize("layout", ["plain", "transposed"])
def test_steps_are_those_in_float64(options, layout):
    shapes = [s for s in SHAPES if 0 not in s]
    gradients = [tree(shapes, 2 + t, layout=LAYOUTS[layout]) for t in range(3)]
    got = steps(mx.gpu, options, lambda: tree(shapes, 1), lambda t: gradients[t])
    reference_options = {"learning_rate": 0.1, **options}
    for name, w in tree(shapes, 1).items():
        exact, state = references.run(
            "Lamb", wide(w), [wide(g[name]) for g in gradients], reference_options
        )
        expected = {f"0.{name}": exact} | {f"1.{name}.{k}": x for k, x in state.items()}
        for path, x in expected.items():
            error = np.abs(wide(got[path]) - x).max()
            assert error <= 4e-6 * np.abs(x).max(), path


@each_option
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_every_option_gives_what_the_cpu_gives(options, dtype):
    assert_devices_agree(
        options, lambda: tree(SHAPES, 1, dtype), lambda t: tree(SHAPES, 2 + t, dtype)
    )


@pytest.mark.parametrize("parameter", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("gradient", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("state", DTYPES, ids=dtype_name)
def test_every_mix_of_dtypes_gives_what_the_cpu_gives(parameter, gradient, state):
    shapes = [(130, 264), (33, 17), (129,), (9000,)]
    assert_devices_agree(
        {},
        lambda: tree(shapes, 1, parameter),
        lambda t: tree(shapes, 2 + t, gradient),
        state_dtype=state,
    )


@pytest.mark.parametrize("of_parameter", LAYOUTS)
@pytest.mark.parametrize("of_gradient", LAYOUTS)
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=dtype_name)
def test_any_layout(dtype, of_gradient, of_parameter):
    shapes = [(64, 64), (65, 63), (2, 200), (300, 4), (257, 1030), (3, 70, 40), (1, 9), (9, 1)]
    assert_devices_agree(
        {},
        lambda: tree(shapes, 1, dtype, LAYOUTS[of_parameter]),
        lambda t: tree(shapes, 2 + t, dtype, LAYOUTS[of_gradient]),
    )


def test_a_thousand_tensors_of_all_kinds_in_one_step():
    sizes = [(int(n),) for n in np.random.default_rng(0).integers(0, 9000, 1000)]
    assert_devices_agree({}, lambda: tree(sizes, 1), lambda t: tree(sizes, 2 + t), count=2)


def test_parameters_and_gradients_of_zeros():
    shapes = [(5000,), (3, 70)]
    zeros = {str(i): mx.zeros(s) for i, s in enumerate(shapes)}
    for options in ({}, {"weight_decay": 0.0}):
        assert_devices_agree(options, lambda: dict(zeros), lambda t: tree(shapes, 2 + t))
        assert_devices_agree(options, lambda: tree(shapes, 1), lambda t: dict(zeros))


@pytest.mark.parametrize("skip_nonfinite", [False, True])
def test_clipped_steps_give_what_the_cpu_gives(skip_nonfinite):
    assert_devices_agree(
        {},
        lambda: tree(SHAPES, 1),
        lambda t: tree(SHAPES, 2 + t),
        max_norm=1.0,
        skip_nonfinite=skip_nonfinite,
    )


@pytest.mark.parametrize("of_gradient", ["plain", "transposed", "strided"])
@pytest.mark.parametrize("held", [False, True])
def test_a_step_that_is_not_finite_changes_nothing(held, of_gradient):
    shapes = [(100_003,), (130, 67), (5, 7)]
    optimizer, w = lamb({}), tree(shapes, 1)
    w = optimizer.apply_gradients(tree(shapes, 2), w)
    mx.eval(w, optimizer.state)
    before = {path: copied(x) for path, x in tree_flatten([w, optimizer.state])}
    kept = [x for _, x in tree_flatten([w, optimizer.state])] if held else []
    gradients = tree(shapes, 3, layout=LAYOUTS[of_gradient])
    gradients["0"] = gradients["0"] * float("inf")
    w = optimizer.apply_gradients(gradients, w, max_norm=1.0, skip_nonfinite=True)
    for path, x in tree_flatten([w, {name: optimizer.state[name] for name in w}]):
        assert same_bits(x, before[path]), path
    del kept


def test_the_same_step_gives_the_same_bits():
    shapes = [(1_000_003,), (1000, 700), (7,)]
    gradients = tree(shapes, 2)
    gradients["1"] = LAYOUTS["transposed"](gradients["1"])
    first = steps(mx.gpu, {}, lambda: tree(shapes, 1), lambda t: gradients)
    for _ in range(5):
        again = steps(mx.gpu, {}, lambda: tree(shapes, 1), lambda t: gradients)
        assert all(same_bits(again[k], x) for k, x in first.items())


def test_steps_queued_without_waiting_are_right():
    def run(evaluate):
        optimizer, w = lamb({}), tree([(30_000,)] * 40, 1)
        for step in range(30):
            w = optimizer.apply_gradients(tree([(30_000,)] * 40, 1000 + step), w)
            evaluate(w, optimizer.state)
        return dict(tree_flatten([w, {k: optimizer.state[k] for k in w}]))

    one, other = run(mx.eval), run(mx.async_eval)
    assert all(same_bits(other[k], x) for k, x in one.items())


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=dtype_name)
def test_synchronous_steps_are_in_place(dtype):
    gc.collect()
    mx.synchronize()
    before = mx.get_active_memory()
    size, count = 1 << 20, 8
    optimizer = lamb({})
    w = {str(i): mx.ones((size,), dtype) for i in range(count)}
    gradients = {str(i): mx.ones((size,), dtype) for i in range(count)}
    optimizer.init(w)
    mx.eval(w, gradients, optimizer.state)
    for i in range(15):
        if i == 5:
            mx.reset_peak_memory()
        w = optimizer.apply_gradients(gradients, w)
        mx.eval(w, optimizer.state)
        mx.synchronize()
    per_parameter = (mx.get_peak_memory() - before) / (size * count)
    assert per_parameter <= 4 * dtype.size * 1.02


def test_more_elements_than_32_bits_count():
    shape = (65537, 32771)
    if mx.device_info()["free_memory"] < 16 * shape[0] * shape[1]:
        pytest.skip("there is not enough memory")
    optimizer = mlx_opt.Lamb(0.5)
    w = mx.ones(shape, mx.bfloat16)
    w = optimizer.apply_gradients({"w": mx.full(shape, 2, mx.bfloat16)}, {"w": w})["w"]
    mx.eval(w)
    # The update is as long as the parameter.
    assert w.min().item() == w.max().item() == pytest.approx(0.5, abs=0.01)
