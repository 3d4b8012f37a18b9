"""The parts of this build: what was compiled against one release of MLX each.

libmlx's C++ interface changes between releases, so a part serves the release that it was compiled
against and no other.
"""

from __future__ import annotations

import os
import re
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType
from typing import Any


def folder(version: str = "") -> str:
    """Where the part for a release of MLX is; without one, where all parts are."""
    built: Any = import_module("mlx_opt._built")
    every = os.path.join(os.path.dirname(built.__file__), "lib", "mlx_opt")
    return os.path.join(every, f"mlx-{version}") if version else every


def versions() -> list[str]:
    """The releases of MLX that have a part, the newest first."""
    try:
        names = os.listdir(folder())
    except FileNotFoundError:
        return []
    found = [name.removeprefix("mlx-") for name in names if name.startswith("mlx-")]
    return sorted(found, key=lambda version: list(map(int, re.findall(r"\d+", version))))[::-1]


def running() -> str:
    """The release of MLX that is imported."""
    mx: Any = import_module("mlx.core")
    return mx.__version__


def is_served() -> bool:
    """True if there is a part for the MLX that is imported."""
    return running() in versions()


def load(name: str) -> ModuleType:
    """Import the part for the MLX that is imported as a module of this name.

    Raises:
        ImportError: It was made for another Python, or cannot be loaded.
    """
    own = folder(running())
    paths = [os.path.join(own, f"_ext{suffix}") for suffix in EXTENSION_SUFFIXES]
    path = next(filter(os.path.exists, paths), None)
    if path is None:
        raise ImportError(f"{own} has no _ext{EXTENSION_SUFFIXES[0]}")
    spec: Any = spec_from_file_location(name, path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
