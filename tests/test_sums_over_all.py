"""Rules whose numbers depend on sums over all tensors: Prodigy and DAdaptAdam."""

import copy
import pickle

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map, tree_unflatten

import mlx_opt
from cases import SUMMING, assert_close, assert_same, flat, for_compile, normal, wide
from mlx_opt import Group, references

STEPS = 50
NAN = float("nan")
RULES = ["Prodigy", "DAdaptAdam"]
each_rule = pytest.mark.parametrize("rule", RULES)


def tree(seed, dtype=mx.float32, scale=1.0):
    def x(*shape):
        return normal(*shape, seed=seed, dtype=dtype, scale=scale)

    return for_compile(
        {"a": x(9, 4), "layers": [{"weight": x(130)}, {"weight": x(), "bias": x(0, 3)}]}
    )


def first(dtype=mx.float32):
    """Parameters near 0, of which float32 holds the way that small steps go."""
    return tree(1000, dtype, scale=1e-6)


def gradients(step):
    """Of one direction more than of the others, so that the estimates grow."""
    return tree_map(lambda x: x + 0.3, tree(step))


def walk(optimizer, steps, w=None, **options):
    w = first() if w is None else w
    for step in steps:
        w = optimizer.apply_gradients(gradients(step), w, **options)
        mx.eval(w, optimizer.state)
    return w


def exact(case, steps, learning_rate=1.0, given=gradients, own=lambda path: {}):
    """By path the parameters and states in float64, and the numbers. `own`: of a parameter's path
    the options of its group."""
    w = {path: wide(x) for path, x in flat(first()).items()}
    state = {path: references.initial_state(case.rule, x, case.options) for path, x in w.items()}
    kept = references.begin_kept(case.rule)
    for step in steps:
        g = {path: wide(x) for path, x in flat(given(step)).items()}
        parts = [
            references.sums_over_all(
                case.rule,
                [(w[p], g[p], state[p])],
                kept,
                step,
                learning_rate,
                case.options | own(p),
            )
            for p in w
        ]
        sums = {name: sum(part[name] for part in parts) for name in parts[0]}
        kept = references.next_kept(case.rule, kept, step, learning_rate, case.options, sums=sums)
        for p in w:
            options = case.options | own(p) | kept
            rule = references.REFERENCES[case.rule]
            w[p], state[p] = rule(
                w[p], g[p], state[p], step, learning_rate=learning_rate, **options
            )
    return w, state, kept


def assert_at(optimizer, w, expected, tolerance=5e-5):
    """The parameters, states and numbers are those of the reference."""
    exact_w, exact_state, kept = expected
    for name, number in kept.items():
        got = optimizer.state[name]
        assert (got.dtype, got.shape) == (mx.float32, ())
        assert got.item() == pytest.approx(float(number), rel=tolerance), name
    slots = flat(optimizer.state)
    for path, x in flat(w).items():
        scale = np.abs(exact_w[path]).max(initial=0)
        np.testing.assert_allclose(wide(x), exact_w[path], rtol=0, atol=tolerance * scale)
        for name, value in exact_state[path].items():
            scale = np.abs(value).max(initial=0)
            np.testing.assert_allclose(
                wide(slots[f"{path}.{name}"]), value, rtol=0, atol=tolerance * scale
            )


@pytest.mark.parametrize("mode", ["at once", "queued", "compiled", "by formula"])
@pytest.mark.parametrize("case", SUMMING, ids=str)
def test_stays_at_the_float64_reference(case, mode):
    optimizer, w = case.ours(1.0), first()
    optimizer.init(w)
    step = optimizer.apply_gradients
    if mode == "queued":
        mlx_opt._ext.set_small_step(0)
    elif mode == "compiled":
        step = mx.compile(step, inputs=optimizer.state, outputs=optimizer.state)
    elif mode == "by formula":
        optimizer._uses_primitives = lambda: False
    try:
        for number in range(1, STEPS + 1):
            w = step(gradients(number), w)
            mx.eval(w, optimizer.state)
    finally:
        mlx_opt._ext.set_small_step()
    assert optimizer.d.item() > 10 * 1e-6
    assert_at(optimizer, w, exact(case, range(1, STEPS + 1)))


