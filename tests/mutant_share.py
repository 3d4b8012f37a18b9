"""Which mutants of the kernels are run: all or, if MLX_OPT_MUTANTS is "k/n", each n-th from the
k-th on. Continuous integration runs a half, which the commit chooses."""

import os
import re


def chosen(mutants):
    wanted = os.environ.get("MLX_OPT_MUTANTS", "0/1")
    match = re.fullmatch(r"(\d+)/([1-9]\d*)", wanted)
    if not match:
        raise ValueError(f"MLX_OPT_MUTANTS: expected two numbers such as 0/2, got {wanted!r}")
    return mutants[int(match[1]) :: int(match[2])]
