"""The paths of parameters in models that :func:`mlx.nn.fully_shard` has wrapped."""

from __future__ import annotations

from typing import Any, NamedTuple

import mlx.nn as nn
from mlx.nn.layers import distributed

_WRAPPER: Any = getattr(distributed, "FullyShardedModule", ())  # MLX 0.32.3 may not have it
_TENSOR_PARALLEL = (
    distributed.AllToShardedLinear,
    distributed.ShardedToAllLinear,
    distributed.QuantizedAllToShardedLinear,
    distributed.QuantizedShardedToAllLinear,
)


class Names(NamedTuple):
    """How the paths of a tree of parameters are shown: without what MLX's wrappers put in."""

    wrappers: frozenset[str]
    """The paths of the modules that `fully_shard` has made."""

    def plain(self, path: str) -> str:
        """A path without the keys `module` of the wrappers."""
        return ".".join(self._parts(path))

    def is_split(self, path: str) -> bool:
        """True if each member has only its rows of the parameter."""
        return bool(self.wrappers) and self.plain(path) != path

    def _parts(self, path: str) -> list[str]:
        kept: list[str] = []
        seen: list[str] = []
        for key in path.split("."):
            if key != "module" or ".".join(seen) not in self.wrappers:
                kept.append(key)
            seen.append(key)
        return kept


def names_of(parameters: Any, members: int) -> Names:
    """The names of a model's parameters, or of a tree's.

    Raises:
        TypeError: The model has layers whose weights `shard_linear` or `shard_inplace` divided.
        ValueError: A tree may be that of a model that `fully_shard` has wrapped.
    """
    if members == 1:
        return Names(frozenset())
    if not isinstance(parameters, nn.Module):
        _refuse_wrapped(parameters, "")
        return Names(frozenset())
    wrappers = []
    for path, module in parameters.named_modules():
        if isinstance(module, _TENSOR_PARALLEL):
            raise TypeError(
                f"Sharded: {path}: {type(module).__name__} has a part of its weight on each "
                "member, which is not supported; use the optimizer without Sharded"
            )
        if isinstance(module, _WRAPPER):
            wrappers.append(path)
    return Names(frozenset(wrappers))


def _refuse_wrapped(tree: Any, path: str) -> None:
    items: Any = ()
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, (list, tuple)):
        items = enumerate(tree)
    for key, child in items:
        here = f"{path}.{key}" if path else str(key)
        if key == "module":
            raise ValueError(
                f"Sharded: {here}: a tree does not tell whether fully_shard has divided it; "
                "pass the model instead of its parameters"
            )
        _refuse_wrapped(child, here)
