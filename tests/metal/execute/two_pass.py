"""A step of a rule of two passes over tensors, as the host runs it."""

import kernels
import mlx.core as mx
import numpy as np
from kernels import TILE, VECTOR_WIDTH
from update import NO_CHUNK, Name, chunks

from cases import assert_exact, normal, same_bits, wide
from mlx_opt import references

RULE, SUMS, RATES = "Lamb", 2, 1
SUMS_SLOT, RATES_SLOT, NEW_RATES_SLOT, OPERANDS_SLOT = 2, 2, 3, 3
LEARNING_RATE, STEP = 0.01, 3
HYPERS = (0.9, 0.999, 1e-6, 0.1)

# As in two_pass_tables.h.
SHARE = np.dtype([("first", "u4"), ("count", "u4"), ("group", "u4")])


def names(kind):
    """The names of the kernels of a pass."""
    found = [name.partition("_") for name in kernels.names(RULE) if name.startswith(kind)]
    return [Name(rest) for _, _, rest in found]


class Kernels:
    """The kernels of a step's two passes."""

    def __init__(self, state, parameter):
        self.state, self.parameter = state, parameter
        self.way, self.capacity, self.scaling = state.way, state.capacity, state.scaling

    def __str__(self):
        return f"{self.state.text}-{self.parameter.text}"


def fit(state, parameter):
    """True if a step may have these passes."""
    scaling = None if state.scaling == "always" else state.scaling  # there is no gradient
    return (
        parameter.way in ("flat", state.way)
        and parameter.capacity == state.capacity
        and parameter.scaling == scaling
        and parameter.storages == [state.storages[0], *state.results]
    )


def all_kernels(wanted=lambda kernels: True):
    """Every two passes that fit and are wanted."""
    parameters = names("parameter")
    pairs = [Kernels(m, p) for m in names("state") for p in parameters if fit(m, p)]
    return [pair for pair in pairs if wanted(pair)]


def in_place(dtype, way="flat", pack=False):
    """The kernels whose operands are all of a dtype, and overwritten; of one tensor or the most."""
    found = all_kernels(
        lambda k: (
            {*k.state.storages, *k.parameter.results} == {dtype}
            and (k.way, k.scaling) == (way, None)
            and (k.state.written, k.parameter.written) == ([1, 2], [0])
        )
    )
    capacities = sorted(found, key=lambda k: k.capacity)
    return capacities[-1 if pack else 0]


def direction(w, m, v, hypers):
    """The direction of the update, in float64."""
    beta1, beta2, eps, decay = hypers
    moment = m / (1 - np.float64(beta1) ** STEP)
    return moment / (np.sqrt(v / (1 - np.float64(beta2) ** STEP)) + eps) + decay * w


def norm(x):
    return np.sqrt(np.sum(np.square(x)))


