"""What a session shows of the package: repr, help and dir."""

import inspect
import re
import sys
from pathlib import Path

import mlx.core as mx
import mlx.optimizers as stock
import pytest

import mlx_opt
from mlx_opt import descriptions, docstrings
from mlx_opt.constructors import COMMON

ROOT = Path(__file__).resolve().parents[1]
RULES = sorted({"Adam", *descriptions.OPTIMIZERS})
USE = f"fused on {mx.default_device().type.name}"


def test_the_hyperparameters_are_shown():
    optimizer = mlx_opt.AdamW(1e-3, betas=(0.8, mx.array(0.5)), weight_decay=0.1)
    assert repr(optimizer) == (
        "<AdamW(learning_rate=0.001, betas=(0.8, 0.5), eps=1e-08, weight_decay=0.1, "
        f"bias_correction=False): {USE}>"
    )
    with_additions = mlx_opt.AdamW(1e-3, nesterov=True, maximize=True)
    assert "bias_correction=False, nesterov=True, maximize=True): " in repr(with_additions)


@pytest.mark.parametrize("name", RULES)
def test_every_optimizer_shows_its_constructors_arguments(name):
    cls = getattr(mlx_opt, name)
    optimizer = cls(0.1) if name != "Adafactor" else cls()
    shown = set(re.findall(r"(\w+)=", repr(optimizer)))
    assert shown == {
        *inspect.signature(cls).parameters,
    } - {"fallback", *COMMON, *cls._additions} - (
        {"learning_rate"} if name == "Adafactor" else set()
    )


def warm_up(step):
    return 0.1


def test_schedules_are_shown_by_their_names():
    optimizer = mlx_opt.AdamW(stock.cosine_decay(1e-3, 10), betas=(warm_up, 0.9), eps=warm_up)
    assert "learning_rate=cosine_decay, betas=(warm_up, 0.9), eps=warm_up," in repr(optimizer)


def test_groups_are_counted():
    groups = [mlx_opt.no_decay(), mlx_opt.Group("*bias", learning_rate_scale=0.5)]
    assert "False, 2 groups): " in repr(mlx_opt.AdamW(1e-3, groups=groups))
    assert "=0, 1 group): " in repr(mlx_opt.Lion(1e-3, groups=groups[:1]))


def test_muon_shows_its_options_and_its_fallback():
    shown = repr(mlx_opt.Muon(0.1, ns_dtype=mx.bfloat16, fallback=mlx_opt.Lion(0.2)))
    assert "ns_dtype=mlx.core.bfloat16" in shown
    assert f"fallback=<Lion(learning_rate=0.2, betas=[0.9, 0.99], weight_decay=0): {USE}>" in shown


def test_a_multi_optimizer_shows_its_parts():
    theirs = stock.SGD(0.1)
    optimizer = mlx_opt.MultiOptimizer([mlx_opt.SignSGD(0.1), theirs], [lambda path, _: True])
    ours = f"<SignSGD(learning_rate=0.1, weight_decay=0): {USE}>"
    assert repr(optimizer) == f"<MultiOptimizer of {ours}, {theirs!r}>"
    optimizer.optimizers[1] = optimizer
    assert repr(optimizer) == f"<MultiOptimizer of {ours}, ...>"


def test_a_subclass_says_whether_it_is_fused():
    class Named(mlx_opt.Lion):
        pass

    class Own(mlx_opt.Lion):
        def apply_single(self, gradient, parameter, state):
            return parameter

    class Rule(mlx_opt.Optimizer):
        def __init__(self):
            super().__init__()
            self._maybe_schedule("learning_rate", 0.5)
            self.decay, self.name = 3, "a"

    assert repr(Named(0.1)).startswith("<Named(learning_rate=0.1,")
    assert repr(Named(0.1)).endswith(f": {USE}>")
    assert repr(Own(0.1)).endswith(": apply_single is overridden, not fused>")
    assert repr(Rule()) == "<Rule(learning_rate=0.5, decay=3): its own step, not fused>"


