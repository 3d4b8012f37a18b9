"""The report of ``python -m mlx_opt info``: whether and how mlx_opt can work here.

Functions import mlx_opt and MLX only when they need them: this module must work if neither can be
imported, and mlx_opt imports it first.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any, NamedTuple

from . import parts

# Set to 1 to get an error instead of formulas if no part serves the MLX that is imported.
REQUIRE_FUSED = "MLX_OPT_REQUIRE_FUSED"

# The distributions with MLX's library, and the extra of `mlx` that brings each.
LIBRARIES = {
    "mlx-metal": "",
    "mlx-cpu": "[cpu]",
    "mlx-cuda-12": "[cuda12]",
    "mlx-cuda-13": "[cuda13]",
}


class Report(NamedTuple):
    """The state of an installation."""

    facts: dict[str, str]
    problems: list[str]
    """For each problem what is wrong, why, and how to fix it."""

    def __str__(self) -> str:
        lines = [f"{name:<9} {value}" for name, value in self.facts.items()]
        lines += [f"\nproblem: {problem}" for problem in self.problems]
        return "\n".join(lines if self.problems else [*lines, "", "All is well."])


def running_as_command() -> bool:
    """True if this process is ``python -m mlx_opt`` and has not reached its ``__main__`` yet."""
    arguments = getattr(sys, "argv", [])
    # sys.argv[0] is "-m" only while Python looks for the module.
    if arguments[:1] != ["-m"]:
        return False
    return sys.orig_argv[-len(arguments)].endswith(("mlx_opt", "mlx_opt.__main__"))


def import_error() -> ImportError | None:
    """The reason why mlx_opt cannot be imported, and how to fix it; None if it can."""
    try:
        built = import_module("mlx_opt._built")
    except ImportError as cause:
        return _error("mlx_opt is not built: pip install it, from its folder or a wheel", cause)
    try:
        import_module("mlx.core")
    except ImportError as cause:
        # An update of one of MLX's two distributions may have removed files of the other.
        again = "--force-reinstall " if _version("mlx") else ""
        mend = f"pip install {again}'{_requirement()}'"
        return _error(
            f"mlx_opt {built.VERSION} needs mlx, which cannot be imported ({cause}): {mend}", cause
        )
    if os.environ.get(REQUIRE_FUSED, "0") not in ("", "0") and (lost := loss()):
        return _error(f"{REQUIRE_FUSED} is set, and {lost}")
    try:
        import_module("mlx_opt._ext")
    except ImportError as cause:
        return _error(
            f"mlx_opt's compiled part cannot be loaded by Python {_python_version()} "
            f"({cause}): install it again with this Python, from its folder or a wheel made for it",
            cause,
        )
    return None


def loss() -> str:
    """What is lost because no part serves the MLX that is imported, and how to get it; empty if
    one does."""
    if parts.is_served():
        return ""
    return (
        f"mlx_opt has no compiled part for mlx {parts.running()}, only for "
        f"{_listed(parts.versions())}: every rule runs as separate operations of mlx, with right "
        "results but without the speed and the low memory of fused steps, and never in place: "
        f"pip install '{_requirement()}'"
    )


def report() -> Report:
    """Inspect the installation and this machine."""
    import platform

    facts = {
        "mlx_opt": _own_version(),
        "mlx": _mlx_versions(),
        "python": f"{_python_version()} ({sys.executable})",
        "platform": platform.platform(),
    }
    error = import_error()
    if error is not None:
        return Report(facts, [str(error)])
    if lost := loss():
        return Report({**facts, "steps": "by formulas"}, [lost])
    device, device_problems = _device_facts()
    threads, thread_problems = _thread_facts()
    return Report(
        {**facts, **device, **threads}, _library_problems() + device_problems + thread_problems
    )


def _error(message: str, cause: ImportError | None = None) -> ImportError:
    error = ImportError(message)
    error.__cause__ = cause
    return error


def _python_version() -> str:
    return sys.version.split()[0]


def _version(distribution: str) -> str | None:
    from importlib import metadata  # here, because it would be a quarter of mlx_opt's import time

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _libraries() -> dict[str, str]:
    """The installed distributions with MLX's library, with their versions."""
    return {name: version for name in LIBRARIES if (version := _version(name))}


def _requirement() -> str:
    """The MLX that pip should install: without the extra it would not update MLX's library."""
    version = (parts.versions() or ["?"])[0]
    fallback = "[cpu]" if sys.platform == "linux" else ""
    extra = next((LIBRARIES[name] for name in _libraries()), fallback)
    return f"mlx{extra}=={version}"


def _own_version() -> str:
    folder = os.path.dirname(os.path.dirname(__file__))
    try:
        built = import_module("mlx_opt._built")
    except ImportError:
        return f"not built, in {folder}"
    return f"{built.VERSION}, built for mlx {_listed(_running_first())}, in {folder}"


def _running_first() -> list[str]:
    """The releases of MLX that have a part, that of the MLX that is imported first."""
    try:
        running = parts.running()
    except ImportError:
        running = ""
    return sorted(parts.versions(), key=lambda version: version != running)


def _listed(versions: list[str]) -> str:
    return ", ".join(versions) or "none"


def _mlx_versions() -> str:
    libraries = ", ".join(" ".join(item) for item in _libraries().items())
    return f"{_version('mlx') or 'not installed'} (library: {libraries or 'none found'})"


def _library_problems() -> list[str]:
    version = _version("mlx")
    return [
        f"mlx {version} is beside {name} {other}, and the two belong together: "
        f"pip install --force-reinstall 'mlx{LIBRARIES[name]}=={version}'"
        for name, other in _libraries().items()
        if version and other != version
    ]


def _device_facts() -> tuple[dict[str, str], list[str]]:
    import mlx.core as mx

    ext: Any = import_module("mlx_opt._ext")
    default = mx.default_device().type.name
    problem = ext.gpu_problem()
    facts = {
        "default": f"{default}, {mx.device_info().get('device_name', 'unnamed')}",
        "CPU": _use("cpu", default),
        _gpu_backend(): _use("gpu", default, problem),
    }
    if default != "gpu" or not problem:
        return facts, []
    if ext.available():
        return facts, [f"every step on the GPU will fail, or be slow: {problem}"]
    return facts, [
        f"no backend serves the default device, gpu ({problem}): mlx_opt runs mlx's own formulas "
        "there, with right results but no speed-up: install a build of mlx_opt that has a backend "
        "for it, or call mx.set_default_device(mx.cpu)"
    ]


def _use(device: str, default: str, problem: str = "") -> str:
    """Say whether the backend of a device is in use, and if not, why."""
    if problem:
        return f"not in use: {problem}"
    if device == default:
        return "in use"
    return f"not in use: ready, but the default device is {default}"


def _gpu_backend() -> str:
    """The name of the GPU backend that a build for this system has."""
    return "Metal" if sys.platform == "darwin" else "CUDA"


def _thread_facts() -> tuple[dict[str, str], list[str]]:
    ext = import_module("mlx_opt._ext")
    facts = {"vectors": ext.vector_level()}
    try:
        threads = ext.num_threads()
    except ValueError as error:
        mend = "set MLX_OPT_NUM_THREADS to a whole number, or unset it"
        return facts, [f"{error}: every step on the CPU will fail: {mend}"]
    source = "MLX_OPT_NUM_THREADS" if os.environ.get("MLX_OPT_NUM_THREADS") else "the default"
    facts["threads"] = f"{threads} ({source}), for {_usable_cores()} usable cores"
    return facts, []


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