@each_rule
def test_the_number_of_threads_does_not_matter(rule):
    shapes = [(300, 700), (65537,), (64, 2049)]
    results = []
    threads = mlx_opt.num_threads()
    try:
        for count in (1, 3):
            mlx_opt.set_num_threads(count)
            optimizer = getattr(mlx_opt, rule)()
            w = {str(shape): normal(*shape, seed=1, scale=1e-3) for shape in shapes}
            for step in range(3):
                g = {str(shape): normal(*shape, seed=10 + step) for shape in shapes}
                g["(300, 700)"] = mx.contiguous(g["(300, 700)"].T).T
                w = optimizer.apply_gradients(g, w)
            mx.eval(w, optimizer.state)
            results.append((w, optimizer.state))
    finally:
        mlx_opt.set_num_threads(threads)
    assert_same(*results)
    assert results[0][1]["d"].item() > 0


@each_rule
def test_a_large_step_reads_each_layout_and_storage(rule):
    """The sums of the kernel are those of the formula."""
    w = {"a": mx.zeros((40, 700)), "b": mx.zeros(9000, mx.bfloat16)}
    results = []
    for by_formula in (False, True):
        optimizer, x = getattr(mlx_opt, rule)(), w
        if by_formula:
            optimizer._uses_primitives = lambda: False
        for step in range(4):
            g = {"a": 1 + normal(700, 40, seed=step).T, "b": 1 + normal(18000, seed=step)[::2]}
            g["b"] = g["b"].astype(mx.bfloat16)
            x = optimizer.apply_gradients(g, x, max_value=0.5)
        results.append((optimizer.d.item(), optimizer.d_numerator.item()))
        assert optimizer.state["b"]["s"].dtype == mx.float32
        assert x["b"].dtype == mx.bfloat16
    np.testing.assert_allclose(*results, rtol=1e-3)  # bfloat16 rounds near a tie


@pytest.mark.parametrize("case", SUMMING, ids=str)
@pytest.mark.usefixtures("cpu")
def test_what_a_gpu_runs_gives_the_same_sums(case):
    """MLX's own operations, which the CPU has too."""
    optimizer = case.ours(1.0)
    w = walk(optimizer, range(1, 8))
    program, hypers = optimizer._program_of(optimizer._values())
    groups = [(hypers, mx.array(1.0), scale, None) for scale in (1.0, 0.5)]
    assignment = {"a": 0, "layers": {0: {"weight": 1}, 1: {"weight": 0, "bias": 1}}}
    part = mlx_opt._ext.Part(
        program,
        groups,
        8,
        gradients(8),
        w,
        optimizer.state,
        assignment=assignment,
        positions=[0, 1],
    )
    scale, limit = mx.array(0.5), mx.array(0.6)
    part.clip(scale, False, lambda formula: formula, limit)
    fused, others = part.sums(), part.sums(by_operations=True)
    for own, other in zip(fused, others, strict=True):
        assert len(own) == len(other) == 2
        for a, b in zip(own, other, strict=True):
            assert a.item() != 0
            assert b.item() == pytest.approx(a.item(), rel=2e-6)


