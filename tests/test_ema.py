"""An average of the weights beside any rule, by `ema_decay`."""

import copy
import pickle

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten

import mlx_opt
from cases import assert_same, flat, for_compile, normal
from mlx_opt import Group

# A rule for each way that a step can go: fused, with unset slots, of two passes, of sums over rows
# and columns, composed of several.
OPTIMIZERS = {
    "AdamW": lambda **options: mlx_opt.AdamW(1e-2, weight_decay=0.1, **options),
    "MADGRAD": lambda **options: mlx_opt.MADGRAD(1e-2, **options),
    "Lamb": lambda **options: mlx_opt.Lamb(1e-2, **options),
    "Adafactor": lambda **options: mlx_opt.Adafactor(1e-2, relative_step=False, **options),
    "Muon": lambda **options: mlx_opt.Muon(1e-2, **options),
}
each_optimizer = pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=list(OPTIMIZERS))
each_storage = pytest.mark.parametrize(
    "dtype, masters",
    [
        (mx.float32, None),
        (mx.float16, None),
        (mx.bfloat16, None),
        (mx.bfloat16, "float32"),
        (mx.bfloat16, "remainder"),
    ],
    ids=["float32", "float16", "bfloat16", "master", "remainder"],
)
DECAY = 0.9
RATE = np.float32(1 - DECAY)


def tree(seed, dtype=mx.float32):
    shapes = {"a": (9, 37), "b": (130,), "empty": (0, 3), "scalar": ()}
    return {name: normal(*shape, seed=seed, dtype=dtype) for name, shape in shapes.items()}


def numpy(x):
    return np.array(x.astype(mx.float32))


class Average:
    """The average by hand: it begins as the weights after the first step."""

    def __init__(self):
        self.values = None

    def add(self, weights, rate=RATE):
        weights = {path: numpy(x) for path, x in flat(weights).items()}
        if self.values is None or rate == 1:
            self.values = weights
        for path, x in weights.items():
            e = self.values[path]
            self.values[path] = e + np.float32(rate) * (x - e)

    def assert_is(self, averages):
        for path, x in flat(averages).items():
            assert x.dtype == mx.float32
            np.testing.assert_array_equal(np.array(x), self.values[path], err_msg=path)


def walk(optimizer, w, steps, average=None, **arguments):
    dtype = w["a"].dtype
    for step in steps:
        w = optimizer.apply_gradients(tree(step, dtype), w, **arguments)
        if average is not None:
            average.add(optimizer.master_parameters(w))
    return w


@each_storage
@each_optimizer
def test_the_average_is_that_of_the_weights_bit_by_bit(build, dtype, masters):
    optimizer, plain = (
        build(master_weights=masters, ema_decay=DECAY),
        build(master_weights=masters),
    )
    average = Average()
    w = walk(optimizer, tree(0, dtype), range(1, 6), average)
    average.assert_is(optimizer.ema_parameters(w))
    expected = walk(plain, tree(0, dtype), range(1, 6))
    for name, x in expected.items():
        assert_same(w[name], x)
    state = flat(optimizer.state)
    for path, x in flat(plain.state).items():
        assert_same(state.pop(path), x)
    assert set(state) == {f"{name}.ema" for name in w}


@each_storage
def test_the_formula_makes_the_same_average(dtype, masters, monkeypatch):
    optimizer = OPTIMIZERS["AdamW"](master_weights=masters, ema_decay=DECAY)
    monkeypatch.setattr(optimizer, "_uses_primitives", lambda: False)
    average = Average()
    w = walk(optimizer, tree(0, dtype), range(1, 4), average)
    average.assert_is(optimizer.ema_parameters(w))


def test_many_steps_against_float64():
    optimizer = mlx_opt.SGD(0.1, ema_decay=0.99)
    w, exact, expected = {"w": normal(50, seed=0)}, None, None
    exact = np.array(w["w"], np.float64)
    for step in range(1, 201):
        g = normal(50, seed=step)
        w = optimizer.apply_gradients({"w": g}, w)
        exact = exact - 0.1 * np.array(g, np.float64)
        expected = exact if expected is None else expected + 0.01 * (exact - expected)
    got = np.array(optimizer.ema_parameters(w)["w"])
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def decay_of_diffusers(step, decay, warmup, after):
    """EMAModel.get_decay of diffusers and ModelEmaV3.get_decay of timm, written anew."""
    done = max(0, step - after - 1)
    if done <= 0:
        return 0.0
    if warmup == "ratio":
        return min(decay, (1 + done) / (10 + done))
    if warmup is not None:
        return min(decay, 1 - (1 + done) ** -warmup)
    return decay


