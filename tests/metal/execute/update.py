"""A step of a rule over tensors, as the host runs it."""

from typing import NamedTuple

import kernels
import mlx.core as mx
import numpy as np
from kernels import CHUNK, OPERANDS_SLOT, TILE, VECTOR_WIDTH, Group

from cases import CASES as ALL_CASES
from cases import RULES as ALL_RULES
from cases import SUMMING, assert_exact, exact_step, normal, same_bits, wide
from mlx_opt.forms import forms_of

LEARNING_RATE, STEP = 0.01, 3
KINDS = ("coupled", "decoupled", "independent", "corrected")
NO_CHUNK = 2**32 - 1


class Primitive(NamedTuple):
    name: str
    hypers: list
    state: list


def primitive(case):
    """The rule that serves a case, its hyperparameters and its state."""
    optimizer = case.ours(LEARNING_RATE)
    forms, fixed = forms_of(optimizer._rule), optimizer._fixed
    values = {x: fixed[x] if x in fixed else getattr(optimizer, x) for x in forms.attributes}
    values |= case.kept_after(STEP, LEARNING_RATE)
    form = next(form for form in forms.forms if not form.conditions or form.holds(values))
    _, hypers = form.settle(values)
    hypers = [KINDS.index(x) if isinstance(x, str) else x for x in hypers]
    return Primitive(form.rule, hypers, [slot.name for slot in form.slots if not slot.idle])


def is_elementwise(case):
    """False for a rule of two passes."""
    return "rates" not in kernels.names(primitive(case).name)


OF_SUMS = {case.rule: case for case in SUMMING}
CASES = [*filter(is_elementwise, ALL_CASES), *OF_SUMS.values()]
RULES = [*filter(is_elementwise, ALL_RULES), *OF_SUMS.values()]


