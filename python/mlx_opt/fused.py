"""Optimizers whose step is run by the primitives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from . import _ext
from .base import Optimizer, Step, is_own
from .clipping import Clip, Formula, Scaling

STORAGE = (mx.float32, mx.float16, mx.bfloat16)
"""What the primitives read and write."""

Write = Callable[..., Any]
"""A method of a batch that runs a lazy step."""

UPDATE: Write = _ext.Batch.update


class Rule(NamedTuple):
    """A primitive that does an optimizer's step."""

    name: str
    """One of :func:`mlx_opt._ext.rules`, or Adafactor."""

    moments: tuple[str, ...]
    """The names of the state's arrays, in the primitive's order."""

    hypers: tuple[float | mx.array, ...]
    """The hyperparameters, in the primitive's order; an array is read when the step runs."""

    factored: tuple[str, ...] = ()
    """The names of the two arrays that stand for the first of ``moments`` where a parameter has two
    dimensions or more: one of its rows, one of its columns."""


class FusedOptimizer(Optimizer):
    """An optimizer whose step is one primitive over all parameters.

    The update is computed in float32 whatever the storage, and written to the buffers of the
    parameters and moments it replaces where nothing else holds them.
    """

    _in_place = True
    """Whether a step is one primitive that may overwrite what it updates."""

    def _rule(self) -> Rule:
        raise NotImplementedError

    def check(self, gradients: Any, parameters: Any) -> None:
        if self._fuses_trees():
            self._batch(gradients, parameters, self.state, self._initialized)

    def _steps(self, gradients: Any, model: Any) -> list[Step] | None:
        update = getattr(model, "update", None)
        replaces_leaves = getattr(update, "__func__", None) is nn.Module.update
        if not (replaces_leaves and self._fuses_trees()):
            return None
        batch = self._ready(gradients, model)
        return [partial(self._advance, batch, run=partial(self._run_in_place, model))]

    def apply_gradients(
        self,
        gradients: Any,
        parameters: Any,
        max_norm: float | mx.array | None = None,
        skip_nonfinite: bool = False,
    ) -> Any:
        """Return the updated parameters; the optimizer's state is updated in place.

        Args:
            gradients: A tree of arrays.
            parameters: A tree, or a module, that has an array of the same shape for each gradient.
                It may have more; those are not in the result.
            max_norm: As for :meth:`update`.
            skip_nonfinite: As for :meth:`update`.

        Returns:
            The new parameters, with the structure of the gradients. They are lazy, as all of MLX;
            the gradients' and the old parameters' buffers are reused where nothing else holds them.

        Raises:
            KeyError: A gradient has no parameter or no state.
            TypeError: A gradient or a parameter is not an array.
            ValueError: The shapes of a gradient, its parameter and its state differ.

            The message names the parameter's path; model and state are as they were.

        Example:
            >>> import mlx.core as mx
            >>> import mlx_opt as optim
            >>> optimizer = optim.SGD(learning_rate=0.5)
            >>> optimizer.apply_gradients({"w": mx.array([1.0])}, {"w": mx.array([3.0])})
            {'w': array([2.5], dtype=float32)}
        """
        if not self._uses_own_step():
            return super().apply_gradients(gradients, parameters, max_norm, skip_nonfinite)
        clip = Clip.asked_for(max_norm, skip_nonfinite)
        return self._step(gradients, parameters, clip, partial(self._run, parameters))

    def _apply_clipped(self, gradients: Any, parameters: Any, clip: Clip | Scaling) -> Any:
        if self._fuses_trees():
            return self._step(gradients, parameters, clip, partial(self._run, parameters))
        return super()._apply_clipped(gradients, parameters, clip)

    def _step(
        self,
        gradients: Any,
        parameters: Any,
        clip: Clip | Scaling | None,
        run: Callable[[_ext.Batch, Scaling | None], Any],
    ) -> Any:
        batch = self._ready(gradients, parameters)
        return self._advance(batch, None if clip is None else clip.of(gradients), run)

    def _ready(self, gradients: Any, parameters: Any) -> _ext.Batch:
        """The leaves of a step, checked, with their state."""
        if not self._initialized:
            self._batch(gradients, parameters, self.state, initialized=False)
            self.init(gradients)
        return self._batch(gradients, parameters, self.state, initialized=True)

    def _advance(
        self,
        batch: _ext.Batch,
        scaling: Scaling | None,
        run: Callable[[_ext.Batch, Scaling | None], Any],
    ) -> Any:
        """Call `run` at the next step; an error leaves the optimizer as it was."""
        changes = {name: schedule(self.step) for name, schedule in self._schedulers.items()}
        changes["step"] = self.step + 1
        if scaling is not None:
            changes = scaling.changes(changes, self.state)
        previous = {name: self.state[name] for name in changes if name in self.state}
        self.state.update(changes)
        try:
            return run(batch, scaling)
        except BaseException:
            for name in changes.keys() - previous.keys():
                del self.state[name]
            self.state.update(previous)
            raise

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
        """Return the updated parameter; ``state`` is updated in place.

        Args:
            gradient: An array.
            parameter: An array of the same shape.
            state: The moments, as :meth:`init_single` made them.
        """
        return self._run(parameter, self._batch(gradient, parameter, state), None)

    def _uses_own_step(self) -> bool:
        """Whether no hook takes the place of this class's step."""
        return is_own(self, "apply_single", FusedOptimizer)

    def _fuses_trees(self) -> bool:
        """Whether no hook takes the place of this class's step over whole trees."""
        return is_own(self, "apply_gradients", FusedOptimizer) and self._uses_own_step()

    def _batch(
        self, gradients: Any, parameters: Any, state: Any, initialized: bool = True
    ) -> _ext.Batch:
        rule = self._rule()
        return _ext.Batch(gradients, parameters, state, rule.moments, initialized, rule.factored)

    def _run(
        self, parameters: Any, batch: _ext.Batch, scaling: Scaling | None, write: Write = UPDATE
    ) -> Any:
        formula = self._formula if scaling is None else scaling.around(self._formula)
        return write(batch, **self._arguments(scaling), formula=formula)

    def _run_in_place(self, model: Any, batch: _ext.Batch, scaling: Scaling | None) -> None:
        if not (self._in_place and batch.update_in_place(**self._arguments(scaling))):
            self._run(model, batch, scaling, _ext.Batch.assign)

    def _step_size(self) -> mx.array:
        return self.learning_rate

    def _arguments(self, scaling: Scaling | None) -> dict[str, Any]:
        # Asked for again: a schedule may have set a hyperparameter since the batch was made.
        rule = self._rule()
        arguments: dict[str, Any] = {"rule": rule.name, "hypers": rule.hypers}
        arguments |= {"learning_rate": self._step_size(), "step": self.step}
        if scaling is not None:
            skip_nonfinite = scaling.finite is not None
            arguments |= {"scale": scaling.scale, "skip_nonfinite": skip_nonfinite}
        return arguments

    def _formula(self, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
        """The step as a graph of MLX's own operations: any dtype, any device, differentiable."""
        return in_float32(super().apply_single, gradient, parameter, state)


def in_float32(formula: Formula, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
    """A formula's result, where all is stored as the primitives can, of arithmetic as theirs."""
    arrays = [gradient, parameter, *state.values()]
    dtype = mx.result_type(gradient, parameter)
    if dtype == mx.float32 or any(x.dtype not in STORAGE for x in arrays):
        return formula(gradient, parameter, state)
    wide = {name: value.astype(mx.float32) for name, value in state.items()}
    parameter = formula(gradient.astype(mx.float32), parameter.astype(mx.float32), wide)
    for name, value in wide.items():
        state[name] = value.astype(mx.result_type(state[name], gradient))
    return parameter.astype(dtype)