@pytest.mark.parametrize("name", ["AdamW", "Lamb"])
@pytest.mark.parametrize(
    "warmup, after", [("ratio", 0), (2 / 3, 0), (1.0, 3), ("ratio", 2), (None, 4)]
)
def test_warmups(name, warmup, after):
    optimizer = OPTIMIZERS[name](ema_decay=0.6, ema_warmup=warmup, ema_update_after=after)
    w, expected = tree(0), None
    for step in range(1, 15):
        w = optimizer.apply_gradients(tree(step), w)
        decay = decay_of_diffusers(step, 0.6, warmup, after)
        now = {path: np.array(x, np.float64) for path, x in w.items()}
        expected = expected or now
        expected = {path: decay * e + (1 - decay) * now[path] for path, e in expected.items()}
        for path, x in optimizer.ema_parameters(w).items():
            np.testing.assert_allclose(np.array(x), expected[path], rtol=2e-6, atol=1e-6)
            if decay == 0:
                assert_same(x, w[path])


def test_a_power_of_one_is_the_mean_of_all_weights():
    optimizer = mlx_opt.SGD(1.0, ema_decay=0.999999, ema_warmup=1)
    w, seen = {"w": mx.array(8.0)}, []
    for g in (1.0, 2.0, -3.0, 4.0):
        w = optimizer.apply_gradients({"w": mx.array(g)}, w)
        seen.append(w["w"].item())
    assert optimizer.ema_parameters(w)["w"].item() == pytest.approx(sum(seen) / 4, rel=1e-6)


class Model(nn.Module):
    def __init__(self, dtype=mx.float32, shape=(9, 37)):
        super().__init__()
        self.w = normal(*shape, seed=0, dtype=dtype)


