"""The reference of the C++ interface, in place of a comment in api/cpp.md.

It is read from the headers that cmake/package.cmake installs: each `///` comment, and the
declaration under it. Structs and enums are shown as they are written.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from sphinx.application import Sphinx

from .repository import ROOT

MARK = "<!-- headers -->"
CSRC = ROOT / "csrc/mlx_opt"
COMMENT = re.compile(r"^ *///( |$)")


class Entry(NamedTuple):
    comment: list[str]  # without its slashes
    declaration: str  # on one line
    body: list[str]  # of a struct or an enum
    is_member: bool


def header_names() -> list[str]:
    """Those with declarations, by the name that a program includes."""
    package = (ROOT / "cmake/package.cmake").read_text()
    listed = re.search(r"set\(headers ([^)]*)\)", package)
    assert listed, "cmake/package.cmake: no list of headers"
    names = [name for name in listed[1].split() if name not in ("mlx_opt", "types/export")]
    return [f"{name}.h" for name in names]


def header_text(name: str) -> str:
    return (CSRC / name).read_text()


def entries(text: str) -> list[Entry]:
    """What has a comment of three slashes, but for private members."""
    public = re.sub(r"^ private:\n.*?(?=^};)", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = iter(public[public.index("#pragma once") :].splitlines())
    return list(_entries(lines))


def _entries(lines: Iterator[str]) -> Iterator[Entry]:
    comment: list[str] = []
    for line in lines:
        if COMMENT.match(line):
            comment.append(COMMENT.sub("", line))
            continue
        if comment:
            yield _entry(comment, line, lines)
        comment = []


def _entry(comment: list[str], first: str, lines: Iterator[str]) -> Entry:
    parts = [first]
    while not first.startswith("#") and parts[-1][-1] not in ";{":
        parts.append(next(lines))
    declaration = " ".join(" ".join(parts).split()).rstrip(" ;{\\")
    body = []
    if re.match(r"(struct|enum) .*\{$", first):
        for line in lines:
            if line == "};":
                break
            body.append(line)
    return Entry(comment, declaration, body, first.startswith("  "))


def markdown(header: str) -> str:
    text = header_text(header)
    parts = [f"## {header}", text.splitlines()[0].removeprefix("// ")]
    owner: list[str] = []
    for entry in entries(text):
        if entry.is_member:  # of the class before it
            owner.append(described(entry, fence=4 * "`"))
            continue
        parts += closed(owner)
        if entry.declaration.startswith("class "):
            owner = [described(entry, fence=5 * "`").rstrip("`")]
        else:
            parts.append(described(entry, fence=4 * "`"))
    return "\n\n".join(parts + closed(owner))


def closed(owner: list[str]) -> list[str]:
    """A class with its members, which are within its directive."""
    if not owner:
        return []
    text = "\n\n".join([*owner, 5 * "`"])
    owner.clear()
    return [text]


def described(entry: Entry, fence: str) -> str:
    code = re.sub(r"\b(MLX_OPT_API|inline) ", "", entry.declaration)
    if code.startswith("#define MLX_OPT_FUNCTION"):  # not there outside of its header
        return "\n".join(prose(entry.comment))
    if code.startswith("#define"):
        kind, code = "c:macro", re.sub(r"^#define (\w+(\([^)]*\))?).*", r"\1", code)
    elif keyword := re.match(r"(struct|class|enum class|using) ", code):
        kinds = {"struct": "struct", "class": "class", "enum class": "enum-class", "using": "type"}
        kind, code = f"cpp:{kinds[keyword[1]]}", code[keyword.end() :]
    else:
        kind = "cpp:function" if "(" in code else "cpp:var"
    lines = [f"{fence}{{{kind}}} {code}", "", *prose(entry.comment)]
    if entry.body:
        lines += ["", "```cpp", *entry.body, "```"]
    return "\n".join([*lines, fence])


def prose(comment: list[str]) -> list[str]:
    """A comment as Markdown: its code is indented, its arguments stand in columns."""
    lines: list[str] = []
    in_code = False
    for line in comment:
        is_code = line.startswith("  ")
        if is_code != in_code and line:
            lines.append("```cpp" if is_code else "```\n")
            in_code = is_code
        argument = re.match(r"(\w+)  +(.*)", line)
        lines.append(f"- `{argument[1]}`: {argument[2]}" if argument else line.removeprefix("  "))
    return lines + ["```"] * in_code


def add_headers(app: Sphinx, docname: str, text: list[str]) -> None:
    if MARK in text[0]:
        parts = ["```{cpp:namespace} mlx_opt\n```", *map(markdown, header_names())]
        text[0] = text[0].replace(MARK, "\n\n".join(parts))


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", add_headers)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
