"""The options of Muon that choose the program of a step."""

from __future__ import annotations

from functools import cache
from types import NoneType
from typing import Any

from . import _ext, newton_schulz
from .rounding import seed_of
from .rule_formula import STORAGE
from .state_dtypes import Formats

PROGRAM = (
    "ns_steps",
    "ns_dtype",
    "ns_coefficients",
    "adjust_lr",
    "equalize",
    "normalize",
    "hyperball",
)
ADJUSTMENTS = ("original", "match_rms_adamw")
MOST_STEPS = 1000
# In the order of the C++ enumerations.
EQUALIZE = (None, "rows", "columns", "both", "sign")
NORMALIZE = (None, "rows", "columns", "rows_columns", "columns_rows", "frobenius")


def program_of(rule: str, values: dict[str, Any], formats: Formats | None) -> _ext.Program:
    """The program of a rule with these options. `formats`: of its slots.

    Raises:
        TypeError, ValueError: An option has a wrong value; the message names it.
    """
    for name, allowed in (
        ("adjust_lr", ADJUSTMENTS),
        ("equalize", EQUALIZE),
        ("normalize", NORMALIZE),
    ):
        if not isinstance(values[name], (str, NoneType)) or values[name] not in allowed:
            shown = ", ".join(map(str, allowed))
            raise ValueError(f"{name}: expected one of {shown}, got {values[name]!r}")
    steps, dtype = values["ns_steps"], values["ns_dtype"]
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"ns_steps: expected an int, got {type(steps).__name__}")
    if steps < 0:
        raise ValueError(f"ns_steps: expected 0 or more, got {steps}")
    if steps > MOST_STEPS:
        raise ValueError(f"ns_steps: expected {MOST_STEPS} or fewer, got {steps}")
    if not (dtype is None or dtype in STORAGE):
        raise ValueError(f"ns_dtype: expected float32, float16, bfloat16 or None, got {dtype}")
    triples = tuple(map(tuple, newton_schulz.coefficients_of(values["ns_coefficients"])))
    return _cached(
        rule,
        steps,
        dtype,
        triples,
        values["adjust_lr"],
        EQUALIZE.index(values["equalize"]),
        NORMALIZE.index(values["normalize"]),
        bool(values["hyperball"]),
        newton_schulz.STACK,
        formats=formats,
        masters=values.get("master_weights"),
        rounding_seed=seed_of(values),
    )


@cache
def _cached(
    *options: Any, formats: Formats | None, masters: str | None, rounding_seed: int | None
) -> _ext.Program:
    """One object for the same options, so that their leaves are updated together."""
    arguments = [*options, None if formats is None else dict(formats), masters, rounding_seed]
    return _ext.muon_program(*arguments)
