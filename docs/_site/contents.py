"""The site's table of contents: the sections of index.md and the pages that they list."""

import posixpath
import re
from collections.abc import Iterable
from typing import Any

from sphinx.application import Sphinx

SECTION = re.compile(r"^## (.+?)$(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
PAGE = re.compile(r"^ *- \[([^]]+)\]\(([^)#:]+)\.md\)", re.MULTILINE)


def add_contents(app: Sphinx, docname: str, text: list[str]) -> None:
    """A page that index.md does not list comes last."""
    if docname != app.config.root_doc:
        return
    sections = {caption: PAGE.findall(section) for caption, section in SECTION.findall(text[0])}
    listed = {page for pages in sections.values() for _, page in pages} | {docname}
    rest = [page for page in app.env.found_docs - listed if not page.startswith("rules/")]
    for caption, pages in sections.items():
        lines = [f"{title} <{page}>" for title, page in pages]
        if caption == list(sections)[-1]:
            lines += sorted(rest)
        if lines:
            text[0] += toctree(lines, f":caption: {caption}")


def add_rules(app: Sphinx, docname: str, text: list[str]) -> None:
    """The pages of the rules come under their table."""
    if docname == "rules/README":
        pages = sorted(page for page in app.env.found_docs if page.startswith("rules/"))
        text[0] += toctree(posixpath.basename(page) for page in pages if page != docname)


def toctree(lines: Iterable[str], *options: str) -> str:
    return "\n".join(["\n", "```{toctree}", ":hidden:", *options, "", *lines, "```", ""])


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", add_contents)
    app.connect("source-read", add_rules)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
