"""What the parameters of a step are, as if they were whole on one process."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from .. import reserved
from ..base import Optimizer, shares_of
from ..fused import FusedOptimizer
from ..multi import MultiOptimizer
from ..muon import Muon
from ..state_dtypes import has_codes
from .fully_sharded import Names
from .plan import Leaf


def parts_of(optimizer: Optimizer) -> list[Any]:
    """The optimizers that take parts of a step."""
    return [share.optimizer for share in shares_of(optimizer, {})]


def prefixes_of(optimizer: Any, prefix: str = "") -> list[str]:
    """What the paths of the parameters of each part begin with in the optimizer's state."""
    if isinstance(optimizer, MultiOptimizer):
        members = enumerate(optimizer.optimizers)
        return [x for i, each in members for x in prefixes_of(each, f"{prefix}states.{i}.")]
    fallback = getattr(optimizer, "fallback", None)
    if fallback is None:
        return [prefix]
    return [prefix, *prefixes_of(fallback, f"{prefix}{reserved.KEY}.fallback.")]


def refuse_telemetry(optimizer: Any) -> None:
    """Raise TypeError if an optimizer takes norms, which would be of one member's elements."""
    if any(getattr(part, "_takes_norms", False) for part in parts_of(optimizer)):
        raise TypeError("Sharded: telemetry is not supported")


def divides_tensors(optimizer: Any) -> bool:
    """True if an optimizer's whole tensors are divided among the members, false if elements are.

    Raises:
        TypeError: Neither can be done.
    """
    name = type(optimizer).__name__
    if not isinstance(optimizer, FusedOptimizer) or not optimizer._uses_own_step():
        raise TypeError(f"Sharded: {name} has its own step, which cannot be divided")
    if optimizer._gives("stochastic_rounding"):
        raise TypeError("Sharded: an optimizer with stochastic_rounding is not supported")
    of_groups = [group.hyperparameters.get("state_dtype") for group in optimizer.groups]
    if any(map(has_codes, [optimizer.state_dtype, *of_groups])):
        raise TypeError("Sharded: an optimizer with a state_dtype of int8 is not supported")
    if optimizer._has_ema():
        raise TypeError("Sharded: an optimizer with ema_decay is not supported")
    if isinstance(optimizer, Muon):
        return True
    if optimizer._forms.sums:
        raise TypeError(f"Sharded: {name} sums over all tensors, which cannot be divided")
    if type(optimizer)._program_of is not FusedOptimizer._program_of:
        raise TypeError(f"Sharded: {name} has its own program, which cannot be divided")
    values = optimizer._values()
    return not all(
        optimizer._forms.form_of(values | flags).elementwise for flags in _flags_of(optimizer)
    )


def _flags_of(optimizer: FusedOptimizer) -> list[dict[str, Any]]:
    """The flags that differ from the optimizer's own values: none, and those of each group."""
    groups = [group._hyperparameters.items() for group in optimizer.groups]
    return [{}, *({name: x for name, x in each if isinstance(x, bool)} for each in groups)]


def flat(tree: Any, names: Names) -> dict[str, Any]:
    """The leaves of a tree or of a module's parameters, by path."""
    tree = tree.parameters() if isinstance(tree, nn.Module) else tree
    leaves: Any = tree_flatten(tree)
    return {names.plain(path): x for path, x in leaves}


def whole_shapes(
    gradients: Any, parameters: dict[str, Any], names: Names, members: int
) -> dict[str, tuple[int, ...]]:
    """The shapes that the gradients' parameters have as a whole, by path.

    Raises:
        KeyError, TypeError, ValueError: A gradient does not fit its parameter.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    leaves: Any = tree_flatten(gradients)
    for full_path, gradient in leaves:
        path = names.plain(full_path)
        if path not in parameters:
            raise KeyError(f"{path}: there is a gradient but no parameter")
        parameter = parameters[path]
        for x, what in ((gradient, "gradient"), (parameter, "parameter")):
            if not isinstance(x, mx.array):
                found = type(x).__name__
                raise TypeError(f"{path}: {what} must be an mlx.core.array, got {found}")
        if gradient.shape != parameter.shape:
            given, expected = tuple(gradient.shape), tuple(parameter.shape)
            raise ValueError(f"{path}: gradient {given}, parameter {expected}")
        rows = members if names.is_split(full_path) else 1
        shapes[path] = tuple(parameter.shape)
        if rows > 1:
            shapes[path] = (rows * parameter.shape[0], *parameter.shape[1:])
    return shapes


def leaves_of(
    optimizer: Optimizer,
    parameters: dict[str, mx.array],
    shapes: dict[str, tuple[int, ...]],
) -> list[Leaf]:
    """The leaves for parameters with these whole shapes, in their order.

    Assigns them to the groups of their optimizers.
    """
    split = {path for path, shape in shapes.items() if tuple(parameters[path].shape) != shape}
    whole = {
        path: mx.zeros(shape, parameters[path].dtype) if path in split else parameters[path]
        for path, shape in shapes.items()
    }
    tree = tree_unflatten([*whole.items()]) if whole else {}
    share_of: dict[str, int] = {}
    shares = shares_of(optimizer, tree)
    for index, share in enumerate(shares):
        part: Any = share.optimizer
        part._assign(share.gradients, tree, judges=False)
        own: Any = tree_flatten(share.gradients)
        share_of |= dict.fromkeys([path for path, _ in own], index)
    divides = [divides_tensors(share.optimizer) for share in shares]
    return [
        Leaf(
            path,
            shape,
            parameters[path].dtype,
            share_of[path],
            divides[share_of[path]],
            path in split,
        )
        for path, shape in shapes.items()
    ]