@pytest.mark.usefixtures("cpu")
class TestInPlace:
    @each_storage
    def test_arrays_stay(self, dtype, masters):
        model = Model(dtype)
        optimizer = OPTIMIZERS["AdamW"](master_weights=masters, ema_decay=DECAY)
        average = Average()
        for step in range(1, 5):
            g = {"w": normal(9, 37, seed=step, dtype=dtype)}
            mx.eval(g, model.parameters(), optimizer.state)
            before = [id(x) for _, x in tree_flatten([model.parameters(), optimizer.state])]
            optimizer.update(model, g)
            average.add(optimizer.master_parameters(model))
            if step > 2:
                after = [id(x) for _, x in tree_flatten([model.parameters(), optimizer.state])]
                assert sum(a != b for a, b in zip(before, after, strict=True)) <= 1  # the number
        average.assert_is(optimizer.ema_parameters(model))

    @pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided", "float32"])
    @each_storage
    def test_gradients_of_any_layout(self, layout, dtype, masters):
        # More than a block of the average, and not a multiple of it.
        w = {"w": normal(130, 77, seed=0, dtype=dtype)}
        optimizer = OPTIMIZERS["AdamW"](master_weights=masters, ema_decay=DECAY)
        average = Average()
        for seed in range(1, 4):
            g = {
                "contiguous": normal(130, 77, seed=seed, dtype=dtype),
                "transposed": normal(77, 130, seed=seed, dtype=dtype).T,
                "strided": normal(260, 154, seed=seed, dtype=dtype)[::2, ::2],
                "float32": normal(130, 77, seed=seed),
            }[layout]
            w = optimizer.apply_gradients({"w": g}, w, max_value=2.0)
            average.add(optimizer.master_parameters(w))
        assert w["w"].dtype == dtype
        average.assert_is(optimizer.ema_parameters(w))

    @pytest.mark.parametrize("name", ["AdamW", "Lamb"])
    def test_a_parameter_keeps_its_dtype(self, name):
        optimizer = OPTIMIZERS[name](ema_decay=DECAY)
        w = {"w": normal(20, 5, seed=0, dtype=mx.bfloat16)}
        average = Average()
        for seed in (1, 2):
            w = optimizer.apply_gradients({"w": normal(20, 5, seed=seed)}, w)
            average.add(w)
        assert w["w"].dtype == mx.bfloat16
        average.assert_is(optimizer.ema_parameters(w))

    def test_a_parameter_and_an_average_of_any_layout(self):
        optimizer = OPTIMIZERS["AdamW"](ema_decay=DECAY)
        w = {"w": normal(40, 30, seed=0).T}
        average = Average()
        w = optimizer.apply_gradients({"w": normal(30, 40, seed=1)}, w)
        average.add(w)
        state = optimizer.state["w"]
        state["ema"] = mx.contiguous(state["ema"].T).T
        w = optimizer.apply_gradients({"w": normal(30, 40, seed=2)}, w)
        average.add(w)
        average.assert_is(optimizer.ema_parameters(w))

    def test_an_array_that_is_held_does_not_change(self):
        model, optimizer = Model(), mlx_opt.AdamW(0.1, ema_decay=DECAY)
        optimizer.update(model, {"w": normal(9, 37, seed=1)})
        mx.eval(model.parameters(), optimizer.state)
        held = optimizer.state["w"]["ema"]
        before = held + 0
        mx.eval(before)
        optimizer.update(model, {"w": normal(9, 37, seed=2)})
        mx.eval(model.parameters(), optimizer.state)
        assert_same(held, before)
        assert not mx.array_equal(optimizer.state["w"]["ema"], before)

    def test_bytes(self):
        size, peaks = 2**20, []
        for decay in (None, 0.999):
            model, optimizer = nn.Module(), mlx_opt.AdamW(1e-3, ema_decay=decay)
            model.w = mx.zeros(size)
            mx.eval(model.parameters())
            for _ in range(3):
                g = {"w": mx.ones(size)}
                mx.eval(g)
                mx.reset_peak_memory()
                optimizer.update(model, g)
                mx.eval(model.parameters(), optimizer.state)
            peaks.append(mx.get_peak_memory())
            del model, optimizer, g
        assert (peaks[1] - peaks[0]) / size == pytest.approx(4, abs=0.05)


@each_storage
@pytest.mark.parametrize("name", ["AdamW", "Lamb", "Muon"])
def test_a_skipped_step_moves_nothing(name, dtype, masters):
    optimizer = OPTIMIZERS[name](master_weights=masters, ema_decay=DECAY, ema_warmup="ratio")
    other = copy.deepcopy(optimizer)
    arguments = {"max_norm": 0.5, "skip_nonfinite": True}
    w = walk(optimizer, tree(0, dtype), [1, 2, 3], **arguments)
    before = {path: x + 0 for path, x in flat(optimizer.state).items()}
    mx.eval(before)
    bad = tree(4, dtype) | {"scalar": mx.array(float("inf"), dtype)}
    w = optimizer.apply_gradients(bad, w, **arguments)
    for path, x in before.items():
        if not path.startswith("mlx_opt."):
            assert_same(flat(optimizer.state)[path], x)
    w = walk(optimizer, w, [5], **arguments)
    expected = walk(other, tree(0, dtype), [1, 2, 3, 5], **arguments)
    for path, x in other.ema_parameters(expected).items():
        assert_same(optimizer.ema_parameters(w)[path], x)


def test_only_the_call_that_makes_a_step_moves_it():
    optimizer = mlx_opt.SGD(1.0, ema_decay=0.5, accumulate=2)
    optimizer.loss_scale = 2.0
    w, averages = {"w": mx.array(8.0)}, []
    for _ in range(4):
        w = optimizer.apply_gradients({"w": mx.array(4.0)}, w)
        averages.append(optimizer.ema_parameters(w)["w"].item())
    assert averages == [8.0, 6.0, 6.0, 5.0]


SCHEDULE = mlx_opt.schedulers.linear_schedule(0.5, 0.9, 4)


