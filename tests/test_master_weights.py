"""Master weights: a step of a bfloat16 or float16 parameter is one of its weight in float32."""

import copy
import pickle

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map, tree_unflatten

import mlx_opt
from cases import assert_same, flat, for_compile, normal
from mlx_opt import Group

HALVES = {"bfloat16": mx.bfloat16, "float16": mx.float16}
each_half = pytest.mark.parametrize("dtype", HALVES.values(), ids=list(HALVES))

# A rule for each way that a step can go: fused with one slot, two, and unset ones; of two passes;
# of sums over rows and columns; composed of several; that averages and keeps numbers.
OPTIMIZERS = {
    "SGD": lambda **options: mlx_opt.SGD(1e-3, 0.9, 0.1, **options),
    "AdamW": lambda **options: mlx_opt.AdamW(1e-3, weight_decay=0.1, **options),
    "MADGRAD": lambda **options: mlx_opt.MADGRAD(1e-3, **options),
    "Lamb": lambda **options: mlx_opt.Lamb(1e-3, **options),
    "Adafactor": lambda **options: mlx_opt.Adafactor(1e-3, relative_step=False, **options),
    "Muon": lambda **options: mlx_opt.Muon(1e-3, **options),
    "AdamWScheduleFree": lambda **options: mlx_opt.AdamWScheduleFree(1e-3, **options),
}
each_optimizer = pytest.mark.parametrize("build", OPTIMIZERS.values(), ids=list(OPTIMIZERS))
each_fused = pytest.mark.parametrize(
    "build", [OPTIMIZERS["SGD"], OPTIMIZERS["AdamW"]], ids=["SGD", "AdamW"]
)


def tree(seed, dtype):
    """Parameters or gradients of several sizes, and one that has no master weight."""
    shapes = {"a": (9, 37), "b": (130,), "empty": (0, 3), "scalar": ()}
    named = {name: normal(*shape, seed=seed, dtype=dtype) for name, shape in shapes.items()}
    return {**named, "layers": [{"wide": normal(5, 4, seed=seed)}]}


def wide(tree):
    return tree_map(lambda x: x.astype(mx.float32), tree)


def assert_trees_same(got, expected):
    expected = flat(expected)
    for path, x in flat(got).items():
        assert_same(x, expected[path])


def assert_rounded(optimizer, parameters):
    """The parameters are the rounding of their master weights."""
    masters = flat(optimizer.master_parameters(parameters))
    for path, x in tree_flatten(parameters):
        assert masters[path].dtype == mx.float32
        assert_same(x, masters[path].astype(x.dtype))


def walk(optimizer, w, steps, dtype, **arguments):
    for step in steps:
        w = optimizer.apply_gradients(tree(step, dtype), w, **arguments)
    return w


def walk_in_float32(optimizer, w, steps, dtype, **arguments):
    for step in steps:
        w = optimizer.apply_gradients(wide(tree(step, dtype)), w, **arguments)
    return w


@each_half
@each_optimizer
def test_the_master_weights_are_those_of_float32(build, dtype):
    w = tree(0, dtype)
    ours, theirs = build(master_weights="float32"), build()
    after = walk(ours, w, range(1, 7), dtype)
    expected = walk_in_float32(theirs, wide(w), range(1, 7), dtype)
    assert_trees_same(ours.master_parameters(after), expected)
    assert_rounded(ours, after)
    assert [x.dtype for _, x in tree_flatten(after)] == [x.dtype for _, x in tree_flatten(w)]
    state = flat(ours.state)
    for path, x in flat(theirs.state).items():
        assert_same(state.pop(path), x)
    assert set(state) == {"a.master", "b.master", "empty.master", "scalar.master"}


