"""What tests/package/run hands over: where the wheel is, and a prefix of `cmake --install`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mlx_opt

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/cpp"
sys.path.insert(0, str(ROOT / "packaging"))


def run(*command, **options):
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=300, **options
    )


def output(*command, **options):
    done = run(*command, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="session")
def wheel():
    return Path(os.environ["MLX_OPT_WHEEL"])


@pytest.fixture(scope="session", params=["wheel", "prefix"])
def package(request):
    """The root of an installed C++ package: in site-packages, and where CMake installed it."""
    if request.param == "wheel":
        folder = Path(mlx_opt.__file__).parent
        assert ROOT not in folder.parents
        return folder
    return Path(os.environ["MLX_OPT_PREFIX"])


@pytest.fixture(scope="session")
def mlx_root():
    return output(sys.executable, "-m", "mlx", "--cmake-dir")
