"""The base class of all optimizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.optimizers.optimizers as stock

from .clipping import Clip, Scaling

Step = Callable[["Scaling | None"], None]


class Optimizer(stock.Optimizer):
    """The base class of all optimizers; see :class:`mlx.optimizers.Optimizer`.

    A subclass that defines ``init_single`` and ``apply_single`` is an optimizer, as with MLX.
    """

    def check(self, gradients: Any, parameters: Any) -> None:
        """Raise what :meth:`apply_gradients` would raise for these trees; change nothing.

        An optimizer with an ``apply_single`` of its own takes whatever that takes.
        """

    def update(
        self,
        model: Any,
        gradients: Any,
        max_norm: float | mx.array | None = None,
        skip_nonfinite: bool = False,
    ) -> None:
        """Update the parameters of a model with its gradients, which may be clipped on the way.

        Where the gradients are evaluated, and nothing but the model refers to its parameters, the
        step of a fused optimizer is queued at once and the arrays remain the same objects with new
        values. Otherwise the model gets new, lazy arrays. Nobody who holds an array sees it change.

        Args:
            model: A module.
            gradients: A tree of gradients, most likely from :func:`mlx.nn.value_and_grad`.
            max_norm: The greatest global norm of the gradients, in their units: what is above it is
                scaled down to it, as by :func:`clip_grad_norm`, inside the step. The norm that they
                had is in :attr:`grad_norm` afterwards.
            skip_nonfinite: Leave the model, the step and the state as they are where the norm is
                infinite or NaN, and count that in ``state["skipped"]``. Nothing waits for the norm.

        Raises:
            ValueError: ``max_norm`` is negative.

            And what :meth:`apply_gradients` raises; model and state are then as they were.
        """
        clip = Clip.asked_for(max_norm, skip_nonfinite)
        steps = self._steps(gradients, model)
        if steps is not None:
            scaling = None if clip is None else clip.of(gradients)
            for step in steps:
                step(scaling)
        elif clip is None:
            model.update(self.apply_gradients(gradients, model))
        else:
            model.update(self._apply_clipped(gradients, model, clip))

    def apply_gradients(
        self,
        gradients: Any,
        parameters: Any,
        max_norm: float | mx.array | None = None,
        skip_nonfinite: bool = False,
    ) -> Any:
        """Return the updated parameters; the options are those of :meth:`update`."""
        clip = Clip.asked_for(max_norm, skip_nonfinite)
        if clip is None:
            return super().apply_gradients(gradients, parameters)
        return self._apply_clipped(gradients, parameters, clip)

    @property
    def grad_norm(self) -> mx.array | None:
        """The global norm of the gradients of the last step that clipped or could be skipped, a 0-d
        array; before the first of these, None."""
        return self.state.get("grad_norm")

    def _steps(self, gradients: Any, model: Any) -> list[Step] | None:
        """What updates a model's parameters where they are, checked and still to be done; None if
        that is for :meth:`apply_gradients` and the model's own ``update``."""
        return None

    def _apply_clipped(self, gradients: Any, parameters: Any, clip: Clip | Scaling) -> Any:
        self.check(gradients, parameters)
        return clip.of(gradients).apply(self, gradients, parameters)


def is_own(optimizer: Optimizer, name: str, owner: type) -> bool:
    """Whether a method is the one that `owner` defines, bound to this optimizer."""
    method = getattr(optimizer, name)
    return getattr(method, "__func__", None) is getattr(owner, name) and (
        method.__self__ is optimizer
    )
