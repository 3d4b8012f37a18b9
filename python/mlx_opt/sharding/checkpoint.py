"""Checkpoints of divided states: a file of each member and an index, for any number of members.

The index is the last file that is written, under another name, and renamed. So an interrupted write
leaves the checkpoint that was there. Files of former checkpoints are removed after that.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import zlib
from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx

from .exchange import copied
from .plan import Range

INDEX = "index.json"
FORMAT = "mlx_opt divided state, 1"
_FILE = re.compile(r"[0-9a-f]{16}-\d+-of-\d+\.safetensors")
_RANGES = "ranges"


def new_token() -> str:
    """What the names of a checkpoint's files begin with."""
    return secrets.token_hex(8)


def write_member(
    folder: Path, name: str, arrays: dict[str, mx.array], ranges: dict[str, Range]
) -> dict[str, Any]:
    """Write the file of a member and return what the index says of it.

    `ranges`: which elements of a parameter the arrays have whose names begin with its key.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    mx.save_safetensors(str(path), arrays, {_RANGES: json.dumps(ranges)})
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return _described(path)


def write_index(folder: Path, index: dict[str, Any]) -> None:
    """Make the checkpoint that an index describes the one of the folder."""
    temporary = folder / f".{INDEX}.{secrets.token_hex(8)}"
    with open(temporary, "w") as file:
        json.dump({"format": FORMAT, **index}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder / INDEX)


def remove_others(folder: Path, index: dict[str, Any]) -> None:
    """Remove the files of checkpoints that a folder had before."""
    kept = {each["name"] for each in index["files"]}
    for path in folder.iterdir():
        if _FILE.fullmatch(path.name) and path.name not in kept:
            path.unlink(missing_ok=True)


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a folder's checkpoint.

    Raises:
        FileNotFoundError, ValueError: There is none, or it is damaged.
    """
    path = folder / INDEX
    try:
        index: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:  # no JSON, or no text
        raise ValueError(f"{path}: not an index of a divided state") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise ValueError(f"{path}: not an index of a divided state")
    return index


def check_file(folder: Path, expected: dict[str, Any]) -> None:
    """Compare a file with what the index says of it.

    Raises:
        FileNotFoundError, ValueError: It is missing or damaged.
    """
    path = folder / expected["name"]
    found = _described(path)
    if found != expected:
        raise ValueError(
            f"{path}: damaged: {found['bytes']} bytes with checksum {found['crc32']}, "
            f"expected {expected['bytes']} with {expected['crc32']}"
        )


def _described(path: Path) -> dict[str, Any]:
    size, checksum = 0, 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            size += len(block)
            checksum = zlib.crc32(block, checksum)
    return {"name": path.name, "bytes": size, "crc32": checksum}


class _Slot:
    """A slot of a parameter: an array, or its elements in pieces. They are read when needed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.whole: mx.array | None = None
        self.pieces: list[tuple[Range, mx.array]] = []

    def read(self, own: Range, shape: tuple[int, ...]) -> mx.array:
        """Some elements of it; in the parameter's shape if they are all."""
        size = prod(shape)
        pieces = sorted(self.pieces, key=lambda piece: piece[0])
        if self.whole is not None:
            if own.size == size:
                return _read(self.whole)
            if tuple(self.whole.shape) != shape:
                given = tuple(self.whole.shape)
                raise ValueError(f"{self.name}: {given} cannot be divided into elements")
            pieces = [(Range(0, size), self.whole)]
        parts: list[mx.array] = []
        at = own.start
        for found, array in pieces:
            stop = min(found.stop, own.stop)
            if found.start <= at < stop:
                parts.append(_read(array.reshape(-1)[at - found.start : stop - found.start]))
                at = stop
        if at != own.stop:
            raise ValueError(f"{self.name}: elements {at} to {own.stop - 1} are missing")
        joined = parts[0] if len(parts) == 1 else _read(mx.concatenate(parts))
        return joined.reshape(shape) if own.size == size else joined


def _read(array: mx.array) -> mx.array:
    array = copied(array)
    mx.eval(array)
    return array


class Reader:
    """The arrays of a checkpoint, of which only those are read that are asked for."""

    def __init__(self, folder: Path, index: dict[str, Any]) -> None:
        self.shapes = {key: tuple(shape) for key, shape in index["parameters"].items()}
        """The parameters with their whole shapes, by their keys in the whole state."""

        self.root: dict[str, mx.array] = {}
        """The entries that are of no parameter."""

        self._slots: dict[str, dict[str, _Slot]] = {}  # by the parameter's key
        for each in index["files"]:
            loaded: Any = mx.load(str(folder / each["name"]), return_metadata=True)
            arrays, metadata = loaded
            ranges = json.loads(metadata[_RANGES])
            for name, array in arrays.items():
                key, _, slot = name.rpartition(".")
                if key not in self.shapes:
                    self.root[name] = array
                    continue
                found = self._slots.setdefault(key, {}).setdefault(slot, _Slot(name))
                if key in ranges:
                    found.pieces.append((Range(*ranges[key]), array))
                else:
                    found.whole = array

    def slots(self, key: str, own: Range) -> dict[str, mx.array]:
        """The slots of some elements of a parameter: flat, but whole arrays of all elements.

        Raises:
            ValueError: Elements are missing.
        """
        slots = self._slots.get(key, {})
        return {name: slot.read(own, self.shapes[key]) for name, slot in slots.items()}
