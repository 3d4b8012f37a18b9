"""Every kernel on the CPU, against the float64 references."""

import kernels
import mlx.core as mx
import numpy as np
import pytest
from kernels import CHUNK, LANES, OPERANDS_SLOT, TILE, Sparse

from cases import (
    CASES,
    DTYPES,
    RULES,
    assert_exact,
    dtype_name,
    exact_step,
    normal,
    same_bits,
    wide,
)
from mlx_opt import references

LEARNING_RATE, STEP = 0.01, 3

each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)


def primitive(case):
    return case.ours(LEARNING_RATE)._rule()


class Tensor:
    """Operands of a step, what they should become, and buffers that a kernel is given."""

    def __init__(self, case, storages, results, shape, seed, lead=0):
        self.names = ["w", *primitive(case).moments]
        values = [normal(*shape, seed=seed + k) for k in range(len(self.names) + 1)]
        values[1:-1] = [mx.abs(x) for x in values[1:-1]]
        self.values = [x.astype(dtype) for x, dtype in zip(values, storages, strict=True)]
        self.results = results
        self.buffers = [kernels.stored(x, lead) for x in self.values]
        self.out = [
            kernels.empty(lead + x.size, d)[lead:] for x, d in zip(values, results, strict=False)
        ]
        self.case, self.size, self.shape = case, values[0].size, shape

    def slots(self, first=OPERANDS_SLOT):
        return dict(enumerate(self.buffers + self.out, start=first))

    def assert_updated(self, case=None, scale=1.0):
        w, *moments, g = [wide(x) for x in self.values]
        g = np.float64(np.float32(scale) * np.float32(g))
        state = dict.fromkeys(self.case.moments, np.zeros(self.shape))
        state |= dict(zip(self.names[1:], moments, strict=True))
        expected = exact_step(case or self.case, w, g, state, STEP, LEARNING_RATE)
        for name, bits, dtype in zip(self.names, self.out, self.results, strict=True):
            assert_exact(kernels.loaded(bits, dtype).reshape(self.shape), *expected[name])

    def assert_kept(self):
        for x, bits, dtype in zip(self.values, self.out, self.results, strict=False):
            assert same_bits(kernels.loaded(bits, dtype), x.astype(dtype).reshape(-1))


def uniform(case, dtype, shape, seed=1, lead=0):
    fields = len(primitive(case).moments) + 1
    return Tensor(case, [dtype] * (fields + 1), [dtype] * fields, shape, seed, lead)


def name_of(way, capacity, tensor, scaling=None):
    short = [kernels.SHORT[x.dtype] for x in tensor.values]
    results = [kernels.SHORT[dtype] for dtype in tensor.results]
    scaled = ["scaled", scaling] if scaling else []
    return "_".join([f"{way}{capacity}", *short, "to", *results, *scaled])


def frame_of(case, traced=False, scale=None):
    rule = primitive(case)
    return kernels.prepare(rule.name, rule.hypers, LEARNING_RATE, STEP, traced, scale)


