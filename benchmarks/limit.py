"""What memory allows: the bytes of a step, streamed through as many arrays with no arithmetic.

Each array but the gradient is read and written in place; the gradient is read. The arrays have no
borders between tensors, and nothing is computed but one bit operation a word.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any, Protocol

import mlx.core as mx

import mlx_opt

from .workloads import Workload

# In words of 8 bytes: long enough to hide Python, short enough to go through all arrays in turn.
CHUNK = 1 << 17


class Streams(Protocol):
    about: str
    """Who streams, on how many threads or streams, and how many arrays."""

    def step(self) -> None: ...


class Limit:
    """The peer that streams the bytes of a step."""

    def __init__(self, workload: Workload) -> None:
        words = max(1, workload.bytes_moved // (2 * workload.arrays - 1) // 8)
        by_numpy = mx.default_device() == mx.cpu and find_spec("numpy") is not None
        streams: type[NumpyStreams | MLXStreams] = NumpyStreams if by_numpy else MLXStreams
        self.streams: Streams = streams(words, workload.arrays)

        self.about = f"bit operations in place, {self.streams.about}"

    def step(self) -> None:
        self.streams.step()


class NumpyStreams:
    """NumPy in as many threads as are fastest."""

    def __init__(self, words: int, arrays: int) -> None:
        import numpy as np

        self.np = np
        self.arrays = [np.arange(words, dtype=np.uint64) for _ in range(arrays)]
        self.pool = ThreadPoolExecutor(mlx_opt.num_threads())
        self.threads = min(_thread_counts(), key=self._trial)
        plural = "s" if self.threads > 1 else ""
        self.about = f"numpy, {self.threads} thread{plural}, {arrays} arrays"

    def step(self) -> None:
        self._step(self.threads)

    def _trial(self, threads: int) -> float:
        times = []
        for _ in range(4):
            start = time.perf_counter()
            self._step(threads)
            times.append(time.perf_counter() - start)
        return min(times)

    def _step(self, threads: int) -> None:
        if threads == 1:
            self._stream(0, 1)
        else:
            list(self.pool.map(self._stream, range(threads), [threads] * threads))

    def _stream(self, thread: int, threads: int) -> None:
        words = len(self.arrays[0])
        begin, end = words * thread // threads, words * (thread + 1) // threads
        for start in range(begin, end, CHUNK):
            chunk = slice(start, min(start + CHUNK, end))
            parameter, gradient, *slots = (array[chunk] for array in self.arrays)
            self.np.bitwise_xor(parameter, gradient, out=parameter)
            for slot in slots:
                self.np.invert(slot, out=slot)


class MLXStreams:
    """MLX's own operations, which work in place where nothing else holds their input."""

    def __init__(self, words: int, arrays: int) -> None:
        on_cpu = mx.default_device() == mx.cpu
        # A stream is a thread on the CPU; a GPU needs one to be busy.
        count = mlx_opt.num_threads() if on_cpu else 1
        self.streams = [mx.new_stream(mx.default_device()) for _ in range(count)]
        part = max(1, 2 * words // count)
        self.parts: list[list[mx.array]] = [
            [mx.arange(part, dtype=mx.uint32) for _ in range(arrays)] for _ in self.streams
        ]
        mx.eval(self.parts)
        self.about = f"mlx, {count} stream{'s' if count > 1 else ''}, {arrays} arrays"

    def step(self) -> None:
        for stream, part in zip(self.streams, self.parts, strict=True):
            self._stream(part, stream)
        mx.eval(self.parts)
        for stream in self.streams:
            mx.synchronize(stream)

    @staticmethod
    def _stream(part: list[mx.array], stream: Any) -> None:
        part[0] = mx.bitwise_xor(part[0], part[1], stream=stream)
        for i in range(2, len(part)):
            part[i] = mx.bitwise_invert(part[i], stream=stream)


def _thread_counts() -> list[int]:
    available = mlx_opt.num_threads()
    counts = [1]
    while counts[-1] * 2 <= available:
        counts.append(counts[-1] * 2)
    return sorted({*counts, available})