def chunks(size):
    return -(-size // CHUNK)


class Name:
    """The parts of a kernel's name. `written`: for each result the operand that it overwrites."""

    def __init__(self, name):
        self.text = name
        words, _, scaling = name.partition("_scaled_")
        way, _, storages = words.replace("strided_long", "strided-long").partition("_")
        before, _, after = storages.partition("_to")
        self.scaling = scaling or None
        self.way = way.rstrip("0123456789").replace("-", "_")
        self.capacity = int(way[len(self.way) :])
        self.storages = [kernels.LONG[x] for x in before.split("_")]
        results = [x.partition("at") for x in after.split("_") if x]
        self.results = [kernels.LONG[x] for x, _, _ in results]
        self.written = [int(place) if place else None for _, _, place in results]

    @property
    def mixed(self):
        return len({*self.storages, *self.results}) > 1

    @property
    def in_place(self):
        return self.written == [*range(len(self.results))]


def names(rule):
    """The names of a rule's update kernels."""
    others = ("prepare", "masters", "remainders", "rounds", "ema", "codes")
    return [Name(name) for name in kernels.names(rule) if not name.startswith(others)]


def all_names(wanted):
    """A case of its rule and the name for each kernel that is wanted."""
    cases = {primitive(case).name: case for case in RULES}
    return [(case, name) for rule, case in cases.items() for name in names(rule) if wanted(name)]


def in_place(case, dtype, way="flat", capacity=1):
    """The kernel whose operands are all of a dtype, and overwritten."""
    short, fields = kernels.SHORT[dtype], len(primitive(case).state) + 1
    words = [f"{way}{capacity}", *[short] * (fields + 1), "to"]
    return Name("_".join([*words, *(f"{short}at{k}" for k in range(fields))]))


def packed(rule, dtype):
    """The kernel of the most tensors whose operands are all of a dtype, and overwritten."""
    of_dtype = [name for name in names(rule) if name.in_place and {*name.storages} == {dtype}]
    return max(of_dtype, key=lambda name: name.capacity)


class Tensor:
    """Operands of a step, the expected results, and the kernel's buffers."""

    rounding_key = 0

    def __init__(self, case, name, shape, seed=1, lead=0, learning_rate=LEARNING_RATE):
        self.case, self.name, self.learning_rate = case, name, learning_rate
        self.names = ["w", *primitive(case).state]
        values = [normal(*shape, seed=seed + k) for k in range(len(self.names) + 1)]
        values[1:-1] = [mx.abs(x) for x in values[1:-1]]
        for slot in map(self.names.index, case.unset):  # some elements have no value yet
            values[slot] = mx.where(values[slot] > 1, float("nan"), values[slot])
        self.values = [x.astype(dtype) for x, dtype in zip(values, name.storages, strict=True)]
        self.buffers = [kernels.stored(x, lead) for x in self.values]
        self.size, self.shape = values[0].size, shape
        self.own = [
            kernels.empty(lead + self.size, dtype)[lead:] if written is None else None
            for dtype, written in zip(name.results, name.written, strict=True)
        ]

    @property
    def out(self):
        pairs = zip(self.own, self.name.written, strict=True)
        return [self.buffers[written] if own is None else own for own, written in pairs]

    def slots(self, first=OPERANDS_SLOT):
        own = [x for x in self.own if x is not None]
        return dict(enumerate(self.buffers + own, start=first))

    def assert_updated(self, case=None, scale=1.0, max_value=np.inf):
        w, *before, g = [wide(x) for x in self.values]
        g = np.float64(np.float32(scale) * np.float32(g))
        g = np.clip(g, -np.float32(max_value), np.float32(max_value))
        state = dict.fromkeys(self.case.slots, np.zeros(self.shape))
        state |= dict(zip(self.names[1:], before, strict=True))
        own = case or self.case
        kept = own.kept_after(STEP, self.learning_rate) if own.rule in OF_SUMS else None
        expected = exact_step(own, w, g, state, STEP, self.learning_rate, kept=kept)
        for name, bits, dtype in zip(self.names, self.out, self.name.results, strict=True):
            assert_exact(kernels.loaded(bits, dtype).reshape(self.shape), *expected[name])

    def assert_kept(self):
        for x, bits, dtype in zip(self.values, self.out, self.name.results, strict=False):
            assert same_bits(kernels.loaded(bits, dtype), x.astype(dtype).reshape(-1))


def uniforms_of(case, traced=False, scale=None, max_value=None):
    rule = primitive(case)
    return kernels.prepare(rule.name, rule.hypers, LEARNING_RATE, STEP, traced, scale, max_value)


def group_uniforms_of(cases, learning_rates, traced=False):
    """The uniforms of groups, each with the hyperparameters of a case; all of one rule."""
    rules = [primitive(case) for case in cases]
    # The learning rate times its factor is exact.
    groups = [
        Group(r.hypers, 4 * x, traced, rate_scale=0.25)
        for r, x in zip(rules, learning_rates, strict=True)
    ]
    return kernels.prepare_groups(rules[0].name, groups, STEP)


def run_pack(tensors, group_uniforms, vectors=True, groups=(0,)):
    """One dispatch over several tensors; unused entries repeat the last, as the host does it."""
    name = tensors[0].name
    table = np.zeros(name.capacity, kernels.TENSOR)
    buffers, count, width = {0: group_uniforms, 1: table}, 0, len(tensors[0].slots())
    for k in range(name.capacity):
        tensor = tensors[min(k, len(tensors) - 1)]
        buffers |= tensor.slots(OPERANDS_SLOT + k * width)
        table[k] = (0, NO_CHUNK, 0, 0, 0, 0)
        if k < len(tensors):
            group = groups[k % len(groups)]
            table[k] = (tensor.size, count, group, vectors, tensor.rounding_key, 0)
            count += chunks(tensor.size)
    kernels.run(primitive(tensors[0].case).name, name.text, buffers, count)


def run_transposed(tensor, group_uniforms, group=0):
    rows, columns = tensor.shape
    matrix = np.zeros(1, kernels.MATRIX)
    matrix[["rows", *kernels.MATRIX_COUNTS]] = (
        rows, columns, group, columns % VECTOR_WIDTH == 0, rows % VECTOR_WIDTH == 0,
        tensor.rounding_key)  # fmt: skip
    gradient = tensor.buffers[-1].reshape(tensor.shape)
    tensor.buffers[-1] = np.array(gradient.T, order="C").reshape(-1)
    groups = -(-rows // TILE) * -(-columns // TILE)
    buffers = {0: group_uniforms, 1: matrix} | tensor.slots()
    kernels.run(primitive(tensor.case).name, tensor.name.text, buffers, groups)


def run_strided(tensor, group_uniforms, group=0):
    """Every operand but those overwritten and the parameter has its dimensions in another order."""
    layout = np.zeros(1, kernels.strided(len(tensor.buffers)))
    layout["size"], layout["group"], layout["dims"] = tensor.size, group, 3
    layout["rounding_key"] = tensor.rounding_key
    layout["shape"][0, :3] = tensor.shape
    for k, buffer in enumerate(tensor.buffers):
        order = (0, 1, 2) if k == 0 or k in tensor.name.written else (2, 0, 1)
        x = np.array(buffer.reshape(tensor.shape).transpose(order), order="C")
        places = x.transpose(np.argsort(order))
        layout["strides"][0, k, :3] = np.array(places.strides) // x.itemsize
        tensor.buffers[k] = x.reshape(-1)
    buffers = {0: group_uniforms, 1: layout} | tensor.slots()
    kernels.run(primitive(tensor.case).name, tensor.name.text, buffers, chunks(tensor.size))


def run(tensor, group_uniforms, group=0):
    """Run the tensor's kernel on this tensor alone."""
    if tensor.name.way == "flat":
        run_pack([tensor], group_uniforms, groups=[group])
    elif tensor.name.way == "transposed":
        run_transposed(tensor, group_uniforms, group)
    else:
        run_strided(tensor, group_uniforms, group)


def shape_for(name):
    return (17, 5, 61) if name.way.startswith("strided") else (40, 37)
