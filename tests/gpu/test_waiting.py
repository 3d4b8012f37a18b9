"""Loops that wait for each step, do not wait, or change their mind: always in place, always right.

A caller who waits is left the step's number to evaluate, so that MLX waits once and not for each
array; whoever then does not wait has MLX hold the results.
"""

import gc

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import mlx_opt
from cases import wide

if not mx.is_available(mx.gpu):
    pytest.skip("there is no GPU", allow_module_level=True)

SHAPE = (1024, 1024)  # large enough for a step to outlast MLX's walk over its results
COUNT = 6


def wait(results):
    mx.eval(results)


def go_on(results):
    mx.async_eval(results)


def leave(results):
    pass


LOOPS = {
    "waits": [wait] * 12,
    "goes on": [go_on] * 12,
    "waits, then goes on": [wait] * 6 + [go_on] * 6,
    "goes on, then waits": [go_on] * 6 + [wait] * 6,
    "in turn": [wait, go_on] * 6,
    "now one, now the other": ([wait] * 5 + [go_on] * 3) * 3,
    "now and then": ([wait] * 5 + [leave, leave]) * 3,
}


def model_of(seed):
    model = nn.Module()
    for i, key in enumerate(mx.random.split(mx.random.key(seed), COUNT)):
        model[f"w{i}"] = mx.random.normal(SHAPE, key=key)
    mx.eval(model)
    return model


def gradients_of(seed):
    return dict(model_of(seed).items())


def train(device, loop, options):
    with mx.stream(device):
        model, optimizer = model_of(0), mlx_opt.AdamW(0.01, bias_correction=True)
        gradients = gradients_of(1)
        for end in [wait, *loop]:
            optimizer.update(model, gradients, **options)
            end((model.state, optimizer.state))
        mx.eval(model, optimizer.state)
    return model, optimizer


@pytest.mark.parametrize("options", [{}, {"max_norm": 1.0}], ids=["plain", "clipped"])
@pytest.mark.parametrize("name", LOOPS)
def test_every_loop_gives_what_the_cpu_gives(name, options):
    got, ours = train(mx.gpu, LOOPS[name], options)
    expected, theirs = train(mx.cpu, LOOPS[name], options)
    assert ours.step.item() == theirs.step.item() == len(LOOPS[name]) + 1
    for key, x in expected.items():
        assert np.abs(wide(got[key]) - wide(x)).max() <= 2e-6 * np.abs(wide(x)).max(), key
        for slot in ("m", "v"):
            a, b = (wide(o.state[key][slot]) for o in (ours, theirs))
            assert np.abs(a - b).max() <= 2e-6 * np.abs(b).max(), (key, slot)


@pytest.mark.parametrize("options", [{}, {"max_norm": 1.0}], ids=["plain", "clipped"])
@pytest.mark.parametrize("name", LOOPS)
def test_every_loop_is_in_place(name, options):
    model, optimizer = train(mx.gpu, [wait] * 2, options)
    gradients = gradients_of(1)
    gc.collect()
    mx.synchronize()
    objects = {key: id(x) for key, x in model.items()}
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    for end in LOOPS[name]:
        optimizer.update(model, gradients, **options)
        end((model.state, optimizer.state))
    mx.synchronize()
    # Less than one more array: nothing but scalars is new.
    assert mx.get_peak_memory() - before < 4 * SHAPE[0] * SHAPE[1]
    assert {key: id(x) for key, x in model.items()} == objects


def test_clipping_leaves_lazy_gradients_to_the_caller():
    model, optimizer = train(mx.gpu, [wait] * 3, {"max_norm": 1.0})
    gradients = {key: x * 2 for key, x in gradients_of(1).items()}
    mx.synchronize()
    before = mx.get_active_memory()
    optimizer.update(model, gradients, max_norm=1.0)
    assert mx.get_active_memory() - before < 4 * SHAPE[0] * SHAPE[1]


def test_whoever_evaluates_the_parameters_alone_waits_for_them():
    model, optimizer = train(mx.gpu, [wait] * 3, {})
    gradients = gradients_of(1)
    for _ in range(5):
        optimizer.update(model, gradients)
        mx.eval(model)
        assert np.isfinite(np.array(model["w0"])).all()
    assert optimizer.step.item() == 4 + 5
