"""What is timed: a rule on the parameters of a model. Knows names and shapes, and no peer."""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

from mlx_opt import _rules

LEARNING_RATE = 1e-3
ITEMSIZES = {"float32": 4, "float16": 2, "bfloat16": 2}


class Rule(NamedTuple):
    """An optimizer with its settings; betas, eps and the like are the defaults of each library."""

    slots: int
    """The state's arrays of the parameter's size."""

    settings: dict[str, Any]
    torch: tuple[str, dict[str, Any]] | None
    """The class and the settings in torch.optim with the same traffic."""

    passes: int | None = None
    """How often an array of the parameter's size is read or written; None where each array is read
    once and all but the gradient are written."""

    optimizer: str | None = None
    """The optimizer's class, where that is not the rule's name."""

    max_norm: float | None = None
    """What gradients are clipped to."""

    wide: int = 0
    """How many of the slots are float32 in half precision too."""


RULES = {
    "SGD": Rule(1, {"momentum": 0.9}, ("SGD", {"momentum": 0.9})),
    "RMSprop": Rule(1, {}, ("RMSprop", {})),
    "Adagrad": Rule(1, {}, ("Adagrad", {})),
    "AdaDelta": Rule(2, {}, ("Adadelta", {})),
    "Adam": Rule(2, {"bias_correction": True}, ("Adam", {})),
    "AdamW": Rule(2, {"bias_correction": True, "weight_decay": 0.01}, ("AdamW", {})),
    "Adamax": Rule(2, {}, ("Adamax", {})),
    "Lion": Rule(1, {"weight_decay": 0.01}, None),
    # Parameter, slots and gradient for the state; the first three again for the parameter.
    "Lamb": Rule(2, {}, None, passes=10),
    "AdamH": Rule(2, {}, None, passes=10),
    # Without the parameter in the first pass.
    "StableAdamW": Rule(2, {}, None, passes=9, wide=1),
    # Parameter and gradient for the norms, then all for the step.
    "LARS": Rule(1, {}, None, passes=7),
    # The last two gradients for the norm, then all for the step.
    "MARS": Rule(3, {}, None, passes=11),
    "MARSLion": Rule(2, {}, None, passes=9),
    # Parameter, gradient and two slots for the sums over all tensors, then all for the step.
    "DAdaptAdam": Rule(3, {}, None, passes=13, wide=3),
    "Prodigy": Rule(4, {}, None, passes=15, wide=3),
    # The gradient is read for the norm too.
    "AdamW-clipped": Rule(
        2,
        {"bias_correction": True, "weight_decay": 0.01},
        None,
        passes=8,
        optimizer="AdamW",
        max_norm=1.0,
    ),
    # The gradient for the means, it and the parameter for root mean squares, both for the update.
    "Adafactor": Rule(0, {}, ("Adafactor", {}), passes=6),
    # Momentum and descent; not the products between them.
    "Muon": Rule(1, {}, None, passes=8),
}
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        name: (name, {})
        for name in (
            *("AdaBelief", "Adan", "AdEMAMix", "ADOPT", "DAdaptAdam", "DiffGrad", "Lamb", "LARS"),
            *("LaProp", "Lion", "MADGRAD", "MARS", "Prodigy", "QHAdam", "StableAdamW", "Yogi"),
        )
    },
    "AdamWScheduleFree": ("ScheduleFreeAdamW", {}),
    "MARSLion": ("MARS", {"mars_type": "lion"}),
    "RAdamScheduleFree": ("ScheduleFreeRAdam", {}),
    "SGDScheduleFree": ("ScheduleFreeSGD", {}),
    "SignSGD": ("SignSGD", {"momentum": 0.0}),
    "Signum": ("SignSGD", {}),
}
"""The class in pytorch_optimizer and its settings, of rules that PyTorch does not have."""
TORCH: dict[str, tuple[str, dict]] = {"NAdam": ("NAdam", {}), "RAdam": ("RAdam", {})}
_DESCRIBED: Any = _rules.RULES
for _described in _DESCRIBED:
    _name = _described["optimizer"]
    if _name not in RULES and _described["elementwise"]:
        _formats = [slot[6] for slot in _described["slots"]]
        RULES[_name] = Rule(len(_formats), {}, TORCH.get(_name), wide=_formats.count("float32"))

