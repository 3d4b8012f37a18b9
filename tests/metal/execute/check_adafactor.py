"""Adafactor's kernels on the CPU, against the float64 reference."""

import kernels
import mlx.core as mx
import numpy as np
import pytest
from adafactor import COLUMNS, LINES, Plan, Tensor
from kernels import CHUNK, Group, Sparse

from cases import DTYPES, assert_exact, dtype_name, normal, same_bits, wide
from mlx_opt import references

STEP = 3
OPTIONS = {
    "default": {},
    "moment": {"beta_1": 0.9, "weight_decay": 0.1},
    "other": {
        "eps": (1e-8, 0.5),
        "clip_threshold": 0.1,
        "decay_rate": -0.5,
        "scale_parameter": False,
        "relative_step": False,
        "learning_rate": 0.05,
    },
    "warmup": {"warmup_init": True},
}
SHAPES = {
    "matrix": (33, 17),
    "tile": (LINES, COLUMNS),
    "tiles": (2 * LINES + 1, COLUMNS + 3),
    "vectors": (LINES + 4, COLUMNS + 8),
    "wide": (3, 4500),
    "tall": (900, 2),
    "one-row": (1, 70),
    "one-column": (70, 1),
    "one": (1, 1),
    "four": (2, 3, 20, 16),
    "vector": (129,),
    "chunk": (CHUNK,),
    "chunks": (2 * CHUNK + 6,),
    "scalar": (),
}
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
each_matrix = pytest.mark.parametrize(
    "shape", [s for s in SHAPES.values() if len(s) > 1], ids=lambda s: "x".join(map(str, s))
)

each_way = pytest.mark.parametrize(
    "shape, layout",
    [
        ((33, 70), {}),
        ((33, 70), {"transposed": True}),
        ((2, 3, 5), {"transposed": True}),
        ((2, 3, 5), {"strided": True}),
        ((300,), {}),
        ((300,), {"strided": True}),
        ((300,), {"alone": True}),
        ((7,), {"strided": True, "alone": True}),
    ],
    ids=str,
)

LEAVES = {"row": "exp_avg_sq_row", "column": "exp_avg_sq_col", "v": "exp_avg_sq", "m": "exp_avg"}


def values_of(shape, moment, storages):
    """Operands of a step; storages: of the parameter, the means, the first moment, the gradient."""
    w, v, m, g = storages
    shapes = {"w": (shape, w)}
    if len(shape) > 1:
        shapes |= {"row": (shape[:-1], v), "column": (shape[:-2] + shape[-1:], m)}
    else:
        shapes |= {"v": (shape, v)}
    if moment:
        shapes["m"] = (shape, m)
    shapes["g"] = (shape, g)
    values = {}
    for seed, (name, (own, dtype)) in enumerate(shapes.items()):
        x = normal(*own, seed=seed)
        values[name] = (x if name in ("w", "m", "g") else mx.abs(x) + 0.01).astype(dtype)
    mx.eval(values)
    return values


def tensor_of(shape, options, storages, **layout):
    values = values_of(shape, "beta_1" in options, storages)
    w, v, m, _ = storages
    results = {"w": w, "row": w, "column": v, "v": v, "m": m}
    results = {name: dtype for name, dtype in results.items() if name in values}
    return Tensor(values, results, **layout)


def group_of(options, traced=False):
    given = {"eps": (1e-30, 1e-3), "clip_threshold": 1.0, "decay_rate": -0.8, "beta_1": 0.0}
    given |= {"weight_decay": 0.0, "scale_parameter": True, "relative_step": True}
    given |= {"warmup_init": False} | options
    rate = given.pop("learning_rate", 0.0)
    hypers = [*given.pop("eps"), *map(float, given.values())]
    return Group(hypers, rate, traced)


def uniforms_of(options, traced=False, scale=None):
    return kernels.prepare_groups("Adafactor", [group_of(options, traced)], STEP, scale)


def assert_updated(tensor, options, scale=1.0):
    values = {name: wide(x) for name, x in tensor.values.items()}
    w, g = values.pop("w"), np.float64(np.float32(scale) * np.float32(values.pop("g")))
    state = {LEAVES[name]: x for name, x in values.items()}
    exact = references.exact_step("Adafactor", w, g, state, STEP, options)
    for name in tensor.out:
        x, error = exact[LEAVES.get(name, name)]
        assert_exact(tensor.result(name), x, error)


def run(tensor, options, **of_uniforms):
    tensor.step(uniforms_of(options, **of_uniforms))
    return tensor


@each_option
@each_shape
def test_a_step(shape, options):
    assert_updated(run(tensor_of(shape, options, [mx.float32] * 4), options), options)


@each_dtype
@each_shape
def test_a_step_of_each_storage(shape, dtype):
    options = OPTIONS["moment"]
    assert_updated(run(tensor_of(shape, options, [dtype] * 4), options), options)


