"""What the check of a wheel asks of an ELF file."""

from __future__ import annotations

from typing import BinaryIO, NamedTuple

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile


class Binary(NamedTuple):
    rpaths: list[str]
    debug: list[str]
    """Sections for debuggers alone."""
    problems: list[str]


def read(file: BinaryIO) -> Binary:
    rpaths, debug = [], []
    for section in ELFFile(file).iter_sections():
        if isinstance(section, DynamicSection):
            for tag in section.iter_tags():
                if tag.entry.d_tag in ("DT_RPATH", "DT_RUNPATH"):
                    rpaths += (tag.runpath if "RUN" in tag.entry.d_tag else tag.rpath).split(":")
        if section.name.startswith(".debug") or section.name == ".symtab":
            debug.append(section.name)
    return Binary(rpaths, debug, [])
