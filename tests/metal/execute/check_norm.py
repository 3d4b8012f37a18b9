"""The kernels of the global norm on the CPU, against float64."""

import kernels
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels import NORM_CHUNK, Sparse

from cases import DTYPES, dtype_name, normal, wide

BOUND = 1.51 * 2.0**-24  # of the sum that is rounded to a float, and of its root
PACK = 29
LARGEST = float(np.finfo(np.float32).max)

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)


def run(kernel, *buffers, groups=1, threads=kernels.THREADS, first=0):
    """Dispatch a kernel with its result, its arguments and its operands."""
    kernels.run("Norm", kernel, dict(enumerate(buffers)), groups, threads, first)


def chunks(size):
    return -(-size // NORM_CHUNK)


def nothing(count):
    """Room for sums."""
    sums = np.zeros(count, kernels.SUM)
    sums["high"] = np.nan
    return sums


def sums_of(tensors, dtype, capacity=PACK, vectors=True):
    """The sums of a pack; unused places repeat the last tensor, as the host has it."""
    table, groups = np.zeros(capacity, kernels.TENSOR), 0
    for k in range(capacity):
        size = tensors[k].size if k < len(tensors) else 0
        table[k] = (size, groups if size else 2**32 - 1, 0, vectors, 0, 0)
        groups += chunks(size)
    operands = [tensors[min(k, len(tensors) - 1)] for k in range(capacity)]
    sums = nothing(groups)
    run(f"squares{capacity}_{kernels.SHORT[dtype]}", sums, table, *operands, groups=groups)
    return sums


def layout_of(x):
    layout = np.zeros(1, kernels.strided(1))
    layout["size"], layout["dims"], layout["shape"][0, : x.ndim] = x.size, x.ndim, x.shape
    layout["strides"][0, 0, : x.ndim] = np.array(x.strides) // x.itemsize
    return layout


def norm_of(sums):
    norm = np.full(1, np.nan, np.float32)
    run("norm", norm, np.array([sums.size], np.uint64), sums)
    return norm[0]


def assert_norm(norm, *arrays):
    squares = [np.square(np.asarray(x, np.longdouble)) for x in arrays]
    exact = np.sqrt(sum(x.sum() for x in squares))
    assert abs(norm - exact) <= BOUND * exact, (norm, exact)


def float32(*values):
    return np.array(values, np.float32)


@pytest.mark.parametrize("size", [1, 3, 4, 4099, NORM_CHUNK - 1, NORM_CHUNK, 2 * NORM_CHUNK + 6])
@pytest.mark.parametrize("lead", [0, 1], ids=["", "unaligned"])
@each_dtype
def test_a_tensor(dtype, size, lead):
    x = normal(size, dtype=dtype)
    sums = sums_of([kernels.stored(x, lead)], dtype, capacity=1, vectors=not lead)
    assert_norm(norm_of(sums), wide(x))


@each_dtype
def test_a_pack_with_places_left_over(dtype):
    for count in (2, PACK):
        sizes = [7, NORM_CHUNK + 1, 1, 768, 2 * NORM_CHUNK, *range(3, PACK)][:count]
        tensors = [normal(n, seed=k, dtype=dtype) for k, n in enumerate(sizes)]
        sums = sums_of([kernels.stored(x) for x in tensors], dtype)
        assert_norm(norm_of(sums), *map(wide, tensors))


@pytest.mark.parametrize("way", ["strided_squares", "strided_squares_long"])
@each_dtype
def test_a_strided_tensor(dtype, way):
    x = normal(61, 17, 5, 9, dtype=dtype)
    stored = kernels.stored(x).reshape(x.shape).transpose(2, 0, 3, 1)[:, ::2, ::-1]
    sums = nothing(chunks(stored.size))
    name = f"{way}1_{kernels.SHORT[dtype]}"
    run(name, sums, layout_of(stored), stored, groups=sums.size)
    assert_norm(norm_of(sums), wide(x).transpose(2, 0, 3, 1)[:, ::2, ::-1])


def test_the_norm_of_nothing_is_zero():
    assert norm_of(nothing(1)[:0]) == 0
    assert norm_of(sums_of([float32(0, -0.0)], mx.float32)) == 0


@pytest.mark.parametrize("scale", [1e-45, 1e-38, 1e-30, 1e-19, 1.0, 1e19, 1e30, LARGEST / 300])
def test_neither_overflow_nor_underflow(scale):
    x = np.asarray(normal(20_000)) * np.float32(scale)
    norm = norm_of(sums_of([x], mx.float32))
    if scale < 1e-37:  # the norm itself may be denormal, or made of such
        exact = np.sqrt(np.square(np.float64(x)).sum())
        assert abs(norm - exact) <= BOUND * exact + 2.0**-149
    else:
        assert_norm(norm, x)


@pytest.mark.parametrize(
    "values",
    [
        (LARGEST,),
        (LARGEST, 1.0, 1e-38),
        (1e30, 1e10, 1e-10, 1e-30),
        (1e-30,) * 40 + (1e-20,) * 40 + (1e-25,) * 40,
        (3e19, 4e19),
        (3e-30, 4e-30),
    ],
)
def test_numbers_of_all_magnitudes(values):
    assert_norms(values)
    with kernels.denormals_as_zero():
        assert np.float32(2**-126) / 2 == 0
        assert_norms(values)


def assert_norms(values):
    for x in (float32(*values), float32(*reversed(values))):
        assert_norm(norm_of(sums_of([x], mx.float32)), x)
        spread = np.zeros(3 * NORM_CHUNK, np.float32)
        spread[:: spread.size // x.size][: x.size] = x
        assert_norm(norm_of(sums_of([spread], mx.float32)), x)


def test_denormals_may_be_zero_but_no_worse():
    x = float32(1e-39, 3e-38, -1e-45, 4e-38)
    with kernels.denormals_as_zero():
        assert_norm(norm_of(sums_of([x], mx.float32)), x[[1, 3]])
        assert norm_of(sums_of([x[::2].copy()], mx.float32)) == 0


def test_a_norm_that_is_no_float32_is_infinite():
    assert norm_of(sums_of([float32(LARGEST, LARGEST)], mx.float32)) == np.inf


@each_dtype
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_is_not(dtype, bad):
    for at in (0, NORM_CHUNK - 1, NORM_CHUNK + 5):
        x = mx.ones(2 * NORM_CHUNK + 7, dtype)
        x[at] = bad
        norm = norm_of(sums_of([kernels.stored(x)], dtype))
        assert np.isnan(norm) if np.isnan(bad) else norm == np.inf
        x[NORM_CHUNK // 2 : NORM_CHUNK // 2 + 2] = mx.array([np.inf, np.nan])
        assert np.isnan(norm_of(sums_of([kernels.stored(x)], dtype)))


def test_many_sums_that_are_small_beside_the_first_count():
    sums = np.zeros(200_000, kernels.SUM)
    sums["high"] = np.where(np.arange(sums.size) < kernels.THREADS, 1, 2.0**-25)
    assert_norm(norm_of(sums), np.sqrt(np.float64(sums["high"])))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-LARGEST, LARGEST, width=32, allow_subnormal=False), max_size=40))
