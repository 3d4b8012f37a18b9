"""The optimizers: mlx.optimizers' classes with their steps run by fused primitives.

Each class inherits its constructor, its state and its formula from the class of the same name in
mlx.optimizers. What is added is `_rule`, which says which primitive does the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers.optimizers as stock

from . import _ext
from .clipping import Clip, Formula, Scaling

STORAGE = (mx.float32, mx.float16, mx.bfloat16)
"""What the primitives read and write."""


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
        if clip is None:
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

    def _apply_clipped(self, gradients: Any, parameters: Any, clip: Clip | Scaling) -> Any:
        self.check(gradients, parameters)
        return clip.of(gradients).apply(self, gradients, parameters)


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

    def update(
        self,
        model: Any,
        gradients: Any,
        max_norm: float | mx.array | None = None,
        skip_nonfinite: bool = False,
    ) -> None:
        """Update the parameters of a model, as :meth:`Optimizer.update` does.

        Where the gradients are evaluated, and nothing but the model refers to its parameters, the
        step is queued at once and the arrays remain the same objects with new values. Otherwise the
        model gets new, lazy arrays. Nobody who holds an array sees it change.
        """
        replaces_leaves = getattr(type(model), "update", None) is nn.Module.update
        if replaces_leaves and self._fuses_trees():
            clip = Clip.asked_for(max_norm, skip_nonfinite)
            self._step(gradients, model, clip, partial(self._run_in_place, model))
        else:
            super().update(model, gradients, max_norm, skip_nonfinite)

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
        """Call `run` at the next step; an error leaves the optimizer as it was."""
        if not self._initialized:
            self._batch(gradients, parameters, self.state, initialized=False)
            self.init(gradients)
        batch = self._batch(gradients, parameters, self.state, initialized=True)
        scaling = None if clip is None else clip.of(gradients)
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

    def _run(self, parameters: Any, batch: _ext.Batch, scaling: Scaling | None) -> Any:
        formula = self._formula if scaling is None else scaling.around(self._formula)
        return batch.update(**self._arguments(scaling), formula=formula)

    def _run_in_place(self, model: nn.Module, batch: _ext.Batch, scaling: Scaling | None) -> None:
        if not (self._in_place and batch.update_in_place(**self._arguments(scaling))):
            model.update(self._run(model, batch, scaling))

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


def is_own(optimizer: Optimizer, name: str, owner: type) -> bool:
    """Whether a method is the one that `owner` defines, bound to this optimizer."""
    method = getattr(optimizer, name)
    return getattr(method, "__func__", None) is getattr(owner, name) and (
        method.__self__ is optimizer
    )


class SGD(FusedOptimizer, stock.SGD):
    __doc__ = stock.SGD.__doc__

    def _rule(self) -> Rule:
        if self.momentum <= 0:
            return Rule("SGD", (), (self.weight_decay,))
        hypers = (self.momentum, max(self.dampening, 0.0), self.weight_decay)
        return Rule("Nesterov" if self.nesterov else "Momentum", ("v",), hypers)


class RMSprop(FusedOptimizer, stock.RMSprop):
    __doc__ = stock.RMSprop.__doc__

    def _rule(self) -> Rule:
        return Rule("RMSprop", ("v",), (self.alpha, self.eps))


class Adagrad(FusedOptimizer, stock.Adagrad):
    __doc__ = stock.Adagrad.__doc__

    def _rule(self) -> Rule:
        return Rule("Adagrad", ("v",), (self.eps,))


class AdaDelta(FusedOptimizer, stock.AdaDelta):
    __doc__ = stock.AdaDelta.__doc__

    def _rule(self) -> Rule:
        return Rule("AdaDelta", ("v", "u"), (self.rho, self.eps))


class Adam(FusedOptimizer, stock.Adam):
    __doc__ = stock.Adam.__doc__

    def _rule(self) -> Rule:
        return Rule("AdamW", ("m", "v"), (*self.betas, self.eps, 0.0, self.bias_correction))


class AdamW(Adam, stock.AdamW):
    __doc__ = stock.AdamW.__doc__

    def _rule(self) -> Rule:
        hypers = (*self.betas, self.eps, self.weight_decay, self.bias_correction)
        return Rule("AdamW", ("m", "v"), hypers)


class Adamax(Adam, stock.Adamax):
    __doc__ = stock.Adamax.__doc__

    def _rule(self) -> Rule:
        return Rule("Adamax", ("m", "v"), (*self.betas, self.eps))


class Lion(FusedOptimizer, stock.Lion):
    __doc__ = stock.Lion.__doc__

    def _rule(self) -> Rule:
        return Rule("Lion", ("m",), (*self.betas, max(self.weight_decay, 0.0)))
