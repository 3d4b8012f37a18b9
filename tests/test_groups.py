"""Groups of parameters: each leaf has its group's hyperparameters, in every mode of a step.

The oracle is MultiOptimizer over one optimizer for each group: it updates its leaves with one norm.
"""

import copy
import pickle
import warnings

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as stock
import numpy as np
import pytest
from mlx.utils import tree_map

import mlx_opt
from cases import CASES, RULES, Case, assert_close, assert_same, flat, normal
from mlx_opt import Group

RATE, SCALE = 0.01, 0.3
SCALED_RATE = float(np.float32(RATE) * np.float32(SCALE))

# What a group sets besides the learning rate, if the rule has it.
OTHER = {
    "weight_decay": 0.25,
    "eps": 1e-4,
    "alpha": 0.7,
    "rho": 0.7,
    "momentum": 0.6,
    "beta": 0.7,
    "betas": None,
}


def tree(seed, dtype=mx.float32):
    return {
        "embed": normal(7, 4, seed=seed, dtype=dtype),
        "layers": [
            {"weight": normal(4, 4, seed=seed + i, dtype=dtype), "bias": normal(4, seed=seed + i)}
            for i in range(3)
        ],
        "head": {"weight": normal(4, 2, seed=seed, dtype=dtype), "bias": normal(2, seed=seed)},
    }


def model_of(parameters):
    model = nn.Module()
    for name, child in parameters.items():
        model[name] = child
    return model


def own_values(case):
    """Values of the rule that differ from the case's."""
    values = {}
    for name, value in OTHER.items():
        given = getattr(case.ours(RATE), name, None)
        if given is None:
            continue
        if name == "betas":
            value = [0.5 * beta for beta in given]
        values[name] = value if name != "eps" or not isinstance(given, (tuple, list)) else given
    return values


def group_of(path, _):
    """The number of the group of a leaf in `grouped`."""
    return 0 if path.endswith("bias") else 1 if path.startswith("layers") else 2


def grouped(case, rate=RATE):
    return getattr(mlx_opt, case.rule)(
        rate,
        **case.options,
        groups=[
            Group("*.bias", name="bias", learning_rate_scale=1.0, **own_values(case)),
            Group("layers.*", learning_rate_scale=SCALE),
        ],
    )


def split(case, rate=RATE, scaled_rate=SCALED_RATE):
    """An optimizer for each group."""
    cls = getattr(mlx_opt, case.rule)
    scaled = dict(case.options)
    if "max_learning_rate" in scaled:  # is scaled as the learning rate is
        scaled["max_learning_rate"] *= SCALE
    return mlx_opt.MultiOptimizer(
        [
            cls(rate, **{**case.options, **own_values(case)}),
            cls(scaled_rate, **scaled),
            cls(rate, **case.options),
        ],
        [lambda path, x: group_of(path, x) == 0, lambda path, x: group_of(path, x) == 1],
    )


def by_path(tree):
    return dict(sorted(flat(tree).items()))


def states(optimizer):
    """The arrays of the parameters' states by path."""
    merged = {}
    members = optimizer.optimizers if hasattr(optimizer, "optimizers") else [optimizer]
    for member in members:
        merged |= {
            path: x
            for path, x in flat(member.state).items()
            if path.split(".")[0] in ("embed", "layers", "head")
        }
    return dict(sorted(merged.items()))


def assert_alike(ours, theirs, w, expected):
    assert_same(by_path(w), by_path(expected))
    assert_same(states(ours), states(theirs))


EACH = pytest.mark.parametrize("case", [*CASES, Case("Muon")], ids=str)
CLIPS = pytest.mark.parametrize(
    "clip", [{}, {"max_norm": 0.5}, {"max_norm": 0.5, "skip_nonfinite": True}], ids=str
)


