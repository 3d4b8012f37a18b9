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
    """The collective operations of one step. Each follows the one before, so that all members run
    them in the same order."""

    def __init__(self, members: Members, before: mx.array, gradients: Iterable[mx.array]) -> None:
        """`before`: an array that is evaluated before the first."""
        self._members = members
        self._before = before
        self.is_traced = not _begins([before, *gradients])

    def after_all(self, x: mx.array) -> mx.array:
        """An array, which is evaluated after the operations so far."""
        return mx.depends(x, self._before)

    def _follow(self, result: mx.array) -> None:
        """Begin an operation, and let the next follow it."""
        self._before = mx.depends(mx.array(0), [result])  # does not hold it once it is evaluated
        if not self.is_traced:
            mx.async_eval(self._before)

    def _run(
        self,
        rounds: Iterable[Round],
        operation: Callable[[Round], mx.array],
        take: Callable[[Round, mx.array], list[mx.array]],
    ) -> None:
        """Run a collective operation for each round.

        Unless the step is traced, each is begun before the result of the one before is taken, and
        what was taken is evaluated before the next is. So few buckets are in memory, and a buffer
        into which several rounds write is that of one array whenever the next writes.
        """
        former: tuple[Round, mx.array] | None = None
        for round in rounds:
            result = operation(round)
            self._follow(result)
            if self.is_traced:
                take(round, result)
                continue
            if former is not None:
                mx.eval(take(*former))
            former = round, result
        if former is not None:
            mx.eval(take(*former))

    def average(
        self, rounds: Iterable[Round], gradients: dict[str, mx.array], own: dict[str, Range]
    ) -> dict[str, mx.array]:
        """This member's elements of the averages over the members, flat, by path.

        `own`: which elements of each parameter it has in these rounds.
        """
        members = self._members
        averages: dict[str, mx.array] = {}

        def operation(round: Round) -> mx.array:
            dtype = _common_dtype(gradients[path].dtype for path in round.paths())
            parts = [
                _concatenated(
                    (gradients[path].reshape(-1)[start:stop] for path, start, stop in segments),
                    round.length,
                    dtype,
                )
                for segments in round.segments
            ]
            bucket = self.after_all(_joined(parts))
            if members.scatters:
                total = mx.distributed.sum_scatter(bucket, group=members.group)
            else:
                total = mx.distributed.all_sum(bucket, group=members.group)
                total = total[members.rank * round.length :][: round.length]
            return total / members.size

        def take(round: Round, average: mx.array) -> list[mx.array]:
            offset = 0
            for path, start, stop in round.segments[members.rank]:
                piece = average[offset : offset + stop - start]
                offset += stop - start
                begin, end = own[path]
                if stop - start == end - begin:
                    averages[path] = copied(piece.astype(gradients[path].dtype))
                    continue
                if path not in averages:
                    averages[path] = mx.zeros(end - begin, gradients[path].dtype)
                averages[path][start - begin : stop - begin] = piece
            return [averages[path] for path, _, _ in round.segments[members.rank]]

        self._run(rounds, operation, take)
        return averages

    def norm(self, own: mx.array) -> mx.array:
        """The norm of all members' elements from that of this member's."""
        mine = self.after_all(own.astype(mx.float32).reshape(1))
        norms = mx.distributed.all_gather(mine, group=self._members.group)
        self._before = norms
        if not self.is_traced:
            mx.eval(norms)  # so that nothing holds the averages any more, and they are written to
        return global_norm([norms])  # never overflows, as a sum of squares may

    def sum(self, own: mx.array) -> mx.array:
        """The sum of a small array of each member."""
        total = mx.distributed.all_sum(self.after_all(own), group=self._members.group)
        self._follow(total)
        return total

    def spread(
        self,
        rounds: list[Round],
        updated: dict[str, mx.array],
        own: dict[str, Range],
        parameters: dict[str, mx.array],
        put: Callable[[dict[str, mx.array]], None],
    ) -> None:
        """Write the new elements of all members into the parameters of all of them.

        Args:
            rounds: The rounds.
            updated: This member's new elements, flat, by path.
            own: Which elements of each parameter these are.
            parameters: The parameters, flat, by path. Their buffers are written to if nothing else
                holds them.
            put: Called with what the parameters are after each round.
        """
        members = self._members

        def operation(round: Round) -> mx.array:
            dtype = _common_dtype(parameters[path].dtype for path in round.paths())
            parts = (
                updated[path][start - own[path].start : stop - own[path].start]
                for path, start, stop in round.segments[members.rank]
            )
            mine = self.after_all(_concatenated(parts, round.length, dtype))
            return mx.distributed.all_gather(mine, group=members.group)

        def take(round: Round, bucket: mx.array) -> list[mx.array]:
            paths = round.paths()
            for member, segments in enumerate(round.segments):
                offset = member * round.length
                for path, start, stop in segments:
                    new = bucket[offset : offset + stop - start]
                    offset += stop - start
                    if new.size == parameters[path].size:  # it would be returned as it is
                        parameters[path] = copied(new.astype(parameters[path].dtype))
                    else:
                        parameters[path][start:stop] = new
            put({path: parameters[path] for path in paths})
            return [parameters[path] for path in paths]

        self._run(rounds, operation, take)

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
            self._follow(bucket)
        return whole


def _begins(arrays: list[mx.array]) -> bool:
    """Begin to evaluate arrays; False if they are traced."""
    try:
        mx.async_eval(arrays)
    except ValueError:  # inside a transformation
        return False
    return True


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
