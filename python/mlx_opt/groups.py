"""Groups of parameters with hyperparameters of their own, as the program describes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from .state_dtypes import NAME as STATE_DTYPE
from .state_dtypes import named

Match = str | Callable[[str, mx.array], bool]

OTHERS = "(others)"
"""The label of the parameters that take nothing from a group."""


class Group:
    """Parameters that have hyperparameters of their own.

    If several groups of an optimizer match a parameter, each hyperparameter comes from the first in
    the list that sets it. A parameter is assigned once, in the step in which it first appears. A
    group cannot be changed.

    Args:
        *match: What the parameters match: a pattern of :func:`fnmatch.fnmatchcase` for the path, or
            a function of the path and the array that returns a bool. The path is the keys joined by
            dots, as :func:`mlx.utils.tree_flatten` gives it. ``*`` matches dots too, so
            ``layers.1*`` matches ``layers.10.weight``; ``*.bias`` does not match ``bias``.
        name: The key of the group's values in ``state["mlx_opt"]["groups"]``. A group with a
            schedule or an array needs one.
        frozen: If true, the parameters are not updated, have no state and do not count in the norm
            of the gradients. False takes parameters out of frozen groups behind it in the list.
        may_match_nothing: If true, it is no error if a pattern matches no parameter.
        learning_rate_scale: A number that multiplies the learning rate.
        **hyperparameters: Any of the optimizer's constructor, ``learning_rate`` among them: a
            number, which does not change later; a schedule, which is a function of the number of
            steps done; or a 0-d array, which can be replaced in the state.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: There is no pattern, or the name cannot be a key.

    Example:
        >>> import mlx.core as mx
        >>> import mlx_opt as optim
        >>> group = optim.Group("*bias", learning_rate_scale=0.0)
        >>> optimizer = optim.SGD(0.5, groups=[group])
        >>> w = {"bias": mx.array([1.0]), "weight": mx.array([1.0])}
        >>> optimizer.apply_gradients(w, w)
        {'bias': array([1], dtype=float32), 'weight': array([0.5], dtype=float32)}
    """

    match: tuple[Match, ...]
    name: str | None
    frozen: bool | None
    may_match_nothing: bool
    learning_rate_scale: float | None
    _hyperparameters: dict[str, Any]

    def __init__(
        self,
        *match: Match,
        name: str | None = None,
        frozen: bool | None = None,
        may_match_nothing: bool = False,
        learning_rate_scale: float | None = None,
        **hyperparameters: Any,
    ) -> None:
        if not match:
            raise ValueError("Group: expected a pattern or a function to match, got none")
        for each in match:
            if not isinstance(each, str) and not callable(each):
                raise TypeError(
                    f"Group: expected a pattern or a function to match, got {type(each).__name__}"
                )
        if name is not None and not isinstance(name, str):
            raise TypeError(f"Group: name: expected a str, got {type(name).__name__}")
        if name is not None and not re.fullmatch(r"[^\W\d][^.]*", name):
            raise ValueError(
                f'Group: name: expected a letter and then no dots, as for a key, got "{name}"'
            )
        vars(self).update(
            match=match,
            name=name,
            frozen=None if frozen is None else bool(frozen),
            may_match_nothing=bool(may_match_nothing),
            learning_rate_scale=learning_rate_scale,
            _hyperparameters={
                each: named(value) if each == STATE_DTYPE else value
                for each, value in hyperparameters.items()
            },
        )

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"Group: {name}: a group cannot be changed; make another")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"Group: {name}: a group cannot be changed; make another")

    @property
    def hyperparameters(self) -> Mapping[str, Any]:
        """The hyperparameters that the group sets."""
        return MappingProxyType(self._hyperparameters)

    def restricted(self, names: Container[str]) -> Group | None:
        """The group with those of its hyperparameters that are named; None if it sets nothing."""
        kept = {name: x for name, x in self._hyperparameters.items() if name in names}
        if not kept and self.frozen is None and self.learning_rate_scale is None:
            return None
        return Group(
            *self.match,
            name=self.name,
            frozen=self.frozen,
            may_match_nothing=True,
            learning_rate_scale=self.learning_rate_scale,
            **kept,
        )

    @property
    def label(self) -> str:
        """The name, or what the group matches."""
        return self.name or ", ".join(
            each if isinstance(each, str) else _name_of(each) for each in self.match
        )

    def __repr__(self) -> str:
        settings = {
            "name": self.name,
            "frozen": self.frozen,
            "learning_rate_scale": self.learning_rate_scale,
            **self.hyperparameters,
        }
        shown = [_name_of(each) if callable(each) else repr(each) for each in self.match]
        shown += [f"{name}={value!r}" for name, value in settings.items() if value is not None]
        return f"Group({', '.join(shown)})"


def groups_from(optimizer: str, given: Any) -> tuple[Group, ...]:
    """The groups that a constructor was given: :class:`Group`, or dicts such as
    ``{"match": "*.bias", "weight_decay": 0.0}``."""
    if given is None:
        return ()
    if isinstance(given, (Group, Mapping, str)) or not isinstance(given, Iterable):
        kind = type(given).__name__
        raise TypeError(f"{optimizer}: groups: expected a list of groups, got {kind}")
    return tuple(_group_from(optimizer, each) for each in given)


def _group_from(optimizer: str, given: Any) -> Group:
    if isinstance(given, Group):
        return given
    if not isinstance(given, Mapping):
        kind = type(given).__name__
        raise TypeError(f"{optimizer}: groups: expected a Group or a dict, got {kind}")
    settings = dict(given)
    match = settings.pop("match", ())
    return Group(*(match if isinstance(match, (list, tuple)) else [match]), **settings)


def no_decay() -> Group:
    """The group of the parameters that usually have no weight decay.

    These are biases, parameters of norms (a key of whose path ends with "norm", and a number at
    most) and all others of fewer than two dimensions.

    Example:
        >>> import mlx_opt as optim
        >>> optimizer = optim.AdamW(1e-3, weight_decay=0.1, groups=[optim.no_decay()])
    """
    return Group(is_bias_or_norm, may_match_nothing=True, weight_decay=0.0)


def is_bias_or_norm(path: str, array: mx.array) -> bool:
    """True for biases, parameters of norms and all others of fewer than two dimensions."""
    keys = path.lower().split(".")
    is_norm = any(re.search(r"norm(_?\d+)?$", key) for key in keys)
    return array.ndim < 2 or keys[-1] == "bias" or is_norm


def freeze(*match: Match) -> Group:
    """The group of parameters that the optimizer leaves as they are; see :class:`Group`.

    Example:
        >>> import mlx.core as mx
        >>> import mlx_opt as optim
        >>> optimizer = optim.SGD(0.5, groups=[optim.freeze("embed*")])
        >>> w = {"embed": mx.array([1.0]), "head": mx.array([1.0])}
        >>> optimizer.apply_gradients(w, w)
        {'embed': array([1], dtype=float32), 'head': array([0.5], dtype=float32)}
    """
    return Group(*match, frozen=True)


def layer_decay(model: Any, decay: float, layers: str | None = None) -> list[Group]:
    """Groups whose learning rates fall from the last layer to the first.

    The learning rate of the last layer is multiplied by ``decay``, that of the layer before it by
    the square of ``decay`` and so on; layers without parameters do not count. Parameters that the
    model defines before its layers, such as embeddings, count as one more layer; those that it
    defines after them keep the learning rate. Clark et al., `ELECTRA
    <https://arxiv.org/abs/2003.10555>`_.

    Args:
        model: A module or a tree of parameters, in which one list holds the layers.
        decay: A number above 0, usually from 0.65 to 1.
        layers: The path of the list. Default: the longest list.

    Raises:
        ValueError: ``decay`` is not above 0, or there is no such list.

    Example:
        >>> import mlx.nn as nn
        >>> import mlx_opt as optim
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        >>> [group.learning_rate_scale for group in optim.layer_decay(model, 0.5)]
        [0.25, 0.5]
        >>> groups = [optim.no_decay(), *optim.layer_decay(model, 0.5)]
        >>> optimizer = optim.AdamW(1e-3, weight_decay=0.1, groups=groups)
    """
    if not decay > 0:
        raise ValueError(f"layer_decay: decay: expected a number above 0, got {decay}")
    parameters = model.parameters() if isinstance(model, nn.Module) else model
    paths = [str(path) for path in tree_flatten(parameters, destination={})]
    prefix = _list_of_layers(paths) if layers is None else f"{layers}."
    indices = [_index_behind(prefix, path) for path in paths]
    numbers = sorted({index for index in indices if index is not None})
    if not numbers:
        raise ValueError(f'layer_decay: the model has no list of layers "{prefix[:-1]}"')
    first = next(i for i, index in enumerate(indices) if index is not None)
    matches = [
        [f"{_escaped(prefix)}{number}", f"{_escaped(prefix)}{number}.*"] for number in numbers
    ]
    if first > 0:
        matches.insert(0, [_escaped(path) for path in paths[:first]])
    return [
        Group(*match, learning_rate_scale=decay ** (len(matches) - i), may_match_nothing=True)
        for i, match in enumerate(matches)
    ]


def _list_of_layers(paths: list[str]) -> str:
    """The path of the longest list, with a dot behind it."""
    sizes: dict[str, int] = {}
    for path in paths:
        for number in re.finditer(r"(?:^|(?<=\.))(\d+)\.", path):
            prefix = path[: number.start()]
            sizes[prefix] = max(sizes.get(prefix, 0), int(number[1]) + 1)
            break
    if not sizes:
        raise ValueError("layer_decay: the model has no list of layers")
    return max(sizes, key=lambda prefix: sizes[prefix])


def _index_behind(prefix: str, path: str) -> int | None:
    number = path[len(prefix) :].split(".")[0] if path.startswith(prefix) else ""
    return int(number) if number.isdecimal() else None


def _escaped(path: str) -> str:
    """The pattern that only this text matches."""
    return re.sub(r"([*?[])", r"[\1]", path)


def _name_of(function: Any) -> str:
    return getattr(function, "__name__", None) or repr(function)
