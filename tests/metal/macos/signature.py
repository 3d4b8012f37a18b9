"""Checks the ad-hoc code signature of arm64 Mach-O files: signature.py FILE ...

Apple silicon kills a process that maps a page whose hash is not the signed one.
"""

import hashlib
import struct
import sys
from pathlib import Path

CODE_SIGNATURE = 0x1D  # the load command
SUPER_BLOB = 0xFADE0CC0
CODE_DIRECTORY = 0
HEADER_BYTES = 32
SHA256 = 2


def load_commands(data):
    (count,) = struct.unpack_from("<I", data, 16)
    at = HEADER_BYTES
    for _ in range(count):
        kind, size = struct.unpack_from("<II", data, at)
        yield kind, at
        at += size


def problem(data):
    """What is wrong with the signature; None if nothing is."""
    found = [at for kind, at in load_commands(data) if kind == CODE_SIGNATURE]
    if not found:
        return "there is none"
    start, size = struct.unpack_from("<II", data, found[0] + 8)
    blob = data[start : start + size]
    magic, _, count = struct.unpack_from(">III", blob)
    if magic != SUPER_BLOB:
        return "it is not a signature"
    entries = [struct.unpack_from(">II", blob, 12 + 8 * k) for k in range(count)]
    directories = [at for kind, at in entries if kind == CODE_DIRECTORY]
    if not directories:
        return "it has no hashes"
    at = directories[0]
    hashes, _, _, pages, limit = struct.unpack_from(">IIIII", blob, at + 16)
    length, kind, _, page_bits = struct.unpack_from("BBBB", blob, at + 36)
    if kind != SHA256 or limit != start:
        return "it does not cover everything before it"
    for page in range(pages):
        text = data[page << page_bits : min(limit, (page + 1) << page_bits)]
        signed = blob[at + hashes + page * length :][:length]
        if hashlib.sha256(text).digest()[:length] != signed:
            return f"page {page} is not the signed one"
    return None


def main(names):
    problems = {name: problem(Path(name).read_bytes()) for name in names}
    for name, what in problems.items():
        if what:
            print(f"{name}: signature: {what}")
    return any(problems.values())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
