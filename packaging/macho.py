"""What the check of a wheel asks of a Mach-O file: one architecture, arm64."""

from __future__ import annotations

import hashlib
import struct
from typing import NamedTuple

MAGIC = 0xFEEDFACF
CPU_ARM64 = 0x0100000C
SYMTAB, SEGMENT, CODE_SIGNATURE, RPATH, BUILD_VERSION = 0x2, 0x19, 0x1D, 0x8000001C, 0x32
SUPER_BLOB, CODE_DIRECTORY = 0xFADE0CC0, 0xFADE0C02
PLATFORM_MACOS = 1
LEAST_MACOS = (14, 0)


class Binary(NamedTuple):
    rpaths: list[str]
    debug: list[str]
    """Segments for debuggers alone."""
    problems: list[str]


def read(data: bytes) -> Binary:
    magic, cpu, _, _, commands, *_ = struct.unpack_from("<7I", data)
    if (magic, cpu) != (MAGIC, CPU_ARM64):
        return Binary([], [], ["is no Mach-O file for arm64"])
    rpaths, debug, problems = [], [], []
    signature = None
    at = 32
    for _ in range(commands):
        command, size = struct.unpack_from("<2I", data, at)
        if command == RPATH:
            (start,) = struct.unpack_from("<I", data, at + 8)
            rpaths.append(data[at + start : at + size].split(b"\0")[0].decode())
        elif command == SEGMENT and data[at + 8 : at + 24].startswith(b"__DWARF"):
            debug.append("__DWARF")
        elif command == BUILD_VERSION:
            platform, version = struct.unpack_from("<2I", data, at + 8)
            if platform != PLATFORM_MACOS or (version >> 16, version >> 8 & 255) > LEAST_MACOS:
                problems.append(f"is for platform {platform}, version {version >> 16}")
        elif command == CODE_SIGNATURE:
            start, length = struct.unpack_from("<2I", data, at + 8)
            signature = (start, data[start : start + length])
        at += size
    problems += ["is not signed"] if signature is None else signature_problems(data, *signature)
    return Binary(rpaths, debug, problems)


def signature_problems(data: bytes, start: int, blob: bytes) -> list[str]:
    """Apple silicon ends a process that maps a page whose hash is not the signed one."""
    magic, _, count = struct.unpack_from(">3I", blob)
    if magic != SUPER_BLOB:
        return ["has a signature of another form"]
    checked = 0
    for i in range(count):
        (at,) = struct.unpack_from(">I", blob, 12 + 8 * i + 4)
        if struct.unpack_from(">I", blob, at)[0] != CODE_DIRECTORY:
            continue
        hashes, _, _, pages, limit = struct.unpack_from(">5I", blob, at + 16)
        hash_size, hash_type, _, page_bits = struct.unpack_from(">4B", blob, at + 36)
        if hash_type != 2:
            return [f"has a signature with hashes of type {hash_type}, not SHA-256"]
        if limit != start:
            return ["has a signature that does not cover all of it"]
        page = 1 << page_bits
        for k in range(pages):
            signed = blob[at + hashes + k * hash_size :][:hash_size]
            if hashlib.sha256(data[k * page : min(limit, (k + 1) * page)]).digest() != signed:
                return [f"has a signature that page {k} does not fit"]
            checked += 1
    return [] if checked else ["has a signature without page hashes"]