@pytest.mark.parametrize("name", ["AdamW", "Lamb"])
@pytest.mark.parametrize(
    "options",
    [{"ema_decay": DECAY}, {"ema_decay": 0.6, "ema_warmup": 2 / 3}, {"ema_decay": SCHEDULE}],
    ids=["constant", "warmup", "schedule"],
)
def test_compiled(name, options, compiler):
    ours, theirs = (OPTIMIZERS[name](**options) for _ in range(2))
    w, expected = (for_compile(tree(0)) for _ in range(2))
    ours.init(w)
    state, traces = [ours.state], []

    def step(w, g):
        traces.append(1)
        return ours.apply_gradients(g, w)

    step = mx.compile(step, inputs=state, outputs=state)
    for seed in range(1, 6):
        g = for_compile(tree(seed))
        w = step(w, g)
        expected = theirs.apply_gradients(g, expected)
    assert len(traces) == 1
    for path, x in flat(theirs.state).items():
        np.testing.assert_allclose(np.array(flat(ours.state)[path]), np.array(x), rtol=1e-6)


def test_vmap():
    w, g = (normal(3, 20, seed=seed) for seed in range(2))

    def step(w, g):
        optimizer = mlx_opt.AdamW(1e-3, ema_decay=0.5)
        for _ in range(2):
            w = optimizer.apply_gradients({"w": g}, {"w": w})["w"]
        return w, optimizer.state["w"]["ema"]

    got, averages = mx.vmap(step)(w, g)
    for i in range(3):
        expected, average = step(w[i], g[i])
        assert_same(got[i], expected)
        assert_same(averages[i], average)


def test_grad():
    optimizer = mlx_opt.SGD(1.0, ema_decay=0.5)
    w = optimizer.apply_gradients({"w": mx.array(1.0)}, {"w": mx.array(3.0)})

    def average(g):
        after = copy.deepcopy(optimizer)
        after.apply_gradients({"w": g}, w)
        return after.state["w"]["ema"]

    assert mx.grad(average)(mx.array(1.0)).item() == -0.5


def test_complex_numbers():
    optimizer = mlx_opt.SGD(1.0, ema_decay=0.5)
    w = {"w": mx.array(2 + 4j)}
    for _ in range(2):
        w = optimizer.apply_gradients({"w": mx.array(1j)}, w)
    assert optimizer.ema_parameters(w)["w"].item() == 2 + 2.5j


class TestDecays:
    def test_a_schedule(self):
        optimizer = mlx_opt.SGD(1.0, ema_decay=SCHEDULE)
        w, e = {"w": mx.array(8.0)}, None
        for step in range(5):
            w = optimizer.apply_gradients({"w": mx.array(1.0)}, w)
            now = w["w"].item()
            e = now if e is None else e + (1 - SCHEDULE(step).item()) * (now - e)
        assert optimizer.ema_parameters(w)["w"].item() == pytest.approx(e, rel=1e-6)
        assert optimizer.state["ema_decay"].item() == SCHEDULE(4).item()

    def test_an_array_in_the_state(self):
        optimizer = mlx_opt.SGD(1.0, ema_decay=mx.array(0.5))
        w = {"w": mx.array(8.0)}
        w = optimizer.apply_gradients({"w": mx.array(1.0)}, w)
        optimizer.state["mlx_opt"]["values"]["ema_decay"] = mx.array(0.75)
        w = optimizer.apply_gradients({"w": mx.array(4.0)}, w)
        assert optimizer.ema_parameters(w)["w"].item() == 6.0

    @pytest.mark.parametrize("decay", [None, 0, 0.0])
    def test_none(self, decay):
        optimizer = mlx_opt.SGD(1.0, ema_decay=decay)
        optimizer.apply_gradients({"w": mx.array(1.0)}, {"w": mx.array(8.0)})
        assert "ema" not in optimizer.state["w"]

    def test_set_later(self):
        optimizer = mlx_opt.SGD(1.0, ema_decay=0.5)
        w = {"w": mx.array(8.0)}
        w = optimizer.apply_gradients({"w": mx.array(1.0)}, w)
        optimizer.ema_decay = 0.75
        w = optimizer.apply_gradients({"w": mx.array(4.0)}, w)
        assert optimizer.ema_parameters(w)["w"].item() == 6.0

    def test_numpy(self):
        optimizer = mlx_opt.SGD(1.0, ema_decay=np.float32(0.5))
        w = {"w": mx.array(8.0)}
        for _ in range(2):
            w = optimizer.apply_gradients({"w": mx.array(2.0)}, w)
        assert optimizer.ema_parameters(w)["w"].item() == 5.0


