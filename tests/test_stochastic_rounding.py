"""Stochastic rounding: a step in float32 whose results in bfloat16 are rounded by random bits."""

import copy
import pickle

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_map

import mlx_opt
from cases import assert_same, flat, normal
from mlx_opt import Group
from rounding import rounded

BF16 = mx.bfloat16


def tree(seed, dtype=BF16):
    """Parameters or gradients that threads share, of several shapes."""
    shapes = {"a": (9, 37), "long": (70_001,), "empty": (0, 3), "scalar": ()}
    named = {name: normal(*shape, seed=seed, dtype=dtype) for name, shape in shapes.items()}
    return {**named, "layers": [{"w": normal(5, 4, seed=seed, dtype=dtype)}]}


def wide(tree):
    return tree_map(lambda x: x.astype(mx.float32), tree)


def assert_trees_same(got, expected):
    expected = flat(expected)
    assert flat(got).keys() == expected.keys()
    for path, x in flat(got).items():
        assert_same(x, expected[path])


# A rule for each number of slots, with unset ones and one that stays in float32.
OPTIMIZERS = {
    "SGD": lambda **options: mlx_opt.SGD(1e-2, weight_decay=0.1, **options),
    "Lion": lambda **options: mlx_opt.Lion(1e-2, weight_decay=0.1, **options),
    "AdamW": lambda **options: mlx_opt.AdamW(1e-2, weight_decay=0.1, **options),
    "Adan": lambda **options: mlx_opt.Adan(1e-2, **options),
    "AdEMAMix": lambda **options: mlx_opt.AdEMAMix(1e-2, **options),
    "MADGRAD": lambda **options: mlx_opt.MADGRAD(1e-2, **options),
    # These round by MLX's operations.
    "Lamb": lambda **options: mlx_opt.Lamb(1e-2, **options),
    "Adafactor": lambda **options: mlx_opt.Adafactor(1e-2, relative_step=False, **options),
    "Muon": lambda **options: mlx_opt.Muon(1e-2, ns_dtype=mx.float32, **options),
}
each_optimizer = pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=list(OPTIMIZERS))


@each_optimizer
@pytest.mark.parametrize("options", [{}, {"max_norm": 1.0}, {"max_value": 0.5}], ids=str)
def test_a_step_is_one_in_float32_rounded(build, options):
    optimizer = build(stochastic_rounding=True, rounding_seed=7)
    names = [slot.name for slot in optimizer._forms.form_of(optimizer._values()).slots]
    parameters = tree(seed=1)
    for step in range(1, 4):
        gradients = tree(seed=10 + step)
        reference = build()
        reference.init(wide(parameters))
        if step > 1:
            reference.state = {**wide(optimizer.state), "step": optimizer.state["step"]}
        expected = flat(reference.apply_gradients(wide(gradients), wide(parameters), **options))
        slots = flat(reference.state)
        parameters = optimizer.apply_gradients(gradients, parameters, **options)
        for path, x in flat(parameters).items():
            assert_same(x, rounded(expected[path], path, step, 0, seed=7))
            state = flat(optimizer.state)
            own = [f"{path}.{name}" for name in names if f"{path}.{name}" in state]
            for field, name in enumerate(own, 1):
                got, slot = state[name], slots[name]
                if got.dtype == BF16:
                    slot = rounded(slot, path, step, field, seed=7)
                assert_same(got, slot)


@pytest.mark.parametrize("make", [lambda x: x.T, lambda x: mx.broadcast_to(x[:1], x.shape)])
def test_any_layout_has_the_same_bits(make):
    gradient, parameter = normal(48, 48, seed=1, dtype=BF16), normal(48, 48, seed=2, dtype=BF16)

    def stepped(gradient):
        optimizer = mlx_opt.AdamW(1e-2, stochastic_rounding=True)
        return optimizer.apply_gradients({"w": gradient}, {"w": parameter})["w"]

    other = make(gradient)
    assert_same(stepped(other), stepped(mx.contiguous(other)))


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_change_the_bits(threads):
    before = mlx_opt.num_threads()
    try:
        mlx_opt.set_num_threads(threads)
        optimizer = mlx_opt.SGD(1e-2, stochastic_rounding=True)
        parameter, gradient = normal(300_000, seed=1, dtype=BF16), normal(300_000, seed=2)
        updated = optimizer.apply_gradients({"w": gradient}, {"w": parameter})["w"]
    finally:
        mlx_opt.set_num_threads(before)
    expected = mlx_opt.SGD(1e-2).apply_gradients(gradient, parameter.astype(mx.float32))
    assert_same(updated, rounded(expected, "w", 1, 0))


