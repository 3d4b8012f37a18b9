"""The orthogonal factors of many matrices at once, by Newton-Schulz iterations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import mlx.core as mx

Coefficients = Sequence[tuple[float, float, float]]

SETS: dict[str, Coefficients] = {
    # Jordan et al., 2024: steep at 0; singular values end between 0.7 and 1.2.
    "quintic": ((3.4445, -4.7750, 2.0315),),
    # Amsel et al., arXiv:2505.16932: each the best of degree 5 for where the one before leaves
    # singular values from 0.001 to 1; divided for safety, so that rounding does not carry them out.
    "polar_express": (
        *(
            (a / 1.01, b / 1.01**3, c / 1.01**5)
            for a, b, c in (
                (8.28721201814563, -23.595886519098837, 17.300387312530933),
                (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
                (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
                (3.3184196573706015, -2.488488024314874, 0.51004894012372),
                (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
                (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
                (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
            )
        ),
        (1.875, -1.25, 0.375),
    ),
}

# Elements of a stack: what is made on the way takes a few times its memory.
STACK = 1 << 24

# Rows from which on a symmetric product is made of parts on the CPU.
SYMMETRIC = 128


def orthogonalized(
    matrices: Sequence[mx.array],
    scales: Sequence[float],
    coefficients: Coefficients,
    steps: int,
    dtype: mx.Dtype | None,
) -> list[mx.array]:
    """U V^T of each matrix U S V^T, roughly, times its scale.

    Those of one shape, or of one shape transposed, and of one scale go through together.

    Args:
        matrices: Of any shapes, float32, float16 or bfloat16.
        scales: One a matrix.
        coefficients: (a, b, c) of each step, of which the last stays.
        steps: Their number.
        dtype: Of the products; None for bfloat16 where the matrix is that, else float32.

    Returns:
        Arrays of the matrices' shapes and dtypes.
    """
    groups = defaultdict(list)
    for i, (x, scale) in enumerate(zip(matrices, scales, strict=True)):
        rows, columns = sorted(x.shape)
        groups[rows, columns, x.dtype, scale].append(i)
    results: dict[int, mx.array] = {}
    for (rows, columns, own, scale), members in groups.items():
        inner = dtype or (own if own == mx.bfloat16 else mx.float32)
        together = max(1, STACK // max(1, rows * columns))
        for start in range(0, len(members), together):
            chunk = members[start : start + together]
            wide = [matrices[i] for i in chunk]
            wide = [x if x.shape[0] == rows else x.T for x in wide]
            stack = _iterated(mx.stack(wide), scale, coefficients, steps, inner).astype(own)
            for x, i in zip(stack, chunk, strict=True):
                results[i] = x if matrices[i].shape[0] == rows else x.T
    return [results[i] for i in range(len(matrices))]


def _iterated(
    x: mx.array, scale: float, coefficients: Coefficients, steps: int, dtype: mx.Dtype
) -> mx.array:
    norm = mx.linalg.norm(x.astype(mx.float32), axis=[-2, -1], keepdims=True)
    x = (x.astype(mx.float32) / (norm + 1e-7)).astype(dtype)
    if steps == 0:
        return scale * x
    for step in range(steps):
        a, b, c = coefficients[min(step, len(coefficients) - 1)]
        last = scale if step == steps - 1 else 1.0
        gram = _gram(x)
        factor = b * gram + c * _gram(gram)
        x = mx.addmm(x, factor, x, alpha=last, beta=a * last)
    return x


def _gram(x: mx.array) -> mx.array:
    """x x^T of each matrix."""
    if mx.default_device() != mx.cpu:
        return x @ mx.swapaxes(x, -1, -2)
    rows = x.shape[-2]
    # MLX's CPU build may be slow at products with a transposed view.
    if rows < SYMMETRIC:
        return x @ mx.contiguous(mx.swapaxes(x, -1, -2))
    top, bottom = x[:, : rows // 2], x[:, rows // 2 :]
    corner = bottom @ mx.contiguous(mx.swapaxes(top, -1, -2))
    upper = mx.concatenate([_gram(top), mx.swapaxes(corner, -1, -2)], axis=-1)
    lower = mx.concatenate([corner, _gram(bottom)], axis=-1)
    return mx.concatenate([upper, lower], axis=-2)