class TestGroups:
    def test_some_parameters_have_averages(self):
        groups = [Group("a", ema_decay=DECAY), Group("scalar", weight_decay=0.0)]
        optimizer = mlx_opt.AdamW(1e-2, groups=groups)
        average = Average()
        w = walk(optimizer, tree(0), range(1, 4), average)
        paths = [path for path, _ in tree_flatten(optimizer.state) if path.endswith("ema")]
        assert paths == ["a.ema"]
        averages = optimizer.ema_parameters(w)
        average.assert_is({"a": averages["a"]})
        assert averages["b"] is w["b"]

    @pytest.mark.parametrize("decay", [None, 0.0])
    def test_some_have_none(self, decay):
        optimizer = mlx_opt.Lion(
            1e-2, ema_decay=DECAY, ema_warmup="ratio", groups=[Group("a", ema_decay=decay)]
        )
        walk(optimizer, tree(0), [1, 2])
        assert "ema" not in optimizer.state["a"]
        assert "ema" in optimizer.state["b"]

    def test_a_schedule(self):
        optimizer = mlx_opt.SGD(1.0, groups=[Group("a", name="slow", ema_decay=SCHEDULE)])
        w = {"a": mx.array(8.0), "b": mx.array(8.0)}
        for _ in range(2):
            w = optimizer.apply_gradients({"a": mx.array(1.0), "b": mx.array(1.0)}, w)
        expected = 7 - (1 - SCHEDULE(1).item())
        assert optimizer.ema_parameters(w)["a"].item() == pytest.approx(expected, rel=1e-6)

    def test_frozen_parameters_have_none(self):
        optimizer = mlx_opt.SGD(1.0, ema_decay=0.5, groups=[Group("a", frozen=True)])
        w = {"a": mx.array(8.0), "b": mx.array(8.0)}
        after = optimizer.apply_gradients({"a": mx.array(1.0), "b": mx.array(1.0)}, w)
        assert optimizer.state["a"] == {}
        assert optimizer.ema_parameters(after)["a"].item() == 8.0

    def test_parameters_without_gradients_keep_theirs(self):
        optimizer = mlx_opt.SGD(1.0, ema_decay=0.5)
        w = {"a": mx.array(8.0), "b": mx.array(8.0)}
        w = optimizer.apply_gradients({"a": mx.array(1.0), "b": mx.array(1.0)}, w)
        w |= optimizer.apply_gradients({"a": mx.array(2.0)}, {"a": w["a"]})
        averages = optimizer.ema_parameters(w)
        assert (averages["a"].item(), averages["b"].item()) == (6.0, 7.0)

    def test_a_part_of_several_optimizers(self):
        muon = mlx_opt.Muon(1e-2, ema_decay=DECAY, fallback=mlx_opt.AdamW(1e-2, ema_decay=DECAY))
        multi = mlx_opt.MultiOptimizer(
            [mlx_opt.Muon(1e-2, ema_decay=DECAY), mlx_opt.AdamW(1e-2, ema_decay=DECAY)],
            [lambda _, x: x.ndim >= 2],
        )
        for optimizer in (muon, multi):
            average = Average()
            w = {name: x for name, x in tree(0).items() if name in ("a", "b")}
            for step in (1, 2, 3):
                g = {name: x for name, x in tree(step).items() if name in w}
                w = optimizer.apply_gradients(g, w, max_norm=1.0)
                average.add(w)
            average.assert_is(optimizer.ema_parameters(w))

    def test_parameters_that_are_not_trained(self):
        model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 2))
        model.layers[0] = nn.QuantizedLinear.from_linear(model.layers[0])
        model.layers[0].freeze()
        optimizer = mlx_opt.SGD(0.1, ema_decay=0.5)
        loss = nn.value_and_grad(model, lambda x: model(x).sum())
        optimizer.update(model, loss(mx.ones((1, 64)))[1])
        packed = model.layers[0].weight
        with optimizer.evaluating(model):
            assert model.layers[0].weight is packed
        assert packed.dtype == mx.uint32


