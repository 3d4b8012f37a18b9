"""What the tests run over: one table of rules, options and dtypes, and the tools to compare with.

Values are drawn in NumPy from a seed, so that both optimizers and the reference see the same.
"""

import inspect
import math
import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as stock
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map, tree_unflatten

import mlx_opt
from mlx_opt import formulas, references

DTYPES = [mx.float32, mx.float16, mx.bfloat16]


class Case(NamedTuple):
    """A rule with the options of its constructor, except the learning rate."""

    rule: str
    options: dict[str, Any] = {}

    def __str__(self):
        return "-".join([self.rule, *(f"{k}={v}" for k, v in self.options.items())])

    def ours(self, learning_rate):
        return getattr(mlx_opt, self.rule)(learning_rate, **self.options)

    def stock(self, learning_rate):
        if self.is_in_stock:
            return getattr(stock, self.rule)(learning_rate, **self.options)
        return Plain(self, learning_rate)

    @property
    def is_in_stock(self):
        """True if mlx.optimizers has the rule with these options."""
        cls = getattr(stock, self.rule, None)
        return cls is not None and {*self.options} <= {*inspect.signature(cls).parameters}

    @property
    def formats(self):
        """The slots whose dtype is set by the rule, not by the parameter's and the gradient's."""
        own = {
            "AdamWScheduleFree": ["z"],
            "AdEMAMix": ["m2"],
            "GPAAdamW": ["z"],
            "MADGRAD": ["s", "v", "x0"],
            "DAdaptAdam": ["m", "v", "s"],
            "Prodigy": ["m", "v", "s"],
            "RAdamScheduleFree": ["z"],
            "SGDScheduleFree": ["z"],
            "SimplifiedAdEMAMix": ["m"],
            "StableAdamW": ["v"],
        }
        return dict.fromkeys(own.get(self.rule, []), mx.float32)

    @property
    def unset(self):
        """The slots that have no value before the first step."""
        own = {
            "AdamWScheduleFree": ["z"],
            "ADOPT": ["v"],
            "Adan": ["previous"],
            "GPAAdamW": ["z"],
            "MADGRAD": ["x0"],
            "MARS": ["previous"],
            "MARSLion": ["previous"],
            "Prodigy": ["p0"],
            "RAdamScheduleFree": ["z"],
            "SGDScheduleFree": ["z"],
            "Yogi": ["v"],
        }
        return own.get(self.rule, [])

    @property
    def slots(self):
        return references.slots(self.rule, self.options)

    @property
    def keeps(self):
        """The numbers that the root of the state keeps from step to step."""
        return list(references.begin_kept(self.rule))

    def kept_after(self, steps, learning_rate):
        """The numbers that the state keeps, after `steps` steps of the same learning rate."""
        kept = references.begin_kept(self.rule)
        for step in range(1, steps + 1):
            kept = self.next_kept(kept, step, learning_rate)
        return kept

    def next_kept(self, kept, step, learning_rate, xp=np):
        """The numbers that the state keeps in a step, from those before it; for a rule of sums over
        all tensors, of some sums."""
        sums = {"numerator": 0.01, "denominator": 1.0} if self.rule in formulas.SUMS else None
        return references.next_kept(
            self.rule, kept, step, learning_rate, self.options, xp, sums=sums
        )

    def begin_after(self, optimizer, steps):
        """Set the root of an optimizer's state as it is after `steps` steps."""
        optimizer.state["step"] = mx.array(steps, mx.uint64)
        if self.keeps:
            kept = self.kept_after(steps, optimizer.learning_rate.item())
            optimizer.state.update({name: mx.array(x) for name, x in kept.items()})

    def is_signed(self, name):
        """False for a slot that holds a mean or a sum of squares or of sizes."""
        signed = {"Adan": ["v"], "MADGRAD": ["s", "x0"]}.get(self.rule, [])
        return name.startswith(("m", "z", "previous")) or name in signed

    def reference(self, w, g, state, step, learning_rate, kept=None):
        """One step in float64. `kept`: the numbers that the state keeps in this step, if not all
        steps had the same learning rate."""
        rule = references.REFERENCES[self.rule]
        options = self.options | (kept or {})
        return rule(w, g, state, step, learning_rate=learning_rate, **options)


def is_lazy(x):
    """True if an array is still to be evaluated, as the results of a step in a graph are."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.dot"
        mx.export_to_dot(str(path), x)
        return "label" in path.read_text()


def nadam_momentum(case, step):
    beta1 = case.options.get("betas", (0.9, 0.999))[0]
    decay = case.options.get("momentum_decay", 4e-3)
    return beta1 * (1 - 0.5 * 0.96 ** (step * decay))


def mu_product(case, steps):
    """NAdam's product of the momenta of the first `steps` steps."""
    return math.prod(nadam_momentum(case, i) for i in range(1, steps + 1))


