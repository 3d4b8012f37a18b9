"""The constructors of mlx.optimizers' classes, with what mlx_opt adds."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from . import docstrings, ema
from .hyperparameters import first_value, has_schedule

COMMON: dict[str, Any] = {
    "groups": (),
    "master_weights": None,
    **ema.DEFAULTS,
    "state_dtype": None,
    "stochastic_rounding": False,
    "rounding_seed": 0,
    "accumulate": 1,
    "accumulate_dtype": None,
}
"""The keyword arguments of every optimizer that has a rule, with their defaults."""


def bound(
    signature: inspect.Signature, name: str, *args: Any, **kwargs: Any
) -> inspect.BoundArguments:
    """The arguments of a constructor; an error names the class."""
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from None


def constructor(cls: type, additions: Mapping[str, Any] = {}) -> Callable[..., None]:  # noqa: B006
    """The constructor of an optimizer of mlx.optimizers, with `groups` and attributes added.

    `additions`: the attributes, with their defaults.
    """
    inherited = cls.__init__  # type: ignore[misc]
    signature = inspect.signature(inherited)
    defaults = {**additions, **COMMON}

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        added = {name: kwargs.pop(name, default) for name, default in defaults.items()}
        given = bound(signature, type(self).__name__, self, *args, **kwargs).arguments
        scheduled = {name for name in self._forms.attributes if has_schedule(given.get(name))}
        # mlx.optimizers checks its arguments, so it gets the first values of schedules.
        inherited(**{**given, **{name: first_value(given[name]) for name in scheduled}})
        for name in scheduled:
            setattr(self, name, given[name])
        for name, default in additions.items():
            setattr(self, name, bool(added[name]) if isinstance(default, bool) else added[name])
        self._set_common(added)

    keyword = inspect.Parameter.KEYWORD_ONLY
    own = [inspect.Parameter(name, keyword, default=default) for name, default in defaults.items()]
    parameters = [*signature.parameters.values(), *own]
    __init__.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return __init__


_ADDITIONS = {
    "nesterov": "Nesterov's momentum, as in NadamW.",
    "amsgrad": "divide by the largest mean of squares so far.",
    "cautious": "step only by the elements of the update that agree in sign with the gradient.",
    "weight_decay": "a decay of the parameters.",
    "weight_decay_kind": '"coupled", "decoupled", "independent" or "corrected".',
    "max_learning_rate": "the greatest of the run, for corrected decay.",
    "cautious_weight_decay": "decay only elements whose update and parameter agree in sign.",
    "maximize": "ascend: negate the gradients.",
}


_EMA = [
    "ema_decay (optional): keep an exponential moving average of the weights with this decay,",
    "  a number, a schedule or an array; see :meth:`ema_parameters`. Default: ``None``",
    'ema_warmup (optional): ``"ratio"``: the decay is at most (1 + s) / (10 + s) after s steps; a',
    "  power p: at most 1 - (1 + s)^-p. Default: ``None``",
    "ema_update_after (int, optional): the number of steps that are not averaged.",
    "  Default: ``0``",
]


_COMMON = [
    "state_dtype (optional): the dtype of the state, ``mx.float32``, ``mx.float16``,",
    '  ``mx.bfloat16`` or its name, ``"int8"`` for codes of 8 bits, or a dict of these by the',
    "  names of slots. If it is given,",
    "  parameters keep their dtypes. See docs/guides/memory.md. Default: ``None``",
    "stochastic_rounding (bool, optional): round results in bfloat16 up or down at random, right",
    "  on average. See docs/stochastic-rounding.md. Default: ``False``",
    "rounding_seed (int, optional): the seed of the random bits. Default: ``0``",
    "accumulate (int, optional): the number of calls of ``update`` whose gradients make a step;",
    "  see :attr:`accumulate`. Default: ``1``",
    "accumulate_dtype (optional): the dtype in which they are added up, or that of the first.",
    "  Default: ``None``",
]


def docstring(cls: type, additions: Mapping[str, Any] = {}, rule: str | None = None) -> str:  # noqa: B006
    """The docstring of a class of mlx.optimizers, with what `constructor` adds.

    `rule`: as for :func:`docstrings.section`.
    """
    lines = [inspect.cleandoc(cls.__doc__ or ""), ""]
    lines += ["Keyword arguments that mlx.optimizers does not have:", ""]
    for name, default in additions.items():
        shown = f'"{default}"' if isinstance(default, str) else default
        text = f"{name} ({type(default).__name__}, optional): {_ADDITIONS[name]}"
        lines += [f"    {text}", f"      Default: ``{shown}``"]
    lines.append("    master_weights (str, optional): float32 weights of narrower parameters:")
    lines.append('      ``"float32"``, ``"remainder"`` or None. Default: ``None``')
    lines.append(
        "    groups (list, optional): parameters with values of their own, :class:`Group` or"
    )
    lines.append("      dicts. Default: ``()``")
    lines += [f"    {line}" for line in [*_EMA, *_COMMON]]
    lines += ["", docstrings.section(cls.__name__, rule)]
    return "\n".join(lines)
