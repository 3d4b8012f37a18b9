"""States of PyTorch's and optax's optimizers; see test_torch and test_oracles for the packages."""

from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

import mlx_opt
from cases import assert_same, normal
from mlx_opt.tools.moving import OPTAX, TORCH

SHAPES = {"layers.0.weight": (3, 4), "layers.0.bias": (3,)}


def parameters():
    return {"layers": [{"weight": normal(3, 4), "bias": normal(3)}]}


def gradients(seed):
    return {"layers": [{"weight": normal(3, 4, seed=seed), "bias": normal(3, seed=seed + 1)}]}


def trained(optimizer, steps=3, w=None):
    w = parameters() if w is None else w
    for step in range(steps):
        w = optimizer.apply_gradients(gradients(10 * step), w)
    return w


def make(rule):
    options = {"bias_correction": True} if rule == "AdamW" else {}
    return getattr(mlx_opt, rule)(0.01, **options)


def torch_state(optimizer, bias_first=False):
    """The state that PyTorch's optimizer would have."""
    rule, state = optimizer._rule, dict(tree_flatten(optimizer.state))
    names = sorted(SHAPES, reverse=not bias_first)
    entries: dict[int, Any] = {}
    for i, name in enumerate(names):
        own = {k: np.array(state[f"{name}.{slot}"]) for slot, k in TORCH[rule].items()
               if f"{name}.{slot}" in state}  # fmt: skip
        entries[i] = own | {"step": np.float32(optimizer.step.item())}
    group = {"lr": optimizer.learning_rate.item(), "params": [0, 1]}
    if "ScheduleFree" in rule:
        lr_max, steps = optimizer.lr_max.item(), optimizer.averaged_steps.item()
        weight = optimizer.step.item() ** optimizer.r * lr_max**optimizer.weight_lr_power
        group |= {"k": optimizer.step.item(), "weight_sum": weight * steps, "lr_max": lr_max}
        group |= {"r": optimizer.r, "weight_lr_power": 2.0, "train_mode": True}
        for own in entries.values():
            del own["step"]
    if rule == "Prodigy":
        for own in entries.values():
            own |= {"s": own["s"].reshape(-1), "p0": own["p0"].reshape(-1)}
        group |= {x: optimizer.state[x].item() for x in ("d", "d_max", "d_numerator")}
    if rule == "DAdaptAdam":
        factor = 1 - optimizer.betas[1] ** 0.5
        weighted = factor * optimizer.d_numerator.item()
        group |= {"d": optimizer.d.item(), "numerator_weighted": weighted, "betas": optimizer.betas}
    if rule == "NAdam":
        for own in entries.values():
            own["mu_product"] = optimizer.mu_product.item()
    return {"state": entries, "param_groups": [group]}, names


@pytest.mark.parametrize("rule", TORCH)
@pytest.mark.parametrize("bias_first", [False, True])
def test_a_training_of_torchs_goes_on(rule, bias_first):
    ours, later = make(rule), make(rule)
    w = trained(ours)
    theirs, names = torch_state(ours, bias_first)
    later.state = mlx_opt.state_from_torch(later, theirs, names, parameters())
    assert later.step.item() == 3
    assert_same(trained(later, w=w), trained(ours, w=w))


def test_the_numbers_of_all_tensors_and_a_p0_of_zeros():
    ours, w = mlx_opt.Prodigy(), {"layers": [{"weight": mx.zeros((3, 4)), "bias": mx.zeros(3)}]}
    w = trained(ours, steps=6, w=w)
    theirs, names = torch_state(ours)
    for entries in theirs["state"].values():
        entries["p0"] = np.float32(0)
    state = mlx_opt.state_from_torch(mlx_opt.Prodigy(), theirs, names, w)
    for name in ("d", "d_max", "d_numerator"):
        assert_same(state[name], ours.state[name])
        assert state[name].item() != 0
    assert not state["layers"][0]["weight"]["p0"].any()


def test_a_model_and_its_frozen_parameters():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model.layers[1].freeze()
    ours = make("AdamW")
    trained(ours)
    theirs, names = torch_state(ours)
    state = mlx_opt.state_from_torch(make("AdamW"), theirs, names, model)
    assert {path for path, _ in tree_flatten(state) if path.startswith("layers")} == {
        f"{name}.{slot}" for name in SHAPES for slot in "mv"
    }


