"""The optimizers' published packages, where torch and pytorch_optimizer are installed.

`pip install --group oracles` installs them; continuous integration does not.
"""

import functools
import itertools

import mlx.core as mx
import numpy as np
import pytest

import mlx_opt
from cases import SUMMING, Case, normal, wide

torch = pytest.importorskip("torch", reason="torch is not installed")
oracles = pytest.importorskip("pytorch_optimizer", reason="pytorch_optimizer is not installed")

STEPS = 50
LEARNING_RATE = 0.01
SHAPES = [(33, 7), (129,), ()]

OF_MATRICES = {"LARS", "MARS", "MARSLion"}
"""Rules of which the packages treat other parameters than matrices in another way."""

TOLERANCES = {"MARS": 5e-5}
"""Theirs adds 1e-15 to the squares of gradients of norm 1, which shows."""


def adopt(parameters, weight_decay, weight_decouple):
    """Theirs counts one step more for the clip, and decays in the first step too."""
    optimizer = oracles.ADOPT(
        parameters,
        lr=LEARNING_RATE,
        weight_decay=weight_decay,
        weight_decouple=weight_decouple,
        clip_lambda=lambda step: (step - 1) ** 0.25,
    )
    if weight_decouple:
        (group,) = optimizer.param_groups
        group["weight_decay"] = 0.0
        yield optimizer
        group["weight_decay"] = weight_decay
    while True:
        yield optimizer


def steady(make, **options):
    """The same optimizer for each step."""
    return lambda parameters: itertools.repeat(make(parameters, lr=LEARNING_RATE, **options))


def mars(parameters, **options):
    """Theirs begins with a last gradient of 0."""
    optimizer = oracles.MARS(parameters, lr=LEARNING_RATE, **options)
    (group,) = optimizer.param_groups
    optimizer.init_group(group)
    for p in parameters:
        optimizer.state[p]["last_grad"].copy_(p.grad)
    while True:
        yield optimizer


def schedule_free(name, **options):
    def make(parameters):
        package = pytest.importorskip("schedulefree", reason="schedulefree is not installed")
        optimizer = getattr(package, name)(parameters, lr=LEARNING_RATE, **options)
        optimizer.train()
        return itertools.repeat(optimizer)

    return make


def adam_atan2(parameters, **options):
    package = pytest.importorskip("adam_atan2_pytorch", reason="adam-atan2-pytorch is missing")
    return package.AdamAtan2(parameters, **options)


