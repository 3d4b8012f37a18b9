"""hypothesis: any shape, any strides, any dtypes, any hyperparameters, against the references."""

import mlx.core as mx
import mlx.optimizers as stock
import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st
from mlx.utils import tree_map

import mlx_opt
from cases import (
    CASES,
    DTYPES,
    RULES,
    Case,
    assert_exact,
    copied,
    each_case,
    each_dtype,
    exact_step,
    flat,
    signature,
    ulp,
    wide,
)

sizes = st.sampled_from([0, 1, 2, 3, 5, 8, 15, 16, 17, 31, 33, 63, 64, 65, 127, 257, 300])
shapes = st.one_of(
    st.just(()),
    st.tuples(sizes),
    st.tuples(sizes, sizes),
    st.lists(st.sampled_from([1, 2, 3, 4, 7, 16, 17]), min_size=3, max_size=5).map(tuple),
)
dtypes = st.sampled_from(DTYPES)


@st.composite
def views(draw, shape, dtype, seed):
    """An array of that shape whose elements lie in memory in some way or other."""
    rng = np.random.default_rng([seed, *shape])

    def base(shape):
        return mx.array(rng.normal(size=shape).astype(np.float32)).astype(dtype)

    ndim = len(shape)
    way = draw(st.sampled_from(["plain", "transposed", "sliced", "strided", "broadcast", "lazy"]))
    if way == "plain" or ndim == 0:
        return base(shape)
    if way == "transposed":
        order = draw(st.permutations(range(ndim)))
        inverse = np.argsort(order)
        return base([shape[i] for i in order]).transpose([int(i) for i in inverse])
    if way == "sliced":
        before = [draw(st.integers(0, 3)) for _ in shape]
        x = base([n + b + 2 for n, b in zip(shape, before, strict=True)])
        return x[tuple(slice(b, b + n) for n, b in zip(shape, before, strict=True))]
    if way == "strided":
        steps = [draw(st.sampled_from([1, 2, 3, -1, -2])) for _ in shape]
        x = base([n * abs(s) for n, s in zip(shape, steps, strict=True)])
        return x[tuple(slice(None, None, s) for s in steps)]
    if way == "broadcast":
        kept = [draw(st.booleans()) for _ in shape]
        x = base([n if keep else min(n, 1) for n, keep in zip(shape, kept, strict=True)])
        return mx.broadcast_to(x, shape)
    return base(shape) * 2 - 1


class Leaf:
    """A parameter with its gradient and slots, each laid out its own way."""

    def __init__(self, draw, case, dtype=None):
        shape = draw(shapes)
        pick = st.just(dtype) if dtype else dtypes
        arrays = [draw(views(shape, draw(pick), seed)) for seed in range(2 + len(case.slots))]
        self.w, self.g, *slots = arrays
        self.slots = {
            name: x if case.is_signed(name) else mx.abs(x)
            for name, x in zip(case.slots, slots, strict=True)
        }


@st.composite
def leaves(draw, case, dtype=None):
    return Leaf(draw, case, dtype)


def step(case, tree, learning_rate):
    """The result and the state of a step over a dict of leaves."""
    optimizer = case.ours(learning_rate)
    w, g = ({k: getattr(leaf, field) for k, leaf in tree.items()} for field in ("w", "g"))
    optimizer.init(w)
    for k, leaf in tree.items():
        optimizer.state[k].update(leaf.slots)
    return optimizer.apply_gradients(g, w), {k: optimizer.state[k] for k in tree}


@given(data=st.data(), case=st.sampled_from(RULES))
def test_a_layout_is_read_as_what_it_shows(data, case):
    tree = {"x": data.draw(leaves(case)), "y": data.draw(leaves(case))}
    contiguous = {}
    for k, leaf in tree.items():
        contiguous[k] = Leaf.__new__(Leaf)
        contiguous[k].__dict__ = tree_map(copied, leaf.__dict__)
    got, expected = step(case, tree, 0.1), step(case, contiguous, 0.1)
    assert signature(got) == signature(expected)
    for path, x in flat(got).items():
        exact = wide(flat(expected)[path])
        # Other loops may fuse products and sums differently.
        error = ulp(exact, x.dtype) + 1e-6 * (1 + np.abs(exact))
        assert np.all(np.abs(wide(x) - exact) <= error), path


@each_dtype
@each_case
def test_equal_elements_stay_equal_wherever_they_are(case, dtype):
    for seed in range(20):
        values = np.random.default_rng(seed).normal(size=2 + len(case.slots))
        w, g, *slots = (mx.full((55,), float(x), dtype) for x in values)
        optimizer = case.ours(0.1)
        optimizer.init({"w": w})
        optimizer.state["w"].update(zip(case.slots, map(mx.abs, slots), strict=True))
        new = optimizer.apply_gradients({"w": g}, {"w": w})["w"]
        for x in (new, *optimizer.state["w"].values()):
            assert len(np.unique(wide(x))) == 1


