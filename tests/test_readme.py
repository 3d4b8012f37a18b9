"""The README: its links, and what a package registry is given."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PROVIDER = ROOT / "packaging" / "registry_readme.py"

pytestmark = pytest.mark.skipif(not PROVIDER.is_file(), reason="only in the repository")

URLS = {"Source": "https://host/us/it/blob/main/", "Raw": "https://host/us/it/raw/main"}


@pytest.fixture
def absolute():
    spec = importlib.util.spec_from_file_location("registry_readme", PROVIDER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.absolute


def targets(text):
    return re.findall(r"\]\(([^)\s]+)\)", text)


def test_every_relative_link_leads_to_a_file():
    relative = [target for target in targets(README.read_text()) if "://" not in target]
    assert relative
    for target in relative:
        assert (ROOT / target.partition("#")[0]).exists(), target


def test_on_a_registry_every_link_is_absolute(absolute):
    text = absolute(README.read_text(), URLS)
    assert all(target.startswith("https://") for target in targets(text))
    assert "![" in text and "](https://host/us/it/raw/main/docs/" in text


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("[a](docs/a.md#b)", "[a](https://host/us/it/blob/main/docs/a.md#b)"),
        ("![a b](docs/a.png)", "![a b](https://host/us/it/raw/main/docs/a.png)"),
        ("[a](https://other/a)", "[a](https://other/a)"),
        ("[a](#section)", "[a](#section)"),
        ("f(x) [a] (b)", "f(x) [a] (b)"),
    ],
)
def test_a_link_gets_the_repositorys_address(absolute, before, after):
    assert absolute(before, URLS) == after


def test_without_an_address_the_text_stays_as_it_is(absolute):
    assert absolute(README.read_text(), {}) == README.read_text()


def test_the_page_on_equality_shows_the_figures_of_its_file():
    runs = json.loads((ROOT / "docs/figures/equality.json").read_text())["runs"]
    rows = [row for run in runs for row in (run["mlx_opt"], *run["nudged"])]
    shown = {f"{value:.2g}" for row in rows for value in row.values()}
    shown |= {f"{run['same_gradients']:.2g}" for run in runs}
    table = re.findall(r"^\| (?:mlx_opt|stock).*$", (ROOT / "docs/equality.md").read_text(), re.M)
    cells = {cell.strip() for line in table for cell in line.split("|")[2:]}
    assert cells - {""} == shown


def test_the_page_on_convergence_shows_the_figures_of_its_file():
    tasks = json.loads((ROOT / "docs/figures/convergence.json").read_text())["tasks"]
    shown = []
    for task in tasks.values():
        for name, runs in task["losses"].items():
            ends = [run[-1] for run in runs]
            mean, low, high = sum(ends) / len(ends), min(ends), max(ends)
            milliseconds = task["step_seconds"][name] * 1e3
            shown.append(
                f"| `{name}` | {task['rates'][name]:.2g} | {mean:.3f} | {low:.3f} to {high:.3f} "
                f"| {milliseconds:.1f} |"
            )
    page = (ROOT / "docs/convergence.md").read_text()
    assert sorted(re.findall(r"^\| `.*$", page, re.M)) == sorted(shown)