def test_results_are_right_on_average():
    # The update is a fifth of the distance to the next bfloat16, so nearest would not move.
    parameter, gradient = mx.ones((1000, 200), BF16), mx.full((1000, 200), 2.0**-7 / 5)
    optimizer = mlx_opt.SGD(1.0, stochastic_rounding=True)
    steps = 20
    for _ in range(steps):
        parameter = optimizer.apply_gradients({"w": gradient.astype(BF16)}, {"w": parameter})["w"]
    change = np.array(1 - parameter.astype(mx.float32)).astype(np.float64)
    # Below 1 the numbers are half as far apart, but for the first step.
    expected = steps * float(gradient[0, 0].astype(BF16))
    spread = 2.0**-7 * np.sqrt(0.25 * steps / change.size)
    assert abs(change.mean() - expected) < 5 * spread
    for axis in (0, 1):  # no row and no column is moved more than the others
        means = change.mean(axis=axis)
        limit = 6 * 2.0**-7 * np.sqrt(0.25 * steps * means.size / change.size)
        assert np.abs(means - expected).max() < limit


def test_both_neighbours_have_their_probability():
    fractions = np.arange(0, 2**16, 257, dtype=np.uint32)
    values = (np.uint32(0x3F800000) + fractions).view(np.float32)
    repeats = 4096
    x = mx.array(np.repeat(values, repeats))
    # The parameter 0 becomes x itself.
    optimizer = mlx_opt.SGD(1.0, stochastic_rounding=True)
    results = optimizer.apply_gradients({"w": -x}, {"w": mx.zeros(x.shape, BF16)})["w"]
    ups = np.array(results.astype(mx.float32)).reshape(-1, repeats) > 1
    probability = fractions / 2**16
    deviation = np.sqrt(probability * (1 - probability) / repeats)
    assert (np.abs(ups.mean(axis=1) - probability) <= 5 * deviation).all()


def test_special_values():
    largest = float(np.uint32(0x7F7FFFFF).view(np.float32))
    values = mx.array([mx.inf, -mx.inf, mx.nan, largest, -largest, 0.0, 1e-45])
    parameter = mx.zeros(values.shape, BF16)
    for seed in range(20):
        optimizer = mlx_opt.SGD(1.0, stochastic_rounding=True, rounding_seed=seed)
        got = optimizer.apply_gradients({"w": -values}, {"w": parameter})["w"]
        got = np.array(got.astype(mx.float32))
        assert got[0] == np.inf and got[1] == -np.inf and np.isnan(got[2])
        assert np.isfinite(got[3:]).all() and got[3] > 3e38 and got[4] < -3e38
        assert got[5] == 0


def test_special_values_of_a_whole_vector():
    largest = float(np.uint32(0x7F7F0000).view(np.float32))
    # The last is half a unit more than the largest bfloat16.
    weights = mx.array([0, 0, 0, largest] * 9, BF16)
    gradients = mx.array([-mx.inf, mx.inf, mx.nan, -(2.0**119)] * 9, BF16)
    for seed in range(5):
        optimizer = mlx_opt.SGD(1.0, stochastic_rounding=True, rounding_seed=seed)
        got = optimizer.apply_gradients({"w": gradients}, {"w": weights})["w"]
        got = np.array(got.astype(mx.float32)).reshape(9, 4)
        assert (got[:, 0] == np.inf).all() and (got[:, 1] == -np.inf).all()
        assert np.isnan(got[:, 2]).all() and (got[:, 3] == np.float32(largest)).all()


