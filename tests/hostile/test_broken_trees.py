"""Trees that change while they are walked, are not what they seem, or lead to one thing twice."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as stock
import pytest

import mlx_opt

from .photo import differences, photo
from .processes import apart

RULES = ["SGD", "AdamW", "Adafactor", "Muon"]
each_rule = pytest.mark.parametrize("rule", RULES)


def optimizer_of(rule):
    options = {"relative_step": False} if rule == "Adafactor" else {}
    return getattr(mlx_opt, rule)(learning_rate=0.1, **options)


@each_rule
@apart
def test_parameters_that_empty_the_gradients_when_they_are_read(rule):
    gradients = {f"p{i}": mx.ones(4) for i in range(50)}

    class Parameters(dict):
        def __getitem__(self, key):
            gradients.clear()
            return mx.ones(4)

    optimizer = optimizer_of(rule)
    before = photo(optimizer.state)
    try:
        optimizer.apply_gradients(gradients, Parameters())
    except (RuntimeError, KeyError):
        assert not differences(photo(optimizer.state), before, 0)


@pytest.mark.parametrize("there", ["gradient", "parameter", "state"])
@each_rule
@apart
def test_an_array_that_was_never_made(rule, there):
    if there == "state" and rule == "SGD":
        return  # without momentum it reads no state
    nothing = mx.array.__new__(mx.array)
    gradients, model = {"w": mx.ones((3, 4))}, {"w": mx.ones((3, 4))}
    optimizer = optimizer_of(rule)
    optimizer.apply_gradients(gradients, model)
    before = photo(optimizer.state)
    if there == "state":
        leaf = optimizer.state["w"]
        leaf[next(iter(leaf))] = nothing
        before = photo(optimizer.state)
    elif there == "gradient":
        gradients["w"] = nothing
    else:
        model["w"] = nothing
    with pytest.raises((TypeError, KeyError)):
        mx.eval(optimizer.apply_gradients(gradients, model))
    assert not differences(photo(optimizer.state), before, 0)


def test_a_parameter_in_a_tuple_is_updated_by_apply_gradients():
    gradients, parameters = {"t": (mx.ones(2),)}, {"t": (mx.ones(2),)}
    expected = stock.SGD(0.1).apply_gradients(gradients, parameters)
    got = mlx_opt.SGD(0.1).apply_gradients(gradients, parameters)
    assert type(got["t"]) is tuple
    assert not differences(photo(got), photo(expected), 1e-6)


@apart
def test_one_dict_of_state_for_many_parameters_gives_one_result():
    mlx_opt.set_num_threads(2)
    seen = set()
    for _ in range(30):
        model = nn.Module()
        for i in range(8):
            model[f"p{i}"] = mx.sin(mx.arange(65536.0) + i)
        gradients = {key: 0.5 * x for key, x in model.parameters().items()}
        mx.eval(model.parameters(), gradients)
        optimizer = mlx_opt.AdamW(0.1)
        optimizer.update(model, gradients)
        mx.eval(model.parameters(), optimizer.state)
        for i in range(1, 8):
            optimizer.state[f"p{i}"] = optimizer.state["p0"]
        for _ in range(3):
            optimizer.update(model, gradients)
            mx.eval(model.parameters(), optimizer.state)
        seen.add(tuple(mx.sum(x).item() for x in model.parameters().values()))
    assert len(seen) == 1, seen


@pytest.mark.parametrize("lazy", [False, True])
@apart
def test_one_array_in_the_state_of_two_parameters(lazy):
    def program(package):
        model = nn.Module()
        model.a, model.b = mx.array([1.0, 2.0]), mx.array([3.0, 4.0])
        optimizer = package.SGD(0.1, momentum=0.9)
        for step in range(3):
            gradients = {"a": mx.array([0.5, 1.0]), "b": mx.array([2.0, 0.25])}
            if lazy:
                gradients = {key: 1 * x for key, x in gradients.items()}
            else:
                mx.eval(gradients)
            optimizer.update(model, gradients)
            mx.eval(model.parameters(), optimizer.state)
            if step == 0:
                optimizer.state["b"]["v"] = optimizer.state["a"]["v"]
        return [model, optimizer.state]

    assert not differences(photo(program(mlx_opt)), photo(program(stock)), 1e-6)
