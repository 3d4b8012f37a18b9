"""Optimizers whose step runs through the primitives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from . import _ext, codes, ema, master_weights, reserved, rounding
from .base import Optimizer, is_own
from .clipping import negative_of
from .descriptions import Slot
from .forms import Forms, check_cautious, check_decay, forms_of
from .grouping import Grouping, Portion, forget_other_groups
from .groups import Group, groups_from
from .hyperparameters import Hyperparameter, Option
from .rollback import Rollback
from .rule_formula import rule_formula
from .state_dtypes import NAME as STATE_DTYPE
from .state_dtypes import Formula, check_codes, formats_of, named, stored
from .step import Share
from .tools import describe, summary
from .tools.describe import Described, ParameterRow
from .trees import like


class FusedOptimizer(Optimizer):
    """An optimizer whose step is one primitive over all parameters.

    The update is computed in float32, whatever the storage. It is written to the buffers of the old
    parameters and state arrays if nothing else holds them.
    """

    _rule: str
    """The name of the optimizer in the rules' descriptions."""

    _forms: Forms

    _read: tuple[str, ...]
    """The attributes that a step reads."""

    _fixed: dict[str, Any] = {}
    """Hyperparameters of the rule that the optimizer does not have."""

    _additions: dict[str, Any] = {}
    """Attributes that the optimizer of this name in mlx.optimizers does not have, with their
    defaults, by which it does what that one does."""

    _options: tuple[str, ...] = ()
    """Attributes that the program depends on, besides the rule's hyperparameters; `state_dtype` is
    one of every class."""

    state_dtype: Any = None
    """The dtype of the state by its name, or a dict of these by the names of slots. If it is not
    None, a parameter keeps its dtype, whatever that of its gradient."""

    _formula_depends_on_dtypes = False
    """True if the formula must get the arrays in their dtypes, not in float32."""

    _checks_values = False
    """True if a hyperparameter cannot be set to a value that the rule does not allow."""

    _grouping: Grouping | None = None

    master_weights: str | None = None
    """How the float32 weights of parameters in bfloat16 and float16 are kept; None if not."""

    stochastic_rounding: bool = False
    """True if results in bfloat16 are rounded stochastically; parameters keep their dtypes then."""

    rounding_seed: int = 0
    """The seed of the random bits for that."""

    ema_decay: Any = ema.DecayOf()
    ema_warmup: float | str | None = None
    ema_update_after: int = 0

    groups: tuple[Group, ...] = ()
    """The groups that the constructor was given."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if not hasattr(cls, "_rule"):
            return
        cls._forms = forms_of(cls._rule)
        if STATE_DTYPE not in cls._options:
            cls._options = (*cls._options, STATE_DTYPE)
        names = (*cls._forms.names, *cls._options, "master_weights", rounding.NAME, rounding.SEED)
        cls._read = tuple(name for name in names if name not in cls._fixed)
        for name, attribute in cls._forms.attributes.items():
            if name not in cls._fixed and not hasattr(cls, name):
                is_checked = cls._checks_values or name in cls._additions
                missing = cls._additions.get(name)
                setattr(cls, name, Hyperparameter(attribute, is_checked, missing))

    @summary.never_raises
    def __repr__(self) -> str:
        return summary.summary(self, self._shown_attributes(), self._use())

    def _shown_attributes(self) -> list[str]:
        # What mlx.optimizers does not have is shown if it does something.
        names = [
            name
            for name in (*self._forms.attributes, *self._options)
            if name not in self._fixed and not self._is_left_out(name)
        ]
        names += [] if self.master_weights is None else ["master_weights"]
        names += [rounding.NAME, rounding.SEED] if self.stochastic_rounding else []
        if ema.is_kept(self.ema_decay):
            names += ["ema_decay", *(x for x in (ema.WARMUP, ema.UPDATE_AFTER) if getattr(self, x))]
        return [*summary.rate_of(self), *names, *(["accumulate"] if self.accumulate > 1 else [])]

    def _is_left_out(self, name: str) -> bool:
        if name == STATE_DTYPE:
            return self.state_dtype is None
        if name not in self._additions:
            return False
        value, standard = getattr(self, name, None), self._additions[name]
        return not isinstance(value, mx.array) and value == standard

    def _use(self) -> str:
        """How the steps run, for `repr`."""
        device = mx.default_device().type.name
        if not self._uses_own_step():
            return "apply_single is overridden, not fused"
        if not self._uses_primitives():
            return "a method is overridden, not fused"
        return f"fused on {device}" if _ext.available() else f"no backend for {device}, not fused"

    def describe(self, model: Any, show: bool = True) -> list[ParameterRow]:
        """Return which hyperparameters each parameter has, and from which group.

        It may be called at any time. It assigns the parameters to their groups, as a step does.

        Args:
            model: A module, of which all parameters that are not frozen by it are described, or a
                tree of arrays.
            show: Print a table too, which needs rich.

        Returns:
            For each parameter its ``path``, ``shape`` and ``dtype``, the name of the ``rule`` that
            updates it, its ``values``, the ``groups`` that they come from, and whether it is
            ``frozen``.

        Raises:
            ImportError: rich is not installed.
            TypeError: A leaf of the tree is not an array.

        Example:
            >>> import mlx.core as mx
            >>> import mlx_opt as optim
            >>> optimizer = optim.SGD(0.5, groups=[optim.Group("b", weight_decay=0.1)])
            >>> rows = optimizer.describe({"a": mx.ones(2), "b": mx.ones(2)}, show=False)
            >>> [(row.path, row.values["weight_decay"]) for row in rows]
            [('a', 0.0), ('b', 0.1)]
        """
        return describe.describe(self._described, model, show)

    def _without_groups(self) -> Grouping:
        return Grouping(type(self).__name__, (), [], self._forms)

    def _described(self, parameters: Any, model: Any) -> list[Described]:
        grouping = self._grouping or self._without_groups()
        grouping.assignment.extend(parameters, model)
        return [grouping.described(self, self._values(), parameters)]

    def init(self, parameters: Any) -> None:
        grouping = self._grouping
        forget_other_groups(self.state, grouping)
        if grouping is None and self.state_dtype is None and not self._has_conversions():
            super().init(parameters)
            return
        reserved.refuse_parameters_of_that_name(parameters, self._schedulers)
        if grouping is None:
            grouping = self._without_groups()
            grouping.assignment.extend(parameters, parameters, judges=False)
        else:
            self._assign(parameters, parameters, judges=False)
        grouping.init(self, parameters)
        self._initialized = True

    def _gives(self, option: str) -> bool:
        """True if the optimizer or one of its groups has an option that is None or False if not
        given."""
        given = [group.hyperparameters.get(option) for group in self.groups]
        return any(value not in (None, False) for value in (getattr(self, option), *given))

    def _has_conversions(self) -> bool:
        """True if `init` may have to change a parameter's state that is there."""
        return self._has_stages() or codes.are_in(self.state, self._slots())

    def _slots(self) -> list[Slot]:
        """The slots of all forms of the optimizer."""
        return [slot for form in self._forms.forms for slot in form.slots]

    def _has_masters(self) -> bool:
        """True if parameters may have master weights, or a state has some that it should not."""
        has_some = self._gives("master_weights")
        return has_some or self._uses_own_step() and master_weights.is_in(self.state)

    def _has_ema(self) -> bool:
        given = [group.hyperparameters.get(ema.NAME) for group in self.groups]
        return any(map(ema.is_kept, [self.ema_decay, *given]))

    def _has_stages(self) -> bool:
        """True if parameters may have master weights or averages, or a state has some that it
        should not."""
        if self._has_masters() or self._has_ema():
            return True
        return self._uses_own_step() and ema.is_in(self.state)

    def _to_initialize(self, gradients: Any, parameters: Any) -> Any:
        """What `init` gets before the first step: gradients, as with mlx.optimizers, unless the
        dtypes of their parameters matter."""
        return like(gradients, parameters) if self._has_stages() else gradients

    def _frozen(self, gradients: Any) -> set[str]:
        return set() if self._grouping is None else self._grouping.frozen(self, gradients)

    def _assign(self, gradients: Any, parameters: Any, judges: bool = True) -> None:
        """Assign parameters to groups, if there are any; see `Assignment.extend`."""
        if self._grouping is not None:
            self._grouping.assignment.extend(gradients, parameters, judges)

    def check(self, gradients: Any, parameters: Any) -> None:
        if not self._uses_own_step():
            return
        self._assign(gradients, parameters)
        for portion in self._portions(self._values()):
            part = _ext.Part(
                portion.program,
                portion.groups,
                0,
                gradients,
                parameters,
                self.state,
                initialized=self._initialized,
                assignment=portion.tree,
                positions=portion.positions,
            )
            part.collect()

    def apply_single(self, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
        """Return the updated parameter; ``state`` is updated in place.

        Args:
            gradient: An array.
            parameter: An array of the same shape.
            state: The arrays that :meth:`init_single` made.
        """
        values = self._checked(self._values())
        program, hypers = self._step_program(values)
        formula = self._as_stored(self._formula, hypers, values)
        group = hypers, self._rate(values), 1.0, formula
        fused = self._uses_primitives()
        part = _ext.Part(
            program,
            [group],
            self.step,
            gradient,
            parameter,
            state,
            fused=fused,
            splits=[self._split_of(values)],
        )
        if values.get("maximize"):
            ascent = negative_of(None)
            part.clip(ascent.scale, False, ascent.around)
        _ext.stage([part])
        part.commit()
        updated: Any = part.tree()
        return updated

    def _shares(self, gradients: Any) -> list[Share]:
        uses_own_step = self._uses_own_step()
        if not uses_own_step:
            self._refuse_stages()
        own = uses_own_step or self._grouping is not None
        return [Share(self, gradients, None if own else self._apply_leaves)]

    def _refuse_stages(self) -> None:
        """Raise TypeError if a step needs more than `apply_single`, which is overridden."""
        overridden = "apply_single is overridden, and does not"
        name = type(self).__name__
        if self.master_weights is not None:
            raise TypeError(f"{name}: master_weights: {overridden} get the master weights")
        if ema.is_kept(self.ema_decay):
            raise TypeError(f"{name}: ema_decay: {overridden} get the averages")
        if self.stochastic_rounding:
            raise TypeError(f"{name}: {rounding.NAME}: {overridden} round stochastically")

    def _uses_own_step(self) -> bool:
        """True if `apply_single` is not overridden."""
        return is_own(self, "apply_single", _apply_single)

    def _init_own(self, gradients: Any) -> None:
        """Initialize the state of this optimizer's own parameters before its first step."""
        self.init(gradients)

    def _uses_primitives(self) -> bool:
        """False if the formula updates all leaves."""
        return True

    def _set_common(self, given: dict[str, Any]) -> None:
        """Take the constructor's arguments that every class has."""
        self._set_state_dtype(given["state_dtype"])
        self.master_weights = given["master_weights"]
        self._set_rounding(given[rounding.NAME], given[rounding.SEED])
        self._set_ema(given)
        self.accumulate = given["accumulate"]
        self.accumulate_dtype = given["accumulate_dtype"]
        self._set_groups(given["groups"])

    def _set_state_dtype(self, given: Any) -> None:
        """Take the constructor's argument `state_dtype`.

        Raises:
            TypeError, ValueError: The state cannot be stored so.
        """
        formats_of(type(self).__name__, self._rule, given)
        self.state_dtype = named(given)

    def _set_rounding(self, given: Any, seed: Any) -> None:
        """Take the constructor's arguments of stochastic rounding.

        Raises:
            TypeError, ValueError: They are not a bool and a seed.
        """
        name = type(self).__name__
        rounding.StochasticRounding(name).check(given)
        rounding.check_seed(name, seed)
        self.stochastic_rounding, self.rounding_seed = given, seed

    def _set_ema(self, given: dict[str, Any]) -> None:
        """Take the constructor's arguments of the average of the weights.

        Raises:
            TypeError, ValueError: One is not what it must be.
        """
        name = type(self).__name__
        self.ema_decay = given[ema.NAME]
        self.ema_warmup = ema.checked_warmup(name, given[ema.WARMUP])
        self.ema_update_after = ema.checked_update_after(name, given[ema.UPDATE_AFTER])

    def _set_groups(self, given: Any) -> None:
        """Take the constructor's argument `groups`.

        Raises:
            TypeError, ValueError: A group has what it cannot have.
        """
        name = type(self).__name__
        groups = groups_from(name, given)
        masters = master_weights.MasterWeights(name)
        masters.check(self.master_weights)
        if self._has_own_hyperparameters():
            self._checked(self._values())
        if not groups:
            return
        attributes = [
            each
            for attribute, each in self._forms.attributes.items()
            if attribute not in self._fixed
        ]
        attributes += [Option(name, option) for option in self._options]
        attributes += [masters, rounding.StochasticRounding(name), ema.Decay(name)]
        self.groups = groups
        self._grouping = Grouping(name, groups, attributes, self._forms)
        if self._has_own_hyperparameters():
            self._grouping.check(self, self._values())
        self._grouping.settle(self, Rollback(), [])

    def _add_groups(self, groups: tuple[Group, ...]) -> None:
        """Add groups of another optimizer, with what this one has of their hyperparameters."""
        names = {*self._forms.attributes, *self._options, "master_weights"}
        names |= {rounding.NAME, ema.NAME}
        names -= {*self._fixed}
        added = [each.restricted(names) for each in groups]
        self._set_groups([*self.groups, *(each for each in added if each is not None)])

    def _has_own_hyperparameters(self) -> bool:
        """False if a subclass has a property, which may need what its constructor sets later."""
        names = (name for name in self._forms.attributes if name not in self._fixed)
        return all(isinstance(getattr(type(self), name), Hyperparameter) for name in names)

    def _values(self) -> dict[str, Any]:
        """The values of all attributes that the rule needs; reads each once."""
        values = dict(self._fixed)
        for name in self._read:
            values[name] = getattr(self, name)
        if self._has_ema():
            values[ema.NAME] = self.ema_decay
        return values

    def _checked(self, values: dict[str, Any]) -> dict[str, Any]:
        """The values in the form that `_program_of` takes.

        Raises:
            ValueError: They do not go together.
        """
        check_decay(values)
        check_cautious(values)
        rounding.check(values)
        if values[STATE_DTYPE] is not None:
            form = self._forms.form_of(values)
            check_codes(type(self).__name__, values, form.elementwise)
        return values

    def _check_group(self, values: dict[str, Any]) -> None:
        """Raise ValueError if parameters of a group cannot have these values together."""

    def _program_of(self, values: dict[str, Any]) -> tuple[_ext.Program, list[Any]]:
        """The program that values of the attributes select, and its hyperparameters."""
        return self._forms.settle(values)

    def _step_program(self, values: dict[str, Any]) -> tuple[_ext.Program, list[Any]]:
        """The program of a step, with what is around the rule, and its hyperparameters."""
        return ema.with_average(self, *self._program_of(values), values.get(ema.NAME))

    def _split_of(self, values: dict[str, Any]) -> tuple[int, ...]:
        """The rows of the blocks of matrices; see :mod:`mlx_opt.splits`."""
        return ()

    def _check_takes_gradients(self) -> None:
        if ema.is_evaluating(self.state):
            raise RuntimeError(
                f"{type(self).__name__}: the model has the averages of its parameters: end the "
                "block of evaluating(model) before the next step"
            )

    def _next_kept(
        self, values: dict[str, Any], step: Any, sums: Sequence[mx.array] | None = None
    ) -> dict[str, mx.array]:
        """The numbers that the rule keeps from step to step, as they are in this step.

        `sums`: those over all tensors, if the rule needs some; None if there are no tensors.
        """
        self._check_takes_gradients()
        if not self._forms.kept:
            return {}
        totals = [mx.array(0.0)] * self._forms.sums if sums is None else list(sums)
        return _ext.next_kept(*self._program_of(values), self._rate(values), step, totals)

    def _portions(self, values: dict[str, Any]) -> list[Portion]:
        """The portions of a step.

        Raises:
            TypeError: There are groups, and `apply_single` is overridden.
        """
        if self._grouping is None:
            values = self._checked(values)
            program, hypers = self._step_program(values)
            rate = self._rate(values)
            if not self._uses_own_step():  # `apply_single` negates the gradients itself
                return [Portion(program, [(hypers, rate, 1.0, self.apply_single)], None, [])]
            formula = self._as_stored(self._formula, hypers, values)
            groups = [(hypers, rate, 1.0, formula)]
            splits = [self._split_of(values)]
            return [Portion(program, groups, None, [], bool(values.get("maximize")), splits)]
        portions = self._grouping.portions(self, values)
        if not self._uses_own_step():
            raise TypeError(
                f"{type(self).__name__}: groups: apply_single is overridden, and does not get the "
                "hyperparameters of groups"
            )
        return portions

    def _reads_rate(self, values: dict[str, Any]) -> bool:
        """True if the program reads the learning rate."""
        return True

    def _rate(self, values: dict[str, Any]) -> Any:
        """The learning rate; None if the program does not read it.

        Raises:
            TypeError: There is none.
        """
        if not self._reads_rate(values):
            return None
        rate = self.learning_rate
        if rate is None:
            raise TypeError("learning_rate: expected a 0-d mlx.core.array, got NoneType")
        return rate

    def _formula(self, gradient: mx.array, parameter: mx.array, state: dict) -> mx.array:
        """The step as a graph of MLX's own operations: any dtype, any device, differentiable."""
        if self._uses_additions():
            return rule_formula(self, gradient, parameter, state)
        return super().apply_single(gradient, parameter, state)

    def _as_stored(self, formula: Formula, hypers: list[Any], values: dict[str, Any]) -> Formula:
        """`formula` with results that are stored as the primitives' are, and with what is around
        the rule. `hypers`: those of the program; `values`: of the attributes."""
        formula = rounding.around(stored(self, formula, values), values)
        formula = master_weights.around(formula, values["master_weights"])
        return ema.around(formula, hypers, values)

    def _uses_additions(self) -> bool:
        """True if an attribute that mlx.optimizers does not have is not as there."""
        names = (name for name in self._forms.attributes if name in self._additions)
        values = ((getattr(self, name), self._additions[name]) for name in names)
        return any(isinstance(value, mx.array) or value != default for value, default in values)


_apply_single = FusedOptimizer.apply_single


def described_by(optimizer: Any, parameters: Any, model: Any) -> list[Described]:
    """What an optimizer does with its parameters; empty for one that has no rule."""
    describes = getattr(optimizer, "_described", None)
    return [] if describes is None else describes(parameters, model)
