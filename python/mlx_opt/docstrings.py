"""What the docstring of each optimizer says of mlx_opt, derived from its description."""

from __future__ import annotations

from inspect import cleandoc
from textwrap import fill
from typing import TypeVar

from .forms import Slot, forms_of

T = TypeVar("T")

# Where the pages are in the repository; each has the formula, the paper and the differences.
PAGES = "docs/rules"

STEP = """\
The step is fused and in place, and its arithmetic is float32, whatever the arrays store.
``update(model, gradients, max_norm=1.0, skip_nonfinite=True)`` clips the gradients by their global
norm inside the step, and skips the step if the norm is not finite. Any number above may also be a
schedule or a 0-d array, and ``groups`` give parameters values of their own."""


def section(name: str, rule: str | None = None) -> str:
    """The paragraphs of an optimizer. `rule`: its name in the rules' descriptions, if that is
    another."""
    slots = {slot.name: slot for form in forms_of(rule or name).forms for slot in form.slots}
    state = ", ".join(map(_slot_text, slots.values())) or "none"
    return "\n\n".join(
        [
            fill(STEP, 92, break_long_words=False, break_on_hyphens=False),
            fill(f"State of each parameter: {state}.", 92, break_on_hyphens=False),
            f"Formula, paper and details: {PAGES}/{name.lower()}.md",
        ]
    )


def completed(cls: type[T]) -> type[T]:
    """A decorator: the class's docstring ends with its section."""
    cls.__doc__ = f"{cleandoc(cls.__doc__ or '')}\n\n{section(cls.__name__)}"
    return cls


def _slot_text(slot: Slot) -> str:
    notes = [f"if ``{slot.option}`` is set"] if slot.option else []
    if slot.extent != "elements":
        notes.append(f"of the {slot.extent}")
    if slot.format == "float32":
        notes.append("always float32")
    return f"``{slot.name}``" + (f" ({', '.join(notes)})" if notes else "")
