"""The examples run, and what they train gets better."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

pytestmark = pytest.mark.skipif(
    not EXAMPLES.is_dir(), reason="the examples are not beside the tests"
)


def run(name, *arguments):
    command = [sys.executable, EXAMPLES / name, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def numbers(pattern, output):
    found = [float(number) for number in re.findall(pattern, output)]
    assert found, output
    return found


def test_the_transformer_learns(compiler):
    done = run("text_transformer.py", "--steps", "75")
    assert done.returncode == 0, done.stderr
    losses = numbers(r"loss ([\d.]+)", done.stdout)
    assert losses[-1] < 0.85 * losses[0]
    assert "0 steps skipped" in done.stdout


def test_the_diffusion_model_samples_near_the_centres():
    done = run("diffusion.py", "--steps", "200")
    assert done.returncode == 0, done.stderr
    (before,) = numbers(r"before: ([\d.]+)", done.stdout)
    (after,) = numbers(r"after: ([\d.]+)", done.stdout)
    assert after < 1 < before


def test_training_with_rounding_gains_after_quantization():
    done = run("quantized_training.py")
    assert done.returncode == 0, done.stderr
    usual, rounding = numbers(r"with 2 bits ([\d.]+)", done.stdout)
    assert rounding < 0.85 * usual


def test_a_divided_state_goes_on_from_a_checkpoint(tmp_path):
    first = run("divided_state.py", "--steps", "40", "--folder", tmp_path)
    assert first.returncode == 0, first.stderr
    again = run("divided_state.py", "--steps", "10", "--folder", tmp_path)
    assert again.returncode == 0, again.stderr
    assert "process 0 of 1 keeps 534536 bytes of state" in again.stdout
    assert numbers(r"step (\d+)", again.stdout) == [50]
    losses = numbers(r"loss ([\d.]+)", first.stdout + again.stdout)
    assert losses[-1] < 0.5 * losses[0]


def test_lora_learns_or_says_what_it_needs():
    done = run("mlx_lm_lora.py", "--iters", "30")
    if find_spec("mlx_lm") is None:
        assert done.returncode == 1
        assert done.stderr == "this example needs mlx-lm: pip install 'mlx-lm[train]'\n"
        return
    assert done.returncode == 0, done.stderr
    (first,) = numbers(r"loss ([\d.]+) at first", done.stdout)
    (last,) = numbers(r"([\d.]+) in the end", done.stdout)
    assert last < first
