"""The collective operations of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import mlx.core as mx

from ..clipping import global_norm
from .plan import Leaf, Plan, Range, Round


class Members:
    """The group of processes, and where this one is in it."""

    def __init__(self, group: mx.distributed.Group | None) -> None:
        self.group = mx.distributed.init() if group is None else group
        self.size = self.group.size()
        self.rank = self.group.rank()
        self._scatters: bool | None = None

    def __deepcopy__(self, memo: Any) -> Members:
        return self  # it is the same group of processes

    def __reduce__(self) -> Any:
        raise TypeError("Sharded cannot be pickled, because a group of processes cannot")

    @property
    def scatters(self) -> bool:
        """True if the group's backend has `sum_scatter`: NCCL and JACCL have, ring and MPI not."""
        if self._scatters is None:
            try:
                mx.eval(mx.distributed.sum_scatter(mx.zeros(self.size), group=self.group))
                self._scatters = True
            except RuntimeError:  # before anything is sent, and so on every member
                self._scatters = False
        return self._scatters


class Exchange:
    """The collective operations of one step. Each follows what was made of the one before, so that
    all members run them in the same order. Two are in flight at a time, unless the step is traced,
    so that few buckets are in memory."""

    def __init__(self, members: Members, before: mx.array) -> None:
        """`before`: an array that is evaluated before the first."""
        self._members = members
        self._before = before
        self._in_flight: list[mx.array] = []
        self._is_traced = False

    def after_all(self, x: mx.array) -> mx.array:
        """An array, which is evaluated after the operations so far."""
        return mx.depends(x, self._before)

    def _follow(self, arrays: list[mx.array]) -> None:
        """Let the next operation follow these arrays."""
        self._before = mx.depends(mx.array(0), arrays)  # does not hold them once it is evaluated
        if self._is_traced:
            return
        try:
            mx.async_eval(self._before)
        except ValueError:  # inside a transformation
            self._is_traced = True
            return
        self._in_flight.append(self._before)
        if len(self._in_flight) > 2:
            mx.eval(self._in_flight.pop(0))

    def average(
        self, rounds: Iterable[Round], gradients: dict[str, mx.array]
    ) -> dict[str, mx.array]:
        """This member's elements of the averages over the members, flat, by path."""
        members = self._members
        flat = {path: gradient.reshape(-1) for path, gradient in gradients.items()}
        pieces: dict[str, list[mx.array]] = {}
        for round in rounds:
            dtype = _common_dtype(flat[path].dtype for path in round.paths())
            parts = [
                _concatenated(
                    (flat[path][start:stop] for path, start, stop in own), round.length, dtype
                )
                for own in round.segments
            ]
            bucket = self.after_all(_joined(parts))
            if members.scatters:
                total = mx.distributed.sum_scatter(bucket, group=members.group)
            else:
                total = mx.distributed.all_sum(bucket, group=members.group)
                total = total[members.rank * round.length :][: round.length]
            average = total / members.size
            self._follow([average])
            offset = 0
            for path, start, stop in round.segments[members.rank]:
                piece = average[offset : offset + stop - start]
                pieces.setdefault(path, []).append(piece.astype(flat[path].dtype))
                offset += stop - start
        return {path: _joined(parts) for path, parts in pieces.items()}

    def norm(self, own: mx.array) -> mx.array:
        """The norm of all members' elements from that of this member's."""
        mine = self.after_all(own.astype(mx.float32).reshape(1))
        norms = mx.distributed.all_gather(mine, group=self._members.group)
        self._before = norms
        return global_norm([norms])  # never overflows, as a sum of squares may

    def spread(
        self,
        rounds: list[Round],
        own: dict[str, mx.array],
        begin_of: Callable[[str], int],
        dtypes: dict[str, mx.Dtype],
        put: Callable[[str, mx.array], None],
    ) -> None:
        """Bring the new elements of all members to all of them.

        Args:
            rounds: The rounds.
            own: This member's new elements, flat.
            begin_of: Where they begin in their parameter.
            dtypes: The dtypes of the new parameters.
            put: Called with each path and its new parameter, flat, in the round that completes it.
        """
        members = self._members
        last = {path: i for i, round in enumerate(rounds) for path in round.paths()}
        pieces: dict[str, list[tuple[int, mx.array]]] = {path: [] for path in last}
        for i, round in enumerate(rounds):
            dtype = _common_dtype(dtypes[path] for path in round.paths())
            parts = (
                own[path][start - begin_of(path) : stop - begin_of(path)]
                for path, start, stop in round.segments[members.rank]
            )
            mine = self.after_all(_concatenated(parts, round.length, dtype))
            bucket = mx.distributed.all_gather(mine, group=members.group)
            copies = []
            for member, segments in enumerate(round.segments):
                offset = member * round.length
                for path, start, stop in segments:
                    copies.append(copied(bucket[offset : offset + stop - start]))
                    pieces[path].append((start, copies[-1].astype(dtypes[path])))
                    offset += stop - start
            for path in round.paths():
                if last[path] == i:
                    in_order = sorted(pieces.pop(path), key=lambda piece: piece[0])
                    put(path, _joined([x for _, x in in_order]))
            self._follow(copies)

    def gather_rows(
        self, leaves: list[Leaf], rows: dict[str, mx.array], bytes_of_a_round: int
    ) -> dict[str, mx.array]:
        """Whole arrays, by path, from the rows that each member has of them."""
        members = self._members
        whole: dict[str, mx.array] = {}
        for own in _buckets(leaves, rows, bytes_of_a_round):
            mine = mx.concatenate([rows[leaf.path].reshape(1, -1) for leaf in own], axis=1)
            bucket = mx.distributed.all_gather(self.after_all(mine), group=members.group)
            offset = 0
            for leaf in own:
                length = rows[leaf.path].size
                part = bucket[:, offset : offset + length].reshape(leaf.shape)
                whole[leaf.path] = part.astype(rows[leaf.path].dtype)
                offset += length
            self._follow([bucket])
        return whole


