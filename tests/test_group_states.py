"""What groups put into the optimizer's state, how they are matched, and what is refused."""

import copy

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as stock
import pytest
from mlx.utils import tree_flatten, tree_unflatten

import mlx_opt
from cases import assert_close, assert_same, flat, normal
from mlx_opt import Group


def tree(seed=0):
    return {"a": {"weight": normal(3, 4, seed=seed), "bias": normal(4, seed=seed)},
            "b": {"weight": normal(4, 2, seed=seed)}}  # fmt: skip


def falling(step):
    return 0.1 / (1 + step)


class TestState:
    def test_its_keys_are_stocks_without_schedules(self):
        ours = mlx_opt.AdamW(0.1, groups=[mlx_opt.no_decay(), Group("b.*", betas=[0.8, 0.9])])
        theirs = stock.AdamW(0.1)
        for optimizer in (ours, theirs):
            optimizer.init(tree())
        assert list(flat(ours.state)) == list(flat(theirs.state))

    def test_schedules_and_arrays_are_under_the_groups_name(self):
        optimizer = mlx_opt.AdamW(
            0.1,
            groups=[
                Group("a.*", name="one", weight_decay=falling, betas=[falling, 0.9]),
                Group("b.*", name="two", eps=mx.array(1e-3), learning_rate=falling),
            ],
        )
        entries = optimizer.state["mlx_opt"]["groups"]
        assert set(entries["one"]) == {"weight_decay", "betas[0]"}
        assert set(entries["two"]) == {"eps", "learning_rate"}
        optimizer.apply_gradients(tree(1), tree())
        optimizer.apply_gradients(tree(1), tree())
        assert entries["one"]["weight_decay"].item() == pytest.approx(0.05)
        assert entries["two"]["learning_rate"].item() == pytest.approx(0.05)

    @pytest.mark.parametrize("name", ["weight_decay", "eps", "betas"])
    def test_a_schedule_counts_as_its_values(self, name):
        def value(step):
            number = 0.5 / (1 + step)
            return [number, number] if name == "betas" else number

        scheduled = mlx_opt.AdamW(0.1, groups=[Group("a.*", name="g", **{name: value})])
        w, expected = tree(), tree()
        constant = mlx_opt.AdamW(0.1)
        for step in range(3):
            with_value = mlx_opt.AdamW(0.1, groups=[Group("a.*", **{name: value(step)})])
            with_value.state = constant.state
            w = scheduled.apply_gradients(tree(1 + step), w)
            expected = with_value.apply_gradients(tree(1 + step), expected)
            constant.state = with_value.state
        assert_close(w, expected, 1e-6)

    def test_compile_sees_them_change(self):
        def build():
            return mlx_opt.AdamW(
                0.1,
                groups=[Group("a.*", name="g", weight_decay=falling, eps=mx.array(1e-2))],
            )

        eager, traced = build(), build()
        w, expected = tree(), tree()
        traced.init(w)
        state, traces = [w, traced.state], []

        def run(g):
            traces.append(1)
            state[0].update(traced.apply_gradients(g, state[0]))

        step = mx.compile(run, inputs=state, outputs=state)
        for number in range(4):
            if number == 2:
                for optimizer in (eager, traced):
                    optimizer.state["mlx_opt"]["groups"]["g"]["eps"] = mx.array(0.5)
                    optimizer.learning_rate = 0.05
            step(tree(1 + number))
            expected = eager.apply_gradients(tree(1 + number), expected)
        assert_close(w, expected, 1e-6)
        assert len(traces) == 1

    def test_a_skipped_step_leaves_schedules_as_they_were(self):
        optimizer = mlx_opt.SGD(0.1, groups=[Group("a.*", name="g", weight_decay=falling)])
        optimizer.apply_gradients(tree(1), tree(), skip_nonfinite=True)
        entries = optimizer.state["mlx_opt"]["groups"]["g"]
        before = entries["weight_decay"].item()
        optimizer.step  # noqa: B018
        bad = tree(2)
        bad["b"]["weight"] = bad["b"]["weight"] * float("inf")
        optimizer.apply_gradients(bad, tree(), skip_nonfinite=True)
        assert entries["weight_decay"].item() == before
        assert optimizer.step.item() == 1

    def test_an_error_takes_the_entries_back(self):
        def fails(step):
            if step.item() == 1:
                raise RuntimeError("schedule")
            return mx.array(0.5)

        optimizer = mlx_opt.SGD(
            0.1,
            groups=[
                Group("a.*", name="g", weight_decay=falling),
                Group("b.*", name="h", weight_decay=fails),
            ],
        )
        optimizer.apply_gradients(tree(1), tree())
        before = copy.deepcopy(optimizer.state)
        with pytest.raises(RuntimeError, match="schedule"):
            optimizer.apply_gradients(tree(2), tree())
        assert_same(optimizer.state, before)

    def test_a_loaded_state_goes_on(self, tmp_path):
        def build(**groups):
            return mlx_opt.AdamW(
                0.1, groups=[Group(each, name=name, eps=falling) for name, each in groups.items()]
            )

        optimizer = build(one="a.*")
        w = optimizer.apply_gradients(tree(1), tree())
        path = str(tmp_path / "state.safetensors")
        mx.save_safetensors(path, dict(tree_flatten(optimizer.state)))
        expected = optimizer.apply_gradients(tree(2), w)
        again, other = build(one="a.*"), build(two="a.*")
        again.state = tree_unflatten(list(mx.load(path).items()))
        assert_same(again.apply_gradients(tree(2), w), expected)
        other.state = tree_unflatten(list(mx.load(path).items()))
        with pytest.warns(UserWarning, match="no groups one; dropped"):
            assert_same(other.apply_gradients(tree(2), w), expected)
        assert set(other.state["mlx_opt"]["groups"]) == {"two"}
        plain = mlx_opt.AdamW(0.1)
        plain.state = tree_unflatten(list(mx.load(path).items()))
        with pytest.warns(UserWarning, match="no groups one; dropped"):
            plain.apply_gradients(tree(2), w)

    def test_slots_that_a_loaded_state_lacks_are_begun_and_named(self):
        old = mlx_opt.Adafactor(0.1, relative_step=False)
        w = old.apply_gradients(tree(1), tree())
        new = mlx_opt.Adafactor(0.1, relative_step=False, groups=[Group("a.*", beta_1=0.9)])
        new.state = tree_unflatten(tree_flatten(old.state))
        with pytest.warns(UserWarning, match=r"no a\.weight\.exp_avg, a\.bias\.exp_avg; begun"):
            new.apply_gradients(tree(2), w)
        assert new.step.item() == 2

    def test_a_parameter_that_comes_later_is_assigned(self):
        seen = []

        def is_new(path, _):
            seen.append(path)
            return path.startswith("c")

        optimizer = mlx_opt.SGD(1.0, groups=[Group(is_new, may_match_nothing=True, frozen=True)])
        optimizer.apply_gradients({}, {})
        optimizer.init({"a": tree()["a"]})
        optimizer.apply_gradients({"a": tree()["a"]}, tree())
        assert sorted(seen) == ["a.bias", "a.weight", "b.weight"]
        optimizer.init(tree())
        w = {**tree(), "c": mx.ones(2)}
        assert optimizer.apply_gradients({"c": mx.ones(2)}, w)["c"] is w["c"]
        assert sorted(seen) == ["a.bias", "a.weight", "b.weight", "c"]

    def test_a_parameter_may_become_a_container_and_back(self):
        group = Group("a", "a.*", learning_rate_scale=0.5, may_match_nothing=True)
        optimizer = mlx_opt.SGD(1.0, groups=[group])
        for w in ({"a": mx.ones(1)}, {"a": {"b": mx.ones(1)}}, {"a": mx.ones(1)}):
            optimizer.state = {"step": mx.array(0), "learning_rate": mx.array(1.0)}
            if isinstance(w["a"], dict):
                updated = optimizer.apply_gradients(w, w)["a"]["b"]
            else:
                updated = optimizer.apply_gradients(w, w)["a"]
            assert updated.item() == 0.5


