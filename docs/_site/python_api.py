"""The reference of the Python package, in place of a comment in api/python.md.

It is made by importing the package, because the classes that mlx.optimizers does not have are made
from the rules' descriptions when it is imported.
"""

import inspect
import re
from typing import Any

from sphinx.application import Sphinx

import mlx_opt
from mlx_opt import schedulers

MARK = "<!-- reference -->"


def sections() -> dict[str, list[str]]:
    """The public names by the heading that they come under."""
    names: dict[str, list[str]] = {
        "The base class": ["Optimizer"],
        "Optimizers": [],
        "Groups": ["Group"],
        "Schedules": list(schedulers.__all__),
        "Functions": [],
    }
    placed = {name for section in names.values() for name in section} | {"__version__"}
    for name in sorted(set(mlx_opt.__all__) - placed, key=str.lower):
        value = getattr(mlx_opt, name)
        if inspect.isclass(value):
            names["Optimizers"].append(name)
        elif value.__module__ == "mlx_opt.groups":
            names["Groups"].append(name)
        else:
            names["Functions"].append(name)
    return names


def directive(name: str) -> list[str]:
    if not inspect.isclass(getattr(mlx_opt, name)):
        return [f".. autofunction:: mlx_opt.{name}", ""]
    # What is in the base class is said there.
    options = ["   :members:", "   :inherited-members: Optimizer"] if name == "Optimizer" else []
    return [f".. autoclass:: mlx_opt.{name}", *options, ""]


def add_reference(app: Sphinx, docname: str, text: list[str]) -> None:
    if MARK not in text[0]:
        return
    lines = []
    for heading, names in sections().items():
        lines += [f"## {heading}", "", "```{eval-rst}"]
        lines += [line for name in names for line in directive(name)]
        lines += ["```", ""]
    text[0] = text[0].replace(MARK, "\n".join(lines))


def adapt_docstring(
    app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]
) -> None:
    """A heading becomes one that napoleon knows, and the path of a page a link."""
    text = "\n".join(lines)
    text = re.sub(r"[ \n]Keyword arguments that mlx.optimizers.*:\n", "\n\nKeyword Args:", text)
    text = re.sub(r"docs/([\w/]+)\.md", r":doc:`/\1`", text)
    lines[:] = text.splitlines()


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", add_reference)
    app.connect("autodoc-process-docstring", adapt_docstring, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
