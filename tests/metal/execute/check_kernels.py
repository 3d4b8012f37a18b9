"""Every kernel of an update on the CPU, against the float64 references."""

import inspect
import re

import kernels
import mlx.core as mx
import numpy as np
import pytest
from kernels import CHUNK, TILE, Group, Sparse
from update import (
    CASES,
    LEARNING_RATE,
    RULES,
    Tensor,
    all_names,
    chunks,
    group_uniforms_of,
    in_place,
    packed,
    primitive,
    run,
    run_pack,
    shape_for,
    uniforms_of,
)

import mlx_opt
from cases import DTYPES, dtype_name, normal, wide
from mlx_opt import references

each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_rule = pytest.mark.parametrize("case", RULES, ids=str)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)


def each_kernel(wanted):
    """A parameter for each kernel that is wanted."""
    parameters = [
        pytest.param(case, name, id=f"{primitive(case).name}-{name.text}")
        for case, name in all_names(wanted)
    ]
    return pytest.mark.parametrize("case, name", parameters)


NAMES = {primitive(case).name for case in RULES} | {"Muon", "Adafactor", "Lamb", "Clipping"}
OF_ONE_HEADER = [
    {"SGD", "Momentum", "Nesterov"},
    {"AdamAMSGrad", "AdamW", "AdamWVariant", "CautiousAdamW"},
    {"CautiousLion", "Lion"},
    {"DAdaptAdam", "Prodigy"},
    {"MARS", "MARSLion"},
    {"AdamWScheduleFree", "GPAAdamW", "RAdamScheduleFree", "SGDScheduleFree"},
]


@pytest.mark.parametrize("rule", sorted(NAMES - {"Clipping"}))
def test_a_program_names_no_other_rule(rule):
    programs = [*(kernels.FOLDER / "programs").glob(f"*_{rule}_*.metal")]
    assert programs
    own = next((rules for rules in OF_ONE_HEADER if rule in rules), {rule})
    for program in programs:
        words = {*re.findall(r"\w+", program.read_text())}
        assert rule in words
        assert not words & (NAMES - own)


@pytest.mark.parametrize("size", [1, 3, 4, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 6])
@each_dtype
@each_case
def test_flat(case, dtype, size):
    tensor = Tensor(case, in_place(case, dtype), (size,))
    run(tensor, uniforms_of(case))
    tensor.assert_updated()


@each_dtype
@each_rule
def test_flat_at_an_offset_that_no_vector_can_be_loaded_from(case, dtype):
    tensor = Tensor(case, in_place(case, dtype), (CHUNK + 5,), lead=1)
    run_pack([tensor], uniforms_of(case), vectors=False)
    tensor.assert_updated()


@each_dtype
@each_rule
def test_a_pack_with_places_left_over(case, dtype):
    name = packed(primitive(case).name, dtype)
    for count in (2, name.capacity):
        sizes = ([7, CHUNK + 1, 1, 768, 2 * CHUNK] + [*range(3, 13)])[:count]
        tensors = [Tensor(case, name, (n,), seed=10 * k) for k, n in enumerate(sizes)]
        run_pack(tensors, uniforms_of(case))
        for tensor in tensors:
            tensor.assert_updated()


@pytest.mark.parametrize("shape", [(1, 33), (64, 32), (65, 31), (30, 100), (36, 44), (37, 44)])
@each_dtype
@each_rule
def test_transposed(case, dtype, shape):
    tensor = Tensor(case, in_place(case, dtype, "transposed"), shape)
    run(tensor, uniforms_of(case))
    tensor.assert_updated()


@pytest.mark.parametrize("way", ["strided", "strided_long"])
@each_dtype
@each_rule
def test_strided(case, dtype, way):
    tensor = Tensor(case, in_place(case, dtype, way), (17, 5, 61))
    run(tensor, uniforms_of(case))
    tensor.assert_updated()