ALL = [rule for rule in RULES if rule != "Muon"]
"""What ``--rule all`` means: Muon's products take MLX's CPU build minutes on gpt2."""


def call_text(name: str, settings: dict[str, Any]) -> str:
    return f"{name}({', '.join(f'{key}={value}' for key, value in settings.items())})"


class Model(NamedTuple):
    """The shapes of a model's parameters by their paths."""

    name: str
    shapes: dict[str, tuple[int, ...]]

    @property
    def size(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())


class Workload(NamedTuple):
    rule: str
    model: Model
    dtype: str

    @property
    def arrays(self) -> int:
        """Arrays a step touches for each parameter: itself, its slots and its gradient."""
        return RULES[self.rule].slots + 2

    @property
    def itemsize(self) -> int:
        return ITEMSIZES[self.dtype]

    @property
    def resident_bytes(self) -> int:
        return self.model.size * (self.arrays * self.itemsize + self._widened)

    @property
    def bytes_moved(self) -> int:
        """Bytes a step has to move."""
        passes = RULES[self.rule].passes or 2 * self.arrays - 1
        return self.model.size * (passes * self.itemsize + 2 * self._widened)

    @property
    def _widened(self) -> int:
        """Bytes of a parameter's float32 slots beyond those of slots of the parameter's dtype."""
        return RULES[self.rule].wide * (4 - self.itemsize)


def transformer(layers: int, width: int, vocabulary: int, context: int) -> dict[str, tuple]:
    """The parameters of a GPT-2 with its output tied to its token embedding."""
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (vocabulary, width),
        "wpe.weight": (context, width),
    }
    for layer in range(layers):
        block = f"blocks.{layer}"
        shapes |= _norm(f"{block}.ln1", width)
        shapes |= _linear(f"{block}.attention.qkv", width, 3 * width)
        shapes |= _linear(f"{block}.attention.out", width, width)
        shapes |= _norm(f"{block}.ln2", width)
        shapes |= _linear(f"{block}.mlp.up", width, 4 * width)
        shapes |= _linear(f"{block}.mlp.down", 4 * width, width)
    return shapes | _norm("ln", width)


def _linear(path: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{path}.weight": (outputs, inputs), f"{path}.bias": (outputs,)}


def _norm(path: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{path}.weight": (width,), f"{path}.bias": (width,)}


MODELS = {
    "gpt2": transformer(layers=12, width=768, vocabulary=50257, context=1024),
    "small": transformer(layers=4, width=256, vocabulary=5000, context=256),
    "scalars": {f"scalars.{i}": (1,) for i in range(288)},
}
CUSTOM = re.compile(r"(?:(?P<count>[1-9]\d*)\*)?(?P<shape>[1-9]\d*(?:x[1-9]\d*)*)")


def model_named(text: str) -> Model:
    """A model by its name, or from shapes such as ``24*1024x1024,24*1024``.

    Raises:
        ValueError: ``text`` is neither.
    """
    if text in MODELS:
        return Model(text, MODELS[text])
    shapes: list[tuple[int, ...]] = []
    for part in text.split(","):
        match = CUSTOM.fullmatch(part)
        if not match:
            raise ValueError(
                f"there is no model {text!r}: choose from {', '.join(MODELS)}, or give shapes, "
                "for example 24*1024x1024,24*1024"
            )
        shape = tuple(int(extent) for extent in match["shape"].split("x"))
        shapes += [shape] * int(match["count"] or 1)
    return Model(text, {f"tensors.{i}": shape for i, shape in enumerate(shapes)})