@pytest.mark.parametrize("options", [{}, OPTIONS["moment"]], ids=["plain", "moment"])
@pytest.mark.parametrize("mix", range(3))
@each_way
def test_mixed_storages(shape, mix, layout, options):
    w, v, m = (DTYPES[(mix + k) % 3] for k in range(3))
    assert_updated(run(tensor_of(shape, options, [w, v, m, v], **layout), options), options)


@each_option
@each_dtype
@pytest.mark.parametrize("shape", [(), (1,), (3,), (129,), (CHUNK - 1,), (CHUNK,)], ids=str)
def test_a_tensor_of_one_chunk(shape, dtype, options):
    assert_updated(run(tensor_of(shape, options, [dtype] * 4, alone=True), options), options)


@each_dtype
@each_matrix
def test_a_transposed_gradient(shape, dtype):
    options = OPTIONS["moment"]
    assert_updated(run(tensor_of(shape, options, [dtype] * 4, transposed=True), options), options)


@each_shape
def test_operands_of_any_layout(shape):
    options = OPTIONS["moment"]
    storages = [mx.float32] * 4
    assert_updated(run(tensor_of(shape, options, storages, strided=True), options), options)


@pytest.mark.parametrize("shape", [(68, 264), (CHUNK + 5,)], ids=str)
def test_an_offset_that_no_vector_can_be_loaded_from(shape):
    options = OPTIONS["moment"]
    assert_updated(run(tensor_of(shape, options, [mx.bfloat16] * 4, lead=1), options), options)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(900, 20), (20, 900), (2, 300, 300)], ids=str)
def test_sums_of_several_threads(shape, transposed):
    layout = {"transposed": transposed, "split": 8}
    assert_updated(run(tensor_of(shape, {}, [mx.float32] * 4, **layout), {}), {})


@each_way
def test_the_gradients_are_scaled(shape, layout):
    options = OPTIONS["moment"]
    tensor = tensor_of(shape, options, [mx.float32] * 4, skip_nonfinite=True, **layout)
    assert_updated(run(tensor, options, scale=0.3), options, scale=0.3)


@each_way
def test_each_pass_takes_the_scalars_of_the_tensors_group(shape, layout):
    groups = [OPTIONS["moment"] | {"eps": (1e-4, 0.1), "decay_rate": -0.3}, OPTIONS["moment"]]
    group_uniforms = kernels.prepare_groups("Adafactor", [group_of(x) for x in groups], STEP)
    for group, options in enumerate(groups):
        tensor = tensor_of(shape, options, [mx.float32] * 4, group=group, **layout)
        tensor.step(group_uniforms)
        assert_updated(tensor, options)


@pytest.mark.parametrize("scale", [np.inf, np.nan])
@each_way
def test_a_step_whose_scale_is_not_finite_is_skipped(shape, layout, scale):
    options = OPTIONS["moment"]
    tensor = tensor_of(shape, options, [mx.bfloat16] * 4, skip_nonfinite=True, **layout)
    run(tensor, options, scale=scale)
    for name in tensor.out:
        assert same_bits(tensor.result(name), tensor.values[name])


@pytest.mark.parametrize("shape", [(3, 0), (0, 3), (2, 0, 5)], ids=str)
def test_a_tensor_of_nothing_keeps_its_means(shape):
    values = values_of(shape, False, [mx.float32] * 4)
    tensor = Tensor(values, dict.fromkeys(["row", "column"], mx.float32))
    plan, names = tensor.plan, ["row", "column"]
    scratch = np.zeros(plan.scratch_floats, np.float32)
    operands = tensor.given(*names), tensor.to(*names)
    plan.run("means", uniforms_of({}), scratch, plan.mean_groups, *operands)
    for name in names:
        assert same_bits(tensor.result(name), values[name])


def test_traced_hyperparameters():
    options = OPTIONS["moment"]
    tensor = run(tensor_of((33, 17), options, [mx.float32] * 4), options, traced=True)
    assert_updated(tensor, {name: float(np.float32(x)) for name, x in options.items()})


def test_a_mean_of_what_overflows_is_infinite():
    values = values_of((300, 600), False, [mx.float32] * 4)
    values["g"][7, 5] = 3e38
    tensor = Tensor(values, dict.fromkeys(["w", "row", "column"], mx.float32))
    tensor.step(uniforms_of({}))
    for name, place in ("row", 7), ("column", 5):
        means = wide(tensor.result(name))
        assert np.isposinf(means[place])
        assert np.isfinite(np.delete(means, place)).all()


def test_millions_of_parts_are_summed_without_losing_digits():
    plan = Plan((CHUNK,), factored=False)
    count = 3_000_001
    squares = np.repeat(np.array([0.1, 0.3], np.float32), count)
    plan.arguments["parts"], plan.arguments["size"] = count, 10**9
    plan.arguments["update_squares"], plan.arguments["rates"] = count, 2 * count
    scratch = np.concatenate([squares, np.zeros(2, np.float32)])
    options = {"weight_decay": 1.0, "clip_threshold": 1e-6}
    plan.run("rates", uniforms_of(options), scratch, 1, [], [])
    rms = np.sqrt(squares.astype(np.float64).reshape(2, -1).sum(axis=1) / 1e9)
    decay = 0.01 * rms[0]
    assert scratch[-1] == pytest.approx(decay, rel=4e-7)
    assert scratch[-2] == pytest.approx(decay / (rms[1] / 1e-6), rel=8e-7)


