"""Fixtures, and how hard hypothesis looks.

`pytest --hypothesis-profile=search` looks further, at other examples each time.
"""

import gc
import os
import shutil

# NVIDIA GPUs compute float32 products with 10 bits by default, and no two orders of them agree.
os.environ.setdefault("MLX_ENABLE_TF32", "0")

import mlx.core as mx
import mlx.optimizers
import pytest
from hypothesis import HealthCheck, settings

from share import chosen

_slow_is_fine = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("suite", derandomize=True, database=None, **_slow_is_fine)
settings.register_profile("search", max_examples=2000, **_slow_is_fine)
settings.load_profile("suite")


def pytest_collection_modifyitems(config, items):
    run = chosen(items, "MLX_OPT_TESTS")
    if len(run) < len(items):
        kept = {*run}
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = run


def pytest_collection_finish(session):
    """Take the tests themselves out of the garbage collector's sight: some tests collect often."""
    gc.freeze()


@pytest.fixture(autouse=True)
def the_oracle_stays_mlx():
    """mlx_opt.install replaces names in mlx.optimizers; no test may leave them so to the next."""
    before = dict(vars(mlx.optimizers))
    yield
    vars(mlx.optimizers).update(before)


@pytest.fixture
def cpu():
    """For features that MLX has only on the CPU, and guarantees that hold only there."""
    if mx.default_device().type != mx.cpu:
        pytest.skip("the default device is not the CPU")


@pytest.fixture
def compiler():
    """For tests of mx.compile's traces: on the CPU without g++ it traces nothing."""
    if mx.default_device().type == mx.cpu and shutil.which("g++") is None:
        pytest.skip("mx.compile has no compiler")


@pytest.fixture
def denormals():
    """For float32's denormals, which Metal treats as zero."""
    if mx.default_device().type == mx.gpu and mx.metal.is_available():
        pytest.skip("Metal flushes denormals to zero")
