"""Fused, in-place optimizers for MLX: a drop-in for mlx.optimizers."""

import typing as _typing
import warnings as _warnings

from .tools import info

_error = info.import_error()
if _error is None:
    if _loss := info.loss():
        _warnings.warn(_loss, RuntimeWarning, stacklevel=2)
    from ._built import VERSION as __version__
    from ._ext import num_threads, set_num_threads
    from .eight_bits import Adam8bit, AdamW8bit, Lion8bit
    from .groups import Group, freeze, layer_decay, no_decay
    from .lookahead import Lookahead
    from .optimizers import DERIVED as _DERIVED
    from .optimizers import (
        SGD,
        AdaDelta,
        Adafactor,
        Adagrad,
        Adam,
        Adamax,
        AdamW,
        Lion,
        MultiOptimizer,
        Muon,
        Optimizer,
        RMSprop,
        clip_grad_norm,
    )
    from .schedulers import (
        cosine_decay,
        exponential_decay,
        join_schedules,
        linear_schedule,
        step_decay,
    )
    from .sharding.optimizer import Sharded
    from .tools.installation import install, installed
    from .tools.moving import state_from_optax, state_from_torch
    from .tools.plot import plot_schedule

    globals().update(_DERIVED)
    if _typing.TYPE_CHECKING:

        def __getattr__(name: str) -> _typing.Any: ...  # the derived classes
elif not info.running_as_command():  # `python -m mlx_opt info` says what is wrong
    raise _error

__all__ = [
    "AdaDelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "Adam8bit",
    "AdamW",
    "AdamW8bit",
    "Adamax",
    "Group",
    "Lion",
    "Lion8bit",
    "Lookahead",
    "MultiOptimizer",
    "Muon",
    "Optimizer",
    "RMSprop",
    "SGD",
    "Sharded",
    "__version__",
    "clip_grad_norm",
    "cosine_decay",
    "exponential_decay",
    "freeze",
    "install",
    "installed",
    "join_schedules",
    "layer_decay",
    "linear_schedule",
    "no_decay",
    "num_threads",
    "plot_schedule",
    "set_num_threads",
    "state_from_optax",
    "state_from_torch",
    "step_decay",
]
if _error is None:
    __all__ += list(_DERIVED)


def __dir__() -> list[str]:
    return __all__
