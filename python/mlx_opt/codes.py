"""Codes of 8 bits that store state slots, with a scale for each block of elements.

The blocks are of elements that are adjacent in the flattened tensor. A slot's codes are an array of
the parameter's shape under the slot's name, int8 for numbers of any sign and uint8 for numbers that
are not negative; the scales are a float32 vector beside it. rules/codes.h has the mapping.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import mlx.core as mx

from .descriptions import STORAGE, Slot

FORMAT = "int8"

BLOCK = 64
"""The elements of a block."""

MIN_SIZE = 4096
"""Parameters of fewer elements have no codes, nor have those that only formulas update."""

_ONE = 0x3F800000
"""The bits of 1.0."""

_LEVELS = {mx.int8: (127, 1), mx.uint8: (255, 2)}
"""By the dtype of codes, the largest and how far the bits of a number are shifted for its root."""

_SMALLEST = 2.0**-126


def scale_name(slot: str) -> str:
    """The name of the scales of a slot's codes."""
    return f"{slot}_scale"


def has_codes(slot: Slot, parameter: mx.array) -> bool:
    """True if a parameter's slot is stored in codes."""
    is_large = parameter.size >= MIN_SIZE
    return slot.format == FORMAT and is_large and parameter.dtype in STORAGE.values()


def dtype_of(slot: Slot) -> mx.Dtype:
    return mx.uint8 if slot.codes == "not_negative" else mx.int8


def _blocks(size: int) -> int:
    return -(-size // BLOCK)


def begin(slot: Slot, parameter: mx.array) -> dict[str, mx.array]:
    """The codes and scales of a slot before the first step."""
    value = float("nan") if slot.begin == "unset" else 0.0
    return {
        slot.name: mx.zeros(parameter.shape, dtype_of(slot)),
        scale_name(slot.name): mx.full(_blocks(parameter.size), value, mx.float32),
    }


def encode(slot: Slot, x: mx.array) -> dict[str, mx.array]:
    """The codes and scales of a slot's numbers."""
    blocks = mx.pad(x.astype(mx.float32).reshape(-1), (0, -x.size % BLOCK)).reshape(-1, BLOCK)
    sizes = mx.abs(blocks)
    # Not a comparison with the largest, which would miss a NaN.
    is_finite = mx.all(sizes < 2.0**126, axis=1, keepdims=True)
    largest = mx.max(sizes, axis=1, keepdims=True)
    scales = mx.where(is_finite, mx.where(largest >= _SMALLEST, largest, 0.0), float("nan"))
    parts = sizes * mx.where(scales > 0, 1 / scales, 0.0)
    bits = parts.view(mx.int32) & 0x7FFFFFFF  # a NaN may have a sign
    levels, shift = _LEVELS[dtype_of(slot)]
    roots = ((mx.minimum(bits, _ONE) >> shift) + (_ONE - (_ONE >> shift))).view(mx.float32)
    codes = (roots * levels + 0.5).astype(mx.int32)
    if dtype_of(slot) == mx.uint8:
        codes = mx.maximum(codes, mx.minimum(sizes.view(mx.int32), 1))
    else:
        codes = mx.where(blocks < 0, -codes, codes)
    flat = codes.astype(dtype_of(slot)).reshape(-1)
    return {
        slot.name: mx.contiguous(flat[: x.size]).reshape(x.shape),
        scale_name(slot.name): scales.reshape(-1),
    }


def decode(codes: mx.array, scales: mx.array) -> mx.array:
    """The numbers of codes, in float32."""
    levels, shift = _LEVELS[codes.dtype]
    wide = codes.reshape(-1).astype(mx.int32)
    roots = mx.abs(wide).astype(mx.float32) * mx.array(1 / levels, mx.float32)
    bits = mx.maximum(roots.view(mx.int32) - (_ONE - (_ONE >> shift)), 0) << shift
    parts = bits.view(mx.float32)
    parts = mx.where(wide < 0, -parts, parts)
    blocks = mx.pad(parts, (0, -codes.size % BLOCK)).reshape(-1, BLOCK) * scales[:, None]
    return mx.contiguous(blocks.reshape(-1)[: codes.size]).reshape(codes.shape)


def are_in(state: Any, slots: Iterable[Slot]) -> bool:
    """True if a tree of states has scales of these slots."""
    names = {scale_name(slot.name) for slot in slots}

    def found(tree: Any) -> bool:
        if isinstance(tree, dict):
            return not names.isdisjoint(tree) or any(map(found, tree.values()))
        return isinstance(tree, (list, tuple)) and any(map(found, tree))

    return found(state)


def check(path: str, parameter: mx.array, state: dict, slots: Iterable[Slot]) -> None:
    """Raise ValueError if a parameter's state has codes or scales that cannot be decoded."""
    for slot in slots:
        name = scale_name(slot.name)
        if name not in state:
            continue
        expected = {
            slot.name: (dtype_of(slot), parameter.shape, "parameter"),
            name: (mx.float32, (_blocks(parameter.size),), "expected"),
        }
        for key, (dtype, shape, what) in expected.items():
            x = state.get(key)
            if not isinstance(x, mx.array):
                raise ValueError(f'{path}: state "{key}" is {type(x).__name__}, expected an array')
            if x.shape != shape:
                raise ValueError(f'{path}: state "{key}" {x.shape}, {what} {shape}')
            if x.dtype != dtype:
                raise ValueError(
                    f'{path}: state "{key}" {_short(x.dtype)}, expected {_short(dtype)}'
                )


def _short(dtype: mx.Dtype) -> str:
    return str(dtype).removeprefix("mlx.core.")


def convert(parameter: mx.array, state: dict, slots: Iterable[Slot]) -> None:
    """Encode the slots of a parameter's state that are to have codes, and decode all others."""
    for slot in slots:
        name = scale_name(slot.name)
        x = state.get(slot.name)
        if not isinstance(x, mx.array):
            continue
        if has_codes(slot, parameter) and name not in state:
            state.update(encode(slot, x))
        elif name in state and not has_codes(slot, parameter):
            wide = decode(x, state.pop(name))
            state[slot.name] = wide.astype(slot.dtype_for(parameter.dtype))