def test_a_parameter_without_a_step_begins_as_here():
    ours = make("AdamW")
    trained(ours)
    theirs, names = torch_state(ours)
    del theirs["state"][1]
    state = dict(tree_flatten(mlx_opt.state_from_torch(make("AdamW"), theirs, names, parameters())))
    assert not state[f"{names[1]}.m"].any()
    assert state[f"{names[0]}.m"].any()


def test_averages_that_torch_has_are_those_of_the_model():
    ours = make("SGDScheduleFree")
    trained(ours)
    theirs, names = torch_state(ours)
    theirs["param_groups"][0]["train_mode"] = False
    later = make("SGDScheduleFree")
    later.state = mlx_opt.state_from_torch(later, theirs, names, parameters())
    with pytest.raises(RuntimeError, match="the model has the average"):
        trained(later)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s, n: n.pop(), ValueError, "names: expected 2, as PyTorch's state has, got 1"),
        (lambda s, n: n.__setitem__(0, "x"), KeyError, "x: there is no parameter of this name"),
        (lambda s, n: s[0].pop("exp_avg"), KeyError, "weight: PyTorch's state has no exp_avg"),
        (
            lambda s, n: s[0].update(exp_avg=np.ones(3)),
            ValueError,
            r"layers.0.weight: m has the shape \(3,\), expected \(3, 4\)",
        ),
        (
            lambda s, n: s[0].update(step=5),
            ValueError,
            r"parameters have had different numbers of steps: \[3, 5\]",
        ),
    ],
)
def test_what_does_not_agree_is_named(change, error, message):
    ours = make("AdamW")
    trained(ours)
    theirs, names = torch_state(ours)
    change(theirs["state"], names)
    with pytest.raises(error, match=message):
        mlx_opt.state_from_torch(make("AdamW"), theirs, names, parameters())


def test_other_rules_are_refused():
    with pytest.raises(TypeError, match="Adan: PyTorch's state cannot be converted"):
        mlx_opt.state_from_torch(mlx_opt.Adan(0.1), {}, [], {})
    with pytest.raises(TypeError, match="Adan: optax's state cannot be converted"):
        mlx_opt.state_from_optax(mlx_opt.Adan(0.1), (), {})


class ScaleByAdamState(NamedTuple):
    count: Any
    mu: Any
    nu: Any


class ScaleByRmsState(NamedTuple):
    nu: Any


class ScaleByRssState(NamedTuple):
    sum_of_squares: Any


class ScaleByScheduleState(NamedTuple):
    count: Any


class TraceState(NamedTuple):
    trace: Any


class ScheduleFreeState(NamedTuple):
    b1: Any
    weight_sum: Any
    step_count: Any
    max_lr: Any
    base_optimizer_state: Any
    z: Any


def tree_of(optimizer, slot):
    return {
        "layers": [
            {k: np.array(x[slot]) for k, x in layer.items()} for layer in optimizer.state["layers"]
        ]
    }


def optax_state(optimizer):
    rule, count = optimizer._rule, np.int32(optimizer.step.item())
    trees = {key: tree_of(optimizer, slot) for slot, key in OPTAX[rule].items()}
    if rule == "AdamW":
        return (ScaleByAdamState(count, **trees), (), ScaleByScheduleState(count))
    if rule == "Lion":
        return ({}, (ScaleByAdamState(count, **trees, nu=None),))
    if rule == "RMSprop":
        return (ScaleByRmsState(**trees), ScaleByScheduleState(count))
    if rule == "Adagrad":
        return [ScaleByRssState(**trees), ScaleByScheduleState(count)]
    if rule == "SGD":
        return (TraceState(**trees), ScaleByScheduleState(count))
    lr_max = optimizer.lr_max.item()
    base = (ScaleByRmsState(trees.get("nu")), ScaleByScheduleState(count))
    weights = optimizer.averaged_steps.item() * lr_max**2
    return ScheduleFreeState(0.9, weights, count + 1, lr_max, base, trees["z"])


@pytest.mark.parametrize("rule", OPTAX)
def test_a_training_of_optaxs_goes_on(rule):
    ours, later = make(rule), make(rule)
    w = trained(ours)
    later.state = mlx_opt.state_from_optax(later, optax_state(ours), parameters())
    assert later.step.item() == 3
    assert_same(trained(later, w=w), trained(ours, w=w))


def test_a_state_of_another_optimizer_is_refused():
    with pytest.raises(KeyError, match="optax's state has no mu"):
        mlx_opt.state_from_optax(make("AdamW"), (TraceState({}),), parameters())