def assert_goes_on_inside_compile(case, initialized, skipped, steps, tolerance):
    """Compare captured steps, of which number `skipped` has a NaN, with those of
    `apply_gradients`; return both optimizers."""
    optimizer, plain = case.ours(0.01), case.ours(0.01)
    model = nn.Linear(8, 4)
    model.update(tree_map(lambda x: normal(*x.shape, seed=3), model.parameters()))
    expected = tree_map(mx.array, model.parameters())
    if initialized:
        optimizer.init(model.trainable_parameters())
    state, traces = [model.state, optimizer.state], []

    def run(g):
        traces.append(1)
        optimizer.update(model, g, skip_nonfinite=True)

    step = mx.compile(run, inputs=state, outputs=state)
    for number in range(steps):
        g = tree_map(lambda x, number=number: normal(*x.shape, seed=10 + number), expected)
        g["weight"] = g["weight"] * (float("nan") if number == skipped else 1)
        step(g)
        expected = plain.apply_gradients(g, expected, skip_nonfinite=True)
    assert_close(model.parameters(), expected, tolerance)
    assert len(traces) <= 3
    return optimizer, plain


class Plain(stock.Optimizer):
    """A rule that mlx.optimizers does not have, written in its style as a graph of operations."""

    def __init__(self, case, learning_rate):
        super().__init__()
        self._maybe_schedule("learning_rate", learning_rate)
        self.case = case
        self.state.update({k: mx.array(x) for k, x in references.begin_kept(case.rule).items()})

    def apply_gradients(self, gradients, parameters):
        if self.case.keeps:
            rate = self._schedulers.get("learning_rate", lambda step: self.learning_rate)(self.step)
            kept = {name: self.state[name] for name in self.case.keeps}
            self.state.update(self.case.next_kept(kept, self.step + 1, rate, mx))
        return super().apply_gradients(gradients, parameters)

    def init_single(self, parameter, state):
        for name in self.case.slots:
            dtype = mx.result_type(parameter, self.case.formats.get(name, parameter))
            first = float("nan") if name in self.case.unset else 0.0
            state[name] = mx.full(parameter.shape, first, dtype)

    def apply_single(self, gradient, parameter, state):
        before = dict(state)
        new, after = formulas.FORMULAS[self.case.rule](
            mx,
            parameter,
            gradient,
            before,
            self.step,
            learning_rate=self.learning_rate,
            **self.case.options,
            **{name: self.state[name] for name in self.case.keeps},
        )
        state.update(after)
        if any(x.dtype not in DTYPES for x in (gradient, parameter, *before.values())):
            return new
        for name, x in after.items():
            promoted = mx.result_type(before[name], gradient)
            state[name] = x.astype(self.case.formats.get(name, promoted))
        promoted = mx.result_type(parameter, gradient, *state.values())
        return new.astype(parameter.dtype if self.case.formats else promoted)


