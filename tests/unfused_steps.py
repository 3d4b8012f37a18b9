"""Steps that tests/test_unfused.py takes in two processes, with a part and without."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

import mlx_opt

HIDDEN = "0.0.1"
"""A version of MLX that no part is for."""

SHAPES = {"matrix": (6, 4), "vector": (5,), "scalar": ()}


def name_of(rule, options):
    return "-".join([rule, *(f"{k}={v}" for k, v in options.items())])


def tree(seed):
    """Arrays of each shape in float32 and bfloat16."""
    generator = np.random.default_rng(seed)
    values = {k: mx.array(generator.normal(size=s).astype(np.float32)) for k, s in SHAPES.items()}
    halves = {k: x.astype(mx.bfloat16) for k, x in values.items()}
    return {"float32": values, "bfloat16": halves}


def read(path):
    return mx.load(f"{path}.safetensors")


def write(path, arrays):
    mx.save_safetensors(f"{path}.safetensors", dict(tree_flatten(arrays)))


def run(rule, options, start, end):
    """Take two steps from a file, or from the beginning, and write parameters and state."""
    optimizer = getattr(mlx_opt, rule)(0.01, **options)
    first, w = 1, tree(0)
    if start is None:
        optimizer.init(w)
    else:
        held = tree_unflatten(list(read(start).items()))
        first, w, optimizer.state = 3, held["w"], held["state"]
    for step in range(first, first + 2):
        w = optimizer.apply_gradients(tree(step), w)
    mx.eval(w, optimizer.state)
    write(end, {"w": w, "state": optimizer.state})


def run_features(path):
    """Write what an optimizer of each feature comes to."""
    schedule = mlx_opt.cosine_decay(0.1, 10)
    groups = [mlx_opt.no_decay(), mlx_opt.Group("weight", learning_rate_scale=0.5)]
    fallback = mlx_opt.AdamW(0.01)
    optimizers = {
        "schedule": mlx_opt.AdamW(schedule, weight_decay=schedule),
        "groups": mlx_opt.AdamW(0.1, weight_decay=0.1, groups=groups),
        "frozen": mlx_opt.Lion(0.1, groups=[mlx_opt.freeze("bias")]),
        "several": mlx_opt.MultiOptimizer(
            [mlx_opt.SGD(0.1, momentum=0.9), mlx_opt.NAdam(0.1)], [lambda path, x: x.ndim > 1]
        ),
        "fallback": mlx_opt.Muon(0.1, fallback=fallback),
        "nesterov": mlx_opt.AdamW(0.1, nesterov=True, cautious_weight_decay=True),
        "ema": mlx_opt.AdamW(0.1, ema_decay=0.5, ema_warmup="ratio"),
        "numpy": mlx_opt.Signum(0.1, beta=np.float32(0.5), weight_decay=np.array(0.25)),
    }
    written = {}
    for name, optimizer in optimizers.items():
        model = nn.Linear(4, 3)
        model.update({"weight": mx.ones((3, 4)), "bias": mx.zeros(3)})
        if name == "schedule":
            optimizer.loss_scale = 8.0
        for gradients in _gradients():
            optimizer.update(model, gradients, max_norm=1.0, skip_nonfinite=True)
        rows = [] if name == "several" else optimizer.describe(model, show=False)
        assert all(row.rule for row in rows)
        written[name] = {"w": model.parameters(), "state": optimizer.state}
    written["compiled"] = _compiled()
    written["half"] = _half()
    mx.eval(written)
    write(path, written)


def _gradients():
    """Three gradients of a linear layer, of which the second is not finite."""
    for i, factor in enumerate((1.0, float("nan"), 2.0)):
        weight = mx.arange(12).reshape(3, 4) * 0.1 - 0.3 * (i + 1)
        yield {"weight": weight * factor, "bias": mx.array([1.0, -2.0, 3.0]) * (i + 1)}


def _half():
    """A gradient that divided by the loss scale is too small for float16."""
    optimizer, w = mlx_opt.SGD(2.0**20), {"w": mx.ones(3, mx.float16)}
    optimizer.loss_scale = 2.0**12
    w = optimizer.apply_gradients({"w": mx.full(3, 2.0**-14, mx.float16)}, w)
    assert w["w"].dtype == mx.float16 and w["w"][0].item() == 1 - 2**-6
    return {"w": w, "state": optimizer.state}


def _compiled():
    model, optimizer = nn.Linear(4, 3), mlx_opt.Adafactor(0.1, relative_step=False, beta_1=0.9)
    model.update({"weight": mx.ones((3, 4)), "bias": mx.zeros(3)})
    optimizer.init(model.trainable_parameters())
    state = [model.state, optimizer.state]
    step = mx.compile(lambda g: optimizer.update(model, g), inputs=state, outputs=state)
    for gradients in list(_gradients())[::2]:
        step(gradients)
    return {"w": model.parameters(), "state": optimizer.state}
