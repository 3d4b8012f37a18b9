"""The kernels of rules of two passes on the CPU, against the float64 reference."""

import kernels
import mlx.core as mx
import numpy as np
import pytest
from kernels import CHUNK, TILE, Sparse
from two_pass import (
    HYPERS,
    LEARNING_RATE,
    RULE,
    SHARE,
    SUMS,
    Tensor,
    all_kernels,
    direction,
    group_uniforms_of,
    in_place,
    run,
    run_rates,
    run_state,
)
from update import chunks, shape_for

from cases import DTYPES, dtype_name, normal, wide

ALL = "bf16_bf16_bf16"
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
each_way = pytest.mark.parametrize("way", ["flat", "transposed", "strided", "strided_long"])
GROUPS = [(HYPERS, 0.01), ((0.8, 0.95, 1e-3, 0.0), 0.5), ((0.5, 0.9, 1e-6, 0.3), 0.002)]


def each_kernel(wanted):
    return pytest.mark.parametrize("names", all_kernels(wanted), ids=str)


@each_kernel(lambda names: not names.scaling)
def test_a_step(names):
    tensor = Tensor(names, shape_for(names))
    run([tensor], group_uniforms_of())
    tensor.assert_updated()


@pytest.mark.parametrize("size", [1, 3, 4, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 6])
@each_dtype
def test_flat(dtype, size):
    tensor = Tensor(in_place(dtype), (size,))
    run([tensor], group_uniforms_of())
    tensor.assert_updated()


@each_dtype
def test_flat_at_an_offset_that_no_vector_can_be_loaded_from(dtype):
    tensor = Tensor(in_place(dtype), (CHUNK + 5,), lead=1)
    run([tensor], group_uniforms_of(), vectors=False)
    tensor.assert_updated()


@pytest.mark.parametrize("shape", [(1, 33), (64, 32), (65, 31), (30, 100), (36, 44), (37, 44)])
@each_dtype
def test_transposed(dtype, shape):
    tensor = Tensor(in_place(dtype, "transposed"), shape)
    run([tensor], group_uniforms_of())
    tensor.assert_updated()


@each_dtype
def test_each_tensor_of_a_pack_has_rates_of_its_own(dtype):
    names = in_place(dtype, pack=True)
    sizes = [7, CHUNK + 1, 1, 768, 2 * CHUNK, 3, 12]
    for count in (2, names.capacity):
        tensors = [
            Tensor(names, (size,), seed=10 * k, scale=2.0 ** (k - 3))
            for k, size in enumerate(sizes[:count])
        ]
        run(tensors, group_uniforms_of())
        for tensor in tensors:
            tensor.assert_updated()


def test_the_tensors_of_a_pack_have_groups_of_their_own():
    names = in_place(mx.float32, pack=True)
    groups = [(2 * k + 1) % len(GROUPS) for k in range(names.capacity)]
    tensors = [
        Tensor(names, (CHUNK + 3,), seed=10 * k, group=group) for k, group in enumerate(groups)
    ]
    run(tensors, group_uniforms_of(GROUPS))
    for tensor in tensors:
        tensor.assert_updated(*GROUPS[tensor.group])


@each_way
@pytest.mark.parametrize("group", range(len(GROUPS)))
def test_each_way_takes_the_scalars_of_the_tensors_group(way, group):
    for names in all_kernels(lambda names: names.way == way and not names.scaling)[:3]:
        tensor = Tensor(names, shape_for(names), group=group)
        run([tensor], group_uniforms_of(GROUPS))
        tensor.assert_updated(*GROUPS[group])


@each_kernel(lambda names: names.scaling)
def test_the_gradients_are_scaled(names):
    tensor = Tensor(names, shape_for(names))
    run([tensor], group_uniforms_of(scale=0.3))
    tensor.assert_updated(scale=0.3)