CASES = [
    Case("SGD"),
    Case("SGD", {"weight_decay": 0.1}),
    Case("SGD", {"momentum": 0.9}),
    Case("SGD", {"momentum": 0.9, "weight_decay": 0.1, "dampening": 0.3}),
    Case("SGD", {"momentum": 0.8, "dampening": -0.5}),
    Case("SGD", {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True}),
    Case("SGD", {"momentum": 0.9, "weight_decay": 0.1, "weight_decay_kind": "independent"}),
    Case(
        "SGD",
        {
            "momentum": 0.9,
            "weight_decay": 0.1,
            "weight_decay_kind": "decoupled",
            "cautious_weight_decay": True,
        },
    ),
    Case(
        "SGD",
        {
            "momentum": 0.9,
            "nesterov": True,
            "weight_decay": 0.1,
            "weight_decay_kind": "corrected",
            "max_learning_rate": 0.02,
        },
    ),
    Case("RMSprop"),
    Case("RMSprop", {"alpha": 0.9, "eps": 1e-3}),
    Case("Adagrad"),
    Case("Adagrad", {"eps": 1e-3}),
    Case("AdaDelta"),
    Case("AdaDelta", {"rho": 0.8, "eps": 1e-3}),
    Case("Adam"),
    Case("Adam", {"betas": (0.8, 0.95), "eps": 1e-5, "bias_correction": True}),
    Case("AdamW"),
    Case("AdamW", {"weight_decay": 0.1}),
    Case("AdamW", {"betas": (0.8, 0.99), "weight_decay": 0.1, "bias_correction": True}),
    Case("AdamW", {"weight_decay": 0.1, "nesterov": True, "bias_correction": True}),
    Case("AdamW", {"weight_decay": 0.1, "cautious_weight_decay": True}),
    Case("AdamW", {"weight_decay": 0.1, "weight_decay_kind": "coupled"}),
    Case(
        "AdamW",
        {"weight_decay": 0.1, "weight_decay_kind": "corrected", "max_learning_rate": 0.02},
    ),
    Case("AdamW", {"weight_decay": 0.1, "amsgrad": True, "bias_correction": True}),
    Case("AdamW", {"weight_decay": 0.1, "cautious": True, "bias_correction": True}),
    Case("Adam", {"nesterov": True}),
    Case("Adam", {"weight_decay": 0.1, "amsgrad": True}),
    Case("Adamax"),
    Case("Adamax", {"betas": (0.8, 0.95), "eps": 1e-5}),
    Case("Lion"),
    Case("Lion", {"betas": (0.8, 0.95), "weight_decay": 0.1}),
    Case("Lion", {"weight_decay": -1.0}),
    Case(
        "Lion",
        {
            "weight_decay": 0.1,
            "weight_decay_kind": "corrected",
            "max_learning_rate": 0.02,
            "cautious_weight_decay": True,
        },
    ),
    Case("Lion", {"weight_decay": 0.1, "weight_decay_kind": "coupled"}),
    Case("Lion", {"weight_decay": 0.1, "cautious": True}),
    Case("Lamb"),
    Case("Lamb", {"betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1}),
    Case("Lamb", {"weight_decay": 0.0}),
    Case("AdamH"),
    Case("AdamH", {"betas": (0.8, 0.99), "eps": 1e-4}),
    Case("LARS"),
    Case(
        "LARS",
        {"weight_decay": 0.1, "trust_coefficient": 0.02, "momentum": 0.5, "nesterov": True},
    ),
    Case("LARS", {"eps": 0.1}),
    Case("StableAdamW"),
    Case("StableAdamW", {"betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1}),
    Case("MARS"),
    Case("MARS", {"betas": (0.8, 0.95), "eps": 1e-5, "weight_decay": 0.1, "gamma": 0.1}),
    Case("MARSLion"),
    Case("MARSLion", {"beta": 0.8, "weight_decay": 0.1, "gamma": 0.1}),
    Case("Signum"),
    Case("Signum", {"beta": 0.8, "weight_decay": 0.1}),
    Case("AdEMAMix"),
    Case(
        "AdEMAMix",
        {"betas": (0.8, 0.95, 0.999), "alpha": 5.0, "eps": 1e-5, "weight_decay": 0.1},
    ),
    Case("AdEMAMix", {"alpha_warmup": 30, "beta3_warmup": 60}),
    Case("Adan"),
    Case("Adan", {"betas": (0.9, 0.8, 0.95), "eps": 1e-5, "weight_decay": 0.1}),
    Case("Adan", {"weight_decay": 0.1, "no_prox": True}),
    Case("NAdam"),
    Case("NAdam", {"betas": (0.8, 0.95), "eps": 1e-5, "momentum_decay": 0.5}),
    Case("NAdam", {"weight_decay": 0.1}),
    Case("NAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    Case("RAdam"),
    Case("RAdam", {"betas": (0.8, 0.95), "eps": 1e-5}),
    Case("RAdam", {"weight_decay": 0.1}),
    Case("RAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    Case("ADOPT"),
    Case("ADOPT", {"betas": (0.7, 0.99), "eps": 1e-3, "weight_decay": 0.1}),
    Case("ADOPT", {"weight_decay": 0.1, "decouple": True, "clip_exponent": 0.3}),
    Case("ADOPT", {"clip": False}),
    Case("AdamAtan2"),
    Case("AdamAtan2", {"betas": (0.8, 0.95), "weight_decay": 0.1, "a": 2.0, "b": 0.5}),
    Case("LaProp"),
    Case("LaProp", {"betas": (0.8, 0.95), "eps": 1e-5, "weight_decay": 0.1}),
    Case("QHAdam"),
    Case("QHAdam", {"betas": (0.7, 0.95), "nus": (0.7, 0.9), "eps": 1e-5, "weight_decay": 0.1}),
    Case("QHAdam", {"nus": (0.7, 1.0), "weight_decay": 0.1, "decouple_weight_decay": True}),
    Case("AdaBelief"),
    Case("AdaBelief", {"betas": (0.8, 0.95), "eps": 1e-8, "weight_decay": 0.1}),
    Case("Yogi"),
    Case(
        "Yogi",
        {"betas": (0.8, 0.95), "eps": 1e-5, "weight_decay": 0.1, "initial_accumulator": 0.1},
    ),
    Case("DiffGrad"),
    Case("DiffGrad", {"betas": (0.7, 0.95), "eps": 1e-5, "weight_decay": 0.1}),
    Case("SignSGD"),
    Case("SignSGD", {"weight_decay": 0.1}),
    Case("SGDScheduleFree"),
    Case(
        "SGDScheduleFree",
        {
            "momentum": 0.7,
            "weight_decay": 0.1,
            "warmup_steps": 5,
            "r": 1.0,
            "weight_lr_power": 1.0,
        },
    ),
    Case("AdamWScheduleFree"),
    Case(
        "AdamWScheduleFree",
        {
            "betas": (0.7, 0.99),
            "eps": 1e-3,
            "weight_decay": 0.1,
            "warmup_steps": 5,
            "r": 1.0,
            "weight_lr_power": 1.0,
        },
    ),
    Case("RAdamScheduleFree"),
    Case(
        "RAdamScheduleFree",
        {
            "betas": (0.7, 0.99),
            "eps": 1e-3,
            "weight_decay": 0.1,
            "silent_sgd_phase": False,
            "r": 1.0,
            "weight_lr_power": 1.0,
        },
    ),
    Case("GPAAdamW"),
    Case(
        "GPAAdamW",
        {
            "betas": (0.8, 0.95),
            "eps": 1e-5,
            "weight_decay": 0.1,
            "train_interp_coeff": 0.5,
            "eval_interp_coeff": 0.9,
        },
    ),
    Case("GPAAdamW", {"weight_decay": 0.1, "use_wd_on_y": True}),
    Case("SimplifiedAdEMAMix"),
    Case(
        "SimplifiedAdEMAMix",
        {"betas": (0.8, 0.9), "alpha": 5.0, "eps": 1e-5, "weight_decay": 0.1},
    ),
    Case("SimplifiedAdEMAMix", {"beta1_warmup": 30, "min_beta1": 0.8}),
    Case("MADGRAD"),
    Case("MADGRAD", {"momentum": 0.5, "weight_decay": 0.1, "eps": 1e-3}),
]

# Rules of sums over all tensors, whose numbers depend on the gradients of all steps.
SUMMING = [
    Case("Prodigy"),
    Case(
        "Prodigy",
        {
            "betas": (0.8, 0.95),
            "beta3": 0.9,
            "eps": 1e-5,
            "weight_decay": 0.1,
            "d0": 1e-4,
            "growth_rate": 1.5,
        },
    ),
    Case("Prodigy", {"weight_decay": 0.1, "decouple": False, "use_bias_correction": True}),
    Case("Prodigy", {"safeguard_warmup": True, "d_coef": 2.0}),
    Case("DAdaptAdam"),
    Case(
        "DAdaptAdam",
        {
            "betas": (0.8, 0.95),
            "eps": 1e-5,
            "weight_decay": 0.1,
            "use_bias_correction": True,
            "d0": 1e-4,
        },
    ),
    Case("DAdaptAdam", {"weight_decay": 0.1, "decouple": True, "growth_rate": 1.5}),
]

# Elementwise rules have one driver. Runs for what does not depend on the arithmetic, as the
# sanitizers', need those that differ in the number and kind of their slots.
if os.environ.get("MLX_OPT_FEW_RULES"):
    FEW = {"SGD", "SignSGD", "Lion", "AdamW", "AdEMAMix", "Adan", "NAdam", "MADGRAD", "Lamb"}
    CASES = [case for case in CASES if case.rule in FEW]

# One case a rule and form of it, for behaviours that do not depend on the options.
RULES = [
    Case(rule, options)
    for rule, options in references.CASES
    if references.is_any_shape(rule) and any(case.rule == rule for case in CASES)
]

# Those that differ most, where each case costs seconds of compilation.
SLOW_SUBSET = [
    next(case for case in reversed(RULES) if case.rule == rule)
    for rule in ("SGD", "AdamW", "Lion", "AdEMAMix")
]

HALVES = [mx.float16, mx.bfloat16]


def dtype_name(dtype):
    return str(dtype).removeprefix("mlx.core.")


each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_rule = pytest.mark.parametrize("case", RULES, ids=str)
each_elementwise = pytest.mark.parametrize(
    "case", [case for case in RULES if references.is_elementwise(*case)], ids=str
)
each_of_slow_subset = pytest.mark.parametrize("case", SLOW_SUBSET, ids=str)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
each_half = pytest.mark.parametrize("dtype", HALVES, ids=dtype_name)


def falling(step):
    """A schedule that accepts a Python number or an array."""
    return 0.01 / (1 + 0.1 * step)


each_learning_rate = pytest.mark.parametrize(
    "learning_rate", [0.01, falling], ids=["constant", "scheduled"]
)


def at_step(learning_rate, step):
    """The learning rate of the step that follows `step` done ones."""
    return learning_rate(step) if callable(learning_rate) else learning_rate


def normal(*shape, seed=0, scale=1.0, dtype=mx.float32):
    """An evaluated array of normal values, of its own seed."""
    values = np.random.default_rng([seed, *shape]).normal(size=shape) * scale
    x = mx.array(np.asarray(values, np.float32)).astype(dtype)
    mx.eval(x)
    return x


def copied(x):
    """An evaluated copy in a row-contiguous buffer of its own."""
    values = np.array(x.astype(mx.float32), order="C")  # else NumPy keeps the strides, and MLX too
    copy = mx.array(values).astype(x.dtype)
    mx.eval(copy)
    return copy


def for_compile(tree):
    """A tree without what mx.compile cannot have: on CUDA, a kernel that it fuses of operations on
    an empty array ends the process (MLX 0.32.4)."""
    if mx.default_device().type == mx.cpu or not mx.cuda.is_available():
        return tree
    return tree_unflatten([(path, x) for path, x in tree_flatten(tree) if x.size])


def wide(x):
    """An array's values in float64."""
    return np.array(x.astype(mx.float32)).astype(np.float64)


def ulp(x, dtype):
    """The spacing of `dtype` at float64 values."""
    return references.ulp(x, dtype_name(dtype))


def rounded(x, dtype):
    """float64 values rounded once to `dtype`, ties to even; still float64."""
    return references.rounded(x, dtype_name(dtype))


def exact_step(case, w, g, state, step, learning_rate, stored=None, kept=None):
    """The float64 step and the error that float32 may cause, for "w" and each slot by name.

    `stored`: the arrays of the state after the step, which a rule of two passes needs. `kept`: the
    numbers that the state keeps in this step, if not all steps had the same learning rate.
    """
    options = {"learning_rate": learning_rate} | case.options | (kept or {})
    if stored is not None:
        stored = {name: wide(stored[name]) for name in case.slots}
    return references.exact_step(case.rule, w, g, state, step, options, stored)


def assert_exact(got, exact, error):
    """`got` is `exact` within `error`, rounded once to the dtype of `got`."""
    dtype, got = got.dtype, wide(got)
    nan, infinite = np.isnan(exact), np.isinf(exact)
    assert np.array_equal(np.isnan(got), nan)
    assert np.array_equal(got[infinite], exact[infinite])
    rest = ~nan & ~infinite
    assert np.all((rounded(exact - error, dtype) <= got)[rest])
    assert np.all((got <= rounded(exact + error, dtype))[rest])


def flat(tree):
    """The leaves of a tree by path."""
    return dict(tree_flatten(tree))


def signature(tree):
    """Path, shape and dtype of each leaf, in the tree's order."""
    return [(path, leaf.shape, leaf.dtype) for path, leaf in tree_flatten(tree)]


def same_bits(x, y):
    """True if two arrays are of one dtype and shape and equal in every bit."""
    if x.dtype != y.dtype or x.shape != y.shape:
        return False
    return bits(x) == bits(y)


def bits(x):
    """An array's bytes, in row-major order."""
    words = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32, 8: mx.uint64}[x.dtype.size]
    return np.array(mx.contiguous(x).view(words)).tobytes()


def assert_same(got, expected):
    """Two trees of arrays have the same paths, dtypes, shapes and bits."""
    assert signature(got) == signature(expected)
    for (path, x), (_, y) in zip(tree_flatten(got), tree_flatten(expected), strict=True):
        assert same_bits(x, y), path


def assert_close(got, expected, tolerance=1e-6):
    """Two trees agree, of the same paths, dtypes and shapes; `tolerance` of each leaf's largest."""
    assert signature(got) == signature(expected)
    for (path, x), (_, y) in zip(tree_flatten(got), tree_flatten(expected), strict=True):
        x, y = wide(x), wide(y)
        if y.size:
            scale = np.abs(y).max()
            assert np.abs(x - y).max() <= tolerance * scale, path
