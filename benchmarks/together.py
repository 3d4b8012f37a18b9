"""Rules in turn with one another, with their norm and with memory: ``bench --together``."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from statistics import quantiles

import mlx.core as mx
from rich.console import Console
from rich.table import Table

import mlx_opt
from mlx_opt.clipping import global_norm

from .limit import CHUNK
from .measure import WARM_UP_STEPS, Progress, Result, Run, take_turns
from .peers import GRADIENTS_SEED, MLXPeer, Peer, values
from .report import digits, fitting, time_text
from .workloads import ITEMSIZES, Model, Workload

NORM, READ, COPY = "norm", "read", "copy"
HEADINGS = ("step", "ns/\nparam", "bytes/\nparam", "GB/s")


class Norm:
    """The norm of all gradients, as clipping needs it."""

    about = "the gradients' global norm"

    def __init__(self, workload: Workload) -> None:
        self.gradients = values(workload.model, workload.dtype, GRADIENTS_SEED)

    def step(self) -> None:
        mx.eval(global_norm(self.gradients))
        mx.synchronize()


class Memory:
    """NumPy reading as many bytes as the gradients have, or copying them, on all threads."""

    def __init__(self, workload: Workload, copies: bool) -> None:
        import numpy as np

        words = max(1, workload.model.size * ITEMSIZES[workload.dtype] // 8)
        self.np = np
        self.source = np.arange(words, dtype=np.uint64)
        self.target = self.source.copy() if copies else None
        self.threads = mlx_opt.num_threads()
        self.pool = ThreadPoolExecutor(self.threads)
        what = "copied" if copies else "combined by exclusive or"
        self.about = f"{what} by numpy, threads: {self.threads}"

    def step(self) -> None:
        list(self.pool.map(self._part, range(self.threads)))

    def _part(self, thread: int) -> None:
        words = len(self.source)
        begin, end = (words * t // self.threads for t in (thread, thread + 1))
        for start in range(begin, end, CHUNK):
            chunk = slice(start, min(start + CHUNK, end))
            if self.target is None:
                self.np.bitwise_xor.reduce(self.source[chunk])
            else:
                self.np.copyto(self.target[chunk], self.source[chunk])


def run_together(
    rules: list[str], model: Model, dtype: str, rounds: int, progress: Progress
) -> Run:
    """mlx_opt's steps of the rules, in turn with the norm of the gradients and with memory."""
    workloads = {rule: Workload(rule, model, dtype) for rule in rules}
    first = workloads[rules[0]]
    makers: dict[str, Callable[[], Peer]] = {
        rule: partial(MLXPeer, mlx_opt, workload) for rule, workload in workloads.items()
    }
    makers[NORM] = partial(Norm, first)
    if mx.default_device() == mx.cpu and find_spec("numpy") is not None:
        makers[READ] = partial(Memory, first, copies=False)
        makers[COPY] = partial(Memory, first, copies=True)
    peers: dict[str, Peer] = {}
    results = {}
    for name, make in makers.items():
        progress(f"setting up {name}")
        peers[name] = make()
        for _ in range(WARM_UP_STEPS):
            peers[name].step()
        results[name] = Result(name, peers[name].about)
    take_turns(peers, results, rounds, progress)
    return Run(first, results, in_turn=True)


def table_together(run: Run, console: Console) -> Table:
    first, model, dtype = run.workload
    lines = [f"{name}: {result.about}" for name, result in run.results.items()]
    lines.append(f"Medians of {len(run.results[first].seconds)} rounds; 10-90 %: of the rounds.")
    rows = []
    for name in run.results:
        ratios = run.ratios(name, to=first)
        deciles = quantiles(ratios, n=10, method="inclusive")
        moved = _bytes_moved(name, run.workload)
        rows.append(
            [
                name,
                time_text(run.seconds(name)),
                digits(run.nanoseconds_a_parameter(name)),
                str(moved // model.size),
                digits(moved / run.seconds(name) / 1e9),
                digits(quantiles(ratios, n=2, method="inclusive")[0]),
                "" if name == first else f"{digits(deciles[0])}-{digits(deciles[-1])}",
            ]
        )
    title = f"{model.name}: {len(model.shapes)} tensors, {model.size:,} parameters of {dtype}"
    headings = ["", *HEADINGS, f"time/\n{first}", "10-90 %"]
    return fitting(console, headings, rows, title, "\n".join(lines))


def _bytes_moved(name: str, workload: Workload) -> int:
    if name in (NORM, READ, COPY):
        arrays = 2 if name == COPY else 1
        return arrays * workload.model.size * ITEMSIZES[workload.dtype]
    return workload._replace(rule=name).bytes_moved
