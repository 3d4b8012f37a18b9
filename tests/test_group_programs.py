"""Programs around groups and hyperparameters: subclasses, composites, errors in the middle."""

import copy
import pickle

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as stock
import numpy as np
import pytest

import mlx_opt
from cases import assert_same, flat, normal, same_bits
from mlx_opt import Group, _ext


def tree(seed=0):
    return {"a": {"weight": normal(3, 4, seed=seed), "bias": normal(4, seed=seed)},
            "b": {"weight": normal(4, 2, seed=seed)}}  # fmt: skip


def values_of(optimizer, w, name):
    return {row.path: row.values.get(name) for row in optimizer.describe(w, show=False)}


class TestSubclasses:
    def test_a_hyperparameter_may_be_set_before_the_constructor_runs(self):
        class Mine(mlx_opt.AdamW):
            def __init__(self, learning_rate):
                self.weight_decay = 0.1
                super().__init__(learning_rate, weight_decay=self.weight_decay)

        assert Mine(0.1).weight_decay == 0.1

    def test_a_property_may_need_what_its_constructor_sets_later(self):
        class Mine(mlx_opt.AdamW):
            def __init__(self, learning_rate, decay, **options):
                super().__init__(learning_rate, **options)
                self.decay = decay

            @property
            def weight_decay(self):
                return self.decay

            @weight_decay.setter
            def weight_decay(self, value):
                pass

        optimizer = Mine(0.1, 0.5, groups=[Group("a.*", weight_decay=0.25)])
        found = values_of(optimizer, tree(), "weight_decay")
        assert found == {"a.weight": 0.25, "a.bias": 0.25, "b.weight": 0.5}
        # The formula takes the group's value too.
        wide = {path: {k: x.astype(mx.complex64) for k, x in leaves.items()}
                for path, leaves in tree().items()}  # fmt: skip
        got = optimizer.apply_gradients(wide, wide)
        theirs = stock.AdamW(0.1, weight_decay=0.25).apply_gradients({"a": wide["a"]}, wide)
        assert np.allclose(np.array(got["a"]["bias"]), np.array(theirs["a"]["bias"]))

    def test_a_subclass_may_have_groups_of_another_kind(self):
        class Mine(mlx_opt.SGD):
            def __init__(self):
                super().__init__(0.1)
                self.groups = "mine"

        assert Mine().groups == "mine"

    @pytest.mark.parametrize("value", [0.1, mx.array(0.1), lambda step: 0.1])
    def test_a_hyperparameter_may_be_deleted_once(self, value):
        optimizer = mlx_opt.AdamW(0.1, eps=value)
        del optimizer.eps
        assert not hasattr(optimizer, "eps")
        with pytest.raises(AttributeError):
            del optimizer.eps


class TestNames:
    def test_a_parameter_may_have_the_name_of_an_array(self):
        optimizer, w = mlx_opt.RMSprop(0.1, alpha=mx.array(0.9)), {"alpha": mx.ones(2)}
        expected = stock.RMSprop(0.1, alpha=0.9).apply_gradients(w, w)
        assert mx.allclose(optimizer.apply_gradients(w, w)["alpha"], expected["alpha"], 1e-6)

    def test_it_cannot_have_that_of_a_schedule(self):
        optimizer, w = mlx_opt.RMSprop(0.1, alpha=lambda step: 0.9), {"alpha": mx.ones(2)}
        with pytest.raises(ValueError, match="alpha: a parameter of this name cannot be trained"):
            optimizer.apply_gradients(w, w)


class TestFrozen:
    def test_the_first_group_decides(self):
        groups = [Group("a.bias", frozen=False), mlx_opt.freeze("*")]
        rows = mlx_opt.SGD(0.1, groups=groups).describe(tree(), show=False)
        assert [row.path for row in rows if not row.frozen] == ["a.bias"]

    def test_muon_freezes_what_its_fallback_would_update(self):
        groups = [mlx_opt.freeze("a.*")]
        optimizer = mlx_opt.Muon(0.1, fallback=mlx_opt.AdamW(0.1), groups=groups)
        updated = optimizer.apply_gradients(tree(1), tree())
        assert all(same_bits(updated["a"][name], x) for name, x in tree()["a"].items())