def test_a_device_without_a_backend_is_named(monkeypatch):
    monkeypatch.setattr(mlx_opt._ext, "available", lambda: False)
    device = mx.default_device().type.name
    assert repr(mlx_opt.Lion(0.1)).endswith(f": no backend for {device}, not fused>")


@pytest.mark.parametrize("name", ["AdamW", "NAdam", "Muon", "MultiOptimizer", "Optimizer"])
def test_an_object_that_is_half_made_is_shown(name):
    cls = getattr(mlx_opt, name)
    assert name in repr(cls.__new__(cls))


def test_a_property_that_raises_is_shown_as_unknown():
    class Broken(mlx_opt.SGD):
        @property
        def momentum(self):
            raise RuntimeError("mine")

        @momentum.setter
        def momentum(self, value):
            pass

    assert "momentum=?, dampening=0" in repr(Broken(0.1))


def test_a_part_whose_repr_raises_does_not_raise():
    class Broken(stock.SGD):
        def __repr__(self):
            raise RuntimeError("mine")

    assert "MultiOptimizer object at" in repr(mlx_opt.MultiOptimizer([Broken(0.1)]))


def test_nothing_is_evaluated_in_a_trace():
    optimizer, shown = mlx_opt.SGD(0.1, momentum=mx.array(0.5)), []

    def step(gradient):
        shown.append(repr(optimizer))
        return optimizer.apply_gradients({"w": gradient}, {"w": mx.ones(2)})

    optimizer.init({"w": mx.ones(2)})
    mx.compile(step, inputs=optimizer.state, outputs=optimizer.state)(mx.ones(2))
    assert "learning_rate=array, momentum=array" in shown[0]
    assert "learning_rate=0.1, momentum=0.5" in repr(optimizer)


@pytest.mark.parametrize("name", RULES)
def test_help_says_what_mlx_opt_adds(name):
    text = inspect.getdoc(getattr(mlx_opt, name))
    for word in ("max_norm=1.0", "skip_nonfinite=True", "groups", "float32", "State of each"):
        assert word in text
    for form in descriptions.of_optimizer("AdamW" if name == "Adam" else name):
        assert all(f"``{slot.name}``" in text for slot in form.slots)
    assert text.endswith(f"docs/rules/{name.lower()}.md")
    assert text.count("State of each parameter") == 1


@pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="the pages are not beside the tests")
@pytest.mark.parametrize("name", RULES)
def test_the_page_that_help_names_exists_and_cites_a_paper(name):
    page = ROOT / docstrings.PAGES / f"{name.lower()}.md"
    assert re.search(r"arXiv|(19|20)\d\d", page.read_text().split("## Formula")[0])


def test_help_of_a_multi_optimizer_says_what_mlx_opt_adds():
    text = inspect.getdoc(mlx_opt.MultiOptimizer)
    assert "max_norm=1.0" in text and "one norm over all gradients" in text and "groups" in text


def test_dir_is_the_public_surface():
    assert dir(mlx_opt) == sorted(mlx_opt.__all__)
    for name in dir(mlx_opt):
        assert getattr(mlx_opt, name) is not None
    assert not [name for name in dir(mlx_opt) if name.startswith("_") and name != "__version__"]


@pytest.mark.parametrize("width", [50, 80])
def test_a_description_fits(monkeypatch, capsys, width):
    monkeypatch.setenv("COLUMNS", str(width))
    groups = [mlx_opt.no_decay(), mlx_opt.Group("layers.*.mlp*", learning_rate_scale=0.5)]
    layer = {"mlp": {"weight": mx.zeros((100, 200)), "bias": mx.zeros(3)}}
    parameters = {"layers": [layer] * 1000, "a_long_name_of_a_parameter.weight": mx.zeros((2, 2))}
    mlx_opt.AdamW(1e-3, weight_decay=0.1, groups=groups).describe(parameters)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    assert any("1000" in line and "20,000,000" in line for line in lines)


def test_a_description_without_rich_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    optimizer = mlx_opt.SGD(0.1)
    with pytest.raises(ImportError, match=r"needs rich .*pip install 'mlx-opt\[bench\]'"):
        optimizer.describe({"w": mx.ones(2)})
    assert len(optimizer.describe({"w": mx.ones(2)}, show=False)) == 1
