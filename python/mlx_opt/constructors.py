"""The constructors of mlx.optimizers' classes, with what mlx_opt adds."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from . import docstrings
from .hyperparameters import first_value, has_schedule


def bound(
    signature: inspect.Signature, name: str, *args: Any, **kwargs: Any
) -> inspect.BoundArguments:
    """The arguments of a constructor; an error names the class."""
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from None


def constructor(cls: type, *additions: str) -> Callable[..., None]:
    """The constructor of an optimizer of mlx.optimizers, with flags and `groups` added."""
    inherited = cls.__init__  # type: ignore[misc]
    signature = inspect.signature(inherited)
    defaults = {**dict.fromkeys(additions, False), "groups": ()}

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        added = {name: kwargs.pop(name, default) for name, default in defaults.items()}
        given = bound(signature, type(self).__name__, self, *args, **kwargs).arguments
        scheduled = {name for name in self._forms.attributes if has_schedule(given.get(name))}
        # mlx.optimizers checks its arguments, so it gets the first values of schedules.
        inherited(**{**given, **{name: first_value(given[name]) for name in scheduled}})
        for name in scheduled:
            setattr(self, name, given[name])
        for name in additions:
            setattr(self, name, bool(added[name]))
        self._set_groups(added["groups"])

    keyword = inspect.Parameter.KEYWORD_ONLY
    own = [inspect.Parameter(name, keyword, default=default) for name, default in defaults.items()]
    parameters = [*signature.parameters.values(), *own]
    __init__.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return __init__


_ADDITIONS = {
    "nesterov": "Nesterov's momentum, as in NadamW.",
    "cautious_weight_decay": "decay only elements whose update and parameter agree in sign.",
}


def docstring(cls: type, *additions: str, rule: str | None = None) -> str:
    """The docstring of a class of mlx.optimizers, with what `constructor` adds.

    `rule`: as for :func:`docstrings.section`.
    """
    lines = [inspect.cleandoc(cls.__doc__ or ""), ""]
    lines += ["Keyword arguments that mlx.optimizers does not have:", ""]
    for name in additions:
        lines.append(f"    {name} (bool, optional): {_ADDITIONS[name]} Default: ``False``")
    lines.append(
        "    groups (list, optional): parameters with values of their own, :class:`Group` or"
    )
    lines.append("      dicts. Default: ``()``")
    lines += ["", docstrings.section(cls.__name__, rule)]
    return "\n".join(lines)
