"""A buffer that somebody still holds is never written to: every way of holding, one at a time.

Whatever is held of an array, before the steps that replace it, has the same value after them.
"""

import copy

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map

import mlx_opt
from cases import Case, copied, dtype_name, each_rule, flat, normal, same_bits, wide

SIZE = 96  # 9216 elements: more than one chunk of work
RULES = [
    Case("AdamW", {"weight_decay": 0.1}),
    Case("SGD", {"momentum": 0.9}),
    Case("SGD"),
    Case("Lion"),
]
other_stream = mx.new_stream(mx.default_device())

# Ways to hold an array. What they return is kept and read at the end.
WAYS = {
    "the-array": lambda x: x,
    "a-slice": lambda x: x[3:50],
    "a-column": lambda x: x[:, 7],
    "an-element": lambda x: x[5, 5],
    "every-other-row-backwards": lambda x: x[::-2],
    "the-transpose": lambda x: x.T,
    "a-reshape": lambda x: x.reshape(-1),
    "an-extra-dimension": lambda x: x[None],
    "a-broadcast": lambda x: mx.broadcast_to(x, (2, *x.shape)),
    "a-split": lambda x: mx.split(x, 2)[1],
    "the-bits": lambda x: x.view({4: mx.uint32, 2: mx.uint16}[x.dtype.size]),
    "strides": lambda x: mx.as_strided(x, (10, 10), (1, 1), 3),
    "stop-gradient": lambda x: mx.stop_gradient(x),
    "contiguous": lambda x: mx.contiguous(x),
    "the-same-dtype": lambda x: x.astype(x.dtype),
    "a-deep-copy": lambda x: copy.deepcopy(x),
    "a-container": lambda x: {"x": [x]},
    "a-lazy-product": lambda x: x * 2,
    "a-lazy-product-of-a-slice": lambda x: x[1:] * 2,
    "a-lazy-average": lambda x: 0.75 * mx.ones_like(x) + 0.25 * x,
    "a-lazy-chain": lambda x: mx.abs(x.T + 1).reshape(-1)[5:],
    "lazy-on-another-stream": lambda x: mx.multiply(x, 2, stream=other_stream),
    "begun": lambda x: begun(x * 2),
    "begun-on-another-stream": lambda x: begun(mx.multiply(x, 2, stream=other_stream)),
    "a-view-begun-on-another-stream": lambda x: begun(mx.transpose(x, stream=other_stream)),
}
EXPORTS = {
    "a-numpy-view": lambda x: np.array(x, copy=False),
    "a-slice-of-a-numpy-view": lambda x: np.array(x, copy=False)[10:20],
    "a-numpy-view-of-a-view": lambda x: np.array(x.T, copy=False),
    "a-dlpack-view": lambda x: np.from_dlpack(x),
    "a-memoryview": lambda x: memoryview(x),
    "a-numpy-array-of-a-memoryview": lambda x: np.asarray(memoryview(x)),
}


def begun(x):
    mx.async_eval(x)
    return x


def read(held):
    """What is held, as NumPy of its own."""
    if isinstance(held, mx.array):
        return wide(held) if held.dtype == mx.bfloat16 else np.array(held, copy=True)
    if isinstance(held, dict):
        return {path: read(x) for path, x in flat(held).items()}
    return np.array(held, copy=True)


def gradient(step, dtype):
    return {"w": normal(SIZE, SIZE, seed=50 + step, dtype=dtype)}


def steps(optimizer, w, numbers, dtype, evaluate):
    for step in numbers:
        w = optimizer.apply_gradients(gradient(step, dtype), w)
        evaluate(w, optimizer.state)
    return w


EVALUATE = {
    "evaluated": lambda *trees: mx.eval(trees),
    "begun": lambda *trees: mx.async_eval(trees),
    "lazy": lambda *trees: None,
}


def sources(optimizer, w, g):
    return {"parameter": w["w"], "gradient": g["w"], **optimizer.state["w"]}


def before_and_after(case, dtype, way, source, mode):
    """What is read of a source after three steps that replace it, and of a copy of it."""
    clean = case.ours(0.1)
    clean_w = steps(clean, {"w": normal(SIZE, SIZE, dtype=dtype)}, range(2), dtype, mx.eval)
    g = gradient(2, dtype)
    expected = {name: copied(x) for name, x in sources(clean, clean_w, g).items()}

    evaluate = EVALUATE[mode]
    optimizer = case.ours(0.1)
    w = steps(optimizer, {"w": normal(SIZE, SIZE, dtype=dtype)}, range(2), dtype, evaluate)
    g = gradient(2, dtype)
    held = way(sources(optimizer, w, g)[source])
    w = optimizer.apply_gradients(g, w)
    del g
    evaluate(w, optimizer.state)
    w = steps(optimizer, w, range(3, 5), dtype, evaluate)
    mx.eval(w, optimizer.state)
    return read(held), read(way(expected[source]))