@given(data=st.data(), case=st.sampled_from(CASES))
def test_any_step_is_the_exact_one_rounded_once(data, case):
    leaf = data.draw(leaves(case))
    before = {name: wide(m) for name, m in leaf.slots.items()}
    result, state = step(case, {"x": leaf}, 0.1)
    expected = exact_step(case, wide(leaf.w), wide(leaf.g), before, 1, 0.1, state["x"])
    for name, (exact, error) in expected.items():
        assert_exact(result["x"] if name == "w" else state["x"][name], exact, error)


betas = st.floats(0, 0.9999)
positive = st.floats(1e-10, 1.0)
KINDS = {
    "weight_decay_kind": st.sampled_from(["coupled", "decoupled", "independent", "corrected"]),
    "max_learning_rate": st.floats(0.5, 2.0),
}
OPTIONS = {
    "SGD": {
        "momentum": st.floats(-0.5, 0.999),
        "dampening": st.floats(-0.5, 0.999),
        "weight_decay": st.floats(-0.5, 1.0),
        **KINDS,
    },
    "RMSprop": {"alpha": betas, "eps": positive},
    "Adagrad": {"eps": positive},
    "AdaDelta": {"rho": betas, "eps": positive},
    "Adam": {"betas": st.tuples(betas, betas), "eps": positive, "bias_correction": st.booleans()},
    "AdamW": {
        "betas": st.tuples(betas, betas),
        "eps": positive,
        "weight_decay": st.floats(-0.5, 1.0),
        "bias_correction": st.booleans(),
        "nesterov": st.booleans(),
        "amsgrad": st.booleans(),
        "cautious": st.booleans(),
        **KINDS,
    },
    "Adamax": {"betas": st.tuples(betas, betas), "eps": positive},
    "Lion": {
        "betas": st.tuples(betas, betas),
        "weight_decay": st.floats(-0.5, 1.0),
        "cautious": st.booleans(),
        **KINDS,
    },
    "Lamb": {"betas": st.tuples(betas, betas), "eps": positive, "weight_decay": st.floats(0, 1.0)},
    "AdamH": {"betas": st.tuples(betas, betas), "eps": positive},
    "LARS": {
        "momentum": betas,
        "weight_decay": st.floats(0, 1.0),
        "trust_coefficient": st.floats(0, 1.0),
        "eps": positive,
        "nesterov": st.booleans(),
    },
    "StableAdamW": {
        "betas": st.tuples(betas, betas),
        "eps": positive,
        "weight_decay": st.floats(0, 1.0),
    },
    "MARS": {
        "betas": st.tuples(betas, betas),
        "eps": positive,
        "weight_decay": st.floats(0, 1.0),
        "gamma": st.floats(0, 1.0),
    },
    "MARSLion": {"beta": betas, "weight_decay": st.floats(0, 1.0), "gamma": st.floats(0, 1.0)},
    "Signum": {"beta": betas, "weight_decay": st.floats(0, 1.0)},
    "Adan": {
        "betas": st.tuples(betas, betas, betas),
        "eps": positive,
        "weight_decay": st.floats(0, 1.0),
        "no_prox": st.booleans(),
    },
    "SGDScheduleFree": {
        "momentum": st.floats(0.1, 0.99),
        "weight_decay": st.floats(0, 1.0),
        "warmup_steps": st.integers(0, 5),
    },
    "AdamWScheduleFree": {
        "betas": st.tuples(st.floats(0.1, 0.99), betas),
        "eps": positive,
        "weight_decay": st.floats(0, 1.0),
        "warmup_steps": st.integers(0, 5),
        "r": st.floats(0, 2),
    },
    "RAdamScheduleFree": {
        "betas": st.tuples(st.floats(0.1, 0.99), betas),
        "eps": positive,
        "weight_decay": st.floats(0, 1.0),
        "silent_sgd_phase": st.booleans(),
        "r": st.floats(0, 2),
    },
    "GPAAdamW": {
        "betas": st.tuples(betas, betas),
        "eps": positive,
        "weight_decay": st.floats(0, 1.0),
        "train_interp_coeff": st.floats(0.1, 0.99),
        "eval_interp_coeff": betas,
        "use_wd_on_y": st.booleans(),
    },
    "NAdam": {
        "betas": st.tuples(betas, betas),
        "eps": positive,
        "weight_decay": st.floats(0, 1.0),
        "momentum_decay": st.floats(0, 1.0),
        "decoupled_weight_decay": st.booleans(),
    },
    "RAdam": {
        "betas": st.tuples(betas, betas),
        "eps": positive,
        "weight_decay": st.floats(0, 1.0),
        "decoupled_weight_decay": st.booleans(),
    },
    "ADOPT": {
        "betas": st.tuples(betas, betas),
        "eps": positive,
        "weight_decay": st.floats(0, 1.0),
        "decouple": st.booleans(),
        "clip": st.booleans(),
        "clip_exponent": st.floats(0, 1.0),
    },
    "AdamAtan2": {
        "betas": st.tuples(betas, betas),
        "weight_decay": st.floats(0, 1.0),
        "a": st.floats(0, 2.0),
        "b": positive,
    },
    "LaProp": {
        "betas": st.tuples(betas, betas),
        "eps": positive,
        "weight_decay": st.floats(0, 1.0),
    },
    "QHAdam": {
        "betas": st.tuples(betas, betas),
        "nus": st.tuples(st.floats(0, 1.0), st.floats(0, 1.0)),
        "eps": positive,
        "weight_decay": st.floats(0, 1.0),
        "decouple_weight_decay": st.booleans(),
    },
    "AdaBelief": {
        "betas": st.tuples(betas, betas),
        "eps": positive,
        "weight_decay": st.floats(0, 1.0),
    },
    "Yogi": {
        "betas": st.tuples(betas, betas),
        "eps": positive,
        "weight_decay": st.floats(0, 1.0),
        "initial_accumulator": positive,
    },
    "DiffGrad": {
        "betas": st.tuples(betas, betas),
        "eps": positive,
        "weight_decay": st.floats(0, 1.0),
    },
    "SignSGD": {"weight_decay": st.floats(0, 1.0)},
    "SimplifiedAdEMAMix": {
        "betas": st.tuples(betas, betas),
        "alpha": st.floats(0, 10.0),
        "eps": positive,
        "weight_decay": st.floats(0, 1.0),
        "beta1_warmup": st.integers(0, 10_000),
        "min_beta1": betas,
    },
    "MADGRAD": {"momentum": betas, "weight_decay": st.floats(0, 1.0), "eps": positive},
    "AdEMAMix": {
        "betas": st.tuples(betas, betas, betas),
        "alpha": st.floats(0, 10.0),
        "eps": positive,
        "weight_decay": st.floats(0, 1.0),
        "alpha_warmup": st.integers(0, 10_000),
        "beta3_warmup": st.integers(0, 10_000),
    },
}


