"""Every kernel once over small arrays, for compute-sanitizer to look at: small_run.py [PATTERN].

PATTERN selects some of the rules and dtypes, such as "Lamb .*float16".
"""

import re
import sys

import mlx.core as mx
import mlx.nn as nn

import mlx_opt

RULES = [
    lambda: mlx_opt.SGD(0.1, weight_decay=0.1),
    lambda: mlx_opt.SGD(0.1, momentum=0.9),
    lambda: mlx_opt.SGD(0.1, momentum=0.9, nesterov=True, dampening=0),
    lambda: mlx_opt.RMSprop(0.1),
    lambda: mlx_opt.Adagrad(0.1),
    lambda: mlx_opt.AdaDelta(0.1),
    lambda: mlx_opt.AdamW(0.1, bias_correction=True),
    lambda: mlx_opt.Adamax(0.1),
    lambda: mlx_opt.Lion(0.1),
    lambda: mlx_opt.Signum(0.1),
    lambda: mlx_opt.NAdam(0.1),
    lambda: mlx_opt.AdEMAMix(0.1),
    lambda: mlx_opt.Adan(0.1),
    lambda: mlx_opt.MADGRAD(0.1),
    lambda: mlx_opt.Lamb(0.1),
    lambda: mlx_opt.AdamW8bit(0.1),
    lambda: mlx_opt.Lion8bit(0.1),
    lambda: mlx_opt.Adafactor(),
    lambda: mlx_opt.Adafactor(beta_1=0.9, weight_decay=0.1),
]
SIZES = [1, 3, 64, 4095, 4096, 4097, 9000]


def filled(shape, dtype, value):
    return mx.full(shape, value, dtype)


def gradients_of(dtype):
    flat = {f"flat{n}": filled((n,), dtype, 0.5) for n in SIZES}
    odd = {
        "matrix": filled((200, 300), dtype, 0.5),
        "matrices": filled((3, 130, 40), dtype, 0.5),
        "scalar": filled((), dtype, 0.5),
        "transposed": filled((70, 130), dtype, 0.5).T,
        "transposed-odd": filled((67, 33), dtype, 0.5).T,
        "transposed-blocks": filled((64, 67), dtype, 0.5).T,
        "misaligned": filled((5001,), dtype, 0.5)[1:].reshape(50, 100),
        "strided": filled((60, 40), dtype, 0.5)[::2, ::3],
    }
    mx.eval(flat, odd)
    return {**flat, **odd}


pattern = sys.argv[1] if len(sys.argv) > 1 else ""
for dtype in (mx.float32, mx.float16, mx.bfloat16):
    for optimizer in (rule() for rule in RULES):
        if not re.search(pattern, f"{type(optimizer).__name__} {dtype}"):
            continue
        gradients = gradients_of(dtype)
        model = nn.Module()
        for name, g in gradients.items():
            model[name] = filled(g.shape, dtype, 1.0)
        # The first makes new arrays, the others overwrite them.
        for options in ({}, {}, {"max_norm": 0.5}, {"max_norm": 0.5, "skip_nonfinite": True}):
            optimizer.update(model, gradients, **options)
            mx.eval(model, optimizer.state)
        assert all(mx.all(mx.isfinite(p)).item() for p in model.values())
print("done")
