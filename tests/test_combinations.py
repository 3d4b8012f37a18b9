"""Options together: state dtypes, master weights, clipping, and the formula in a kernel's place."""

import mlx.core as mx
import mlx.optimizers as stock
import pytest
from mlx.utils import tree_map

import mlx_opt
from cases import assert_close, assert_same, normal

F32, F16, BF16 = mx.float32, mx.float16, mx.bfloat16


def without_kernels(optimizer, monkeypatch):
    monkeypatch.setattr(optimizer, "_uses_primitives", lambda: False)
    return optimizer


@pytest.mark.parametrize(
    "clip", [{"max_norm": 0.5}, {"max_norm": 0.5, "skip_nonfinite": True}, {"max_value": 0.25}],
    ids=["norm", "skip", "value"],
)  # fmt: skip
@pytest.mark.parametrize(
    ("parameter", "gradient", "options"),
    [
        (F32, BF16, {}),
        (F32, BF16, {"state_dtype": F16}),
        (BF16, F16, {"state_dtype": F16, "master_weights": "float32"}),
        (BF16, BF16, {"master_weights": "remainder"}),
        (F16, F32, {"state_dtype": {"v": F16}, "master_weights": "float32"}),
    ],
    ids=["", "state", "masters-of-half", "remainders", "masters"],
)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_formula_clips_and_stores_as_the_kernels_do(
    parameter, gradient, options, clip, momentum, monkeypatch
):
    fused, formula = (mlx_opt.SGD(0.5, momentum, weight_decay=0.1, **options) for _ in range(2))
    without_kernels(formula, monkeypatch)
    w = expected = {"w": normal(5, 7, seed=0, dtype=parameter)}
    for step in range(1, 4):
        g = {"w": normal(5, 7, seed=step, dtype=gradient)}
        if step == 2 and "skip_nonfinite" in clip:
            g["w"] = g["w"] * float("nan")
        expected = fused.apply_gradients(g, expected, **clip)
        w = formula.apply_gradients(g, w, **clip)
    found, slots = formula.state["w"], fused.state["w"]
    assert {name: x.dtype for name, x in found.items()} == {
        name: x.dtype for name, x in slots.items()
    }
    masters = formula.master_parameters(w), fused.master_parameters(expected)
    tolerance = 1e-6 if options.keys() == {"master_weights"} else 1e-2
    assert w["w"].dtype == parameter
    assert_close(*masters, tolerance)
    assert_close(found["v"], slots["v"], 1e-2)


def test_a_skipped_step_of_the_formula_keeps_every_bit(monkeypatch):
    """A master that is unset stays so, also if the program has written the parameter since."""
    optimizer = without_kernels(mlx_opt.SGD(0.5, 0.9, master_weights="float32"), monkeypatch)
    w = {"w": normal(9, seed=0, dtype=BF16)}
    optimizer.init(w)
    before = dict(optimizer.state["w"])
    bad = {"w": mx.full(9, float("inf"), BF16)}
    assert_same(optimizer.apply_gradients(bad, w, skip_nonfinite=True), w)
    assert_same(optimizer.state["w"], before)


@pytest.mark.parametrize("kind", ["float32", "remainder"])
@pytest.mark.parametrize("dtype", [F16, BF16], ids=["float16", "bfloat16"])
def test_a_step_with_master_weights_narrows_a_state_of_float32(kind, dtype):
    before, w = mlx_opt.AdamW(0.1, master_weights=kind), {"w": normal(999, seed=0, dtype=BF16)}
    g = {"w": normal(999, seed=1, dtype=BF16)}
    w = before.apply_gradients(g, w)
    after = {}
    for given in (None, dtype):
        optimizer = mlx_opt.AdamW(0.1, master_weights=kind, state_dtype=given)
        optimizer.state = tree_map(mx.array, before.state)
        after[given] = optimizer.apply_gradients(g, w), optimizer.state["w"]
    assert_same(after[dtype][0], after[None][0])
    for name, x in after[None][1].items():
        assert_same(after[dtype][1][name], x.astype(dtype) if name in ("m", "v") else x)


def test_a_warning_names_the_first_of_many_parameters():
    plain, w = mlx_opt.SGD(0.1), {f"p{i}": mx.ones(1, BF16) for i in range(9)}
    plain.init(w)
    optimizer = mlx_opt.SGD(0.1, master_weights="float32")
    optimizer.state = plain.state
    with pytest.warns(UserWarning, match=r"no p0\.master, .*, p4\.master, 4 others; begun anew"):
        optimizer.init(w)


@pytest.mark.parametrize("method", ["memory", "master_parameters"])
def test_reports_name_a_leaf_that_is_no_array(method):
    optimizer = mlx_opt.AdamW(0.1, master_weights="float32")
    with pytest.raises(TypeError, match="^layers.1.w: expected an array, got float$"):
        getattr(optimizer, method)({"layers": [{}, {"w": 1.0}]})
    with pytest.raises(TypeError, match="^model: expected an array, got NoneType$"):
        getattr(optimizer, method)(None)


def test_muons_formula_has_the_dtypes_of_its_kernels(monkeypatch):
    """A decay that is added to the gradient, and a wider momentum, widen what is stored."""
    g = {"w": normal(6, 4, seed=1, dtype=F16)}
    for parameter, momentum in ((F32, F16), (BF16, F32)):
        w, found = {"w": normal(6, 4, seed=0, dtype=parameter)}, []
        for optimizer in (mlx_opt.Muon(0.1), without_kernels(mlx_opt.Muon(0.1), monkeypatch)):
            optimizer.init(w)
            optimizer.state["w"]["v"] = normal(6, 4, seed=2, dtype=momentum)
            found.append([optimizer.apply_gradients(g, w), optimizer.state["w"]["v"]])
        assert_close(*found, 2e-3)


@pytest.mark.parametrize("package", [mlx_opt, stock], ids=["ours", "stock"])
def test_the_first_optimizer_may_be_of_several_too(package):
    """What is of all optimizers is kept where the next step finds it."""
    inner = package.MultiOptimizer([package.SGD(1.0), package.SGD(1.0)], [lambda p, _: p == "a"])
    optimizer = mlx_opt.MultiOptimizer([inner, mlx_opt.SGD(1.0)], [lambda p, _: p != "c"])
    w = {path: mx.zeros(1) for path in "abc"}
    optimizer.loss_scale = 4.0
    after = optimizer.apply_gradients({path: mx.full(1, 8.0) for path in "abc"}, w)
    assert [x.item() for x in after.values()] == [-2.0, -2.0, -2.0]
    assert optimizer.grad_norm.item() == pytest.approx(12**0.5)
    bad = {path: mx.full(1, float("inf")) for path in "abc"}
    assert_same(optimizer.apply_gradients(bad, after), after)
    assert optimizer.skipped.item() == 1 and optimizer.loss_scale.item() == 2.0
