"""Muon's split and its variants, against float64 and in everything that a step can be."""

import copy
import pickle

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map, tree_unflatten

import mlx_opt
from cases import assert_close, assert_same, falling, flat, for_compile, normal, wide
from mlx_opt import Group, references
from test_muon import STEPS, stacks_of

SHAPES = {
    "a": (24, 40),
    "b": (40, 24),
    "qkv": (24, 16),
    "conv": (8, 3, 3, 4),
    "experts": (4, 6, 10),
    "column": (9, 1),
    "vector": (24,),
    "scalar": (),
    "empty": (0, 3),
}
SPLIT = {"qkv": [12, 6, 6], "conv": 2, "experts": 4, "vector": 3}
VARIANTS = [
    {"split": SPLIT},
    {"normuon": True},
    {"normuon": True, "beta2": 0.8, "split": SPLIT, "weight_decay_kind": "decoupled"},
    {"adamuon": True, "equalize": "sign", "adjust_lr": "match_rms_adamw", "split": SPLIT},
    {"equalize": "rows", "normalize": "columns_rows"},
    {"equalize": "columns", "normalize": "rows", "split": SPLIT},
    {"equalize": "both", "normalize": "frobenius", "normuon": True},
    {"normalize": "rows_columns", "adamuon": True},
    {"hyperball": True, "normuon": True, "weight_decay": 0.0, "split": SPLIT},
    {"normalize": "columns", "ns_coefficients": "polar_express", "nesterov": False},
]
each_variant = pytest.mark.parametrize("options", VARIANTS, ids=lambda x: "-".join(x))
FEW = [VARIANTS[2], VARIANTS[3], VARIANTS[5], VARIANTS[8]]
few_variants = pytest.mark.parametrize("options", FEW, ids=lambda x: "-".join(x))


def tree(seed, dtype=mx.float32):
    return {name: normal(*shape, seed=seed, dtype=dtype) for name, shape in SHAPES.items()}


def has_second(options, shape):
    return len(shape) >= 2 and bool(options.get("normuon") or options.get("adamuon"))


def second_shape(options, shape):
    return shape[:-1] if options.get("normuon") else shape


def exact_step(options, w, g, state, step, learning_rate, **more):
    """The references' step of all matrices that have elements."""
    rest = {k: x for k, x in options.items() if k not in ("split", "ns_coefficients")}
    if "ns_coefficients" in options:
        rest["coefficients"] = mlx_opt.newton_schulz.SETS[options["ns_coefficients"]]
    for name, x in g.items():
        if x.size:
            given = options.get("split", {}).get(name, ()) if x.ndim > 1 else ()
            split = (given,) if isinstance(given, int) else tuple(given)
            w[name], state[name] = references.muon(
                w[name],
                wide(x),
                state[name],
                step,
                learning_rate=learning_rate,
                split=split,
                **rest,
                **more,
            )


def begin(options, w):
    exact = {name: wide(x) for name, x in w.items()}
    state = {name: {"v": np.zeros_like(x)} for name, x in exact.items()}
    for name, x in exact.items():
        if has_second(options, x.shape):
            state[name]["s"] = np.zeros(second_shape(options, x.shape))
    return exact, state


@each_variant
def test_many_steps_follow_the_reference(options):
    optimizer, w = mlx_opt.Muon(falling, **options), tree(0)
    exact, state = begin(options, w)
    for step in range(12):
        g = tree(1 + step)
        g["b"] = g["b"] * (step != 4)
        w = optimizer.apply_gradients(g, w)
        mx.eval(w, optimizer.state)
        exact_step(options, exact, g, state, step + 1, falling(step))
    for name, x in w.items():
        if x.size:
            assert np.abs(wide(x) - exact[name]).max() <= 2e-5 * np.abs(exact[name]).max(), name
    for name, slots in state.items():
        assert optimizer.state[name].keys() == slots.keys()
        if "s" in slots:
            ours = optimizer.state[name]["s"]
            assert (ours.shape, ours.dtype) == (slots["s"].shape, mx.float32)
            assert np.abs(wide(ours) - slots["s"]).max(initial=0) <= 2e-5 * slots["s"].max(
                initial=1
            )


@each_variant
def test_the_formula_takes_the_same_steps(options):
    class Formula(mlx_opt.Muon):
        def _uses_primitives(self):
            return False

    for dtype, tolerance in ((mx.float32, 1e-5), (mx.float16, 2e-3)):
        one, other = mlx_opt.Muon(0.02, **options), Formula(0.02, **options)
        w = v = tree(0, dtype)
        for step in range(2):
            w = one.apply_gradients(tree(1 + step, dtype), w)
            v = other.apply_gradients(tree(1 + step, dtype), v)
        assert tree_map(lambda x: x.dtype, w) == tree_map(lambda x: x.dtype, v)
        assert_close(w, v, tolerance)
        assert_close(one.state, other.state, tolerance)