# Ours, and what gives theirs for each step. SimplifiedAdEMAMix is left out: theirs is another rule.
PAIRS = [
    (Case("ADOPT", {"weight_decay": 0.1}), lambda p: adopt(p, 0.1, False)),
    (Case("ADOPT", {"weight_decay": 0.1, "decouple": True}), lambda p: adopt(p, 0.1, True)),
    (
        Case("AdamAtan2", {"weight_decay": 0.1, "b": 0.5}),
        steady(adam_atan2, weight_decay=0.1, b=0.5),
    ),
    (
        Case("AdamWScheduleFree", {"weight_decay": 0.1, "warmup_steps": 7, "r": 0.5}),
        schedule_free("AdamWScheduleFree", weight_decay=0.1, warmup_steps=7, r=0.5),
    ),
    (
        Case("RAdamScheduleFree", {"weight_decay": 0.1, "r": 0.5}),
        schedule_free("RAdamScheduleFree", weight_decay=0.1, r=0.5),
    ),
    (
        Case("RAdamScheduleFree", {"weight_decay": 0.1, "silent_sgd_phase": False}),
        schedule_free("RAdamScheduleFree", weight_decay=0.1, silent_sgd_phase=False),
    ),
    (
        Case("SGDScheduleFree", {"momentum": 0.8, "weight_decay": 0.1, "warmup_steps": 3}),
        schedule_free("SGDScheduleFree", momentum=0.8, weight_decay=0.1, warmup_steps=3),
    ),
    (Case("LaProp", {"weight_decay": 0.1}), steady(oracles.LaProp, weight_decay=0.1)),
    (
        Case("QHAdam", {"nus": (0.7, 0.9), "weight_decay": 0.1}),
        steady(oracles.QHAdam, nus=(0.7, 0.9), weight_decay=0.1),
    ),
    (
        Case("QHAdam", {"weight_decay": 0.1, "decouple_weight_decay": True}),
        steady(oracles.QHAdam, weight_decay=0.1, weight_decouple=True),
    ),
    (Case("AdaBelief", {"weight_decay": 0.1}), steady(oracles.AdaBelief, weight_decay=0.1)),
    (
        Case("DiffGrad", {"weight_decay": 0.1}),
        steady(oracles.DiffGrad, weight_decay=0.1, weight_decouple=False),
    ),
    (
        Case("Yogi", {"weight_decay": 0.1, "initial_accumulator": 0.0}),
        steady(oracles.Yogi, weight_decay=0.1, initial_accumulator=0.0),
    ),
    (
        Case("SignSGD", {"weight_decay": 0.1}),
        steady(oracles.SignSGD, momentum=0.0, weight_decay=0.1),
    ),
    (
        Case("LARS", {"weight_decay": 0.1, "eps": 0.0, "trust_coefficient": 0.02}),
        steady(oracles.LARS, weight_decay=0.1, trust_coefficient=0.02),
    ),
    (
        Case("LARS", {"eps": 0.0, "trust_coefficient": 0.02, "nesterov": True}),
        steady(oracles.LARS, trust_coefficient=0.02, nesterov=True),
    ),
    (
        Case("Lion", {"weight_decay": 0.1, "cautious": True}),
        steady(oracles.Lion, weight_decay=0.1, cautious=True),
    ),
    (
        Case("MARS", {"weight_decay": 0.1}),
        lambda parameters: mars(parameters, weight_decay=0.1),
    ),
    (
        Case("MARSLion", {"weight_decay": 0.1}),
        lambda parameters: mars(parameters, mars_type="lion", weight_decay=0.1),
    ),
    (
        Case("StableAdamW", {"weight_decay": 0.1}),
        steady(oracles.StableAdamW, weight_decay=0.1, eps=1e-6),
    ),
]


def gradients(step):
    """From 1e-3 to 50, because theirs adds 1e-15 to squares; and zeros, of one parameter."""
    gs = [normal(*shape, seed=100 * (1 + i) + step) for i, shape in enumerate(SHAPES)]
    gs = [mx.sign(g) * (mx.abs(g) + 0.1) ** 3 for g in gs]
    return [g * (step % 5 != 0 or i != 1) for i, g in enumerate(gs)]


def their_walk(make):
    parameters = [torch.tensor(wide(normal(*shape)), dtype=torch.float64) for shape in SHAPES]
    optimizers = make(parameters)
    for step in range(STEPS):
        for p, g in zip(parameters, gradients(step), strict=True):
            p.grad = torch.tensor(wide(g), dtype=torch.float64)
        next(optimizers).step()
    return [p.numpy() for p in parameters]


def our_walk(case):
    optimizer = case.ours(LEARNING_RATE)
    w = {"w": [normal(*shape) for shape in SHAPES]}
    for step in range(STEPS):
        w = optimizer.apply_gradients({"w": gradients(step)}, w)
        mx.eval(w, optimizer.state)
    return [wide(x) for x in w["w"]]


@pytest.mark.parametrize(("case", "make"), PAIRS, ids=[str(case) for case, _ in PAIRS])
def test_float32_follows_the_packages_float64(case, make):
    for x, expected in zip(our_walk(case), their_walk(make), strict=True):
        if case.rule in OF_MATRICES and x.ndim < 2:
            continue
        tolerance = TOLERANCES.get(case.rule, 2e-6)
        assert np.abs(x - expected).max() <= tolerance * max(np.abs(expected).max(), 1)


