"""The pictures of the figures in figures/*.json, in place of a comment in pictures.md.

A file with pictures has a title and panels; a panel has a title, what it was measured with, and for
each dtype the values by name. `limit` among them is a line across the other bars.
"""

import html
import json
from typing import Any

from sphinx.application import Sphinx

from .repository import DOCS

MARK = "<!-- pictures -->"
LABELS = {
    "mlx": "mlx.optimizers",
    "compiled": "mlx.optimizers in mx.compile",
    "torch": "torch, fused",
}
PROVENANCE = ("machine", "date", "code", "source")
WIDTH, BAR, LABEL, GAP = 360, 14, 15, 10  # of a picture that fits a phone


def add_pictures(app: Sphinx, docname: str, text: list[str]) -> None:
    if MARK in text[0]:
        text[0] = text[0].replace(MARK, "\n\n".join(pictures()))


def pictures() -> list[str]:
    parts = []
    for path in sorted((DOCS / "figures").glob("*.json")):
        figures = json.loads(path.read_text())
        if "panels" in figures:
            parts.append(f"## {figures['title']}")
            parts += [f"{panel_svg(panel)}\n\n{caption(panel)}" for panel in figures["panels"]]
    return parts


def caption(panel: dict[str, Any]) -> str:
    facts = [panel[key] for key in PROVENANCE if key in panel]
    if "limit" in panel:
        facts.append(f"limit: {panel['limit'].removeprefix('limit: ')}")
    return "; ".join(facts) + "."


def panel_svg(panel: dict[str, Any]) -> str:
    """Horizontal bars in the theme's colours: each name with a bar for each dtype."""
    values = panel["values"]
    names = [name for name in next(iter(values.values())) if name != "limit"]
    scale = 0.78 * WIDTH / max(max(of.get(name, 0) for name in names) for of in values.values())
    drawn, y = [], 0.0
    for name in names:
        y += LABEL
        drawn.append(f'<text y="{y - 4}">{html.escape(LABELS.get(name, name))}</text>')
        for i, (dtype, of) in enumerate(values.items()):
            kind = f"{'ours' if name not in LABELS else 'peer'} dtype{i}"
            drawn.append(bar(y, of.get(name), of.get("limit"), scale, kind, dtype))
            y += BAR + 2
        y += GAP
    title = f"<figcaption>{html.escape(panel['title'])}</figcaption>"
    svg = f'<svg viewBox="0 0 {WIDTH} {y}" role="img" aria-label="{html.escape(panel["title"])}">'
    return f'<figure class="bars">{title}{svg}{"".join(drawn)}</svg></figure>'


def bar(
    y: float, value: float | None, limit: float | None, scale: float, kind: str, dtype: str
) -> str:
    if value is None:
        return f'<text class="value" x="2" y="{y + BAR - 3}">{dtype}: not measured</text>'
    length = value * scale
    parts = [
        f'<rect class="{kind}" y="{y}" width="{length:.1f}" height="{BAR}"/>',
        f'<text class="value" x="{length + 4:.1f}" y="{y + BAR - 3}">{value:g} {dtype}</text>',
    ]
    if limit is not None:
        x = f"{limit * scale:.1f}"
        parts.append(f'<line x1="{x}" x2="{x}" y1="{y - 1}" y2="{y + BAR + 1}"/>')
    return "".join(parts)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", add_pictures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