class TestBase:
    """Schedules and arrays of the optimizer itself."""

    def test_any_hyperparameter_may_be_on_a_schedule(self):
        scheduled = mlx_opt.AdamW(0.1, betas=[falling, 0.9], weight_decay=falling)
        w, expected, state = tree(), tree(), None
        for step in range(3):
            w = scheduled.apply_gradients(tree(1 + step), w)
            constant = mlx_opt.AdamW(0.1, betas=[falling(step), 0.9], weight_decay=falling(step))
            constant.state = state or constant.state
            expected = constant.apply_gradients(tree(1 + step), expected)
            state = constant.state
        assert_close(w, expected, 1e-6)
        assert scheduled.weight_decay.item() == pytest.approx(0.1 / 3)
        assert scheduled.betas[0].item() == pytest.approx(0.1 / 3)
        assert scheduled.betas[1] == 0.9

    def test_momentum_may_be(self):
        optimizer = mlx_opt.SGD(0.1, momentum=lambda step: 0.5 + 0.1 * step)
        other = mlx_opt.SGD(0.1, momentum=0.5)
        assert_same(
            optimizer.apply_gradients(tree(1), tree()), other.apply_gradients(tree(1), tree())
        )
        other.momentum = mx.array(0.6)
        assert_same(
            optimizer.apply_gradients(tree(2), tree()), other.apply_gradients(tree(2), tree())
        )

    def test_an_array_is_in_the_state_and_stays_there(self):
        optimizer = mlx_opt.Lion(0.1, weight_decay=mx.array(0.5))
        values = optimizer.state["mlx_opt"]["values"]
        assert values["weight_decay"].item() == 0.5
        optimizer.weight_decay = mx.array(0.25)
        assert optimizer.weight_decay.item() == values["weight_decay"].item() == 0.25
        optimizer.weight_decay = 0.125
        assert optimizer.weight_decay == 0.125
        assert not values


