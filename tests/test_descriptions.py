"""What the rules' descriptions say holds for classes, formulas, test cases and pages."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import mlx_opt
from cases import CASES, SUMMING
from mlx_opt import descriptions, formulas, references
from mlx_opt.constructors import COMMON
from mlx_opt.forms import forms_of

PAGES = Path(__file__).resolve().parents[1] / "docs" / "rules"
OPTIMIZERS = descriptions.OPTIMIZERS

# Classes that are described as another's rule, with what they fix of it.
SAME_RULE = {"Adam": "AdamW"}
ADAM = {"weight_decay": 0.0, "weight_decay_kind": "coupled"}
CLASSES = [*OPTIMIZERS, *SAME_RULE]

each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)
each_class = pytest.mark.parametrize("name", CLASSES)
each_page = pytest.mark.skipif(
    not PAGES.is_dir(), reason="the documentation is not beside the tests"
)


def standards(name):
    """The described defaults by argument, a tuple where it has several."""
    found = {}
    for form in forms_of(SAME_RULE.get(name, name)).forms:
        values = {}
        for (argument, _), value in zip(form.hypers, form.standards.values(), strict=True):
            values.setdefault(argument, []).append(value)
        found |= values
    fixed = getattr(mlx_opt, name)._fixed
    found = {k: v[0] if len(v) == 1 else tuple(v) for k, v in found.items() if k not in fixed}
    # Adam decays otherwise than the rule's optimizer.
    return found | (ADAM if name == "Adam" else {})


def same(given, described):
    """True if a default is the described one; None stands for an option that is left out."""
    if isinstance(given, (list, tuple)):
        return tuple(given) == described
    return (0 if given is None else given) == described


def defaults(function):
    return {k: p.default for k, p in inspect.signature(function).parameters.items()}


@each_class
def test_the_class_has_the_described_arguments_and_defaults(name):
    given = defaults(getattr(mlx_opt, name))
    for argument, described in standards(name).items():
        assert same(given[argument], described), argument


@each_class
def test_the_formula_has_the_described_arguments_and_defaults(name):
    given = defaults(formulas.FORMULAS.get(name, formulas.muon))
    for argument, described in standards(name).items():
        assert same(given[argument], described), argument


@each_class
@each_page
def test_the_page_names_every_argument_with_its_default_and_every_slot(name):
    page = (PAGES / f"{name.lower()}.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| *([^|]*?) *\|", page, re.MULTILINE))
    given = defaults(getattr(mlx_opt, name))
    # Every optimizer has these; docs/groups.md and docs/guides/memory.md explain them.
    for argument in COMMON:
        del given[argument]
    for argument, default in given.items():
        text = rows[argument]
        if default is inspect.Parameter.empty:
            assert text == "", argument
        else:
            documented = ast.literal_eval(text.replace("inf", "1e999"))
            assert same(default, documented) or default == documented, argument
    for form in forms_of(SAME_RULE.get(name, name)).forms:
        for slot in form.slots:
            assert slot.name in rows, slot.name


@each_class
@each_page
def test_the_list_of_rules_names_the_class_with_its_state(name):
    row = re.search(
        rf"^\|[^|]*\| `{name}`[^|]*\|([^|]*)\|", (PAGES / "README.md").read_text(), re.M
    )
    assert row is not None
    for slot in forms_of(SAME_RULE.get(name, name)).forms[0].slots:
        assert f"`{slot.name}`" in row[1]


def test_the_cases_reach_every_rule():
    reached = set()
    for name, options in references.CASES:
        optimizer = getattr(mlx_opt, name)(0.1, **options)
        forms = forms_of(optimizer._rule)
        values = {k: optimizer._fixed.get(k, getattr(optimizer, k, None)) for k in forms.attributes}
        reached.add(next(form.rule for form in forms.forms if form.holds(values)))
    rules = {form.rule for name in OPTIMIZERS for form in forms_of(name).forms}
    # In tests/test_muon.py and test_muon_variants.py.
    assert rules - reached == {"AdaMuon", "Muon", "NorMuon"}


@each_optimizer
def test_the_cases_give_every_hyperparameter_another_value_than_its_default(name):
    if name in ("Adafactor", "Muon"):
        pytest.skip("has a file of its own")
    for argument, default in standards(name).items():
        cases = [*CASES, *SUMMING]
        given = [case.options[argument] for case in cases if argument in case.options]
        assert any(value != default for value in given), argument


def test_each_number_that_a_rule_keeps_has_a_formula():
    keeping = {
        each.rule for each in descriptions.BY_RULE.values() if any(x.kept for x in each.hypers)
    }
    assert keeping == formulas.KEPT.keys()


def test_there_are_derived_classes():
    assert {"AdEMAMix", "Signum"} <= set(mlx_opt.optimizers.DERIVED)


@pytest.mark.parametrize("name", list(mlx_opt.optimizers.DERIVED))
def test_a_derived_class_is_a_name_of_the_package_with_a_docstring(name):
    cls = getattr(mlx_opt, name)
    assert name in mlx_opt.__all__
    assert getattr(mlx_opt.optimizers, name) is cls
    assert (cls.__module__, cls.__qualname__) == ("mlx_opt.optimizers", name)
    for argument in defaults(cls):
        assert f"    {argument}: " in cls.__doc__
