"""The kernels of master weights on the CPU, against a step of the weights in float32."""

import kernels
import mlx.core as mx
import numpy as np
import pytest
from update import LEARNING_RATE, RULES, STEP, Name, Tensor, primitive, run, shape_for, uniforms_of

from cases import assert_exact, exact_step, normal, same_bits, wide
from mlx_opt.master_weights import split, weight_of

PREFIXES = {"masters": "float32", "remainders": "remainder"}
CASES = {primitive(case).name: case for case in RULES}
ALL = [
    pytest.param(CASES[rule], text, id=f"{rule}-{text}")
    for rule in ("AdamW", "SGD")
    for text in kernels.names(rule)
    if text.startswith(tuple(PREFIXES))
]
each_kernel = pytest.mark.parametrize("case, text", ALL)


def name_of(text):
    return Name(text.partition("_")[2])


class Masters(Tensor):
    """A tensor whose last slot is its master weight or remainder. Every third master is unset, and
    every third is not that of the parameter; remainders are any."""

    def __init__(self, case, text, shape):
        name = name_of(text)
        count = len(primitive(case).state) + 3
        values = [normal(*shape, seed=k) for k in range(count)]
        values[1:-2] = [mx.abs(x) for x in values[1:-2]]
        third = mx.arange(values[0].size).reshape(shape) % 3
        near = values[0].astype(name.storages[0]).astype(mx.float32) * (1 + 2**-14)
        master = mx.where(third == 0, float("nan"), mx.where(third == 1, near + 1, near))
        if name.storages[-2] == mx.uint16:
            master = mx.random.randint(0, 2**16, shape, key=mx.random.key(1))
        values[-2] = master
        self.kind = PREFIXES[text.partition("_")[0]]
        self.case, self.name, self.learning_rate = case, name, LEARNING_RATE
        self.name.text = text
        self.names = ["w", *primitive(case).state, "master"]
        self.values = [x.astype(dtype) for x, dtype in zip(values, name.storages, strict=True)]
        self.buffers = [kernels.stored(x) for x in self.values]
        self.size, self.shape = values[0].size, shape
        self.own = [
            kernels.empty(self.size, dtype) if written is None else None
            for dtype, written in zip(name.results, name.written, strict=True)
        ]

    def results(self):
        pairs = zip(self.names, self.out, self.name.results, strict=True)
        return {name: kernels.loaded(x, dtype).reshape(self.shape) for name, x, dtype in pairs}

    def assert_updated(self):
        before = weight_of(self.values[0], self.values[-2])
        state = dict.fromkeys(self.case.slots, np.zeros(self.shape))
        state |= zip(self.names[1:-1], map(wide, self.values[1:-2]), strict=True)
        g = wide(self.values[-1])
        expected = exact_step(self.case, wide(before), g, state, STEP, LEARNING_RATE)
        results = self.results()
        weight = weight_of(results["w"], results["master"])
        for name in self.names[:-1]:
            assert_exact(weight if name == "w" else results[name], *expected[name])
        parameter, master = split(weight, self.kind, self.name.results[0])
        assert same_bits(results["w"], parameter)
        assert same_bits(results["master"], master)


@each_kernel
def test_the_weight_is_updated_and_the_parameter_its_rounding(case, text):
    tensor = Masters(case, text, shape_for(name_of(text)))
    run(tensor, uniforms_of(case, scale=1.0))
    tensor.assert_updated()


@pytest.mark.parametrize("case, text", [x for x in ALL if "if_finite" in x.id])
def test_a_skipped_step_keeps_both(case, text):
    tensor = Masters(case, text, (40, 37))
    run(tensor, uniforms_of(case, scale=np.inf))
    results = tensor.results()
    assert same_bits(results["w"], tensor.values[0])
    assert same_bits(results["master"], tensor.values[-2])


def test_every_bfloat16_with_some_remainders():
    (text,) = (
        x
        for x in kernels.names("SGD")
        if x.startswith("remainders_flat1_") and "scaled" not in x and "at0" in x
    )
    for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        tensor = Masters(CASES["SGD"], text, (2**16,))
        tensor.buffers[0][:] = np.arange(2**16)
        tensor.buffers[1][:] = low
        tensor.buffers[2][:] = 0
        before = weight_of(
            kernels.loaded(tensor.buffers[0].copy(), mx.bfloat16), mx.full(2**16, low, mx.uint16)
        )
        run(tensor, kernels.prepare("SGD", [0.0] * 4, 0.0, STEP))
        after = tensor.results()
        moved = np.array(before.view(mx.uint32)) == 0x80000000  # -0 minus 0 may be 0
        parameter, remainder = split(before, "remainder", mx.bfloat16)
        for got, expected in ((after["w"], parameter), (after["master"], remainder)):
            same = np.array(got.view(mx.uint16)) == np.array(expected.view(mx.uint16))
            assert np.all(same | moved)
