"""scikit-build-core, with a release of MLX as a requirement of its build.

libmlx's C++ interface changes between releases, so that a build is for one of those that
mlx_releases lists: the one that the environment has, or else the newest.
"""

import sys
import sysconfig
from importlib import metadata
from pathlib import Path

if sys.version_info < (3, 10):  # noqa: UP036 (for pip, which runs this with any)
    sys.exit(f"mlx_opt needs Python 3.10 or later, and this is Python {sys.version.split()[0]}")

from scikit_build_core import build
from scikit_build_core.build import *  # noqa: F403

RELEASES = Path(__file__).with_name("mlx_releases").read_text().split()


def mlx_requirement() -> str:
    # pip builds where the environment's packages cannot be imported, but its folders are known.
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    installed = [found.version for found in metadata.distributions(name="mlx", path=folders)]
    version = next((each for each in installed if each in RELEASES), RELEASES[-1])
    return f"mlx[cpu]=={version}"  # [cpu] brings MLX's library under Linux


def get_requires_for_build_wheel(config_settings=None):
    return [*build.get_requires_for_build_wheel(config_settings), mlx_requirement()]


def get_requires_for_build_editable(config_settings=None):
    return [*build.get_requires_for_build_editable(config_settings), mlx_requirement()]
