"""Optimizers whose step runs through the primitives."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from . import _ext
from .base import Optimizer, is_own
from .clipping import Formula
from .forms import forms_of
from .step import Share

STORAGE = (mx.float32, mx.float16, mx.bfloat16)
"""The dtypes that the primitives read and write."""


class FusedOptimizer(Optimizer):
    """An optimizer whose step is one primitive over all parameters.

    The update is computed in float32, whatever the storage. It is written to the buffers of the old
    parameters and state arrays if nothing else holds them.
    """

    _rule: str
    """The name of the optimizer in the rules' descriptions."""

    _fixed: dict[str, Any] = {}
    """Hyperparameters of the rule that the optimizer does not have."""

    def check(self, gradients: Any, parameters: Any) -> None:
        if self._uses_own_step():
            program, hypers = self._program()
            part = _ext.Part(
                program,
                hypers,
                None,
                0,
                None,
                gradients,
                parameters,
                self.state,
                initialized=self._initialized,
            )
            part.collect()

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
        """Return the updated parameter; ``state`` is updated in place.

        Args:
            gradient: An array.
            parameter: An array of the same shape.
            state: The arrays that :meth:`init_single` made.
        """
        program, hypers = self._program()
        part = _ext.Part(
            program,
            hypers,
            self._rate(),
            self.step,
            self._formula,
            gradient,
            parameter,
            state,
            fused=self._uses_primitives(),
        )
        part.stage()
        part.commit()
        updated: Any = part.tree()
        return updated

    def _shares(self, gradients: Any) -> list[Share]:
        return [Share(self, gradients, None if self._uses_own_step() else self._apply_leaves)]

    def _uses_own_step(self) -> bool:
        """True if `apply_single` is not overridden."""
        return is_own(self, "apply_single", _apply_single)

    def _init_own(self, gradients: Any) -> None:
        """Initialize the state of this optimizer's own parameters before its first step."""
        self.init(gradients)

    def _uses_primitives(self) -> bool:
        """False if the formula updates all leaves."""
        return True

    def _program(self) -> tuple[_ext.Program, list[Any]]:
        """The program and its hyperparameters; reads each attribute once."""
        forms, fixed = forms_of(self._rule), self._fixed
        return forms.settle(
            {
                name: fixed[name] if name in fixed else getattr(self, name)
                for name in forms.attributes
            }
        )

    def _rate(self) -> Any:
        """The learning rate; None if the program does not read it.

        Raises:
            TypeError: There is none.
        """
        rate = self.learning_rate
        if rate is None:
            raise TypeError("learning_rate: expected a 0-d mlx.core.array, got NoneType")
        return rate

    def _formula(self, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
        """The step as a graph of MLX's own operations: any dtype, any device, differentiable."""
        return in_float32(super().apply_single, gradient, parameter, state)


_apply_single = FusedOptimizer.apply_single


def in_float32(formula: Formula, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
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
