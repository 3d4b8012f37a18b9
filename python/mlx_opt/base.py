"""The base class of all optimizers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.optimizers.optimizers as stock

from . import accumulation, ema, loss_scale, master_weights, reserved, step, telemetry
from .clipping import ClipRequest
from .descriptions import STORAGE
from .rollback import Rollback
from .step import Share
from .telemetry import Telemetry
from .tools import memory, summary
from .tools.memory import Memory


class Optimizer(stock.Optimizer):
    """The base class of all optimizers; see :class:`mlx.optimizers.Optimizer`.

    A subclass that defines ``init_single`` and ``apply_single`` is an optimizer, as with MLX.
    """

    _accumulate: int = 1
    _accumulate_dtype: str | None = None  # its name, because a dtype cannot be pickled

    _takes_norms: bool = False
    _norm_labels: telemetry.Labels = []

    @summary.never_raises
    def __repr__(self) -> str:
        names = summary.rate_of(self) + summary.numbers_of(self)
        return summary.summary(self, names, "its own step, not fused")

    def check(self, gradients: Any, parameters: Any) -> None:
        """Raise what :meth:`apply_gradients` would raise for these trees; change nothing.

        An optimizer with its own ``apply_single`` is not checked.
        """

    def init(self, parameters: Any) -> None:
        """Initialize parameters that have no state; see :meth:`mlx.optimizers.Optimizer.init`.

        Raises:
            ValueError: A parameter has the name that mlx_opt reserves for its own entries.
        """
        reserved.refuse_parameters_of_that_name(parameters, self._schedulers)
        super().init(parameters)

    def update(
        self,
        model: Any,
        gradients: Any,
        max_norm: float | mx.array | None = None,
        skip_nonfinite: bool = False,
        max_value: float | mx.array | None = None,
        normalizer: float | mx.array | None = None,
    ) -> None:
        """Update the parameters of a model with its gradients, which may be clipped.

        If the gradients are evaluated and only the model refers to its parameters, the step of a
        fused optimizer runs eagerly, and the arrays remain the same objects with new values.
        Otherwise the model gets new, lazy arrays. An array that the program holds never changes.

        Args:
            model: A module.
            gradients: A tree of gradients, usually from :func:`mlx.nn.value_and_grad`.
            max_norm: The maximum global norm of the gradients, in their units. Larger gradients are
                scaled down to it inside the step, as by :func:`clip_grad_norm`. Afterwards
                :attr:`grad_norm` is the norm before clipping.
            skip_nonfinite: If the norm is infinite or NaN, leave the model, the step and the state
                unchanged and increment :attr:`skipped`. Nothing waits for the norm.
            max_value: The maximum size of an element of a gradient, after ``max_norm``. Larger ones
                are replaced by it, with their sign, as by PyTorch's ``clip_grad_value_``.
            normalizer: What the gradients are divided by before all else, such as the number of
                tokens of which they are a sum. With :attr:`accumulate` the gradients of a step are
                divided by the sum of its calls' normalizers, and without one by their number.

        Raises:
            ValueError: ``max_norm``, ``max_value`` or ``normalizer`` is negative, or only some
                calls of a step have a ``normalizer``.

        It also raises what :meth:`apply_gradients` raises. An error leaves model and state
        unchanged, except errors that MLX raises later, when it evaluates lazy arrays.
        """
        request = ClipRequest.from_arguments(max_norm, skip_nonfinite, max_value)
        if not accumulation.is_used(self, normalizer):
            step.update(shares_of(self, gradients), model, gradients, request)
            return
        with Rollback() as rollback:
            total = accumulation.add(self, gradients, model, normalizer, rollback)
            if total is not None:
                shares = shares_of(self, total.gradients)
                step.update(shares, model, total.gradients, request, total.divisor, rollback)

    def apply_gradients(
        self,
        gradients: Any,
        parameters: Any,
        max_norm: float | mx.array | None = None,
        skip_nonfinite: bool = False,
        max_value: float | mx.array | None = None,
        normalizer: float | mx.array | None = None,
    ) -> Any:
        """Return the updated parameters; the optimizer's state is updated in place.

        Args:
            gradients: A tree of arrays.
            parameters: A tree, or a module, that has an array of the same shape for each gradient.
                It may have more; those are not in the result.
            max_norm: As for :meth:`update`.
            skip_nonfinite: As for :meth:`update`.
            max_value: As for :meth:`update`.
            normalizer: As for :meth:`update`.

        Returns:
            The new parameters, with the structure of the gradients. They are lazy; buffers of the
            gradients and the old parameters are reused if nothing else holds them. A call that
            only adds gradients (see :attr:`accumulate`) returns the parameters that it was given.

        Raises:
            KeyError: A gradient has no parameter or no state.
            TypeError: A gradient or a parameter is not an array.
            ValueError: The shapes of a gradient, its parameter and its state differ.

        The message names the parameter's path. Model and state are unchanged.

        Example:
            >>> import mlx.core as mx
            >>> import mlx_opt as optim
            >>> optimizer = optim.SGD(learning_rate=0.5)
            >>> optimizer.apply_gradients({"w": mx.array([1.0])}, {"w": mx.array([3.0])})
            {'w': array([2.5], dtype=float32)}
        """
        request = ClipRequest.from_arguments(max_norm, skip_nonfinite, max_value)
        if not accumulation.is_used(self, normalizer):
            return step.apply(self._shares(gradients), parameters, gradients, request)
        with Rollback() as rollback:
            total = accumulation.add(self, gradients, parameters, normalizer, rollback)
            if total is None:
                return accumulation.unchanged(gradients, parameters)
            gradients, divisor = total
            shares = self._shares(gradients)
            return step.apply(shares, parameters, gradients, request, divisor, rollback)

    @property
    def accumulate(self) -> int:
        """The number of calls whose gradients make a step; 1 by default.

        A call of :meth:`update` adds its gradients to those that are pending, in place, and each
        ``accumulate``-th call makes the step, with their mean. It can be set at any time: a call
        makes the step if at least so many are pending with it. See docs/guides/memory.md.

        Raises:
            TypeError: Set to something that is not an int.
            ValueError: Set to a number below 1.

        Example:
            >>> import mlx.core as mx
            >>> import mlx_opt as optim
            >>> optimizer, w = optim.SGD(1.0, accumulate=2), {"w": mx.array([8.0])}
            >>> w = optimizer.apply_gradients({"w": mx.array([1.0])}, w)
            >>> w, optimizer.accumulated
            ({'w': array([8], dtype=float32)}, 1)
            >>> optimizer.apply_gradients({"w": mx.array([3.0])}, w)
            {'w': array([6], dtype=float32)}
        """
        return self._accumulate

    @accumulate.setter
    def accumulate(self, count: int) -> None:
        self._accumulate = accumulation.checked_count(type(self).__name__, count)

    @property
    def accumulate_dtype(self) -> mx.Dtype | None:
        """The dtype in which gradients are added up: float32, float16 or bfloat16, or None, the
        default, for that of the first gradient.

        Raises:
            ValueError: Set to something else.
        """
        name = self._accumulate_dtype
        return None if name is None else STORAGE[name]

    @accumulate_dtype.setter
    def accumulate_dtype(self, dtype: Any) -> None:
        self._accumulate_dtype = accumulation.checked_dtype(type(self).__name__, dtype)

    @property
    def accumulated(self) -> int:
        """The number of calls whose gradients are pending."""
        return accumulation.calls_of(self._clip_state())

    def memory(self, model: Any, show: bool = True) -> Memory:
        """Return what the optimizer and a model hold in memory, in bytes.

        It may be called at any time, also before the model's parameters are evaluated; it evaluates
        and changes nothing. A state that there is not yet is counted as the first step makes it.

        Args:
            model: A module, or a tree of the arrays that are trained.
            show: Print a table too, which needs rich.

        Returns:
            The bytes of the ``parameters`` that are trained, of those that are ``frozen``, of their
            ``gradients``, of the ``state`` by its slots, and of gradients that are ``pending`` with
            :attr:`accumulate`; ``between_steps`` and ``step_peak`` are what is held there.
            Activations are not counted, nor what Muon's iterations need.

        Raises:
            ImportError: rich is not installed.
            TypeError: A leaf of the tree is not an array.

        Example:
            >>> import mlx.core as mx
            >>> import mlx_opt as optim
            >>> memory = optim.AdamW(1e-3).memory({"w": mx.zeros((100, 10))}, show=False)
            >>> memory.step_peak, memory.state["m"]
            (16012, 4000)
        """
        return memory.measured(self, model, show)

    @property
    def state(self) -> dict:
        """The optimizer's state dictionary."""
        return self._state

    @state.setter
    def state(self, state: dict) -> None:
        reserved.move_former_entries(state)
        self._initialized = False
        self._state = state

    @property
    def grad_norm(self) -> mx.array | None:
        """The global norm of the gradients of the last step that clipped or could be skipped, a 0-d
        array; before the first of these, None."""
        return reserved.entries_of(self._clip_state()).get("grad_norm")

    @property
    def telemetry(self) -> Telemetry | None:
        """The norms of the last step's update and of the parameters after it, and their ratio.

        Set it to True, and each step takes ``update_norm``, ``parameter_norm`` and ``ratio``, of
        all parameters that it updates, and in the dict ``groups`` of those of each group: 0-d
        float32 arrays, for which nothing waits. Where a parameter has a master weight they are of
        that. A skipped step has an update of norm 0. Before the first step, or if it is set to
        False, it is None. See docs/telemetry.md for what it costs.

        Raises:
            TypeError: Set to something that is not a bool, or the optimizer is :class:`Sharded`, or
                has a component that is not of mlx_opt.

        Example:
            >>> import mlx.core as mx
            >>> import mlx_opt as optim
            >>> optimizer = optim.SGD(0.5, groups=[optim.Group("b", learning_rate_scale=0.0)])
            >>> optimizer.telemetry = True
            >>> w = {"a": mx.array([4.0]), "b": mx.array([3.0])}
            >>> w = optimizer.apply_gradients({"a": mx.array([0.0]), "b": mx.array([1.0])}, w)
            >>> optimizer.telemetry.parameter_norm, optimizer.telemetry.groups["b"].update_norm
            (array(5, dtype=float32), array(0, dtype=float32))
        """
        return telemetry.of(self)

    @telemetry.setter
    def telemetry(self, on: bool) -> None:
        telemetry.switch(self, on)

    @property
    def loss_scale(self) -> mx.array | None:
        """The factor by which the program multiplies the loss, against underflow in float16.

        None, the default, or a 0-d float32 array that is in the state. If it is set, a step
        divides the gradients by it, before ``max_norm`` and :attr:`grad_norm`. A step whose norm is
        infinite or NaN is skipped, and the scale is halved. It is doubled after 2000 steps in a row
        that were not skipped, and stays between 2**-24 and 2**24.
        Micikevicius et al., `Mixed precision training <https://arxiv.org/abs/1710.03740>`_.

        Raises:
            TypeError: Set to something that is neither a number nor None.
            ValueError: Set to a number that is out of the range.

        Example:
            >>> import mlx.core as mx
            >>> import mlx_opt as optim
            >>> optimizer, w = optim.SGD(0.5), mx.array([1.0], mx.float16)
            >>> optimizer.loss_scale = 2.0**10
            >>> slope = mx.grad(lambda w: optimizer.loss_scale * (3 * w).sum())(w)
            >>> optimizer.apply_gradients({"w": slope}, {"w": w})
            {'w': array([-0.5], dtype=float16)}
        """
        return reserved.entries_of(self._clip_state()).get(loss_scale.KEY)

    @loss_scale.setter
    def loss_scale(self, value: float | mx.array | None) -> None:
        scale = None if value is None else loss_scale.checked(value)
        entries = self._clip_state().setdefault(reserved.KEY, {})
        entries.pop(loss_scale.STEPS_KEY, None)
        if scale is None:
            entries.pop(loss_scale.KEY, None)
        else:
            entries[loss_scale.KEY] = scale

    def master_parameters(self, model: Any) -> Any:
        """Return a model's parameters in float32, with their master weights where they have some.

        Args:
            model: The module that the optimizer updates, of which the trainable parameters are
                taken, or a tree of arrays.

        Returns:
            A tree of the same structure. A parameter in bfloat16 or float16 that has no master
            weight is converted; others are returned as they are.

        Raises:
            TypeError: A leaf of the tree is not an array.

        Example:
            >>> import mlx.core as mx
            >>> import mlx_opt as optim
            >>> optimizer = optim.SGD(2.0**-10, master_weights="float32")
            >>> w = {"w": mx.ones(1, mx.bfloat16)}
            >>> w = optimizer.apply_gradients(w, w)
            >>> w, optimizer.master_parameters(w)
            ({'w': array([1], dtype=bfloat16)}, {'w': array([0.999023], dtype=float32)})
        """
        return master_weights.parameters(self._states(), model)

    def ema_parameters(self, model: Any) -> Any:
        """Return the averages of a model's parameters; the model keeps its own.

        They are the exponential moving averages that ``ema_decay`` keeps, as they are stored: in
        float32 for parameters in bfloat16 and float16 too.

        Args:
            model: The module that the optimizer updates, of which the trainable parameters are
                taken, or a tree of arrays.

        Returns:
            A tree of the same structure. A parameter that has had no step, or that is in no group
            with a decay, is its own average.

        Raises:
            ValueError: Neither the optimizer nor one of its groups has an ``ema_decay``.

        Example:
            >>> import mlx.core as mx
            >>> import mlx_opt as optim
            >>> optimizer, w = optim.SGD(1.0, ema_decay=0.5), {"w": mx.array([4.0])}
            >>> for _ in range(2):
            ...     w = optimizer.apply_gradients({"w": mx.array([1.0])}, w)
            >>> w, optimizer.ema_parameters(w)
            ({'w': array([2], dtype=float32)}, {'w': array([2.5], dtype=float32)})
        """
        return ema.parameters(self, model)

    @contextmanager
    def evaluating(self, model: Any) -> Iterator[None]:
        """Give a model the averages of its parameters for the duration of a ``with`` block.

        The model has them in the dtypes of its parameters. A step in the block raises; afterwards
        the model has the parameters that it had before.

        Args:
            model: The module that the optimizer updates.

        Raises:
            TypeError: It is not a module.
            ValueError: Neither the optimizer nor one of its groups has an ``ema_decay``.

        Example:
            >>> import mlx.core as mx
            >>> import mlx.nn as nn
            >>> import mlx_opt as optim
            >>> model, optimizer = nn.Linear(2, 1), optim.SGD(0.1, ema_decay=0.999)
            >>> optimizer.update(model, {"bias": mx.array([1.0])})
            >>> with optimizer.evaluating(model):
            ...     y = model(mx.ones((1, 2)))
        """
        with ema.evaluating(self, model):
            yield

    def _has_ema(self) -> bool:
        """True if parameters may have averages."""
        return False

    def _states(self) -> list[dict]:
        """The states with the slots of the parameters."""
        return [self.state]

    def _clip_state(self) -> dict:
        """The state that holds the results of clipping."""
        return self.state

    @property
    def skipped(self) -> mx.array | None:
        """The number of steps that were skipped because the norm of their gradients was infinite or
        NaN, a 0-d array; before the first step with ``skip_nonfinite``, None."""
        return reserved.entries_of(self._clip_state()).get("skipped")

    def _refuse_as_part(self) -> None:
        """Raise TypeError if the optimizer cannot be a part of another."""

    def _check_takes_gradients(self) -> None:
        """Raise RuntimeError if the model does not have the parameters that are trained."""

    def _frozen(self, gradients: Any) -> set[str]:
        """The paths of gradients that the optimizer's groups freeze; follows :meth:`check`."""
        return set()

    def _shares(self, gradients: Any) -> list[Share]:
        """The parts of a step of this class, even if a subclass overrides `apply_gradients`."""
        return [Share(self, gradients, self._apply_leaves)]

    def _apply_leaves(self, gradients: Any, parameters: Any) -> Any:
        """A step through `apply_single`, leaf by leaf."""
        return stock.Optimizer.apply_gradients(self, gradients, parameters)


# The method of this package. If a subclass or a patch overrides it, the override is called.
_apply_gradients = Optimizer.apply_gradients


def shares_of(optimizer: stock.Optimizer, gradients: Any) -> list[Share]:
    """The parts of an optimizer's step."""
    if isinstance(optimizer, Optimizer) and is_own(optimizer, "apply_gradients", _apply_gradients):
        return optimizer._shares(gradients)
    return [Share(optimizer, gradients, optimizer.apply_gradients)]


def is_own(optimizer: stock.Optimizer, name: str, function: Any) -> bool:
    """True if a method is this function, bound to this optimizer."""
    method = getattr(optimizer, name)
    return getattr(method, "__func__", None) is function and method.__self__ is optimizer
