"""Gradients that are added up over several calls before a step."""

import copy
import gc
import pickle

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as stock
import pytest
from mlx.utils import tree_flatten, tree_map, tree_unflatten

import mlx_opt
from cases import Case, assert_close, falling, flat, normal

RULES = [
    Case("SGD", {"momentum": 0.9, "weight_decay": 0.1}),
    Case("AdamW", {"weight_decay": 0.1}),
    Case("AdamWScheduleFree"),
    Case("Adafactor", {"relative_step": False}),
    Case("Muon"),
    Case("Lamb"),
]
each_rule = pytest.mark.parametrize("case", RULES, ids=str)
COUNT = 4


def tree(seed):
    layers = [{"w": normal(8, 4, seed=seed + i), "b": normal(4, seed=seed + i)} for i in (1, 2)]
    return {"embed": normal(6, 8, seed=seed), "layers": layers}


def model_of(parameters):
    model = nn.Module()
    for name, child in parameters.items():
        model[name] = tree_map(mx.array, child)
    return model


def mean(gradients):
    """Of a number of trees that is a power of 2, so that the division is exact."""
    total = gradients[0]
    for g in gradients[1:]:
        total = tree_map(mx.add, total, g)
    return tree_map(lambda x: x / len(gradients), total)


def built(case, rate=0.01, **options):
    return getattr(mlx_opt, case.rule)(learning_rate=rate, **case.options, **options)


def pending(optimizer):
    return optimizer.state["mlx_opt"]["accumulated"]


def saved_and_loaded(optimizer, path):
    mx.save_safetensors(str(path), dict(tree_flatten(optimizer.state)))
    return tree_unflatten(list(mx.load(str(path)).items()))


@each_rule
@pytest.mark.parametrize("form", ["in-place", "graph", "compiled"])
def test_some_calls_are_a_step_with_the_mean(case, form):
    optimizer, plain = built(case, falling, accumulate=COUNT), built(case, falling)
    model, expected = model_of(tree(0)), tree(0)
    optimizer.init(model.trainable_parameters())
    mx.eval(model.parameters(), optimizer.state)
    state, traces = [model.state, optimizer.state], []

    def step(g):
        traces.append(1)
        optimizer.update(model, g, max_norm=0.5)

    if form == "compiled":
        step = mx.compile(step, inputs=state, outputs=state)
    for start in (10, 20, 30):
        gradients = [tree(start + i) for i in range(COUNT)]
        for i, g in enumerate(gradients):
            mx.eval(g) if form != "graph" else None
            step(tree_map(lambda x: x + 0, g) if form == "graph" else g)
            assert optimizer.accumulated == (i + 1) % COUNT
        expected = plain.apply_gradients(mean(gradients), expected, max_norm=0.5)
        assert_close(model.parameters(), expected, 2e-6 if case.rule != "Muon" else 1e-4)
        assert optimizer.step.item() == plain.step.item()
        assert optimizer.learning_rate.item() == plain.learning_rate.item()
        assert optimizer.grad_norm.item() == pytest.approx(plain.grad_norm.item(), rel=1e-6)
    if form == "compiled":
        assert len(traces) <= 2 * COUNT  # a number that a rule keeps may be new in the first round


def test_a_compiled_function_is_traced_once_for_each_call_of_a_round():
    optimizer, model = mlx_opt.AdamW(0.1, accumulate=3), model_of(tree(0))
    optimizer.init(model.trainable_parameters())
    state, traces = [model.state, optimizer.state], []

    def step(g):
        traces.append(1)
        optimizer.update(model, g)

    step = mx.compile(step, inputs=state, outputs=state)
    for i in range(12):
        step(tree(i))
    assert len(traces) <= 4  # the first call has no entry in the state to capture