@few_variants
def test_a_compiled_training_with_skipped_steps_and_a_resumption(options):
    clip = {"max_norm": 5.0, "skip_nonfinite": True}
    plain, captured = mlx_opt.Muon(0.02, **options), mlx_opt.Muon(0.02, **options)
    w, held = for_compile(tree(0)), {"w": for_compile(tree(0))}
    captured.init(held["w"])
    inputs = [held, captured.state]

    @lambda f: mx.compile(f, inputs=inputs, outputs=inputs)
    def step(g):
        held["w"] = captured.apply_gradients(g, held["w"], **clip)

    for i in range(4):
        g = tree_map(lambda x, i=i: x * (mx.nan if i == 1 else 1.0), for_compile(tree(1 + i)))
        before = tree_map(mx.array, plain.state) if i else None
        w = plain.apply_gradients(g, w, **clip)
        step(g)
        if i == 1:
            assert_same({n: plain.state[n] for n in w}, {n: before[n] for n in w})
    assert_close(held["w"], w, 1e-5)
    assert_close(captured.state, plain.state, 1e-5)
    assert plain.step.item() == 3 and plain.skipped.item() == 1

    again = mlx_opt.Muon(0.02, **options)
    saved = {name: mx.array(np.array(x)) for name, x in tree_flatten(plain.state)}
    again.state = tree_unflatten(list(saved.items()))
    for i in range(2):
        g = for_compile(tree(7 + i))
        expected = plain.apply_gradients(g, w, **clip)
        assert_same(again.apply_gradients(g, w, **clip), expected)
        w = expected
    assert_same(again.state, plain.state)


@few_variants
def test_bfloat16_keeps_its_dtypes_and_stays_near_float32(options):
    half, full = mlx_opt.Muon(0.1, **options), mlx_opt.Muon(0.1, **options)
    g, w = tree(1, mx.bfloat16), tree(0, mx.bfloat16)
    got = half.apply_gradients(g, w)
    floats = [tree_map(lambda x: x.astype(mx.float32), x) for x in (g, w)]
    expected = full.apply_gradients(*floats)
    assert {x.dtype for x in got.values()} == {mx.bfloat16}
    for name, x in got.items():
        slots = half.state[name]
        assert slots["v"].dtype == mx.bfloat16
        assert "s" not in slots or slots["s"].dtype == mx.float32
        assert x.size == 0 or np.abs(wide(x) - wide(expected[name])).max() <= 0.05, name


def test_blocks_are_matrices_of_their_own():
    parts = {name: normal(n, 16, seed=n) for name, n in (("q", 12), ("k", 5), ("v", 6))}
    grads = {name: normal(*x.shape, seed=9) for name, x in parts.items()}
    options = {"normuon": True, "adjust_lr": "match_rms_adamw"}
    whole = mlx_opt.Muon(0.1, split={"w": [12, 5, 6]}, **options)
    w, g = ({"w": mx.concatenate([*x.values()])} for x in (parts, grads))
    expected = mlx_opt.Muon(0.1, **options).apply_gradients(grads, parts)
    got = whole.apply_gradients(g, w)["w"]
    assert_close(got, mx.concatenate([*expected.values()]), 1e-6)


def test_blocks_go_through_with_other_matrices_of_their_shape():
    w = {"qkv": normal(48, 16), "out": normal(16, 16), "single": normal(16, 16)}
    for options, stacks in (({}, 1), ({"normuon": True}, 1), ({"split": {}}, 2)):
        options = {"split": {"qkv": 3, "single": None}, **options} if "split" not in options else {}
        optimizer = mlx_opt.Muon(0.1, ns_steps=STEPS, **options)
        new = optimizer.apply_gradients(w, w)
        assert stacks_of(list(new.values())) == stacks


