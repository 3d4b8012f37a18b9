"""A step of any rule of two passes over one tensor, as the host runs it."""

from typing import NamedTuple

import kernels
import mlx.core as mx
import numpy as np
from kernels import CHUNK, TILE
from two_pass import NEW_RATES_SLOT, OPERANDS_SLOT, RATES_SLOT, SHARE, SUMS_SLOT
from update import LEARNING_RATE, STEP, Name, chunks, primitive, uniforms_of

from cases import RULES, assert_exact, exact_step, normal, same_bits, wide

MAX_SUMS = 8


def has_two_passes(case):
    """Without Lamb, which has checks of its own."""
    return "rates" in kernels.names(primitive(case).name) and case.rule != "Lamb"


class Kernels(NamedTuple):
    """The kernels of a step's two passes."""

    case: object
    state: Name
    second: Name
    reads_gradient_again: bool

    def __str__(self):
        return f"{primitive(self.case).name}-{self.state.text}-{self.second.text}"

    @property
    def updates_state_first(self):
        return bool(self.state.results)

    def fit(self):
        """True if a step may have these passes."""
        state, second = self.state, self.second
        slots = state.results or state.storages[1:-1]
        gradient = state.storages[-1:] if self.reads_gradient_again else []
        scaling = state.scaling
        if not self.reads_gradient_again and scaling == "always":
            scaling = None
        ways = {state.way} if self.reads_gradient_again else {"flat", state.way}
        return (
            second.way in ways
            and state.capacity == second.capacity == 1
            and second.scaling == scaling
            and second.storages == [state.storages[0], *slots, *gradient]
        )


def all_kernels():
    """For each rule a step for each first pass and for each second one."""
    found = {}
    for case in filter(has_two_passes, RULES):
        names = kernels.names(primitive(case).name)
        of = {
            kind: [Name(x.removeprefix(f"{kind}_")) for x in names if x.startswith(f"{kind}_")]
            for kind in ("state", "parameter", "finish")
        }
        for state in of["state"]:
            for second in of["parameter"] + of["finish"]:
                pair = Kernels(case, state, second, bool(of["finish"]))
                if pair.fit():
                    found.setdefault((str(case), "first", state.text), pair)
                    found.setdefault((str(case), "second", second.text), pair)
    return [*{str(pair): pair for pair in found.values()}.values()]


class Tensor:
    """Operands of a step, the expected results, and the kernels' buffers."""

    def __init__(self, pair, shape):
        self.pair, self.shape = pair, shape
        self.slots = primitive(pair.case).state
        values = [normal(*shape, seed=1 + k) for k in range(len(self.slots) + 2)]
        for k, slot in enumerate(self.slots, start=1):
            if not pair.case.is_signed(slot):
                values[k] = mx.abs(values[k]) + 0.01
        self.values = [
            x.astype(dtype) for x, dtype in zip(values, pair.state.storages, strict=True)
        ]
        self.size = values[0].size
        self.buffers = [*map(kernels.stored, self.values)]
        self.rows = np.array(np.empty(shape, np.uint8).strides)
        self.strides = [self.rows] * len(self.buffers)
        self.lay()
        self.state = self.places(pair.state, self.buffers)
        self.first = self.buffers
        if pair.updates_state_first:
            self.first = [self.buffers[0], *self.state, self.buffers[-1]]
        self.final = self.places(pair.second, self.first)

    def places(self, name, buffers):
        """The buffers of a kernel's results."""
        return [
            kernels.empty(self.size, dtype) if written is None else buffers[written]
            for dtype, written in zip(name.results, name.written, strict=True)
        ]

    def lay(self):
        """Give a different layout to the gradient, or to all that no result overwrites."""
        if self.pair.state.way == "transposed":
            self.buffers[-1] = np.array(self.buffers[-1].reshape(self.shape).T).reshape(-1)
        if not self.pair.state.way.startswith("strided"):
            return
        kept = {*self.pair.state.written, *self.pair.second.written}
        if self.pair.second.way == "flat":
            kept.add(0)
        for k in {*range(len(self.buffers))} - kept:
            x = np.array(self.buffers[k].reshape(self.shape).transpose(2, 0, 1), order="C")
            self.buffers[k] = x.reshape(-1)
            self.strides[k] = np.array(x.transpose(1, 2, 0).strides) // x.itemsize

    def arguments(self, way, strides):
        """The arguments of a pass and its number of threadgroups."""
        if way == "flat":
            return np.array([(self.size, 0, 0, True, 0, 0)], kernels.TENSOR), chunks(self.size)
        if way == "transposed":
            rows, columns = self.shape
            table = np.zeros(1, kernels.MATRIX)
            along_rows, down_columns = columns % 4 == 0, rows % 4 == 0
            counts = (rows, columns, 0, along_rows, down_columns, 0)
            table[["rows", *kernels.MATRIX_COUNTS]] = counts
            return table, -(-rows // TILE) * -(-columns // TILE)
        table = np.zeros(1, kernels.strided(len(strides)))
        dims = len(self.shape)
        table["size"], table["dims"], table["shape"][0, :dims] = self.size, dims, self.shape
        for k, own in enumerate(strides):
            table["strides"][0, k, :dims] = own
        return table, chunks(self.size)

    def run_pass(self, kind, name, slots, read, written, strides):
        """Return the number of threadgroups."""
        table, groups = self.arguments(name.way, strides)
        apart = [x for x, place in zip(written, name.written, strict=True) if place is None]
        buffers = slots | {1: table} | dict(enumerate([*read, *apart], start=OPERANDS_SLOT))
        kernels.run(primitive(self.pair.case).name, f"{kind}_{name.text}", buffers, groups)
        return groups

    def run(self, scale=None):
        uniforms = uniforms_of(self.pair.case, scale=scale)
        sums = np.full(chunks(self.size) * MAX_SUMS * CHUNK // TILE**2, np.nan, np.float32)
        slots = {0: uniforms, SUMS_SLOT: sums}
        state = self.pair.state
        groups = self.run_pass("state", state, slots, self.buffers, self.state, self.strides)
        rates = np.full(MAX_SUMS, np.nan, np.float32)
        slots |= {1: np.array([(0, groups, 0)], SHARE), NEW_RATES_SLOT: rates}
        kernels.run(primitive(self.pair.case).name, "rates", slots, 1)
        self.finish({0: uniforms, RATES_SLOT: rates})

    def finish(self, slots):
        read, strides, kind = self.first, [*self.strides], "finish"
        if self.pair.updates_state_first:
            strides[1:-1] = [self.rows] * len(self.slots)
        if not self.pair.reads_gradient_again:
            read, strides, kind = read[:-1], strides[:1], "parameter"
        self.run_pass(kind, self.pair.second, slots, read, self.final, strides)

    def results(self):
        """The new parameter and state, by name."""
        bits = [*self.final, *self.state]
        dtypes = [*self.pair.second.results, *self.pair.state.results]
        return {
            name: kernels.loaded(x, dtype).reshape(self.shape)
            for name, x, dtype in zip(["w", *self.slots], bits, dtypes, strict=True)
        }

    def assert_updated(self, scale=1.0):
        w, *before, g = map(wide, self.values)
        g = np.float64(np.float32(scale) * np.float32(g))
        got, state = self.results(), dict(zip(self.slots, before, strict=True))
        expected = exact_step(self.pair.case, w, g, state, STEP, LEARNING_RATE, got)
        for name, x in got.items():
            assert_exact(x, *expected[name])

    def assert_kept(self):
        for x, got in zip(self.values, self.results().values(), strict=False):
            assert same_bits(got, x.astype(got.dtype).reshape(self.shape))