class TestCheckpoints:
    def saved(self, optimizer, tmp_path):
        path = str(tmp_path / "state.safetensors")
        mx.save_safetensors(path, dict(tree_flatten(optimizer.state)))
        return tree_unflatten(list(mx.load(path).items()))

    @pytest.mark.parametrize("name", ["AdamW", "Adafactor"])
    @pytest.mark.parametrize("masters", [None, "float32"])
    def test_a_run_goes_on(self, name, masters, tmp_path):
        first, second = (
            OPTIMIZERS[name](master_weights=masters, ema_decay=DECAY, ema_warmup="ratio")
            for _ in range(2)
        )
        w = tree(0, mx.bfloat16)
        del w["empty"]  # files have no empty arrays
        g = {path: normal(*x.shape, seed=1, dtype=x.dtype) for path, x in w.items()}
        for _ in range(3):
            w = first.apply_gradients(g, w)
        second.state = self.saved(first, tmp_path)
        for optimizer in (copy.deepcopy(first), pickle.loads(pickle.dumps(first)), second):
            expected = copy.deepcopy(first)
            after, theirs = optimizer.apply_gradients(g, w), expected.apply_gradients(g, w)
            for path, x in theirs.items():
                assert_same(after[path], x)
            for path, x in flat(expected.state).items():
                assert_same(flat(optimizer.state)[path], x)

    def test_a_state_without_averages(self):
        plain, ours = mlx_opt.AdamW(0.1), mlx_opt.AdamW(0.1, ema_decay=DECAY)
        w = plain.apply_gradients({"w": mx.ones(3)}, {"w": mx.ones(3)})
        ours.state = plain.state
        with pytest.warns(UserWarning, match=r"^the state had no w\.ema; begun anew$"):
            w = ours.apply_gradients({"w": mx.ones(3)}, w)
        assert_same(ours.state["w"]["ema"], w["w"])

    def test_a_state_with_averages_for_an_optimizer_without(self):
        plain, ours = mlx_opt.SGD(0.1), mlx_opt.SGD(0.1, ema_decay=DECAY)
        w = ours.apply_gradients({"w": mx.ones(3)}, {"w": mx.ones(3)})
        plain.state = ours.state
        with pytest.warns(UserWarning, match=r"^the optimizer has no w\.ema; dropped"):
            plain.apply_gradients({"w": mx.ones(3)}, w)
        assert list(plain.state["w"]) == ["v"]

    def test_an_average_of_another_dtype_becomes_float32(self):
        ours = mlx_opt.SGD(0.1, ema_decay=DECAY)
        w = ours.apply_gradients({"w": mx.ones(3)}, {"w": mx.ones(3)})
        ours.state["w"]["ema"] = w["w"].astype(mx.bfloat16)
        ours.apply_gradients({"w": mx.ones(3)}, w)
        assert ours.state["w"]["ema"].dtype == mx.float32

    def test_an_optimizer_that_was_pickled_without(self):
        optimizer = mlx_opt.SGD(0.1)
        for name in ("ema_decay", "ema_warmup", "ema_update_after"):
            del vars(optimizer)[name]
        optimizer.apply_gradients({"w": mx.ones(3)}, {"w": mx.ones(3)})
        assert optimizer.ema_decay is None


