"""The option `state_dtype`: what is stored, and that all else is as it is without the option."""

import copy
import pickle

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten, tree_map

import mlx_opt
from cases import Case, assert_close, normal
from mlx_opt.fused import FusedOptimizer

F32, F16, BF16 = mx.float32, mx.float16, mx.bfloat16

# Rules that differ in the number and kind of their slots. Lamb's second pass reads the state as it
# is stored.
RULES = [
    Case("SGD", {"momentum": 0.9, "weight_decay": 0.1}),
    Case("AdamW", {"weight_decay": 0.1, "amsgrad": True}),
    Case("AdaDelta"),
    Case("AdEMAMix"),
    Case("Yogi"),
    Case("AdamWScheduleFree"),
    Case("Adafactor", {"relative_step": False, "beta_1": 0.9}),
]
each_rule = pytest.mark.parametrize("case", RULES, ids=str)
MIXES = [(F32, BF16, F32), (BF16, F32, F32), (F16, BF16, BF16), (F32, F16, F16)]
each_mix = pytest.mark.parametrize(
    ("parameter", "gradient", "state"), MIXES, ids=["f32-bf16", "bf16-f32", "f16-bf16", "f32-f16"]
)


def built(case, state_dtype):
    options = {**case.options, "state_dtype": state_dtype}
    return getattr(mlx_opt, case.rule)(learning_rate=0.01, **options)


def tree(dtype, seed):
    return {"a": normal(3, 37, seed=seed, dtype=dtype), "b": normal(5, seed=seed, dtype=dtype)}


def slots_of(optimizer, path="a"):
    return {name: x for name, x in optimizer.state[path].items() if isinstance(x, mx.array)}


def model_of(parameters):
    model = nn.Module()
    for name, x in parameters.items():
        model[name] = mx.array(x)
    return model


@each_rule
@each_mix
def test_a_step_is_that_of_float32_and_each_result_is_rounded_once(
    case, parameter, gradient, state
):
    optimizer, wide = built(case, state), built(case, None)
    w = tree(parameter, 0)
    optimizer.init(w)
    for step in range(3):
        g = tree(gradient, 1 + step)
        wide.state = tree_map(lambda x: x.astype(F32) if x.dtype in (F16, BF16) else mx.array(x),
                              optimizer.state)  # fmt: skip
        expected = wide.apply_gradients(
            tree_map(lambda x: x.astype(F32), g), tree_map(lambda x: x.astype(F32), w)
        )
        w = optimizer.apply_gradients(g, w)
        for path, x in w.items():
            assert x.dtype == parameter
            assert mx.array_equal(x, expected[path].astype(parameter)), path
            for name, slot in slots_of(wide, path).items():
                is_wide = name in case.formats
                assert optimizer.state[path][name].dtype == (F32 if is_wide else state)
                assert mx.array_equal(
                    optimizer.state[path][name], slot.astype(F32 if is_wide else state)
                ), (path, name)


def test_slots_that_are_not_named_are_promoted_as_ever_and_the_parameter_is_kept():
    optimizer = mlx_opt.AdamW(0.1, state_dtype={"v": "float32"})
    w = optimizer.apply_gradients(tree(BF16, 1), tree(BF16, 0))
    assert {name: x.dtype for name, x in slots_of(optimizer).items()} == {"m": BF16, "v": F32}
    assert w["a"].dtype == BF16
    optimizer.apply_gradients(tree(F32, 1), w)
    assert slots_of(optimizer)["m"].dtype == F32


def test_a_slot_that_the_rule_stores_in_float32_can_be_named():
    optimizer = mlx_opt.AdEMAMix(0.1, state_dtype={"m2": BF16})
    optimizer.apply_gradients(tree(F32, 1), tree(F32, 0))
    assert {name: x.dtype for name, x in slots_of(optimizer).items()} == {
        "m1": F32, "m2": BF16, "v": F32
    }  # fmt: skip


@pytest.mark.parametrize("rule", ["SGD", "SignSGD"])
def test_a_parameter_without_state_keeps_its_dtype_too(rule):
    optimizer = getattr(mlx_opt, rule)(0.1, state_dtype=BF16)
    assert optimizer.apply_gradients(tree(F32, 1), tree(BF16, 0))["a"].dtype == BF16


