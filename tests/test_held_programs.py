"""Random programs of steps, aliases, views, streams and late evaluation; whatever was held, and
every result, is compared with a second run that never lets go of an array.
"""

import mlx.core as mx
import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from cases import RULES, wide

DTYPES = [mx.float32, mx.bfloat16, mx.float16]
TENSORS = 3
STREAMS = [mx.default_stream(mx.default_device()), mx.new_stream(mx.default_device())]

# From square to square, so that the result can replace any tensor.
SHAPE_KEEPING = {
    "same": lambda x: x,
    "transpose": lambda x: x.T,
    "reversed": lambda x: x[::-1],
    "reshaped": lambda x: x.reshape(-1).reshape(x.shape),
    "first-row": lambda x: mx.broadcast_to(x[:1], x.shape),
    "head-of-a-buffer": lambda x: mx.concatenate([x, x])[: x.shape[0]],
    "tail-of-a-buffer": lambda x: mx.concatenate([x, -x])[x.shape[0] :],
    "columns-of-a-buffer": lambda x: mx.concatenate([x, x], axis=1)[:, : x.shape[1]],
    "doubled": lambda x: x * 2,
    "halved-magnitude": lambda x: 0.5 * mx.abs(x),
    "other-stream": lambda x: mx.negative(x, stream=STREAMS[1]),
}
HOLDING = SHAPE_KEEPING | {
    "slice": lambda x: x[x.shape[0] // 2 :],
    "flat": lambda x: x.reshape(-1),
    "bits": lambda x: x.view({4: mx.uint32, 2: mx.uint16}[x.dtype.size]).astype(mx.float32),
    "batch": lambda x: mx.stack([x, x]),
    "sliced-other-stream": lambda x: mx.multiply(x[:, :1], 3, stream=STREAMS[1]),
}


kept = []  # by the machine that runs


class Value:
    """An array of the program, and the same made by a program that keeps all it ever made.

    So nothing of the second is overwritten; and both have the same strides, hence the same bits.
    """

    def __init__(self, array, exact):
        self.array, self.exact = array, exact
        mx.eval(exact)
        kept.append(exact)
        self.values = wide(exact)

    def map(self, function):
        return Value(function(self.array), function(self.exact))

    def check(self, what):
        np.testing.assert_array_equal(wide(self.array), self.values, err_msg=what)


indices = st.integers(0, TENSORS - 1)
places = st.tuples(st.sampled_from(["parameter", "slot", "gradient", "held"]), st.integers(0, 9))


class HeldBuffers(RuleBasedStateMachine):
    @initialize(
        case=st.sampled_from(RULES),
        dtype=st.sampled_from(DTYPES),
        size=st.sampled_from([1, 5, 33, 100, 300]),
    )
    def start(self, case, dtype, size):
        kept.clear()
        self.case, self.dtype, self.size = case, dtype, size
        self.seed = 0
        self.w = [self.fresh() for _ in range(TENSORS)]
        zeros = mx.zeros((size, size), dtype)
        self.slots = [
            {name: Value(mx.zeros((size, size), dtype), zeros) for name in case.slots}
            for _ in range(TENSORS)
        ]
        self.gradients = []
        self.held = []
        self.lent = []
        self.steps = 0
        self.optimizer = case.ours(0.05)
        self.optimizer.init({str(i): zeros for i in range(TENSORS)})

    def fresh(self):
        self.seed += 1
        values = np.random.default_rng(self.seed).normal(size=(self.size, self.size))
        x = mx.array(values.astype(np.float32)).astype(self.dtype)
        return Value(x + 0, x)

    def at(self, place):
        """The value in a place, or a fresh one where the place is empty."""
        kind, index = place
        values = {
            "parameter": self.w,
            "slot": [m for slots in self.slots for m in slots.values()],
            "gradient": self.gradients,
            "held": [held for held in self.held if held.exact.shape == (self.size, self.size)],
        }[kind]
        return values[index % len(values)] if values else self.fresh()

    def arrays(self):
        slots = [m.array for slots in self.slots for m in slots.values()]
        return [w.array for w in self.w] + slots

    @rule(
        subset=st.sets(indices, min_size=1),
        sources=st.lists(
            st.one_of(st.none(), st.tuples(places, st.sampled_from(sorted(SHAPE_KEEPING)))),
            min_size=TENSORS,
            max_size=TENSORS,
        ),
        stream=st.sampled_from([0, 0, 0, 1]),
        keep_gradients=st.booleans(),
    )
    def step(self, subset, sources, stream, keep_gradients):
        g = {}
        for i in sorted(subset):
            source = sources[i]
            g[i] = self.at(source[0]).map(SHAPE_KEEPING[source[1]]) if source else self.fresh()
            # Where it was promoted on its way; mixed dtypes are test_dtypes' matter.
            g[i] = g[i].map(lambda x: x.astype(self.dtype))
        expected, expected_slots = self.exact_step(g)

        for i in range(TENSORS):
            for name, m in self.slots[i].items():
                self.optimizer.state[str(i)][name] = m.array
        gradients = {str(i): value.array for i, value in g.items()}
        parameters = {str(i): value.array for i, value in enumerate(self.w)}
        exact_gradients = {i: value.exact for i, value in g.items()}
        self.w = list(self.w)
        for i in g:  # nothing but the trees holds what the step replaces
            self.w[i] = None
            self.slots[i] = None
        self.gradients = list(g.values()) if keep_gradients else []
        del g
        with mx.stream(STREAMS[stream]):
            new = self.optimizer.apply_gradients(gradients, parameters)
        del gradients, parameters
        for i in exact_gradients:
            self.w[i] = Value(new[str(i)], expected[str(i)])
            state = self.optimizer.state[str(i)]
            self.slots[i] = {
                name: Value(state[name], expected_slots[str(i)][name]) for name in self.case.slots
            }
            # The dict would be one more holder than in a program that drops it.
            state.update(dict.fromkeys(self.case.slots, mx.zeros(0)))
        del new
        self.steps += 1

    def exact_step(self, g):
        """The same step on what is kept, evaluated at once."""
        optimizer = self.case.ours(0.05)
        optimizer.state["step"] = mx.array(self.steps, mx.uint64)
        for name in self.case.keeps:
            optimizer.state[name] = mx.array(self.optimizer.state[name].item())
        w = {str(i): self.w[i].exact for i in g}
        optimizer.init(w)
        for i in g:
            exact = {name: m.exact for name, m in self.slots[i].items()}
            optimizer.state[str(i)].update(exact)
        new = optimizer.apply_gradients({str(i): value.exact for i, value in g.items()}, w)
        mx.eval(new, optimizer.state)
        return new, optimizer.state

    @rule(place=places, way=st.sampled_from(sorted(HOLDING)))
    def hold(self, place, way):
        self.held.append(self.at(place).map(HOLDING[way]))

    @rule(place=places, way=st.sampled_from(sorted(HOLDING)))
    def begin_on_its_own(self, place, way):
        value = self.at(place).map(HOLDING[way])
        mx.async_eval(value.array)
        self.held.append(value)

    @precondition(lambda self: self.dtype != mx.bfloat16)
    @rule(place=places)
    def lend_to_numpy(self, place):
        value = self.at(place)
        self.lent.append((np.array(value.array, copy=False), value.values))

    @rule(to=indices, place=places, way=st.sampled_from(sorted(SHAPE_KEEPING)))
    def put_in_place_of_a_parameter(self, to, place, way):
        self.w[to] = self.at(place).map(SHAPE_KEEPING[way]).map(lambda x: x.astype(self.dtype))

    @precondition(lambda self: self.case.slots)
    @rule(to=indices, name=st.integers(0, 1), place=places)
    def put_in_place_of_a_slot(self, to, name, place):
        name = self.case.slots[name % len(self.case.slots)]
        self.slots[to][name] = self.at(place).map(mx.abs).map(lambda x: x.astype(self.dtype))

    @rule(
        at=indices,
        slot=st.sampled_from([None, 0, 1]),
        way=st.sampled_from(["transpose", "reversed", "tail-of-a-buffer", "columns-of-a-buffer"]),
    )
    def leave_only_a_view(self, at, slot, way):
        """The base goes: the view alone holds a buffer that it does not fill in order."""
        if slot is None or not self.case.slots:
            self.w[at] = self.w[at].map(SHAPE_KEEPING[way])
        else:
            name = self.case.slots[slot % len(self.case.slots)]
            view = self.slots[at][name].map(SHAPE_KEEPING[way])
            self.slots[at][name] = view.map(mx.abs) if "tail" in way else view

    @rule()
    def evaluate(self):
        mx.eval(self.arrays())

    @rule()
    def begin(self):
        mx.async_eval(self.arrays())

    @precondition(lambda self: self.held)
    @rule(index=st.integers(0, 9))
    def let_go(self, index):
        self.held.pop(index % len(self.held))

    @precondition(lambda self: self.held)
    @rule(index=st.integers(0, 9))
    def look(self, index):
        self.held[index % len(self.held)].check("held")

    def teardown(self):
        if not hasattr(self, "w"):
            return
        for value in self.held:
            value.check("held")
        for lent, values in self.lent:
            np.testing.assert_array_equal(lent.astype(np.float64), values, err_msg="lent")
        for i in range(TENSORS):
            self.w[i].check(f"parameter {i}")
            for name, m in self.slots[i].items():
                m.check(f"{name} {i}")


TestHeldBuffers = HeldBuffers.TestCase
TestHeldBuffers.settings = settings(stateful_step_count=25, report_multiple_bugs=False)
