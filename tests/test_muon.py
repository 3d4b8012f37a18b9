"""Muon against float64, stock and PyTorch, its options, and its iterations over many matrices."""

import gc
import io
import re

import mlx.core as mx
import mlx.optimizers as stock
import numpy as np
import pytest
from mlx.utils import tree_map

import mlx_opt
from cases import assert_close, assert_same, each_half, falling, flat, normal, signature, wide
from mlx_opt import newton_schulz, references

STEPS = 5
SHAPES = {
    "a": (24, 40),
    "b": (40, 24),
    "c": (24, 40),
    "square": (16, 16),
    "three": (4, 5, 6),
    "four": (8, 3, 3, 4),
    "row": (1, 9),
    "column": (9, 1),
    "vector": (33,),
    "scalar": (),
    "empty": (0, 3),
}
STOCK_OPTIONS = [
    {},
    {"nesterov": False},
    {"momentum": 0.8, "weight_decay": 0.3},
    {"weight_decay": 0.0, "ns_steps": 3},
]
OPTIONS = [
    *STOCK_OPTIONS,
    {"decoupled_weight_decay": True, "weight_decay": 0.2},
    {"adjust_lr": "match_rms_adamw"},
    {"ns_coefficients": "polar_express", "ns_steps": 7},
    {"ns_coefficients": [(2.0, -1.5, 0.5), (1.875, -1.25, 0.375)]},
]


def names(options):
    return "-".join(options) or "default"


each_option = pytest.mark.parametrize("options", OPTIONS, ids=names)
each_stock_option = pytest.mark.parametrize("options", STOCK_OPTIONS, ids=names)
each_set = pytest.mark.parametrize("name", list(newton_schulz.SETS))


def tree(seed, dtype=mx.float32):
    x = {name: normal(*shape, seed=seed, dtype=dtype) for name, shape in SHAPES.items()}
    return {"layers": [x, (x["a"],)]}


def coefficients_of(options):
    given = options.get("ns_coefficients", "quintic")
    return newton_schulz.SETS[given] if isinstance(given, str) else given


def reference_options(options):
    rest = {k: v for k, v in options.items() if k != "ns_coefficients"}
    return {**rest, "coefficients": coefficients_of(options)}


@each_option
@pytest.mark.parametrize("learning_rate", [0.02, falling], ids=["constant", "scheduled"])
def test_many_steps_follow_the_reference(options, learning_rate):
    optimizer, w = mlx_opt.Muon(learning_rate, **options), tree(0)
    exact = {path: wide(x) for path, x in flat(w).items()}
    state = {path: {"v": np.zeros_like(x)} for path, x in exact.items()}
    for step in range(20):
        g = tree(1 + step)
        w = optimizer.apply_gradients(g, w)
        mx.eval(w, optimizer.state)
        now = learning_rate(step) if callable(learning_rate) else learning_rate
        for path, x in flat(g).items():
            if x.size:
                exact[path], state[path] = references.muon(
                    exact[path],
                    wide(x),
                    state[path],
                    step + 1,
                    learning_rate=now,
                    **reference_options(options),
                )
    for path, x in flat(w).items():
        if x.size:
            # The first iterations multiply what rounding does to small singular values.
            assert np.abs(wide(x) - exact[path]).max() <= 2e-5 * np.abs(exact[path]).max(), path


@each_stock_option
def test_many_steps_are_stocks(options):
    ours, theirs = mlx_opt.Muon(0.02, **options), stock.Muon(0.02, **options)
    w, v = tree(0), tree(0)
    for tree_ in (w, v):
        del tree_["layers"][0]["empty"]  # which stock cannot take
    for step in range(50):
        g = tree(1 + step)
        del g["layers"][0]["empty"]
        w, v = ours.apply_gradients(g, w), theirs.apply_gradients(g, v)
        mx.eval(w, v, ours.state, theirs.state)
    assert_close(w, v, 1e-5)
    assert_close(ours.state, theirs.state, 1e-5)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("adjust_lr", ["original", "match_rms_adamw"])