SOURCES = ["parameter", "gradient", "m", "v"]


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=dtype_name)
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("way", list(WAYS))
def test_what_is_held_of_an_array_keeps_its_value(way, source, dtype):
    for case in RULES:
        if source not in ("parameter", "gradient", *case.slots):
            continue
        for mode in EVALUATE:
            got, expected = before_and_after(case, dtype, WAYS[way], source, mode)
            np.testing.assert_equal(got, expected, err_msg=f"{case} {mode}")


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16], ids=dtype_name)
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("way", list(EXPORTS))
def test_a_buffer_lent_to_python_keeps_its_values(way, source, dtype):
    for case in RULES:
        if source not in ("parameter", "gradient", *case.slots):
            continue
        for mode in EVALUATE:
            got, expected = before_and_after(case, dtype, EXPORTS[way], source, mode)
            np.testing.assert_equal(got, expected, err_msg=f"{case} {mode}")


# One array in several places of the trees. Each place must become what a copy would become.
ALIASES = {
    "two-parameters": lambda t: t["w"].update(b=t["w"]["a"]),
    "two-gradients": lambda t: t["g"].update(b=t["g"]["a"]),
    "parameter-and-its-gradient": lambda t: t["g"].update(a=t["w"]["a"]),
    "parameter-and-anothers-gradient": lambda t: t["g"].update(b=t["w"]["a"]),
    "a-transposed-parameter": lambda t: t["w"].update(b=t["w"]["a"].T),
    "a-transposed-parameter-as-gradient": lambda t: t["g"].update(a=t["w"]["a"].T),
    "a-reshaped-parameter": lambda t: t["w"].update(b=t["w"]["a"].reshape(-1).reshape(SIZE, SIZE)),
    "rows-of-one-buffer": lambda t: t["w"].update(
        zip("ab", mx.split(mx.concatenate([t["w"]["a"], t["w"]["b"]]), 2), strict=True)
    ),
    "a-lazy-function-of-the-parameter": lambda t: t["g"].update(a=mx.sin(t["w"]["a"])),
    "a-broadcast-row-of-the-parameter": lambda t: t["g"].update(
        a=mx.broadcast_to(t["w"]["a"][0], (SIZE, SIZE))
    ),
    "all-slots": lambda t: [s.update(dict.fromkeys(s, t["x"])) for s in t["s"].values()],
    "slots-and-gradient": lambda t: [
        s.update(dict.fromkeys(s, t["g"][k])) for k, s in t["s"].items()
    ],
    "slots-and-parameter": lambda t: [
        s.update(dict.fromkeys(s, mx.abs(t["w"][k]))) or t["w"].update({k: next(iter(s.values()))})
        for k, s in t["s"].items()
        if s
    ],
    "everything": lambda t: [
        *(s.update(dict.fromkeys(s, t["x"])) for s in t["s"].values()),
        t["w"].update(a=t["x"], b=t["x"]),
        t["g"].update(a=t["x"], b=t["x"]),
    ],
}


@pytest.mark.parametrize("evaluated", [False, True], ids=["lazy", "evaluated"])
@pytest.mark.parametrize("alias", list(ALIASES))
@each_rule
def test_one_array_in_several_places_is_as_good_as_copies(case, alias, evaluated):
    optimizer, apart = case.ours(0.1), case.ours(0.1)
    w = {"a": normal(SIZE, SIZE, seed=1), "b": normal(SIZE, SIZE, seed=2)}
    g = {"a": normal(SIZE, SIZE, seed=3), "b": normal(SIZE, SIZE, seed=4)}
    optimizer.init(w)
    slots = {k: {name: optimizer.state[k][name] for name in case.slots} for k in w}
    trees = {"w": w, "g": g, "s": slots, "x": mx.abs(normal(SIZE, SIZE, seed=5))}
    ALIASES[alias](trees)
    if evaluated:
        mx.eval(trees)

    apart.init(w)
    copies = tree_map(copied, {"w": w, "g": g, "s": slots})
    for k, state in copies["s"].items():
        apart.state[k].update(state)
    expected = apart.apply_gradients(copies["g"], copies["w"])
    mx.eval(expected, apart.state)

    for k, state in slots.items():
        optimizer.state[k].update(state)
    del trees, slots, copies
    w = optimizer.apply_gradients(g, w)
    del g
    mx.eval(w, optimizer.state)
    for k in "ab":
        if case.rule == "AdamH":  # its angle is a sum that cancels, taken in the gradient's order
            np.testing.assert_allclose(wide(w[k]), wide(expected[k]), rtol=0, atol=1e-6)
        else:
            assert same_bits(w[k], expected[k]), k
        for name in case.slots:
            assert same_bits(optimizer.state[k][name], apart.state[k][name]), (k, name)