def test_a_call_that_only_adds_is_in_place_and_touches_nothing_else():
    optimizer, model = mlx_opt.AdamW(0.1, accumulate=5), model_of(tree(0))
    optimizer.init(model.trainable_parameters())
    optimizer.update(model, tree(1))
    mx.eval(model.parameters(), optimizer.state)
    gc.collect()
    before = {path: id(x) for path, x in pending(optimizer)["gradients"].items()}
    others = [id(x) for _, x in tree_flatten([model.parameters(), optimizer.state["embed"]])]
    for i in range(3):
        g = tree(2 + i)
        mx.eval(g)
        optimizer.update(model, g)
    assert {path: id(x) for path, x in pending(optimizer)["gradients"].items()} == before
    assert others == [
        id(x) for _, x in tree_flatten([model.parameters(), optimizer.state["embed"]])
    ]
    assert mx.array_equal(model["embed"], tree(0)["embed"])


@pytest.mark.usefixtures("cpu")
@pytest.mark.parametrize("compiles", [False, True], ids=["", "compiled"])
def test_the_memory_of_a_round(compiles):
    n = 2**20
    optimizer, w = mlx_opt.AdamW(1e-3, accumulate=3), {"w": mx.zeros(n)}
    optimizer.init(w)
    mx.eval(w, optimizer.state)
    peaks = []
    step = optimizer.apply_gradients
    if compiles:
        step = mx.compile(step, inputs=[optimizer.state], outputs=[optimizer.state])
    base = mx.get_active_memory() - 12 * n
    for i in range(6):
        g = {"w": mx.full(n, float(i))}
        mx.eval(g)
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        w = step(g, w)
        del g
        mx.eval(w, optimizer.state)
        # MLX looks for a peak where it allocates, and a step in place may not do so.
        peaks.append((max(mx.get_peak_memory(), before) - base) / n)
    # Parameter and state 12, the gradient 4, and from the second call on what is pending 4.
    assert peaks == pytest.approx([16, 20, 20, 16, 20, 20], rel=0.02)


def test_the_mean_is_divided_by_a_sum_of_normalizers():
    optimizer, plain = mlx_opt.SGD(0.1, accumulate=2), mlx_opt.SGD(0.1)
    w, expected = tree(0), tree(0)
    for start in (1, 5):
        a, b = tree(start), tree(start + 1)
        w = optimizer.apply_gradients(a, w, normalizer=3)
        w = optimizer.apply_gradients(b, w, normalizer=mx.array(5), max_norm=0.25)
        total = tree_map(lambda x, y: (x + y) / 8, a, b)
        expected = plain.apply_gradients(total, expected, max_norm=0.25)
        assert_close(w, expected, 1e-6)
        assert_close(optimizer.grad_norm, plain.grad_norm, 1e-6)


def test_a_normalizer_of_one_call():
    w = mlx_opt.SGD(1.0).apply_gradients(
        {"w": mx.array([8.0])}, {"w": mx.array([0.0])}, normalizer=4
    )
    assert w["w"].item() == -2
    zero = mlx_opt.SGD(1.0).apply_gradients(
        {"w": mx.array([0.0])}, {"w": mx.array([3.0])}, normalizer=0
    )
    assert zero["w"].item() == 3
    with pytest.raises(ValueError, match="normalizer should be >=0, nan was provided instead"):
        mlx_opt.SGD(1.0).apply_gradients(zero, zero, normalizer=float("nan"))


def test_a_normalizer_in_some_calls_of_a_round_is_refused():
    for first, second in ((3, None), (None, 3)):
        optimizer = mlx_opt.SGD(0.1, accumulate=2)
        optimizer.apply_gradients(tree(1), tree(0), normalizer=first)
        before = flat(optimizer.state)
        with pytest.raises(ValueError) as raised:
            optimizer.apply_gradients(tree(1), tree(0), normalizer=second)
        assert str(raised.value) == (
            "normalizer: it must be given in all calls whose gradients are added, or in none"
        )
        assert flat(optimizer.state).keys() == before.keys() and optimizer.accumulated == 1