@EACH
@CLIPS
def test_each_group_is_updated_as_by_an_optimizer_of_its_own(case, clip):
    ours, theirs = grouped(case), split(case)
    w, expected = tree(0), tree(0)
    for step in range(4):
        g = tree(10 + step)
        w = ours.apply_gradients(g, w, **clip)
        expected = theirs.apply_gradients(g, expected, **clip)
        assert_alike(ours, theirs, w, expected)


@pytest.mark.parametrize("case", RULES, ids=str)
def test_in_place_too(case):
    ours, theirs = grouped(case), split(case)
    a, b = model_of(tree(0)), model_of(tree(0))
    for step in range(3):
        mx.eval(a, b, ours.state, theirs.state)
        g, same = tree(10 + step), tree(10 + step)
        mx.eval(g, same)
        ours.update(a, g)
        theirs.update(b, same)
    assert_alike(ours, theirs, a, b)


@pytest.mark.parametrize("case", RULES, ids=str)
def test_a_skipped_step_changes_nothing(case):
    optimizer = grouped(case)
    w = optimizer.apply_gradients(tree(1), tree(0))
    before = states(optimizer)
    bad = tree(2)
    bad["head"]["bias"] = bad["head"]["bias"] * float("nan")
    after = optimizer.apply_gradients(bad, w, skip_nonfinite=True)
    assert_same(by_path(after), by_path(w))
    assert_same(states(optimizer), before)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.complex64], ids=str)
@pytest.mark.parametrize(
    "case", [Case("AdamW"), Case("SGD", {"weight_decay": 0.1}), Case("Adan")], ids=str
)
def test_other_dtypes(case, dtype):
    ours, theirs = grouped(case), split(case)
    w, expected = tree(0, dtype), tree(0, dtype)
    for step in range(3):
        g = tree(10 + step, dtype)
        w, expected = ours.apply_gradients(g, w), theirs.apply_gradients(g, expected)
    assert_alike(ours, theirs, w, expected)


def test_decay_that_is_added_to_the_gradient_promotes_the_leaves_of_its_group_only():
    def build(groups):
        return mlx_opt.SGD(0.1, momentum=0.9, groups=groups)

    optimizer = build([Group("a", weight_decay=0.1)])
    w = {"a": mx.ones(3), "b": mx.ones(3)}
    g = {"a": mx.ones(3, mx.bfloat16), "b": mx.ones(3, mx.bfloat16)}
    optimizer.init(g)
    optimizer.apply_gradients(g, w)
    assert optimizer.state["a"]["v"].dtype == mx.float32
    assert optimizer.state["b"]["v"].dtype == mx.bfloat16


@pytest.mark.parametrize("case", [Case("AdamW"), Case("SGD", {"momentum": 0.9}), Case("Lamb")])
def test_inside_compile_and_vmap_and_grad(case):
    eager, traced = grouped(case), grouped(case)
    w, expected = tree(0), tree(0)
    traced.init(w)
    state = [w, traced.state]

    def run(g):
        state[0].update(traced.apply_gradients(g, state[0]))

    step = mx.compile(run, inputs=state, outputs=state)
    for number in range(3):
        g = tree(10 + number)
        step(g)
        expected = eager.apply_gradients(g, expected)
    assert_close(by_path(w), by_path(expected), 1e-6)

    def total(optimizer):
        def loss(scale):
            g = tree_map(lambda x: x * scale, tree(5))
            return sum(x.sum() for x in flat(optimizer.apply_gradients(g, tree(0))).values())

        return mx.grad(loss)(mx.array(0.7))

    assert_close([total(grouped(case))], [total(split(case))], 1e-6)
    batch = tree_map(lambda x: mx.stack([x, 2 * x]), tree(5))
    got = mx.vmap(lambda g: grouped(case).apply_gradients(g, tree(0)))(batch)
    one = grouped(case).apply_gradients(tree_map(lambda x: 2 * x, tree(5)), tree(0))
    assert_close(by_path(tree_map(lambda x: x[1], got)), by_path(one), 1e-6)


