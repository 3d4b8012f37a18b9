"""A member that ends in the middle of a training ends the others with an error."""

import os
import sys

import mlx.core as mx
from members import RANK, SIZE, WORLD, normal

import mlx_opt

optimizer = mlx_opt.Sharded(mlx_opt.AdamW(1e-2), WORLD)
w = {"w": normal(1, (100,))}
w = optimizer.apply_gradients(w, w)
mx.eval(w)
if RANK == SIZE - 1:
    os._exit(3)
try:
    for _ in range(1000):
        w = optimizer.apply_gradients(w, w)
        mx.eval(w)
except RuntimeError as error:
    print(f"member {RANK}: {error}", flush=True)
    sys.exit(1)
print(f"member {RANK} went on", flush=True)
