"""The names by which other packages call optimizers whose state has 8 bits."""

from __future__ import annotations

import inspect
from typing import Any

from .optimizers import Adam, AdamW, Lion


def _constructor(cls: type) -> Any:
    """The constructor of a class, with a state in 8 bits unless another is asked for."""
    inherited: Any = cls.__init__  # type: ignore[misc]

    def __init__(self: Any, *args: Any, state_dtype: Any = "int8", **kwargs: Any) -> None:
        inherited(self, *args, state_dtype=state_dtype, **kwargs)

    signature = inspect.signature(inherited)
    parameters = [
        each.replace(default="int8") if each.name == "state_dtype" else each
        for each in signature.parameters.values()
    ]
    __init__.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return __init__


class Adam8bit(Adam):
    """:class:`Adam` with ``state_dtype="int8"``: 2.13 bytes of state a parameter in place of 8.

    The arguments are those of :class:`Adam`. See docs/8-bit-states.md for what is stored.

    Example:
        >>> import mlx.core as mx
        >>> import mlx_opt as optim
        >>> optimizer = optim.Adam8bit(1e-3)
        >>> _ = optimizer.apply_gradients({"w": mx.ones((64, 64))}, {"w": mx.ones((64, 64))})
        >>> sorted(optimizer.state["w"])
        ['m', 'm_scale', 'v', 'v_scale']
    """

    __init__ = _constructor(Adam)


class AdamW8bit(AdamW):
    """:class:`AdamW` with ``state_dtype="int8"``: 2.13 bytes of state a parameter in place of 8.

    The arguments are those of :class:`AdamW`. See docs/8-bit-states.md for what is stored.
    """

    __init__ = _constructor(AdamW)


class Lion8bit(Lion):
    """:class:`Lion` with ``state_dtype="int8"``: 1.06 bytes of state a parameter in place of 4.

    The arguments are those of :class:`Lion`. See docs/8-bit-states.md for what is stored.
    """

    __init__ = _constructor(Lion)