def test_many_steps_are_near_pytorchs(nesterov, adjust_lr):
    torch = pytest.importorskip("torch")
    shapes = [(24, 40), (40, 24), (16, 16)]
    options = {"momentum": 0.9, "weight_decay": 0.1, "nesterov": nesterov}
    tensors = [
        torch.tensor(wide(normal(*s, seed=1)), dtype=torch.float32).requires_grad_() for s in shapes
    ]
    theirs = torch.optim.Muon(tensors, lr=0.02, adjust_lr_fn=adjust_lr, **options)
    ours = mlx_opt.Muon(
        0.02, ns_dtype=mx.bfloat16, decoupled_weight_decay=True, adjust_lr=adjust_lr, **options
    )
    start = w = {str(i): normal(*s, seed=1) for i, s in enumerate(shapes)}
    for step in range(30):
        g = {str(i): normal(*s, seed=2 + step) for i, s in enumerate(shapes)}
        w = ours.apply_gradients(g, w)
        for tensor, x in zip(tensors, g.values(), strict=True):
            tensor.grad = torch.tensor(wide(x), dtype=torch.float32)
        theirs.step()
    moved = max(np.abs(wide(x) - wide(start[path])).max() for path, x in w.items())
    for x, tensor in zip(w.values(), tensors, strict=True):
        # Both iterate in bfloat16, which is good to two or three digits.
        assert np.abs(wide(x) - tensor.detach().numpy()).max() <= 0.02 * moved


def best_quintic(low, high):
    """The odd polynomial of degree 5 that is nearest to 1 on [low, high] (Remez)."""
    inner = np.array([(3 * low + high) / 4, (low + 3 * high) / 4])
    for _ in range(100):
        at = np.array([low, *inner, high])
        system = np.stack([at, at**3, at**5, [1, -1, 1, -1]], axis=1)
        a, b, c, _ = np.linalg.solve(system, np.ones(4))
        inner = np.sqrt((-3 * b + np.array([-1, 1]) * np.sqrt(9 * b * b - 20 * a * c)) / (10 * c))
    return np.array([a, b, c])


def test_polar_express_is_the_best_composition_from_a_thousandth_on():
    low, high, cushion = 1e-3, 1.0, 0.02407327424182761
    for step, given in enumerate(newton_schulz.SETS["polar_express"][:-1]):
        a, b, c = best_quintic(max(low, cushion * high), high)

        def p(x, a=a, b=b, c=c):
            return a * x + b * x**3 + c * x**5

        centre = (p(low) + p(high)) / 2 if cushion * high > low else 1.0
        expected = np.array([a, b, c]) / centre / 1.01 ** np.array([1, 3, 5])
        assert np.abs(given - expected).max() < 1e-9, step
        low, high = p(low) / centre, 2 - p(low) / centre
    assert newton_schulz.SETS["polar_express"][-1] == [1.875, -1.25, 0.375]


@pytest.mark.parametrize(
    ("name", "steps", "low", "high"),
    [
        ("quintic", 5, 0.68, 1.21),
        ("polar_express", 5, 0.8, 1.14),
        ("polar_express", 8, 0.999, 1.001),
    ],
)
@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (20, 20)])
def test_singular_values_end_near_one(name, steps, low, high, shape):
    u, _, v = np.linalg.svd(wide(normal(*shape)), full_matrices=False)
    s = np.linspace(0.02, 1.0, len(v))
    x = mx.array((u * s @ v).astype(np.float32))
    (got,) = newton_schulz.orthogonalized([x], [1.0], newton_schulz.SETS[name], steps, None)
    values = np.linalg.svd(wide(got), compute_uv=False)
    assert low <= values.min() and values.max() <= high


def stacks_of(arrays):
    """How many stacks of matrices are in the graph of `arrays`."""
    graph = io.StringIO()
    mx.export_to_dot(graph, *arrays)
    # Three products an iteration; a device adds within some of them.
    return len(re.findall('label ="(?:AddMM|Matmul)"', graph.getvalue())) // (3 * STEPS)


