"""What a file of figures says of how they came about."""

from __future__ import annotations

import json
import platform
from datetime import datetime, timezone
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mlx_opt
from mlx_opt.tools import info

SCHEMA = 1
"""The version of the files' structure; it grows when a key changes its meaning or goes."""


def write_figures(path: Path, **figures: Any) -> None:
    """Write figures as JSON, with the time and the environment."""
    head = {
        "schema": SCHEMA,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": environment(),
    }
    path.write_text(json.dumps({**head, **figures}, indent=2) + "\n")


def environment() -> dict[str, str]:
    """What figures depend on. It names no folder, so that the file can be published."""
    report = info.report().facts
    facts: dict[str, str] = {
        "mlx_opt": mlx_opt.__version__,
        "mlx": report["mlx"],
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        **{name: report[name] for name in ("default", "vectors", "threads") if name in report},
    }
    for module, distribution in (
        ("torch", "torch"),
        ("pytorch_optimizer", "pytorch_optimizer"),
        ("mlx_lm", "mlx-lm"),
    ):
        if find_spec(module) is not None:
            facts[distribution] = metadata.version(distribution)
    return facts
