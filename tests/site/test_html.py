"""The site's files: every link leads somewhere, and nothing comes from elsewhere."""

from functools import cache
from html.parser import HTMLParser
from urllib.parse import unquote, urldefrag, urljoin, urlparse

import pytest
from built_site import SITE, html_files

import mlx_opt

FETCHED = {"link", "script", "img", "source", "iframe", "video", "audio", "object", "embed"}


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.fetched = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids.add(attributes.get("id"))
        for name in ("href", "src", "data"):
            if attributes.get(name) is not None:
                (self.fetched if tag in FETCHED else self.links).append(attributes[name])


@cache
def page(name):
    return Page((SITE / name).read_text())


def test_there_is_a_site():
    assert {"index.html", "search.html", "rules/adamw.html", "api/cpp.html"} <= set(html_files())


@pytest.mark.parametrize("name", html_files())
def test_every_link_of_a_page_leads_to_a_file_and_an_anchor(name):
    for link in page(name).links:
        if urlparse(link).scheme:
            continue
        path, anchor = urldefrag(link)
        path = unquote(urljoin(f"/{name}", path) if path else f"/{name}").removeprefix("/")
        assert (SITE / path).is_file(), link
        if anchor and path.endswith(".html"):
            assert unquote(anchor) in page(path).ids, link


@pytest.mark.parametrize("name", html_files())
def test_a_page_fetches_nothing_from_elsewhere(name):
    assert page(name).fetched
    for address in page(name).fetched:
        assert not urlparse(address).scheme and not urlparse(address).netloc, address


def test_the_python_reference_has_every_public_name():
    names = set(mlx_opt.__all__) - {"__version__"}
    assert {f"mlx_opt.{name}" for name in names} - page("api/python.html").ids == set()


def test_the_cpp_reference_has_what_a_program_uses():
    ids = " ".join(filter(None, page("api/cpp.html").ids))
    text = (SITE / "api/cpp.html").read_text()
    for name in ("9Optimizer6updateE", "11global_normE", "14gradient_scaleE", "5GroupE", "5AdamWE"):
        assert f"N7mlx_opt{name}" in ids, name
    assert "weight_decay" in text and "skip_nonfinite" in text
    assert "assignment_" not in text  # private


def test_every_figure_is_drawn():
    assert (SITE / "pictures.html").read_text().count("<svg viewBox") >= 4