def test_groups_choose_variants_and_blocks():
    groups = [
        Group("qkv", split=[12, 12], normuon=True, beta2=lambda step: 0.5 + 0.1 * step, name="g"),
        Group("b", split=2),
    ]
    optimizer = mlx_opt.Muon(0.1, groups=groups, split={"[ab]": 4, "experts": 4})
    w = tree(0)
    own = {
        "qkv": {"split": {"qkv": [12, 12]}, "normuon": True},
        "b": {"split": {"b": 2}},
        "a": {"split": {"a": 4}},
        "experts": {"split": {"experts": 4}},
        "conv": {},
    }
    exact = {name: begin(options, w) for name, options in own.items()}
    for step in range(3):
        g = tree(1 + step)
        w = optimizer.apply_gradients(g, w)
        for name, options in own.items():
            more = {"beta2": 0.5 + 0.1 * step} if name == "qkv" else {}
            exact_step(
                options, exact[name][0], {name: g[name]}, exact[name][1], step + 1, 0.1, **more
            )
    for name, (expected, state) in exact.items():
        assert np.abs(wide(w[name]) - expected[name]).max() < 1e-4, name
        assert optimizer.state[name].keys() == state[name].keys()
    rows = {row.path: row.values["split"] for row in optimizer.describe(w, show=False)}
    assert (rows["qkv"], rows["b"], rows["a"], rows["conv"]) == ([12, 12], 2, 4, None)


def test_a_model_is_updated_with_a_fallback_and_copies_go_on():
    model = nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 4))
    optimizer = mlx_opt.Muon(
        0.1,
        split={"*.0.*": 2},
        normuon=True,
        fallback=mlx_opt.AdamW(0.01),
    )
    g = tree_map(mx.ones_like, model.trainable_parameters())
    for _ in range(2):
        optimizer.update(model, g)
    assert [*optimizer.state["layers"][0]["weight"]] == ["v", "s"]
    assert "bias" not in optimizer.state["layers"][0]
    for again in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        w = tree_map(mx.array, model.trainable_parameters())
        assert_same(again.apply_gradients(g, w), copy.deepcopy(optimizer).apply_gradients(g, w))


def test_vmap():
    def step(g, w):
        optimizer = mlx_opt.Muon(0.1, normuon=True, equalize="rows", split={"w": [2, 4]})
        return optimizer.apply_gradients({"w": g}, {"w": w})["w"]

    g, w = normal(3, 6, 5, seed=1), normal(3, 6, 5, seed=2)
    expected = mx.stack([step(a, b) for a, b in zip(g, w, strict=True)])
    assert_close(mx.vmap(step)(g, w), expected, 1e-5)


def test_a_momentum_may_warm_up():
    momentum = mlx_opt.linear_schedule(0.5, 0.9, 4)
    optimizer, w = mlx_opt.Muon(0.1, momentum=momentum), {"w": normal(6, 4)}
    exact, state = begin({}, w)
    for step in range(6):
        g = {"w": normal(6, 4, seed=1 + step)}
        w = optimizer.apply_gradients(g, w)
        now = 0.5 + 0.1 * min(step, 4)
        exact_step({}, exact, g, state, step + 1, 0.1, momentum=now)
    assert np.abs(wide(w["w"]) - exact["w"]).max() < 1e-5


def test_a_state_without_second_moments_begins_them_with_a_warning():
    w = {"w": normal(6, 4), "v": normal(3)}
    plain = mlx_opt.Muon(0.1)
    w = plain.apply_gradients(w, w)
    optimizer = mlx_opt.Muon(0.1, groups=[Group("w", normuon=True)])
    optimizer.state = plain.state
    with pytest.warns(UserWarning, match=r"the state had no w\.s; begun anew"):
        optimizer.init(w)
    optimizer.apply_gradients(w, w)
    assert optimizer.state["w"]["s"].shape == (6,)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"equalize": "row"}, ValueError, "equalize: expected one of None, rows, .*, got 'row'"),
        ({"normalize": True}, ValueError, "normalize: expected one of None, rows, .*, got True"),
        (
            {"equalize": mx.array(1)},
            ValueError,
            "equalize: expected one of None, rows, .*, got arr",
        ),
        ({"ns_steps": 10**30}, ValueError, "ns_steps: expected 1000 or fewer, got 10"),
        ({"normuon": True, "adamuon": True}, ValueError, "normuon and adamuon cannot be combined"),
        ({"hyperball": True}, ValueError, "Muon: hyperball needs a weight_decay of 0"),
        ({"beta2": 1.0}, ValueError, r"Muon: beta2: expected a number in \[0, 1\), got 1"),
        ({"split": [4, 4]}, TypeError, "split: expected a dict from patterns to blocks, got list"),
        ({"split": {"w": "3"}}, TypeError, "split: expected an int, or the rows of .*, got '3'"),
        (
            {"split": {"w": [3]}},
            ValueError,
            r"split: expected 1 or more, .* 2 or more .*, got \[3\]",
        ),
        ({"split": {"w": [0, 6]}}, ValueError, r"split: expected 1 or more, .*, got \[0, 6\]"),
        ({"split": {"w": 0}}, ValueError, "split: expected 1 or more, .*, got 0"),
    ],
)
def test_arguments_that_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        mlx_opt.Muon(0.1, **options)