@pytest.mark.parametrize("case", SUMMING, ids=str)
def test_the_estimated_learning_rate_is_the_packages(case):
    """Of parameters that begin at 0, where float32 holds the way that small steps go."""
    name = {"Prodigy": "prodigyopt", "DAdaptAdam": "dadaptation"}[case.rule]
    package = pytest.importorskip(name, reason=f"{name} is not installed")
    parameters = [torch.zeros(shape, dtype=torch.float64) for shape in SHAPES]
    theirs = getattr(package, case.rule)(parameters, lr=1.0, **case.options)
    ours, w = case.ours(1.0), {"w": [mx.zeros(shape) for shape in SHAPES]}
    for step in range(STEPS):
        gs = [g + 0.3 for g in gradients(step)]
        for p, g in zip(parameters, gs, strict=True):
            p.grad = torch.tensor(wide(g), dtype=torch.float64)
        theirs.step()
        w = ours.apply_gradients({"w": gs}, w)
        mx.eval(w, ours.state)
    assert ours.d.item() == pytest.approx(theirs.param_groups[0]["d"], rel=2e-5)
    for x, p in zip(w["w"], parameters, strict=True):
        assert np.abs(wide(x) - p.numpy()).max() <= 2e-5 * np.abs(p.numpy()).max()


@pytest.mark.parametrize("rule", ["Prodigy", "DAdaptAdam"])
def test_a_training_that_estimates_its_learning_rate_goes_on(rule):
    name = {"Prodigy": "prodigyopt", "DAdaptAdam": "dadaptation"}[rule]
    package = pytest.importorskip(name, reason=f"{name} is not installed")
    parameters = [torch.zeros(shape) for shape in SHAPES]
    parameters[0] += 1e-6
    theirs, ours = getattr(package, rule)(parameters, lr=1.0), getattr(mlx_opt, rule)()
    names = [f"w.{i}" for i in range(len(SHAPES))]
    for step in range(20):
        gs = [g + 0.3 for g in gradients(step)]
        if step == 10:
            w = {"w": [mx.array(p.numpy()) for p in parameters]}
            ours.state = mlx_opt.state_from_torch(ours, theirs.state_dict(), names, w)
            assert ours.step.item() == 10
        if step >= 10:
            w = ours.apply_gradients({"w": gs}, w)
        for p, g in zip(parameters, gs, strict=True):
            p.grad = torch.tensor(wide(g), dtype=torch.float32)
        theirs.step()
    assert ours.d.item() == pytest.approx(theirs.param_groups[0]["d"], rel=1e-5)
    for x, p in zip(w["w"], parameters, strict=True):
        assert np.abs(wide(x) - p.numpy()).max() <= 1e-5 * np.abs(p.numpy()).max()


def matrices(count):
    return [wide(normal(5, 3, seed=seed)).astype(np.float32) for seed in range(count)]


@pytest.mark.parametrize(
    ("case", "make"),
    [
        (Case("AdamW", {"weight_decay": 0.1, "bias_correction": True}), "adamw"),
        (Case("Lion", {"weight_decay": 0.1}), "lion"),
        (Case("AdamWScheduleFree"), "schedule_free_adamw"),
        (Case("SGDScheduleFree"), "schedule_free_sgd"),
    ],
    ids=str,
)
def test_a_training_that_optax_began_goes_on(case, make):
    optax = pytest.importorskip("optax", reason="optax is not installed")
    options = {"b1": 0.9} if "free" in make else {"weight_decay": 0.1}
    theirs = getattr(optax.contrib if "free" in make else optax, make)(LEARNING_RATE, **options)
    w = {"w": matrices(1)[0]}
    state, optimizer = theirs.init(w), case.ours(LEARNING_RATE)
    for step, g in enumerate(matrices(20)):
        if step == 10:
            ours = {"w": mx.array(np.array(w["w"]))}
            optimizer.state = mlx_opt.state_from_optax(optimizer, state, ours)
        if step >= 10:
            ours = optimizer.apply_gradients({"w": mx.array(g)}, ours)
        updates, state = theirs.update({"w": g}, state, w)
        w = optax.apply_updates(w, updates)
    np.testing.assert_allclose(wide(ours["w"]), np.array(w["w"]), rtol=0, atol=2e-6)