def test_halves_are_added_in_float32_where_asked():
    first, small = ({"w": mx.array([x], mx.bfloat16)} for x in (1.0, 2.0**-9))
    sums = {}
    for dtype in (None, mx.float32, "float32"):
        optimizer = mlx_opt.SGD(1.0, accumulate=9, accumulate_dtype=dtype)
        w = {"w": mx.zeros(1, mx.bfloat16)}
        for i in range(8):
            optimizer.apply_gradients(small if i else first, w)
        held = pending(optimizer)["gradients"]["w"]
        sums[dtype] = held.item(), held.dtype
    assert sums[None] == (1.0, mx.bfloat16)
    assert sums[mx.float32] == sums["float32"] == (1.0 + 7 * 2.0**-9, mx.float32)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_a_wider_sum_changes_no_dtype_and_its_mean_is_rounded_once(dtype):
    optimizer = mlx_opt.AdamW(0.1, accumulate=4, accumulate_dtype=mx.float32)
    plain = mlx_opt.AdamW(0.1)
    w = {
        "w": normal(9, seed=0, dtype=dtype),
        "b": normal(9, seed=0),
        "late": normal(2, dtype=dtype),
    }
    # The sums are infinite in float16.
    calls = [{"w": mx.full(9, 3e4 + i, dtype), "b": normal(9, seed=i)} for i in range(4)]
    calls[0]["late"] = mx.ones(2, dtype)
    for g in calls:
        updated = optimizer.apply_gradients(g, w, max_norm=1.0)
    sums = {path: sum(g[path].astype(mx.float32) for g in calls if path in g) / 4 for path in w}
    expected = plain.apply_gradients(
        {path: x.astype(w[path].dtype) for path, x in sums.items()}, w, max_norm=1.0
    )
    assert_close({path: updated[path] for path in w}, expected, 1e-6)
    assert {x.dtype for _, x in tree_flatten(optimizer.state["w"])} == {dtype}


def test_a_wider_sum_without_a_gradient_in_the_last_call_changes_no_dtype():
    optimizer = mlx_opt.SGD(0.5, accumulate=2, accumulate_dtype=mx.float32)
    w = {"w": mx.zeros(2, mx.bfloat16), "b": mx.zeros(2)}
    optimizer.apply_gradients({"w": mx.ones(2, mx.bfloat16), "b": mx.ones(2)}, w)
    updated = optimizer.apply_gradients({"b": mx.ones(2)}, w)
    assert updated["w"].dtype == mx.bfloat16 and updated["b"].dtype == mx.float32
    assert updated["w"].tolist() == [-0.25, -0.25] and updated["b"].tolist() == [-0.5, -0.5]


def test_float32_gradients_are_added_in_bfloat16_where_asked():
    optimizer = mlx_opt.SGD(1.0, accumulate=3, accumulate_dtype=mx.bfloat16)
    w = {"w": mx.zeros(3)}
    for _ in range(2):
        optimizer.apply_gradients({"w": mx.ones(3)}, w)
        assert pending(optimizer)["gradients"]["w"].dtype == mx.bfloat16
    assert optimizer.apply_gradients({"w": mx.ones(3)}, w)["w"].dtype == mx.float32


