"""The kernels of master weights on the CPU, against a step of the weights in float32."""

import kernels
import mlx.core as mx
import numpy as np
import pytest
from update import LEARNING_RATE, RULES, STEP, Name, Tensor, primitive, run, shape_for, uniforms_of

from cases import assert_exact, exact_step, normal, same_bits, wide

CASES = [case for case in RULES if primitive(case).name in ("AdamW", "SGD")]
ALL = [
    pytest.param(case, name, id=f"{primitive(case).name}-{name}")
    for case in CASES
    for name in kernels.names(primitive(case).name)
    if name.startswith("masters")
]
each_kernel = pytest.mark.parametrize("case, text", ALL)


class Masters(Tensor):
    """A tensor whose last slot is its master weight. Every third master is unset, and every third
    is not that of the parameter."""

    def __init__(self, case, text, shape):
        name = Name(text.removeprefix("masters_"))
        count = len(primitive(case).state) + 3
        values = [normal(*shape, seed=k) for k in range(count)]
        values[1:-2] = [mx.abs(x) for x in values[1:-2]]
        third = mx.arange(values[0].size).reshape(shape) % 3
        rounded = values[0].astype(name.storages[0])
        near = rounded.astype(mx.float32) * (1 + 2**-14)
        self.master = mx.where(third == 0, float("nan"), mx.where(third == 1, near + 1, near))
        values[-2] = self.master
        self.weights = mx.where(third == 2, near, rounded.astype(mx.float32))
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
        slots = zip(self.names[1:-1], map(wide, self.values[1:-2]), strict=True)
        g = wide(self.values[-1])
        expected = exact_step(self.case, wide(self.weights), g, dict(slots), STEP, LEARNING_RATE)
        results = self.results()
        for name, (value, *rest) in expected.items():
            assert_exact(results["master" if name == "w" else name], value, *rest)
        assert same_bits(results["w"], results["master"].astype(self.name.results[0]))


@each_kernel
def test_the_master_is_updated_and_the_parameter_its_rounding(case, text):
    tensor = Masters(case, text, shape_for(Name(text.removeprefix("masters_"))))
    run(tensor, uniforms_of(case, scale=1.0))
    tensor.assert_updated()


@pytest.mark.parametrize("case, text", [x for x in ALL if "if_finite" in x.id])
def test_a_skipped_step_keeps_both(case, text):
    tensor = Masters(case, text, (40, 37))
    run(tensor, uniforms_of(case, scale=np.inf))
    results = tensor.results()
    assert same_bits(results["w"], tensor.values[0])
    assert same_bits(results["master"], tensor.master)