@pytest.mark.parametrize("scale", [np.inf, np.nan])
@each_kernel(lambda names: names.scaling == "if_finite")
def test_a_step_whose_scale_is_not_finite_is_skipped(names, scale):
    tensor = Tensor(names, shape_for(names))
    run([tensor], group_uniforms_of(scale=scale))
    tensor.assert_kept()


def test_traced_hyperparameters():
    tensor = Tensor(in_place(mx.float32), (1000,))
    run([tensor], group_uniforms_of(traced=True))
    tensor.assert_updated([np.float64(np.float32(x)) for x in HYPERS])


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_a_parameter_of_zeros_moves_by_the_learning_rate(scale):
    tensor = Tensor(in_place(mx.float32), (100,), scale=scale)
    run([tensor], group_uniforms_of())
    tensor.assert_updated()


@each_way
def test_what_threadgroups_leave_is_within_a_millionth(way):
    shape = {"flat": (3 * CHUNK + 5,), "transposed": (70, 90)}.get(way, (17, 5, 61))
    tensor = Tensor(in_place(mx.float32, way), shape)
    sums = np.full((tensor.groups, SUMS), np.nan, np.float32)
    run_state([tensor], group_uniforms_of(), sums)
    exact = np.sum(wide(tensor.values[0]) ** 2)
    assert np.sum(sums[:, 0], dtype=np.float64) == pytest.approx(exact, rel=1e-6)


def rates_of(sums_of_squares):
    """From what threadgroups have left of one tensor, pairs of sums."""
    sums = np.asarray(sums_of_squares, np.float32).reshape(-1)
    shares = np.array([(0, len(sums_of_squares), 0)], SHARE)
    return run_rates(shares, group_uniforms_of(), sums)[0]


def test_the_sums_of_millions_of_threadgroups():
    """As many as ten thousand million elements have."""
    generator = np.random.default_rng(1)
    left = generator.uniform(0.5, 2, (2_500_000, 2)).astype(np.float32) * np.float32([1e4, 3.0])
    w, u = np.sqrt(left.astype(np.float64).sum(axis=0))
    assert rates_of(left) == pytest.approx(LEARNING_RATE * w / u, rel=3e-7)


def test_a_small_sum_beside_large_ones_is_not_lost():
    left = np.ones((1_000_000, 2), np.float32)
    left[::7] *= np.float32(2.0**-20)
    left[:, 1] = 1
    left[0, 0] = 2.0**27
    w, u = np.sqrt(left.astype(np.float64).sum(axis=0))
    assert rates_of(left) == pytest.approx(LEARNING_RATE * w / u, rel=3e-7)


@pytest.mark.parametrize("left, trust", [((0, 3), 1), ((3, 0), 1), ((0, 0), 1), ((8, 2), 2)])
def test_a_norm_of_zero_leaves_the_learning_rate(left, trust):
    assert rates_of([left]) == pytest.approx(LEARNING_RATE * trust, rel=1e-6)


def test_a_tensor_takes_no_sums_of_others():
    left = np.array([[1, 1], [4, 1], [5, 1], [16, 1], [1, 100]], np.float32)
    shares = np.array([(0, 1, 0), (1, 2, 1), (3, 2, 0)], SHARE)
    rates = run_rates(shares, group_uniforms_of(GROUPS), left.reshape(-1))
    expected = [0.01, 0.5 * np.sqrt(9 / 2), 0.01 * np.sqrt(17 / 101)]
    assert np.allclose(rates, expected, rtol=1e-6)


HUGE = 2**32 + 3 * CHUNK + 5


