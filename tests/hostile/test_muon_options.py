"""Options of Muon that make no sense."""

import mlx.core as mx
import mlx.nn as nn
import pytest

import mlx_opt

from .photo import differences, photo
from .processes import apart

BAD_MUON = {
    "no-coefficients": ("ns_coefficients", {"ns_coefficients": []}),
    "None": ("ns_coefficients", {"ns_coefficients": None}),
    "pairs": ("ns_coefficients", {"ns_coefficients": [(1, 2)]}),
    "text": ("ns_coefficients", {"ns_coefficients": [("a", "b", "c")]}),
    "number": ("ns_coefficients", {"ns_coefficients": 3.0}),
    "integer-dtype": ("ns_dtype", {"ns_dtype": mx.int32}),
    "no-dtype": ("ns_dtype", {"ns_dtype": "float32"}),
    "complex-dtype": ("ns_dtype", {"ns_dtype": mx.complex64}),
    "half-a-step": ("ns_steps", {"ns_steps": 2.5}),
    "steps-as-text": ("ns_steps", {"ns_steps": "5"}),
}
each_way = pytest.mark.parametrize("way", ["constructor", "attribute"])


@pytest.mark.parametrize("call", ["update", "apply_gradients"])
@each_way
@pytest.mark.parametrize("case", BAD_MUON)
@apart
def test_an_option_of_muon_that_makes_no_sense_is_named_and_changes_nothing(case, way, call):
    name, options = BAD_MUON[case]
    model = nn.Module()
    model.w, model.b = mx.ones((4, 6)), mx.ones(6)
    gradients = {"w": mx.ones((4, 6)), "b": mx.ones(6)}
    mx.eval(model.parameters(), gradients)
    optimizer = mlx_opt.Muon(0.1)
    optimizer.update(model, gradients)
    mx.eval(model.parameters(), optimizer.state)
    before = photo([model, optimizer.state])
    arguments = (model, gradients) if call == "update" else (gradients, model)
    with pytest.raises((TypeError, ValueError), match=name):
        if way == "constructor":
            state, optimizer = optimizer.state, mlx_opt.Muon(0.1, **options)
            optimizer.state = state
        else:
            setattr(optimizer, name, options[name])
        mx.eval(getattr(optimizer, call)(*arguments), model.parameters())
    assert not differences(photo([model, optimizer.state]), before, 0)


def test_a_number_of_iterations_that_is_a_float_is_refused():
    optimizer = mlx_opt.Muon(0.1)
    optimizer.ns_steps = 2.0
    with pytest.raises(TypeError, match="ns_steps"):
        optimizer.apply_gradients({"w": mx.ones((4, 6))}, {"w": mx.ones((4, 6))})