class TestEvaluating:
    def trained(self, dtype=mx.float32, **options):
        model, optimizer = Model(dtype), mlx_opt.SGD(1.0, ema_decay=0.5, **options)
        for seed in (1, 2):
            optimizer.update(model, {"w": normal(9, 37, seed=seed, dtype=dtype)})
        return model, optimizer

    @pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
    def test_the_model_has_the_averages(self, dtype):
        model, optimizer = self.trained(dtype)
        before, state = model.w, flat(optimizer.state)
        average = optimizer.ema_parameters(model)["w"]
        with optimizer.evaluating(model):
            assert model.w.dtype == dtype
            assert_same(model.w, average.astype(dtype))
            assert not mx.array_equal(model.w, before)
        assert model.w is before
        assert set(flat(optimizer.state)) == set(state)

    def test_a_step_in_the_block_raises(self):
        model, optimizer = self.trained()
        with optimizer.evaluating(model):
            held = flat(optimizer.state)
            with pytest.raises(RuntimeError) as error:
                optimizer.update(model, {"w": mx.ones((9, 37))})
            assert flat(optimizer.state) == held
        assert str(error.value) == (
            "SGD: the model has the averages of its parameters: end the block of "
            "evaluating(model) before the next step"
        )
        optimizer.update(model, {"w": mx.ones((9, 37))})

    def test_a_compiled_step_in_the_block_raises(self, compiler):
        model, optimizer = self.trained()
        state, traces = [model.state, optimizer.state], []

        def step(g):
            traces.append(1)
            optimizer.update(model, {"w": g})

        step = mx.compile(step, inputs=state, outputs=state)
        step(mx.ones((9, 37)))
        with optimizer.evaluating(model), pytest.raises(RuntimeError, match="end the block"):
            step(mx.ones((9, 37)))
        step(mx.ones((9, 37)))
        assert len(traces) == 2  # the step after the block is traced already

    def test_an_error_in_the_block(self):
        model, optimizer = self.trained()
        before = model.w
        with pytest.raises(KeyError, match="own"), optimizer.evaluating(model):
            raise KeyError("own")
        assert model.w is before
        optimizer.update(model, {"w": mx.ones((9, 37))})

    def test_a_block_within_a_block(self):
        model, optimizer = self.trained()
        before = model.w
        with optimizer.evaluating(model):
            average = model.w
            with optimizer.evaluating(model):
                assert model.w is average
            assert model.w is average
        assert model.w is before

    def test_several_optimizers(self):
        model = nn.Linear(3, 2)
        optimizer = mlx_opt.MultiOptimizer(
            [mlx_opt.SGD(1.0, ema_decay=0.5), mlx_opt.SGD(1.0)], [lambda _, x: x.ndim == 2]
        )
        for _ in range(2):
            optimizer.update(model, {"weight": mx.ones((2, 3)), "bias": mx.ones(2)})
        before = model.weight, model.bias
        with optimizer.evaluating(model):
            assert_same(model.weight, before[0] + 0.5)
            assert_same(model.bias, before[1])
            with pytest.raises(RuntimeError, match="end the block"):
                optimizer.update(model, {"bias": mx.ones(2)})
        assert model.weight is before[0]

    def test_before_the_first_step(self):
        model, optimizer = Model(), mlx_opt.SGD(1.0, ema_decay=0.5)
        assert_same(optimizer.ema_parameters(model)["w"], model.w)
        optimizer.init(model.trainable_parameters())
        assert_same(optimizer.ema_parameters(model)["w"], model.w)

    def test_the_average_of_a_schedule_free_rule_comes_first(self):
        model, optimizer = Model(), mlx_opt.SGDScheduleFree(0.1, ema_decay=0.5)
        for seed in (1, 2):
            optimizer.update(model, {"w": normal(9, 37, seed=seed)})
        expected = optimizer.eval_parameters(model)["w"]
        with optimizer.evaluating(model):
            assert_same(model.w, expected)


def raised(function):
    with pytest.raises((TypeError, ValueError)) as error:
        function()
    return f"{type(error.value).__name__}: {error.value}"


