"""mlx_opt.info: the backends of a build, and why one is not in use."""

import sys
from importlib import import_module
from types import SimpleNamespace

import mlx.core as mx
import pytest

from mlx_opt import _ext, info
from mlx_opt.tools import parts


@pytest.fixture
def machine(monkeypatch):
    """Makes info see a machine: its system, its default device, and how its GPU is served."""

    def see(system, default, gpu_problem, served=True):
        monkeypatch.setattr("sys.platform", system)
        kind = SimpleNamespace(name=default)
        monkeypatch.setattr(mx, "default_device", lambda: SimpleNamespace(type=kind))
        monkeypatch.setattr(mx, "device_info", lambda: {"device_name": "a device"})
        monkeypatch.setattr(_ext, "gpu_problem", lambda: gpu_problem)
        monkeypatch.setattr(_ext, "available", lambda: served)
        return info.report()

    return see


def test_each_backend_of_this_build_is_listed():
    facts = info.report().facts
    default = mx.default_device().type.name
    gpu = "Metal" if sys.platform == "darwin" else "CUDA"
    assert {"CPU", "CUDA", "Metal"} & facts.keys() == {"CPU", gpu}
    assert (facts["CPU"] == "in use") == (default == "cpu")
    assert (facts[gpu] == "in use") == (default == "gpu" and not _ext.gpu_problem())
    if _ext.gpu_problem():
        assert facts[gpu] == f"not in use: {_ext.gpu_problem()}"


def test_without_a_gpu_cuda_says_why_it_is_not_in_use(machine):
    report = machine("linux", "cpu", "no driver")
    assert report.facts["CPU"] == "in use"
    assert report.facts["CUDA"] == "not in use: no driver"
    assert "Metal" not in report.facts
    assert not report.problems


def test_with_a_gpu_the_cpu_says_why_it_is_not_in_use(machine):
    report = machine("linux", "gpu", "")
    assert report.facts["CUDA"] == "in use"
    assert report.facts["CPU"] == "not in use: ready, but the default device is gpu"
    assert not report.problems


def test_a_gpu_that_is_not_the_default_device_is_ready(machine):
    report = machine("darwin", "cpu", "")
    assert report.facts["CPU"] == "in use"
    assert report.facts["Metal"] == "not in use: ready, but the default device is cpu"
    assert "CUDA" not in report.facts


@pytest.mark.parametrize(
    ("served", "consequence"),
    [(True, "every step on the GPU will fail"), (False, "mlx's own formulas")],
)
def test_a_default_gpu_that_is_not_served_is_a_problem(machine, served, consequence):
    report = machine("linux", "gpu", "no kernels", served=served)
    assert report.facts["CUDA"] == "not in use: no kernels"
    [problem] = report.problems
    assert consequence in problem and "no kernels" in problem
    assert "problem: " in str(report)


def test_an_mlx_that_cannot_be_imported_has_one_remedy(monkeypatch):
    """As with `mlx` of one release and `mlx-cpu` of another."""

    def import_or_fail(name):
        if name == "mlx.core":
            raise ImportError("undefined symbol")
        return import_module(name)

    monkeypatch.setattr(info, "import_module", import_or_fail)
    monkeypatch.setattr(info, "_libraries", lambda: {"mlx-cpu": "0.0.1"})
    [problem] = info.report().problems
    assert problem.count("pip install") == 1
    mend = f"pip install --force-reinstall 'mlx[cpu]=={parts.versions()[0]}'"
    assert problem.endswith(f"(undefined symbol): {mend}")