class TestErrors:
    @pytest.mark.parametrize(
        "match, message",
        [
            (["a.wieght"], '"a.wieght" matches no parameter; the nearest paths are "a.weight"'),
            (["a.*", "c.*"], '"c.*" matches no parameter'),
            ([lambda path, x: False], "<lambda> matches no parameter"),
        ],
    )
    def test_what_matches_nothing_is_named(self, match, message):
        optimizer = mlx_opt.SGD(0.1, groups=[Group(*match, weight_decay=0.1)])
        for _ in range(2):
            with pytest.raises(ValueError) as error:
                optimizer.apply_gradients(tree(1), tree())
            assert message in str(error.value)
        assert optimizer.step.item() == 0
        may = Group(*match, weight_decay=0.1, may_match_nothing=True)
        mlx_opt.SGD(0.1, groups=[may]).apply_gradients(tree(1), tree())

    def test_frozen_parameters_of_the_model_count_as_matched(self):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        model.layers[0].freeze()
        optimizer = mlx_opt.SGD(0.1, groups=[Group("layers.0.*", weight_decay=0.1)])
        optimizer.update(model, model.trainable_parameters())
        assert optimizer.step.item() == 1

    @pytest.mark.parametrize(
        "build, error, message",
        [
            (lambda: Group(weight_decay=0.1), ValueError, "a pattern or a function to match"),
            (lambda: Group(3), TypeError, "a pattern or a function to match, got int"),
            (lambda: Group("a", name="x.y"), ValueError, 'a letter and then no dots, .* "x.y"'),
            (lambda: Group("a", name="0"), ValueError, 'a letter and then no dots, .* "0"'),
            (lambda: mlx_opt.SGD(0.1, groups=Group("a")), TypeError, "a list of groups, got Group"),
            (lambda: mlx_opt.SGD(0.1, groups={"match": "a"}), TypeError, "of groups, got dict"),
            (lambda: mlx_opt.SGD(0.1, groups=3), TypeError, "a list of groups, got int"),
            (lambda: Group("a", name=3), TypeError, "name: expected a str, got int"),
            (lambda: mlx_opt.SGD(0.1, groups=["*"]), TypeError, "a Group or a dict, got str"),
            (
                lambda: mlx_opt.SGD(0.1, groups=[{"match": "*", "wd": 1}]),
                TypeError,
                "SGD: groups: there is no wd; a group can have learning_rate, momentum",
            ),
            (
                lambda: mlx_opt.Adamax(0.1, groups=[Group("*", weight_decay=1.0)]),
                TypeError,
                "Adamax: groups: there is no weight_decay",
            ),
            (
                lambda: mlx_opt.AdamW(0.1, groups=[Group("*", betas=[0.9])]),
                ValueError,
                "betas: expected 2 numbers",
            ),
            (
                lambda: mlx_opt.AdamW(0.1, groups=[Group("*", betas=[0.9, 1.5])]),
                ValueError,
                r"betas\[1\]: expected",
            ),
            (
                lambda: mlx_opt.AdamW(0.1, groups=[Group("*", weight_decay=falling)]),
                ValueError,
                "an array for weight_decay needs a name",
            ),
            (
                lambda: mlx_opt.SGD(0.1, groups=[Group("*", name="g", nesterov=falling)]),
                TypeError,
                "nesterov",
            ),
            (
                lambda: mlx_opt.SGD(0.1, groups=[Group("*", learning_rate_scale=-1.0)]),
                ValueError,
                "learning_rate_scale: expected a number of 0 or more",
            ),
            (
                lambda: mlx_opt.SGD(0.1, groups=[Group("*", learning_rate="fast")]),
                TypeError,
                "learning_rate: expected a number, a schedule or an array, got str",
            ),
            (
                lambda: mlx_opt.SGD(0.1, groups=[Group("a", name="g"), Group("b", name="g")]),
                ValueError,
                "two groups have the same name",
            ),
            (
                lambda: mlx_opt.NAdam(0.1, groups=[Group("a", betas=[0.5, 0.9])]),
                ValueError,
                "NAdam: groups: a group with betas needs a name",
            ),
            (
                lambda: mlx_opt.Muon(0.1, groups=[Group("a", adjust_lr="none")]),
                ValueError,
                "adjust_lr: expected one of",
            ),
            (
                lambda: mlx_opt.MultiOptimizer([mlx_opt.SGD(0.1)], groups=[Group("a")]),
                TypeError,
                "MultiOptimizer: groups belong to its optimizers",
            ),
            (lambda: mlx_opt.layer_decay({"a": mx.ones(1)}, 0.5), ValueError, "no list of layers"),
            (lambda: mlx_opt.layer_decay([{"a": mx.ones(1)}], 0.0), ValueError, "above 0, got 0"),
            (
                lambda: mlx_opt.layer_decay([{"a": mx.ones(1)}], 0.5, layers="h"),
                ValueError,
                'no list of layers "h"',
            ),
        ],
    )
    def test_a_wrong_argument_is_refused_by_name(self, build, error, message):
        with pytest.raises(error, match=message):
            build()

    def test_a_hook_is_refused(self):
        class Mine(mlx_opt.SGD):
            def apply_single(self, gradient, parameter, state):
                return parameter

        optimizer, w = Mine(0.1, groups=[Group("*", weight_decay=0.1)]), tree()
        with pytest.raises(TypeError, match="Mine: groups: apply_single is overridden"):
            optimizer.apply_gradients(tree(1), w)
        assert optimizer.step.item() == 0

    def test_a_tree_that_changes_during_the_step_is_refused(self):
        g, w = tree(1), tree()

        def rate(step):
            g["late"] = w["late"] = mx.ones(1)
            return mx.array(0.1)

        optimizer = mlx_opt.SGD(0.1, groups=[Group("a.*", weight_decay=0.1)])
        optimizer.init(w)
        optimizer.state["late"] = {"v": mx.zeros(1)}
        optimizer._schedulers["learning_rate"] = rate
        with pytest.raises(ValueError, match="late: the tree of gradients changed"):
            optimizer.apply_gradients(g, w)
        assert optimizer.step.item() == 0


def test_description_is_printed(capsys):
    pytest.importorskip("rich")
    optimizer = mlx_opt.AdamW(0.1, groups=[mlx_opt.no_decay(), mlx_opt.freeze("b.*")])
    rows = optimizer.describe(tree())
    printed = capsys.readouterr().out
    assert "3 tensors, 24 elements" in printed
    assert "weight_decay=0" in printed and "frozen: b.*" in printed
    assert [row.frozen for row in rows] == [False, False, True]
    assert rows[1].values["weight_decay"] == 0.0 and rows[0].values["weight_decay"] == 0.01


def test_groups_are_shown():
    groups = (mlx_opt.no_decay(), Group("a.*", name="g", eps=0.1))
    optimizer = mlx_opt.AdamW(0.1, groups=groups)
    assert optimizer.groups == groups
    assert repr(groups[1]) == "Group('a.*', name='g', eps=0.1)"
    assert mlx_opt.SGD(0.1).groups == ()
