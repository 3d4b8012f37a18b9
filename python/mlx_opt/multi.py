"""Several optimizers, each for its part of the parameters."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.optimizers.optimizers as stock
from mlx.utils import tree_merge

from .base import Optimizer, Step, is_own
from .clipping import Clip, Scaling
from .trees import split


class MultiOptimizer(Optimizer, stock.MultiOptimizer):
    __doc__ = stock.MultiOptimizer.__doc__

    def check(self, gradients: Any, parameters: Any) -> None:
        self._check_parts(self._split_dictionary(gradients), parameters)

    def apply_gradients(
        self,
        gradients: Any,
        parameters: Any,
        max_norm: float | mx.array | None = None,
        skip_nonfinite: bool = False,
    ) -> Any:
        """Apply each gradient with the optimizer whose filter takes it; all are checked first.

        ``max_norm`` is of the norm of all gradients together; see :meth:`Optimizer.update`.
        """
        clip = Clip.asked_for(max_norm, skip_nonfinite)
        return self._apply_parts(gradients, parameters, clip)

    @property
    def grad_norm(self) -> mx.array | None:
        """As of any :class:`Optimizer`: the norm of all gradients together."""
        first = self.optimizers[0]
        own = isinstance(first, Optimizer)
        return first.grad_norm if own else first.state.get("grad_norm")

    def _steps(self, gradients: Any, model: Any) -> list[Step] | None:
        if not is_own(self, "apply_gradients", MultiOptimizer):
            return None
        parts = self._split_dictionary(gradients)
        if not all(optimizer._initialized for optimizer in self.optimizers):
            self._check_parts(parts, model)
        steps: list[Step] = []
        for optimizer, part in zip(self.optimizers, parts, strict=True):
            own = optimizer._steps(part, model) if isinstance(optimizer, Optimizer) else None
            if own is None:
                return None
            steps += own
        return steps

    def _split_dictionary(self, gradients: Any) -> list[Any]:
        def part_of(path: str, leaf: Any) -> int:
            for i, takes in enumerate(self.filters):
                if takes(path, leaf):
                    return i
            raise ValueError(f"{path}: no filter takes it")

        count = len(self.optimizers)
        return [gradients] if count == 1 else split(gradients, count, part_of)

    def _apply_clipped(self, gradients: Any, parameters: Any, clip: Clip | Scaling) -> Any:
        if is_own(self, "apply_gradients", MultiOptimizer):
            return self._apply_parts(gradients, parameters, clip)
        scaling = clip.of(gradients)
        updated = super()._apply_clipped(gradients, parameters, scaling)
        for optimizer in self.optimizers:
            optimizer.state.update(scaling.changes({}, optimizer.state))
        return updated

    def _apply_parts(self, gradients: Any, parameters: Any, clip: Clip | Scaling | None) -> Any:
        parts = self._split_dictionary(gradients)
        self._check_parts(parts, parameters)
        scaling = None if clip is None else clip.of(gradients)
        tree: Any = {}
        for optimizer, part in zip(self.optimizers, parts, strict=True):
            if scaling is None:
                updated = optimizer.apply_gradients(part, parameters)
            elif isinstance(optimizer, Optimizer):
                updated = optimizer._apply_clipped(part, parameters, scaling)
            else:
                updated = scaling.apply(optimizer, part, parameters)
            tree = tree_merge(tree, updated)
        return tree

    def _check_parts(self, parts: list[Any], parameters: Any) -> None:
        for optimizer, part in zip(self.optimizers, parts, strict=True):
            if isinstance(optimizer, Optimizer):
                optimizer.check(part, parameters)