@pytest.mark.parametrize("given", [5, [4, 4, 4], (6, 2, 4)])
def test_a_split_that_does_not_fit_changes_nothing(given):
    optimizer = mlx_opt.Muon(0.1, split={"layers.*.qkv": given})
    w = {"layers": [{"qkv": normal(4, 3) if given == 5 else normal(10, 3)}]}
    shape = w["layers"][0]["qkv"].shape
    with pytest.raises(ValueError) as error:
        optimizer.apply_gradients(w, w)
    assert str(error.value) == f"layers.0.qkv: split {given}, parameter {shape}"
    assert optimizer.step.item() == 0 and "layers" not in optimizer.state


def test_the_attribute_is_the_split_of_parameters_without_one():
    w = {"w": normal(6, 4)}
    expected = mlx_opt.Muon(0.1, split={"w": 2}).apply_gradients(w, w)
    optimizer = mlx_opt.Muon(0.1)
    optimizer.split = 2
    assert_same(optimizer.apply_gradients(w, w), expected)
    state = {}
    optimizer.init_single(w["w"], state)
    assert_same(optimizer.apply_single(w["w"], w["w"], state), expected["w"])
    optimizer.split = 5
    with pytest.raises(ValueError, match=r"split \[5\], parameter \(6, 4\)"):
        optimizer.apply_gradients(w, w)


def test_a_pattern_may_match_what_a_fallback_without_groups_updates():
    class Plain(mlx_opt.Optimizer):
        def init_single(self, parameter, state):
            pass

        def apply_single(self, gradient, parameter, state):
            return parameter - gradient

    optimizer = mlx_opt.Muon(0.1, split={"qkv.*": 2}, fallback=Plain())
    w = {"qkv": {"weight": normal(6, 4), "bias": normal(6)}}
    assert not optimizer.apply_gradients(w, w)["qkv"]["bias"].any()


def test_a_pattern_of_a_split_that_matches_nothing_is_an_error():
    optimizer = mlx_opt.Muon(0.1, split={"qvk": 3})
    with pytest.raises(ValueError, match='"qvk" matches no parameter; the nearest path is "qkv"'):
        optimizer.apply_gradients({"qkv": normal(6, 3)}, {"qkv": normal(6, 3)})


def test_an_equalized_direction_does_not_depend_on_the_sizes_of_rows():
    g = normal(6, 9, seed=1)
    sizes = mx.array([0.1, 1.0, 10.0, 100.0, 1000.0, 3.0])[:, None]
    results = [
        mlx_opt.Muon(0.1, weight_decay=0.0, equalize="rows").apply_gradients(
            {"w": x}, {"w": mx.zeros((6, 9))}
        )
        for x in (100 * g, 100 * g * sizes)
    ]
    assert_close(*results, 1e-4)


def test_rows_of_the_same_size_go_on_as_without_normuon():
    """An exactly orthogonal square factor has rows of norm 1, which NorMuon does not change."""
    options = {"weight_decay": 0.0, "ns_coefficients": "polar_express", "ns_steps": 9}
    g, w = {"w": normal(8, 8)}, {"w": mx.zeros((8, 8))}
    results = [
        mlx_opt.Muon(0.1, **options, **variant).apply_gradients(g, w)
        for variant in ({}, {"normuon": True}, {"normalize": "frobenius"}, {"normalize": "rows"})
    ]
    for other in results[1:]:
        assert_close(other, results[0], 1e-4)


def test_a_hyperball_keeps_the_norm_and_makes_the_rate_relative():
    optimizer = mlx_opt.Muon(0.1, hyperball=True, weight_decay=0.0)
    w = {"w": 7 * normal(8, 6), "half": normal(6, 8, dtype=mx.bfloat16), "zero": mx.zeros((2, 3))}
    g = {"w": normal(8, 6, seed=1), "half": normal(6, 8, seed=2), "zero": mx.ones((2, 3))}
    before = {name: np.linalg.norm(wide(x)) for name, x in w.items()}
    new = optimizer.apply_gradients(g, w)
    for name, x in new.items():
        tolerance = 1e-2 if name == "half" else 1e-5
        assert abs(np.linalg.norm(wide(x)) - before[name]) <= tolerance * before[name], name
    moved = np.linalg.norm(wide(new["w"]) - wide(w["w"])) / before["w"]
    assert 0.09 < moved < 0.11


def test_flattened_paths_of_the_state_have_the_second_moment():
    optimizer = mlx_opt.Muon(0.1, adamuon=True)
    optimizer.init({"w": normal(3, 2), "b": normal(3)})
    assert {"w.v", "w.s", "b.v"} <= {*flat(optimizer.state)}
    assert "b.s" not in flat(optimizer.state)
