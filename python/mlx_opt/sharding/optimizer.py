"""An optimizer whose states are divided among a group of processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map_with_path

from .. import step
from ..base import Optimizer, shares_of
from ..clipping import ClipRequest
from ..step import Share
from ..tools import summary
from ..tools.describe import ParameterRow
from .agreement import check_agreement, facts_of
from .exchange import Exchange, Members, own_elements
from .fully_sharded import Names, names_of
from .leaves import divides_tensors, flat, leaves_of, parts_of, whole_shapes
from .plan import Leaf, Plan
from .states import Structure, divide


class Sharded(Optimizer):
    """Divides an optimizer's states among the members of a group of processes.

    Each member keeps the states of 1/N of the elements and updates those; then the members exchange
    the new parameters. The gradients are averaged on the way, so this replaces
    :func:`mlx.nn.average_gradients`, and a step equals that of one process with the averaged
    gradients. Parameters that :func:`mlx.nn.fully_shard` has divided stay so, and their gradients,
    which it has averaged, are taken as they are. The rules of Adafactor, Lamb and Muon, which need
    whole tensors, divide the tensors, all others the elements. See docs/distributed.md.

    All members must construct it, and call ``init``, ``update`` and ``apply_gradients``, in the
    same order, and evaluate the parameters that result. Rajbhandari et al., `ZeRO: Memory
    optimizations toward training trillion parameter models <https://arxiv.org/abs/1910.02054>`_.

    Args:
        optimizer: An optimizer of mlx_opt, also a :class:`MultiOptimizer`. Its groups and filters
            see the paths and shapes of whole parameters, once for each parameter. If it has a
            state already, the first step divides that.
        group: The group of processes. Default: that of :func:`mlx.core.distributed.init`
        bucket_size: How many bytes one operation of the group exchanges at most. Default: 32 MiB

    Raises:
        TypeError: The optimizer is none of mlx_opt, or has a step that cannot be divided.
        ValueError: ``bucket_size`` is not positive, or the optimizer has ``accumulate``.

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
        bucket_size: int = 32 * 1024**2,
    ) -> None:
        if isinstance(optimizer, Sharded) or not isinstance(optimizer, Optimizer):
            found = type(optimizer).__name__
            raise TypeError(f"Sharded: expected an optimizer of mlx_opt, got {found}")
        if optimizer.accumulate != 1:
            raise ValueError("Sharded: an optimizer with accumulate is not supported")
        if bucket_size <= 0:
            raise ValueError(f"Sharded: bucket_size: expected more than 0, got {bucket_size}")
        for part in parts_of(optimizer):
            divides_tensors(part)
        self.optimizer = optimizer
        self._members = Members(group)
        self._bucket_size = bucket_size
        self._plan = Plan(self._members.size)
        self._structure = Structure([])
        self._has_agreed = False
        self._schedulers: dict[str, Any] = {}

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
        members. ``max_norm`` and :attr:`grad_norm` are of the averages, all of them.

        Raises:
            ValueError: There is a ``normalizer``, which is not supported.
        """
        _refuse_normalizer(normalizer)
        if self._members.size > 1 and not isinstance(model, nn.Module):
            limits = max_norm, skip_nonfinite, max_value
            model.update(self.apply_gradients(gradients, model, *limits))
            return
        request = ClipRequest.from_arguments(max_norm, skip_nonfinite, max_value)
        names = names_of(model, self._members.size)
        self._meet(gradients, model, names)
        if self._members.size == 1:
            step.update(shares_of(self.optimizer, gradients), model, gradients, request)
            return
        leaves: Any = tree_flatten(gradients)
        full_path = {names.plain(path): path for path, _ in leaves}
        structure = Structure([*full_path.values()])

        def put(new: dict[str, mx.array]) -> None:
            model.update(structure.tree({full_path[path]: x for path, x in new.items()}))

        self._step(gradients, flat(model, names), names, request, put)

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
            normalizer: Not supported.
        """
        _refuse_normalizer(normalizer)
        request = ClipRequest.from_arguments(max_norm, skip_nonfinite, max_value)
        names = names_of(parameters, self._members.size)
        self._meet(gradients, parameters, names)
        if self._members.size == 1:
            return step.apply(shares_of(self.optimizer, gradients), parameters, gradients, request)
        new: dict[str, mx.array] = {}
        self._step(gradients, flat(parameters, names), names, request, new.update)
        return tree_map_with_path(lambda path, _: new[names.plain(path or "")], gradients)

    def _step(
        self,
        tree: Any,
        parameters: dict[str, mx.array],
        names: Names,
        request: ClipRequest | None,
        put: Callable[[dict[str, mx.array]], None],
    ) -> None:
        """Make a step of several members.

        Args:
            tree: The gradients.
            parameters: All parameters, by path; emptied.
            names: The names of the parameters.
            request: How the gradients are clipped.
            put: Called with new parameters by path, as soon as they are exchanged.
        """
        plan, rank, most = self._plan, self._members.rank, self._bucket_size
        gradients = flat(tree, names)
        leaves = [plan.leaves[path] for path in gradients]
        exchanged = [leaf for leaf in leaves if leaf.is_exchanged]
        root = parts_of(self.optimizer)[0].state
        exchange = Exchange(self._members, root["step"])
        if request is None and self.loss_scale is not None:
            request = ClipRequest()
        if request is not None:
            request = request._replace(across=exchange.norm)

        rows = [leaf for leaf in exchanged if leaf.split]
        averages = gradients | exchange.gather_rows(rows, gradients, most)
        parameters |= exchange.gather_rows(rows, parameters, most)
        replicated = [leaf.path for leaf in leaves if not leaf.split]
        averages |= exchange.average(plan.rounds(replicated, most), gradients)
        updated = self._update_own(leaves, averages, parameters, request)
        del averages

        dtypes = {path: mx.result_type(parameters[path], x) for path, x in gradients.items()}
        empty = {
            leaf.path: parameters[leaf.path].astype(dtypes[leaf.path])
            for leaf in exchanged
            if leaf.size == 0
        }
        parameters.clear()
        put(empty | {leaf.path: updated[leaf.path] for leaf in leaves if not leaf.is_exchanged})
        exchange.spread(
            plan.rounds([leaf.path for leaf in exchanged], most),
            {path: x.reshape(-1) for path, x in updated.items()},
            lambda path: plan.range_of(path, rank).start,
            dtypes,
            lambda path, x: put({path: self._shaped(plan.leaves[path], x)}),
        )
        # The next step's operations follow these, even if it has other parameters.
        root["step"] = exchange.after_all(root["step"])

    def _update_own(
        self,
        leaves: list[Leaf],
        averages: dict[str, mx.array],
        parameters: dict[str, mx.array],
        request: ClipRequest | None,
    ) -> dict[str, mx.array]:
        """Update this member's elements; return the new ones, by path."""
        own: dict[str, mx.array] = {}
        own_averages: dict[str, mx.array] = {}
        for leaf in leaves:
            x: mx.array | None = parameters[leaf.path]
            if leaf.is_exchanged:
                x = own_elements(self._plan, leaf, self._members.rank, parameters[leaf.path])
            if x is not None:
                own[leaf.path] = x
                own_averages[leaf.path] = averages[leaf.path].reshape(x.shape)
        parts = self._shares_of(own_averages)
        trees = self._structure.tree(own), self._structure.tree(own_averages)
        result: Any = tree_flatten(step.apply(parts, *trees, request))
        return dict(result) if own else {}

    def _shaped(self, leaf: Leaf, flattened: mx.array) -> mx.array:
        """What this member's model has of a new parameter."""
        if not leaf.split:
            return flattened.reshape(leaf.shape)
        length = leaf.size // self._members.size
        rows = flattened[self._members.rank * length :][:length]
        return rows.reshape(-1, *leaf.shape[1:])

    def _shares_of(self, own: dict[str, mx.array]) -> list[Share]:
        """The parts of a step of this member's elements."""
        parts = parts_of(self.optimizer)
        values: list[dict[str, mx.array]] = [{} for _ in parts]
        for path, x in own.items():
            values[self._plan.leaves[path].share][path] = x
        trees = [self._structure.tree(each) for each in values]
        return [Share(part, tree, None) for part, tree in zip(parts, trees, strict=True)]

    def init(self, parameters: Any) -> None:
        """Initialize the states of this member's elements; see :meth:`Optimizer.init`.

        Args:
            parameters: A tree of arrays, or a module, whose trainable parameters are taken.
        """
        names = names_of(parameters, self._members.size)
        is_module = isinstance(parameters, nn.Module)
        tree = parameters.trainable_parameters() if is_module else parameters
        self._meet(tree, parameters, names)
        own: dict[str, mx.array] = {}
        for path, x in flat(tree, names).items():
            leaf = self._plan.leaves[path]
            if leaf.is_exchanged:
                whole = mx.zeros(leaf.shape, x.dtype) if leaf.split else x
                x = own_elements(self._plan, leaf, self._members.rank, whole)
            if x is not None:
                own[path] = x
        for share in self._shares_of(own):
            part: Any = share.optimizer
            part._init_own(share.gradients)

    def _meet(self, gradients: Any, parameters: Any, names: Names) -> None:
        """Divide parameters that are new, if all members agree on them.

        Raises:
            KeyError, TypeError, ValueError: A gradient does not fit its parameter.
            RuntimeError: The members do not agree.
        """
        plan, members = self._plan, self._members
        all_parameters = flat(parameters, names)
        shapes = whole_shapes(gradients, all_parameters, names, members.size)
        new = {path: shape for path, shape in shapes.items() if path not in plan.leaves}
        if not new and self._has_agreed:
            return
        parts = parts_of(self.optimizer)
        leaves = leaves_of(self.optimizer, all_parameters, new)
        if members.size > 1:
            dtypes = {path: x.dtype for path, x in flat(gradients, names).items()}
            check_agreement(members, facts_of(parts, leaves, dtypes, self._bucket_size))
        self._has_agreed = True
        plan.extend(leaves)
        self._structure = Structure([*plan.leaves])
        for index, part in enumerate(parts):
            own = [leaf for leaf in leaves if leaf.share == index]
            divide(part.state, own, plan, members.rank)

    def check(self, gradients: Any, parameters: Any) -> None:
        names = names_of(parameters, self._members.size)
        whole_shapes(gradients, flat(parameters, names), names, self._members.size)

    def describe(self, model: Any, show: bool = True) -> list[ParameterRow]:
        """As the optimizer that is divided; parameters have the shapes that this member has."""
        rows: list[ParameterRow] = self.optimizer.describe(model, show)  # type: ignore[attr-defined]
        return rows

    @property
    def state(self) -> dict:
        """The states of this member's elements, as the state of the optimizer that is divided."""
        return self.optimizer.state

    @state.setter
    def state(self, state: dict) -> None:
        self.optimizer.state = state
        self._plan = Plan(self._members.size)
        self._has_agreed = False

    @property
    def step(self) -> Any:
        return parts_of(self.optimizer)[0].step

    @property
    def learning_rate(self) -> Any:
        return self.optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: float | mx.array) -> None:
        self.optimizer.learning_rate = learning_rate

    def _clip_state(self) -> dict:
        return self.optimizer._clip_state()

    def _refuse_as_part(self) -> None:
        raise TypeError("Sharded cannot be a part of another optimizer: divide that instead")


def _refuse_normalizer(normalizer: Any) -> None:
    if normalizer is not None:
        raise ValueError("Sharded: normalizer is not supported: divide the gradients by it")
