"""Where the time of a step goes on an NVIDIA GPU: the host's share, the kernel's and the limit.

    python benchmarks/cuda_profile.py [--quick] [--only REGEX]

Milliseconds, medians. `sync`: a step and mx.eval of all its results. `pipelined`: mx.async_eval of
each step, in chains of ten, the wall clock over their number. `build` and `eval`: the host's part,
begun with the GPU idle. `kernel`: the GPU's part, from CUPTI through torch.profiler where there is
torch. `bytes`: the peak memory of a parameter beyond its gradient's, synchronous and pipelined.
"""

from __future__ import annotations

import argparse
import functools
import gc
import itertools
import math
import re
import statistics
import time

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as stock

import mlx_opt

try:
    import torch
except ImportError:
    torch = None


def gpt_shapes(layers: int, width: int) -> list[tuple[int, ...]]:
    block = [(width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,)]
    block += [(width,), (width,), (4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    return [(50257, width), (1024, width), *(block * layers), (width,), (width,)]


def gpt_matrices(layers: int, width: int) -> list[tuple[int, ...]]:
    """Those of the blocks."""
    return [s for s in gpt_shapes(layers, width)[2:] if len(s) == 2]


WORKLOADS = {"124M/148": gpt_shapes(12, 768), "1.31G/292": gpt_shapes(24, 2048)}
MATRICES = {"85M/48": gpt_matrices(12, 768)}
RULES = {
    "AdamW": (lambda m: m.AdamW(1e-3, weight_decay=0.01), 7),
    "SGD": (lambda m: m.SGD(1e-3, momentum=0.9), 5),
    "Lion": (lambda m: m.Lion(1e-4, weight_decay=0.01), 5),
    "Adafactor": (lambda m: m.Adafactor(), 6),
    "Lamb": (lambda m: m.Lamb(1e-3), 10),
}
# What else AdamW can keep, with the bytes that a parameter's step moves.
FORMATS = {
    "EMA": ({"ema_decay": 0.999}, {"f32": 36, "bf16": 22}),
    "masters": ({"master_weights": "float32"}, {"bf16": 30}),
    "remainders": ({"master_weights": "remainder"}, {"bf16": 26}),
    "stochastic": ({"stochastic_rounding": True}, {"bf16": 14}),
    "int8": ({"state_dtype": "int8"}, {"f32": 16.25, "bf16": 10.25}),
    "int8, remainders": (
        {"state_dtype": "int8", "master_weights": "remainder"},
        {"bf16": 14.25},
    ),
    "int8, stochastic": ({"state_dtype": "int8", "stochastic_rounding": True}, {"bf16": 10.25}),
}
# Four groups that differ in numbers, in several combinations.
GROUPS = [
    mlx_opt.Group(lambda path, array: array.ndim < 2, weight_decay=0.0),
    mlx_opt.Group("*7", "*8", weight_decay=0.02),
    mlx_opt.Group("*1", learning_rate_scale=16.0),
    mlx_opt.Group("*3", betas=[0.9, 0.95], eps=1e-10),
]
# Its limit is that of momentum and descent, without the products between them.
MUON = {"Muon": (lambda m: m.Muon(0.02), 8)}
DTYPES = {"f32": (mx.float32, 4), "bf16": (mx.bfloat16, 2)}


def parameters(shapes, dtype):
    mx.random.seed(0)
    tree = {f"p{i}": (mx.random.normal(s) * 0.02).astype(dtype) for i, s in enumerate(shapes)}
    mx.eval(tree)
    return tree


class Eager:
    def __init__(self, optimizer, shapes, dtype):
        self.optimizer = optimizer
        self.model = nn.Module()
        for name, parameter in parameters(shapes, dtype).items():
            self.model[name] = parameter
        self.gradients = parameters(shapes, dtype)
        optimizer.init(self.gradients)
        mx.eval(optimizer.state)

    def build(self):
        self.optimizer.update(self.model, self.gradients)

    def transpose_gradients(self):
        """As a linear layer's backward pass leaves them."""
        self.gradients = {k: mx.contiguous(g.T).T for k, g in self.gradients.items()}
        mx.eval(self.gradients)
        return self

    def results(self):
        return self.model.state, self.optimizer.state


class Clipped(Eager):
    """With the gradients' global norm kept to 1 inside the step."""

    def build(self):
        self.optimizer.update(self.model, self.gradients, max_norm=1.0)


class Lazy(Eager):
    """With gradients that are still to be computed, so that the step is a graph."""

    def build(self):
        gradients = {k: mx.stop_gradient(g) for k, g in self.gradients.items()}
        self.optimizer.update(self.model, gradients)


class Compiled(Eager):
    def __init__(self, optimizer, shapes, dtype):
        super().__init__(optimizer, shapes, dtype)
        state = [self.model.state, optimizer.state]
        update = functools.partial(optimizer.update, self.model)
        self.step = mx.compile(update, inputs=state, outputs=state)

    def build(self):
        self.step(self.gradients)


def milliseconds(function, repeats):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def run(subject, repeats):
    def sync():
        subject.build()
        mx.eval(subject.results())

    sync()
    sync()
    mx.synchronize()
    mx.reset_peak_memory()
    wall = milliseconds(sync, repeats)
    peak = mx.get_peak_memory()
    builds, evals = [], []
    for _ in range(repeats):
        mx.synchronize()
        time.sleep(0.002)
        start = time.perf_counter()
        subject.build()
        middle = time.perf_counter()
        mx.async_eval(subject.results())
        builds.append((middle - start) * 1e3)
        evals.append((time.perf_counter() - middle) * 1e3)
    mx.synchronize()

    def chain():
        for _ in range(10):
            subject.build()
            mx.async_eval(subject.results())
        mx.synchronize()

    chain()
    mx.reset_peak_memory()
    pipelined = milliseconds(chain, max(3, repeats // 3)) / 10
    return {
        "sync": wall,
        "pipelined": pipelined,
        "build": statistics.median(builds),
        "eval": statistics.median(evals),
        "sync_peak": peak,
        "pipelined_peak": mx.get_peak_memory(),
    }


def kernel_milliseconds(subject, name="mlx_opt_kernel"):
    """The GPU's time of a step in kernels of that name, and in others."""
    if torch is None:
        return None
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(5):
            subject.build()
            mx.eval(subject.results())
        torch.cuda.synchronize()
    ours = others = 0.0
    for event in profile.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            if event.name == name:
                ours += event.device_time
            else:
                others += event.device_time
    return ours / 5e3, others / 5e3


def copy_bandwidth():
    """Bytes a second of a large device-to-device copy, counted read and written."""
    if torch is None:
        return None
    source = torch.randn(1 << 30, device="cuda")
    target = torch.empty_like(source)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    for _ in range(9):
        start.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return 2 * source.nbytes / statistics.median(times)


def torch_optimizer(rule, tensors):
    if rule == "AdamW":
        return torch.optim.AdamW(tensors, 1e-3, fused=True)
    if rule == "SGD":
        return torch.optim.SGD(tensors, 1e-3, momentum=0.9, fused=True)
    return None


def torch_fused(rule, shapes, dtype, repeats):
    kind = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
    tensors = [(torch.randn(s, device="cuda") * 0.02).to(kind).requires_grad_() for s in shapes]
    for t in tensors:
        t.grad = torch.randn_like(t) * 0.02
    optimizer = torch_optimizer(rule, tensors)
    if optimizer is None:
        return None

    def steps(count):
        for _ in range(count):
            optimizer.step()
        torch.cuda.synchronize()

    steps(2)
    return milliseconds(lambda: steps(1), repeats), milliseconds(lambda: steps(10), 3) / 10


def subjects(rule, make, shapes, kind, quick):
    yield "ours", lambda: Eager(make(mlx_opt), shapes, kind)
    yield "ours, clipped", lambda: Clipped(make(mlx_opt), shapes, kind)
    if quick:
        return
    yield "ours compiled", lambda: Compiled(make(mlx_opt), shapes, kind)
    if rule == "Muon":
        half = mlx_opt.Muon(0.02, ns_dtype=mx.bfloat16)
        yield "ours, bf16", lambda: Eager(half, shapes, kind)
    else:
        yield "ours lazy", lambda: Lazy(make(mlx_opt), shapes, kind)
        yield "ours, g.T", lambda: Eager(make(mlx_opt), shapes, kind).transpose_gradients()
    if not hasattr(stock, rule):
        return
    yield "stock eager", lambda: Eager(make(stock), shapes, kind)
    yield "stock compiled", lambda: Compiled(make(stock), shapes, kind)


def groups_by_turns(shapes, kind, rounds=15, steps=20):
    """Steps with groups and without by turns, synchronous and pipelined."""
    plain, grouped = (
        Eager(mlx_opt.AdamW(1e-3, weight_decay=0.01, groups=groups), shapes, kind)
        for groups in (None, GROUPS)
    )

    def seconds(subject, evaluate):
        start = time.perf_counter()
        for _ in range(steps):
            subject.build()
            evaluate(subject.results())
        mx.synchronize()
        return (time.perf_counter() - start) / steps

    for name, evaluate in (("sync", mx.eval), ("pipelined", mx.async_eval)):
        pairs = [[seconds(each, evaluate) for each in (plain, grouped)] for _ in range(rounds)][1:]
        plain_ms, grouped_ms = (
            1e3 * statistics.median(times) for times in zip(*pairs, strict=True)
        )
        ratio = statistics.median(b / a for a, b in pairs)
        print(f"  {name:10} plain {plain_ms:.3f} four groups {grouped_ms:.3f} ratio {ratio:.3f}")


def cases():
    yield from itertools.product(WORKLOADS.items(), DTYPES.items(), RULES.items())
    yield from itertools.product(MATRICES.items(), list(DTYPES.items())[:1], MUON.items())


def report(name, subject, count, size, limit):
    r = run(subject, 5 if name == "stock eager" else 21)
    sync_bytes, pipelined_bytes = (
        (r[peak] - count * size) / count for peak in ("sync_peak", "pipelined_peak")
    )
    text = (
        f"  {name:14} sync {r['sync']:8.3f} pipelined {r['pipelined']:8.3f}"
        f" build {r['build']:6.3f} eval {r['eval']:6.3f}"
        f" bytes {sync_bytes:5.1f} {pipelined_bytes:5.1f}"
    )
    kernel = kernel_milliseconds(subject) if name in ("ours", "ours, g.T") else None
    if kernel:
        text += f" kernel {kernel[0]:.3f} = {limit / max(kernel[0], 1e-9):.3f} of copy"
        text += f", other kernels {kernel[1]:.3f}"
    print(text, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="mlx_opt alone")
    parser.add_argument("--only", default="", help="a pattern for workload, dtype and rule")
    options = parser.parse_args()
    print(f"mlx {mx.__version__}, {mx.device_info().get('device_name')}")
    bandwidth = copy_bandwidth()
    if bandwidth:
        print(f"copy {bandwidth / 1e12:.3f} TB/s, torch {torch.__version__}")
    for (workload, shapes), (dtype, (kind, size)), (rule, (make, passes)) in cases():
        label = f"{workload} {dtype} {rule}"
        if not re.search(options.only, label):
            continue
        count = sum(math.prod(s) for s in shapes)
        limit = count * size * passes / bandwidth * 1e3 if bandwidth else math.nan
        print(f"{label}: {count / 1e6:.1f} M, limit {limit:.3f}")
        for name, build in subjects(rule, make, shapes, kind, options.quick):
            report(name, build(), count, size, limit)
            gc.collect()
            mx.clear_cache()
        if torch is not None and not options.quick:
            if fused := torch_fused(rule, shapes, dtype, 20):
                print(f"  torch fused    sync {fused[0]:8.3f} pipelined {fused[1]:8.3f}")
            gc.collect()
            torch.cuda.empty_cache()
    for (workload, shapes), (dtype, (kind, size)) in itertools.product(
        WORKLOADS.items(), DTYPES.items()
    ):
        count = sum(math.prod(s) for s in shapes)
        for name, (given, moved) in FORMATS.items():
            label = f"{workload} {dtype} AdamW, {name}"
            if dtype not in moved or not re.search(options.only, label):
                continue
            limit = count * moved[dtype] / bandwidth * 1e3 if bandwidth else math.nan
            print(f"{label}: {moved[dtype]} bytes, limit {limit:.3f}")
            subject = Eager(mlx_opt.AdamW(1e-3, **given), shapes, kind)
            report("ours", subject, count, size, limit)
            if "state_dtype" in given:
                report("ours, g.T", subject.transpose_gradients(), count, size, limit)
            del subject
            gc.collect()
            mx.clear_cache()
        if re.search(options.only, label := f"{workload} {dtype} groups"):
            print(label)
            groups_by_turns(shapes, kind)


if __name__ == "__main__":
    main()
