"""Schedules, properties and other parts of a step that change what the step is about."""

import sys
import threading

import mlx.core as mx
import mlx.nn as nn
import pytest

import mlx_opt

from .photo import differences, photo
from .processes import apart

LIKE_STOCK = (KeyError, TypeError)  # mlx.optimizers multiplies the text by a number


def model_of(count, size=4):
    model = nn.Module()
    for i in range(count):
        model[f"p{i}"] = mx.full((size,), 1.0 + i)
    mx.eval(model.parameters())
    return model


def gradients_of(model):
    gradients = {key: 0.5 * x for key, x in model.parameters().items()}
    mx.eval(gradients)
    return gradients


def step(call, optimizer, model, gradients):
    if call == "update":
        optimizer.update(model, gradients)
    else:
        model.update(optimizer.apply_gradients(gradients, model))
    mx.eval(model.parameters(), optimizer.state)


@pytest.mark.parametrize("call", ["update", "apply_gradients"])
@pytest.mark.parametrize("there", ["gone", "text"])
@apart
def test_a_schedule_that_takes_an_array_of_the_state_away(there, call):
    model = model_of(2)
    optimizer = mlx_opt.AdamW(0.1)
    step(call, optimizer, model, gradients_of(model))

    def schedule(step):
        if there == "gone":
            del optimizer.state["p1"]["m"]
        else:
            optimizer.state["p1"]["m"] = "text"
        return mx.array(0.1)

    optimizer._schedulers["learning_rate"] = schedule
    before = photo([model, optimizer.state])
    error = pytest.raises(KeyError, match="p1") if there == "gone" else pytest.raises(LIKE_STOCK)
    with error:
        step(call, optimizer, model, gradients_of(model))
    changed = differences(photo([model, optimizer.state]), before, 0)
    assert [line.partition(":")[0] for line in changed] == ["1.p1.m"]


@apart
def test_a_thread_that_takes_an_array_out_of_the_state_and_puts_it_back():
    model = nn.Module()
    model.w = mx.ones((400, 400))
    gradients = {"w": mx.ones((400, 400))}
    mx.eval(model.w, gradients)
    optimizer = mlx_opt.AdamW(0.1)
    step("update", optimizer, model, gradients)
    sys.setswitchinterval(1e-5)
    over = threading.Event()

    def other():
        while not over.is_set():
            state = optimizer.state["w"]
            state["m"] = state.pop("m")

    thread = threading.Thread(target=other)
    thread.start()
    refused = 0
    try:
        for _ in range(1500):
            try:
                optimizer.update(model, gradients)
            except KeyError:
                refused += 1
    finally:
        over.set()
        thread.join()
    mx.eval(model.parameters(), optimizer.state)
    assert optimizer.step.item() == 1501 - refused


def parts_of(kind, failing):
    """An optimizer whose second part has a rate that may fail."""
    second = mlx_opt.AdamW(failing)
    if kind == "MultiOptimizer":
        first = mlx_opt.SGD(0.1, momentum=0.9)
        return mlx_opt.MultiOptimizer([first, second], [lambda path, _: path == "matrix"])
    return mlx_opt.Muon(0.1, fallback=second)


@pytest.mark.parametrize("options", [{}, {"max_norm": 1.0, "skip_nonfinite": True}])
@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("call", ["update", "apply_gradients"])
@pytest.mark.parametrize("kind", ["MultiOptimizer", "fallback"])
@apart
def test_where_one_part_fails_no_part_has_made_its_step(kind, call, lazy, options):
    fails = []

    def rate(step):
        if fails:
            raise RuntimeError("schedule")
        return mx.array(0.1)

    model = nn.Module()
    model.matrix, model.vector = mx.ones((3, 4)), mx.ones(3)
    optimizer = parts_of(kind, rate)
    gradients = {"matrix": mx.full((3, 4), 0.5), "vector": mx.full((3,), 0.5)}
    mx.eval(gradients, model.parameters())
    step("update", optimizer, model, gradients)
    before = photo([model, optimizer.state])
    fails.append(True)
    if lazy:
        gradients = {key: 1 * x for key, x in gradients.items()}
    with pytest.raises(RuntimeError, match="schedule"):
        getattr(optimizer, call)(*ordered(call, model, gradients), **options)
    assert not differences(photo([model, optimizer.state]), before, 0)


def ordered(call, model, gradients):
    return (model, gradients) if call == "update" else (gradients, model)
