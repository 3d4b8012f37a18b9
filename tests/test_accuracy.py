"""float32: 100 steps against the float64 reference, and against how near stock comes to it."""

import mlx.core as mx
import numpy as np
import pytest

import mlx_opt
from cases import (
    assert_same,
    at_step,
    each_case,
    each_learning_rate,
    flat,
    normal,
    signature,
    wide,
)
from mlx_opt import references

STEPS = 100
TOLERANCE = 1e-6  # of the largest value that the tensor has had

# The slots' own: a decay of 0.999 rounded to float32 is off by 1.3e-8 in each step.
MOMENT_TOLERANCE = 1.5e-6


def parameters():
    return {
        "scalar": normal(seed=1),
        "empty": normal(0, 3, seed=2),
        "layers": [{"weight": normal(33, 5, seed=3), "bias": normal(7, seed=4)}],
        "pair": (normal(3, 1, 65, seed=5), normal(1031, seed=6)),
    }


def gradients(step):
    return {
        "scalar": normal(seed=1001 + step),
        "empty": normal(0, 3, seed=2001 + step),
        "layers": [
            {"weight": normal(33, 5, seed=3001 + step), "bias": normal(7, seed=4001 + step)}
        ],
        "pair": (normal(3, 1, 65, seed=5001 + step), normal(1031, seed=6001 + step)),
    }


def walk(optimizer):
    """The parameters and the optimizer's state after all steps."""
    w = parameters()
    for step in range(STEPS):
        w = optimizer.apply_gradients(gradients(step), w)
        mx.eval(w, optimizer.state)
    return w, optimizer.state


def exact(case, learning_rate):
    """By path, in float64: parameter, state, its largest value, and what a sign may change."""
    w = {path: wide(x) for path, x in flat(parameters()).items()}
    state = {path: references.initial_state(case.rule, x, case.options) for path, x in w.items()}
    scale = {path: largest(x) for path, x in w.items()}
    allowance = {path: np.zeros_like(x) for path, x in w.items()}
    kept = references.begin_kept(case.rule)
    for step in range(STEPS):
        lr = at_step(learning_rate, step)
        kept = case.next_kept(kept, step + 1, lr)
        for path, g in flat(gradients(step)).items():
            g = wide(g)
            allowance[path] += 2 * lr * sign_is_open(case, g, state[path])
            w[path], state[path] = case.reference(w[path], g, state[path], step + 1, lr, kept)
            scale[path] = max(scale[path], largest(w[path]))
    return w, state, scale, allowance


def sign_is_open(case, g, state):
    """Where Lion's c, or Signum's m, is so near 0 that rounding decides its sign."""
    if case.rule == "Lion":
        beta = case.options.get("betas", (0.9, 0.99))[0]
    elif case.rule == "Signum":
        beta = case.options.get("beta", 0.9)
    else:
        return np.zeros(g.shape, bool)
    kept, new = beta * state["m"], (1 - beta) * g
    return np.abs(kept + new) <= 1e-6 * (np.abs(kept) + np.abs(new))


def largest(x):
    return np.abs(x).max() if x.size else 0.0


def rms(x):
    return np.sqrt(np.mean(x**2))


@each_learning_rate
@each_case
def test_stays_at_the_float64_reference_and_no_farther_from_it_than_stock(case, learning_rate):
    reference, reference_state, scale, allowance = exact(case, learning_rate)
    w, state = walk(case.ours(learning_rate))
    stock_w, stock_state = walk(case.stock(learning_rate))

    assert signature(w) == signature(stock_w)
    assert signature(state) == signature(stock_state)
    slots = flat(state)
    for path, x in flat(w).items():
        error = np.abs(wide(x) - reference[path]) - allowance[path]
        assert largest(np.maximum(error, 0)) <= TOLERANCE * scale[path], path
        for name, value in reference_state[path].items():
            error = wide(slots[f"{path}.{name}"]) - value
            assert largest(error) <= MOMENT_TOLERANCE * largest(value), f"{path}.{name}"

    # On a tensor long enough for the mean not to be luck.
    path = "pair.1"
    ours = rms(wide(flat(w)[path]) - reference[path])
    theirs = rms(wide(flat(stock_w)[path]) - reference[path])
    assert ours <= 1.05 * theirs


@each_case
def test_the_schedule_of_a_constant_is_the_constant(case):
    w, state = walk(case.ours(0.01))
    again, again_state = walk(case.ours(lambda step: mx.array(0.01)))
    assert_same(again, w)
    assert_same(again_state, state)


@pytest.mark.parametrize("steps", [1, 2, 10, 1000, 100_000, 2**24 + 1])
def test_bias_correction_holds_at_any_step(steps):
    options = {"betas": (0.9, 0.999), "bias_correction": True}
    optimizer = mlx_opt.Adam(0.01, **options)
    w, g = normal(64, seed=1), normal(64, seed=2)
    optimizer.init({"w": w})
    optimizer.state["step"] = mx.array(steps - 1, mx.uint64)
    new = optimizer.apply_gradients({"w": g}, {"w": w})["w"]
    expected, _ = references.adam(
        wide(w),
        wide(g),
        references.initial_state("Adam", w, {}),
        steps,
        learning_rate=0.01,
        **options,
    )
    update = expected - wide(w)
    spacing = np.spacing(np.float32(np.abs(wide(w)).max()))
    assert np.abs(wide(new) - expected).max() <= 2e-6 * np.abs(update).max() + spacing