class Huge:
    """Operands of bfloat16 of more than 2^32 elements, zeros but at the places given."""

    def __init__(self, size, places, places_of_gradient):
        self.size, self.places = size, places
        self.buffers = [Sparse(size).bits for _ in range(4)]
        values = [normal(places.size, seed=k, dtype=mx.bfloat16) for k in range(4)]
        values[2] = mx.abs(values[2]) + mx.array(0.01, mx.bfloat16)
        own = [places] * 3 + [places_of_gradient]
        for buffer, x, at in zip(self.buffers, values, own, strict=True):
            buffer[at] = np.array(x.view(mx.uint16))
        self.values = [wide(x) for x in values]

    def strided(self, *strides):
        table = np.zeros(1, kernels.strided(len(strides)))
        table["size"], table["dims"], table["shape"][0, 0] = self.size, 1, self.size
        table["strides"][0, : len(strides), 0] = strides
        return table

    def run(self, name, table, shared, operands, end):
        """The last two threadgroups."""
        slots = dict(enumerate([group_uniforms_of(), table, shared, *operands]))
        kernels.run(RULE, name, slots, end, first=end - 2)

    def assert_state(self, way, table, end, operands=None):
        sums = np.zeros((end, SUMS), np.float32)
        operands = operands or self.buffers
        self.run(f"state_{way}1_{ALL}_bf16_to_bf16at1_bf16at2", table, sums, operands, end)
        w, m, v, g = self.values
        m, v = HYPERS[0] * m + (1 - HYPERS[0]) * g, HYPERS[1] * v + (1 - HYPERS[1]) * g**2
        for got, exact in zip(self.buffers[1:], [m, v], strict=False):
            assert np.allclose(self.loaded(got), exact, rtol=2.0**-8, atol=1e-6)
        stored = [self.loaded(x).astype(np.float64) for x in self.buffers[1:3]]
        squares = [np.sum(x**2) for x in (w, direction(w, *stored, HYPERS))]
        assert not sums[: end - 2].any()
        assert np.allclose(sums.sum(axis=0), squares, rtol=1e-5)

    def assert_parameter(self, name, table, operands=None, to=None):
        """The state is what it was."""
        rates, operands = np.array([0.5], np.float32), operands or self.buffers[:3]
        self.run(f"parameter_{name}", table, rates, operands, chunks(self.size))
        w, m, v, _ = self.values
        exact = w - 0.5 * direction(w, m, v, HYPERS)
        got = self.loaded(self.buffers[0] if to is None else to)
        assert np.allclose(got, exact, rtol=2.0**-8, atol=2.0**-7)

    def loaded(self, bits):
        return wide(kernels.loaded(bits[self.places], mx.bfloat16))


def test_flat_beyond_4_gibi_elements():
    places = np.arange(HUGE - 5 - CHUNK, HUGE)
    table = np.array([(HUGE, 0, 0, True, 0, 0)], kernels.TENSOR)
    huge = Huge(HUGE, places, places)
    huge.assert_parameter(f"flat1_{ALL}_to_bf16at0", table)
    huge = Huge(HUGE, places, places)
    huge.assert_state("flat", table, chunks(HUGE))


def test_strided_beyond_4_gibi_elements():
    places = np.arange(HUGE - 5, HUGE)
    huge = Huge(HUGE, places, HUGE - 1 - places)
    *rest, g = huge.buffers
    table = huge.strided(1, 1, 1, -1)
    huge.assert_state("strided_long", table, chunks(HUGE), [*rest, g[HUGE - 1 :]])

    huge = Huge(HUGE, places, places)
    w, m, v, to = huge.buffers
    w[HUGE - 1 - places], w[places] = w[places], 0
    operands = [w[HUGE - 1 :], m, v, to]
    name = f"strided_long1_{ALL}_to_bf16"
    huge.assert_parameter(name, huge.strided(-1), operands, to=to)


def test_transposed_beyond_4_gibi_elements():
    rows, columns = 2**17 + 4, 2**15
    row, column = rows - 2, columns - 3
    place, place_of_gradient = np.array([row * columns + column]), np.array([column * rows + row])
    table = np.zeros(1, kernels.MATRIX)
    table[["rows", *kernels.MATRIX_COUNTS]] = (rows, columns, 0, 1, 1, 0)
    huge = Huge(rows * columns, place, place_of_gradient)
    huge.assert_state("transposed", table, -(-rows // TILE) * (columns // TILE))