@given(data=st.data(), rule=st.sampled_from(sorted(OPTIONS)), learning_rate=st.floats(0, 2))
def test_any_hyperparameters_give_the_exact_step(data, rule, learning_rate):
    options = {k: data.draw(strategy, k) for k, strategy in OPTIONS[rule].items()}
    if options.get("cautious"):
        options["weight_decay_kind"] = "decoupled"
        options.pop("amsgrad", None)
    case = Case(rule, options)
    number = data.draw(st.integers(1, 10_000), "step")
    rng = np.random.default_rng(number)
    w, g, *slots = rng.normal(size=(2 + len(case.slots), 77)).astype(np.float32)
    slots = {
        k: x if case.is_signed(k) else np.abs(x) for k, x in zip(case.slots, slots, strict=True)
    }
    learning_rate = float(np.float32(learning_rate))
    # The references of Schedule-Free rules average steps whose rates are not 0.
    assume(learning_rate > 1e-17 or not rule.endswith("ScheduleFree"))

    def widened(values):
        return {k: x.astype(np.float64) for k, x in values.items()}

    optimizer = case.ours(learning_rate)
    optimizer.init({"w": mx.array(w)})
    case.begin_after(optimizer, number - 1)
    optimizer.state["w"].update({k: mx.array(x) for k, x in slots.items()})
    new = optimizer.apply_gradients({"w": mx.array(g)}, {"w": mx.array(w)})["w"]
    exact_w, exact_g = w.astype(np.float64), g.astype(np.float64)
    stored = optimizer.state["w"]
    expected = exact_step(case, exact_w, exact_g, widened(slots), number, learning_rate, stored)
    assume(np.all(np.abs(expected["w"][0]) < 1e30))
    for name, (exact, error) in expected.items():
        assert_exact(new if name == "w" else optimizer.state["w"][name], exact, 2 * error + 1e-37)


trees = st.recursive(
    st.just("leaf"),
    lambda children: st.one_of(
        st.lists(children, max_size=3),
        st.lists(children, max_size=3).map(tuple),
        st.dictionaries(st.text("abc", min_size=1, max_size=2), children, max_size=3),
    ),
    max_leaves=12,
)


@given(tree=st.dictionaries(st.sampled_from("wxyz"), trees, max_size=3))
def test_any_tree_gives_the_tree_that_stock_gives(tree):
    def fill(value):
        return tree_map(lambda _: mx.full((3,), value), tree)

    results = []
    for package in (mlx_opt, stock):
        optimizer = package.AdamW(0.1)
        w = optimizer.apply_gradients(fill(2.0), fill(1.0))
        w = optimizer.apply_gradients(fill(-1.0), w)
        results.append((w, optimizer.state))
    ours, theirs = (tree_map(lambda x: (x.shape, x.dtype), result) for result in results)
    assert ours == theirs
    for path, x in flat(results[0]).items():
        if isinstance(x, mx.array):
            np.testing.assert_allclose(wide(x), wide(flat(results[1])[path]), rtol=1e-6)
