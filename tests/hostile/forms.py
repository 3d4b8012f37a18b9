"""In which forms a program runs: the optimizer and its place, how it is called, what is held."""

import shutil
from typing import Any, NamedTuple

import mlx.core as mx


class Rule(NamedTuple):
    """An optimizer, and what there is of it to be changed."""

    name: str
    options: dict[str, Any]
    moment: str | None
    """The name of an array in the state of a vector; None if it has none that is read."""

    changed: dict[str, Any]
    """Hyperparameters that keep the number of arrays in the state."""

    other: dict[str, Any]
    """Hyperparameters that make it another rule, or another number of arrays."""

    hyperparameter: str
    """One that a subclass can make a property of."""


FACTORED = {"relative_step": False, "scale_parameter": False}

RULES = {
    "SGD": Rule("SGD", {}, None, {"weight_decay": 0.3}, {"momentum": 0.9}, "momentum"),
    "momentum": Rule(
        "SGD", {"momentum": 0.9}, "v", {"momentum": 0.5}, {"momentum": 0.0}, "momentum"
    ),
    "nesterov": Rule(
        "SGD",
        {"momentum": 0.9, "nesterov": True},
        "v",
        {"weight_decay": 0.3},
        {"nesterov": False},
        "nesterov",
    ),
    "AdamW": Rule(
        "AdamW",
        # 1 - 0.999**step is not exact to 1e-5 in the float32 of mlx.optimizers.
        {"betas": [0.8, 0.95], "bias_correction": True},
        "m",
        {"betas": [0.5, 0.9], "eps": 1e-2},
        {"bias_correction": False},
        "betas",
    ),
    "Lion": Rule("Lion", {}, "m", {"betas": [0.5, 0.7]}, {"weight_decay": 0.2}, "betas"),
    "Adafactor": Rule(
        "Adafactor", FACTORED, "exp_avg_sq", {"decay_rate": -0.5}, {"beta_1": 0.9}, "decay_rate"
    ),
    "Adafactor-beta_1": Rule(
        "Adafactor",
        FACTORED | {"beta_1": 0.9},
        "exp_avg",
        {"clip_threshold": 0.5},
        {"beta_1": None},
        "beta_1",
    ),
    "Muon": Rule("Muon", {}, "v", {"momentum": 0.5}, {"nesterov": False}, "momentum"),
    "hook": Rule("Hook", {}, "h", {"factor": 0.5}, {"factor": 0.0}, "factor"),
}

PLACES = ("alone", "second part", "fallback")
WAYS = ("update", "lazy", "apply_gradients", "compiled")
OPTIONS = {
    "plain": {},
    "max_norm": {"max_norm": 1.0},
    "skip": {"skip_nonfinite": True},
    "skipped": {"max_norm": 1.0, "skip_nonfinite": True},  # the gradients are not finite
}
HELD = ("nothing", "gradients", "parameters", "moments", "views")


class Form(NamedTuple):
    rule: str
    place: str
    """Whether the optimizer is used alone, is a part of a MultiOptimizer, or Muon's fallback."""

    way: str
    option: str
    when: int
    """The step in which foreign code acts: the first, which makes the state, or the second."""

    held: str
    target: str
    """Which parameter is acted on: the first that a step sees, or the last."""

    call: int
    """How many calls of the foreign code go before the one that acts."""


AXES = Form(
    rule=tuple(RULES),
    place=PLACES,
    way=WAYS,
    option=tuple(OPTIONS),
    when=(0, 1),
    held=HELD,
    target=("first", "last"),
    call=(0, 1, 4),
)


def is_valid(form):
    # Muon's fallback is for vectors, which Muon itself takes too.
    if form.place == "fallback" and form.rule == "Muon":
        return False
    if form.way != "compiled":
        return True
    # Python runs while the step is traced, and what is held is not what is traced. mlx.optimizers
    # cannot look at the norm there.
    return (
        shutil.which("g++") is not None
        and form.when == 0
        and form.held == "nothing"
        and form.option in ("plain", "max_norm")
    )


def make_hook(package):
    """An optimizer of a user's own, with an array in its state."""

    class Hook(package.Optimizer):
        def __init__(self, learning_rate):
            super().__init__()
            self._maybe_schedule("learning_rate", learning_rate)
            self.factor = 0.9

        def init_single(self, parameter, state):
            state["h"] = mx.zeros_like(parameter)

        def apply_single(self, gradient, parameter, state):
            state["h"] = self.factor * state["h"] + gradient
            return parameter - self.learning_rate * state["h"]

    return Hook
