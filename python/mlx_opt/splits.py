"""How Muon's matrices are split into blocks that are orthogonalized one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from .groups import Group


def groups_of(split: Any) -> list[Group]:
    """The groups that a constructor's `split` stands for.

    Raises:
        TypeError: It is not a dict.
    """
    if split is None:
        return []
    if not isinstance(split, Mapping):
        kind = type(split).__name__
        raise TypeError(f"Muon: split: expected a dict from patterns to blocks, got {kind}")
    return [Group(match, split=blocks) for match, blocks in split.items()]


def blocks_from(given: Any) -> tuple[int, ...]:
    """The numbers of rows of the blocks; one number is that of blocks of equal size.

    Raises:
        TypeError, ValueError: They are not positive ints.
    """
    if given is None:
        return ()
    blocks = (given,) if isinstance(given, int) else given
    if not isinstance(blocks, (list, tuple)) or not all(map(_is_int, blocks)):
        raise TypeError(f"split: expected an int, or the rows of each block, got {given!r}")
    if not blocks or min(blocks) < 1 or blocks is given and len(blocks) < 2:
        raise ValueError(f"split: expected 1 or more, or the rows of 2 or more blocks, got {given}")
    return tuple(blocks)


def check_fit(given: Any, path: str, array: mx.array) -> None:
    """Raise ValueError if a parameter cannot be split so. One that is no matrix is not split."""
    blocks = blocks_from(given)
    if not blocks or array.ndim < 2:
        return
    rows = array.shape[0]
    if (rows % blocks[0] if len(blocks) == 1 else rows - sum(blocks)) != 0:
        prefix = f"{path}: " if path else ""
        raise ValueError(f"{prefix}split {given}, parameter {array.shape}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
