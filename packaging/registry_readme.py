"""The README as a package registry shows it: a metadata provider of scikit-build-core.

In the repository its links are relative, so that they work in every copy of it. On a registry's
page they must be absolute. They become so from [project.urls] of pyproject.toml, the only place
that has the repository's address:

    Repository  the address of the repository
    Source      what stands before the path of a file, such as REPOSITORY/blob/main
    Raw         the same for a file's bytes, for pictures

Without these the README stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^]]*)\]\((?P<target>[^)\s]+)\)")


def dynamic_metadata(settings: Mapping[str, Any], project: Mapping[str, Any]) -> dict[str, Any]:
    text = absolute(Path("README.md").read_text(encoding="utf-8"), project.get("urls", {}))
    return {"readme": {"text": text, "content-type": "text/markdown"}}


def absolute(text: str, urls: Mapping[str, str]) -> str:
    """The text with the repository's address before each relative link."""

    def replace(link: re.Match[str]) -> str:
        base = urls.get("Raw" if link["picture"] else "Source", "").rstrip("/")
        if not base or re.match(r"[a-z]+:|#", link["target"]):
            return link[0]
        return f"{link['picture']}[{link['text']}]({base}/{link['target']})"

    return LINK.sub(replace, text)