class TestDescriptions:
    def test_muons_fallback_is_described(self):
        fallback = mlx_opt.AdamW(0.2, groups=[Group("*.bias", eps=0.5)])
        rows = mlx_opt.Muon(0.1, fallback=fallback).describe(tree(), show=False)
        by_path = {row.path: row for row in rows}
        assert by_path["a.weight"].rule == "Muon"
        assert by_path["a.bias"].rule == "AdamW"
        assert by_path["a.bias"].values["eps"] == 0.5

    def test_so_are_the_members_of_a_multi_optimizer(self):
        optimizer = mlx_opt.MultiOptimizer(
            [mlx_opt.Lion(0.1), stock.SGD(0.1), mlx_opt.SGD(0.1)],
            [lambda path, x: path == "a.bias", lambda path, x: path == "a.weight"],
        )
        rows = optimizer.describe(tree(), show=False)
        assert {row.path: row.rule for row in rows} == {"a.bias": "Lion", "b.weight": "SGD"}

    def test_arrays_are_shown_as_numbers(self):
        optimizer = mlx_opt.AdamW(0.1, eps=mx.array(0.5), betas=[0.5, lambda step: 0.25])
        (row,) = optimizer.describe({"w": mx.ones(2)}, show=False)
        assert row.values["eps"] == 0.5
        assert row.values["betas"] == (0.5, 0.25)

    @pytest.mark.parametrize("model", [{"a": 1}, None, {"a": {"b": "x"}}])
    def test_what_is_no_tree_of_arrays_is_refused(self, model):
        with pytest.raises(TypeError, match="expected an array, got"):
            mlx_opt.SGD(0.1).describe(model, show=False)


class TestModels:
    def test_frozen_modules_may_be_left_out_of_init(self):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        model.layers[0].freeze()
        optimizer = mlx_opt.AdamW(0.1, groups=mlx_opt.layer_decay(model, 0.5))
        optimizer.init(model.trainable_parameters())
        optimizer.update(model, model.trainable_parameters())
        assert optimizer.step.item() == 1

    def test_layers_without_parameters_do_not_count(self):
        model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU())
        scales = [group.learning_rate_scale for group in mlx_opt.layer_decay(model, 0.5)]
        assert scales == [0.25, 0.5]

    def test_layers_may_be_arrays(self):
        w = {"ws": [mx.ones(1), mx.ones(1)]}
        optimizer = mlx_opt.SGD(1.0, groups=mlx_opt.layer_decay(w, 0.5, layers="ws"))
        assert values_of(optimizer, w, "learning_rate") == {"ws.0": 0.25, "ws.1": 0.5}

    def test_what_is_no_norm_decays(self):
        matrix = mx.ones((2, 2))
        assert mlx_opt.groups.is_bias_or_norm("layers.0.input_layernorm.weight", matrix)
        assert mlx_opt.groups.is_bias_or_norm("norm_1.weight", matrix)
        assert not mlx_opt.groups.is_bias_or_norm("prenorm_block.enormous.weight", matrix)


