"""PyTorch's optimizers on the CPU, where they follow the same rule."""

import mlx.core as mx
import numpy as np
import pytest

import mlx_opt
from cases import Case, normal, wide

torch = pytest.importorskip("torch")

STEPS = 100
SHAPES = [(33, 7), (129,), ()]

# Ours, and torch's class and options for the same. Left out: Adamax and Lion, and dampening, which
# torch does not apply to the first step.
PAIRS = [
    (Case("SGD", {"weight_decay": 0.1}), "SGD", {"weight_decay": 0.1}),
    (Case("SGD", {"momentum": 0.9}), "SGD", {"momentum": 0.9}),
    (
        Case("SGD", {"momentum": 0.9, "weight_decay": 0.1}),
        "SGD",
        {"momentum": 0.9, "weight_decay": 0.1},
    ),
    (
        Case("SGD", {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True}),
        "SGD",
        {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
    ),
    (Case("RMSprop", {"alpha": 0.95}), "RMSprop", {"alpha": 0.95}),
    (Case("Adagrad", {"eps": 1e-6}), "Adagrad", {"eps": 1e-6}),
    (Case("AdaDelta", {"rho": 0.8}), "Adadelta", {"rho": 0.8}),
    (
        Case("Adam", {"betas": (0.8, 0.95), "bias_correction": True}),
        "Adam",
        {"betas": (0.8, 0.95)},
    ),
    (
        Case("AdamW", {"weight_decay": 0.1, "bias_correction": True}),
        "AdamW",
        {"weight_decay": 0.1},
    ),
    (
        Case("Adam", {"amsgrad": True, "weight_decay": 0.1, "bias_correction": True}),
        "Adam",
        {"amsgrad": True, "weight_decay": 0.1},
    ),
    (
        Case("AdamW", {"amsgrad": True, "weight_decay": 0.1, "bias_correction": True}),
        "AdamW",
        {"amsgrad": True, "weight_decay": 0.1},
    ),
    (Case("NAdam"), "NAdam", {}),
    (
        Case("NAdam", {"weight_decay": 0.1, "momentum_decay": 0.1}),
        "NAdam",
        {"weight_decay": 0.1, "momentum_decay": 0.1},
    ),
    (
        Case("NAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
        "NAdam",
        {"weight_decay": 0.1, "decoupled_weight_decay": True},
    ),
    (Case("RAdam"), "RAdam", {}),
    (
        Case("RAdam", {"betas": (0.8, 0.95), "weight_decay": 0.1}),
        "RAdam",
        {"betas": (0.8, 0.95), "weight_decay": 0.1},
    ),
    (
        Case("RAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
        "RAdam",
        {"weight_decay": 0.1, "decoupled_weight_decay": True},
    ),
]
each_pair = pytest.mark.parametrize(
    ("case", "name", "options"), PAIRS, ids=[str(case) for case, _, _ in PAIRS]
)

# The slots under torch's names.
MOMENTS = {
    "SGD": {"v": "momentum_buffer"},
    "RMSprop": {"v": "square_avg"},
    "Adagrad": {"v": "sum"},
    "AdaDelta": {"v": "square_avg", "u": "acc_delta"},
    "Adam": {"m": "exp_avg", "v": "exp_avg_sq", "v_max": "max_exp_avg_sq"},
    "AdamW": {"m": "exp_avg", "v": "exp_avg_sq", "v_max": "max_exp_avg_sq"},
    "NAdam": {"m": "exp_avg", "v": "exp_avg_sq"},
    "RAdam": {"m": "exp_avg", "v": "exp_avg_sq"},
}


def gradients(step):
    return [normal(*shape, seed=100 * (1 + i) + step) for i, shape in enumerate(SHAPES)]


def learning_rate(step):
    return 0.02 * 0.99**step


def torch_walk(name, options, dtype):
    parameters = [torch.tensor(wide(normal(*shape)), dtype=dtype) for shape in SHAPES]
    optimizer = getattr(torch.optim, name)(parameters, lr=learning_rate(0), **options)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
    for step in range(STEPS):
        for p, g in zip(parameters, gradients(step), strict=True):
            p.grad = torch.tensor(wide(g), dtype=dtype)
        optimizer.step()
        scheduler.step()
    return parameters, [optimizer.state[p] for p in parameters]


def our_walk(case):
    optimizer = case.ours(learning_rate)
    w = {"w": [normal(*shape) for shape in SHAPES]}
    for step in range(STEPS):
        w = optimizer.apply_gradients({"w": gradients(step)}, w)
        mx.eval(w, optimizer.state)
    return w["w"], optimizer.state["w"]


@each_pair
def test_float32_follows_torchs_float64_for_a_hundred_steps(case, name, options):
    exact, exact_state = torch_walk(name, options, torch.float64)
    w, state = our_walk(case)
    for i in range(len(SHAPES)):
        expected = exact[i].numpy()
        assert np.abs(wide(w[i]) - expected).max() <= 2e-6 * max(np.abs(expected).max(), 1)
        for ours, theirs in MOMENTS[case.rule].items():
            if theirs in exact_state[i] and exact_state[i][theirs] is not None:
                m = exact_state[i][theirs].numpy()
                assert np.abs(wide(state[i][ours]) - m).max() <= 2e-6 * np.abs(m).max()


@each_pair
def test_float32_is_no_farther_from_float64_than_torchs_own(case, name, options):
    exact, _ = torch_walk(name, options, torch.float64)
    single, _ = torch_walk(name, options, torch.float32)
    w, _ = our_walk(case)
    ours = np.abs(wide(w[0]) - exact[0].numpy())
    theirs = np.abs(single[0].numpy().astype(np.float64) - exact[0].numpy())
    assert np.sqrt(np.mean(ours**2)) <= 1.5 * np.sqrt(np.mean(theirs**2)) + 1e-8


@pytest.mark.parametrize("rule", ["AdamW", "NAdam", "RMSprop", "SGD"])
def test_a_training_that_torch_began_goes_on(rule):
    options = {"AdamW": {"bias_correction": True}, "SGD": {"momentum": 0.9}}.get(rule, {})
    optimizer = getattr(mlx_opt, rule)(0.02, **options)
    parameters = [torch.tensor(wide(normal(*shape)), dtype=torch.float32) for shape in SHAPES]
    theirs = getattr(torch.optim, rule)(
        parameters, lr=0.02, **({"momentum": 0.9} if rule == "SGD" else {})
    )
    names = [f"w{i}" for i in range(len(parameters))]
    for step in range(20):
        if step == 10:
            w = {name: mx.array(p.numpy()) for name, p in zip(names, parameters, strict=True)}
            optimizer.state = mlx_opt.state_from_torch(optimizer, theirs.state_dict(), names, w)
        if step >= 10:
            w = optimizer.apply_gradients(dict(zip(names, gradients(step), strict=True)), w)
        for p, g in zip(parameters, gradients(step), strict=True):
            p.grad = torch.tensor(wide(g), dtype=torch.float32)
        theirs.step()
    for name, p in zip(names, parameters, strict=True):
        np.testing.assert_allclose(wide(w[name]), p.numpy(), rtol=0, atol=1e-5)
