"""Muon's step of one parameter, where no primitives make it."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from . import newton_schulz, splits
from .descriptions import BY_RULE, result_dtypes
from .formulas import factors
from .formulas.registry import decayed, with_decay_of
from .rule_formula import STORAGE


def updated(optimizer: Any, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
    """Return the updated parameter; ``state`` is updated in place."""
    update = _stored_direction(optimizer, gradient, parameter, state)
    is_matrix = update.ndim >= 2 and update.size > 0
    if is_matrix:
        update = _orthogonalized(optimizer, update, state)
    descend = _along_sphere if is_matrix and optimizer.hyperball else _descended
    dtype = mx.result_type(update, parameter)
    if dtype in STORAGE:
        update, parameter = update.astype(mx.float32), parameter.astype(mx.float32)
    return descend(optimizer, update, parameter).astype(dtype)


def _stored_direction(
    optimizer: Any, gradient: mx.array, parameter: mx.array, state: dict
) -> mx.array:
    """The direction, in float32 arithmetic if the primitives could store all arrays."""
    arrays = [parameter, state["v"], gradient]
    if any(not isinstance(x, mx.array) or x.dtype not in STORAGE for x in arrays):
        return _direction(optimizer, gradient, parameter, state)
    decay = optimizer.weight_decay
    has_decay = isinstance(decay, mx.array) or decay != 0
    coupled = has_decay and _kind_of(optimizer) == "coupled"
    dtypes = result_dtypes(BY_RULE["Muon"].slots[:1], arrays, coupled)
    parameter, state["v"], gradient = (x.astype(mx.float32) for x in arrays)
    direction = _direction(optimizer, gradient, parameter, state)
    state["v"] = state["v"].astype(dtypes[1])
    return direction.astype(dtypes[0])


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


def _descended(optimizer: Any, update: mx.array, parameter: mx.array) -> mx.array:
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


def _along_sphere(optimizer: Any, update: mx.array, parameter: mx.array) -> mx.array:
    update = factors.with_norm_of(mx, update, parameter)
    rate = optimizer.learning_rate.astype(update.dtype)
    return factors.with_norm_of(mx, parameter - rate * update, parameter)
