"""Which member of a group updates which elements, and in which rounds they are exchanged.

Nothing here depends on the member that computes it, so all members compute the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any, NamedTuple

import mlx.core as mx


class Leaf(NamedTuple):
    """A parameter, as if it were whole on one process."""

    path: str
    shape: tuple[int, ...]
    dtype: mx.Dtype
    share: int
    """The index of the optimizer that updates it."""

    whole: bool
    """True if one member updates all of it, because its rule looks at whole tensors."""

    split: bool
    """True if each member's model has only its rows, by :func:`mlx.nn.fully_shard`."""

    def __deepcopy__(self, memo: Any) -> Leaf:
        return self  # a dtype cannot be copied

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def is_exchanged(self) -> bool:
        """False if each member has and updates its own rows."""
        return self.whole or not self.split


class Range(NamedTuple):
    """Consecutive elements of a flattened parameter."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


class Segment(NamedTuple):
    """Elements of a parameter in a round."""

    path: str
    start: int
    stop: int


class Round(NamedTuple):
    """What one collective operation exchanges: for each member `length` elements, which are its
    segments and then padding."""

    length: int
    segments: list[list[Segment]]

    def paths(self) -> list[str]:
        return list(dict.fromkeys(each.path for own in self.segments for each in own))


class Plan:
    """The division of the parameters among the members; a parameter is divided once."""

    def __init__(self, members: int) -> None:
        self.members = members
        self.leaves: dict[str, Leaf] = {}
        self._ranges: dict[str, list[Range]] = {}  # of each member
        self._rounds: dict[tuple[tuple[str, ...], int], list[Round]] = {}  # of the last calls
        self._loads = [0] * members  # the elements of whole tensors that each has

    def range_of(self, path: str, member: int) -> Range:
        """The elements of a parameter that a member updates; empty if it has none."""
        return self._ranges[path][member]

    def extend(self, leaves: Sequence[Leaf]) -> None:
        """Divide more parameters."""
        for leaf in leaves:
            self.leaves[leaf.path] = leaf
        self._assign_tensors([leaf for leaf in leaves if leaf.whole])
        elementwise = [leaf for leaf in leaves if not leaf.whole]
        self._split_rows([leaf for leaf in elementwise if leaf.split])
        for dtype in dict.fromkeys(leaf.dtype for leaf in elementwise):
            own = [leaf for leaf in elementwise if leaf.dtype == dtype and not leaf.split]
            self._split_elements(own)

    def _assign_tensors(self, leaves: list[Leaf]) -> None:
        """Give each tensor, the largest first, to the member that has the fewest elements."""
        for leaf in sorted(leaves, key=lambda leaf: -leaf.size):
            owner = self._loads.index(min(self._loads))
            self._loads[owner] += leaf.size
            self._ranges[leaf.path] = [
                Range(0, leaf.size if member == owner else 0) for member in range(self.members)
            ]

    def _split_rows(self, leaves: list[Leaf]) -> None:
        for leaf in leaves:
            length = leaf.size // self.members
            self._ranges[leaf.path] = [
                Range(i * length, (i + 1) * length) for i in range(self.members)
            ]

    def _split_elements(self, leaves: list[Leaf]) -> None:
        """Divide all elements evenly; each member has consecutive ones."""
        length = -(-sum(leaf.size for leaf in leaves) // self.members)
        offset = 0
        for leaf in leaves:
            starts = [min(max(i * length - offset, 0), leaf.size) for i in range(self.members)]
            self._ranges[leaf.path] = [
                Range(start, stop)
                for start, stop in zip(starts, [*starts[1:], leaf.size], strict=True)
            ]
            offset += leaf.size

    def rounds(self, paths: Iterable[str], bytes_of_a_round: int) -> list[Round]:
        """The rounds in which the members exchange these parameters, one dtype after another."""
        key = tuple(paths), bytes_of_a_round
        if key not in self._rounds:
            if len(self._rounds) >= 4:  # most steps have the same
                self._rounds.clear()
            self._rounds[key] = self._new_rounds(*key)
        return self._rounds[key]

    def _new_rounds(self, paths: Iterable[str], bytes_of_a_round: int) -> list[Round]:
        classes: dict[mx.Dtype, list[Leaf]] = {}
        for path in paths:
            leaf = self.leaves[path]
            classes.setdefault(leaf.dtype, []).append(leaf)
        rounds: list[Round] = []
        for dtype, leaves in classes.items():
            most = max(1, bytes_of_a_round // (dtype.size * self.members))
            rounds += _rounds([self._queue(leaves, i) for i in range(self.members)], most)
        return rounds

    def _queue(self, leaves: list[Leaf], member: int) -> list[Segment]:
        ranges = [(leaf.path, self.range_of(leaf.path, member)) for leaf in leaves]
        return [Segment(path, *each) for path, each in ranges if each.size]


def ranges_in(rounds: list[Round], member: int) -> dict[str, Range]:
    """Which elements of each parameter a member has in consecutive rounds."""
    ranges: dict[str, Range] = {}
    for round in rounds:
        for path, start, stop in round.segments[member]:
            first = ranges[path].start if path in ranges else start
            ranges[path] = Range(first, stop)
    return ranges


def _rounds(queues: list[list[Segment]], most: int) -> list[Round]:
    """Rounds that exchange at most so many elements of each member's queue."""
    cut = [_cut(queue, most) for queue in queues]
    rounds: list[Round] = []
    for i in range(max(map(len, cut))):
        segments = [pieces[i] if i < len(pieces) else [] for pieces in cut]
        length = max(sum(each.stop - each.start for each in own) for own in segments)
        rounds.append(Round(length, segments))
    return rounds


def _cut(queue: list[Segment], most: int) -> list[list[Segment]]:
    """The queue in pieces of `most` elements; the last may have fewer."""
    pieces: list[list[Segment]] = []
    room = 0
    for path, start, stop in queue:
        while start < stop:
            if room == 0:
                pieces.append([])
                room = most
            end = min(stop, start + room)
            pieces[-1].append(Segment(path, start, end))
            room -= end - start
            start = end
    return pieces