class TestErrors:
    def test_a_step_that_fails_assigns_nothing(self):
        def is_matrix(path, x):
            return x.ndim > 1

        optimizer = mlx_opt.SGD(0.5, groups=[Group(is_matrix, frozen=True, may_match_nothing=True)])
        with pytest.raises(ValueError, match="gradient"):
            optimizer.apply_gradients({"w": mx.ones(2), "v": mx.ones(1)},
                                      {"w": mx.ones((2, 2)), "v": mx.ones(2)})  # fmt: skip
        w = {"w": mx.ones(2)}
        assert optimizer.apply_gradients(w, w)["w"].tolist() == [0.5, 0.5]

    def test_a_function_that_replaces_the_state_and_raises_is_taken_back(self):
        def raises(path, x):
            optimizer.state = {"other": 1}
            raise RuntimeError("match")

        optimizer = mlx_opt.SGD(0.5, groups=[Group(raises, weight_decay=0.1)])
        before = optimizer.state
        with pytest.raises(RuntimeError, match="match"):
            optimizer.apply_gradients(tree(1), tree())
        assert optimizer.state is before

    @pytest.mark.filterwarnings("error")
    def test_a_warning_that_is_an_error_leaves_the_state(self):
        old = mlx_opt.SGD(0.5, groups=[Group("a.*", name="g", weight_decay=lambda step: 0.1)])
        new = mlx_opt.SGD(0.5)
        new.state = copy.deepcopy(old.state)
        with pytest.raises(UserWarning, match="no groups g"):
            new.init(tree())
        assert "g" in new.state["mlx_opt"]["groups"]

    def test_a_learning_rate_that_is_not_read_is_refused(self):
        optimizer = mlx_opt.Adafactor(groups=[Group("a.*", learning_rate=0.5)])
        with pytest.raises(ValueError, match="groups: learning_rate: the step does not read"):
            optimizer.apply_gradients(tree(1), tree())

    def test_a_gradient_that_is_no_array_is_named(self):
        optimizer, w = mlx_opt.SGD(0.5, groups=[Group("a.*", weight_decay=0.1)]), tree()
        g = tree(1)
        g["a"]["bias"] = 3.0
        with pytest.raises(
            TypeError, match="a.bias: gradient must be an mlx.core.array, got float"
        ):
            optimizer.apply_gradients(g, w)

    def test_schedules_may_give_numbers(self):
        group = Group("a.*", name="g", weight_decay=lambda step: 0.5, learning_rate=lambda step: 1)
        optimizer = mlx_opt.SGD(0.5, groups=[group])
        optimizer.apply_gradients(tree(1), tree())
        assert all(isinstance(x, mx.array) for x in flat(optimizer.state).values())

    @pytest.mark.parametrize("number", [np.float32(0.5), np.int64(2), 2])
    def test_numbers_of_all_kinds_scale_the_learning_rate(self, number):
        groups = [Group("a.*", learning_rate_scale=number), Group("b.*", learning_rate=number)]
        found = values_of(mlx_opt.SGD(1.0, groups=groups), tree(), "learning_rate")
        assert found["a.bias"] == found["b.weight"] == float(number)

    def test_options_of_muon_are_checked_by_their_use(self):
        with pytest.raises(TypeError, match="ns_steps: expected an int, got function"):
            mlx_opt.Muon(0.1, groups=[Group("a.*", ns_steps=lambda step: 3)])


class TestExtension:
    """The private module does not end the process."""

    def part(self):
        w = {"w": mx.ones(2)}
        group = [0.0, "coupled", 0.0, False], mx.array(0.1), 1.0, None
        return _ext.Part(_ext.program("SGD"), [group], 1, w, w, {"w": {"v": mx.ones(2)}})

    def test_a_part_has_no_tree_before_it_is_staged(self):
        part = self.part()
        with pytest.raises(RuntimeError, match="before it is staged"):
            part.tree()
        _ext.stage([part])
        assert_same(part.tree()["w"], mx.array([0.9, 0.9]))

    @pytest.mark.parametrize("call", [
        lambda: _ext.update([None], [], []),
        lambda: _ext.stage([None]),
        lambda: _ext.commit([None], []),
        lambda: _ext.evaluate_chains([None], []),
    ])  # fmt: skip
    def test_a_part_that_is_none_is_refused(self, call):
        with pytest.raises(TypeError, match="parts: expected Part, got NoneType"):
            call()

    def test_a_tree_may_clear_its_assignment(self):
        class Clearing(list):
            def __iter__(self):
                assignment.clear()
                return super().__iter__()

        assignment = {"k": {0: 1, 1: 2}}
        assert _ext.is_assigned(assignment, {"k": Clearing([mx.ones(1), mx.ones(1)])})

    @pytest.mark.parametrize("positions", [[5], [-3], [1]])
    def test_positions_of_no_group_are_refused(self, positions):
        w = {"w": mx.ones(2)}
        group = [0.0, "coupled", 0.0, False], mx.array(0.1), 1.0, None
        with pytest.raises(ValueError, match="there is no such group"):
            _ext.Part(
                _ext.program("SGD"), [group], 1, w, w, {}, assignment={"w": 0}, positions=positions
            )