@each_kernel(lambda name: not name.scaling and not name.in_place)
def test_mixed_storages_and_results_that_lie_apart(case, name):
    tensor = Tensor(case, name, shape_for(name))
    run(tensor, uniforms_of(case))
    tensor.assert_updated()


@each_kernel(lambda name: name.scaling)
def test_the_gradients_are_scaled(case, name):
    tensor = Tensor(case, name, shape_for(name))
    run(tensor, uniforms_of(case, scale=0.3, max_value=0.2))
    tensor.assert_updated(scale=0.3, max_value=0.2)


@pytest.mark.parametrize("scale", [np.inf, np.nan])
@each_kernel(lambda name: name.scaling == "if_finite")
def test_a_step_whose_scale_is_not_finite_is_skipped(case, name, scale):
    tensor = Tensor(case, name, shape_for(name))
    run(tensor, uniforms_of(case, scale=scale))
    tensor.assert_kept()


@each_case
def test_traced_hyperparameters(case):
    tensor = Tensor(case, in_place(case, mx.float32), (1000,))
    run(tensor, uniforms_of(case, traced=True))

    options = defaults(case.rule) | case.options
    tensor.assert_updated(case._replace(options={k: as_float32(x) for k, x in options.items()}))


def defaults(optimizer):
    """Of its hyperparameters that are no flags."""
    parameters = inspect.signature(getattr(mlx_opt, optimizer)).parameters.values()
    given = {x.name: x.default for x in parameters if x.name not in ("learning_rate", "groups")}
    return {name: x for name, x in given.items() if isinstance(x, float | list | tuple)}


def as_float32(x):
    if isinstance(x, list | tuple):
        return tuple(map(as_float32, x))
    return x if isinstance(x, (bool, str)) else float(np.float32(x))


def groups_of(case):
    """Cases of its rule with other hyperparameters, and learning rates of their own."""
    rule = primitive(case)
    cases = [x for x in CASES if primitive(x).name == rule.name and x.rule == case.rule]
    cases += [case] * (3 - len(cases))
    return cases, [LEARNING_RATE * 2.0**-k for k in range(len(cases))]


@each_rule
def test_the_tensors_of_a_pack_have_groups_of_their_own(case):
    cases, rates = groups_of(case)
    name = packed(primitive(case).name, mx.float32)
    order = [(2 * k + 1) % len(cases) for k in range(name.capacity)]
    tensors = [
        Tensor(cases[group], name, (CHUNK + 3,), seed=10 * k, learning_rate=rates[group])
        for k, group in enumerate(order)
    ]
    run_pack(tensors, group_uniforms_of(cases, rates), groups=order)
    for tensor in tensors:
        tensor.assert_updated()


@pytest.mark.parametrize("way", ["flat", "transposed", "strided", "strided_long"])
@each_rule
def test_each_way_takes_the_scalars_of_the_tensors_group(case, way):
    cases, rates = groups_of(case)
    group_uniforms = group_uniforms_of(cases, rates)
    for group, (own, rate) in enumerate(zip(cases, rates, strict=True)):
        name = in_place(own, mx.float32, way)
        tensor = Tensor(own, name, shape_for(name), learning_rate=rate)
        run(tensor, group_uniforms, group)
        tensor.assert_updated()


def test_a_rule_of_many_arrays_and_hyperparameters():
    hypers = [k / 20 for k in range(20)]
    groups = [Group(hypers[::-1], 0.5), Group(hypers, 0.01, traced=True)]
    group_uniforms = kernels.prepare_groups("Wide", groups, step=1)
    (name,) = (name for name in kernels.names("Wide") if name.startswith("flat"))
    storages = [mx.bfloat16, *[mx.float32] * 16]
    values = [normal(2 * CHUNK, seed=k).astype(dtype) for k, dtype in enumerate(storages)]
    buffers = [kernels.stored(x) for x in values]
    table = np.array([(2 * CHUNK, 0, 1, True, 0, 0)], kernels.TENSOR)
    kernels.run("Wide", name, dict(enumerate([group_uniforms, table, *buffers])), groups=2)

    w, *state, g = map(wide, values)
    for k, (x, bits) in enumerate(zip(state, buffers[1:], strict=False), start=1):
        x = hypers[k] * x + (1 - hypers[k]) * g
        w = w - 0.01 * hypers[19] * x
        assert np.allclose(kernels.loaded(bits, mx.float32), x, rtol=0, atol=1e-6)
    assert np.allclose(wide(kernels.loaded(buffers[0], mx.bfloat16)), w, rtol=2.0**-8, atol=1e-5)