def test_a_training_that_schedulefree_began_goes_on():
    package = pytest.importorskip("schedulefree", reason="schedulefree is not installed")
    w = torch.tensor(matrices(1)[0])
    theirs = package.AdamWScheduleFree([w], lr=LEARNING_RATE, warmup_steps=4, r=0.5)
    theirs.train()
    optimizer = mlx_opt.AdamWScheduleFree(LEARNING_RATE, warmup_steps=4, r=0.5)
    for step, g in enumerate(matrices(20)):
        if step == 10:
            ours = {"w": mx.array(w.numpy())}
            state = mlx_opt.state_from_torch(optimizer, theirs.state_dict(), ["w"], ours)
            optimizer.state = state
        if step >= 10:
            ours = optimizer.apply_gradients({"w": mx.array(g)}, ours)
        w.grad = torch.tensor(g)
        theirs.step()
    np.testing.assert_allclose(wide(ours["w"]), w.numpy(), rtol=0, atol=2e-6)


MATRICES = {"wide": (12, 20), "tall": (20, 12), "square": (9, 9)}


def muons_gradients(step):
    return {name: normal(*shape, seed=1 + step) for name, shape in MATRICES.items()}


def our_muon(**options):
    w = {name: normal(*shape) for name, shape in MATRICES.items()}
    optimizer = mlx_opt.Muon(0.02, **options)
    for step in range(STEPS):
        w = optimizer.apply_gradients(muons_gradients(step), w)
        mx.eval(w, optimizer.state)
    return w


DECOUPLED = {"weight_decay": 0.1, "decoupled_weight_decay": True}


@pytest.mark.parametrize(
    ("name", "theirs", "ours"),
    [
        ("Muon", {"use_adjusted_lr": True}, {"adjust_lr": "match_rms_adamw"}),
        ("NorMuon", {"beta2": 0.9}, {"normuon": True, "beta2": 0.9}),
        ("NorMuon", {"nesterov": False}, {"normuon": True, "nesterov": False}),
        (
            "AdaMuon",
            {"betas": (0.9, 0.8)},
            {"adamuon": True, "beta2": 0.8, "momentum": 0.9, "nesterov": False}
            | {"adjust_lr": "match_rms_adamw"},
        ),
    ],
    ids=["Muon", "NorMuon", "NorMuon-plain", "AdaMuon"],
)
def test_muon_follows_pytorch_optimizers_iterations_in_float64(name, theirs, ours, monkeypatch):
    from pytorch_optimizer.optimizer.muon import adamuon, base, muon, normuon

    for module in (adamuon, base, muon, normuon):
        iterations = getattr(module, "zero_power_via_newton_schulz_5", None)
        if iterations is not None:
            exact = functools.partial(iterations, dtype=torch.float64)
            monkeypatch.setattr(module, "zero_power_via_newton_schulz_5", exact)
    parameters = {
        key: torch.tensor(wide(normal(*shape)), dtype=torch.float64)
        for key, shape in MATRICES.items()
    }
    group = {"params": [*parameters.values()], "use_muon": True, "lr": 0.02}
    optimizer = getattr(oracles, name)([group], weight_decay=0.1, **theirs)
    for step in range(STEPS):
        for key, g in muons_gradients(step).items():
            parameters[key].grad = torch.tensor(wide(g), dtype=torch.float64)
        optimizer.step()
    for key, x in our_muon(**DECOUPLED, **ours).items():
        expected = parameters[key].numpy()
        assert np.abs(wide(x) - expected).max() <= 2e-5 * np.abs(expected).max(), key


def test_muon_without_nesterovs_momentum_follows_optax():
    """With it theirs corrects the biases of the momentum and of the gradient differently."""
    optax = pytest.importorskip("optax", reason="optax is not installed")
    theirs = optax.contrib.muon(
        0.02, beta=0.9, nesterov=False, weight_decay=0.1, consistent_rms=0.2
    )
    w = {name: wide(normal(*shape)).astype(np.float32) for name, shape in MATRICES.items()}
    state = theirs.init(w)
    for step in range(STEPS):
        g = {name: wide(x).astype(np.float32) for name, x in muons_gradients(step).items()}
        updates, state = theirs.update(g, state, w)
        w = optax.apply_updates(w, updates)
    options = {"momentum": 0.9, "nesterov": False, "adjust_lr": "match_rms_adamw"}
    for name, x in our_muon(**DECOUPLED, **options).items():
        assert np.abs(wide(x) - np.array(w[name])).max() <= 5e-5, name
