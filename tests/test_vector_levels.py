"""MLX_OPT_VECTOR_LEVEL: each instruction set that this machine has gives the same numbers."""

import os
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest

from cases import DTYPES, RULES, Case, dtype_name, normal, ulp, wide
from mlx_opt import _ext

pytestmark = pytest.mark.usefixtures("cpu")

LEVELS = ["baseline", "avx2", "avx512", "avx512bf16", "neon"]
SIZE = 1003
STEPS = 3


def tree(seed, dtype):
    return {
        "vector": normal(SIZE, seed=seed, dtype=dtype),
        "matrix": normal(39, 300, seed=seed, dtype=dtype),
    }


def walk():
    """By rule, dtype and leaf: the arrays after some steps, in float64."""
    arrays = {}
    for case in [*RULES, Case("Adafactor", {"beta_1": 0.9})]:
        for dtype in DTYPES:
            optimizer, w = case.ours(0.1), tree(1, dtype)
            for step in range(STEPS):
                w = optimizer.apply_gradients(tree(2 + step, dtype), w)
            for leaf, x in w.items():
                for name, y in {"w": x, **optimizer.state[leaf]}.items():
                    arrays[f"{case} {dtype_name(dtype)} {leaf} {name}"] = wide(y)
    return arrays


def run(level, *arguments):
    environment = os.environ | {"MLX_OPT_VECTOR_LEVEL": level}
    command = [sys.executable, __file__, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_gives_the_numbers_of_the_best(level, tmp_path):
    done = run(level, str(tmp_path / "arrays.npz"))
    if done.returncode and "expected one of" in done.stderr:
        pytest.skip("this machine has no such level")
    assert (done.returncode, done.stdout.strip()) == (0, level), done.stderr
    got, expected = np.load(tmp_path / "arrays.npz"), walk()
    assert set(got) == set(expected)
    for name, x in expected.items():
        dtype = next(t for t in DTYPES if f" {dtype_name(t)} " in name)
        # In half precision a difference in the last bit grows by a bit or two in later steps.
        bound = 2e-6 if dtype == mx.float32 else STEPS * ulp(np.abs(x) + 0.25, dtype)
        assert np.all(np.abs(got[name] - x) <= bound), name


def test_one_level_at_least_is_usable():
    assert _ext.vector_level() in LEVELS
    assert run(_ext.vector_level()).returncode == 0


def test_an_unknown_level_is_refused_with_those_there_are():
    done = run("mmx")
    assert done.returncode == 1
    assert "ValueError: MLX_OPT_VECTOR_LEVEL: expected one of " in done.stderr
    assert ", got mmx" in done.stderr


if __name__ == "__main__":
    print(_ext.vector_level())
    if sys.argv[1:]:
        np.savez(sys.argv[1], **walk())
