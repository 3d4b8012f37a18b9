"""What an optimizer holds in memory for a model, as data and as a table."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from .. import accumulation, reserved
from ..trees import check_arrays, parameters_of

_PENDING = f"{reserved.KEY}.{accumulation.KEY}."
"""In the paths of gradients that are added up, which are counted apart."""


class Memory(NamedTuple):
    """What an optimizer and its model hold, in bytes."""

    elements: int
    """The number of elements of the parameters that are trained."""

    parameters: int
    """Of these parameters."""

    frozen: int
    """Of the model's other parameters."""

    gradients: int
    """Of one gradient of each parameter that is trained, in its dtype."""

    state: dict[str, int]
    """Of the state, by the names of the slots; ``""`` has the numbers in its root."""

    pending: int
    """Of gradients that are added up over several calls, in a call that does not begin a round."""

    means: int
    """Of their means in a step, if they are added up in another dtype than the gradients'."""

    @property
    def between_steps(self) -> int:
        """What is held while the next gradients are computed, besides their own computation."""
        return self.parameters + self.frozen + sum(self.state.values()) + self.pending

    @property
    def step_peak(self) -> int:
        """What a step holds that is in place: all that there is. Muon's iterations need more."""
        return self.between_steps + self.gradients + self.means


def measured(optimizer: Any, model: Any, shows: bool) -> Memory:
    """What an optimizer and a model hold, which is printed too if `shows`."""
    tree = parameters_of(model)
    check_arrays(tree)
    trained = _arrays(tree)
    everything = _arrays(model.parameters()) if isinstance(model, nn.Module) else trained
    other = _initialized(optimizer, tree)
    parameters = _bytes(trained.values())
    found = Memory(
        sum(x.size for x in trained.values()),
        parameters,
        _bytes(everything.values()) - parameters,
        parameters,
        _state(other.state, trained.keys()),
        *_pending(other, tree),
    )
    if shows:
        show(type(optimizer).__name__, found)
    return found


def _initialized(optimizer: Any, parameters: Any) -> Any:
    """A copy of the optimizer with a state for all parameters, of which nothing is evaluated."""
    shared = {id(x): x for x in _arrays(optimizer.state).values()}
    other = copy.deepcopy(optimizer, shared)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the first step warns of what is begun anew
        other.init(parameters)
    return other


def _arrays(tree: Any) -> dict[str, mx.array]:
    leaves: Any = tree_flatten(tree)
    return {path: x for path, x in leaves if isinstance(x, mx.array)}


def _bytes(arrays: Iterable[mx.array]) -> int:
    return sum(x.nbytes for x in arrays)


def _state(state: Any, paths: Iterable[str]) -> dict[str, int]:
    """The bytes of a state's arrays by the names of the slots."""
    known = set(paths)
    sizes: dict[str, int] = {}
    for path, x in _arrays(state).items():
        if _PENDING not in path:
            name = _slot_of(path.split("."), known)
            sizes[name] = sizes.get(name, 0) + x.nbytes
    return sizes


def _slot_of(keys: list[str], paths: set[str]) -> str:
    """The name of the slot of an entry of a state: what stands behind the path of a parameter, or
    before it; empty for an entry of no parameter."""
    for first in range(len(keys)):
        for last in range(len(keys), first, -1):
            if ".".join(keys[first:last]) in paths:
                return ".".join(keys[last:]) or keys[first - 1]
    return ""


def _pending(optimizer: Any, parameters: Any) -> tuple[int, int]:
    """The bytes of gradients that are added up, and of their means in another dtype."""
    if optimizer.accumulate == 1:
        return 0, 0
    frozen, dtype = optimizer._frozen(parameters), optimizer.accumulate_dtype
    arrays = [x for path, x in _arrays(parameters).items() if path not in frozen]
    if dtype is None:
        return _bytes(arrays), 0
    is_other = any(x.dtype != dtype for x in arrays)
    return sum(x.size * dtype.size for x in arrays), _bytes(arrays) if is_other else 0


def show(name: str, memory: Memory) -> None:
    """Print a table of what is held.

    Raises:
        ImportError: rich is not installed.
    """
    rows = [("parameters", memory.parameters)]
    rows += [("frozen parameters", memory.frozen)] if memory.frozen else []
    rows += [(f"state: {slot or 'numbers'}", size) for slot, size in memory.state.items()]
    rows += [("pending gradients", memory.pending)] if memory.pending else []
    rows += [("between steps", memory.between_steps), ("gradients", memory.gradients)]
    rows += [("means of gradients", memory.means)] if memory.means else []
    rows += [("peak of a step", memory.step_peak)]
    size = max(memory.elements, 1)
    print_table(
        f"{name}, {memory.elements:,} trained elements",
        ["", "bytes", "a parameter"],
        [[label, text_of(count), f"{count / size:.2f}"] for label, count in rows],
        "memory needs rich to print its table: pip install 'mlx-opt[bench]', or show=False",
    )


def print_table(title: str, columns: list[str], rows: list[list[str]], without_rich: str) -> None:
    """Print a table whose first column is text.

    Raises:
        ImportError: rich is not installed; `without_rich` is the message.
    """
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table
    except ModuleNotFoundError as error:
        raise ImportError(without_rich) from error
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console(markup=False, highlight=False)
    console.print(title)
    console.print(table)


def text_of(count: float) -> str:
    """A number of bytes with a unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"