def run(form, optimizer, parameters, gradients, **clip):
    """The parameters after a step for each of the gradients."""
    model = model_of(parameters)
    optimizer.init(model.trainable_parameters())
    mx.eval(model.parameters(), optimizer.state)
    state = [model.state, optimizer.state]

    def step(g):
        optimizer.update(model, g, **clip)

    if form == "compiled":
        step = mx.compile(step, inputs=state, outputs=state)
    for g in gradients:
        if form == "graph":
            g = tree_map(lambda x: x + 0, g)  # lazy
        else:
            mx.eval(g)
        step(g)
    return dict(tree_flatten(model.parameters()))


@pytest.mark.parametrize("form", ["graph", "compiled", "formula"])
@pytest.mark.parametrize("clip", [{}, {"max_norm": 0.5, "skip_nonfinite": True}], ids=["", "clip"])
@pytest.mark.parametrize(
    "case",
    [Case("AdamW", {"weight_decay": 0.1}), Case("AdEMAMix"), Case("Muon"), Case("Lamb")],
    ids=str,
)
def test_the_forms_of_a_step_agree(case, form, clip, monkeypatch):
    gradients = [tree(BF16, 1), tree(BF16, 2), tree(BF16, 3)]
    gradients[1]["a"] = gradients[1]["a"] * (float("nan") if clip else 1)
    dtypes = {"v": F16} if case.rule == "Muon" else {"v": F32, "m1": F16, "m": F16}
    known = {slot.name for each in built(case, None)._forms.forms for slot in each.slots}
    dtypes = {name: dtype for name, dtype in dtypes.items() if name in known}
    in_place, other = built(case, dtypes), built(case, dtypes)
    expected = run("in-place", in_place, tree(BF16, 0), gradients, **clip)
    if form == "formula":
        monkeypatch.setattr(FusedOptimizer, "_uses_primitives", lambda self: False)
        monkeypatch.setattr(mlx_opt.Muon, "_uses_primitives", lambda self: False)
    found = run(form, other, tree(BF16, 0), gradients, **clip)
    assert {x.dtype for x in found.values()} == {BF16}
    assert_close(found, expected, 2e-2)
    for path in expected:
        for name, x in slots_of(in_place, path).items():
            assert other.state[path][name].dtype == x.dtype == dtypes.get(name, x.dtype)
            assert_close(other.state[path][name], x, 2e-2)


def test_a_step_under_vmap_and_under_a_gradient():
    optimizer = mlx_opt.AdamW(0.1, state_dtype=BF16)
    w, g = normal(4, 6, seed=0), normal(4, 6, seed=1)

    def step(w, g):
        optimizer = mlx_opt.AdamW(0.1, state_dtype=BF16)
        new = optimizer.apply_gradients({"w": g}, {"w": w})["w"]
        return new, optimizer.state["w"]["m"]

    new, m = mx.vmap(step)(w, g)
    expected = optimizer.apply_gradients({"w": g}, {"w": w})["w"]
    assert m.dtype == BF16
    assert mx.array_equal(new, expected)
    assert mx.array_equal(m, optimizer.state["w"]["m"])
    assert mx.grad(lambda w: step(w, g)[0].sum())(w).shape == w.shape


def test_a_step_is_in_place():
    model, optimizer = model_of(tree(F32, 0)), mlx_opt.AdamW(0.1, state_dtype=BF16)
    optimizer.init(model.trainable_parameters())
    mx.eval(model, optimizer.state)
    before = id(model["a"]), id(optimizer.state["a"]["m"])
    g = tree(F32, 1)
    mx.eval(g)
    optimizer.update(model, g)
    assert (id(model["a"]), id(optimizer.state["a"]["m"])) == before


@pytest.mark.parametrize("skips", [False, True], ids=["applied", "skipped"])
def test_a_run_goes_on_with_another_dtype(skips):
    first = mlx_opt.AdamW(0.1, state_dtype=F16)
    w = first.apply_gradients(tree(F32, 1), tree(F32, 0))
    mx.eval(w, first.state)
    before = {name: mx.array(x) for name, x in slots_of(first).items()}
    second = mlx_opt.AdamW(0.1, state_dtype={"m": BF16, "v": F32})
    second.state = tree_map(mx.array, first.state)
    second.init(w)
    assert slots_of(second)["m"].dtype == F16
    del first
    g = tree(F32, 2)
    g["a"] = g["a"] * (float("inf") if skips else 1)
    mx.eval(g, second.state)
    w = second.apply_gradients(g, w, skip_nonfinite=True)
    found = slots_of(second)
    assert {name: x.dtype for name, x in found.items()} == {"m": BF16, "v": F32}
    assert mx.array_equal(found["m"], before["m"].astype(BF16)) == skips
    assert mx.array_equal(found["v"], before["v"].astype(F32)) == skips