def test_bits_depend_on_seed_step_and_path():
    parameter, gradient = mx.ones((1000,), BF16), mx.full((1000,), 1e-3)

    def updated(path, seed=0, steps_before=0):
        optimizer = mlx_opt.SGD(1.0, stochastic_rounding=True, rounding_seed=seed)
        optimizer.state["step"] = mx.array(steps_before, mx.uint64)
        new = optimizer.apply_gradients({path: gradient}, {path: parameter})[path]
        return bytes(np.array(new.astype(mx.float32)))

    first = updated("w")
    assert updated("w") == first
    others = [updated("v"), updated("w", seed=1), updated("w", seed=2**32), updated("w", 0, 1)]
    assert len({first, *others}) == 5


def test_a_part_of_the_tree_has_the_same_bits():
    parameters, gradients = tree(seed=1), tree(seed=2)

    def stepped(names):
        optimizer = mlx_opt.AdamW(1e-2, stochastic_rounding=True)
        pick = {name: gradients[name] for name in names}
        return optimizer.apply_gradients(pick, parameters)

    assert_same(stepped(["long"])["long"], stepped(["a", "scalar", "long"])["long"])


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(40, 40), nn.Linear(40, 40)]
        self.set_dtype(BF16)

    def __call__(self, x):
        for layer in self.layers:
            x = nn.relu(layer(x))
        return x


def model():
    mx.random.seed(3)
    return Model()


def gradients_of(model, seed):
    return tree_map(lambda x: normal(*x.shape, seed=seed, dtype=BF16), model.parameters())


def stepped(optimizer, steps, how):
    own = model()
    state = [own.state, optimizer.state]
    if how == "compiled":
        optimizer.init(own.trainable_parameters())
        update = mx.compile(
            lambda gradients: optimizer.update(own, gradients), inputs=state, outputs=state
        )
    else:
        update = lambda gradients: optimizer.update(own, gradients)  # noqa: E731
    for seed in range(steps):
        update(gradients_of(own, seed))
        if how != "lazy":
            mx.eval(own.state, optimizer.state)
    return own.parameters()


@pytest.mark.parametrize("how", ["compiled", "lazy"])
def test_modes_agree(how):
    def build():
        return mlx_opt.AdamW(1e-3, bias_correction=True, stochastic_rounding=True)

    assert_trees_same(stepped(build(), 4, how), stepped(build(), 4, "eager"))


def test_an_eager_step_is_in_place():
    own, optimizer = model(), mlx_opt.AdamW(1e-3, stochastic_rounding=True)
    weight = own.layers[0].weight
    for seed in range(2):
        gradients = gradients_of(own, seed)
        mx.eval(gradients, own.parameters(), optimizer.state)
        del weight
        weight = id(own.layers[0].weight)
        optimizer.update(own, gradients)
        assert id(own.layers[0].weight) == weight


def test_a_resumed_run_has_the_same_bits():
    optimizer, parameters = mlx_opt.AdamW(1e-3, stochastic_rounding=True), tree(seed=1)
    for step in range(2):
        parameters = optimizer.apply_gradients(tree(seed=step), parameters)
    resumed = pickle.loads(pickle.dumps(optimizer))
    fresh = mlx_opt.AdamW(1e-3, stochastic_rounding=True)
    fresh.state = copy.deepcopy(optimizer.state)
    results = [each.apply_gradients(tree(9), parameters) for each in (optimizer, resumed, fresh)]
    assert_trees_same(results[1], results[0])
    assert_trees_same(results[2], results[0])


def test_a_skipped_step_changes_nothing():
    optimizer, parameters = mlx_opt.AdamW(1e-3, stochastic_rounding=True), tree(seed=1)
    optimizer.init(parameters)
    bad = {**tree(seed=2), "scalar": mx.array(mx.nan, BF16)}
    skipped = optimizer.apply_gradients(bad, parameters, max_norm=1.0, skip_nonfinite=True)
    assert_trees_same(skipped, parameters)


def test_parameters_keep_their_dtype():
    parameter, gradient = mx.ones((3,), BF16), mx.ones((3,))
    assert mlx_opt.SGD(1e-3).apply_gradients(gradient, parameter).dtype == mx.float32
    optimizer = mlx_opt.SGD(1e-3, stochastic_rounding=True)
    assert optimizer.apply_gradients(gradient, parameter).dtype == BF16


