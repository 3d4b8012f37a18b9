"""The optimizers: mlx.optimizers' classes with their steps run by fused primitives.

Each class inherits its constructor, its state and its formula from the class of the same name in
mlx.optimizers. What is added is `_rule`, which says which primitive does the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers.optimizers as stock
from mlx.utils import tree_merge

from . import _ext

STORAGE = (mx.float32, mx.float16, mx.bfloat16)
"""What the primitives read and write."""


class Rule(NamedTuple):
    """A primitive that does an optimizer's step."""

    name: str
    """One of :func:`mlx_opt._ext.rules`."""

    moments: tuple[str, ...]
    """The names of the state's arrays, in the primitive's order."""

    hypers: tuple[float | mx.array, ...]
    """The hyperparameters, in the primitive's order; an array is read when the step runs."""


class Optimizer(stock.Optimizer):
    """The base class of all optimizers; see :class:`mlx.optimizers.Optimizer`.

    A subclass that defines ``init_single`` and ``apply_single`` is an optimizer, as with MLX.
    """

    def check(self, gradients: Any, parameters: Any) -> None:
        """Raise what :meth:`apply_gradients` would raise for these trees; change nothing.

        An optimizer with an ``apply_single`` of its own takes whatever that takes.
        """


class FusedOptimizer(Optimizer):
    """An optimizer whose step is one primitive over all parameters.

    The update is computed in float32 whatever the storage, and written to the buffers of the
    parameters and moments it replaces where nothing else holds them.
    """

    def _rule(self) -> Rule:
        raise NotImplementedError

    def check(self, gradients: Any, parameters: Any) -> None:
        if self._fuses_trees():
            self._batch(gradients, parameters, self._initialized)

    def apply_gradients(self, gradients: Any, parameters: Any) -> Any:
        """Return the updated parameters; the optimizer's state is updated in place.

        Args:
            gradients: A tree of arrays.
            parameters: A tree, or a module, that has an array of the same shape for each gradient.
                It may have more; those are not in the result.

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
            return super().apply_gradients(gradients, parameters)
        return self._advance(gradients, parameters, self._run)

    def update(self, model: nn.Module, gradients: Any) -> None:
        """Update the model's parameters and the optimizer's state.

        Where the gradients are evaluated, and nothing but the model refers to its parameters, the
        step is queued at once and the parameters' arrays remain the same objects with new values.
        Otherwise the model gets new, lazy arrays. Nobody who holds an array sees it change.

        Args:
            model: A module, or a dict, with an array of the same shape for each gradient.
            gradients: A tree of arrays, as :func:`mlx.nn.value_and_grad` returns it.

        Raises:
            KeyError, TypeError, ValueError: As :meth:`apply_gradients`.
        """
        replaces_leaves = getattr(type(model), "update", None) is nn.Module.update
        if replaces_leaves and self._fuses_trees():
            self._advance(gradients, model, lambda batch: self._run_in_place(batch, model))
        else:
            super().update(model, gradients)

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
        """Return the updated parameter; ``state`` is updated in place.

        Args:
            gradient: An array.
            parameter: An array of the same shape.
            state: The moments, as :meth:`init_single` made them.
        """
        return self._run(_ext.Batch(gradient, parameter, state, self._rule().moments))

    def _uses_own_step(self) -> bool:
        """Whether no hook takes the place of this class's step."""
        return _is_own(self, "apply_single", FusedOptimizer)

    def _fuses_trees(self) -> bool:
        return _is_own(self, "apply_gradients", FusedOptimizer) and self._uses_own_step()

    def _advance(self, gradients: Any, parameters: Any, run: Callable[[_ext.Batch], Any]) -> Any:
        """Call `run` at the next step; an error leaves the optimizer as it was."""
        if not self._initialized:
            self._batch(gradients, parameters, initialized=False)
            self.init(gradients)
        batch = self._batch(gradients, parameters, initialized=True)
        changes = {name: schedule(self.step) for name, schedule in self._schedulers.items()}
        changes["step"] = self.step + 1
        previous = {name: self.state[name] for name in changes if name in self.state}
        self.state.update(changes)
        try:
            return run(batch)
        except BaseException:
            self.state.update(previous)
            raise

    def _batch(self, gradients: Any, parameters: Any, initialized: bool) -> _ext.Batch:
        return _ext.Batch(gradients, parameters, self.state, self._rule().moments, initialized)

    def _run(self, batch: _ext.Batch) -> Any:
        # Asked for again: a schedule may have set a hyperparameter since the batch was made.
        rule = self._rule()
        return batch.update(rule.name, rule.hypers, self.learning_rate, self.step, self._formula)

    def _run_in_place(self, batch: _ext.Batch, model: nn.Module) -> None:
        rule = self._rule()
        if not batch.update_in_place(rule.name, rule.hypers, self.learning_rate, self.step):
            model.update(self._run(batch))

    def _formula(self, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
        """The step as a graph of MLX's own operations: any dtype, any device, differentiable."""
        arrays = [gradient, parameter, *state.values()]
        dtype = mx.result_type(gradient, parameter)
        if dtype == mx.float32 or any(x.dtype not in STORAGE for x in arrays):
            return super().apply_single(gradient, parameter, state)
        wide = {name: value.astype(mx.float32) for name, value in state.items()}
        parameter = super().apply_single(
            gradient.astype(mx.float32), parameter.astype(mx.float32), wide
        )
        for name, value in wide.items():
            state[name] = value.astype(mx.result_type(state[name], gradient))
        return parameter.astype(dtype)


def _is_own(optimizer: Optimizer, name: str, owner: type) -> bool:
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


class Adafactor(Optimizer, stock.Adafactor):
    __doc__ = stock.Adafactor.__doc__

    def check(self, gradients: Any, parameters: Any) -> None:
        _check_shapes(self, stock.Adafactor, gradients, parameters)


class Muon(Optimizer, stock.Muon):
    __doc__ = stock.Muon.__doc__

    def check(self, gradients: Any, parameters: Any) -> None:
        _check_shapes(self, stock.Muon, gradients, parameters)


def _check_shapes(optimizer: Optimizer, owner: type, gradients: Any, parameters: Any) -> None:
    if all(_is_own(optimizer, name, owner) for name in ("apply_gradients", "apply_single")):
        _ext.Batch(gradients, parameters, None, (), initialized=False)


class MultiOptimizer(Optimizer, stock.MultiOptimizer):
    __doc__ = stock.MultiOptimizer.__doc__

    def check(self, gradients: Any, parameters: Any) -> None:
        self._check_parts(self._split_dictionary(gradients), parameters)

    def apply_gradients(self, gradients: Any, parameters: Any) -> Any:
        """Apply each gradient with the optimizer whose filter takes it; all are checked first."""
        parts = self._split_dictionary(gradients)
        self._check_parts(parts, parameters)
        tree: Any = {}
        for optimizer, part in zip(self.optimizers, parts, strict=True):
            tree = tree_merge(tree, optimizer.apply_gradients(part, parameters))
        return tree

    def _check_parts(self, parts: list[Any], parameters: Any) -> None:
        for optimizer, part in zip(self.optimizers, parts, strict=True):
            if isinstance(optimizer, Optimizer):
                optimizer.check(part, parameters)


clip_grad_norm = stock.clip_grad_norm