def own_elements(plan: Plan, leaf: Leaf, member: int, array: mx.array) -> mx.array | None:
    """A member's elements of an array of a leaf's shape: all of it as it is, or a flat part."""
    own: Range = plan.range_of(leaf.path, member)
    if own.size == 0:
        return None
    return array if own.size == array.size else array.reshape(-1)[own.start : own.stop]


def _buckets(
    leaves: list[Leaf], rows: dict[str, mx.array], bytes_of_a_round: int
) -> Iterator[list[Leaf]]:
    bucket: list[Leaf] = []
    size = 0
    for leaf in leaves:
        if bucket and rows[leaf.path].dtype != rows[bucket[0].path].dtype:
            yield bucket
            bucket, size = [], 0
        bucket.append(leaf)
        size += leaf.size * rows[leaf.path].dtype.size
        if size >= bytes_of_a_round:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket


def _concatenated(parts: Iterable[mx.array], length: int, dtype: mx.Dtype) -> mx.array:
    """The parts one after another, with zeros up to a length."""
    arrays = [x.astype(dtype) for x in parts]
    missing = length - sum(x.size for x in arrays)
    if missing:
        arrays.append(mx.zeros(missing, dtype))
    return _joined(arrays)


def _joined(parts: list[mx.array]) -> mx.array:
    return parts[0] if len(parts) == 1 else mx.concatenate(parts)


def _common_dtype(dtypes: Iterable[mx.Dtype]) -> mx.Dtype:
    first, *others = dtypes
    for dtype in others:
        first = mx.result_type(first, dtype)
    return first


def copied(view: mx.array) -> mx.array:
    """The same elements in a buffer of their own, so that a view does not keep all of another."""
    return view * mx.array(1, view.dtype)