def test_a_group_has_it_alone():
    groups = [Group("a", stochastic_rounding=True)]
    optimizer = mlx_opt.SGD(1e-3, groups=groups)
    parameters = {"a": mx.ones((1000,), BF16), "b": mx.ones((1000,), BF16)}
    updated = optimizer.apply_gradients(tree_map(mx.ones_like, parameters), parameters)
    assert set(np.array(updated["a"].astype(mx.float32)).tolist()) == {1, 1 - 2**-8}
    assert_same(updated["b"], parameters["b"])


def test_other_dtypes_are_rounded_to_nearest():
    for dtype in (mx.float32, mx.float16):
        parameters, gradients = tree(1, dtype), tree(2, dtype)
        got = mlx_opt.AdamW(1e-2, stochastic_rounding=True).apply_gradients(gradients, parameters)
        assert_trees_same(got, mlx_opt.AdamW(1e-2).apply_gradients(gradients, parameters))


def test_several_optimizers_round_each_their_own():
    optimizer = mlx_opt.MultiOptimizer(
        [mlx_opt.SGD(1e-3, stochastic_rounding=True), mlx_opt.SGD(1e-3)],
        [lambda path, _: "1" in path],
    )
    own = model()
    before = flat(own.parameters())
    optimizer.update(own, tree_map(mx.ones_like, own.parameters()))
    alone = mlx_opt.SGD(1e-3, stochastic_rounding=True)
    other = model()
    alone.update(other, tree_map(mx.ones_like, other.parameters()))
    for path, x in flat(own.parameters()).items():
        expected = flat(other.parameters())[path]
        if ".1." not in path:
            expected = mlx_opt.SGD(1e-3).apply_gradients(mx.ones_like(before[path]), before[path])
        assert_same(x, expected)


def test_what_the_kernels_cannot_round_is_refused():
    optimizer = mlx_opt.SGD(1e-3, stochastic_rounding=True)

    def loss(parameter):
        return optimizer.apply_gradients(parameter, parameter).sum()

    with pytest.raises(ValueError, match="^stochastic_rounding: bfloat16 is rounded so by the fu"):
        mx.grad(loss)(mx.ones((3,), BF16))
    assert mx.grad(loss)(mx.ones((3,))).tolist() == pytest.approx([0.999] * 3)


@pytest.mark.parametrize(
    "build, error, message",
    [
        (lambda: mlx_opt.SGD(1, stochastic_rounding=1), TypeError, "SGD: stochastic_rounding: exp"),
        (lambda: mlx_opt.SGD(1, rounding_seed=1.0), TypeError, "SGD: rounding_seed: expected an i"),
        (lambda: mlx_opt.Adan(1, rounding_seed=-1), ValueError, r"Adan: rounding_seed: expected 0"),
        (
            lambda: mlx_opt.Muon(1, groups=[Group("*", stochastic_rounding=1)]),
            TypeError,
            "Muon: stochastic_rounding: expected a bool, got int",
        ),
        (
            lambda: mlx_opt.AdamW(1, master_weights="float32", stochastic_rounding=True),
            ValueError,
            "stochastic_rounding does not go with master_weights, which lose nothing",
        ),
        (
            lambda: mlx_opt.AdamW(1, groups=[Group("*", stochastic_rounding="yes")]),
            TypeError,
            "AdamW: stochastic_rounding: expected a bool, got str",
        ),
    ],
)
def test_errors(build, error, message):
    with pytest.raises(error, match=f"^{message}"):
        build()


def test_an_optimizer_with_its_own_step_refuses_it():
    class Own(mlx_opt.SGD):
        def apply_single(self, gradient, parameter, state):
            return parameter

    w = {"w": mx.ones((2,), BF16)}
    with pytest.raises(TypeError, match="^Own: stochastic_rounding: apply_single is overridden, a"):
        Own(1.0, stochastic_rounding=True).apply_gradients(w, w)


def test_sharded_refuses_it():
    optimizer = mlx_opt.SGD(1e-3, groups=[Group("*", stochastic_rounding=True)])
    with pytest.raises(TypeError, match="^Sharded: an optimizer with stochastic_rounding is not s"):
        mlx_opt.Sharded(optimizer, mx.distributed.init())


def test_it_is_shown():
    assert "stochastic_rounding=True" in repr(mlx_opt.AdamW(1e-3, stochastic_rounding=True))
    assert "rounding" not in repr(mlx_opt.AdamW(1e-3))
