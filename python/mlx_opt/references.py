"""The rules in float64 NumPy: the slow, plain reference for every backend.

Used by the tests and ``python -m mlx_opt selftest``; nothing else in the package needs NumPy.

Each rule is called as :mod:`mlx_opt.formulas` describes, without the array module.
"""

from functools import partial

import numpy as np

from . import formulas, optimizers
from .forms import forms_of
from .formulas import CASES as CASES

REFERENCES = {name: partial(formula, np) for name, formula in formulas.FORMULAS.items()}
sgd, adam, adafactor = (REFERENCES[name] for name in ("SGD", "Adam", "Adafactor"))
muon = partial(formulas.muon, np)
newton_schulz = partial(formulas.newton_schulz, np)


def slots(name, options):
    """The names of an optimizer's slots, in order."""
    return tuple(slot.name for slot in _form_of(name, options).slots)


def _form_of(name, options):
    """The form of an optimizer that these arguments of its constructor select.

    The numbers that the rule keeps may be among them; they select nothing.
    """
    kept = begin_kept(name)
    arguments = {key: value for key, value in options.items() if key not in kept}
    optimizer = getattr(optimizers, name)(**{"learning_rate": 0.1, **arguments})
    return optimizer._forms.form_of(optimizer._values())


def is_elementwise(name, options):
    """True if the update of an element depends only on that element's gradient and state."""
    return _form_of(name, options).elementwise


def is_any_shape(name):
    """True if all slots of an optimizer have the parameter's shape, for any shape."""
    form = forms_of(getattr(optimizers, name)._rule).forms[0]
    return all((slot.extent, slot.owner) == ("elements", "all") for slot in form.slots)


def initial_state(name, w, options):
    """The state before the first step: an array of the parameter's shape for each slot."""
    form = _form_of(name, options)
    begins = {"zeros": 0.0, "unset": np.nan}
    return {slot.name: np.full(np.shape(w), begins[slot.begin]) for slot in form.slots}


def begin_kept(name):
    """The numbers that a rule keeps, before the first step."""
    return dict(forms_of(getattr(optimizers, name)._rule).forms[0].kept)


def sums_over_all(name, tensors, kept, step, learning_rate, options, xp=np):
    """The sums over all tensors that a rule needs before a step; None if it needs none.

    `tensors`: of each the parameter, the gradient and the state. `kept`: as before the step.
    """
    if name not in formulas.SUMS:
        return None
    form = forms_of(getattr(optimizers, name)._rule).forms[0]
    values = {"learning_rate": learning_rate, **_attributes(form, options), **kept}
    parts = [formulas.SUMS[name](xp, *tensor, step, **values) for tensor in tensors]
    return {key: sum(part[key] for part in parts) for key in parts[0]}


def _attributes(form, options):
    """All arguments of a constructor, with the defaults of those that are not given."""
    standards = {}
    for part, (attribute, index) in zip(form.standards, form.hypers, strict=True):
        value = form.standards[part]
        standards[attribute] = value if index is None else (*standards.get(attribute, ()), value)
    return {**standards, **{key: x for key, x in options.items() if key != "learning_rate"}}


def next_kept(name, kept, step, learning_rate, options, xp=np, sums=None):
    """These numbers in a step, from those before it. `sums`: see `sums_over_all`."""
    if not kept:
        return {}
    form = forms_of(getattr(optimizers, name)._rule).forms[0]
    hypers = {**form.standards, **kept}
    for part, (attribute, index) in zip(form.standards, form.hypers, strict=True):
        if attribute in options:
            hypers[part] = options[attribute] if index is None else options[attribute][index]
    sums = [] if sums is None else [sums]
    return formulas.KEPT[name](xp, hypers, learning_rate, step, *sums)


def run(name, w, gradients, options):
    """Apply one step for each gradient, from the initial state; return the last `(w, state)`.

    `options` are the constructor's arguments. A callable `learning_rate` is a schedule:
    it is given the number of steps already taken.
    """
    rule = REFERENCES[name]
    w = np.array(w, np.float64)
    state, kept = initial_state(name, w, options), begin_kept(name)
    for step, g in enumerate(gradients, start=1):
        now = dict(options)
        if callable(now["learning_rate"]):
            now["learning_rate"] = float(now["learning_rate"](step - 1))
        g, rate = np.array(g, np.float64), now["learning_rate"]
        sums = sums_over_all(name, [(w, g, state)], kept, step, rate, now)
        kept = next_kept(name, kept, step, rate, now, sums=sums)
        w, state = rule(w, g, state, step, **now, **kept)
    return w, state


# For each storage: digits of the significand, exponent of the smallest denormal, largest value.
_FORMATS = {
    "float32": (24, -149, float(np.finfo(np.float32).max)),
    "float16": (11, -24, 65504.0),
    "bfloat16": (8, -133, float.fromhex("0x1.fep127")),
}


def ulp(x, storage):
    """The spacing of a storage, given by name, at float64 values."""
    digits, least, _ = _FORMATS[storage]
    _, exponent = np.frexp(x)
    return np.ldexp(1.0, np.maximum(exponent - digits, least))


def rounded(x, storage):
    """Round float64 values to a storage, ties to even; the result is still float64."""
    spacing = ulp(x, storage)
    y = np.round(x / spacing) * spacing
    return np.where(np.abs(y) > _FORMATS[storage][2], np.copysign(np.inf, y), y)


# The error that a few float32 operations may cause, relative to each of their inputs.
FLOAT32 = 2.0**-22


def exact_step(name, w, g, state, step, options, stored=None):
    """The float64 step and the error that float32 may cause, for "w" and each slot by name.

    The error is that of a step from inputs with a relative error of `FLOAT32`. So a sum near 0, or
    its sign, may be off by as much as the errors of its terms allow. A slot that begins with a
    computed value, not with a copy of the parameter or the gradient, may be off by as much.

    `stored`: the new state as stored, from which a rule of two passes computes the parameter.
    """
    finish = None if is_elementwise(name, options) else formulas.FINISHES.get(name)

    def run(inputs):
        before = {slot: inputs[slot] for slot in state}
        new, after = REFERENCES[name](inputs["w"], inputs["g"], before, step, **options)
        if finish is not None:
            after = {slot: inputs[f"new {slot}"] for slot in state}
            new = finish(np, inputs["w"], inputs["g"], after, step, **options)
        return {"w": new, **after}

    inputs = {"w": w, "g": g, **state}
    if finish is not None:
        inputs |= {f"new {slot}": stored[slot] for slot in state}
    exact = run(inputs)
    with np.errstate(invalid="ignore"):  # inf - inf: infinite values must agree exactly
        error = {k: FLOAT32 * (_size(inputs[k]) + _size(x - inputs[k])) for k, x in exact.items()}
        for changed, x in inputs.items():
            less = run(inputs | {changed: x * (1 - FLOAT32)})
            more = run(inputs | {changed: x * (1 + FLOAT32)})
            for k in exact:
                error[k] += np.maximum(np.abs(less[k] - exact[k]), np.abs(more[k] - exact[k]))
        for k, x in exact.items():
            if x.shape == np.shape(w):
                computed = np.isnan(inputs[k]) & (x != w) & (x != g)
                error[k] += np.where(computed, FLOAT32 * np.abs(x), 0.0)
    return {k: (x, error[k]) for k, x in exact.items()}


def _size(x):
    """Absolute values; 0 for NaN, as which a slot may begin."""
    return np.where(np.isnan(x), 0.0, np.abs(x))