@each_half
@each_optimizer
def test_the_formula_makes_the_same_step(build, dtype, monkeypatch):
    w = tree(0, dtype)
    ours, theirs = build(master_weights="float32"), build()
    for optimizer in (ours, theirs):
        monkeypatch.setattr(optimizer, "_uses_primitives", lambda: False)
    after = walk(ours, w, range(1, 4), dtype)
    assert_trees_same(
        ours.master_parameters(after), walk_in_float32(theirs, wide(w), range(1, 4), dtype)
    )
    assert_rounded(ours, after)


class Model(nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.update(tree_map(mx.array, tree(0, dtype)), strict=False)
        for name, x in tree(0, dtype).items():
            self[name] = x


def gradients(step, dtype):
    return {name: x for name, x in tree(step, dtype).items() if name != "layers"}


@each_half
@each_fused
@pytest.mark.usefixtures("cpu")
def test_a_step_in_place(build, dtype):
    model, w = Model(dtype), gradients(0, dtype)
    ours, theirs = build(master_weights="float32"), build(master_weights="float32")
    for step in range(1, 5):
        g = gradients(step, dtype)
        mx.eval(g, model.parameters(), ours.state)
        before = [id(x) for _, x in tree_flatten([model.parameters(), ours.state])]
        ours.update(model, g)
        w = theirs.apply_gradients(g, w)
        if step > 2:
            after = [id(x) for _, x in tree_flatten([model.parameters(), ours.state])]
            assert sum(a != b for a, b in zip(before, after, strict=True)) <= 1  # the step's number
    assert_trees_same({name: model[name] for name in w}, w)
    assert_trees_same(ours.state, theirs.state)


@pytest.mark.usefixtures("cpu")
@pytest.mark.parametrize("layout", ["transposed", "strided", "float32"])
def test_gradients_of_any_layout(layout):
    build = OPTIMIZERS["AdamW"]
    w = {"w": normal(33, 50, seed=0, dtype=mx.bfloat16)}
    ours, theirs = build(master_weights="float32"), build()
    expected = wide(w)
    for seed in range(1, 4):
        g = {
            "transposed": normal(50, 33, seed=seed, dtype=mx.bfloat16).T,
            "strided": normal(66, 100, seed=seed, dtype=mx.bfloat16)[::2, ::2],
            "float32": normal(33, 50, seed=seed),
        }[layout]
        w = ours.apply_gradients({"w": g}, w, max_value=1.0)
        expected = theirs.apply_gradients({"w": g.astype(mx.float32)}, expected, max_value=1.0)
    assert w["w"].dtype == mx.bfloat16
    assert_same(ours.master_parameters(w)["w"], expected["w"])


def test_small_updates_add_up():
    def moved(**options):
        w = {"w": mx.ones(3, mx.bfloat16)}
        optimizer = mlx_opt.AdamW(1e-3, weight_decay=0.0, bias_correction=True, **options)
        for _ in range(10):
            w = optimizer.apply_gradients({"w": mx.ones(3, mx.bfloat16)}, w)
        return w["w"].astype(mx.float32).tolist()

    assert moved() == [1.0] * 3
    assert moved(master_weights="float32") == [0.98828125] * 3  # 0.99 in bfloat16


class TestForeignWrites:
    @each_half
    @pytest.mark.parametrize("name", ["AdamW", "Lamb"])
    def test_elements_that_were_written_replace_their_masters(self, name, dtype):
        ours, theirs = OPTIMIZERS[name](master_weights="float32"), OPTIMIZERS[name]()
        w = walk(ours, tree(0, dtype), [1], dtype)
        expected = walk_in_float32(theirs, wide(tree(0, dtype)), [1], dtype)
        written = (mx.arange(130) % 3 == 0) & (w["b"] != 0.5)
        w["b"] = mx.where(written, 0.5, w["b"])
        expected["b"] = mx.where(written, 0.5, expected["b"])
        assert_trees_same(ours.master_parameters(w), expected)
        w = walk(ours, w, [2, 3], dtype)
        expected = walk_in_float32(theirs, expected, [2, 3], dtype)
        assert_trees_same(ours.master_parameters(w), expected)

    @pytest.mark.parametrize("value", [0.0, -0.0, float("inf"), float("-inf")])
    def test_special_values(self, value):
        optimizer = mlx_opt.SGD(0.125, master_weights="float32")
        w = {"w": mx.ones(2, mx.bfloat16)}
        w = optimizer.apply_gradients(w, w)
        w["w"] = mx.full((2,), value, mx.bfloat16)
        w = optimizer.apply_gradients({"w": mx.ones(2, mx.bfloat16)}, w)
        assert optimizer.state["w"]["master"].tolist() == [value - 0.125] * 2

    def test_nan_stays(self):
        optimizer = mlx_opt.SGD(0.125, master_weights="float32")
        w = {"w": mx.array([1.0, float("nan")], mx.bfloat16)}
        for _ in range(2):
            w = optimizer.apply_gradients({"w": mx.ones(2, mx.bfloat16)}, w)
        assert mx.isnan(w["w"]).tolist() == [False, True]
        assert optimizer.master_parameters(w)["w"][0].item() == 0.75


@each_half
@pytest.mark.parametrize("name", ["AdamW", "Lamb", "Muon"])
def test_clipped_and_skipped_steps(name, dtype):
    ours, theirs = OPTIMIZERS[name](master_weights="float32"), OPTIMIZERS[name]()
    arguments = {"max_norm": 0.5, "skip_nonfinite": True}
    w = walk(ours, tree(0, dtype), [1], dtype, **arguments)
    expected = walk_in_float32(theirs, wide(tree(0, dtype)), [1], dtype, **arguments)
    before = flat(ours.state)
    bad = tree(2, dtype) | {"scalar": mx.array(float("inf"), dtype)}
    w = ours.apply_gradients(bad, w, **arguments)
    for path, x in before.items():
        if not path.startswith("mlx_opt."):
            assert_same(flat(ours.state)[path], x)
    w = walk(ours, w, [3], dtype, **arguments)
    expected = walk_in_float32(theirs, expected, [3], dtype, **arguments)
    assert_trees_same(ours.master_parameters(w), expected)


@pytest.mark.parametrize("name", ["AdamW", "Lamb"])
def test_compiled(name, compiler):
    ours, theirs = (OPTIMIZERS[name](master_weights="float32") for _ in range(2))
    w, expected = (for_compile(gradients(0, mx.bfloat16)) for _ in range(2))
    ours.init(w)
    state = [ours.state]

    def step(w, g):
        return ours.apply_gradients(g, w)

    step = mx.compile(step, inputs=state, outputs=state)
    for seed in range(1, 5):
        g = for_compile(gradients(seed, mx.bfloat16))
        w = step(w, g)
        expected = theirs.apply_gradients(g, expected)
    assert_trees_same(w, expected)
    assert_trees_same(ours.state, theirs.state)


def test_vmap():
    ours = mlx_opt.AdamW(1e-3, master_weights="float32")
    w, g = (normal(3, 20, seed=seed, dtype=mx.bfloat16) for seed in range(2))

    def step(w, g):
        ours.state = {**mlx_opt.AdamW(1e-3).state}
        return ours.apply_gradients({"w": g}, {"w": w})["w"], ours.state["w"]["master"]

    got, masters = mx.vmap(step)(w, g)
    for i in range(3):
        expected, master = step(w[i], g[i])
        assert_same(got[i], expected)
        assert_same(masters[i], master)


@pytest.mark.usefixtures("cpu")
def test_an_array_that_is_held_does_not_change():
    model, optimizer = Model(mx.bfloat16), mlx_opt.AdamW(0.1, master_weights="float32")
    optimizer.update(model, gradients(1, mx.bfloat16))
    mx.eval(model.parameters(), optimizer.state)
    held, master = model["a"], optimizer.state["a"]["master"]
    copies = held + 0, master + 0
    mx.eval(copies)
    optimizer.update(model, gradients(2, mx.bfloat16))
    mx.eval(model.parameters(), optimizer.state)
    assert_same(held, copies[0])
    assert_same(master, copies[1])


class TestGroups:
    def test_some_parameters_have_masters(self):
        groups = [Group("a", master_weights="float32"), Group("scalar", weight_decay=0.0)]
        optimizer = mlx_opt.AdamW(1e-3, groups=groups)
        w = walk(optimizer, tree(0, mx.bfloat16), [1, 2], mx.bfloat16)
        paths = [path for path, _ in tree_flatten(optimizer.state) if path.endswith("master")]
        assert paths == ["a.master"]
        alone = mlx_opt.AdamW(1e-3, master_weights="float32")
        expected = walk(alone, tree(0, mx.bfloat16), [1, 2], mx.bfloat16)
        assert_same(w["a"], expected["a"])
        assert_same(optimizer.state["a"]["master"], alone.state["a"]["master"])

    def test_some_have_none(self):
        optimizer = mlx_opt.Lion(
            1e-3, master_weights="float32", groups=[Group("a", master_weights=None)]
        )
        walk(optimizer, tree(0, mx.bfloat16), [1], mx.bfloat16)
        assert "master" not in optimizer.state["a"]
        assert "master" in optimizer.state["b"]

    def test_a_part_of_several_optimizers(self):
        muon = mlx_opt.Muon(
            1e-3,
            master_weights="float32",
            fallback=mlx_opt.AdamW(1e-3, master_weights="float32"),
        )
        multi = mlx_opt.MultiOptimizer(
            [mlx_opt.Muon(1e-3, master_weights="float32"),
             mlx_opt.AdamW(1e-3, master_weights="float32")],
            [lambda _, x: x.ndim >= 2],
        )  # fmt: skip
        w = {name: x for name, x in tree(0, mx.bfloat16).items() if name in ("a", "b")}
        g = {name: x for name, x in tree(1, mx.bfloat16).items() if name in ("a", "b")}
        for optimizer in (muon, multi):
            after = optimizer.apply_gradients(g, w)
            assert_rounded(optimizer, after)
            masters = optimizer.master_parameters(after)
            for name, x in after.items():
                assert not mx.array_equal(masters[name], x.astype(mx.float32)), name


class TestCheckpoints:
    def saved(self, optimizer, tmp_path):
        path = str(tmp_path / "state.safetensors")
        mx.save_safetensors(path, dict(tree_flatten(optimizer.state)))
        return tree_unflatten(list(mx.load(path).items()))

    @pytest.mark.parametrize("name", ["AdamW", "Adafactor"])
    def test_a_run_goes_on(self, name, tmp_path):
        first, second = (OPTIMIZERS[name](master_weights="float32") for _ in range(2))
        w, g = gradients(0, mx.bfloat16), gradients(1, mx.bfloat16)
        del w["empty"], g["empty"]  # files have no empty arrays
        w = first.apply_gradients(g, w)
        second.state = self.saved(first, tmp_path)
        for optimizer in (copy.deepcopy(first), pickle.loads(pickle.dumps(first)), second):
            expected = copy.deepcopy(first)
            assert_trees_same(optimizer.apply_gradients(g, w), expected.apply_gradients(g, w))
            assert_trees_same(optimizer.state, expected.state)

    def test_a_state_without_masters(self):
        plain, ours = OPTIMIZERS["AdamW"](), OPTIMIZERS["AdamW"](master_weights="float32")
        w = plain.apply_gradients(
            {"w": normal(9, seed=1, dtype=mx.bfloat16)}, {"w": mx.ones(9, mx.bfloat16)}
        )
        ours.state = plain.state
        g = {"w": normal(9, seed=2, dtype=mx.bfloat16)}
        with pytest.warns(UserWarning, match=r"^the state had no w\.master; begun anew$"):
            after = ours.apply_gradients(g, w)
        assert_rounded(ours, after)
        assert ours.state["w"]["m"].dtype == mx.float32
        assert mx.abs(ours.state["w"]["master"] - w["w"]).max().item() < 5e-3

    def test_a_state_with_masters_for_an_optimizer_without(self):
        plain, ours = OPTIMIZERS["SGD"](), OPTIMIZERS["SGD"](master_weights="float32")
        w = ours.apply_gradients({"w": mx.ones(9, mx.bfloat16)}, {"w": mx.ones(9, mx.bfloat16)})
        plain.state = ours.state
        with pytest.warns(UserWarning, match=r"^the optimizer has no w\.master; dropped"):
            plain.apply_gradients({"w": mx.ones(9, mx.bfloat16)}, w)
        assert list(plain.state["w"]) == ["v"]

    def test_a_master_of_another_dtype_becomes_float32(self):
        ours = OPTIMIZERS["SGD"](master_weights="float32")
        w = ours.apply_gradients({"w": mx.ones(9, mx.bfloat16)}, {"w": mx.ones(9, mx.bfloat16)})
        ours.state["w"]["master"] = w["w"]
        ours.apply_gradients({"w": mx.ones(9, mx.bfloat16)}, w)
        assert ours.state["w"]["master"].dtype == mx.float32


class TestErrors:
    @pytest.mark.parametrize("build", [mlx_opt.AdamW, mlx_opt.Lamb, mlx_opt.Muon])
    def test_a_kind_that_there_is_not(self, build):
        with pytest.raises(ValueError) as error:
            build(1e-3, master_weights="bfloat16")
        assert str(error.value) == (
            f'{build.__name__}: master_weights: expected "float32", "remainder" or None, '
            "got 'bfloat16'"
        )
        with pytest.raises(ValueError, match=r"expected .*, got \['float32'\]"):
            build(1e-3, master_weights=["float32"])

    def test_in_a_group(self):
        with pytest.raises(ValueError) as error:
            mlx_opt.SGD(1e-3, groups=[Group("a", master_weights=32)])
        assert (
            str(error.value)
            == 'SGD: master_weights: expected "float32", "remainder" or None, got 32'
        )

    def test_set_later(self):
        optimizer = mlx_opt.SGD(1e-3)
        optimizer.master_weights = "half"
        with pytest.raises(ValueError, match='there are no master weights "half"'):
            optimizer.apply_gradients({"w": mx.ones(3)}, {"w": mx.ones(3)})

    def test_an_own_apply_single(self):
        class Own(mlx_opt.SGD):
            def apply_single(self, gradient, parameter, state):
                return parameter

        w = {"w": mx.ones(3, mx.bfloat16)}
        optimizer = Own(1e-3, groups=[Group("w", master_weights="float32")])
        with pytest.raises(TypeError, match="apply_single is overridden"):
            optimizer.apply_gradients(w, w)
        optimizer = Own(1e-3, master_weights="float32")
        with pytest.raises(TypeError) as error:
            optimizer.apply_gradients(w, w)
        assert str(error.value) == (
            "Own: master_weights: apply_single is overridden, and does not get the master weights"
        )

    def test_a_master_of_another_shape(self):
        optimizer = OPTIMIZERS["AdamW"](master_weights="float32")
        w = {"w": mx.ones(3, mx.bfloat16)}
        optimizer.init(w)
        optimizer.state["w"]["master"] = mx.ones(4)
        with pytest.raises(ValueError, match=r'^w: state "master" \(4,\), parameter \(3,\)$'):
            optimizer.apply_gradients(w, w)

    def test_a_master_that_is_missing(self):
        optimizer = OPTIMIZERS["AdamW"](master_weights="float32")
        w = {"w": mx.ones(3, mx.bfloat16)}
        optimizer.init(w)
        del optimizer.state["w"]["master"]
        with pytest.raises(KeyError, match='w: the optimizer state has no array "master"'):
            optimizer.apply_gradients(w, w)


def test_repr_shows_them():
    assert "master_weights='float32'" in repr(mlx_opt.SGD(0.1, master_weights="float32"))
    assert "master_weights" not in repr(mlx_opt.SGD(0.1))


def peak(master_weights):
    """The bytes a parameter at the peak of a step of AdamW, gradient included."""
    model, optimizer = nn.Module(), mlx_opt.AdamW(1e-3, master_weights=master_weights)
    size = 2**20
    model.w = mx.zeros(size, mx.bfloat16)
    mx.eval(model.parameters())
    before = mx.get_active_memory() - 2 * size
    for _ in range(2):
        g = {"w": mx.ones(size, mx.bfloat16)}
        mx.eval(g)
        mx.synchronize()
        mx.reset_peak_memory()
        optimizer.update(model, g)
        mx.eval(model.parameters(), optimizer.state)
    return (mx.get_peak_memory() - before) / size


@pytest.mark.usefixtures("cpu")
def test_the_peak_of_a_step():
    # The parameter and the gradient in 2 bytes, the master and two slots in 4.
    assert peak("float32") == pytest.approx(16, rel=0.02)


def bits_of(x):
    return np.array(x.view(mx.uint32)) if x.dtype == mx.float32 else np.array(x.view(mx.uint16))


def joined(parameter, remainder):
    """The weights of bfloat16 numbers and remainders, both as bits."""
    high, low = parameter.astype(np.int64) << 16, remainder.astype(np.int64)
    weight = (high + low - (low >> 15 << 16)).astype(np.uint32).view(np.float32)
    return np.where(np.isnan(weight), high.astype(np.uint32).view(np.float32), weight)


def split(weight):
    """The bits of the bfloat16 nearest to each weight, ties away from zero, and the remainders."""
    high = bits_of(mx.array(weight).astype(mx.bfloat16)).astype(np.uint32)
    bits = weight.view(np.uint32)
    is_tie = bits & 0xFFFF == 0x8000  # which MLX rounds to even
    high = np.where(is_tie, (bits >> 16) + 1, high)
    numbers = ~np.isnan(weight)
    return np.where(numbers, high, 0x7FC0).astype(np.uint16), np.where(
        numbers, bits & 0xFFFF, 0
    ).astype(np.uint16)


class TestRemainders:
    LOWS = np.array([0, 1, 0x1234, 0x7FFF, 0x8000, 0x8001, 0xABCD, 0xFFFF], np.uint16)

    def codes(self):
        """Every bfloat16 with each of the low halves."""
        high = np.repeat(np.arange(2**16, dtype=np.uint16), self.LOWS.size)
        return high, np.tile(self.LOWS, 2**16)

    def stepped(self, high, low, fused=True):
        """The bits of parameters and remainders after a step that adds 0."""
        optimizer = mlx_opt.SGD(0.0, master_weights="remainder")
        optimizer._uses_primitives = lambda: fused
        w = {"w": mx.array(high).view(mx.bfloat16)}
        optimizer.init(w)
        optimizer.state["w"]["remainder"] = mx.array(low)
        w = optimizer.apply_gradients({"w": mx.zeros(high.shape, mx.bfloat16)}, w)
        return bits_of(w["w"]), np.array(optimizer.state["w"]["remainder"])

    @pytest.mark.parametrize("fused", [True, False])
    def test_every_weight_is_split_without_loss(self, fused):
        high, low = self.codes()
        weight = ((high.astype(np.uint32) << 16) | low).view(np.float32)
        parameter, remainder = split(weight)
        again = joined(parameter, remainder)
        numbers = ~np.isnan(weight)
        assert np.array_equal(again[numbers].view(np.uint32), weight[numbers].view(np.uint32))
        assert np.all(np.isnan(again[~numbers]))
        got = self.stepped(parameter, remainder, fused)
        moves = numbers & (weight.view(np.uint32) != 0x80000000)  # -0 minus 0 is 0 in some rules
        assert np.array_equal(got[0][moves], parameter[moves])
        assert np.array_equal(got[1][moves], remainder[moves])
        # A GPU makes another NaN of a NaN than a CPU.
        assert np.all(np.isnan(joined(*got)[~numbers]))

    @pytest.mark.parametrize("fused", [True, False])
    def test_what_somebody_else_wrote_rounds_to_itself(self, fused):
        high, low = self.codes()
        parameter, remainder = self.stepped(high, low, fused)
        nan = high & 0x7FFF > 0x7F80
        assert np.array_equal(parameter & 0x7FFF > 0x7F80, nan)
        same = ~nan & (high != 0x8000)  # -0 minus 0 is 0 in some rules
        assert np.array_equal(parameter[same], high[same])

    def test_its_master_parameters(self):
        high, low = self.codes()
        optimizer = mlx_opt.SGD(0.0, master_weights="remainder")
        w = {"w": mx.array(high).view(mx.bfloat16)}
        optimizer.init(w)
        optimizer.state["w"]["remainder"] = mx.array(low)
        got = np.array(optimizer.master_parameters(w)["w"])
        assert np.array_equal(got, joined(high, low), equal_nan=True)

    @each_optimizer
    def test_the_weights_are_those_of_a_master_in_float32(self, build):
        ours, theirs = build(master_weights="remainder"), build(master_weights="float32")
        w = expected = tree(0, mx.bfloat16)
        for seed in range(1, 7):
            w = ours.apply_gradients(tree(seed, mx.bfloat16), w)
            expected = theirs.apply_gradients(tree(seed, mx.bfloat16), expected)
        masters = theirs.master_parameters(expected)
        assert_trees_same(ours.master_parameters(w), masters)
        for path, x in flat(w).items():
            if x.dtype == mx.bfloat16 and x.size:
                high, low = split(np.array(flat(masters)[path]).reshape(-1))
                assert np.array_equal(bits_of(x.reshape(-1)), high)
                got = flat(ours.state)[f"{path}.remainder"]
                assert np.array_equal(np.array(got).reshape(-1), low)
        assert flat(ours.state).keys() >= {"a.remainder", "b.remainder", "scalar.remainder"}
        assert "layers.0.wide.remainder" not in flat(ours.state)

    @pytest.mark.usefixtures("cpu")
    @each_fused
    def test_a_step_in_place(self, build):
        model, optimizer = Model(mx.bfloat16), build(master_weights="remainder")
        other, w = build(master_weights="remainder"), gradients(0, mx.bfloat16)
        for step in range(1, 5):
            g = gradients(step, mx.bfloat16)
            mx.eval(g, model.parameters(), optimizer.state)
            optimizer.update(model, g)
            w = other.apply_gradients(g, w)
        assert_trees_same({name: model[name] for name in w}, w)
        assert_trees_same(optimizer.state, other.state)

    def test_clipped_skipped_and_compiled(self, compiler):
        ours = mlx_opt.AdamW(1e-3, master_weights="remainder")
        theirs = mlx_opt.AdamW(1e-3, master_weights="float32")
        w = expected = gradients(0, mx.bfloat16)
        arguments = {"max_norm": 0.5, "skip_nonfinite": True, "max_value": 0.1}
        ours.init(w)
        state = [ours.state]
        step = mx.compile(
            lambda w, g: ours.apply_gradients(g, w, **arguments), inputs=state, outputs=state
        )
        for seed in (1, 2, 3):
            g = gradients(seed, mx.bfloat16)
            g["scalar"] = mx.array(float("inf"), mx.bfloat16) if seed == 2 else g["scalar"]
            w = step(w, g)
            expected = theirs.apply_gradients(g, expected, **arguments)
        assert_trees_same(ours.master_parameters(w), theirs.master_parameters(expected))

    def test_float16_is_refused(self):
        optimizer = mlx_opt.AdamW(1e-3, master_weights="remainder")
        w = {"a": mx.ones(3, mx.bfloat16), "b": [mx.ones(3, mx.float16)]}
        for call in (lambda: optimizer.init(w), lambda: optimizer.apply_gradients(w, w)):
            with pytest.raises(ValueError) as error:
                call()
            assert str(error.value) == (
                'b.0: master_weights="remainder" is for bfloat16, got float16: use "float32"'
            )
        assert "a" not in optimizer.state or optimizer.state["a"] == {}

    def test_another_kind_in_the_state_is_dropped(self):
        first, second = (
            mlx_opt.SGD(1e-3, master_weights=kind) for kind in ("float32", "remainder")
        )
        w = first.apply_gradients({"w": mx.ones(9, mx.bfloat16)}, {"w": mx.ones(9, mx.bfloat16)})
        second.state = first.state
        with pytest.warns(UserWarning) as warned:
            second.apply_gradients({"w": mx.ones(9, mx.bfloat16)}, w)
        messages = [str(each.message) for each in warned]
        assert messages == [
            "the state had no w.remainder; begun anew",
            "the optimizer has no w.master; dropped from the state",
        ]
        assert set(second.state["w"]) == {"v", "remainder"}

    @pytest.mark.usefixtures("cpu")
    def test_the_peak_of_a_step(self):
        assert peak("remainder") == pytest.approx(14, rel=0.02)


def test_evaluating_an_average_keeps_the_masters():
    model, optimizer = nn.Module(), mlx_opt.SGDScheduleFree(0.1, master_weights="float32")
    model.w = mx.ones(5, mx.bfloat16)
    for seed in range(3):
        optimizer.update(model, {"w": normal(5, seed=seed, dtype=mx.bfloat16)})
    masters = optimizer.master_parameters(model)
    with optimizer.evaluating(model):
        assert not mx.array_equal(model.w, masters["w"].astype(mx.bfloat16))
    assert_same(optimizer.master_parameters(model), masters)


@pytest.mark.parametrize("name", ["AdamW", "Lamb"])
@pytest.mark.parametrize("kind", ["float32", "remainder"])
def test_with_a_dtype_of_the_state(name, kind):
    options = {"state_dtype": mx.bfloat16}
    ours = OPTIMIZERS[name](master_weights=kind, **options)
    theirs = OPTIMIZERS[name](**options)
    w = walk(ours, tree(0, mx.bfloat16), range(1, 4), mx.bfloat16)
    expected = walk_in_float32(theirs, wide(tree(0, mx.bfloat16)), range(1, 4), mx.bfloat16)
    assert_trees_same(ours.master_parameters(w), expected)
    assert_same(ours.state["a"]["m"], theirs.state["a"]["m"])
    assert ours.state["a"]["m"].dtype == mx.bfloat16


def test_with_gradients_that_are_added_up():
    ours = mlx_opt.AdamW(1e-3, master_weights="float32", accumulate=2)
    theirs = mlx_opt.AdamW(1e-3, master_weights="float32")
    w = {"w": mx.ones(9, mx.bfloat16)}
    g = {"w": mx.full(9, 0.5, mx.bfloat16)}
    after = ours.apply_gradients(g, ours.apply_gradients(g, w))
    assert_same(after, theirs.apply_gradients(g, w))
    assert_same(ours.state["w"]["master"], theirs.state["w"]["master"])


def test_what_they_hold_in_memory():
    w = {"w": mx.zeros(2**10, mx.bfloat16)}
    for kind, size in (("float32", {"master": 4}), ("remainder", {"remainder": 2})):
        memory = mlx_opt.AdamW(1e-3, master_weights=kind).memory(w, show=False)
        state = {name: x / 2**10 for name, x in memory.state.items() if name}
        assert state == {"m": 4, "v": 4, **size}
