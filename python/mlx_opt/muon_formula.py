"""Muon's step of one parameter, where no primitives make it."""

from __future__ import annotations

from functools import partial
from typing import Any

import mlx.core as mx

from . import newton_schulz, splits
from .clipping import Formula
from .formulas import factors
from .formulas.registry import decayed, with_decay_of
from .rule_formula import STORAGE


def updated(optimizer: Any, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
    """Return the updated parameter; ``state`` is updated in place."""
    update = _in_float32(partial(_direction, optimizer), gradient, parameter, state)
    is_matrix = update.ndim >= 2 and update.size > 0
    if is_matrix:
        update = _orthogonalized(optimizer, update, state)
    descend = _along_sphere if is_matrix and optimizer.hyperball else _descended
    return _in_float32(partial(descend, optimizer), update, parameter, {})


def _direction(optimizer: Any, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
    momentum, decay = optimizer.momentum, optimizer.weight_decay
    if decay != 0:
        gradient = with_decay_of(mx, _kind_of(optimizer), gradient, decay, parameter)
    v = momentum * state["v"] + (1 - momentum) * gradient
    state["v"] = v
    return gradient * (1 - momentum) + v * momentum if optimizer.nesterov else v


def _kind_of(optimizer: Any) -> str:
    return "decoupled" if optimizer.decoupled_weight_decay else optimizer.weight_decay_kind


def _orthogonalized(optimizer: Any, x: mx.array, state: dict) -> mx.array:
    """The update of a matrix from its direction; the second moment is updated in ``state``."""
    splits.check_fit(optimizer.split, "", x)
    split = splits.blocks_from(optimizer.split)
    dtype = mx.float32 if x.dtype in STORAGE else x.dtype
    seconds = []
    if optimizer.normuon or optimizer.adamuon:
        seconds = factors.blocks_of(state["s"].astype(dtype), split)
    updates = []
    for i, block in enumerate(factors.blocks_of(x, split)):
        scale = factors.rate_factor(optimizer.adjust_lr, block.shape, bool(split))
        matrix = factors.matrix_of(block, bool(split)).astype(dtype)
        matrix = factors.equalized(mx, matrix, optimizer.equalize)
        if optimizer.normalize is None and not seconds:
            matrix = _iterated(optimizer, x.dtype, matrix, scale)
        else:
            matrix = _iterated(optimizer, x.dtype, matrix, 1.0)
            matrix = factors.normalized(mx, matrix, optimizer.normalize)
            if seconds:
                matrix, seconds[i] = factors.divided(
                    mx, matrix, seconds[i], optimizer.beta2, optimizer.normuon
                )
            matrix = scale * matrix
        updates.append(matrix.astype(x.dtype).reshape(block.shape))
    if seconds:
        state["s"] = mx.concatenate(seconds)
    return mx.concatenate(updates)


def _iterated(optimizer: Any, dtype: mx.Dtype, matrix: mx.array, scale: float) -> mx.array:
    """The orthogonal factor of a matrix of a direction of that dtype, times a number."""
    if dtype not in STORAGE or not optimizer._uses_own_iterations():
        matrix = matrix.astype(dtype)
        return scale * optimizer._zeropower_via_newtonschulz5(matrix, steps=optimizer.ns_steps)
    coefficients = newton_schulz.coefficients_of(optimizer.ns_coefficients)
    inner = optimizer.ns_dtype or (dtype if dtype == mx.bfloat16 else mx.float32)
    [factor] = newton_schulz.orthogonalized(
        [matrix], [scale], coefficients, optimizer.ns_steps, inner
    )
    return factor


def _descended(optimizer: Any, update: mx.array, parameter: mx.array, _: dict) -> mx.array:
    rate = optimizer.learning_rate.astype(update.dtype)
    parameter = decayed(
        mx,
        parameter,
        update,
        _kind_of(optimizer),
        optimizer.weight_decay,
        rate,
        optimizer.max_learning_rate,
        optimizer.cautious_weight_decay,
    )
    return parameter - rate * update


def _along_sphere(optimizer: Any, update: mx.array, parameter: mx.array, _: dict) -> mx.array:
    update = factors.with_norm_of(mx, update, parameter)
    rate = optimizer.learning_rate.astype(update.dtype)
    return factors.with_norm_of(mx, parameter - rate * update, parameter)


def _in_float32(formula: Formula, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
    """A formula's result, in float32 arithmetic if the primitives could store all arrays."""
    arrays = [gradient, parameter, *state.values()]
    if any(not isinstance(x, mx.array) or x.dtype not in STORAGE for x in arrays):
        return formula(gradient, parameter, state)
    dtype = mx.result_type(gradient, parameter)
    if dtype == mx.float32:
        return formula(gradient, parameter, state)
    wide = {name: value.astype(mx.float32) for name, value in state.items()}
    parameter = formula(gradient.astype(mx.float32), parameter.astype(mx.float32), wide)
    for name, value in wide.items():
        state[name] = value.astype(mx.result_type(state[name], gradient))
    return parameter.astype(dtype)
