"""The kernels of averages of the weights on the CPU, against the average of the weights that they
give."""

import kernels
import mlx.core as mx
import numpy as np
import pytest
from update import LEARNING_RATE, RULES, STEP, Name, Tensor, primitive, run, shape_for

from cases import assert_exact, exact_step, normal, same_bits, wide
from mlx_opt.master_weights import weight_of

CASES = {primitive(case).name: case for case in RULES}
ALL = [
    pytest.param(CASES[rule], text, id=f"{rule}-{text}")
    for rule in ("AdamW", "SGD")
    for text in kernels.names(rule)
    if text.startswith("ema_") and not text.startswith("ema_prepare")
]
RATE = 0.125


def parts_of(text):
    """How master weights are kept, if they are, and the parts of the rest of a kernel's name."""
    first, _, rest = text.removeprefix("ema_").partition("_")
    has_masters = first in ("masters", "remainders")
    return (first, Name(rest)) if has_masters else (None, Name(text.removeprefix("ema_")))


class Averaged(Tensor):
    """A tensor whose last slot is an average, of which every third element is unset."""

    def __init__(self, case, text, shape):
        self.masters, name = parts_of(text)
        self.names = ["w", *primitive(case).state, *(["master"] if self.masters else []), "ema"]
        values = [normal(*shape, seed=k) for k in range(len(self.names) + 1)]
        values[1:-2] = [mx.abs(x) for x in values[1:-2]]
        if self.masters == "masters":
            values[-3] = values[0].astype(name.storages[0]).astype(mx.float32) * (1 + 2**-14)
        elif self.masters:
            values[-3] = mx.random.randint(0, 2**16, shape, key=mx.random.key(1))
        third = mx.arange(values[0].size).reshape(shape) % 3
        values[-2] = mx.where(third == 0, float("nan"), values[-2])
        self.case, self.name, self.learning_rate = case, name, LEARNING_RATE
        self.name.text = text
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

    def weights_of(self, arrays):
        if self.masters is None:
            return arrays["w"].astype(mx.float32)
        return weight_of(arrays["w"], arrays["master"])

    def assert_updated(self):
        before = dict(zip(self.names, self.values, strict=False))
        results = self.results()
        slots = primitive(self.case).state
        state = dict.fromkeys(self.case.slots, np.zeros(self.shape))
        state |= {slot: wide(before[slot]) for slot in slots}
        w, g = wide(self.weights_of(before)), wide(self.values[-1])
        expected = exact_step(self.case, w, g, state, STEP, LEARNING_RATE)
        weights = self.weights_of(results)
        assert_exact(results["w"] if self.masters is None else weights, *expected["w"])
        for slot in slots:
            assert_exact(results[slot], *expected[slot])

    def assert_averaged(self, rate):
        results = self.results()
        e, weights = np.array(self.values[-2]), np.array(self.weights_of(results))
        average = e + np.float32(rate) * (weights - e)
        average = np.where(np.isnan(e) | (rate == 1), weights, average)
        np.testing.assert_array_equal(np.array(results["ema"]), average)


def uniforms_of(case, rate, traced=False, scale=None):
    rule = primitive(case)
    hypers = [*rule.hypers, rate]
    return kernels.prepare_groups(
        rule.name,
        [kernels.Group(hypers, LEARNING_RATE, traced)],
        STEP,
        scale,
        stage="ema_",
    )


@pytest.mark.parametrize("case, text", ALL)
def test_the_average_is_that_of_the_new_weights(case, text):
    tensor = Averaged(case, text, shape_for(parts_of(text)[1]))
    run(tensor, uniforms_of(case, RATE, scale=1.0))
    tensor.assert_updated()
    tensor.assert_averaged(RATE)


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("rate", [0.0, 1e-4, 1.0])
def test_rates(rate, traced):
    text = next(x.values[1] for x in ALL if x.id.startswith("AdamW-ema_flat1_f32"))
    tensor = Averaged(CASES["AdamW"], text, (40, 37))
    run(tensor, uniforms_of(CASES["AdamW"], rate, traced))
    tensor.assert_averaged(rate)


@pytest.mark.parametrize("case, text", [x for x in ALL if "if_finite" in x.id])
def test_a_skipped_step_keeps_it(case, text):
    tensor = Averaged(case, text, (40, 37))
    run(tensor, uniforms_of(case, RATE, scale=np.inf))
    for name, x in tensor.results().items():
        assert same_bits(x, tensor.values[tensor.names.index(name)])
