"""Replaces mlx.optimizers by mlx_opt, for programs that are not to be changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.optimizers

import mlx_opt


def install() -> None:
    """Put mlx_opt's classes into the module ``mlx.optimizers``, for the rest of the process.

    Afterwards ``import mlx.optimizers as optim``, even an earlier one, and
    ``from mlx.optimizers import AdamW`` give mlx_opt's classes; so do
    ``mlx.optimizers.optimizers.AdamW`` and ``mlx.optimizers.schedulers``. A second call changes
    nothing.

    Call it first: names from an earlier ``from mlx.optimizers import AdamW``, classes derived from
    MLX's, and existing optimizers stay MLX's own. In ``sys.modules`` the submodules stay MLX's own
    too, because pickle looks for their classes there, and so does
    ``from mlx.optimizers.optimizers import AdamW``. New processes (the "spawn" of multiprocessing)
    must call this themselves.

    Example:
        >>> import mlx.optimizers as optim
        >>> import mlx_opt
        >>> mlx_opt.install()
        >>> optim.AdamW is mlx_opt.AdamW
        True
    """
    vars(mlx.optimizers).update(_replacements())


@contextmanager
def installed() -> Iterator[None]:
    """Within the block, mlx_opt's classes are in ``mlx.optimizers``, as :func:`install` puts them.

    At its end every replaced name has its old value again. Blocks may be nested and repeated, but
    they affect the whole process: blocks of several threads must not overlap. Optimizers made
    within the block stay mlx_opt's.

    Example:
        >>> import mlx.optimizers as optim
        >>> import mlx_opt
        >>> before = optim.AdamW
        >>> with mlx_opt.installed():
        ...     optimizer = optim.AdamW(learning_rate=1e-3)
        >>> type(optimizer) is mlx_opt.AdamW
        True
        >>> optim.AdamW is before
        True
    """
    names = vars(mlx.optimizers)
    replacements = _replacements()
    before = {name: names[name] for name in replacements}
    names.update(replacements)
    try:
        yield
    finally:
        names.update(before)


def _replacements() -> dict[str, Any]:
    """The public names of mlx.optimizers that mlx_opt defines too, with mlx_opt's values."""
    ours = {name: getattr(mlx_opt, name) for name in mlx_opt.__all__}
    own = {
        name: value
        for name, value in ours.items()
        if hasattr(mlx.optimizers, name) and _is_own(value)
    }
    return {**own, "optimizers": mlx_opt.optimizers, "schedulers": mlx_opt.schedulers}


def _is_own(value: Any) -> bool:
    return getattr(value, "__module__", "").partition(".")[0] == mlx_opt.__name__
