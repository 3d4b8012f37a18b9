"""Numbers where arrays are usual: taken as mlx.optimizers takes them, or refused by name."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as stock
import numpy as np
import pytest

import mlx_opt

from .photo import differences, photo

NUMBERS = {
    "int": 1000,
    "float": 1000.0,
    "int64": np.int64(1000),
    "float32": np.float32(1000),
    "numpy-array": np.array(1000),
    "int32-array": mx.array(1000, mx.int32),
    "float-array": mx.array(1000.0),
}
RATES = {
    "int": 2,
    "float": 0.01,
    "float32": np.float32(0.01),
    "numpy-array": np.array(0.01, np.float32),
    "one-element": mx.array([0.01]),
    "integer-array": mx.array(2),
}
RULES = {
    "SGD": {"momentum": 0.9},
    # 1 - 0.999**step is not exact in the float32 of mlx.optimizers.
    "AdamW": {"betas": [0.8, 0.95], "bias_correction": True},
    "Adafactor": {},
    "Muon": {},
}
each_rule = pytest.mark.parametrize("rule", RULES)
each_form = pytest.mark.parametrize(
    "form", ["update", "lazy", "apply_gradients", "max_norm", "skip"]
)
OPTIONS = {"max_norm": {"max_norm": 1e6}, "skip": {"skip_nonfinite": True}}


def model_of():
    model = nn.Module()
    model.w, model.b = mx.full((3, 4), 2.0), mx.full((3,), 3.0)
    return model


def step(optimizer, model, form):
    gradients = {"w": mx.full((3, 4), 0.5), "b": mx.array([0.5, 1.0, 2.0])}
    mx.eval(gradients, model.parameters())
    if form == "lazy":
        gradients = {key: 1 * x for key, x in gradients.items()}
    if form == "apply_gradients":
        model.update(optimizer.apply_gradients(gradients, model))
    elif isinstance(optimizer, mlx_opt.Optimizer):
        optimizer.update(model, gradients, **OPTIONS.get(form, {}))
    else:
        optimizer.update(model, gradients)
    mx.eval(model.parameters(), [x for x in optimizer.state.values() if isinstance(x, mx.array)])


def outcome(package, rule, form, change, value):
    """The error of a step after a change, the model and the optimizer, and both as they were."""
    model, optimizer = model_of(), getattr(package, rule)(learning_rate=0.1, **RULES[rule])
    step(optimizer, model, form)
    change(optimizer, value)
    before = photo([model, optimizer.state])
    try:
        step(optimizer, model, form)
    except Exception as error:
        return error, model, optimizer, before
    return None, model, optimizer, before


def compare(rule, form, name, change, value):
    """After the change a step is that of mlx.optimizers, with the value or with an array of it; or
    an error names what was changed."""
    error, ours, optimizer, before = outcome(mlx_opt, rule, form, change, value)
    if error is not None:
        assert isinstance(error, (TypeError, ValueError, AttributeError)), error
        assert name in str(error) and "incompatible function arguments" not in str(error), error
        assert not differences(photo([ours, optimizer.state]), before, 0)
        return
    expected, theirs, *_ = outcome(stock, rule, form, change, value)
    if expected is not None:
        expected, theirs, *_ = outcome(stock, rule, form, change, mx.array(value))
    assert expected is None, f"mlx.optimizers raises {expected!r}"
    assert not differences(photo(ours), photo(theirs), 1e-3 if rule == "Muon" else 2e-5)


def set_step(optimizer, value):
    optimizer.state["step"] = value


def set_rate(optimizer, value):
    optimizer.state["learning_rate"] = value


def set_schedule(optimizer, value):
    optimizer._schedulers["learning_rate"] = lambda step: value


@pytest.mark.parametrize("number", NUMBERS.values(), ids=NUMBERS)
@each_form
@each_rule
def test_a_step_counter_that_a_resumed_run_sets(rule, form, number):
    compare(rule, form, "step", set_step, number)


@pytest.mark.parametrize("number", RATES.values(), ids=RATES)
@each_form
@pytest.mark.parametrize("rule", ["SGD", "AdamW", "Muon"])
def test_a_learning_rate_that_is_put_into_the_state(rule, form, number):
    compare(rule, form, "learning_rate", set_rate, number)


@pytest.mark.parametrize("number", RATES.values(), ids=RATES)
@each_form
@pytest.mark.parametrize("rule", ["SGD", "AdamW", "Muon"])
def test_a_schedule_that_gives_a_number(rule, form, number):
    compare(rule, form, "learning_rate", set_schedule, number)


@pytest.mark.parametrize("value", ["text", None, [0.1]], ids=["text", "none", "list"])
@each_form
@pytest.mark.parametrize("rule", ["SGD", "AdamW", "Muon"])
def test_a_schedule_that_gives_no_number_is_named(rule, form, value):
    error, model, optimizer, before = outcome(mlx_opt, rule, form, set_schedule, value)
    assert isinstance(error, (TypeError, ValueError, AttributeError)), error
    assert "learning_rate" in str(error)
    assert "incompatible function arguments" not in str(error), error
    assert not differences(photo([model, optimizer.state]), before, 0)


@pytest.mark.parametrize("call", ["update", "apply_gradients"])
@pytest.mark.parametrize("value", [1, 0, np.True_, np.False_, np.bool_(1)])
def test_skip_nonfinite_may_be_what_stands_for_a_bool(value, call):
    optimizer, model = mlx_opt.AdamW(0.1), model_of()
    gradients = {"w": mx.full((3, 4), mx.nan), "b": mx.ones(3)}
    arguments = (model, gradients) if call == "update" else (gradients, model)
    new = getattr(optimizer, call)(*arguments, skip_nonfinite=value)
    got = model.parameters() if call == "update" else new
    assert mx.all(mx.isfinite(got["w"])).item() == bool(value)
    assert optimizer.step.item() == (0 if value else 1)


@pytest.mark.parametrize("value", ["yes", 2, 1.0, None, [True], mx.array(True), np.array([True])])
@pytest.mark.parametrize("call", ["update", "apply_gradients"])
@pytest.mark.parametrize("kind", ["AdamW", "MultiOptimizer", "Muon", "Optimizer"])
def test_skip_nonfinite_that_is_no_bool_is_refused_by_name(kind, call, value):
    if kind == "MultiOptimizer":
        optimizer = mlx_opt.MultiOptimizer([mlx_opt.AdamW(0.1)])
    elif kind == "Muon":
        optimizer = mlx_opt.Muon(0.1, fallback=mlx_opt.AdamW(0.1))
    elif kind == "Optimizer":
        optimizer = hooked()
    else:
        optimizer = mlx_opt.AdamW(0.1)
    model = model_of()
    before = photo([model, optimizer.state])
    gradients = {"w": mx.ones((3, 4)), "b": mx.ones(3)}
    arguments = (model, gradients) if call == "update" else (gradients, model)
    with pytest.raises(TypeError, match="skip_nonfinite"):
        getattr(optimizer, call)(*arguments, skip_nonfinite=value)
    assert not differences(photo([model, optimizer.state]), before, 0)


def hooked():
    class Own(mlx_opt.Optimizer):
        def init_single(self, parameter, state):
            state["v"] = mx.zeros_like(parameter)

        def apply_single(self, gradient, parameter, state):
            return parameter - 0.1 * gradient

    return Own()
