"""The share of some checks that is run: all or, if the environment's variable is "k/n", each n-th
from the k-th on. Continuous integration runs a share of some, which the commit chooses."""

import os
import re


def chosen(checks, variable="MLX_OPT_MUTANTS"):
    wanted = os.environ.get(variable, "0/1")
    match = re.fullmatch(r"(\d+)/([1-9]\d*)", wanted)
    if not match:
        raise ValueError(f"{variable}: expected two numbers such as 0/2, got {wanted!r}")
    return checks[int(match[1]) :: int(match[2])]