@each_rule
def test_a_checkpoint_in_the_middle_goes_on_bit_for_bit(rule, tmp_path):
    optimizer, path = getattr(mlx_opt, rule)(), str(tmp_path / "state.safetensors")
    w = walk(optimizer, range(1, 9))
    mx.save_safetensors(path, dict(tree_flatten(optimizer.state)))
    twin = getattr(mlx_opt, rule)()
    twin.state = tree_unflatten(list(mx.load(path).items()))
    copies = [twin, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
    expected = walk(optimizer, range(9, 17), w)
    for other in copies:
        assert_same(walk(other, range(9, 17), w), expected)
        states = [dict(sorted(flat(each.state).items())) for each in (other, optimizer)]
        assert_same(*states)


@each_rule
def test_a_skipped_step_leaves_the_numbers(rule):
    optimizer = getattr(mlx_opt, rule)()
    w = walk(optimizer, range(1, 6), skip_nonfinite=True)
    before = tree_map(mx.array, {k: x for k, x in optimizer.state.items() if k != "mlx_opt"})
    broken = gradients(6)
    broken["layers"][0]["weight"] = broken["layers"][0]["weight"] * NAN
    assert_same(optimizer.apply_gradients(broken, w, skip_nonfinite=True), w)
    assert optimizer.skipped.item() == 1
    assert_same({k: x for k, x in optimizer.state.items() if k != "mlx_opt"}, before)


@each_rule
def test_steps_that_have_nothing_to_go_by_change_nothing(rule):
    optimizer = getattr(mlx_opt, rule)(weight_decay=0.1, decouple=True)
    w = first()
    zeros = tree_map(mx.zeros_like, w)
    for _ in range(2):
        after = optimizer.apply_gradients(zeros, w)
        assert_same(after, w)
        assert (optimizer.d.item(), optimizer.d_step.item()) == (0, 0)
    w = walk(optimizer, range(1, 4), w)
    before = {path: x for path, x in flat(optimizer.state).items() if "." in path}
    d = optimizer.d.item()
    optimizer.learning_rate = 0.0
    assert_same(optimizer.apply_gradients(gradients(9), w), w)
    assert_same({path: x for path, x in flat(optimizer.state).items() if "." in path}, before)
    assert optimizer.d.item() == d


@each_rule
def test_clipping_comes_before_the_sums(rule):
    clipped, plain = getattr(mlx_opt, rule)(), getattr(mlx_opt, rule)()
    w = [first(), first()]
    for step in range(1, 6):
        g = gradients(step)
        w[0] = clipped.apply_gradients(g, w[0], max_norm=0.5)
        w[1] = plain.apply_gradients(mlx_opt.clip_grad_norm(g, 0.5)[0], w[1])
    assert_close(*w, 1e-5)
    assert clipped.d.item() == pytest.approx(plain.d.item(), rel=1e-5)


@each_rule
def test_a_loss_scale_is_taken_out_before_the_sums(rule):
    scaled, plain = getattr(mlx_opt, rule)(), getattr(mlx_opt, rule)()
    scaled.loss_scale = 1024.0
    w = [first(), first()]
    for step in range(1, 6):
        g = gradients(step)
        w[0] = scaled.apply_gradients(tree_map(lambda x: 1024 * x, g), w[0])
        w[1] = plain.apply_gradients(g, w[1])
    assert_same(*w)
    assert_same(scaled.d, plain.d)


@each_rule
def test_groups_without_a_name_share_the_numbers(rule):
    options = {"weight_decay": 0.1, "decouple": True}
    groups = [Group("layers.*", weight_decay=0.0, eps=1e-4)]
    case = next(each for each in SUMMING if each.rule == rule)._replace(options=options)
    optimizer = getattr(mlx_opt, rule)(groups=groups, **options)
    w = walk(optimizer, range(1, 21))

    def own(path):
        own = {"weight_decay": 0.0, "eps": 1e-4}
        return own if path.startswith("layers") else {}

    assert_at(optimizer, w, exact(case, range(1, 21), own=own))
    assert "mlx_opt" not in optimizer.state


@each_rule
def test_a_group_with_a_name_has_numbers_of_its_own(rule):
    cls = getattr(mlx_opt, rule)
    optimizer = cls(groups=[Group("layers.*", name="layers", learning_rate_scale=0.5)])
    w = walk(optimizer, range(1, 11))
    alone, rest = cls(0.5), cls()
    own, other = {"layers": first()["layers"]}, {"a": first()["a"]}
    for step in range(1, 11):
        g = gradients(step)
        own = alone.apply_gradients({"layers": g["layers"]}, own)
        other = rest.apply_gradients({"a": g["a"]}, other)
    assert_same(w, {**other, **own})
    numbers = optimizer.state["mlx_opt"]["groups"]["layers"]
    for name in references.begin_kept(rule):
        assert_same(numbers[name], alone.state[name])
        assert_same(optimizer.state[name], rest.state[name])


@each_rule
def test_groups_with_a_name_go_on_inside_compile_and_after_a_skipped_step(rule):
    def make():
        return getattr(mlx_opt, rule)(groups=[Group("a", name="a", weight_decay=0.1)])

    captured, plain = make(), make()
    w = [first(), first()]
    for optimizer in (captured, plain):
        optimizer.init(first())

    def run(g, w):
        return captured.apply_gradients(g, w, skip_nonfinite=True)

    step = mx.compile(run, inputs=captured.state, outputs=captured.state)
    for number in range(1, 9):
        g = gradients(number)
        g["a"] = g["a"] * (NAN if number == 3 else 1)
        w = [step(g, w[0]), plain.apply_gradients(g, w[1], skip_nonfinite=True)]
    assert_close(*w, 1e-6)
    for name in references.begin_kept(rule):
        numbers = [x.state["mlx_opt"]["groups"]["a"][name].item() for x in (captured, plain)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-5)
        assert numbers[0] != 0
    assert plain.skipped.item() == captured.skipped.item() == 1


@each_rule
def test_frozen_parameters_and_those_without_a_gradient_do_not_count(rule):
    cls = getattr(mlx_opt, rule)
    optimizer, alone = cls(groups=[mlx_opt.freeze("layers.*")]), cls()
    w, own = first(), {"a": first()["a"]}
    for step in range(1, 6):
        w = optimizer.apply_gradients(gradients(step), w)
        own = alone.apply_gradients({"a": gradients(step)["a"]}, own)
    assert_same(w, {**first(), **own})
    assert_same(optimizer.d, alone.d)


@pytest.mark.parametrize(
    ("rule", "name", "value"),
    [
        ("Prodigy", "d_coef", 2.0),
        ("Prodigy", "growth_rate", 2.0),
        ("Prodigy", "beta3", 0.5),
        ("DAdaptAdam", "growth_rate", 2.0),
        ("DAdaptAdam", "betas", (0.5, 0.9)),
        ("DAdaptAdam", "d0", 1e-4),
    ],
)
def test_a_group_that_changes_the_numbers_needs_a_name(rule, name, value):
    message = f"{rule}: groups: a group with {name} needs a name, for the number that the state"
    with pytest.raises(ValueError, match=message):
        getattr(mlx_opt, rule)(groups=[Group("a", **{name: value})])


@each_rule
def test_members_of_a_multi_optimizer_have_numbers_of_their_own(rule):
    cls = getattr(mlx_opt, rule)
    both = mlx_opt.MultiOptimizer([cls(), cls()], [lambda path, x: path == "a"])
    alone, w, own = cls(), first(), {"a": first()["a"]}
    for step in range(1, 6):
        w = both.apply_gradients(gradients(step), w)
        own = alone.apply_gradients({"a": gradients(step)["a"]}, own)
    assert_same(w["a"], own["a"])
    assert_same(both.optimizers[0].d, alone.d)
    assert both.optimizers[1].d.item() != alone.d.item()


@each_rule
@pytest.mark.parametrize("masters", ["float32", "remainder"])
def test_master_weights_are_what_the_sums_read(rule, masters):
    """Parameters that bfloat16 holds, so that both begin at the same weights."""
    cls = getattr(mlx_opt, rule)
    narrow, plain = cls(master_weights=masters), cls()
    w = first(mx.bfloat16)
    wide_w = tree_map(lambda x: x.astype(mx.float32), w)
    for step in range(1, 11):
        g = tree_map(lambda x: x.astype(mx.bfloat16), gradients(step))
        w = narrow.apply_gradients(g, w)
        wide_w = plain.apply_gradients(tree_map(lambda x: x.astype(mx.float32), g), wide_w)
    assert_close(narrow.master_parameters(w), wide_w, 1e-6)
    assert narrow.d.item() == pytest.approx(plain.d.item(), rel=1e-6)
    assert plain.d.item() > 1e-5


@each_rule
def test_state_dtype_is_that_of_the_slots_that_are_named(rule):
    optimizer = getattr(mlx_opt, rule)(state_dtype={"m": mx.bfloat16})
    w = walk(optimizer, range(1, 6))
    assert optimizer.state["a"]["m"].dtype == mx.bfloat16
    assert optimizer.state["a"]["s"].dtype == mx.float32
    plain = getattr(mlx_opt, rule)()
    assert_close(w, walk(plain, range(1, 6)), 1e-2)
    assert optimizer.d.item() == pytest.approx(plain.d.item(), rel=1e-2)


@each_rule
def test_a_mapped_step_is_that_of_each_element(rule):
    cls = getattr(mlx_opt, rule)
    batch = [first(), tree_map(lambda x: 2 * x, first())]
    stacked = tree_map(lambda *x: mx.stack(x), *batch)

    def run(w):
        optimizer = cls()
        for step in range(1, 4):
            w = optimizer.apply_gradients(gradients(step), w)
        return w, optimizer.d

    mapped, d = mx.vmap(run)(stacked)
    for i, w in enumerate(batch):
        expected, own = run(w)
        assert_close(tree_map(lambda x, i=i: x[i], mapped), expected, 1e-6)
        assert d[i].item() == pytest.approx(own.item(), rel=1e-6)


@each_rule
def test_a_gradient_goes_through_the_sums(rule):
    def loss(x):
        optimizer, w = getattr(mlx_opt, rule)(), {"w": mx.array([1e-6, -2e-6])}
        for step in (1.0, 2.0, 3.0):
            w = optimizer.apply_gradients({"w": x * step}, w)
        return 1e6 * w["w"].sum()

    x, size = mx.array([0.5, -0.25]), 1e-2
    slope = mx.grad(loss)(x)
    for i in range(2):
        change = size * (mx.arange(2) == i)
        difference = (loss(x + change) - loss(x - change)).item() / (2 * size)
        assert slope[i].item() == pytest.approx(difference, rel=0.05, abs=0.05)


@each_rule
def test_complex_parameters_count_with_the_others(rule):
    cls = getattr(mlx_opt, rule)
    optimizer, plain = cls(), cls()
    w = {"w": mx.zeros(3, mx.complex64), "x": mx.zeros(2)}
    real = {"w": mx.zeros(3), "x": mx.zeros(2)}
    for step in range(8):
        g = {"w": 1 + normal(3, seed=step), "x": 1 + normal(2, seed=step)}
        real = plain.apply_gradients(g, real)
        w = optimizer.apply_gradients({**g, "w": g["w"].astype(mx.complex64)}, w)
    assert_close({**w, "w": mx.real(w["w"])}, real, 1e-5)
    assert optimizer.d.dtype == mx.float32
    assert optimizer.d.item() == pytest.approx(plain.d.item(), rel=1e-5)


@each_rule
@pytest.mark.parametrize("count", [2, 3])
def test_gradients_of_several_calls_make_one_step(rule, count):
    cls = getattr(mlx_opt, rule)
    added, plain, w = cls(accumulate=count), cls(), [first(), first()]
    for step in range(4):
        all_of_step = [gradients(10 * step + i) for i in range(count)]
        for g in all_of_step:
            w[0] = added.apply_gradients(g, w[0])
        mean = tree_map(lambda *x: sum(x) / count, *all_of_step)
        w[1] = plain.apply_gradients(mean, w[1])
    assert_close(*w, 1e-5)
    assert added.d.item() == pytest.approx(plain.d.item(), rel=1e-5)


@each_rule
def test_hyperparameters_may_be_schedules_and_arrays(rule):
    cls = getattr(mlx_opt, rule)
    options = {"growth_rate": 2.0, "weight_decay": 0.5, "betas": (0.9, 0.99), "eps": 1e-6}
    plain = cls(0.5, decouple=True, **options)
    others = cls(
        lambda step: 0.5 + 0 * step,
        decouple=True,
        growth_rate=lambda step: 2.0 + 0 * step,
        weight_decay=mx.array(0.5),
        betas=(mx.array(0.9), 0.99),
        eps=1e-6,
    )
    assert_close(walk(others, range(1, 9)), walk(plain, range(1, 9)), 1e-4)
    assert others.d.item() == pytest.approx(plain.d.item(), rel=1e-4)


@each_rule
def test_a_subclass_with_its_own_step_has_the_numbers(rule):
    cls = getattr(mlx_opt, rule)

    class Own(cls):
        def apply_single(self, gradient, parameter, state):
            return super().apply_single(gradient, parameter, state)

    own, plain = Own(), cls()
    assert_close(walk(own, range(1, 6)), walk(plain, range(1, 6)), 1e-5)
    assert own.d.item() == pytest.approx(plain.d.item(), rel=1e-5)


# On a GPU the operations of the sums hold the arrays.
@each_rule
@pytest.mark.usefixtures("cpu")
def test_a_small_step_of_a_model_is_made_in_place(rule):
    model = nn.Linear(8, 4)
    model.update(tree_map(lambda x: normal(*x.shape, seed=1), model.parameters()))
    optimizer = getattr(mlx_opt, rule)()
    optimizer.init(model.trainable_parameters())
    g = tree_map(lambda x: normal(*x.shape, seed=2), model.parameters())
    mx.eval(model.parameters(), optimizer.state, g)

    def places():
        arrays = [model.weight, optimizer.state["weight"]["s"], optimizer.state["bias"]["m"]]
        return [(id(x), np.array(x, copy=False).ctypes.data) for x in arrays]

    for _ in range(3):
        before = places()
        optimizer.update(model, g)
        mx.eval(optimizer.state)
        assert places() == before


@each_rule
def test_an_error_leaves_everything_as_it_was(rule):
    optimizer = getattr(mlx_opt, rule)()
    w = walk(optimizer, range(1, 4))
    before = tree_map(mx.array, optimizer.state)
    broken = gradients(4)
    broken["a"] = broken["a"][:2]
    with pytest.raises(ValueError, match="^a: gradient"):
        optimizer.apply_gradients(broken, w)
    assert_same(optimizer.state, before)
    del optimizer.state["d_numerator"]
    with pytest.raises(KeyError, match='the optimizer state has no "d_numerator"'):
        optimizer.apply_gradients(gradients(4), w)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"d0": 0.0}, "Prodigy: d0: expected more than 0, got 0"),
        ({"growth_rate": -1.0}, "Prodigy: growth_rate: expected more than 0, got -1"),
        ({"beta3": 1.0}, r"Prodigy: beta3: expected a number in \[0, 1\), got 1"),
    ],
)
def test_a_value_out_of_its_range_is_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        mlx_opt.Prodigy(**options)


def test_bfloat16_needs_a_way_to_keep_small_steps():
    """The first steps are of the length of d0, which a bfloat16 near 1 loses."""

    def after_five_steps(**options):
        optimizer, w = mlx_opt.Prodigy(**options), {"w": mx.ones((50, 50), mx.bfloat16)}
        for _ in range(5):
            w = optimizer.apply_gradients(w, w)
        return optimizer.d.item()

    d0 = pytest.approx(1e-6)
    assert after_five_steps() == d0
    assert after_five_steps(master_weights="float32") > 2e-6
    assert after_five_steps(stochastic_rounding=True) > 2e-6
