"""The site that `make docs` has built."""

from pathlib import Path

SITE = Path(__file__).resolve().parents[2] / "build" / "site"


def html_files():
    return sorted(path.relative_to(SITE).as_posix() for path in SITE.glob("**/*.html"))