def chunks(size):
    return -(-size // CHUNK)


def run_pack(tensors, capacity, frame, vectors, scaling=None):
    """One dispatch over several tensors; unused places repeat the last, as the host has it."""
    table = np.zeros(capacity, kernels.TENSOR)
    buffers, groups, width = {0: frame, 1: table}, 0, len(tensors[0].slots())
    for k in range(capacity):
        tensor = tensors[min(k, len(tensors) - 1)]
        buffers |= tensor.slots(OPERANDS_SLOT + k * width)
        table[k] = (tensor.size, groups, vectors) if k < len(tensors) else (0, 2**32 - 1, 0)
        groups += chunks(tensor.size) if k < len(tensors) else 0
    name = name_of("flat", capacity, tensors[0], scaling)
    kernels.run(primitive(tensors[0].case).name, name, buffers, groups)


def run_transposed(tensor, frame, scaling=None):
    rows, columns = tensor.shape
    matrix = np.zeros(1, kernels.MATRIX)
    matrix[["rows", "columns", "vectors", "gradient_vectors"]] = (
        rows, columns, columns % LANES == 0, rows % LANES == 0)  # fmt: skip
    gradient = tensor.buffers[-1].reshape(tensor.shape)
    tensor.buffers[-1] = np.array(gradient.T, order="C").reshape(-1)
    groups = -(-rows // TILE) * -(-columns // TILE)
    name = name_of("transposed", 1, tensor, scaling)
    buffers = {0: frame, 1: matrix} | tensor.slots()
    kernels.run(primitive(tensor.case).name, name, buffers, groups)


def run_strided(tensor, frame, way, scaling=None):
    """Every operand but the parameter lies with its dimensions in another order."""
    layout = np.zeros(1, kernels.STRIDED)
    layout["size"], layout["dims"] = tensor.size, 3
    layout["shape"][0, :3] = tensor.shape
    for k, buffer in enumerate(tensor.buffers):
        order = (0, 1, 2) if k == 0 else (2, 0, 1)
        x = np.array(buffer.reshape(tensor.shape).transpose(order), order="C")
        places = x.transpose(np.argsort(order))
        layout["strides"][0, k, :3] = np.array(places.strides) // x.itemsize
        tensor.buffers[k] = x.reshape(-1)
    buffers = {0: frame, 1: layout} | tensor.slots()
    name = name_of(way, 1, tensor, scaling)
    kernels.run(primitive(tensor.case).name, name, buffers, chunks(tensor.size))


@pytest.mark.parametrize("size", [1, 3, 4, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 6])
@each_dtype
@each_case
def test_flat(case, dtype, size):
    tensor = uniform(case, dtype, (size,))
    run_pack([tensor], 1, frame_of(case), vectors=True)
    tensor.assert_updated()


@each_dtype
@pytest.mark.parametrize("case", RULES, ids=str)
def test_flat_at_an_offset_that_no_vector_can_be_loaded_from(case, dtype):
    tensor = uniform(case, dtype, (CHUNK + 5,), lead=1)
    run_pack([tensor], 1, frame_of(case), vectors=False)
    tensor.assert_updated()


@each_dtype
@pytest.mark.parametrize("case", RULES, ids=str)
def test_a_pack_with_places_left_over(case, dtype):
    capacity = pack_of(primitive(case).name)
    for count in (2, capacity):
        sizes = [7, CHUNK + 1, 1, 768, 2 * CHUNK, 3, 5, 9, 11, 13][:count]
        tensors = [uniform(case, dtype, (n,), seed=10 * k) for k, n in enumerate(sizes)]
        run_pack(tensors, capacity, frame_of(case), vectors=True)
        for tensor in tensors:
            tensor.assert_updated()


def pack_of(rule):
    """The most tensors that a kernel of the rule takes."""
    return max(Name(name).capacity for name in kernels.names(rule) if name.startswith("flat"))


@pytest.mark.parametrize("shape", [(1, 33), (64, 32), (65, 31), (30, 100), (36, 44), (37, 44)])
@each_dtype
@pytest.mark.parametrize("case", RULES, ids=str)
def test_transposed(case, dtype, shape):
    tensor = uniform(case, dtype, shape)
    run_transposed(tensor, frame_of(case))
    tensor.assert_updated()


@pytest.mark.parametrize("way", ["strided", "strided_long"])
@each_dtype
@pytest.mark.parametrize("case", RULES, ids=str)
def test_strided(case, dtype, way):
    tensor = uniform(case, dtype, (17, 5, 61))
    run_strided(tensor, frame_of(case), way)
    tensor.assert_updated()


class Name:
    """What a kernel's name says."""

    def __init__(self, name):
        words, _, scaling = name.partition("_scaled_")
        way, _, storages = words.replace("strided_long", "strided-long").partition("_")
        before, _, after = storages.partition("_to_")
        self.scaling = scaling or None
        self.way = way.rstrip("0123456789").replace("-", "_")
        self.capacity = int(way[len(self.way) :])
        self.storages = [kernels.LONG[x] for x in before.split("_") if x]
        self.results = [kernels.LONG[x] for x in after.split("_") if x]

    @property
    def mixed(self):
        return len({*self.storages, *self.results}) > 1


def names(wanted):
    """A case of its rule and the name for each kernel that is wanted."""
    cases = {primitive(case).name: case for case in RULES}
    for rule, case in cases.items():
        for name in kernels.names(rule):
            if name != "prepare" and wanted(Name(name)):
                yield pytest.param(case, Name(name), id=f"{rule}-{name}")


def run_by_name(case, name, frame):
    shape = (17, 5, 61) if name.way.startswith("strided") else (40, 37)
    tensor = Tensor(case, name.storages, name.results, shape, seed=1)
    if name.way == "flat":
        run_pack([tensor], name.capacity, frame, vectors=True, scaling=name.scaling)
    elif name.way == "transposed":
        run_transposed(tensor, frame, name.scaling)
    else:
        run_strided(tensor, frame, name.way, name.scaling)
    return tensor


each_mix = pytest.mark.parametrize("case, name", [*names(lambda n: n.mixed and not n.scaling)])
each_scaled = pytest.mark.parametrize("case, name", [*names(lambda n: n.scaling)])


@each_mix
def test_mixed_storages(case, name):
    run_by_name(case, name, frame_of(case)).assert_updated()


@each_scaled
def test_the_gradients_are_scaled(case, name):
    run_by_name(case, name, frame_of(case, scale=0.3)).assert_updated(scale=0.3)


@pytest.mark.parametrize("scale", [np.inf, np.nan])
@each_scaled
def test_a_step_whose_scale_is_not_finite_is_not_taken(case, name, scale):
    if name.scaling == "if_finite":
        run_by_name(case, name, frame_of(case, scale=scale)).assert_kept()


@each_case
def test_traced_hyperparameters(case):
    tensor = uniform(case, mx.float32, (1000,))
    run_pack([tensor], 1, frame_of(case, traced=True), vectors=True)

    options = DEFAULTS.get(case.rule, {}) | case.options
    tensor.assert_updated(case._replace(options={k: as_float32(x) for k, x in options.items()}))


DEFAULTS = {
    "RMSprop": {"alpha": 0.99},
    "AdaDelta": {"rho": 0.9},
    "Adam": {"betas": (0.9, 0.999)},
    "AdamW": {"betas": (0.9, 0.999)},
    "Adamax": {"betas": (0.9, 0.999)},
    "Lion": {"betas": (0.9, 0.99)},
}


def as_float32(x):
    if isinstance(x, tuple):
        return tuple(map(as_float32, x))
    return x if isinstance(x, bool) else float(np.float32(x))


@pytest.mark.parametrize("step", [1, 2, 10, 100, 1000, 100_000, 2**24 + 1])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 0.999, 0.99999])
def test_bias_correction_holds_at_any_step(beta, step):
    frame = kernels.prepare("AdamW", [beta, beta, 1e-8, 0.0, 1.0], 1.0, step)
    step_size, denominator_scale = frame[15:17]
    correction = 1 - np.float64(beta) ** step
    assert step_size == pytest.approx(1 / correction, rel=1e-6)
    assert denominator_scale == pytest.approx(1 / np.sqrt(correction), rel=1e-6)