def test_a_scalar_may_be_parameter_learning_rate_and_hyperparameter():
    x = mx.array(0.5)
    optimizer = mlx_opt.AdamW(x, weight_decay=x)
    optimizer.state["learning_rate"] = x
    expected = mlx_opt.AdamW(0.5, weight_decay=0.5).apply_gradients(
        {"w": mx.array(0.5)}, {"w": mx.array(0.5)}
    )
    new = optimizer.apply_gradients({"w": x}, {"w": x})
    mx.eval(new)
    assert new["w"].item() == pytest.approx(expected["w"].item(), rel=1e-6)
    assert x.item() == 0.5


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("mode", list(EVALUATE))
def test_two_steps_from_the_same_arrays_both_see_them(mode, streams):
    expected = []
    for learning_rate in (0.1, 0.2):
        optimizer = mlx_opt.AdamW(learning_rate)
        w = optimizer.apply_gradients(gradient(1, mx.float32), {"w": normal(SIZE, SIZE)})
        expected.append(copied(w["w"]))

    w, g = {"w": normal(SIZE, SIZE) + 0}, {"w": gradient(1, mx.float32)["w"] + 0}
    EVALUATE[mode](w, g)
    results = []
    for learning_rate, stream in ((0.1, None), (0.2, other_stream if streams == 2 else None)):
        with mx.stream(stream or mx.default_stream(mx.default_device())):
            results.append(mlx_opt.AdamW(learning_rate).apply_gradients(g, w)["w"])
    del w, g
    mx.eval(results)
    for got, exact in zip(results, expected, strict=True):
        assert same_bits(got, exact)


def test_an_assignment_to_elements_reaches_one_holder_only():
    w = {"w": normal(SIZE, SIZE) + 0}
    before = wide(w["w"])
    held = mx.array(w["w"])
    w["w"][0] = 7.0
    new = mlx_opt.SGD(1.0).apply_gradients({"w": mx.ones((SIZE, SIZE))}, w)
    w["w"][1] = 8.0
    mx.eval(new)
    assert np.array_equal(wide(held), before)
    assert np.all(wide(new["w"])[0] == 6)
    np.testing.assert_allclose(wide(new["w"])[1:], before[1:] - 1, atol=1e-6)
    assert np.all(wide(w["w"])[:2] == [[7.0], [8.0]])


def test_an_average_of_the_parameters_is_right_over_many_steps():
    """The pattern that an in-place step breaks first: an average that is evaluated late."""
    optimizer, w = mlx_opt.AdamW(0.1), {"w": normal(SIZE, SIZE)}
    average, exact = w["w"], wide(w["w"])
    for step in range(12):
        w = optimizer.apply_gradients(gradient(step, mx.float32), w)
        average = 0.5 * average + 0.5 * w["w"]
        mx.async_eval(w, optimizer.state)
        if step % 4 == 3:
            mx.eval(average)
        exact = 0.5 * exact + 0.5 * wide(w["w"])
    np.testing.assert_allclose(wide(average), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", list(EVALUATE))
def test_a_history_of_all_steps_may_be_kept(mode):
    optimizer, w = mlx_opt.AdamW(0.1), {"w": normal(SIZE, SIZE)}
    again, clean = mlx_opt.AdamW(0.1), {"w": normal(SIZE, SIZE)}
    kept, expected = [], []
    for step in range(8):
        w = optimizer.apply_gradients(gradient(step, mx.float32), w)
        EVALUATE[mode](w, optimizer.state)
        kept.append((w["w"], dict(optimizer.state["w"])))
        clean = again.apply_gradients(gradient(step, mx.float32), clean)
        mx.eval(clean, again.state)
        expected.append((read(clean["w"]), {k: read(x) for k, x in again.state["w"].items()}))
    got = [(read(x), {k: read(m) for k, m in state.items()}) for x, state in kept]
    np.testing.assert_equal(got, expected)
