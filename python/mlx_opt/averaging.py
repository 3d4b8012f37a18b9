"""The two sets of parameters of an optimizer that averages: those that train and their average.

While it trains, a model has parameters between a slot of the state, the base, and its average, with
which it is evaluated and saved. The average is not stored: the parameters and the base give it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map_with_path, tree_unflatten

from . import reserved
from .ema import EVALUATING, is_evaluating
from .fused import FusedOptimizer
from .trees import parameters_of


class Averaging(FusedOptimizer):
    """What an optimizer whose rule averages has besides its step."""

    def eval(self, model: nn.Module) -> None:
        """Give a model the average of its parameters, with which it is evaluated and saved.

        Nothing changes if it has the average already. A step raises until :meth:`train` is called.
        In bfloat16 and float16 each change is rounded, so that many of them move the parameters;
        :meth:`evaluating` restores them exactly.

        Args:
            model: The module that the optimizer updates.

        Raises:
            TypeError: It is not a module.
        """
        self._switch(model, evaluates=True)

    def train(self, model: nn.Module) -> None:
        """Give a model that has the average the parameters to train on.

        Nothing changes if it has them already.

        Args:
            model: The module that the optimizer updates.

        Raises:
            TypeError: It is not a module.
        """
        self._switch(model, evaluates=False)

    @contextmanager
    def evaluating(self, model: nn.Module) -> Iterator[None]:
        """Give a model the average of its parameters for the duration of a ``with`` block.

        Afterwards it has the parameters that it had before or, if the block changed them, those
        that belong to the average that it has now.

        Args:
            model: The module that the optimizer updates.

        Raises:
            TypeError: It is not a module.

        Example:
            >>> import mlx.core as mx
            >>> import mlx.nn as nn
            >>> import mlx_opt as optim
            >>> model, optimizer = nn.Linear(2, 1), optim.SGDScheduleFree(learning_rate=0.1)
            >>> optimizer.update(model, {"bias": mx.array([1.0])})
            >>> with optimizer.evaluating(model):
            ...     y = model(mx.ones((1, 2)))
        """
        if self._is_evaluating:
            yield
            return
        before = dict(tree_flatten(parameters_of(model)))
        self.eval(model)
        averages = dict(tree_flatten(parameters_of(model)))
        try:
            yield
        finally:
            if self._is_evaluating:
                now = dict(tree_flatten(parameters_of(model)))
                self.train(model)
                if all(now.get(path) is average for path, average in averages.items()):
                    model.update(tree_unflatten(list(before.items())))

    def eval_parameters(self, model: Any) -> Any:
        """Return the averages of a model's parameters; the model keeps those that it has.

        Args:
            model: The module that the optimizer updates, of which the trainable parameters are
                taken, or a tree of arrays.

        Returns:
            A tree of the same structure. A parameter that has had no step is its own average.
        """
        parameters = parameters_of(model)
        return parameters if self._is_evaluating else self._moved(parameters, model, True)

    @property
    def _is_evaluating(self) -> bool:
        return is_evaluating(self.state)

    def _switch(self, model: Any, evaluates: bool) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: expected an mlx.nn.Module, got {type(model).__name__}")
        if evaluates == self._is_evaluating:
            return
        model.update(self._moved(parameters_of(model), model, evaluates))
        entries = self.state.setdefault(reserved.KEY, {})
        if evaluates:
            entries[EVALUATING] = mx.array(True)
        else:
            del entries[EVALUATING]

    def _moved(self, parameters: Any, model: Any, evaluates: bool) -> Any:
        """The averages of parameters, or the parameters that belong to averages."""
        base, part = self._forms.forms[0].average  # type: ignore[misc]
        attribute = self._forms.attributes[part.partition("[")[0]]
        state = dict(tree_flatten(self.state))
        rows = [row for each in self._described(parameters, model) for row in each.rows]
        values = {row.path: row.values for row in rows}

        def moved(path: str, parameter: mx.array) -> mx.array:
            z = state.get(f"{path}.{base}")
            if z is None:
                return parameter
            given = attribute.split(values[path][attribute.name])
            parts = dict(zip(attribute.parts, given, strict=True))
            weight = 1.0 - 1.0 / parts[part] if evaluates else 1.0 - parts[part]
            wide = parameter.astype(mx.result_type(parameter, mx.float32))
            result = wide + weight * (z - wide)
            return mx.where(mx.isnan(z), wide, result).astype(parameter.dtype)  # unset: no step yet

        return tree_map_with_path(moved, parameters)

    def _check_takes_gradients(self) -> None:
        if self._is_evaluating:
            raise RuntimeError(
                f"{type(self).__name__}: the model has the average of its parameters: "
                "call train(model) before the next step"
            )