def test_the_first_group_that_has_a_hyperparameter_gives_it():
    optimizer = mlx_opt.AdamW(
        RATE,
        weight_decay=0.1,
        groups=[
            Group("*.bias", weight_decay=0.0),
            {"match": ["layers.*", "head*"], "weight_decay": 0.5, "learning_rate_scale": 0.5},
            Group(lambda path, x: x.ndim < 2, eps=1e-3, learning_rate=0.7),
        ],
    )
    rows = {row.path: row for row in optimizer.describe(tree(0), show=False)}
    assert rows["embed"].values["weight_decay"] == 0.1
    assert rows["layers.0.weight"].values["weight_decay"] == 0.5
    assert rows["layers.0.bias"].values["weight_decay"] == 0.0
    assert rows["layers.0.bias"].values["eps"] == 1e-3
    assert rows["layers.0.bias"].values["learning_rate"] == pytest.approx(0.35)
    assert rows["layers.0.weight"].values["learning_rate"] == pytest.approx(0.005)
    assert rows["head.bias"].groups == {
        "weight_decay": "*.bias",
        "learning_rate_scale": "layers.*, head*",
        "eps": "<lambda>",
        "learning_rate": "<lambda>",
    }


def test_options_that_choose_the_program():
    optimizer = mlx_opt.SGD(
        0.1, groups=[Group("layers.*", momentum=0.9, nesterov=True), Group("head.*", momentum=0.5)]
    )
    rows = {row.path: row.rule for row in optimizer.describe(tree(0), show=False)}
    assert rows["embed"] == "SGD"
    assert rows["layers.1.weight"] == "Nesterov"
    assert rows["head.weight"] == "Momentum"
    theirs = mlx_opt.MultiOptimizer(
        [
            mlx_opt.SGD(0.1, momentum=0.9, nesterov=True),
            mlx_opt.SGD(0.1, momentum=0.5),
            mlx_opt.SGD(0.1),
        ],
        [lambda path, x: path.startswith("layers"), lambda path, x: path.startswith("head")],
    )
    model, expected = model_of(tree(0)), tree(0)
    for step in range(3):
        optimizer.update(model, tree(10 + step), max_norm=1.0)
        expected = theirs.apply_gradients(tree(10 + step), expected, max_norm=1.0)
    assert_alike(optimizer, theirs, model, expected)


def test_adafactors_first_moment_may_be_a_groups():
    optimizer = mlx_opt.Adafactor(groups=[Group("layers.*", beta_1=0.9)])
    optimizer.init(tree(0))
    optimizer.apply_gradients(tree(1), tree(0))
    assert "exp_avg" in optimizer.state["layers"][0]["weight"]
    assert "exp_avg" not in optimizer.state["embed"]


def test_a_scale_of_a_learning_rate_that_is_not_read_is_refused():
    optimizer = mlx_opt.Adafactor(groups=[Group("embed", learning_rate_scale=0.5)])
    with pytest.raises(ValueError, match="learning_rate_scale: .* does not read"):
        optimizer.apply_gradients(tree(1), tree(0))
    optimizer = mlx_opt.Adafactor(
        groups=[Group("embed", learning_rate=0.1, relative_step=False, learning_rate_scale=0.5)]
    )
    w = optimizer.apply_gradients(tree(1), tree(0))
    other = mlx_opt.Adafactor(0.05, relative_step=False)
    expected = other.apply_gradients({"embed": tree(1)["embed"]}, tree(0))
    assert_same(w["embed"], expected["embed"])


