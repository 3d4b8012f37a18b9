"""Those that are timed: each has the same values in arrays of its own, and takes steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from types import ModuleType
from typing import Protocol

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers.optimizers as stock
from mlx.utils import tree_unflatten

import mlx_opt

from .limit import Limit
from .options import OURS
from .products import Products
from .workloads import LEARNING_RATE, PUBLISHED, RULES, Model, Workload, call_text

LIMIT = "limit"
ADAMW = "adamw"
PRODUCTS = "products"
WEIGHTS_SEED, GRADIENTS_SEED = 0, 1


class Peer(Protocol):
    about: str
    """What is timed, in a line."""

    def step(self) -> None:
        """Take one step. It has been computed when this returns."""


class MLXPeer:
    """A training loop's ``optimizer.update`` and the evaluation of model and state."""

    def __init__(self, optimizers: ModuleType, workload: Workload) -> None:
        rule = RULES[workload.rule]
        name = rule.optimizer or workload.rule
        self.max_norm = rule.max_norm
        self.about = call_text(f"{_package(optimizers)}.{name}", rule.settings)
        if rule.max_norm is not None:
            self.about += f", max_norm={rule.max_norm}"
        self.optimizer = getattr(optimizers, name)(LEARNING_RATE, **rule.settings)
        self.model = nn.Module()
        for name, child in _tree(workload, WEIGHTS_SEED).items():
            self.model[name] = child
        self.gradients = _tree(workload, GRADIENTS_SEED)
        self.optimizer.init(self.model.trainable_parameters())
        mx.eval(self.optimizer.state)

    def step(self) -> None:
        self.update()
        mx.eval(self.model.parameters(), self.optimizer.state)
        mx.synchronize()

    def update(self) -> None:
        self.apply(self.gradients)

    def apply(self, gradients: dict) -> None:
        if self.max_norm is None:
            self.optimizer.update(self.model, gradients)
        elif isinstance(self.optimizer, mlx_opt.Optimizer):
            self.optimizer.update(self.model, gradients, max_norm=self.max_norm)
        else:
            gradients, _ = stock.clip_grad_norm(gradients, self.max_norm)
            self.optimizer.update(self.model, gradients)


class CompiledPeer(MLXPeer):
    """The same with the update in ``mx.compile``, model and state captured."""

    def __init__(self, optimizers: ModuleType, workload: Workload) -> None:
        super().__init__(optimizers, workload)
        self.about += " in mx.compile"
        state = [self.model.state, self.optimizer.state]
        self.compiled = mx.compile(self.apply, inputs=state, outputs=state)

    def update(self) -> None:
        self.compiled(self.gradients)


class AdamWPeer(MLXPeer):
    """mlx_opt's AdamW, for rules that are measured by it."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(mlx_opt, workload._replace(rule="AdamW"))


def values(model: Model, dtype: str, seed: int) -> list[mx.array]:
    """Evenly distributed values from -1 to 1; the same at every call."""
    key = mx.random.key(seed)
    arrays = []
    for shape in model.shapes.values():
        key, subkey = mx.random.split(key)
        array = mx.random.uniform(-1, 1, shape, key=subkey).astype(getattr(mx, dtype))
        mx.eval(array)
        arrays.append(array)
    return arrays


def _package(optimizers: ModuleType) -> str:
    return optimizers.__name__.removesuffix(".optimizers")


def _tree(workload: Workload, seed: int) -> dict:
    arrays = values(workload.model, workload.dtype, seed)
    return tree_unflatten(list(zip(workload.model.shapes, arrays, strict=True)))


def _torch_peer(workload: Workload, published: bool) -> Peer:
    from .torch_peer import TorchPeer

    make_values = partial(values, workload.model, workload.dtype)
    return TorchPeer(workload, make_values(WEIGHTS_SEED), make_values(GRADIENTS_SEED), published)


# In the order of the report.
PEERS: dict[str, Callable[[Workload], Peer]] = {
    OURS: partial(MLXPeer, mlx_opt),
    "mlx": partial(MLXPeer, stock),
    "compiled": partial(CompiledPeer, stock),
    "torch": partial(_torch_peer, published=False),
    "published": partial(_torch_peer, published=True),
    ADAMW: AdamWPeer,
    PRODUCTS: Products,
    LIMIT: Limit,
}


def measured_by(rule: str) -> str | None:
    """The peer whose time is a measure of the rule's; None for AdamW, which is the measure."""
    return {"AdamW": None, "Muon": PRODUCTS}.get(rule, ADAMW)


def has_meaning(peer: str, rule: str) -> bool:
    return peer not in (ADAMW, PRODUCTS) or measured_by(rule) == peer


def why_missing(peer: str, rule: str) -> str | None:
    """Why a peer cannot take part with a rule; None if it can."""
    if peer in ("mlx", "compiled"):
        return None if hasattr(stock, RULES[rule].optimizer or rule) else f"MLX has no {rule}"
    if peer not in ("torch", "published"):
        return None
    if find_spec("torch") is None:
        return "PyTorch is not installed"
    if peer == "torch" and RULES[rule].torch is None:
        return f"PyTorch has no {rule}"
    if peer == "published" and find_spec("pytorch_optimizer") is None:
        return "pytorch_optimizer is not installed"
    if peer == "published" and rule not in PUBLISHED:
        return f"pytorch_optimizer has nothing for {rule} that PyTorch has not"
    from .torch_peer import torch_device

    return None if torch_device() else "PyTorch has no device of the kind of MLX's default"
