"""Links from pages to files outside docs/, which GitHub shows and Sphinx does not have.

The README is the site's first page. Links to other files go to the repository if pyproject.toml has
its address. Else the site has a page for each of these files, so that no link is dead.
"""

import html
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import TextLexer, get_lexer_for_filename
from pygments.util import ClassNotFound
from sphinx.application import Sphinx

from .repository import DOCS, ROOT, SOURCE_URL

README_MARK = "<!-- README -->"
LINK = re.compile(r"(\]\()((?:\.\./)+[^)\s#]+)")


def source_path(target: str, page: Path) -> str | None:
    """The path in the repository to which a page's link leads, None if it stays in docs/."""
    path = (page.parent / target).resolve()
    if path.is_relative_to(DOCS) or not path.is_relative_to(ROOT) or not path.exists():
        return None
    return path.relative_to(ROOT).as_posix()


def readme() -> str:
    """The README without its heading, as if it were in docs/."""
    text = (ROOT / "README.md").read_text().partition("\n")[2]
    text = re.sub(r"(\]\()(?![a-z]+:|#|docs/)", r"\1../", text)
    return text.replace("](docs/", "](")


def mark_links(app: Sphinx, docname: str, text: list[str]) -> None:
    page = Path(app.env.doc2path(docname))
    if docname == app.config.root_doc:
        text[0] = text[0].replace(README_MARK, readme())

    def marked(link: re.Match[str]) -> str:
        path = source_path(link[2], page)
        if path is None:
            return link[0]
        return f"{link[1]}/index.md" if path == "README.md" else f"{link[1]}source:{path}"

    text[0] = LINK.sub(marked, text[0])


def resolve_links(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    for node in doctree.findall(nodes.reference):
        scheme, _, path = node.get("refuri", "").partition("source:")
        if scheme or not path:
            continue
        if SOURCE_URL:
            node["refuri"] = f"{SOURCE_URL}/{path}"
        else:
            page = page_name(path.partition("#")[0])
            node["refuri"] = app.builder.get_relative_uri(docname, page)


def page_name(path: str) -> str:
    return posixpath.join("source", path)


def source_pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    if SOURCE_URL:
        return
    linked = set()
    for docname in app.env.found_docs:
        page = Path(app.env.doc2path(docname))
        text = page.read_text().replace(README_MARK, readme())
        targets = (link[2] for link in LINK.finditer(text))
        linked |= {path for target in targets if (path := source_path(target, page))}
    for path in sorted(linked - {"README.md"}):
        body = f"<h1>{html.escape(path)}</h1>{shown(ROOT / path)}"
        yield page_name(path), {"title": path, "body": body}, "page.html"


def shown(path: Path) -> str:
    """A file's text as HTML, or the names in a folder."""
    if path.is_dir():
        text, lexer = "\n".join(sorted(each.name for each in path.iterdir())), TextLexer()
    else:
        text = path.read_text()
        try:
            lexer = get_lexer_for_filename(path.name)
        except ClassNotFound:
            lexer = TextLexer()
    return highlight(text, lexer, HtmlFormatter())


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", mark_links)
    app.connect("doctree-resolved", resolve_links)
    app.connect("html-collect-pages", source_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
