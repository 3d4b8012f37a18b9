"""Optimizers that mlx.optimizers does not have, derived from their descriptions and formulas."""

from __future__ import annotations

import inspect
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map

from . import _ext
from .forms import Form, forms_of
from .formulas import FORMULAS
from .fused import STORAGE, FusedOptimizer


class Hyperparameter:
    """An attribute of an optimizer: a value that its rule allows, or a schedule.

    A schedule's value is in the optimizer's state, like the learning rate's. A value that is set
    over a schedule lasts until the next step.
    """

    def __init__(self, optimizer: str, name: str, standards: dict[str, Any]) -> None:
        """`standards`: the rule's hyperparameters of this attribute, with their defaults."""
        self.optimizer = optimizer
        self.name = name
        self.parts = tuple(standards)
        self.is_sequence = self.parts != (name,)
        self.standard = tuple(standards.values()) if self.is_sequence else standards[name]
        self.__doc__ = f"Default: {self.standard}."

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        if instance is None:
            return self
        values = instance.state if self.name in instance._schedulers else vars(instance)
        return values[self.name]

    def __set__(self, instance: Any, value: Any) -> None:
        if callable(value) and self.may_be_scheduled:
            instance._maybe_schedule(self.name, value)
            return
        self._check(value)
        if self.name in instance._schedulers:
            instance.state[self.name] = mx.array(value)
        else:
            vars(instance)[self.name] = value

    @property
    def may_be_scheduled(self) -> bool:
        return not self.is_sequence and not isinstance(self.standard, bool)

    def _check(self, value: Any) -> None:
        values = [value]
        if self.is_sequence:
            count = len(self.parts)
            if not isinstance(value, (tuple, list)) or len(value) != count:
                raise ValueError(
                    f"{self.optimizer}: {self.name}: expected {count} numbers, got {value}"
                )
            values = list(value)
        for part, each in zip(self.parts, values, strict=True):
            _ext.check_hyper(self.optimizer, part, each)


class DerivedOptimizer(FusedOptimizer):
    """An optimizer of one rule. Its class is made by :func:`optimizer_class`."""

    _form: Form
    _hyperparameters: tuple[Hyperparameter, ...]

    def init_single(self, parameter: mx.array, state: dict) -> None:
        """Initialize optimizer state"""
        state.update(_ext.initial_state(self._program()[0], parameter))

    def _apply_leaves(self, gradients: Any, parameters: Any) -> Any:
        if not self._form.kept:
            return super()._apply_leaves(gradients, parameters)
        # As in mlx.optimizers, but updates the kept numbers, which `apply_single` reads.
        if not self._initialized:
            self.init(gradients)
        for name, schedule in self._schedulers.items():
            self.state[name] = schedule(self.step)
        self.state["step"] = self.step + 1
        self.state.update(_ext.next_kept(*self._program(), self.step))
        return tree_map(self.apply_single, gradients, parameters, self.state)

    def _formula(self, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
        program, hypers = self._program()
        names = [slot.name for slot in self._form.slots]
        arrays = [parameter, *(state[name] for name in names), gradient]
        dtypes = None
        if all(x.dtype in STORAGE for x in arrays):
            dtypes = _ext.result_dtypes(program, hypers, arrays)
            arrays = [x.astype(mx.float32) for x in arrays]
        new, after = FORMULAS[self._rule](
            mx,
            arrays[0],
            arrays[-1],
            dict(zip(names, arrays[1:-1], strict=True)),
            self.step,
            learning_rate=self.learning_rate,
            **{hyper.name: getattr(self, hyper.name) for hyper in self._hyperparameters},
            **{name: getattr(self, name) for name in self._form.kept},
        )
        results = [new, *(after[name] for name in names)]
        if dtypes is not None:
            results = [x.astype(dtype) for x, dtype in zip(results, dtypes, strict=True)]
        state.update(zip(names, results[1:], strict=True))
        return results[0]


def optimizer_class(name: str, module: str) -> type[DerivedOptimizer]:
    """Make the class of an optimizer of one rule; `module` must have it under its name."""
    (form,) = forms_of(name).forms
    hyperparameters = tuple(_hyperparameters(name, form))
    signature = _signature(hyperparameters)

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            arguments = signature.bind(self, *args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{name}: {error}") from None
        arguments.apply_defaults()
        DerivedOptimizer.__init__(self)
        self._maybe_schedule("learning_rate", arguments.arguments["learning_rate"])
        for hyper in hyperparameters:
            setattr(self, hyper.name, arguments.arguments[hyper.name])
        for kept, first in form.kept.items():
            self.state[kept] = mx.array(first)

    __init__.__signature__ = signature  # type: ignore[attr-defined]
    members: dict[str, Any] = {
        "__doc__": _docstring(name, hyperparameters),
        "__init__": __init__,
        "__module__": module,
        "_form": form,
        "_hyperparameters": hyperparameters,
        "_rule": name,
    }
    members |= {hyper.name: hyper for hyper in hyperparameters}
    members |= {kept: _kept_number(kept) for kept in form.kept}
    return type(name, (DerivedOptimizer,), members)


def _kept_number(name: str) -> property:
    def number(self: Any) -> mx.array:
        if name not in self.state:
            raise KeyError(f'the optimizer state has no "{name}"')
        return self.state[name]

    return property(number, doc="The value in the last step, from the state; a 0-d array.")


def _hyperparameters(optimizer: str, form: Form) -> list[Hyperparameter]:
    standards: dict[str, dict[str, Any]] = {}  # of each attribute
    for (attribute, _), (name, standard) in zip(form.hypers, form.standards.items(), strict=True):
        standards.setdefault(attribute, {})[name] = standard
    return [Hyperparameter(optimizer, *item) for item in standards.items()]


def _signature(hyperparameters: tuple[Hyperparameter, ...]) -> inspect.Signature:
    def parameter(name: str, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
        return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default)

    return inspect.Signature(
        [
            parameter("self"),
            parameter("learning_rate"),
            *(parameter(hyper.name, hyper.standard) for hyper in hyperparameters),
        ]
    )


def _docstring(name: str, hyperparameters: tuple[Hyperparameter, ...]) -> str:
    lines = [
        inspect.cleandoc(FORMULAS[name].__doc__ or name),
        "",
        "Args:",
        "    learning_rate: A number, or a schedule: a callable from the number of steps done.",
    ]
    for hyper in hyperparameters:
        kind = "Numbers" if hyper.is_sequence else "A number"
        if hyper.may_be_scheduled:
            kind += ", or a schedule"
        elif not hyper.is_sequence:
            kind = "A bool"
        lines.append(f"    {hyper.name}: {kind}. Default: ``{hyper.standard}``.")
    lines += ["", "Raises:", "    TypeError: An argument is not what it must be.", ""]
    lines.insert(-1, "    ValueError: A hyperparameter is out of its range.")
    return "\n".join(lines)
