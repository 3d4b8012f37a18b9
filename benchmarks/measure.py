"""Steps timed in turn: every round times each peer once, in an order of its own."""

from __future__ import annotations

import gc
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

import mlx.core as mx

from .peers import LIMIT, OURS, PEERS, PRODUCTS, Peer
from .workloads import Workload

WARM_UP_STEPS = 3
# A turn of short steps is as many of them as fill this time.
TURN_SECONDS = 0.02
MOST_STEPS_A_TURN = 200
# PyTorch's threads look for more work for some milliseconds after a step, on the next peer's cores.
PAUSE_SECONDS = 0.02
# What a peer may hold, in multiples of the arrays that a step touches.
COPIES = {"mlx": 2, "compiled": 2}
MEMORY_SHARE = 0.6


@dataclass
class Result:
    """A peer's times on a workload."""

    peer: str
    about: str = ""
    seconds: list[float] = field(default_factory=list)
    """Of one step; a value for each round."""

    peak_bytes: int | None = None
    """The most memory in arrays during a step, gradients included; of MLX's peers only."""


@dataclass
class Run:
    """The results of all peers on one workload."""

    workload: Workload
    results: dict[str, Result]
    in_turn: bool
    """Whether the peers took turns; else their sum was too large and each ran alone."""

    def seconds(self, peer: str) -> float:
        return median(self.results[peer].seconds)

    def ratios(self, peer: str, to: str) -> list[float]:
        """A peer's time over another's, in each round."""
        pairs = zip(self.results[peer].seconds, self.results[to].seconds, strict=True)
        return [a / b for a, b in pairs]

    def nanoseconds_a_parameter(self, peer: str) -> float:
        return self.seconds(peer) * 1e9 / self.workload.model.size

    def gigabytes_a_second(self, peer: str) -> float:
        """By the bytes that the rule has to move, whatever the peer moves."""
        return self.workload.bytes_moved / self.seconds(peer) / 1e9

    def share_of_limit(self, peer: str) -> float:
        return median(self.ratios(LIMIT, to=peer))

    def time_over_ours(self, peer: str) -> float:
        return median(self.ratios(peer, to=OURS))

    def peak_bytes_a_parameter(self, peer: str) -> float | None:
        peak = self.results[peer].peak_bytes
        return None if peak is None else peak / self.workload.model.size


Progress = Callable[[str], None]


def measure(workload: Workload, names: list[str], rounds: int, progress: Progress) -> Run:
    """Time peers on a workload; `progress` is told before each one's set-up and turns."""
    needed = sum(COPIES.get(name, 1) for name in names) * workload.resident_bytes
    in_turn = needed <= MEMORY_SHARE * memory_bytes()
    groups = [names] if in_turn else [[name] for name in names]
    results = {name: Result(name) for name in names}
    for group in groups:
        peers = {}
        for name in group:
            progress(f"setting up {name}")
            peers[name] = _set_up(workload, results[name])
        take_turns(peers, results, rounds, progress)
        del peers
        _free_memory()
    return Run(workload, results, in_turn)


def memory_bytes() -> int:
    """The memory of the default device."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if mx.default_device() == mx.cpu:
        return physical
    info = mx.device_info()
    return int(info.get("memory_size") or info.get("total_memory") or physical)


def _set_up(workload: Workload, result: Result) -> Peer:
    _free_memory()
    others = mx.get_active_memory()
    peer = PEERS[result.peer](workload)
    for _ in range(WARM_UP_STEPS):
        peer.step()
    result.about = peer.about
    mx.reset_peak_memory()
    peer.step()
    if result.peer not in ("torch", "published", PRODUCTS, LIMIT):
        result.peak_bytes = max(mx.get_peak_memory(), mx.get_active_memory()) - others
    return peer


def take_turns(
    peers: dict[str, Peer], results: dict[str, Result], rounds: int, progress: Progress
) -> None:
    """Add a time to each peer's result in each round; `progress` is told before each turn."""
    steps = {name: _steps_a_turn(peer) for name, peer in peers.items()}
    order = list(peers)
    # Shuffled: nobody is always behind the same one, which leaves it caches and busy threads.
    generator = random.Random(0)
    for _ in range(rounds):
        generator.shuffle(order)
        for name in order:
            progress(name)
            time.sleep(PAUSE_SECONDS)
            results[name].seconds.append(_seconds_a_step(peers[name], steps[name]))


def _steps_a_turn(peer: Peer) -> int:
    return max(1, min(MOST_STEPS_A_TURN, int(TURN_SECONDS / _seconds_a_step(peer, 1))))


def _seconds_a_step(peer: Peer, steps: int) -> float:
    gc.disable()
    try:
        start = time.perf_counter()
        for _ in range(steps):
            peer.step()
        return (time.perf_counter() - start) / steps
    finally:
        gc.enable()


def _free_memory() -> None:
    gc.collect()
    mx.clear_cache()