class TestGroupObjects:
    def test_a_group_cannot_be_changed(self):
        group = Group("a", name="g", weight_decay=0.1)
        with pytest.raises(AttributeError, match="name: a group cannot be changed; make another"):
            group.name = "h"
        with pytest.raises(AttributeError, match="frozen: a group cannot be changed"):
            del group.frozen
        with pytest.raises(AttributeError, match="weight_decay: a group cannot be changed"):
            group.weight_decay = 0.2
        with pytest.raises(TypeError):
            group.hyperparameters["weight_decay"] = 0.2
        assert group.hyperparameters == {"weight_decay": 0.1}

    def test_copies_are_equal(self):
        group = Group("a", name="g", weight_decay=0.1, learning_rate_scale=0.5)
        for again in (copy.copy(group), copy.deepcopy(group), pickle.loads(pickle.dumps(group))):
            assert repr(again) == repr(group)


class TestNesterov:
    def test_a_group_needs_a_momentum_for_it_too(self):
        w = tree()
        for group in (Group("a.bias", momentum=0.0), Group("a.bias", dampening=0.5)):
            optimizer = mlx_opt.SGD(0.1, momentum=0.9, nesterov=True, groups=[group])
            with pytest.raises(ValueError, match="nesterov needs a momentum above 0"):
                optimizer.apply_gradients(tree(1), w)
            with pytest.raises(ValueError, match="nesterov needs a momentum above 0"):
                optimizer.describe(w, show=False)

    def test_values_of_two_groups_may_meet(self):
        groups = [Group("a.*", nesterov=True), Group("*", momentum=0.9)]
        mlx_opt.SGD(0.1, groups=groups).apply_gradients(tree(1), tree())


class TestMuonsFallback:
    def test_it_has_the_groups_of_muon(self):
        groups = [
            Group("*.bias", eps=0.25),
            Group("a.*", learning_rate_scale=0.5, momentum=0.5, learning_rate=0.3),
            Group("*", eps=0.5, may_match_nothing=True),
        ]
        fallback = mlx_opt.AdamW(0.2, groups=groups[:1])
        muon = mlx_opt.Muon(0.1, fallback=fallback, groups=[mlx_opt.no_decay(), groups[1]])
        values = {row.path: row.values for row in muon.describe(tree(), show=False)}
        bias = values["a.bias"]
        assert (bias["eps"], bias["weight_decay"]) == (0.25, 0.0)
        assert bias["learning_rate"] == pytest.approx(0.1)  # of its own, scaled
        assert values["a.weight"]["learning_rate"] == pytest.approx(0.15)
        assert values["a.weight"]["momentum"] == 0.5
        muon.apply_gradients(tree(1), tree())

    def test_one_that_cannot_have_them_is_refused_by_name(self):
        fallback = mlx_opt.MultiOptimizer([mlx_opt.SGD(0.1)])
        muon = mlx_opt.Muon(0.1, fallback=fallback, groups=[Group("a.*", momentum=0.5)])
        with pytest.raises(ValueError, match=r"a.bias: MultiOptimizer updates it, which cannot"):
            muon.apply_gradients(tree(1), tree())


def test_a_groups_rate_replaces_a_property_where_there_is_no_kernel():
    class Mine(mlx_opt.SGD):
        @property
        def learning_rate(self):
            return mx.array(0.5)

        @learning_rate.setter
        def learning_rate(self, value):
            pass

    optimizer = Mine(0.1, groups=[Group("b", learning_rate=0.25, weight_decay=1.0)])
    for dtype in (mx.float32, mx.complex64):
        w = {"a": mx.ones(2, dtype), "b": mx.ones(2, dtype)}
        updated = optimizer.apply_gradients(w, w)
        assert mx.allclose(mx.real(updated["a"]), mx.array(0.5))
        assert mx.allclose(mx.real(updated["b"]), mx.array(0.5))  # 1 - 0.25 * 2
