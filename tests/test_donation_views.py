"""A view that is the last holder of its buffer: the step may not take it for the whole buffer."""

import mlx.core as mx
import numpy as np
import pytest

import mlx_opt
from cases import RULES, assert_close, copied, normal, same_bits, wide
from mlx_opt import references

# Views of a buffer that they do not fill from its start in order; rows are 64 elements, so that a
# tail is little shorter than its buffer.
ROWS = 700
PARTIAL = {
    "transposed": lambda x: x.reshape(64, ROWS).T,
    "reversed": lambda x: x[::-1],
    "columns-reversed": lambda x: x[:, ::-1],
    "tail": lambda x: mx.concatenate([x[:1], x])[1:],
    "head": lambda x: mx.concatenate([x, x[:1]])[:-1],
    "columns": lambda x: mx.concatenate([x, x[:, :1]], axis=1)[:, 1:],
    "one-row": lambda x: mx.broadcast_to(x[:1] + 0, x.shape),
    "overlapping": lambda x: mx.as_strided(x, x.shape, (1, 1), 5),
}


@pytest.mark.parametrize("place", ["parameter", "slots", "gradient"])
@pytest.mark.parametrize("view", list(PARTIAL))
def test_the_last_view_of_a_buffer_is_read_as_what_it_shows(view, place):
    for case in RULES:
        optimizer, clean = case.ours(0.1), case.ours(0.1)
        names = {"parameter": ["w"], "slots": case.slots, "gradient": ["g"]}[place]
        values = {name: mx.abs(normal(ROWS, 64, seed=i)) + 0
                  for i, name in enumerate(["w", "g", *case.slots])}  # fmt: skip
        for name in names:
            values[name] = PARTIAL[view](values[name])
        exact = {name: copied(x) for name, x in values.items()}
        expected, state = one_step(clean, exact)
        mx.eval(values)
        got, got_state = one_step(optimizer, values)
        if not references.is_elementwise(*case) and mx.default_device() == mx.gpu:
            # A GPU sums a view in another order.
            assert_close([got, got_state], [expected, state], 1e-6)
            continue
        assert same_bits(got, expected), case
        for name in case.slots:
            assert same_bits(got_state[name], state[name]), (case, name)


def test_a_view_that_starts_late_in_its_buffer_is_not_overtaken_by_another_thread():
    # A thread that wrote to the start of its piece would write to the end of its neighbour's.
    n = 1_000_000
    expected = np.arange(64, n + 64) % 1000 - 1
    for _ in range(30):
        base = (mx.arange(n + 64) % 1000).astype(mx.float32)
        w, g = {"w": base[64:]}, {"w": mx.ones(n)}
        mx.eval(base, w, g)
        del base
        w = mlx_opt.SGD(1.0).apply_gradients(g, w)
        assert np.array_equal(wide(w["w"]), expected)


def one_step(optimizer, values):
    """A step from `values`, which are removed from the dict, so that only the step holds them."""
    optimizer.init({"w": values["w"]})
    w, g = {"w": values.pop("w")}, {"w": values.pop("g")}
    for name in list(values):
        optimizer.state["w"][name] = values.pop(name)
    w = optimizer.apply_gradients(g, w)
    del g
    mx.eval(w, optimizer.state)
    return w["w"], optimizer.state["w"]