@pytest.mark.parametrize("how", ["file", "deepcopy", "pickle"])
def test_a_round_goes_on_after_a_checkpoint(how, tmp_path):
    optimizer = mlx_opt.AdamW(0.1, accumulate=3, accumulate_dtype=mx.float32)
    w = tree(0)
    for i in range(4):
        w = optimizer.apply_gradients(tree(1 + i), w, normalizer=2)
    if how == "file":
        other = mlx_opt.AdamW(0.1, accumulate=3)
        other.state = saved_and_loaded(optimizer, tmp_path / "state.safetensors")
    else:
        other = copy.deepcopy(optimizer) if how == "deepcopy" else pickle.loads(
            pickle.dumps(optimizer)
        )  # fmt: skip
    assert other.accumulated == 1
    x = w
    for i in range(5):
        w = optimizer.apply_gradients(tree(20 + i), w, normalizer=3)
        x = other.apply_gradients(tree(20 + i), x, normalizer=3)
    assert_close(x, w, 0)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_run_goes_on_with_another_number(count):
    """A call makes the step if at least so many are pending with it, with their mean."""
    optimizer = mlx_opt.SGD(1.0, accumulate=8)
    w = {"w": mx.array([0.0])}
    for i in range(3):
        optimizer.apply_gradients({"w": mx.array([1.0 + i])}, w)
    other = mlx_opt.SGD(1.0, accumulate=count)
    other.state = tree_map(mx.array, optimizer.state)
    w = other.apply_gradients({"w": mx.array([6.0])}, w)
    assert w["w"].item() == -3 and other.accumulated == 0
    assert ("accumulated" in other.state["mlx_opt"]) == (count > 1)
    for _ in range(count):
        w = other.apply_gradients({"w": mx.array([1.0])}, w)
    assert w["w"].item() == -4


def test_a_parameter_may_miss_some_calls():
    optimizer, plain = mlx_opt.SGD(0.1, accumulate=4), mlx_opt.SGD(0.1)
    w = tree(0)
    calls = [tree(i) for i in (1, 2, 3, 4)]
    del calls[0]["layers"][1]["w"]
    calls[1]["layers"] = [{}, {"w": calls[1]["layers"][1]["w"]}]
    del calls[3]["embed"]
    del calls[3]["layers"]
    calls[3]["layers"] = [{"b": normal(4, seed=9)}]
    given = [dict(tree_flatten(g)) for g in calls]
    total = {path: sum(g[path] for g in given if path in g) / 4 for path, _ in tree_flatten(w)}
    for _ in range(2):  # in the second round the entries are there
        start = w
        for g in calls:
            w = optimizer.apply_gradients(g, start)
        expected = plain.apply_gradients(tree_unflatten(list(total.items())), start)
        assert_close(w, expected, 1e-6)


def test_frozen_parameters_hold_nothing():
    optimizer = mlx_opt.SGD(0.1, accumulate=2, groups=[mlx_opt.freeze("embed")])
    w = tree(0)
    assert_close(optimizer.apply_gradients(tree(1), w), w, 0)
    assert "embed" not in pending(optimizer)["gradients"]
    w = optimizer.apply_gradients(tree(2), w, max_norm=100.0)
    assert_close(w["embed"], tree(0)["embed"], 0)
    plain = mlx_opt.SGD(0.1, groups=[mlx_opt.freeze("embed")])
    expected = plain.apply_gradients(mean([tree(1), tree(2)]), tree(0), max_norm=100.0)
    assert_close(w, expected, 1e-6)
    assert_close(optimizer.grad_norm, plain.grad_norm, 1e-6)


def test_groups_count():
    groups = [
        mlx_opt.Group("*.b", weight_decay=0.0),
        mlx_opt.Group("embed", learning_rate_scale=0.5),
    ]
    optimizer = mlx_opt.AdamW(0.1, weight_decay=0.1, accumulate=2, groups=groups)
    plain = mlx_opt.AdamW(0.1, weight_decay=0.1, groups=groups)
    w = tree(0)
    for g in (tree(1), tree(2)):
        w = optimizer.apply_gradients(g, w)
    assert_close(w, plain.apply_gradients(mean([tree(1), tree(2)]), tree(0)), 1e-6)
    with pytest.raises(TypeError, match="there is no accumulate; a group can have"):
        mlx_opt.AdamW(0.1, groups=[mlx_opt.Group("a", accumulate=2)])


