"""The repository's files and, where it is known, its address."""

import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What stands before a file's path, such as REPOSITORY/blob/main: the only place that has it.
SOURCE_URL = PROJECT.get("urls", {}).get("Source", "").rstrip("/")