def test_any_floats(values):
    x = float32(0, *values)
    exact = np.sqrt(np.square(np.longdouble(x)).sum())
    norm = norm_of(sums_of([x], mx.float32))
    assert norm == np.inf if exact > LARGEST * (1 + BOUND) else abs(norm - exact) <= BOUND * exact


def test_clipping_goes_by_the_rule():
    def scale(norm, max_norm, traced, skip_nonfinite):
        out, arguments = (
            float32(np.nan),
            np.array([(max_norm, traced is not None, skip_nonfinite)], kernels.CLIP),
        )
        run("clip", out, arguments, float32(norm), float32(traced or 0), threads=1)
        return out[0]

    assert scale(4, 2, None, False) == np.float32(2) / (np.float32(4) + np.float32(1e-6))
    assert scale(4, np.inf, None, True) == 1
    assert scale(1, 2, None, True) == 1
    assert scale(4, 2, 1, False) == scale(4, 1, None, False)
    assert scale(np.inf, 2, None, False) == 0
    for norm in (np.inf, np.nan):
        assert np.isnan(scale(norm, 2, None, True))
    assert np.isnan(scale(np.nan, 2, None, False))


HUGE = 2**32 + 3 * NORM_CHUNK + 5


@pytest.mark.parametrize("way", ["squares", "strided_squares_long"])
def test_beyond_4_gibi_elements(way):
    x, values = Sparse(HUGE).bits, normal(6, dtype=mx.bfloat16)
    places = np.arange(HUGE - 6, HUGE)
    x[places if way == "squares" else HUGE - 1 - places] = np.array(values.view(mx.uint16))
    sums, end = nothing(chunks(HUGE)), chunks(HUGE)
    sums["high"] = 0
    if way == "squares":
        arguments, operand = np.array([(HUGE, 0, 0, True, 0, 0)], kernels.TENSOR), x
    else:
        arguments, operand = layout_of(x[::-1]), x[HUGE - 1 :]
    run(f"{way}1_bf16", sums, arguments, operand, groups=end, first=end - 2)
    assert_norm(norm_of(sums), wide(values))
