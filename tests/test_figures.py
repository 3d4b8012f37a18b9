"""The figures that pictures are drawn from are those of the documentation."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def panels():
    """Those that are copied from a page, by file and title."""
    for path in sorted(ROOT.glob("docs/figures/*.json")):
        for panel in json.loads(path.read_text()).get("panels", ()):
            if "page" in panel:
                yield pytest.param(panel, id=f"{path.stem}: {panel['title']}")


@pytest.mark.parametrize("panel", list(panels()))
def test_each_value_is_in_the_page(panel):
    text = (ROOT / panel["page"]).read_text()
    on_page = {float(number) for number in re.findall(r"\d+\.\d+", text)}
    values = [value for of in panel["values"].values() for value in of.values()]
    assert len(values) >= 5
    assert set(values) <= on_page