class Huge:
    """A matrix of more than 2^32 elements, of which the last 4 x 8 are not 0."""

    shape = (2**17 + 4, 2**15)

    def __init__(self, transposed):
        rows, columns = self.shape
        self.plan = Plan(self.shape, factored=True, transposed=transposed)
        row, column = np.arange(rows - 4, rows)[:, None], np.arange(columns - 8, columns)
        self.places = row * columns + column
        self.w, self.g, self.out = (Sparse(rows * columns).bits for _ in range(3))
        self.values = [normal(4, 8, seed=k, dtype=mx.bfloat16) for k in (1, 2)]
        w, g = (np.array(x.view(mx.uint16)) for x in self.values)
        self.w[self.places] = w
        self.g[column * rows + row if transposed else self.places] = g
        self.scratch = Sparse(2 * self.plan.scratch_floats).bits.view(np.float32)

    def part(self, name):
        return self.scratch[int(self.plan.arguments[name][0]) :]

    def run_last(self, kind, groups, given, to=()):
        given, to = ([(x, mx.bfloat16) for x in xs] for xs in (given, to))
        self.plan.run(kind, uniforms_of({}), self.scratch, groups, given, to, first=groups - 1)


@pytest.mark.parametrize("transposed", [False, True])
def test_squares_beyond_4_gibi_elements(transposed):
    huge = Huge(transposed)
    w, g = map(wide, huge.values)
    tiles, (rows, columns) = huge.plan.tiles, Huge.shape
    huge.run_last("squares", tiles, [huge.g, huge.w])
    if not transposed:  # else the tile has others of the parameter's elements
        assert huge.part("parameter_squares")[tiles - 1] == pytest.approx((w**2).sum(), rel=1e-6)
    sums = (g**2).sum(axis=0 if transposed else 1)
    last = huge.plan.across * (columns if transposed else rows)
    assert huge.part("line_sums")[last - sums.size : last] == pytest.approx(sums, rel=1e-6)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_matrix_beyond_4_gibi_elements(transposed):
    huge = Huge(transposed)
    w, g = map(wide, huge.values)
    plan, (rows, columns) = huge.plan, Huge.shape
    huge.part("row_means")[:rows] = 1.0
    huge.part("column_factors")[:columns] = 2.0
    huge.part("totals")[: plan.row_groups] = rows / plan.row_groups
    huge.run_last("update_squares", plan.tiles, [huge.g])
    squares = huge.part("update_squares")[plan.tiles - 1]
    assert squares == pytest.approx(4 * (g**2).sum(), rel=1e-5)

    huge.part("means")[0], huge.part("rates")[:2] = 1.0, (0.01, 0.0)
    kind, groups = (
        ("transposed_update", plan.transposed_tiles) if transposed else ("update", plan.tiles)
    )
    huge.run_last(kind, groups, [huge.g, huge.w], [huge.out])
    got = kernels.loaded(huge.out[huge.places], mx.bfloat16)
    expected = w - 0.02 * g
    assert np.all(np.abs(wide(got) - expected) <= 2.0**-8 * np.abs(expected))


def test_elements_beyond_4_gibi():
    size = 2**32 + 3 * CHUNK + 5
    plan = Plan((size,), factored=False)
    places = np.arange(size - 5, size)
    w, v, g, new_w, new_v = (Sparse(size).bits for _ in range(5))
    values = [normal(5, seed=k, dtype=mx.bfloat16) for k in range(3)]
    values[1] = mx.abs(values[1])
    for buffer, x in zip((w, v, g), values, strict=True):
        buffer[places] = np.array(x.view(mx.uint16))
    scratch = Sparse(2 * plan.scratch_floats).bits.view(np.float32)
    rates = int(plan.arguments["rates"][0])
    scratch[rates : rates + 2] = 0.01, 0.0
    given, results = ([(x, mx.bfloat16) for x in xs] for xs in ((g, w, v), (new_w, new_v)))
    plan.run(
        "element_update", uniforms_of({}), scratch, plan.tiles, given, results, first=plan.tiles - 1
    )
    w, v, g = map(wide, values)
    beta_2 = 1 - STEP**-0.8
    v = beta_2 * v + (1 - beta_2) * g**2
    for got, expected in ((new_v, v), (new_w, w - 0.01 * g / np.sqrt(v))):
        got = wide(kernels.loaded(got[places], mx.bfloat16))
        assert np.all(np.abs(got - expected) <= 2.0**-8 * np.abs(expected))
