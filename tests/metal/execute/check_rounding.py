"""The kernels that round stochastically on the CPU, against a step in float32 that is rounded."""

import kernels
import mlx.core as mx
import numpy as np
import pytest
from update import RULES, STEP, Name, Tensor, in_place, primitive, run, shape_for, uniforms_of

from cases import same_bits
from rounding import rounded_with

KEY = 0x9ABCDEF0
CASES = {primitive(case).name: case for case in RULES}
ALL = [
    pytest.param(CASES[rule], text, id=f"{rule}-{text}")
    for rule in ("AdamW", "SGD")
    for text in kernels.names(rule)
    if text.startswith("rounds_")
]


def tensor_of(case, text, shape):
    name = Name(text.partition("_")[2])
    tensor = Tensor(case, name, shape)
    name.text, tensor.rounding_key = text, KEY
    return tensor


@pytest.mark.parametrize("case, text", ALL)
def test_results_are_those_of_float32_rounded(case, text):
    name = Name(text.partition("_")[2])
    tensor = tensor_of(case, text, shape_for(name))
    wide = Tensor(case, in_place(case, mx.float32), tensor.shape)
    wide.buffers = [kernels.stored(x.astype(mx.float32)) for x in tensor.values]
    run(wide, uniforms_of(case))
    run(tensor, uniforms_of(case, scale=1.0))
    for field, (got, dtype) in enumerate(zip(tensor.out, tensor.name.results, strict=True)):
        expected = kernels.loaded(wide.out[field], mx.float32)
        if dtype == mx.bfloat16:
            expected = rounded_with(expected, KEY, STEP, field)
        assert same_bits(kernels.loaded(got, dtype), expected)


@pytest.mark.parametrize("case, text", [x for x in ALL if "if_finite" in x.id])
def test_a_skipped_step_rounds_nothing(case, text):
    tensor = tensor_of(case, text, (40, 37))
    run(tensor, uniforms_of(case, scale=np.inf))
    tensor.assert_kept()