class Tensor:
    """Operands of a step, the expected results, and the kernels' buffers."""

    def __init__(self, names, shape, seed=1, lead=0, scale=1.0, group=0):
        self.names, self.shape, self.group, self.lead = names, shape, group, lead
        values = [normal(*shape, seed=seed + k) for k in range(4)]
        values = [scale * values[0], values[1], mx.abs(values[2]) + 0.01, values[3]]
        dtypes = names.state.storages
        self.values = [x.astype(dtype) for x, dtype in zip(values, dtypes, strict=True)]
        self.buffers = [kernels.stored(x, lead) for x in self.values]
        self.size = values[0].size
        rows = np.array(np.empty(shape, np.uint8).strides)
        self.strides = [rows] * 4
        self.state = self.places(names.state, self.buffers)
        (self.w,) = self.places(names.parameter, self.buffers[:1])

    def places(self, name, buffers):
        """The buffers of a kernel's results."""
        return [
            self.empty(dtype) if written is None else buffers[written]
            for dtype, written in zip(name.results, name.written, strict=True)
        ]

    def empty(self, dtype):
        return kernels.empty(self.lead + self.size, dtype)[self.lead :]

    @property
    def groups(self):
        """Threadgroups of the first pass."""
        if self.names.way != "transposed":
            return chunks(self.size)
        rows, columns = self.shape
        return -(-rows // TILE) * -(-columns // TILE)

    def slots(self, name, read, written, first):
        apart = [x for x, place in zip(written, name.written, strict=True) if place is None]
        return dict(enumerate(read + apart, start=first))

    def state_slots(self, first=OPERANDS_SLOT):
        return self.slots(self.names.state, self.buffers, self.state, first)

    def parameter_slots(self, first=OPERANDS_SLOT):
        return self.slots(self.names.parameter, [self.buffers[0], *self.state], [self.w], first)

    def turn(self):
        """Make the gradient's columns contiguous."""
        self.buffers[3] = np.array(self.buffers[3].reshape(self.shape).T, order="C").reshape(-1)

    def scatter(self):
        """Give a different layout to the operands that no result overwrites."""
        kept = {*self.names.state.written}
        if self.names.parameter.way == "flat":
            kept.add(0)
        for k in {0, 1, 2, 3} - kept:
            x = np.array(self.buffers[k].reshape(self.shape).transpose(2, 0, 1), order="C")
            self.buffers[k] = x.reshape(-1)
            self.strides[k] = np.array(x.transpose(1, 2, 0).strides) // x.itemsize

    def results(self):
        """The new parameter and state."""
        dtypes = [*self.names.parameter.results, *self.names.state.results]
        pairs = zip([self.w, *self.state], dtypes, strict=True)
        return [kernels.loaded(bits, dtype).reshape(self.shape) for bits, dtype in pairs]

    def assert_updated(self, hypers=HYPERS, learning_rate=LEARNING_RATE, scale=1.0):
        """The sums and the second pass use the state as stored."""
        w, m, v, g = map(wide, self.values)
        g = np.float64(np.float32(scale) * np.float32(g))
        beta1, beta2, eps, decay = hypers
        options = {"betas": (beta1, beta2), "eps": eps, "weight_decay": decay}
        _, state = references.REFERENCES[RULE](
            w, g, {"m": m, "v": v}, STEP, learning_rate=learning_rate, **options
        )
        new_w, *new_state = self.results()
        terms = [np.abs(beta1 * m) + np.abs(1 - beta1) * np.abs(g), state["v"]]
        for got, x, size in zip(new_state, state.values(), terms, strict=True):
            assert_exact(got, x, 2.0**-22 * size)
        u = direction(w, *map(wide, new_state), hypers)
        rate = learning_rate * (norm(w) / norm(u) if norm(w) and norm(u) else 1)
        apart = np.abs(u - decay * w) + np.abs(decay * w)  # what the direction is made of
        assert_exact(new_w, w - rate * u, 2.0**-22 * np.abs(w) + 2.0**-19 * rate * apart)

    def assert_kept(self):
        dtypes = [*self.names.parameter.results, *self.names.state.results]
        for got, x, dtype in zip(self.results(), self.values, dtypes, strict=False):
            assert same_bits(got, x.astype(dtype).reshape(self.shape))


def group_uniforms_of(groups=((HYPERS, LEARNING_RATE),), scale=None, traced=False):
    given = [kernels.Group(hypers, rate, traced) for hypers, rate in groups]
    return kernels.prepare_groups(RULE, given, STEP, scale)


def table_of(tensors, vectors):
    """The table of a pack; no threadgroup reaches its unused entries."""
    capacity, count = tensors[0].names.capacity, 0
    table = np.full(capacity, np.array((0, NO_CHUNK, 0, 0, 0, 0), kernels.TENSOR))
    for k, tensor in enumerate(tensors):
        table[k] = (tensor.size, count, tensor.group, vectors, 0, 0)
        count += chunks(tensor.size)
    return table


def matrix_of(tensor):
    rows, columns = tensor.shape
    table = np.zeros(1, kernels.MATRIX)
    along_rows, down_columns = columns % VECTOR_WIDTH == 0, rows % VECTOR_WIDTH == 0
    counts = (rows, columns, tensor.group, along_rows, down_columns, 0)
    table[["rows", *kernels.MATRIX_COUNTS]] = counts
    return table


def strided_of(tensor, count):
    """The buffers of the first operands."""
    table = np.zeros(1, kernels.strided(count))
    dims = len(tensor.shape)
    table["size"], table["group"], table["dims"] = tensor.size, tensor.group, dims
    table["shape"][0, :dims] = tensor.shape
    for k in range(count):
        table["strides"][0, k, :dims] = tensor.strides[k]
    return table


def slots_of(tensors, slots):
    """The operands of all places; the unused ones have the last tensor's."""
    buffers, first = {}, OPERANDS_SLOT
    for k in range(tensors[0].names.capacity):
        own = slots(tensors[min(k, len(tensors) - 1)], first)
        buffers |= own
        first += len(own)
    return buffers


def run_state(tensors, group_uniforms, sums, vectors=True):
    first = tensors[0]
    name = first.names.state
    if name.way == "flat":
        table = table_of(tensors, vectors)
    elif name.way == "transposed":
        first.turn()
        table = matrix_of(first)
    else:
        first.scatter()
        table = strided_of(first, 4)
    buffers = {0: group_uniforms, 1: table, SUMS_SLOT: sums} | slots_of(tensors, Tensor.state_slots)
    groups = sum(tensor.groups for tensor in tensors)
    kernels.run(RULE, f"state_{name.text}", buffers, groups)


def run_rates(shares, group_uniforms, sums):
    rates = np.full(len(shares) * RATES, np.nan, np.float32)
    buffers = {0: group_uniforms, 1: shares, SUMS_SLOT: sums, NEW_RATES_SLOT: rates}
    kernels.run(RULE, "rates", buffers, len(shares))
    return rates


def run_parameter(tensors, group_uniforms, rates, vectors=True):
    first = tensors[0]
    name = first.names.parameter
    table = table_of(tensors, vectors) if name.way == "flat" else strided_of(first, 1)
    buffers = {0: group_uniforms, 1: table, RATES_SLOT: rates} | slots_of(
        tensors, Tensor.parameter_slots
    )
    groups = sum(chunks(tensor.size) for tensor in tensors)
    kernels.run(RULE, f"parameter_{name.text}", buffers, groups)


def run(tensors, group_uniforms, vectors=True):
    """A step over tensors with one dispatch for each pass."""
    counts = [tensor.groups for tensor in tensors]
    sums = np.full(sum(counts) * SUMS, np.nan, np.float32)
    shares = np.zeros(len(tensors), SHARE)
    shares["first"], shares["count"] = np.cumsum([0, *counts[:-1]]), counts
    shares["group"] = [tensor.group for tensor in tensors]
    run_state(tensors, group_uniforms, sums, vectors)
    rates = run_rates(shares, group_uniforms, sums)
    run_parameter(tensors, group_uniforms, rates, vectors)
