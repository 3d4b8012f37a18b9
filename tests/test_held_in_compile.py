"""In mx.compile too a buffer that somebody holds is never written to: the function's other results,
the constants it captured, and what its callers keep.
"""

import mlx.core as mx
import numpy as np
import pytest

import mlx_opt
from cases import copied, each_of_slow_subset, normal, same_bits, wide

SIZE = 96
WAYS = {
    "the-array": lambda x: x,
    "a-slice": lambda x: x[3:50],
    "the-transpose": lambda x: x.T,
    "a-reshape": lambda x: x.reshape(-1),
    "a-broadcast": lambda x: mx.broadcast_to(x, (2, *x.shape)),
    "the-bits": lambda x: x.view(mx.uint32),
    "stop-gradient": lambda x: mx.stop_gradient(x),
    "a-product": lambda x: x * 2,
}


def x(seed):
    return normal(SIZE, SIZE, seed=seed)


@pytest.mark.parametrize("source", ["parameter", "gradient", "slot"])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("way", list(WAYS))
@each_of_slow_subset
def test_what_a_function_returns_beside_the_step_keeps_its_value(case, way, when, source):
    name = case.slots[0]

    def run(w, g, slots):
        optimizer = case.ours(0.1)
        optimizer.state["w"] = dict(zip(case.slots, slots, strict=True))
        optimizer._initialized = True
        old = {"parameter": w, "gradient": g, "slot": optimizer.state["w"][name]}[source]
        held = WAYS[way](old) if when == "before" else None
        new = optimizer.apply_gradients({"w": g}, {"w": w})["w"]
        held = WAYS[way](old) if when == "after" else held
        return new, list(optimizer.state["w"].values()), held

    compiled = mx.compile(run)
    w, slots = x(0) + 0, [mx.abs(x(10 + i)) for i in range(len(case.slots))]
    clean_w, clean_slots = copied(w), [copied(m) for m in slots]
    kept, expected = [], []
    for step in range(3):
        clean_old = (clean_w, clean_slots)  # held, so that the plain run writes over nothing
        clean_w, clean_slots, clean_held = run(clean_w, x(20 + step), clean_slots)
        mx.eval(clean_w, clean_slots, clean_held)
        expected.append((copied(clean_w), copied(clean_held)))
        del clean_old
        w, slots, held = compiled(w, x(20 + step), slots)
        mx.async_eval(w, slots, held)
        kept.append((w, held))
    for got, exact in zip(kept, expected, strict=True):
        for ours, theirs in zip(got, exact, strict=True):
            np.testing.assert_allclose(wide(ours), wide(theirs), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("constant", ["parameter", "gradient", "slots"])
def test_a_captured_constant_is_the_same_in_every_call(constant):
    arrays = {"parameter": x(1) + 0, "gradient": x(2) + 0, "slots": mx.abs(x(3))}
    mx.eval(arrays)
    values = {name: wide(array) for name, array in arrays.items()}
    fixed = arrays.pop(constant)

    def run(arrays):
        arrays = arrays | {constant: fixed}
        optimizer = mlx_opt.AdamW(0.1)
        optimizer.state["w"] = {"m": arrays["slots"], "v": arrays["slots"]}
        optimizer._initialized = True
        new = optimizer.apply_gradients({"w": arrays["gradient"]}, {"w": arrays["parameter"]})
        return new["w"], optimizer.state["w"]

    compiled = mx.compile(run)
    first = compiled({name: copied(array) for name, array in arrays.items()})
    mx.eval(first)
    for _ in range(3):
        again = compiled({name: copied(array) for name, array in arrays.items()})
        mx.eval(again)
        assert same_bits(again[0], first[0])
    assert np.array_equal(wide(fixed), values[constant])


def test_what_is_kept_of_a_captured_state_keeps_its_value():
    optimizer = mlx_opt.AdamW(0.1)
    w = {"w": x(0) + 0}
    optimizer.init(w)
    step = mx.compile(
        optimizer.apply_gradients, inputs=[optimizer.state], outputs=[optimizer.state]
    )
    again, clean = mlx_opt.AdamW(0.1), {"w": x(0)}
    kept, expected = [], []
    for i in range(6):
        w = step({"w": x(1 + i)}, w)
        mx.async_eval(w, optimizer.state)
        kept += [w["w"], optimizer.state["w"]["m"], optimizer.state["w"]["v"][5:]]
        clean = again.apply_gradients({"w": x(1 + i)}, clean)
        mx.eval(clean, again.state)
        expected += [
            copied(y) for y in (clean["w"], again.state["w"]["m"], again.state["w"]["v"][5:])
        ]
    for got, exact in zip(kept, expected, strict=True):
        np.testing.assert_allclose(wide(got), wide(exact), rtol=1e-6, atol=1e-7)
