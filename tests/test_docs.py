"""Every example that the documentation shows runs, and prints what it says."""

import contextlib
import doctest
import importlib
import io
import pkgutil
import re
import textwrap
from pathlib import Path

import pytest

import mlx_opt
import mlx_opt.sharding
import mlx_opt.tools

ROOT = Path(__file__).resolve().parents[1]
RULES = ROOT / "docs" / "rules"


def modules():
    names = ["mlx_opt"]
    for package in (mlx_opt, mlx_opt.sharding, mlx_opt.tools):
        found = pkgutil.iter_modules(package.__path__, package.__name__ + ".")
        names += [module.name for module in found if module.name != "mlx_opt.__main__"]
    return names


def docstrings():
    """The doctests of all modules; a name that several modules re-export counts once."""
    found = {}
    for name in modules():
        for test in doctest.DocTestFinder().find(importlib.import_module(name), name):
            if test.examples:
                found[test.name] = test
    return found


DOCSTRINGS = docstrings()


def test_there_are_examples():
    assert "mlx_opt.base.Optimizer.apply_gradients" in DOCSTRINGS


@pytest.mark.parametrize("name", list(DOCSTRINGS))
def test_a_docstrings_example_gives_what_it_shows(name):
    output = io.StringIO()
    failed, _ = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(
        DOCSTRINGS[name], out=output.write
    )
    assert not failed, output.getvalue()


def pages():
    found = [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]
    return sorted(page for page in found if page.is_file() and blocks(page))


def blocks(page):
    """The Python of a page; a block may be the inside of a loop and so be indented."""
    text = page.read_text()
    return [
        textwrap.dedent(block)
        for block in re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    ]


@pytest.mark.skipif(not RULES.is_dir(), reason="the documentation is not beside the tests")
def test_each_rule_has_a_page_with_an_example():
    classes = {"Adam", *mlx_opt.descriptions.OPTIMIZERS}
    assert len(classes) >= 12
    assert {page.stem for page in pages()} >= {name.lower() for name in classes}


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_a_pages_examples_print_what_their_comments_say(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # for examples that write files
    names = {}  # of all blocks: one goes on where the one before it ended
    for block in blocks(page):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, str(page), "exec"), names)
        expected = re.findall(r"^print\(.*?\)  # (.*)$", block, re.MULTILINE)
        assert printed.getvalue().splitlines() == expected
