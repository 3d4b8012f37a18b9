"""scikit-build-core, with the MLX that the project depends on as a requirement of its build.

libmlx's C++ interface changes between releases, so that a build is for one version of MLX. That
version is written once, among the project's dependencies.
"""

import sys
from pathlib import Path

if sys.version_info < (3, 10):  # noqa: UP036 (for pip, which runs this with any)
    sys.exit(f"mlx_opt needs Python 3.10 or later, and this is Python {sys.version.split()[0]}")

from scikit_build_core import build
from scikit_build_core.build import *  # noqa: F403

try:
    import tomllib
except ImportError:  # Python 3.10, where scikit-build-core brings it
    import tomli as tomllib


def mlx_requirement() -> str:
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    (requirement,) = (r for r in project["dependencies"] if r.startswith("mlx=="))
    return requirement.replace("mlx", "mlx[cpu]")  # [cpu] brings MLX's library under Linux


def get_requires_for_build_wheel(config_settings=None):
    return [*build.get_requires_for_build_wheel(config_settings), mlx_requirement()]


def get_requires_for_build_editable(config_settings=None):
    return [*build.get_requires_for_build_editable(config_settings), mlx_requirement()]
