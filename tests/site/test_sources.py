"""Links to files outside docs/, with and without an address of the repository."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from docutils import nodes
from docutils.utils import new_document

DOCS = Path(__file__).resolve().parents[2] / "docs"
sys.path.append(str(DOCS))

from _site import sources  # noqa: E402


def resolved(address):
    """What becomes of a link in the page guides/torch."""
    document = new_document("torch")
    document += nodes.paragraph("", "", nodes.reference(refuri=address))
    builder = SimpleNamespace(get_relative_uri=lambda page, target: f"../{target}.html")
    sources.resolve_links(SimpleNamespace(builder=builder), document, "guides/torch")
    return next(document.findall(nodes.reference))["refuri"]


@pytest.mark.parametrize(
    ("source_url", "expected"),
    [
        ("", "../source/tests/cases.py.html"),
        ("https://host/it/blob/main", "https://host/it/blob/main/tests/cases.py#L1"),
    ],
)
def test_a_link_leads_to_the_repository_if_its_address_is_known(monkeypatch, source_url, expected):
    monkeypatch.setattr(sources, "SOURCE_URL", source_url)
    assert resolved("source:tests/cases.py#L1") == expected


def test_other_links_stay(monkeypatch):
    assert resolved("https://arxiv.org/abs/1711.05101") == "https://arxiv.org/abs/1711.05101"


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("../../csrc/mlx_opt/mlx_opt.h", "csrc/mlx_opt/mlx_opt.h"),
        ("../../README.md", "README.md"),
        ("../groups.md", None),
        ("../../not_there.py", None),
        ("../../../elsewhere", None),
    ],
)
def test_only_links_out_of_the_docs_are_changed(target, path):
    assert sources.source_path(target, DOCS / "guides" / "torch.md") == path
