"""Clipping by the global norm, by itself and inside a step, and steps that are skipped."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as stock
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_flatten, tree_map

import mlx_opt
from cases import (
    DTYPES,
    RULES,
    assert_close,
    assert_same,
    each_dtype,
    each_of_slow_subset,
    flat,
    is_lazy,
    normal,
    wide,
)
from mlx_opt import _ext

NOT_FINITE = pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])

OPTIMIZERS = {
    **{str(case): case.ours for case in RULES},
    "Muon": lambda learning_rate: mlx_opt.Muon(learning_rate),
    "Adafactor": lambda learning_rate: mlx_opt.Adafactor(learning_rate, relative_step=False),
}
each_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


def tree(seed, dtype=mx.float32):
    def x(*shape):
        return normal(*shape, seed=seed, dtype=dtype)

    return {"a": x(9, 4), "layers": [{"weight": x(130)}, (x(), x(0), x(3, 2, 5))]}


def norm_of(gradients):
    return np.sqrt(sum(np.sum(wide(g) ** 2) for _, g in tree_flatten(gradients)))


def copy_of(state):
    return tree_map(mx.array, state)


def walk(optimizer, gradients, **options):
    w = tree(0)
    for g in gradients:
        w = optimizer.apply_gradients(g, w, **options)
        mx.eval(w, optimizer.state)
    return w


@each_dtype
def test_clip_grad_norm_is_that_of_mlx(dtype):
    gradients = tree(1, dtype)
    for max_norm in (0.0, 0.5, 1e6):
        clipped, norm = mlx_opt.clip_grad_norm(gradients, max_norm)
        expected, _ = stock.clip_grad_norm(gradients, max_norm)
        assert norm.dtype == mx.float32 and norm.shape == ()
        assert norm.item() == pytest.approx(norm_of(gradients), rel=1e-6)
        # Stock sums bfloat16 in bfloat16.
        assert_close(clipped, expected, 1e-6 if dtype == mx.float32 else 2e-2)


@pytest.mark.parametrize(
    "gradients",
    [
        {"w1": mx.array([2, 3]), "w2": mx.array([1])},
        {"w": mx.array([1.0, 2.0]), "x": mx.array([3])},
        {"w": mx.array([1 + 2j, 0.5])},
        {},
    ],
    ids=["int", "mixed", "complex", "empty"],
)
def test_clip_grad_norm_of_other_trees_is_that_of_mlx(gradients):
    assert_same(mlx_opt.clip_grad_norm(gradients, 2.0)[0], stock.clip_grad_norm(gradients, 2.0)[0])
    assert_same(mlx_opt.clip_grad_norm(gradients, 2.0)[1], stock.clip_grad_norm(gradients, 2.0)[1])


def test_clip_grad_norm_goes_through_transformations():
    x = mx.array([[3.0, 4.0], [0.3, 0.4]])

    def clipped(package):
        return lambda x: package.clip_grad_norm([x], 1.0)[0][0]

    def total(package):
        return lambda x: (clipped(package)(x) * mx.array([1.0, 2.0])).sum()

    assert_close(mx.vmap(clipped(mlx_opt))(x), mx.vmap(clipped(stock))(x))
    assert_close(mx.compile(clipped(mlx_opt))(x), clipped(stock)(x))
    for at in x:
        assert_close(mx.grad(total(mlx_opt))(at), mx.grad(total(stock))(at))
        tangents = [mx.array([0.5, -1.0])]
        ours, theirs = (mx.jvp(clipped(package), [at], tangents) for package in (mlx_opt, stock))
        assert_close(ours, theirs)
    both = (
        mx.vmap(mx.grad(total(mlx_opt)))(x),
        mx.grad(lambda x: mx.vmap(total(mlx_opt))(x).sum())(x),
    )
    assert_close(*both)
    second = [mx.grad(lambda x, p=p: mx.grad(total(p))(x)[0])(x[0]) for p in (mlx_opt, stock)]
    assert_close(*second, 1e-5)


def test_a_negative_norm_is_refused():
    optimizer = mlx_opt.SGD(0.1)
    with pytest.raises(ValueError, match="max_norm should be >=0, -1 was provided instead"):
        mlx_opt.clip_grad_norm({"w": mx.zeros(3)}, -1)
    with pytest.raises(ValueError, match="max_norm should be >=0"):
        optimizer.apply_gradients({"w": mx.zeros(3)}, {"w": mx.zeros(3)}, max_norm=-1)
    assert optimizer.step.item() == 0 and optimizer.grad_norm is None


@given(
    shapes=st.lists(st.lists(st.integers(0, 40), max_size=3), max_size=6),
    transposed=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    exponent=st.integers(-12, 12),
    seed=st.integers(0, 100),
)
def test_the_norm_of_any_tree(shapes, transposed, dtype, exponent, seed):
    leaves = [normal(*s, seed=seed, scale=2.0**exponent, dtype=dtype) for s in shapes]
    leaves = [x.T[..., ::2] if transposed and x.ndim else x for x in leaves]
    exact = norm_of(leaves)
    assert mlx_opt.clip_grad_norm(leaves, 1.0)[1].item() == pytest.approx(exact, rel=2e-7)


def test_the_norm_neither_overflows_nor_loses_small_gradients(cpu):
    halves = mx.full((1000,), 60000.0, dtype=mx.float16)
    assert mlx_opt.clip_grad_norm([halves], 1.0)[1].item() == pytest.approx(60000 * 1000**0.5, 1e-3)
    assert mlx_opt.clip_grad_norm([mx.array([3e30, 4e30])], 1.0)[1].item() == pytest.approx(5e30)
    assert mlx_opt.clip_grad_norm([mx.array([3e-30, 4e-30])], 1.0)[1].item() == pytest.approx(5e-30)


@each_dtype
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("max_norm", [0.3, 1e6, None, mx.array(0.3)], ids=str)
@pytest.mark.parametrize("last", [1.0, float("nan"), float("inf")])
def test_a_small_norm_and_scale_are_those_that_are_queued(cpu, dtype, skip, max_norm, last):
    leaves = [
        normal(7, 9, dtype=dtype).T[1:, ::2],
        mx.zeros((0, 4), dtype),
        mx.array([last], dtype),
    ]
    mx.eval(leaves)

    def norm_and_scale():
        norm = _ext.global_norm(leaves)
        lazy = is_lazy(norm)
        mx.eval(norm)
        scale = _ext.gradient_scale(norm, max_norm, skip)
        return lazy, np.array(norm).tobytes(), np.array(scale).tobytes()

    at_once = norm_and_scale()
    try:
        _ext.set_small_step(0)
        queued = norm_and_scale()
    finally:
        _ext.set_small_step()
    assert (at_once[0], queued[0]) == (False, True)
    assert at_once[1:] == queued[1:]


def test_the_norm_is_the_same_whatever_the_number_of_threads(cpu):
    gradients = [normal(700, 1000), normal(3), normal(100, 999).T]
    before = mlx_opt.num_threads()
    try:
        norms = set()
        for threads in (1, 2, 3, 8):
            mlx_opt.set_num_threads(threads)
            norms.add(mlx_opt.clip_grad_norm(gradients, 1.0)[1].item())
    finally:
        mlx_opt.set_num_threads(before)
    assert len(norms) == 1


@each_optimizer
def test_a_clipped_step_is_a_step_of_clipped_gradients(make):
    ours, plain = make(0.01), make(0.01)
    w, expected = tree(0), tree(0)
    for seed in range(4):
        gradients = tree(1 + seed)
        w = ours.apply_gradients(gradients, w, max_norm=0.5 if seed < 3 else 100.0)
        clipped, norm = mlx_opt.clip_grad_norm(gradients, 0.5 if seed < 3 else 100.0)
        expected = plain.apply_gradients(clipped, expected)
        assert ours.grad_norm.item() == norm.item()
        mx.eval(w, expected, ours.state, plain.state)
    assert_close(w, expected)
    state = dict(ours.state)
    assert state.pop("mlx_opt")["grad_norm"].dtype == mx.float32
    assert_close(state, plain.state)


@each_of_slow_subset
def test_a_clipped_step_of_halves_does_not_round_the_scaled_gradient(case):
    ours, exact = case.ours(0.01), case.ours(0.01)
    gradients = tree_map(lambda g: g.astype(mx.bfloat16), tree(1))
    w = ours.apply_gradients(gradients, tree(0), max_norm=0.3)
    scale = min(0.3 / (norm_of(gradients) + 1e-6), 1.0)
    unrounded = tree_map(lambda g: g.astype(mx.float32) * scale, gradients)
    assert_close(w, exact.apply_gradients(unrounded, tree(0)))


@each_optimizer
@NOT_FINITE
def test_a_step_that_is_not_finite_is_skipped(make, bad):
    def schedule(step):
        return 0.01 / (1 + step)

    optimizer, never = make(schedule), make(schedule)
    good = [tree(1), tree(2)]
    broken = tree(3)
    broken["layers"][0]["weight"][7] = bad
    options = {"max_norm": 1.0, "skip_nonfinite": True}
    w = walk(optimizer, good, **options)
    before, state = copy_of(w), copy_of(optimizer.state)
    skipped = state["mlx_opt"]["skipped"]
    assert skipped.item() == 0 and skipped.dtype == mx.uint64
    kept = optimizer.apply_gradients(broken, w, **options)
    mx.eval(kept, optimizer.state)
    assert not np.isfinite(optimizer.grad_norm.item())
    assert_same(kept, before)
    assert_same(*({k: v for k, v in s.items() if k != "mlx_opt"} for s in (optimizer.state, state)))
    assert optimizer.skipped.item() == 1
    # The optimizer continues as if that gradient had not been there.
    w = optimizer.apply_gradients(tree(4), kept, **options)
    assert_same(w, walk(never, [*good, tree(4)], **options))
    assert optimizer.step.item() == 3


def test_a_skipped_first_step_leaves_the_initial_state():
    optimizer = mlx_opt.AdamW(0.1)
    model = nn.Linear(3, 2)
    before = copy_of(model.parameters())
    gradients = tree_map(lambda x: mx.full(x.shape, float("nan")), before)
    optimizer.update(model, gradients, skip_nonfinite=True)
    assert_same(model.parameters(), before)
    assert optimizer.step.item() == 0 and optimizer.skipped.item() == 1
    assert not optimizer.state["weight"]["m"].any()


@each_of_slow_subset
@NOT_FINITE
def test_without_skipping_a_norm_that_is_not_finite_does_as_with_mlx(case, bad):
    gradients = {"w": mx.array([1.0, bad]), "x": mx.array([1.0])}
    parameters = {"w": mx.array([1.0, 2.0]), "x": mx.array([1.0])}
    ours = case.ours(0.1).apply_gradients(gradients, parameters, max_norm=1.0)
    clipped, _ = stock.clip_grad_norm(gradients, 1.0)
    theirs = case.stock(0.1).apply_gradients(clipped, parameters)
    for path, x in flat(ours).items():
        np.testing.assert_allclose(np.array(x), np.array(flat(theirs)[path]), rtol=1e-6)


def test_the_state_has_no_new_entries_unless_they_are_asked_for():
    optimizer = mlx_opt.AdamW(0.1)
    optimizer.apply_gradients({"w": mx.ones(3)}, {"w": mx.ones(3)})
    assert optimizer.state.keys() == {"step", "learning_rate", "w"}
    optimizer.apply_gradients({"w": mx.ones(3)}, {"w": mx.ones(3)}, max_norm=1.0)
    assert optimizer.state.keys() == {"step", "learning_rate", "w", "mlx_opt"}
    assert optimizer.state["mlx_opt"].keys() == {"grad_norm"}


def test_checkpoints_pass_both_ways():
    options = {"max_norm": 1.0, "skip_nonfinite": True}
    ours = mlx_opt.AdamW(0.1)
    w = walk(ours, [tree(1)], **options)
    theirs = stock.AdamW(0.1)
    theirs.state = copy_of(ours.state)
    expected = theirs.apply_gradients(tree(2), w)
    assert_close(ours.apply_gradients(tree(2), w), expected)
    again = mlx_opt.AdamW(0.1)
    again.state = copy_of(theirs.state)
    again.apply_gradients(tree(3), expected, **options)
    assert again.step.item() == 3 and again.skipped.item() == 0


@each_optimizer
def test_the_same_inside_compile(make):
    plain, captured, pure = make(0.01), make(0.01), make(0.01)
    broken = tree_map(lambda g: g * float("inf"), tree(2))
    steps = [tree(1), broken, tree(3), tree(4)]
    options = {"max_norm": 0.5, "skip_nonfinite": True}
    expected = walk(plain, steps, **options)

    held = {"w": tree(0)}
    state = [held, captured.state]

    @lambda f: mx.compile(f, inputs=state, outputs=state)
    def step(gradients):
        held["w"] = captured.apply_gradients(gradients, held["w"], **options)
        return captured.grad_norm

    norms = [step(g).item() for g in steps]
    assert norms[0] == pytest.approx(norm_of(steps[0])) and not np.isfinite(norms[1])
    assert_close(held["w"], expected)
    assert_close(captured.state, plain.state)

    @mx.compile
    def functional(gradients, w, state):
        pure.state = state
        return pure.apply_gradients(gradients, w, **options), pure.state

    w = tree(0)
    pure.init(w)
    state = pure.state
    for g in steps:
        w, state = functional(g, w, state)
    assert_close(w, expected)
    assert_close(state, plain.state)


@pytest.mark.parametrize("second", [mlx_opt.Muon, stock.SGD, stock.Adafactor])
def test_a_multi_optimizer_takes_one_norm_over_all(second):
    def parts():
        other = second() if second is stock.Adafactor else second(0.1)
        return mlx_opt.MultiOptimizer([mlx_opt.AdamW(0.01), other], [lambda path, _: path == "a"])

    ours, plain = parts(), parts()
    w = expected = tree(0)
    options = {"max_norm": 0.5, "skip_nonfinite": True}
    for seed in (1, 2):
        gradients = tree(seed)
        w = ours.apply_gradients(gradients, w, **options)
        clipped, norm = mlx_opt.clip_grad_norm(gradients, 0.5)
        expected = plain.apply_gradients(clipped, expected)
        assert ours.grad_norm.item() == norm.item()
    assert_close(w, expected)
    before = copy_of(w)
    gradients["a"][0, 0] = float("nan")
    kept = ours.apply_gradients(gradients, w, **options)
    assert_same(kept, before)
    for optimizer in ours.optimizers:
        assert optimizer.state["step"].item() == 2
        assert optimizer.state["mlx_opt"]["skipped"].item() == 1


def test_hooks_are_served():
    class Recording(mlx_opt.Adam):
        def apply_single(self, gradient, parameter, state):
            self.seen = gradient
            return super().apply_single(gradient, parameter, state)

    class Halving(mlx_opt.Adam):
        def apply_gradients(self, gradients, parameters):
            return super().apply_gradients(tree_map(lambda g: g / 2, gradients), parameters)

    gradients, w = {"w": mx.array([3.0, 4.0])}, {"w": mx.array([1.0, 1.0])}
    for cls, factor in ((Recording, 1.0), (Halving, 0.5)):
        optimizer, plain = cls(0.1), mlx_opt.Adam(0.1)
        model = nn.Module()
        model.w = w["w"]
        optimizer.update(model, gradients, max_norm=1.0, skip_nonfinite=True)
        clipped = {"w": mx.array([0.6, 0.8]) * factor}
        assert_close({"w": model.w}, plain.apply_gradients(clipped, w))
        broken = {"w": mx.array([float("inf"), 0.0])}
        before = copy_of(model.parameters())
        optimizer.update(model, broken, max_norm=1.0, skip_nonfinite=True)
        assert_same(model.parameters(), before)
        assert optimizer.step.item() == 1 and optimizer.skipped.item() == 1
        assert optimizer.grad_norm.item() == float("inf")


def test_formulas_are_clipped_too():
    gradients = {"w": mx.array([3.0 + 4.0j]), "x": mx.array([1.0])}
    w = {"w": mx.array([1.0 + 0j]), "x": mx.array([2.0])}
    ours = mlx_opt.SGD(0.1).apply_gradients(gradients, w, max_norm=1.0, skip_nonfinite=True)
    clipped, _ = stock.clip_grad_norm(gradients, 1.0)
    assert_same(ours["w"], stock.SGD(0.1).apply_gradients(clipped, w)["w"])


@each_of_slow_subset
def test_a_gradient_goes_through_a_clipped_step(case):
    def loss(package_optimizer, clip):
        def run(g):
            w = {"w": mx.array([1.0, -2.0])}
            return clip(package_optimizer, {"w": g}, w)["w"].sum()

        return run

    def inside(optimizer, g, w):
        return optimizer.apply_gradients(g, w, max_norm=1.0)

    def outside(optimizer, g, w):
        return optimizer.apply_gradients(stock.clip_grad_norm(g, 1.0)[0], w)

    g = mx.array([3.0, 4.0])
    ours = mx.grad(loss(case.ours(0.1), inside))(g)
    assert_close(ours, mx.grad(loss(case.stock(0.1), outside))(g), 1e-5)


def test_a_batch_of_clipped_steps():
    def step(g, w):
        return mlx_opt.AdamW(0.1).apply_gradients({"w": g}, {"w": w}, max_norm=1.0)["w"]

    g, w = normal(3, 5, seed=1, scale=10), normal(3, 5)
    assert_close(mx.vmap(step)(g, w), mx.stack([step(a, b) for a, b in zip(g, w, strict=True)]))


def test_an_error_leaves_everything_as_it_was():
    optimizer = mlx_opt.AdamW(0.1)
    w = {"w": mx.ones(3)}
    optimizer.apply_gradients({"w": mx.ones(3)}, w)
    before = copy_of(optimizer.state)
    with pytest.raises(ValueError, match=r"w: gradient \(4,\), parameter \(3,\)"):
        optimizer.apply_gradients({"w": mx.ones(4)}, w, max_norm=1.0, skip_nonfinite=True)
    assert_same(optimizer.state, before)