class TestFrozen:
    def build(self):
        return mlx_opt.AdamW(RATE, groups=[mlx_opt.freeze("layers.1.*", "head.bias")])

    def test_parameters_have_no_state_and_stay(self):
        optimizer, w = self.build(), tree(0)
        updated = optimizer.apply_gradients(tree(1), w)
        assert list(flat(updated)) == list(flat(w))
        for path, x in flat(updated).items():
            assert (x is flat(w)[path]) == (path.startswith("layers.1") or path == "head.bias")
        assert not flat(optimizer.state["layers"][1])
        assert not optimizer.state["head"]["bias"]

    def test_their_gradients_do_not_count_in_the_norm(self):
        optimizer, rest = self.build(), tree(1)
        optimizer.apply_gradients(tree(1), tree(0), max_norm=1.0)
        rest["layers"][1], rest["head"] = {}, {"weight": rest["head"]["weight"]}
        assert_close([optimizer.grad_norm], [mlx_opt.clip_grad_norm(rest, 1.0)[1]], 1e-7)

    @pytest.mark.parametrize("evaluated", [True, False])
    def test_a_model_keeps_them(self, evaluated):
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        optimizer = mlx_opt.SGD(0.1, groups=[mlx_opt.freeze("layers.0.*")])
        before = tree_map(mx.array, model.parameters())
        g = tree_map(lambda x: x + 1, model.parameters())
        if evaluated:
            mx.eval(model, g)
        optimizer.update(model, g)
        after = model.parameters()
        assert_same(after["layers"][0], before["layers"][0])
        assert not mx.array_equal(after["layers"][1]["bias"], before["layers"][1]["bias"])

    def test_all_may_be(self):
        optimizer, w = mlx_opt.Lion(0.1, groups=[mlx_opt.freeze("*")]), tree(0)
        assert_same(optimizer.apply_gradients(tree(1), w, max_norm=1.0), w)
        assert optimizer.grad_norm.item() == 0

    def test_with_several_programs(self):
        optimizer = mlx_opt.SGD(
            0.1, groups=[mlx_opt.freeze("layers.0.*"), Group("layers.*", momentum=0.9)]
        )
        w = tree(0)
        updated = optimizer.apply_gradients(tree(1), w)
        assert set(flat(updated)) == set(flat(w))
        assert updated["layers"][0]["bias"] is w["layers"][0]["bias"]


def test_a_leaf_alone_and_tuples():
    optimizer = mlx_opt.SGD(0.5, groups=[Group("", weight_decay=1.0)])
    assert optimizer.apply_gradients(mx.array(1.0), mx.array(2.0)).item() == 0.5
    optimizer = mlx_opt.SGD(0.5, groups=[Group("a.1", learning_rate_scale=2.0)])
    updated = optimizer.apply_gradients(
        {"a": (mx.array(1.0), mx.array(1.0))}, {"a": (mx.array(2.0), mx.array(2.0))}
    )
    assert [x.item() for x in updated["a"]] == [1.5, 1.0]