def test_groups_have_their_own():
    groups = [mlx_opt.Group("a", state_dtype=F32), {"match": "b", "state_dtype": {"m": "float16"}}]
    optimizer, plain = mlx_opt.AdamW(0.1, state_dtype=BF16, groups=groups), mlx_opt.AdamW(0.1)
    w = {**tree(F32, 0), "c": normal(4, seed=0)}
    g = {**tree(F32, 1), "c": normal(4, seed=1)}
    optimizer.init(w)
    dtypes = {path: {n: x.dtype for n, x in slots_of(optimizer, path).items()} for path in w}
    expected = plain.apply_gradients(g, w, max_norm=1.0)
    found = optimizer.apply_gradients(g, w, max_norm=1.0)
    assert_close({path: found[path] for path in expected}, expected, 1e-6)
    assert dtypes == {
        "a": {"m": F32, "v": F32}, "b": {"m": F16, "v": F32}, "c": {"m": BF16, "v": BF16}
    }  # fmt: skip
    for path, own in dtypes.items():
        assert {name: x.dtype for name, x in slots_of(optimizer, path).items()} == own
    assert {row.values["state_dtype"] for row in optimizer.describe(w, show=False)[:1]} == {
        "float32"
    }


def test_optimizers_of_a_multi_optimizer_keep_their_own():
    optimizer = mlx_opt.MultiOptimizer(
        [mlx_opt.AdamW(0.1, state_dtype=BF16), mlx_opt.AdamW(0.1)], [lambda path, _: path == "a"]
    )
    optimizer.apply_gradients(tree(F32, 1), tree(F32, 0))
    first, second = optimizer.state["states"]
    assert first["a"]["m"].dtype == BF16 and second["b"]["m"].dtype == F32


def test_complex_parameters_are_left_to_the_formula():
    optimizer = mlx_opt.AdamW(0.1, state_dtype=BF16)
    w = {"w": mx.array([1 + 1j])}
    assert optimizer.apply_gradients(w, w)["w"].dtype == mx.complex64
    assert optimizer.state["w"]["m"].dtype == mx.complex64


def test_copies_keep_it():
    groups = [mlx_opt.Group("b", state_dtype=F16)]
    optimizer = mlx_opt.AdamW(0.1, state_dtype={"m": BF16}, groups=groups)
    for each in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        each.apply_gradients(tree(F32, 1), tree(F32, 0))
        assert each.state["a"]["m"].dtype == BF16
        assert each.state["b"]["v"].dtype == F16
    assert "state_dtype={'m': 'bfloat16'}" in repr(optimizer)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            "int4",
            ValueError,
            "Adam: state_dtype: expected float32, float16, bfloat16 or int8, got 'int4'",
        ),
        (
            {"m": mx.uint8},
            ValueError,
            "Adam: state_dtype: expected float32, float16, bfloat16 or int8, got mlx.core.uint8",
        ),
        (
            8,
            TypeError,
            "Adam: state_dtype: expected a dtype, its name, or a dict of these by the names of "
            "slots, got int",
        ),
        (
            {"u": BF16},
            ValueError,
            "Adam: state_dtype: there is no 'u'; it has m, v, v_max",
        ),
    ],
)
def test_what_is_no_format_is_refused(given, error, message):
    with pytest.raises(error) as raised:
        mlx_opt.Adam(0.1, state_dtype=given)
    assert str(raised.value) == message
    with pytest.raises(error, match="state_dtype"):
        mlx_opt.Adam(0.1, groups=[mlx_opt.Group("a", state_dtype=given)])


@pytest.mark.parametrize("variant", ["normuon", "adamuon"])
def test_the_second_moments_of_muons_variants(variant):
    found = {}
    for given in (BF16, {"v": F16, "s": BF16}):
        optimizer = mlx_opt.Muon(0.1, **{variant: True}, state_dtype=given)
        w = tree(F32, 0)
        for step in range(2):
            w = optimizer.apply_gradients(tree(F32, 1 + step), w, skip_nonfinite=True)
        found[str(given)] = [x.dtype for x in slots_of(optimizer).values()]
    assert list(found.values()) == [[BF16, F32], [F16, BF16]]
