"""An optimizer whose states are divided among a group of processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map_with_path

from .. import accumulation
from ..base import Optimizer
from ..clipping import ClipRequest
from ..tools import summary
from ..tools.describe import ParameterRow
from ..tools.memory import Memory
from . import saving
from .averages import WithParameters
from .division import Division
from .exchange import Members, own_elements
from .fully_sharded import names_of
from .leaves import (
    divides_tensors,
    flat,
    parts_of,
    prefixes_of,
    refuse_telemetry,
    whole_shapes,
)
from .states import Structure
from .steps import make_step


class Sharded(WithParameters):
    """Divides an optimizer's states among the members of a group of processes.

    Each member keeps the states of 1/N of the elements and updates those; then the members exchange
    the new parameters. The gradients are averaged on the way, so this replaces
    :func:`mlx.nn.average_gradients`, and a step equals that of one process with the averaged
    gradients. Parameters that :func:`mlx.nn.fully_shard` has divided stay so, and their gradients,
    which it has averaged, are taken as they are. Rules that need whole tensors (Adafactor, AdamH,
    LARS, Lamb, Muon, StableAdamW) divide the tensors, all others the elements. See
    docs/distributed.md.

    All members must construct it, and call ``init``, ``update`` and ``apply_gradients``, in the
    same order, and evaluate the parameters that result. Rajbhandari et al., `ZeRO: Memory
    optimizations toward training trillion parameter models <https://arxiv.org/abs/1910.02054>`_.

    Args:
        optimizer: An optimizer of mlx_opt, also a :class:`MultiOptimizer`. Its groups and filters
            see the paths and shapes of whole parameters, once for each parameter. If it has a
            state already, the first step divides that.
        group: The group of processes. Default: that of :func:`mlx.core.distributed.init`
        bucket_size: How many bytes one operation of the group exchanges at most. Default: a 32nd of
            the parameters' bytes, at least 32 MiB

    Raises:
        TypeError: The optimizer is none of mlx_opt, or has a step that cannot be divided.
        ValueError: ``bucket_size`` is not positive.

    The first step raises RuntimeError if the members have different parameters, optimizers, steps
    or versions.

    Example:
        >>> import mlx.core as mx
        >>> import mlx.nn as nn
        >>> import mlx_opt as optim
        >>> model, optimizer = nn.Linear(2, 1), optim.Sharded(optim.AdamW(1e-3))
        >>> gradients = {"weight": mx.ones((1, 2)), "bias": mx.ones(1)}
        >>> optimizer.update(model, gradients, max_norm=1.0)
        >>> optimizer.grad_norm.round(3)
        array(1.732, dtype=float32)
    """

    def __init__(
        self,
        optimizer: Optimizer,
        group: mx.distributed.Group | None = None,
        *,
        bucket_size: int | None = None,
    ) -> None:
        if isinstance(optimizer, Sharded) or not isinstance(optimizer, Optimizer):
            found = type(optimizer).__name__
            raise TypeError(f"Sharded: expected an optimizer of mlx_opt, got {found}")
        optimizer._check_takes_gradients()
        if bucket_size is not None and bucket_size <= 0:
            raise ValueError(f"Sharded: bucket_size: expected more than 0, got {bucket_size}")
        for part in parts_of(optimizer):
            divides_tensors(part)
        refuse_telemetry(optimizer)
        self.optimizer = optimizer
        self._members = Members(group)
        self._division = Division(optimizer, self._members, bucket_size)
        self._schedulers: dict[str, Any] = {}

    @property
    def telemetry(self) -> None:
        """None: it cannot be set to True so far."""
        return None

    @telemetry.setter
    def telemetry(self, on: bool) -> None:
        if on:
            raise TypeError("Sharded: telemetry is not supported")

    @summary.never_raises
    def __repr__(self) -> str:
        members = self._members
        return f"<Sharded, member {members.rank} of {members.size}, of {self.optimizer!r}>"

    def update(
        self,
        model: Any,
        gradients: Any,
        max_norm: float | mx.array | None = None,
        skip_nonfinite: bool = False,
        max_value: float | mx.array | None = None,
        normalizer: float | mx.array | None = None,
    ) -> None:
        """Update the parameters of a model with the averages of all members' gradients.

        As :meth:`Optimizer.update`, but the model gets new, lazy arrays if there are several
        members. ``max_norm`` and :attr:`grad_norm` are of the averages, all of them. A
        ``normalizer`` is of this member, and the averages are divided by the average of all
        members' normalizers. With :attr:`accumulate` each call averages the gradients.
        """
        limits = max_norm, skip_nonfinite, max_value, normalizer
        if self._members.size > 1 and not isinstance(model, nn.Module):
            model.update(self.apply_gradients(gradients, model, *limits))
            return
        self.optimizer._check_takes_gradients()
        request = ClipRequest.from_arguments(max_norm, skip_nonfinite, max_value)
        names = names_of(model, self._members.size)
        self._division.meet(gradients, model, names)
        if self._members.size == 1:
            Optimizer.update(self.optimizer, model, gradients, *limits)
            return
        leaves: Any = tree_flatten(gradients)
        full_path = {names.plain(path): path for path, _ in leaves}
        if accumulation.is_used(self.optimizer, normalizer):  # others may be pending
            leaves = tree_flatten(model.parameters())
            full_path |= {names.plain(path): path for path, _ in leaves}
        structure = Structure([*full_path.values()])

        def put(new: dict[str, mx.array]) -> None:
            model.update(structure.tree({full_path[path]: x for path, x in new.items()}, model))

        make_step(self._division, gradients, flat(model, names), names, request, normalizer, put)

    def apply_gradients(
        self,
        gradients: Any,
        parameters: Any,
        max_norm: float | mx.array | None = None,
        skip_nonfinite: bool = False,
        max_value: float | mx.array | None = None,
        normalizer: float | mx.array | None = None,
    ) -> Any:
        """Return the updated parameters; see :meth:`Optimizer.apply_gradients`.

        Args:
            gradients: This member's gradients.
            parameters: A tree or, if :func:`mlx.nn.fully_shard` has wrapped it, the module.
            max_norm: As for :meth:`update`.
            skip_nonfinite: As for :meth:`update`.
            max_value: As for :meth:`update`.
            normalizer: As for :meth:`update`.
        """
        self.optimizer._check_takes_gradients()
        request = ClipRequest.from_arguments(max_norm, skip_nonfinite, max_value)
        names = names_of(parameters, self._members.size)
        self._division.meet(gradients, parameters, names)
        if self._members.size == 1:
            limits = max_norm, skip_nonfinite, max_value, normalizer
            return Optimizer.apply_gradients(self.optimizer, gradients, parameters, *limits)
        new: dict[str, mx.array] = {}
        found = flat(parameters, names)
        make_step(self._division, gradients, found, names, request, normalizer, new.update)
        given = flat(gradients, names)
        tree = gradients if given.keys() >= new.keys() else self._division.tree(new)
        return tree_map_with_path(lambda path, _: new[names.plain(path or "")], tree)

    def init(self, parameters: Any) -> None:
        """Initialize the states of this member's elements; see :meth:`Optimizer.init`.

        Args:
            parameters: A tree of arrays, or a module, whose trainable parameters are taken.
        """
        division = self._division
        own: dict[str, mx.array] = {}
        for path, x in division.meet_all(parameters).items():
            leaf = division.plan.leaves[path]
            if leaf.is_exchanged:
                whole = mx.zeros(leaf.shape, x.dtype) if leaf.split else x
                x = own_elements(division.plan, leaf, self._members.rank, whole)
            if x is not None:
                own[path] = x
        for share in division.shares_of(own):
            part: Any = share.optimizer
            part._init_own(share.gradients)

    def save_state(self, path: str | os.PathLike) -> None:
        """Save the state in a folder; it can be loaded with any number of members.

        All members call it. Each writes a file, then an index of all of them replaces that of the
        checkpoint that was in the folder, whose files are removed at last: a write that is
        interrupted leaves it whole. The folder may be shared or one of each machine.

        Args:
            path: The folder.

        Raises:
            OSError: A member cannot write; the others raise RuntimeError.
            ValueError: Gradients are pending, which a checkpoint does not have.
        """
        if self.accumulated:
            raise ValueError(
                f"Sharded: gradients of {self.accumulated} calls are pending, which a checkpoint "
                "does not have: save the state after a step"
            )
        prefixes = prefixes_of(self.optimizer)
        saving.save(Path(path), self.state, prefixes, self._division.plan, self._members)

    def load_state(self, path: str | os.PathLike, parameters: Any) -> None:
        """Load a state that any number of members has saved. All members call it.

        Each reads its own elements. Parameters of which the checkpoint has nothing begin anew. All
        files must be in the folder of each member.

        Args:
            path: The folder.
            parameters: As for :meth:`init`.

        Raises:
            OSError, ValueError: The checkpoint is incomplete or damaged, or is of other parameters;
                the others raise RuntimeError. Nothing has changed.
        """
        division = self._division.anew()
        division.meet_all(parameters, divides_states=False)
        prefixes = prefixes_of(self.optimizer)
        self.optimizer.state = saving.load(Path(path), prefixes, division.plan, self._members)
        self._division = division

    @staticmethod
    def whole_state(path: str | os.PathLike) -> dict:
        """Return the state that a checkpoint has, as the state of the optimizer without Sharded.

        Args:
            path: The folder.

        Raises:
            OSError, ValueError: The checkpoint is incomplete or damaged.
        """
        return saving.whole_state(Path(path))

    def check(self, gradients: Any, parameters: Any) -> None:
        names = names_of(parameters, self._members.size)
        whole_shapes(gradients, flat(parameters, names), names, self._members.size)

    def describe(self, model: Any, show: bool = True) -> list[ParameterRow]:
        """As the optimizer that is divided, of which the parameters have the whole shapes."""
        optimizer: Any = self.optimizer
        rows: list[ParameterRow] = optimizer.describe(self._division.whole(model), show)
        return rows

    def memory(self, model: Any, show: bool = True) -> Memory:
        """As the optimizer that is divided, with the states that this member has.

        States that there are not yet are counted whole.
        """
        return self.optimizer.memory(model, show)

    @property
    def state(self) -> dict:
        """The states of this member's elements, as the state of the optimizer that is divided."""
        return self.optimizer.state

    @state.setter
    def state(self, state: dict) -> None:
        self.optimizer.state = state
        self._division = self._division.anew()

    @property
    def step(self) -> Any:
        return parts_of(self.optimizer)[0].step

    def _refuse_as_part(self) -> None:
        raise TypeError("Sharded cannot be a part of another optimizer: divide that instead")