HUGE = 2**32 + 3 * CHUNK + 5


def huge_operands(size, places, places_of_gradient):
    """SGD's operands with values at the places given."""
    w, g, out = (Sparse(size).bits for _ in range(3))
    values = [normal(places.size, seed=k, dtype=mx.bfloat16) for k in (1, 2)]
    w[places], g[places_of_gradient] = (np.array(x.view(mx.uint16)) for x in values)
    return values, w, g, out


def run_huge(name, arguments, w, g, out, end):
    frame = kernels.prepare("SGD", [0.0], LEARNING_RATE, 1)
    slots = dict(enumerate([frame, arguments, w, g, out]))
    kernels.run("SGD", f"{name}1_bf16_bf16_to_bf16", slots, end, first=end - 2)


def assert_huge_updated(values, out, places):
    w, g = map(wide, values)
    expected, _ = references.sgd(w, g, {"v": 0}, 1, learning_rate=LEARNING_RATE)
    got = wide(kernels.loaded(out[places], mx.bfloat16))
    assert np.all(np.abs(got - expected) <= 2.0**-8 * np.abs(expected))


def test_flat_beyond_4_gibi_elements():
    places = np.arange(HUGE - 5 - CHUNK, HUGE)
    values, w, g, out = huge_operands(HUGE, places, places)
    run_huge("flat", np.array([(HUGE, 0, True)], kernels.TENSOR), w, g, out, chunks(HUGE))
    assert_huge_updated(values, out, places)


def test_strided_beyond_4_gibi_elements():
    places = np.arange(HUGE - 5, HUGE)
    values, w, g, out = huge_operands(HUGE, places, HUGE - 1 - places)
    layout = np.zeros(1, kernels.STRIDED)
    layout["size"], layout["dims"], layout["shape"][0, 0] = HUGE, 1, HUGE
    layout["strides"][0, :2, 0] = 1, -1
    run_huge("strided_long", layout, w, g[HUGE - 1 :], out, chunks(HUGE))
    assert_huge_updated(values, out, places)


def test_transposed_beyond_4_gibi_elements():
    rows, columns = 2**17 + 4, 2**15
    row, column = rows - 2, columns - 3
    place, place_of_gradient = np.array([row * columns + column]), np.array([column * rows + row])
    values, w, g, out = huge_operands(rows * columns, place, place_of_gradient)
    matrix = np.zeros(1, kernels.MATRIX)
    matrix[["rows", "columns", "vectors", "gradient_vectors"]] = (rows, columns, 1, 1)
    run_huge("transposed", matrix, w, g, out, -(-rows // TILE) * (columns // TILE))
    assert_huge_updated(values, out, place)
