"""States in codes of 8 bits on CUDA, against the CPU. Skipped without a GPU.

The moments depend on the gradients alone, through products, sums and FMA, which a GPU rounds as a
CPU that has FMA (all x86-64 but the oldest, all Arm): so codes and scales are the same bit for bit.
Parameters, and slots without codes, may depend on scalars too, which a GPU computes with its own
exp and log: they may differ by some units in the last place.
"""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

import coding
import mlx_opt
from cases import DTYPES, copied, dtype_name, same_bits, wide

if not mx.is_available(mx.gpu):
    pytest.skip("there is no GPU", allow_module_level=True)

SHAPES = [(4095,), (4096,), (4097,), (100_003,), (64, 64), (130, 67), (65, 192), (1000, 320)]
SHAPES += [(5, 30, 40), (2**20,)]
SPACING = {mx.float32: 2e-6, mx.float16: 2**-10, mx.bfloat16: 2**-7}
LAYOUTS = {
    "plain": lambda x: x,
    "transposed": lambda x: mx.contiguous(x.T).T,
    "strided": lambda x: mx.repeat(x, 2, axis=-1)[..., ::2],
    "misaligned": lambda x: mx.concatenate([mx.zeros(1, x.dtype), x.flatten()])[1:].reshape(
        x.shape
    ),
}


def values(shape, seed, dtype=mx.float32):
    x = np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)
    return mx.array(x).astype(dtype)


def tree(seed, dtype, layout):
    return {str(i): layout(values(shape, seed, dtype)) for i, shape in enumerate(SHAPES)}


def steps(device, rule, dtype, layout, count=3, update=None, **options):
    """Parameters and state after some steps on a device, of trees that are made there."""
    with mx.stream(device):
        w = tree(0, dtype, layout)
        optimizer = getattr(mlx_opt, rule)(0.01, state_dtype="int8", **options)
        for step in range(count):
            w = optimizer.apply_gradients(tree(1 + step, dtype, layout), w, **(update or {}))
            mx.eval(w, optimizer.state)
        return w, {path: optimizer.state[path] for path in w}


def assert_agree(*arguments, **options):
    w, state = steps(mx.gpu, *arguments, **options)
    expected, expected_state = steps(mx.cpu, *arguments, **options)
    got = dict(tree_flatten(state))
    assert any(name.endswith("_scale") for name in got)
    for name, x in tree_flatten(expected_state):
        if name.endswith("_scale") or f"{name}_scale" in got:
            assert same_bits(got[name], x), name
        elif x.dtype in SPACING:
            assert_near(got[name], x, name)
    for name, x in expected.items():
        assert_near(w[name], x, name)


def assert_near(got, expected, name):
    a, b = wide(got), wide(expected)
    assert np.all(np.abs(a - b) <= SPACING[expected.dtype] * np.abs(b).max()), name


each_rule = pytest.mark.parametrize("rule", ["AdamW", "Lion", "AdEMAMix"])


@each_rule
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_codes_and_scales_are_those_of_the_cpu(rule, dtype, layout):
    assert_agree(rule, dtype, LAYOUTS[layout])


@pytest.mark.parametrize("masters", ["float32", "remainder"])
def test_codes_beside_master_weights(masters):
    assert_agree("AdamW", mx.bfloat16, LAYOUTS["transposed"], master_weights=masters)


def test_codes_of_steps_that_round_stochastically():
    assert_agree("AdamW", mx.bfloat16, LAYOUTS["plain"], stochastic_rounding=True)


def test_codes_of_clipped_elements_and_of_groups():
    groups = [
        mlx_opt.Group("1", state_dtype=mx.float32),
        mlx_opt.Group("3", betas=(0.5, 0.9)),
        mlx_opt.Group("4", state_dtype={"v": "int8"}),
    ]
    assert_agree("AdamW", mx.float32, LAYOUTS["plain"], update={"max_value": 0.5}, groups=groups)


def test_a_step_that_is_skipped_changes_no_bit():
    optimizer = mlx_opt.AdamW(0.01, state_dtype="int8")
    with mx.stream(mx.gpu):
        w = optimizer.apply_gradients(
            tree(1, mx.float32, LAYOUTS["plain"]), tree(0, mx.float32, LAYOUTS["plain"])
        )
        mx.eval(w, optimizer.state)
        for held in (False, True):
            before = dict(tree_flatten([w, {path: optimizer.state[path] for path in w}]))
            kept = {name: copied(x) for name, x in before.items()}
            mx.eval(kept)
            if not held:
                del before
            g = {path: x * float("inf") for path, x in w.items()}
            w = optimizer.apply_gradients(g, w, skip_nonfinite=True)
            mx.eval(w, optimizer.state)
            after = dict(tree_flatten([w, {path: optimizer.state[path] for path in w}]))
            assert all(same_bits(after[name], x) for name, x in kept.items())
    assert optimizer.skipped == 2


def test_what_is_stored_is_what_the_mapping_says():
    """Blocks of any size, of infinities, NaN and denormals, against the mapping in NumPy."""
    sizes = [0, 1e-45, 1e-39, 2.0**-126, 1e-30, 1, 3, 1e30, 2.0**126, 3e38, np.inf, np.nan]
    numbers = np.array(values((len(sizes) * 64, 64), 5))
    with np.errstate(all="ignore"):
        g = mx.array(numbers * np.repeat(np.float32(sizes), 64)[:, None])
    with mx.stream(mx.gpu):
        optimizer = mlx_opt.SGD(0.1, momentum=1.0, state_dtype="int8")  # v begins as g
        w = optimizer.apply_gradients({"w": g}, {"w": mx.zeros(g.shape)})
        mx.eval(w, optimizer.state)
    codes, scales = coding.encode(np.array(g), np.int8)
    assert np.array_equal(np.array(optimizer.state["w"]["v"]), codes)
    assert np.array_equal(np.array(optimizer.state["w"]["v_scale"]), scales, equal_nan=True)


def test_a_state_goes_on_to_the_cpu():
    """A state of a GPU continues on the CPU, and the other way, as if it had begun there."""
    w = {"w": values((300, 64), 0)}
    ends = []
    for devices in ([mx.gpu, mx.cpu], [mx.cpu, mx.gpu]):
        optimizer, x = mlx_opt.AdamW(0.01, state_dtype="int8"), {"w": copied(w["w"])}
        for step, device in enumerate(devices):
            with mx.stream(device):
                x = optimizer.apply_gradients({"w": values((300, 64), 1 + step)}, x)
                mx.eval(x, optimizer.state)
        ends.append(optimizer.state["w"])
    assert all(same_bits(ends[0][name], x) for name, x in ends[1].items())
