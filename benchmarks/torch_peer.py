"""PyTorch's optimizers and pytorch_optimizer's. Import this only where PyTorch is installed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import mlx.core as mx
import torch

import mlx_opt

from .workloads import LEARNING_RATE, PUBLISHED, RULES, Workload, call_text


def torch_device() -> str | None:
    """PyTorch's device of the kind of MLX's default; None if it has none."""
    if mx.default_device() == mx.cpu:
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else None


class TorchPeer:
    """`published`: of pytorch_optimizer."""

    def __init__(
        self,
        workload: Workload,
        parameters: list[mx.array],
        gradients: list[mx.array],
        published: bool,
    ) -> None:
        device = torch_device()
        assert device is not None
        package: Any = torch.optim
        if published:
            package = import_module("pytorch_optimizer")
            name, settings = PUBLISHED[workload.rule]
        else:
            rule = RULES[workload.rule].torch
            assert rule is not None
            name, settings = rule
            settings = {**settings, _implementation(name, workload.dtype, device): True}
        self.about = call_text(f"{package.__name__}.{name}", settings)
        torch.set_num_threads(mlx_opt.num_threads())
        self.device = torch.device(device)
        tensors = []
        while parameters:  # each array is freed as soon as it is copied
            parameter = torch.nn.Parameter(_copy(parameters.pop(), workload.dtype, self.device))
            parameter.grad = _copy(gradients.pop(), workload.dtype, self.device)
            tensors.append(parameter)
        self.optimizer = getattr(package, name)(tensors, lr=LEARNING_RATE, **settings)
        if name.startswith("ScheduleFree"):
            self.optimizer.train()

    def step(self) -> None:
        self.optimizer.step()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        elif self.device.type == "mps":
            torch.mps.synchronize()


def _implementation(name: str, dtype: str, device: str) -> str:
    """The fastest one that there is and that computes the rule."""
    fused = {"SGD", "Adam", "AdamW", "Adagrad"} if device == "cpu" else {"SGD", "Adam", "AdamW"}
    # PyTorch 2.13's fused SGD leaves most of such parameters as they were: pytorch issue 191763.
    broken = name == "SGD" and device == "cpu" and dtype != "float32"
    return "fused" if name in fused and not broken else "foreach"


def _copy(array: mx.array, dtype: str, device: torch.device) -> torch.Tensor:
    # By way of bytes: bfloat16 has no buffer format.
    view: Any = array.flatten().view(mx.uint8)
    data = bytearray(memoryview(view))
    tensor = torch.frombuffer(data, dtype=getattr(torch, dtype)).reshape(array.shape)
    return tensor.to(device, copy=True)