def test_multi_optimizer_takes_optimizers_with_groups():
    optimizer = mlx_opt.MultiOptimizer(
        [mlx_opt.SGD(0.5, groups=[Group("b.*", learning_rate_scale=0.0)]), mlx_opt.Lion(0.1)],
        [lambda path, x: path != "c"],
    )
    w = {"a": mx.ones(2), "b": {"x": mx.ones(2)}, "c": mx.ones(2)}
    updated = optimizer.apply_gradients(w, w, max_norm=100.0)
    assert updated["a"].tolist() == [0.5, 0.5]
    assert updated["b"]["x"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("rate_scales", [False, True])
def test_muon_with_a_fallback(rate_scales):
    groups = [Group("layers.*", momentum=0.5, weight_decay=0.3)]
    if rate_scales:
        groups.append(Group("head.weight", learning_rate_scale=SCALE, ns_steps=2))

    def build(momentum=0.95, weight_decay=0.01, rate=RATE, **options):
        return mlx_opt.Muon(rate, momentum, weight_decay, **options)

    ours = build(groups=groups, fallback=mlx_opt.AdamW(RATE, groups=[mlx_opt.no_decay()]))
    last = build(rate=SCALED_RATE, ns_steps=2) if rate_scales else build()
    theirs = mlx_opt.MultiOptimizer(
        [mlx_opt.AdamW(RATE, weight_decay=0.0), build(0.5, 0.3), last, build()],
        [
            lambda path, x: x.ndim < 2,
            lambda path, x: path.startswith("layers"),
            lambda path, x: path == "head.weight",
        ],
    )
    w, expected = tree(0), tree(0)
    for step in range(3):
        g = tree(10 + step)
        w = ours.apply_gradients(g, w, max_norm=2.0)
        expected = theirs.apply_gradients(g, expected, max_norm=2.0)
    assert_close(by_path(w), by_path(expected), 1e-6)


@pytest.mark.parametrize("eps", [1e-3, mx.array(1e-3)], ids=["number", "array"])
def test_copies_and_pickles_go_on_alike(eps):
    groups = [mlx_opt.no_decay(), Group("embed", name="e", eps=eps)]
    optimizer = mlx_opt.AdamW(RATE, groups=groups)
    w = optimizer.apply_gradients(tree(1), tree(0))
    mx.eval(w, optimizer.state)
    copies = [copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
    expected = optimizer.apply_gradients(tree(2), w)
    for each in copies:
        assert_same(each.apply_gradients(tree(2), w), expected)


def test_layer_decay_of_a_model():
    model = nn.Module()
    model.embed = nn.Embedding(5, 4)
    model.layers = [nn.Linear(4, 4) for _ in range(12)]
    model.head = nn.Linear(4, 2)
    optimizer = mlx_opt.AdamW(1.0, groups=mlx_opt.layer_decay(model, 0.5))
    rates = {row.path: row.values["learning_rate"] for row in optimizer.describe(model, show=False)}
    assert rates["head.bias"] == 1.0
    assert rates["layers.11.weight"] == 0.5
    assert rates["layers.1.weight"] == 0.5**11
    assert rates["layers.0.bias"] == 0.5**12
    assert rates["embed.weight"] == 0.5**13


def test_groups_take_the_place_of_stocks_split():
    """No decay on biases, against two optimizers of mlx.optimizers."""
    ours = mlx_opt.AdamW(RATE, weight_decay=0.1, groups=[mlx_opt.no_decay()])
    theirs = stock.MultiOptimizer(
        [stock.AdamW(RATE, weight_decay=0.0), stock.AdamW(RATE, weight_decay=0.1)],
        [lambda path, x: x.ndim < 2],
    )
    w, expected = tree(0), tree(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(5):
            w = ours.apply_gradients(tree(10 + step), w)
            expected = theirs.apply_gradients(tree(10 + step), expected)
    assert_close(by_path(w), by_path(expected), 2e-6)


def test_values_that_change_between_steps_count():
    optimizer, w = (
        mlx_opt.AdamW(RATE, betas=[0.9, 0.99], groups=[Group("*.bias", eps=0.1)]),
        tree(0),
    )
    constant = mlx_opt.AdamW(RATE, betas=[0.9, 0.99], groups=[Group("*.bias", eps=0.1)])
    optimizer.apply_gradients(tree(1), w), constant.apply_gradients(tree(1), w)
    for change in (
        lambda: optimizer.betas.__setitem__(0, 0.5),
        lambda: setattr(optimizer, "weight_decay", 0.3),
        lambda: setattr(optimizer, "learning_rate", 0.5),
    ):
        change()
        other = mlx_opt.AdamW(
            0.5 if optimizer.learning_rate.item() == 0.5 else RATE,
            betas=list(optimizer.betas),
            weight_decay=optimizer.weight_decay,
            groups=[Group("*.bias", eps=0.1)],
        )
        other.state = copy.deepcopy(optimizer.state)
        other.learning_rate = optimizer.learning_rate
        expected = other.apply_gradients(tree(2), w)
        assert_same(by_path(optimizer.apply_gradients(tree(2), w)), by_path(expected))
