"""The codes of 8 bits: Python's and the kernels' are those of NumPy, and within bounds."""

import mlx.core as mx
import numpy as np
import pytest

import coding
import mlx_opt
from mlx_opt import codes
from mlx_opt.descriptions import BY_RULE

SIGNED = BY_RULE["AdamW"].slots[0]
UNSIGNED = BY_RULE["AdamW"].slots[1]
each_kind = pytest.mark.parametrize("slot", [SIGNED, UNSIGNED], ids=["signed", "unsigned"])


def dtype_of(slot):
    return np.uint8 if slot is UNSIGNED else np.int8


def by_python(slot, x):
    """The codes and scales of numbers, by the functions of the package."""
    made = codes.encode(slot, mx.array(x))
    return np.array(made[slot.name]), np.array(made[codes.scale_name(slot.name)])


def by_kernel(slot, x):
    """The same by a kernel, whose slot becomes the gradient, or its square."""
    if slot is SIGNED:
        optimizer, gradient, name = mlx_opt.SGD(1.0, momentum=0.9, state_dtype="int8"), x, "v"
    else:
        optimizer = mlx_opt.RMSprop(1.0, alpha=0.0, state_dtype="int8")
        gradient, name = np.sqrt(x.astype(np.float64)).astype(np.float32), "v"
    optimizer.apply_gradients({"w": mx.array(gradient)}, {"w": mx.zeros(x.shape)})
    state = optimizer.state["w"]
    return np.array(state[name]), np.array(state[f"{name}_scale"])


def numbers(slot, size, seed=0):
    """Numbers of which the sizes in a block differ by many powers of 10, squares for a kernel."""
    random = np.random.default_rng([seed, size])
    x = np.exp(4 * random.normal(size=size)).astype(np.float32)
    if slot is SIGNED:
        return x * random.choice(np.float32([-1, 1]), size)
    return (x * x).astype(np.float32)


@each_kind
def test_every_code_of_a_block_with_every_scale_is_decoded_and_encoded_as_itself(slot):
    dtype = dtype_of(slot)
    every = np.arange(256).astype(np.uint8).view(dtype)
    every = every[every != -128] if dtype == np.int8 else every
    largest = 127 if dtype == np.int8 else 255
    blocks = np.full((every.size, 64), largest, dtype)
    blocks[:, 1] = every
    for scale in (1e-27, 1.0, 3.3, 1e30, 2.0**125):  # with less a number would be denormal
        scales = np.full(every.size, scale, np.float32)
        wide = codes.decode(mx.array(blocks), mx.array(scales))
        assert np.array_equal(np.array(wide), coding.decode(blocks, scales))
        again, same = by_python(slot, np.array(wide))
        assert np.array_equal(again, blocks) and np.array_equal(same, scales)


@each_kind
@pytest.mark.parametrize("size", [4096, 4097, 4159, 8192 + 63])
def test_kernels_encode_as_numpy_and_within_the_bounds(slot, size):
    x = numbers(slot, size)
    if slot is UNSIGNED:
        x = np.square(np.sqrt(x.astype(np.float64)).astype(np.float32))
    expected = coding.encode(x, dtype_of(slot))
    for made in (by_python(slot, x), by_kernel(slot, x)):
        assert made[0].dtype == dtype_of(slot)
        assert np.array_equal(made[0], expected[0]) and np.array_equal(made[1], expected[1])
    wide = coding.decode(*expected)
    assert np.all(np.abs(wide.astype(np.float64) - x) <= coding.error(x, dtype_of(slot)) * 1.0001)
    assert np.all((wide == 0) <= (np.abs(x) < 1e-4 * np.abs(x).max()))
    if slot is UNSIGNED:
        assert np.all(wide > 0)  # rules divide by its root


@each_kind
def test_kernels_decode_as_numpy(slot):
    size = 4096 + 64
    random = np.random.default_rng(0)
    stored = random.integers(0, 256, size).astype(np.uint8).view(dtype_of(slot))
    stored[stored == -128] = 0
    scales = np.exp(random.normal(size=size // 64)).astype(np.float32)
    wide = coding.decode(stored, scales)
    if slot is SIGNED:  # w is 0 - 1.0 (1.0 v + 0.0)
        optimizer = mlx_opt.SGD(1.0, momentum=1.0, state_dtype="int8")
        expected = -wide
    else:  # w is 0 - 1.0 g / (v^(1/2) + eps)
        optimizer = mlx_opt.RMSprop(1.0, alpha=1.0, eps=1e-8, state_dtype="int8")
        expected = -1 / (np.sqrt(wide) + np.float32(1e-8))
    w = {"w": mx.zeros(size)}
    optimizer.init(w)
    optimizer.state["w"]["v"] = mx.array(stored)
    optimizer.state["w"]["v_scale"] = mx.array(scales)
    g = mx.zeros(size) if slot is SIGNED else mx.ones(size)
    got = np.array(optimizer.apply_gradients({"w": g}, w)["w"])
    assert np.array_equal(got, expected) if slot is SIGNED else np.allclose(got, expected, 1e-6)


@each_kind
@pytest.mark.parametrize(
    "values",
    [
        [0.0],
        [1e-39, 0.0],
        [1e-37, 1e-45],
        [1.0, 1e-30],
        [3e38],
        [np.nan, 1.0],
        [np.nan, -np.nan, -np.inf, -1.0],
        [np.inf, 1.0],
        [2.0**126],
    ],
    ids=str,
)
def test_blocks_of_special_numbers(slot, values, denormals):
    x = np.zeros(4096, np.float32)
    x[: len(values)] = values
    x[64:128] = 0.5  # a block beside is as ever
    stored, scales = coding.encode(x, dtype_of(slot))
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in
               zip(by_python(slot, x), (stored, scales), strict=True))  # fmt: skip
    if slot is SIGNED:
        made = by_kernel(slot, x)
        assert np.array_equal(made[0], stored)
        assert np.array_equal(made[1], scales, equal_nan=True)
    wide = coding.decode(stored, scales)
    assert np.all(wide[64:128] == 0.5)
    is_huge = not max(values) < 2.0**126
    assert np.all(np.isnan(wide[:64])) if is_huge else np.all(np.abs(wide[:64] - x[:64]) < 1e-9)
    if max(values) < 2.0**-126:
        assert scales[0] == 0 and np.all(wide[:64] == 0)


def test_a_gradient_of_nan_shows():
    """The block of an element that is NaN becomes NaN, as the element alone does in float32."""
    optimizer = mlx_opt.AdamW(0.1, state_dtype="int8")
    w, g = {"w": mx.ones(4096)}, np.ones(4096, np.float32)
    g[100] = np.nan
    w = optimizer.apply_gradients({"w": mx.array(g)}, w)
    assert np.flatnonzero(np.isnan(np.array(w["w"]))).tolist() == [100]
    w = optimizer.apply_gradients({"w": mx.ones(4096)}, w)
    assert np.flatnonzero(np.isnan(np.array(w["w"]))).tolist() == list(range(64, 128))