@pytest.mark.parametrize("scale", [None, 1024.0], ids=["", "loss-scale"])
def test_a_step_that_is_skipped_drops_what_was_pending(scale):
    optimizer, plain = mlx_opt.AdamW(0.1, accumulate=2), mlx_opt.AdamW(0.1)
    optimizer.loss_scale = plain.loss_scale = scale
    w = tree(0)
    bad = tree(1)
    bad["embed"] = bad["embed"] * float("nan")
    w = optimizer.apply_gradients(bad, w, skip_nonfinite=True)
    w = optimizer.apply_gradients(tree(2), w, skip_nonfinite=True)
    assert_close(w, tree(0), 0)
    assert optimizer.skipped.item() == 1 and optimizer.step.item() == 0
    assert optimizer.accumulated == 0
    plain.apply_gradients(bad, tree(0), skip_nonfinite=True)
    for g in (tree(3), tree(4)):
        w = optimizer.apply_gradients(g, w, max_norm=0.1, skip_nonfinite=True)
    expected = plain.apply_gradients(mean([tree(3), tree(4)]), tree(0), 0.1, True)
    assert_close(w, expected, 1e-6)
    if scale:
        assert optimizer.loss_scale.item() == plain.loss_scale.item() == 512


def parted(**options):
    parts = [mlx_opt.Muon(0.1, groups=[mlx_opt.freeze("layers.1.w")]), mlx_opt.AdamW(0.1)]
    return mlx_opt.MultiOptimizer(parts, [lambda path, x: x.ndim == 2], **options)


def falling_back(**options):
    fallback = mlx_opt.AdamW(0.1, groups=[mlx_opt.freeze("layers.1.b")])
    return mlx_opt.Muon(0.1, fallback=fallback, **options)


def with_hooks(**options):
    class Own(mlx_opt.optimizers.Optimizer):
        def __init__(self, accumulate=1):
            super().__init__()
            self.accumulate = accumulate

        def init_single(self, parameter, state):
            state["n"] = mx.zeros_like(parameter)

        def apply_single(self, gradient, parameter, state):
            state["n"] = state["n"] + 1
            return parameter - gradient

    return Own(**options)


def of_stock(**options):
    parts = [stock.SGD(0.1), mlx_opt.AdamW(0.1)]
    return mlx_opt.MultiOptimizer(parts, [lambda path, x: x.ndim == 2], **options)


def nested(**options):
    return mlx_opt.MultiOptimizer(
        [parted(), mlx_opt.Lion(0.1)], [lambda path, _: path != "embed"], **options
    )


@pytest.mark.parametrize("build", [parted, falling_back, with_hooks, of_stock, nested])
def test_optimizers_of_several_parts_and_with_hooks(build):
    optimizer, plain = build(accumulate=2), build()
    w, expected = tree(0), tree(0)
    for start in (1, 5):
        for g in (tree(start), tree(start + 1)):
            w = optimizer.apply_gradients(g, w, max_norm=0.5)
        expected = plain.apply_gradients(
            mean([tree(start), tree(start + 1)]), expected, max_norm=0.5
        )
        assert_close(flat(w), flat(expected), 1e-4)
    assert optimizer.accumulated == 0
    assert not any("1.w" in path for path in flat(optimizer.state)) or build is not parted


def test_a_model_with_averages_takes_no_gradients():
    optimizer, model = mlx_opt.SGDScheduleFree(0.1, accumulate=2), model_of(tree(0))
    for i in range(3):
        optimizer.update(model, tree(1 + i))
    with optimizer.evaluating(model):
        with pytest.raises(RuntimeError, match="call train"):
            optimizer.update(model, tree(4))
        assert optimizer.accumulated == 1