def test_matrices_of_one_shape_go_through_together(monkeypatch):
    matrices = [normal(*s, seed=i) for i, s in enumerate([(3, 5), (5, 3), (4, 4), (3, 5), (4, 4)])]
    scales = [1.0] * 5
    quintic = newton_schulz.SETS["quintic"]
    together = newton_schulz.orthogonalized(matrices, scales, quintic, STEPS, None)
    assert stacks_of(together) == 2
    monkeypatch.setattr(newton_schulz, "STACK", 30)
    in_parts = newton_schulz.orthogonalized(matrices, scales, quintic, STEPS, None)
    assert stacks_of(in_parts) == 4
    for x, y, z in zip(together, in_parts, matrices, strict=True):
        exact = references.newton_schulz(wide(z), quintic, STEPS)
        assert np.abs(wide(x) - exact).max() < 1e-5
        assert np.abs(wide(y) - exact).max() < 1e-5


@pytest.mark.parametrize("rows", [127, 128, 131, 300])
def test_symmetric_products_made_of_parts_are_those_products(rows):
    x = normal(rows, 310)
    quintic = newton_schulz.SETS["quintic"]
    (got,) = newton_schulz.orthogonalized([x], [0.5], quintic, 3, None)
    assert np.abs(wide(got) - 0.5 * references.newton_schulz(wide(x), quintic, 3)).max() < 1e-5


@each_set
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16], ids=str)
def test_degenerate_matrices_give_finite_results(name, dtype):
    line = np.outer(np.arange(6), np.ones(4))
    g = {
        "zero": mx.zeros((6, 4)),
        "rank-one": mx.array(line.astype(np.float32)),
        "row": mx.ones((1, 5)),
        "column": mx.ones((5, 1)),
        "tiny": mx.full((3, 4), 1e-30),
        "one": mx.ones((1, 1)),
    }
    g = tree_map(lambda x: x.astype(dtype), g)
    optimizer = mlx_opt.Muon(0.1, ns_coefficients=name, weight_decay=0.0)
    w = optimizer.apply_gradients(g, tree_map(mx.zeros_like, g))
    assert all(mx.all(mx.isfinite(x)).item() for x in w.values())
    assert not w["zero"].any()


@each_half
def test_halves_keep_their_dtypes_and_stay_near_float32(dtype):
    g, start = tree(1, dtype), tree(0, dtype)
    optimizer, full = mlx_opt.Muon(0.1), mlx_opt.Muon(0.1)
    w = optimizer.apply_gradients(g, start)

    def as_float32(tree):
        return tree_map(lambda x: x.astype(mx.float32), tree)

    expected = full.apply_gradients(as_float32(g), as_float32(start))
    assert signature(w) == signature(start)
    for path, x in flat(w).items():
        assert x.size == 0 or np.abs(wide(x) - wide(flat(expected)[path])).max() <= 0.03, path


def test_mixed_dtypes_promote_as_in_stock():
    for w_dtype in (mx.float32, mx.bfloat16, mx.float16):
        for g_dtype in (mx.float32, mx.bfloat16, mx.float16):
            w, g = {"w": normal(4, 6, dtype=w_dtype)}, {"w": normal(4, 6, dtype=g_dtype)}
            results = [package.Muon(0.1).apply_gradients(g, w) for package in (mlx_opt, stock)]
            assert signature(results[0]) == signature(results[1])


def test_compile_vmap_and_gradients():
    def step(package):
        return lambda g, w: package.Muon(0.1).apply_gradients({"w": g}, {"w": w})["w"]

    g, w = normal(3, 5, 8, seed=1), normal(3, 5, 8, seed=2)
    expected = mx.stack([step(stock)(a, b) for a, b in zip(g, w, strict=True)])
    assert_close(mx.vmap(step(mlx_opt))(g, w), expected, 1e-5)
    assert_close(mx.compile(step(mlx_opt))(g[0], w[0]), expected[0], 1e-5)
    gradients = [
        mx.grad(lambda g, p=package: step(p)(g, w[0]).square().sum())(g[0])
        for package in (mlx_opt, stock)
    ]
    assert_close(*gradients, 1e-4)


def test_an_iteration_of_a_subclass_is_used():
    def make(package):
        class Signs(package.Muon):
            def _zeropower_via_newtonschulz5(self, x, steps):
                return mx.sign(x) / steps

        return Signs(0.1)

    g, w = {"w": normal(4, 3, 2, seed=1)}, {"w": normal(4, 3, 2)}
    assert_close(make(mlx_opt).apply_gradients(g, w), make(stock).apply_gradients(g, w))


