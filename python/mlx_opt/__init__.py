"""Fused, in-place optimizers for MLX: a drop-in for mlx.optimizers."""

from .tools import info

_error = info.import_error()
if _error is None:
    from mlx.optimizers.schedulers import (
        cosine_decay,
        exponential_decay,
        join_schedules,
        linear_schedule,
        step_decay,
    )

    from ._built import VERSION as __version__
    from ._ext import num_threads, set_num_threads
    from .adafactor import Adafactor
    from .base import Optimizer
    from .clipping import clip_grad_norm
    from .multi import MultiOptimizer
    from .muon import Muon
    from .optimizers import (
        SGD,
        AdaDelta,
        Adagrad,
        Adam,
        Adamax,
        AdamW,
        Lion,
        RMSprop,
    )
    from .tools.installation import install, installed
elif not info.running_as_command():  # `python -m mlx_opt info` says what is wrong
    raise _error

__all__ = [
    "AdaDelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Lion",
    "MultiOptimizer",
    "Muon",
    "Optimizer",
    "RMSprop",
    "SGD",
    "__version__",
    "clip_grad_norm",
    "cosine_decay",
    "exponential_decay",
    "install",
    "installed",
    "join_schedules",
    "linear_schedule",
    "num_threads",
    "set_num_threads",
    "step_decay",
]
