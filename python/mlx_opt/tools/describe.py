"""What an optimizer does with each parameter, as data and as a table."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn


class ParameterRow(NamedTuple):
    """What an optimizer does with one parameter."""

    path: str
    shape: tuple[int, ...]
    dtype: mx.Dtype
    rule: str
    """The rule that updates it: ``"Momentum"``, for example, for SGD with momentum."""

    values: dict[str, Any]
    """Its hyperparameters, with the learning rate as a float; empty if it is frozen."""

    groups: dict[str, str]
    """For each value that a group sets, the name of the group or what it matches."""

    frozen: bool


class Described(NamedTuple):
    """What one optimizer does with its parameters."""

    optimizer: str
    values: dict[str, Any]
    """Its own hyperparameters."""

    rows: list[ParameterRow]


def describe(
    described: Callable[[Any, Any], list[Described]], model: Any, shows: bool
) -> list[ParameterRow]:
    """The rows of a model's trainable parameters, which are printed too if `shows`."""
    parameters = model.trainable_parameters() if isinstance(model, nn.Module) else model
    found = described(parameters, model)
    if shows:
        show(found)
    return [row for each in found for row in each.rows]


def show(described: list[Described]) -> None:
    """Print each optimizer's own values and a table of what groups set instead.

    Paths that differ only in numbers share a row, if all else is equal.
    """
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table
    except ModuleNotFoundError as error:
        raise ImportError(
            "describe needs rich to print its table: pip install 'mlx-opt[bench]', or show=False"
        ) from error

    console = Console(markup=False, highlight=False)
    for optimizer, values, rows in described:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("parameters", overflow="fold")
        table.add_column("tensors", justify="right", no_wrap=True)
        table.add_column("elements", justify="right", no_wrap=True)
        table.add_column("rule")
        table.add_column("set by groups", overflow="fold")
        for members in _alike(rows).values():
            first = members[0]
            path = first.path if len(members) == 1 else _pattern(first.path)
            elements = f"{sum(map(_size, members)):,}"
            rule = "none" if first.frozen else first.rule
            table.add_row(path, str(len(members)), elements, rule, "\n".join(_settings(first)))
        shown = ", ".join(f"{name}={_text(value)}" for name, value in values.items())
        console.print(f"{optimizer}({shown})")
        console.print(f"{len(rows)} tensors, {sum(map(_size, rows)):,} elements")
        console.print(table)


def _settings(row: ParameterRow) -> list[str]:
    if row.frozen:
        return [f"frozen: {row.groups['frozen']}"]
    names = {name: name.removesuffix("_scale") for name in row.groups}
    return [
        f"{names[name]}={_text(row.values[names[name]])}: {group}"
        for name, group in row.groups.items()
    ]


def _alike(rows: list[ParameterRow]) -> dict[Any, list[ParameterRow]]:
    alike: dict[Any, list[ParameterRow]] = {}
    for row in rows:
        key = _pattern(row.path), row.rule, repr(row.values), repr(row.groups), row.frozen
        alike.setdefault(key, []).append(row)
    return alike


def _pattern(path: str) -> str:
    return re.sub(r"(?:^|(?<=\.))\d+(?=\.|$)", "*", path)


def _size(row: ParameterRow) -> int:
    size = 1
    for extent in row.shape:
        size *= extent
    return size


def _text(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_text, value))}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