def with_fallback(**options):
    return mlx_opt.Muon(0.02, fallback=mlx_opt.AdamW(0.01, weight_decay=0.1), **options)


def in_dicts(seed):
    return {
        "weight": normal(6, 4, seed=seed),
        "norm": {"bias": normal(4, seed=seed), "x": normal()},
    }


def test_a_fallback_takes_what_is_no_matrix():
    optimizer, w = with_fallback(), in_dicts(0)
    muon, adamw = mlx_opt.Muon(0.02), mlx_opt.AdamW(0.01, weight_decay=0.1)
    matrices, others = {"weight": w["weight"]}, {"norm": w["norm"]}
    for step in range(3):
        g = in_dicts(1 + step)
        w = optimizer.apply_gradients(g, w)
        matrices = muon.apply_gradients({"weight": g["weight"]}, matrices)
        others = adamw.apply_gradients({"norm": g["norm"]}, others)
    expected = {**matrices, **others}
    assert_same({name: w[name] for name in expected}, expected)
    assert optimizer.state.keys() == {"step", "learning_rate", "weight", "mlx_opt"}
    assert optimizer.state["mlx_opt"]["fallback"] is optimizer.fallback.state
    again = with_fallback()
    again.state = tree_map(mx.array, optimizer.state)
    g = in_dicts(9)
    got, expected = again.apply_gradients(g, w), optimizer.apply_gradients(g, w)
    assert_same({name: got[name] for name in expected}, expected)
    assert_same(again.state, optimizer.state)


def test_a_fallback_inside_compile_with_skipped_steps():
    plain, captured = with_fallback(), with_fallback()
    options = {"max_norm": 0.5, "skip_nonfinite": True}
    steps = [in_dicts(1), tree_map(lambda x: x * mx.nan, in_dicts(2)), in_dicts(3)]
    w, held = in_dicts(0), {"w": in_dicts(0)}
    state = [held, captured.state]

    @lambda f: mx.compile(f, inputs=state, outputs=state)
    def step(g):
        held["w"] = captured.apply_gradients(g, held["w"], **options)

    for g in steps:
        w = plain.apply_gradients(g, w, **options)
        step(g)
    assert_close({name: held["w"][name] for name in w}, w, 1e-5)
    assert_close(captured.state, plain.state, 1e-5)
    assert plain.step.item() == 2 and plain.fallback.step.item() == 2
    assert plain.skipped.item() == plain.fallback.skipped.item() == 1


def test_an_error_in_the_fallbacks_part_changes_neither():
    optimizer, w = with_fallback(), in_dicts(0)
    optimizer.init(w)
    g = in_dicts(1)
    g["norm"]["bias"] = mx.zeros(5)
    with pytest.raises(ValueError, match=r"norm.bias: gradient \(5,\), parameter \(4,\)"):
        optimizer.apply_gradients(g, w)
    assert optimizer.step.item() == 0 and optimizer.fallback.step.item() == 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ns_coefficients": "cubic"}, ValueError, "quintic, polar_express, got 'cubic'"),
        ({"adjust_lr": "half"}, ValueError, "original, match_rms_adamw, got 'half'"),
        ({"ns_steps": -1}, ValueError, "ns_steps: expected 0 or more, got -1"),
        ({"fallback": stock.SGD(0.1)}, TypeError, "an optimizer of mlx_opt, got SGD"),
    ],
)
def test_arguments_that_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        mlx_opt.Muon(0.1, **options)


def test_a_stack_bounds_the_memory(cpu, monkeypatch):
    """Of 32 matrices in stacks of two; in one stack it would be three or four times all of them."""
    monkeypatch.setattr(newton_schulz, "STACK", 2 * 64 * 4096)
    w = {str(i): mx.ones((64, 4096)) for i in range(32)}
    g = tree_map(lambda x: 2 * x, w)
    mx.eval(w, g)
    optimizer = mlx_opt.Muon(0.1)
    optimizer.init(w)
    mx.eval(optimizer.state)
    gc.collect()
    mx.synchronize()
    mx.clear_cache()
    size = mx.get_active_memory()
    mx.reset_peak_memory()
    w = optimizer.apply_gradients(g, w)
    del g
    mx.eval(w, optimizer.state)
    assert mx.get_peak_memory() <= 1.8 * size