@pytest.mark.parametrize("step", [1, 2, 10, 100, 1000, 100_000, 2**24 + 1])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 0.999, 0.99999])
def test_bias_correction_holds_at_any_step(beta, step):
    uniforms = kernels.prepare("AdamW", [beta, beta, 1e-8, 0.0, 1.0], 1.0, step)
    step_size, denominator_scale = uniforms[15:17]
    correction = 1 - np.float64(beta) ** step
    assert step_size == pytest.approx(1 / correction, rel=1e-6)
    assert denominator_scale == pytest.approx(1 / np.sqrt(correction), rel=1e-6)


HUGE = 2**32 + 3 * CHUNK + 5


def huge_operands(size, places, places_of_gradient):
    """SGD's operands with values at the places given."""
    w, g = (Sparse(size).bits for _ in range(2))
    values = [normal(places.size, seed=k, dtype=mx.bfloat16) for k in (1, 2)]
    w[places], g[places_of_gradient] = (np.array(x.view(mx.uint16)) for x in values)
    return values, w, g


def run_huge(way, arguments, w, g, end):
    uniforms = kernels.prepare("SGD", [0.0] * 4, LEARNING_RATE, 1)
    slots = dict(enumerate([uniforms, arguments, w, g]))
    kernels.run("SGD", f"{way}1_bf16_bf16_to_bf16at0", slots, end, first=end - 2)


def assert_huge_updated(values, updated, places):
    w, g = map(wide, values)
    expected, _ = references.sgd(w, g, {"v": 0}, 1, learning_rate=LEARNING_RATE)
    got = wide(kernels.loaded(updated[places], mx.bfloat16))
    assert np.all(np.abs(got - expected) <= 2.0**-8 * np.abs(expected))


def test_flat_beyond_4_gibi_elements():
    places = np.arange(HUGE - 5 - CHUNK, HUGE)
    values, w, g = huge_operands(HUGE, places, places)
    run_huge("flat", np.array([(HUGE, 0, 0, True, 0, 0)], kernels.TENSOR), w, g, chunks(HUGE))
    assert_huge_updated(values, w, places)


def test_strided_beyond_4_gibi_elements():
    places = np.arange(HUGE - 5, HUGE)
    values, w, g = huge_operands(HUGE, places, HUGE - 1 - places)
    layout = np.zeros(1, kernels.strided(2))
    layout["size"], layout["dims"], layout["shape"][0, 0] = HUGE, 1, HUGE
    layout["strides"][0, :2, 0] = 1, -1
    run_huge("strided_long", layout, w, g[HUGE - 1 :], chunks(HUGE))
    assert_huge_updated(values, w, places)


def test_transposed_beyond_4_gibi_elements():
    rows, columns = 2**17 + 4, 2**15
    row, column = rows - 2, columns - 3
    place, place_of_gradient = np.array([row * columns + column]), np.array([column * rows + row])
    values, w, g = huge_operands(rows * columns, place, place_of_gradient)
    matrix = np.zeros(1, kernels.MATRIX)
    matrix[["rows", *kernels.MATRIX_COUNTS]] = (rows, columns, 0, 1, 1, 0)
    run_huge("transposed", matrix, w, g, -(-rows // TILE) * (columns // TILE))
    assert_huge_updated(values, w, place)