def test_an_error_leaves_what_is_pending():
    optimizer = mlx_opt.AdamW(0.1, accumulate=3)
    w = tree(0)
    for i in range(2):
        optimizer.apply_gradients(tree(1 + i), w)
        before = flat(tree_map(mx.array, optimizer.state))
        for spoil in ({"embed": mx.ones(3)}, {"other": mx.ones(3)}):
            with pytest.raises((KeyError, ValueError), match="embed|other"):
                optimizer.apply_gradients({**tree(9), **spoil}, w)
        with pytest.raises(ValueError, match="max_norm"):
            optimizer.apply_gradients(tree(9), w, max_norm=-1)
        assert_close(flat(optimizer.state), before, 0)
    w = optimizer.apply_gradients(tree(3), w)
    total = tree_map(lambda *x: sum(x) / 3, tree(1), tree(2), tree(3))
    assert_close(w, mlx_opt.AdamW(0.1).apply_gradients(total, tree(0)), 1e-6)


def test_an_error_of_the_step_itself_leaves_what_is_pending():
    def rate(step):
        if fails:
            raise OSError
        return mx.array(0.1)

    fails, w = False, tree(0)
    optimizer = mlx_opt.SGD(rate, accumulate=2)
    optimizer.apply_gradients(tree(1), w)
    fails = True
    with pytest.raises(OSError):
        optimizer.apply_gradients(tree(2), w)
    fails = False
    assert optimizer.accumulated == 1
    w = optimizer.apply_gradients(tree(2), w)
    assert_close(w, mlx_opt.SGD(0.1).apply_gradients(mean([tree(1), tree(2)]), tree(0)), 1e-6)


def test_the_program_keeps_its_gradients():
    optimizer, w = mlx_opt.SGD(0.1, accumulate=3), {"w": mx.zeros(4)}
    gradients = [{"w": mx.full(4, float(i))} for i in range(3)]
    for g in gradients:
        w = optimizer.apply_gradients(g, w)
        mx.eval(w, optimizer.state)
    assert [g["w"][0].item() for g in gradients] == [0, 1, 2]


def test_complex_gradients_and_a_gradient_through_a_round():
    optimizer, w = mlx_opt.SGD(1.0, accumulate=2), {"w": mx.array([0j])}
    for _ in range(2):
        w = optimizer.apply_gradients({"w": mx.array([1 + 2j])}, w)
    assert w["w"].item() == -1 - 2j

    def after(x):
        optimizer, w = mlx_opt.SGD(1.0, accumulate=2), {"w": mx.zeros(())}
        for factor in (2.0, 4.0):
            w = optimizer.apply_gradients({"w": factor * x}, w)
        return w["w"]

    assert mx.grad(after)(mx.array(1.0)).item() == -3
    assert mx.array_equal(mx.vmap(after)(mx.array([1.0, 2.0])), mx.array([-3.0, -6.0]))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"accumulate": 0}, ValueError, "AdamW: accumulate: expected 1 or more, got 0"),
        ({"accumulate": 2.0}, TypeError, "AdamW: accumulate: expected an int, got float"),
        ({"accumulate": True}, TypeError, "AdamW: accumulate: expected an int, got bool"),
        (
            {"accumulate_dtype": "int8"},
            ValueError,
            "AdamW: accumulate_dtype: expected float32, float16, bfloat16 or None, got 'int8'",
        ),
    ],
)
def test_wrong_arguments_are_refused(options, error, message):
    with pytest.raises(error) as raised:
        mlx_opt.AdamW(0.1, **options)
    assert str(raised.value) == message


def test_parts_of_an_optimizer_do_not_accumulate():
    own = mlx_opt.AdamW(0.1, accumulate=2)
    with pytest.raises(ValueError) as raised:
        mlx_opt.MultiOptimizer([own])
    assert str(raised.value) == (
        "MultiOptimizer: accumulate is its own, not one of its optimizers'"
    )
    with pytest.raises(ValueError) as raised:
        mlx_opt.Muon(0.1, fallback=own)
    assert str(raised.value) == "fallback: accumulate is Muon's own, not its fallback's"
