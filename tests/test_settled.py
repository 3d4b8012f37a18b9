"""Whatever a program does around a step, its numbers are those of mlx.optimizers, held arrays keep
their values, and an error leaves the model and every state as they were."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as stock
import numpy as np
import pytest
from mlx.utils import tree_map

import mlx_opt
from cases import assert_close, assert_same

CALLS = pytest.mark.parametrize("call", ["update", "apply_gradients"])


def copied(tree):
    return tree_map(lambda x: mx.array(np.array(x)), tree)


def model_of(count=3, shape=(4,)):
    model = nn.Module()
    for i in range(count):
        model[f"p{i}"] = mx.full(shape, 1.0 + i)
    return model


def gradients_of(model):
    gradients = {name: 0.5 * x for name, x in model.parameters().items()}
    mx.eval(gradients, model.parameters())
    return gradients


def step(optimizer, model, gradients, call):
    if call == "update":
        optimizer.update(model, gradients)
    else:
        model.update(optimizer.apply_gradients(gradients, model))
    mx.eval(model.parameters(), optimizer.state)


def walk(package, make, call, steps=4):
    """The parameters after some steps; the gradients of each stay as they were."""
    model = model_of()
    optimizer = make(package, model)
    for _ in range(steps):
        gradients = gradients_of(model)
        before = copied(gradients)
        step(optimizer, model, gradients, call)
        assert_same(gradients, before)
    return model.parameters()


@CALLS
@pytest.mark.parametrize(("first", "then"), [(0.0, 0.9), (0.9, 0.0), (0.9, 0.5)])
def test_a_schedule_may_change_the_momentum(call, first, then):
    def make(package, _):
        def rate(count):
            if count.item() == 1:
                optimizer.momentum = then
            return mx.array(0.1)

        optimizer = package.SGD(0.1, momentum=first)
        optimizer._schedulers["learning_rate"] = rate
        return optimizer

    assert_close(walk(mlx_opt, make, call), walk(stock, make, call))


@CALLS
def test_a_property_may_depend_on_the_step(call):
    def make(package, _):
        class Warm(package.SGD):
            momentum = property(lambda self: 0.0 if self.step.item() < 2 else 0.9, lambda *_: None)

        return Warm(0.1)

    assert_close(walk(mlx_opt, make, call), walk(stock, make, call))


@CALLS
def test_a_schedule_may_swap_a_parameter(call):
    kept = []

    def make(package, model):
        def rate(count):
            if count.item() == 2:
                kept.append(model.p0)
                model.p0 = mx.full((4,), 7.0)
                mx.eval(model.p0)
            return mx.array(0.1)

        optimizer = package.SGD(0.1)
        optimizer._schedulers["learning_rate"] = rate
        return optimizer

    assert_close(walk(mlx_opt, make, call), walk(stock, make, call))
    ours, theirs = kept
    assert_close(ours, theirs)


def test_one_dict_of_state_at_two_places_is_updated_in_turn():
    def result(package):
        model, optimizer = model_of(4, (300, 300)), package.AdamW(0.1)
        gradients = gradients_of(model)
        step(optimizer, model, gradients, "update")
        for i in range(4):
            optimizer.state[f"p{i}"] = optimizer.state["p0"]
        for _ in range(3):
            step(optimizer, model, gradients, "update")
        return model.parameters()

    assert_close(result(mlx_opt), result(stock))


@pytest.mark.parametrize("lazy", [True, False])
def test_a_parameter_in_a_tuple_is_refused_before_anything_changes(lazy):
    model = nn.Module()
    model.p, model.t = mx.ones(2), [(mx.ones(2),)]
    optimizer = mlx_opt.SGD(0.1, momentum=0.9)
    gradients = {"p": mx.ones(2), "t": [[mx.ones(2)]]}
    optimizer.init(gradients)
    mx.eval(model.p, model.t, optimizer.state, gradients)
    if lazy:
        gradients = {"p": gradients["p"] * 1, "t": [[gradients["t"][0][0] * 1]]}
    with pytest.raises(TypeError, match="t.0.0: the parameter is in a tuple"):
        optimizer.update(model, gradients)
    assert optimizer.step.item() == 0 and model.p[0].item() == 1.0
    assert not optimizer.state["p"]["v"].any()


@pytest.mark.parametrize("options", [{"skip_nonfinite": "yes"}, {"max_norm": "1"}], ids=str)
def test_other_options_are_refused_by_name(options):
    w, optimizer = {"w": mx.ones(3)}, mlx_opt.SGD(0.1)
    with pytest.raises(TypeError, match=next(iter(options))):
        optimizer.apply_gradients(w, w, **options)
    assert optimizer.state.keys() == {"step", "learning_rate"}


@pytest.mark.parametrize("outputs", ["none", "model"])
def test_a_rule_that_does_not_read_the_step_does_not_depend_on_it(outputs):
    def result(package):
        model, optimizer = model_of(), package.SGD(0.1)
        optimizer.init(model.parameters())

        def step(gradients):
            optimizer.update(model, gradients)
            return model.parameters()

        captured = {} if outputs == "none" else {"outputs": [model.state]}
        compiled = mx.compile(step, inputs=optimizer.state, **captured)
        updated = {}
        for _ in range(3):
            updated = compiled({f"p{i}": mx.full((4,), 0.5) for i in range(3)})
            mx.eval(updated)
        return updated

    assert_close(result(mlx_opt), result(stock))


@CALLS
def test_a_hook_that_a_schedule_puts_in_is_called(call):
    def make(package, _):
        def rate(count):
            if count.item() == 1:
                original = optimizer.apply_single
                optimizer.apply_single = lambda g, w, state: original(0.5 * g, w, state)
            return mx.array(0.1)

        optimizer = package.SGD(0.1, momentum=0.9)
        optimizer._schedulers["learning_rate"] = rate
        return optimizer

    assert_close(walk(mlx_opt, make, call), walk(stock, make, call))


def test_a_state_that_is_replaced_while_its_step_is_read_counts_the_step():
    class State(dict):
        def __getitem__(self, key):
            if key == "step" and type(optimizer.state) is State:
                optimizer.state = dict(self)
            return super().__getitem__(key)

    optimizer, w = mlx_opt.SGD(0.1), {"w": mx.ones(3)}
    optimizer.init(w)
    optimizer.state = State(optimizer.state)
    optimizer.apply_gradients(w, w)
    assert optimizer.step.item() == 1


def test_an_error_gives_the_optimizer_its_own_state_back():
    def rate(count):
        optimizer.state = dict(optimizer.state)
        raise RuntimeError("schedule")

    optimizer, w = mlx_opt.SGD(0.1), {"w": mx.ones(3)}
    optimizer.init(w)
    before = optimizer.state
    optimizer._schedulers["learning_rate"] = rate
    with pytest.raises(RuntimeError, match="schedule"):
        optimizer.apply_gradients(w, w)
    assert optimizer.state is before


def test_the_norm_is_of_the_gradients_that_the_parts_take():
    """A schedule that changes the tree comes too late, where it has been split."""
    gradients = {"p": mx.array([3.0]), "q": mx.array([4.0])}

    def rate(count):
        gradients["q"] = mx.array([400.0])
        return mx.array(0.1)

    parts = [mlx_opt.SGD(0.1), mlx_opt.SGD(0.1)]
    optimizer = mlx_opt.MultiOptimizer(parts, [lambda path, _: path == "p"])
    parts[0]._schedulers["learning_rate"] = rate
    w = {"p": mx.zeros(1), "q": mx.zeros(1)}
    updated = optimizer.apply_gradients(gradients, w, max_norm=1.0)
    assert optimizer.grad_norm.item() == 5.0
    assert_close(dict(sorted(updated.items())), {"p": mx.array([-0.06]), "q": mx.array([-0.08])})


def test_what_a_program_puts_into_the_state_after_it_was_settled_stays():
    class Parameters(dict):
        def __getitem__(self, key):
            optimizer.state["step"] = mx.array(7, mx.uint64)
            return super().__getitem__(key)

    optimizer, w = mlx_opt.SGD(0.1), {"w": mx.ones(3)}
    optimizer.init(w)
    optimizer.apply_gradients(w, Parameters(w), skip_nonfinite=True)
    assert optimizer.step.item() == 7


@pytest.mark.parametrize("value", ["text", None, [1.0]])
def test_an_entry_of_the_state_that_cannot_be_skipped_is_named(value):
    optimizer, w = mlx_opt.SGD(0.1), {"w": mx.ones(3)}
    optimizer.init(w)
    optimizer._schedulers["note"] = lambda step: value
    optimizer.state["note"] = value
    with pytest.raises(TypeError, match='state "note": skip_nonfinite'):
        optimizer.apply_gradients(w, w, skip_nonfinite=True)
    assert optimizer.step.item() == 0
    optimizer.apply_gradients(w, w)
    assert optimizer.state["note"] is value


def test_half_a_step_is_refused():
    optimizer, w = mlx_opt.AdamW(0.1, bias_correction=True), {"w": mx.ones(3)}
    optimizer.init(w)
    optimizer.state["step"] = 0.5
    with pytest.raises(ValueError, match="step: expected a whole number"):
        optimizer.apply_gradients(w, w)
    assert optimizer.state["step"] == 0.5


def test_one_complex_parameter_in_another_part_leaves_a_clipped_step_right():
    """The norm, and so the scale, is complex then, which the kernels do not take."""

    def result(package):
        model = nn.Module()
        model.a, model.b = mx.ones(3), mx.ones(3) + 0j
        parts = [package.SGD(0.1, momentum=0.9), package.SGD(0.1)]
        optimizer = package.MultiOptimizer(parts, [lambda path, _: path == "a"])
        for _ in range(3):
            gradients = {"a": mx.ones(3), "b": mx.full((3,), 1 + 2j)}
            mx.eval(model, gradients, optimizer.state)
            if package is stock:
                optimizer.update(model, stock.clip_grad_norm(gradients, 1.0)[0])
            else:
                optimizer.update(model, gradients, max_norm=1.0)
        return model.parameters()

    assert_close(result(mlx_opt), result(stock))


@CALLS
@pytest.mark.parametrize("options", [{}, {"max_norm": 1.0}], ids=str)
def test_a_hyperparameter_is_read_once_a_step(call, options):
    class Counted(mlx_opt.SGD):
        @property
        def momentum(self):
            reads.append(self.step.item())
            return 0.9 if len(reads) % 2 else 0.0

        @momentum.setter
        def momentum(self, value):
            pass

    reads = []
    model, optimizer = model_of(), Counted(0.1)
    optimizer.init(model.parameters())
    reads.clear()
    gradients = gradients_of(model)
    arguments = (model, gradients) if call == "update" else (gradients, model)
    getattr(optimizer, call)(*arguments, **options)
    assert reads == [1]
