"""The matrix products of Muon's iterations and nothing else, as stock's formula has them."""

from __future__ import annotations

from collections import Counter

import mlx.core as mx

from mlx_opt import newton_schulz

from .workloads import Workload

STEPS = 5


class Products:
    """x x^T, its square, and that times x, for the matrices of one shape together."""

    def __init__(self, workload: Workload) -> None:
        shapes = [s for s in workload.model.shapes.values() if len(s) >= 2]
        counts = Counter(tuple(sorted((s[0], _size(s[1:])))) for s in shapes)
        dtype = mx.bfloat16 if workload.dtype == "bfloat16" else mx.float32
        self.stacks = []
        for (rows, columns), count in counts.items():
            together = max(1, newton_schulz.STACK // (rows * columns))
            while count > 0:
                shape = (min(count, together), rows, columns)
                self.stacks.append(mx.random.uniform(-1, 1, shape).astype(dtype))
                count -= together
        mx.eval(self.stacks)
        self.about = f"x x^T, its square, it times x; {STEPS} times, {len(self.stacks)} stacks"

    def step(self) -> None:
        for _ in range(STEPS):
            for x in self.stacks:
                gram = x @ mx.swapaxes(x, -1, -2)
                mx.eval(gram @ gram, gram @ x)
        mx.synchronize()


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for extent in shape:
        size *= extent
    return size
