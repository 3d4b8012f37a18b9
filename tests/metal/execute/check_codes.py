"""The kernels of states in codes of 8 bits on the CPU: their bits are those of the CPU's own."""

import kernels
import mlx.core as mx
import numpy as np
import pytest
from kernels import CHUNK
from update import LEARNING_RATE, RULES, STEP, Name, Tensor, primitive, run_pack, uniforms_of

import coding
import mlx_opt
from cases import normal

PREFIX = "codes_"
KINDS = {"remainders_": {"master_weights": "remainder"}, "rounds_": {"stochastic_rounding": True}}
CASES = {primitive(case).name: case for case in RULES}
ALL = [
    pytest.param(CASES[rule], text, id=f"{rule}-{text}")
    for rule in ("AdamW", "Lion")
    for text in kernels.names(rule)
    if text.startswith(PREFIX)
]
each_kernel = pytest.mark.parametrize("case, text", ALL)


def kind_of(text):
    return next((kind for kind in KINDS if text.startswith(PREFIX + kind)), "")


class Coded(Tensor):
    """A tensor with slots of codes, and what the CPU makes of it."""

    def __init__(self, case, text, shape, skips=False):
        kind = kind_of(text)
        self.case, self.name = case, Name(text.removeprefix(PREFIX + kind))
        self.name.text = text
        self.slot_names = primitive(case).state
        self.scales = len(self.slot_names)
        dtype = self.name.storages[0]
        w, g = (normal(*shape, seed=seed, dtype=dtype) for seed in (1, 2))
        optimizer = getattr(mlx_opt, case.rule)(
            LEARNING_RATE, **case.options, state_dtype="int8", **KINDS.get(kind, {})
        )
        optimizer.init({"w": w})
        state = optimizer.state["w"]
        for seed, slot in enumerate(self.slot_names):
            x = np.array(normal(*shape, seed=3 + seed)) ** (1 if slot == "m" else 2)
            made = coding.encode(x, np.int8 if slot == "m" else np.uint8)
            state[slot], state[f"{slot}_scale"] = map(mx.array, made)
        self.fields = ["w", *self.slot_names, *(["remainder"] if "remainder" in state else [])]
        self.order = [*self.fields, *(f"{slot}_scale" for slot in self.slot_names)]
        self.before = {"w": w, **{name: mx.array(state[name]) for name in self.order[1:]}}
        self.buffers = [bits_of(x) for x in (*self.before.values(), g)]
        self.size, self.shape = w.size, shape
        self.own = [
            np.zeros_like(buffer) if written is None else None
            for buffer, written in zip(self.buffers, self.name.written, strict=False)
        ]
        self.rounding_key = 0
        if kind == "rounds_":
            from rounding import tensor_key

            self.rounding_key = tensor_key(0, "w")
        optimizer.state["step"] = mx.array(STEP - 1, mx.uint64)
        expected = optimizer.apply_gradients({"w": g}, {"w": w})
        after = {"w": expected["w"], **optimizer.state["w"]}
        self.expected = self.before if skips else {name: after[name] for name in self.order}

    def assert_as_expected(self):
        for name, got in zip(self.order, self.out, strict=True):
            assert np.array_equal(got, bits_of(self.expected[name])), name


def bits_of(x):
    """The bits of an array, in a buffer of exactly its size."""
    flat = mx.contiguous(x).reshape(-1)
    return np.array(flat.view(mx.uint16) if x.dtype == mx.bfloat16 else flat)


def run_strided(tensor, group_uniforms):
    """The gradient has its dimensions in another order."""
    fields = len(tensor.fields)
    layout = np.zeros(1, kernels.strided(fields + 1))
    layout["size"], layout["dims"] = tensor.size, len(tensor.shape)
    layout["rounding_key"] = tensor.rounding_key
    layout["shape"][0, : len(tensor.shape)] = tensor.shape
    gradient = np.array(tensor.buffers[-1].reshape(tensor.shape).T, order="C")
    tensor.buffers[-1] = gradient.reshape(-1)
    contiguous = np.empty(tensor.shape, np.uint8)
    for k in range(fields):
        layout["strides"][0, k, : len(tensor.shape)] = contiguous.strides
    layout["strides"][0, fields, : len(tensor.shape)] = (
        np.array(gradient.T.strides) // gradient.itemsize
    )
    buffers = {0: group_uniforms, 1: layout} | tensor.slots()
    rule = primitive(tensor.case).name
    kernels.run(rule, tensor.name.text, buffers, -(-tensor.size // CHUNK))


@each_kernel
def test_codes_scales_and_parameters_are_those_of_the_cpu(case, text):
    for shape in ((64, 130), (4097,), (2 * CHUNK,)):
        tensor = Coded(case, text, shape)
        if tensor.name.way == "flat":
            run_pack([tensor], uniforms_of(case))
        else:
            run_strided(tensor, uniforms_of(case))
        tensor.assert_as_expected()


def test_several_tensors_in_a_dispatch():
    text = next(text for _, text in map(values_of, ALL) if "flat" in text and "flat1_" not in text)
    case = next(case for case, other in map(values_of, ALL) if other == text)
    tensors = [Coded(case, text, (size,)) for size in (4097, 5000)]
    run_pack(tensors, uniforms_of(case), vectors=False)
    for tensor in tensors:
        tensor.assert_as_expected()


def values_of(parameter):
    return parameter.values


@pytest.mark.parametrize("case, text", [x for x in ALL if "if_finite" in x.values[1]])
def test_a_skipped_step_changes_nothing(case, text):
    tensor = Coded(case, text, (4097,), skips=True)
    run_pack([tensor], uniforms_of(case, scale=np.inf))
    tensor.assert_as_expected()