class TestErrors:
    @pytest.mark.parametrize("build", [mlx_opt.AdamW, mlx_opt.Lamb, mlx_opt.Muon])
    def test_decays(self, build):
        name = build.__name__
        assert raised(lambda: build(1e-3, ema_decay=1.0)) == (
            f"ValueError: {name}: ema_decay: expected a number in [0, 1), got 1.0"
        )
        assert raised(lambda: build(1e-3, ema_decay="0.9")) == (
            f"TypeError: {name}: ema_decay: expected a number, a schedule, an array or None, "
            "got str"
        )
        assert raised(lambda: build(1e-3, ema_decay=mx.ones(2))) == (
            f"ValueError: {name}: ema_decay: expected a number, got shape (2,)"
        )

    def test_warmups(self):
        expected = 'expected "ratio", a power in (0, 1] or None'
        assert raised(lambda: mlx_opt.SGD(1e-3, ema_warmup="linear")) == (
            f"ValueError: SGD: ema_warmup: {expected}, got 'linear'"
        )
        assert raised(lambda: mlx_opt.SGD(1e-3, ema_warmup=True)) == (
            f"TypeError: SGD: ema_warmup: {expected}, got bool"
        )
        assert raised(lambda: mlx_opt.SGD(1e-3, ema_warmup=1.5)) == (
            f"ValueError: SGD: ema_warmup: {expected}, got 1.5"
        )

    def test_steps(self):
        assert raised(lambda: mlx_opt.SGD(1e-3, ema_update_after=1.0)) == (
            "TypeError: SGD: ema_update_after: expected an int, got float"
        )
        assert raised(lambda: mlx_opt.SGD(1e-3, ema_update_after=-1)) == (
            "ValueError: SGD: ema_update_after: expected 0 or more, got -1"
        )

    def test_in_a_group(self):
        assert raised(lambda: mlx_opt.SGD(1e-3, groups=[Group("a", ema_decay=2)])) == (
            "ValueError: SGD: ema_decay: expected a number in [0, 1), got 2"
        )

    def test_there_is_no_average(self):
        for optimizer in (mlx_opt.SGD(0.1), mlx_opt.MultiOptimizer([mlx_opt.SGD(0.1)])):
            name = type(optimizer).__name__
            assert raised(lambda optimizer=optimizer: optimizer.ema_parameters({})) == (
                f"ValueError: {name}: it has no ema_decay, and so no averages"
            )

    def test_no_module(self):
        def enter():
            with mlx_opt.SGD(0.1, ema_decay=0.5).evaluating({}):
                pass

        assert raised(enter) == "TypeError: model: expected an mlx.nn.Module, got dict"

    def test_an_own_apply_single(self):
        class Own(mlx_opt.SGD):
            def apply_single(self, gradient, parameter, state):
                return parameter

        w = {"w": mx.ones(3)}
        assert raised(lambda: Own(1e-3, ema_decay=0.5).apply_gradients(w, w)) == (
            "TypeError: Own: ema_decay: apply_single is overridden, and does not get the averages"
        )
        optimizer = Own(1e-3, groups=[Group("w", ema_decay=0.5)])
        assert "apply_single is overridden" in raised(lambda: optimizer.apply_gradients(w, w))

    def test_an_average_of_another_shape(self):
        optimizer = OPTIMIZERS["AdamW"](ema_decay=DECAY)
        w = {"w": mx.ones(3)}
        optimizer.init(w)
        optimizer.state["w"]["ema"] = mx.ones(4)
        with pytest.raises(ValueError, match=r'^w: state "ema" \(4,\), parameter \(3,\)$'):
            optimizer.apply_gradients(w, w)

    def test_divided_states(self):
        assert raised(lambda: mlx_opt.Sharded(mlx_opt.SGD(0.1, ema_decay=0.5))) == (
            "TypeError: Sharded: an optimizer with ema_decay is not supported"
        )


def test_repr_shows_it():
    shown = repr(mlx_opt.SGD(0.1, ema_decay=0.999, ema_warmup="ratio"))
    assert "ema_decay=0.999, ema_warmup='ratio'" in shown
    assert "ema" not in repr(mlx_opt.SGD(0.1))


def test_memory_counts_it():
    w = {"w": mx.zeros(100, mx.bfloat16)}
    memory = mlx_opt.AdamW(1e-3, ema_decay=0.999).memory(w, show=False)
    assert memory.state["ema"] == 400


@pytest.mark.parametrize("build", [mlx_opt.AdamW, mlx_opt.Lion])
def test_stochastic_rounding(build):
    options = {"stochastic_rounding": True, "rounding_seed": 3}
    optimizer, plain = build(1e-2, ema_decay=DECAY, **options), build(1e-2, **options)
    average = Average()
    w = walk(optimizer, tree(0, mx.bfloat16), range(1, 5), average)
    average.assert_is(optimizer.ema_parameters(w))
    expected = walk(plain, tree(0, mx.bfloat16), range(1, 5))
    for name, x in expected.items():
        assert_same(w[name], x)
